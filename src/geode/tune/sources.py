"""Places to rows: files, directories and data sets of the hub; each row knows where it stands.

What a row says is not known here: that is the part of `shapes`. How bytes become rows is `readers`'.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import FormatError, ModelNotFound, OptionError
from . import readers, splits
from .readers import Row

__all__ = ["File", "Row", "files", "rows"]


@dataclass(frozen=True)
class File:
    """One file of rows, and the name by which messages and records call it."""

    name: str
    path: Path

    def rows(self, numbered: bool = False) -> Iterator[Row]:
        """Its rows in order. `numbered`: a table without a header, whose columns are "0", "1" and so on.

        Raises FormatError where the file is not what its name says, or has no row; MissingExtra; ModelNotFound.
        """
        empty = True
        for row in readers.read(self.path, self.name, numbered):
            empty = False
            yield row
        if empty:
            raise FormatError(f"{self.name} has no rows. Expected at least one; is this the right file?")


def rows(*places: str | os.PathLike[str], numbered: bool = False) -> Iterator[Row]:
    """The rows of several places, one after the other. Raises what `files` and `File.rows` raise."""
    for file in files(*places):
        yield from file.rows(numbered)


def files(*places: str | os.PathLike[str]) -> list[File]:
    """The files of places: a file, a directory[:split], or hf:owner/name[@revision][/config][:split].

    What belongs to the hub is downloaded first. Raises ModelNotFound, OptionError, DownloadError, MissingExtra.
    """
    if not places:
        raise OptionError("No data was named. Give a file, a directory, or hf:owner/name of the Hugging Face hub.")
    found = [file for place in places for file in _files(os.fspath(place))]
    count = Counter(file.name for file in found)
    return [file if count[file.name] == 1 else File(str(file.path), file.path) for file in found]


def _files(place: str) -> list[File]:
    if place.startswith("hf:"):
        from .hub import bring

        folder, names = bring(place)
        return [File(name, folder / name) for name in names]
    path, split = _path(place)
    if path.is_dir():
        return [File(name, path / name) for name in splits.choose(_inside(path), split, place)]
    readers.kind(path.name)
    return [File(path.name, path)]


def _path(place: str) -> tuple[Path, str | None]:
    """The path of a place, and the split that is named behind a directory."""
    path = Path(place).expanduser()
    if path.exists():
        return path, None
    before, colon, split = place.rpartition(":")
    if colon and Path(before).expanduser().is_dir():
        return Path(before).expanduser(), split
    raise ModelNotFound(
        f"There is no data at '{place}'. Expected a file, a directory, or hf:owner/name for a data set of the "
        "Hugging Face hub. Check the spelling."
    )


def _inside(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
