"""One file to rows, by its ending: JSON lines, JSON, CSV, TSV, Parquet, Arrow and plain text, also compressed.

Which files there are, and what their columns mean, is not known here.

    lines.py   bytes and lines    objects.py  JSON, JSON lines
    tables.py  CSV, TSV           arrow.py    Parquet, Arrow, Feather
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ...errors import OptionError
from .arrow import arrow, parquet
from .lines import Input, Row, endings, joined, said
from .objects import json_document, json_lines
from .tables import comma_separated, tab_separated

__all__ = ["ENDINGS", "Row", "kind", "read", "readable", "said"]


def kind(name: str) -> str:
    """How a file of this name is read: a key of READERS. Raises OptionError for a name that is not known."""
    ending, packed = endings(name)
    if ending not in KINDS:
        raise OptionError(
            f"'{name}' is not a kind of data that Geode reads. Expected a name that ends in {', '.join(ENDINGS)}, "
            "each but Parquet and Arrow also packed as .gz, .xz, .bz2 or .zst. Convert or rename the file."
        )
    if packed and KINDS[ending] in BINARY:
        raise OptionError(
            f"'{name}' is packed twice: {ending} files compress themselves. "
            f"Unpack it (.{packed}) and name what comes out."
        )
    return KINDS[ending]


def readable(name: str) -> bool:
    """Whether `kind` knows files of this name."""
    try:
        return bool(kind(name))
    except OptionError:
        return False


def read(path: Path, name: str, numbered: bool = False) -> Iterator[Row]:
    """The rows of a file that messages call `name`. `numbered`: a table has no header and its columns are "0", "1" …

    Raises FormatError with the line where the file is not what its name says, MissingExtra, ModelNotFound.
    """
    file = Input(path, name, numbered)
    yield from READERS[kind(path.name)](file)


def _text(file: Input) -> Iterator[Row]:
    """The whole file as one document."""
    text = joined(file)
    if text.strip():
        yield Row({"text": text}, f"{file.name}:1")


KINDS = {
    "jsonl": "lines",
    "ndjson": "lines",
    "json": "json",
    "csv": "csv",
    "tsv": "tsv",
    "parquet": "parquet",
    "arrow": "arrow",
    "feather": "arrow",
    "txt": "text",
    "text": "text",
    "md": "text",
}
ENDINGS = tuple(f".{ending}" for ending in KINDS)
BINARY = ("parquet", "arrow")
READERS: dict[str, Callable[[Input], Iterator[Row]]] = {
    "lines": json_lines,
    "json": json_document,
    "csv": comma_separated,
    "tsv": tab_separated,
    "parquet": parquet,
    "arrow": arrow,
    "text": _text,
}
