"""Members of an uncompressed tar where they lie, and a tar written member by member.

What the members are is not known here.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ..errors import FormatError
from .files import map_file

MAX_MEMBERS = 100_000


def members(path: Path) -> dict[str, np.ndarray]:
    """Bytes of each file by its name, mapped: uint8 (size,). Names are as "a/b.c", whatever "./" stood before them.

    Raises FormatError for what is no plain tar, and for members that are links or would leave the directory.
    """
    data = map_file(path)
    if data[:2].tobytes() == b"\x1f\x8b":
        _fail(
            path, "it is compressed by gzip", f"Uncompress it: gunzip < {path.name} > plain.{path.suffix.lstrip('.')}"
        )
    found: dict[str, np.ndarray] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for i, info in enumerate(archive):
                if i >= MAX_MEMBERS:
                    _fail(path, f"it has more than {MAX_MEMBERS} members")
                _check(path, info)
                if info.isreg():
                    found[_plain(info.name)] = _bytes(path, data, info)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as problem:
        _fail(path, f"its headers cannot be read ({problem})")
    return found


def _fail(path: Path, problem: str, remedy: str = "The file is damaged: fetch or convert it again.") -> NoReturn:
    raise FormatError(f"{path} is not a good tar file: {problem}. {remedy}")


def _check(path: Path, info: tarfile.TarInfo) -> None:
    parts = info.name.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        _fail(path, f"its member {info.name!r:.60} points outside of it", "Do not trust where it came from.")
    if not (info.isreg() or info.isdir()) or info.issparse():
        _fail(path, f"its member {info.name!r:.60} is a link or a device", "Do not trust where it came from.")


def _bytes(path: Path, data: np.ndarray, info: tarfile.TarInfo) -> np.ndarray:
    end = info.offset_data + info.size
    if info.size < 0 or end > len(data):
        _fail(path, f"its member {info.name!r:.60} should end at {end}, and the file ends at {len(data)}")
    return data[info.offset_data : end]


def _plain(name: str) -> str:
    return name.removeprefix("./")


class Writer:
    """A tar into a file open for writing; each member's size is written behind its bytes."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def add(self, name: str, fill: Callable[[BinaryIO], Any]) -> None:
        """A member that `fill` writes; what it is given begins at position 0 and can seek."""
        begin = self._file.tell()
        self._file.write(bytes(tarfile.BLOCKSIZE))
        fill(_Part(self._file, begin + tarfile.BLOCKSIZE))  # type: ignore[arg-type]
        self._file.seek(0, 2)
        info = tarfile.TarInfo(f"./{name}")
        info.size = self._file.tell() - begin - tarfile.BLOCKSIZE
        self._file.write(bytes(-info.size % tarfile.BLOCKSIZE))
        self._file.seek(begin)
        self._file.write(info.tobuf(tarfile.GNU_FORMAT))  # one block, however large the member
        self._file.seek(0, 2)

    def close(self) -> None:
        """The two empty blocks that end a tar."""
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))


class _Part:
    """The rest of a file from some position on, as a file of its own."""

    def __init__(self, file: BinaryIO, begin: int):
        self._file, self._begin = file, begin
        self.write, self.flush = file.write, file.flush

    def tell(self) -> int:
        return self._file.tell() - self._begin

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset + (self._begin if whence == 0 else 0), whence) - self._begin

    def seekable(self) -> bool:
        return True
