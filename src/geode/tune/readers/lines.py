"""A file's bytes, unpacked, and its lines as text.

What the lines say is not known here.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from ...errors import BackendError, FormatError, ModelNotFound

OPENERS: dict[str, Callable[[Path], Any]] = {"gz": gzip.open, "xz": lzma.open, "bz2": bz2.open}


@dataclass(frozen=True)
class Row:
    """What one row says, by the data's own names, and where it stands: "file.jsonl:12", its line or row from 1 on."""

    values: dict[str, Any]
    source: str


@dataclass(frozen=True)
class Input:
    """A file, how messages call it, and whether it is a table whose columns are numbered and not named."""

    path: Path
    name: str
    numbered: bool = False


def endings(name: str) -> tuple[str, str]:
    """The ending that says what a file is, and the one that says how it is packed, in small letters."""
    parts = name.lower().split(".")
    packed = parts.pop() if parts[-1] in (*OPENERS, "zst") else ""
    return parts[-1] if len(parts) > 1 else "", packed


@contextlib.contextmanager
def opened(file: Input) -> Iterator[IO[bytes]]:
    """The unpacked bytes; what the disk or the packing says no to is a Geode error."""
    packed = endings(file.path.name)[1]
    try:
        with _opener(packed)(file.path) as raw:
            yield raw
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ModelNotFound(
                f"{file.name} cannot be read: {error.strerror}. Check the path and its rights."
            ) from None
        raise FormatError(
            f"{file.name} is truncated or not packed as .{packed}: {error}. Fetch or pack the file again."
        ) from None


def _opener(packed: str) -> Callable[[Path], Any]:
    if packed == "zst":
        try:
            return import_module("compression.zstd").open  # type: ignore[no-any-return]
        except ImportError:
            raise BackendError("Files packed as .zst need Python 3.14. Unpack the file first: zstd -d FILE") from None
    return OPENERS.get(packed, lambda path: open(path, "rb"))


def lines(file: Input) -> Iterator[tuple[int, str]]:
    """Numbers from 1 on and lines with their ends, without a byte order mark."""
    with opened(file) as raw:
        for number, line in enumerate(raw, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(f"{file.name}:{number}", line, error) from None
            yield number, text


def _not_utf8(where: str, line: bytes, error: UnicodeDecodeError) -> FormatError:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        return FormatError(f"{where} is UTF-16; Geode reads UTF-8. Convert the file: iconv -f UTF-16 -t UTF-8 FILE")
    return FormatError(
        f"{where} is not UTF-8: byte {error.start + 1} of the line is 0x{line[error.start]:02x}. "
        "Convert the file, as in: iconv -f LATIN1 -t UTF-8 FILE"
    )


def filled(numbered: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The lines that are not blank."""
    return ((number, text) for number, text in numbered if text.strip())


def joined(file: Input) -> str:
    """The whole file as one text."""
    return "".join(text for _, text in lines(file))


def said(value: Any) -> str:
    """What a value is, in words for a message."""
    if value is None:
        return "null"
    words = {
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return words.get(type(value), f"a {type(value).__name__}")
