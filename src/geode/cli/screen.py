"""What every verb says to people and machines: paragraphs, tables, JSON.

What is said is not known here.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import TextIO

KEPT = "\n\t"


def complain(message: str) -> None:
    """One paragraph on stderr, wrapped where a person reads it."""
    print(paragraph(f"geode: {message}", sys.stderr), file=sys.stderr, flush=True)


def note(message: str) -> None:
    """A remark on stderr, beside what goes to stdout."""
    print(paragraph(message, sys.stderr), file=sys.stderr, flush=True)


def paragraph(text: str, out: TextIO) -> str:
    """The text wrapped to the terminal; as one line where `out` is none."""
    if not out.isatty():
        return text
    width = max(shutil.get_terminal_size().columns - 1, 20)
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def dump(value: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns as wide as their widest cell, two spaces apart; those numbered in `right` are flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(f"{cell:>{width}}" if i in right else f"{cell:<{width}}" for i, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def write(text: str) -> None:
    """A model's words on stdout, at once; on a terminal without the characters that steer it."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def harmless(text: str) -> str:
    """The text without control characters: a model must not move a cursor or name a window."""
    return "".join(char for char in text if char in KEPT or unicodedata.category(char) != "Cc")
