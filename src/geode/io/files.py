"""Files as bytes: mapped for reading; written beside their names and renamed when all of them are whole.

What the bytes mean is not known here: that is gguf's and safetensors' part.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import shutil
import stat
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import CapacityError, ModelNotFound, OptionError, TensorError
from ..quant import DTYPES, QTensor
from ..tensors import Array, Entry, Tensors, entry_of


def map_file(path: Path) -> np.ndarray:
    """The file as read-only uint8 (size,), read page by page as it is touched. Raises ModelNotFound."""
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise ModelNotFound(f"Expected a file at {path}; that is a directory or a device. Give the file itself.")
        if info.st_size == 0:  # which the operating system refuses to map
            return np.empty(0, np.uint8)
        mapped = np.memmap(path, np.uint8, mode="r")
        _MAPPED[mapped._mmap] = path.resolve()  # type: ignore[attr-defined]
        return mapped.view(np.ndarray)
    except FileNotFoundError:
        raise ModelNotFound(f"There is no file {path}. Check the spelling, or fetch the file first.") from None
    except OSError as error:
        raise ModelNotFound(f"The file {path} cannot be read: {error.strerror}. Check its permissions.") from None


_MAPPED: weakref.WeakKeyDictionary[mmap.mmap, Path] = weakref.WeakKeyDictionary()


def release(files: Iterable[Path]) -> None:
    """Lets go the pages of these files that this process has mapped; who looks at them again has them read again.

    Nothing happens where the system has no such advice. Pages read count as memory taken until they are let go.
    """
    paths = {file.resolve() for file in files}
    for mapped, path in list(_MAPPED.items()):
        if path in paths and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def array_at(data: np.ndarray, at: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array that starts at byte `at`: a view where the machine can read it in place, else a copy."""
    nbytes = math.prod(shape) * dtype.itemsize
    array = data[at : at + nbytes].view(dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()


def entries(tensors: Mapping[str, Array]) -> dict[str, Entry]:
    """What a header says of each tensor; those of a lazy mapping are loaded one by one and let go again."""
    if isinstance(tensors, Tensors):
        return dict(tensors.entries)
    return {name: _entry(tensors, name) for name in tensors}


def _entry(tensors: Mapping[str, Array], name: str) -> Entry:
    known = entry_of(tensors[name])
    return Entry(known.shape, known.type, known.nbytes, lambda: tensors[name])


def cut(known: Mapping[str, Entry], limit: int | None) -> list[dict[str, Entry]]:
    """Tensors in their order, in parts of at most `limit` bytes; a bigger tensor has its own. Raises OptionError."""
    if limit is not None and limit < 1:
        raise OptionError(f"max_shard_bytes must be 1 or more; got {limit}.")
    parts: list[dict[str, Entry]] = [{}]
    size = 0
    for name, entry in known.items():
        if limit is not None and parts[-1] and size + entry.nbytes > limit:
            parts.append({})
            size = 0
        parts[-1][name] = entry
        size += entry.nbytes
    return parts


def write_tensor(file: BinaryIO, name: str, entry: Entry) -> None:
    """Loads one tensor and appends its bytes. Raises TensorError when it is not what its entry promised."""
    array = entry.load()
    found = entry_of(array)
    if (found.shape, found.type, found.nbytes) != (entry.shape, entry.type, entry.nbytes):
        raise TensorError(
            f"The tensor {name} was announced as {entry.type} {entry.shape} and came as {found.type} {found.shape}; "
            "nothing was written. This is a fault of whoever made the mapping of tensors."
        )
    plain = array.data if isinstance(array, QTensor) else array.astype(DTYPES[entry.type], copy=False)
    file.write(np.ascontiguousarray(plain).reshape(-1).view(np.uint8).data)


class Staging:
    """Files under temporary names in their own directories, until `staging` gives them their names."""

    def __init__(self) -> None:
        self._parts: dict[Path, Path] = {}
        self._made: list[Path] = []

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[BinaryIO]:
        """A file to write that will be `path`."""
        part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
        with part.open("xb") as file:
            self._parts[path] = part
            yield file
            file.flush()
            os.fsync(file.fileno())

    def directory(self, path: Path) -> None:
        """Makes a directory, and those above it; the ones that were not there go again when the work fails."""
        missing = [p for p in (path, *path.parents) if not p.exists()]
        self._made = missing + self._made
        path.mkdir(parents=True, exist_ok=True)

    def commit(self) -> None:
        """Gives every file its name, in the order in which they were opened."""
        for path, part in list(self._parts.items()):
            os.replace(part, path)
            del self._parts[path]
            _sync_directory(path.parent)
        self._made = []

    def discard(self) -> None:
        for part in self._parts.values():
            part.unlink(missing_ok=True)
        for path in self._made:
            with contextlib.suppress(OSError):  # somebody else has put something there
                path.rmdir()


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Staging]:
    """Writes all or nothing: names are given when the block ends well, and on any failure nothing is left.

    Raises CapacityError when the disk is full, OptionError when `target` cannot be written.
    """
    stage = Staging()
    try:
        yield stage
        stage.commit()
    except OSError as error:
        raise explained(error, target) from None
    finally:
        stage.discard()


def _sync_directory(path: Path) -> None:
    """Makes a rename outlive a power cut, where the system lets a directory be opened."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def explained(error: OSError, target: Path) -> CapacityError | OptionError:
    """What went wrong while `target` was written, as one of our errors."""
    said = " ".join(str(error.strerror or error).split())  # h5py tells a story of several lines
    if error.errno not in _FULL:
        return OptionError(f"Cannot write {target}: {said}. Choose a directory that exists and is yours.")
    place = next(p for p in (target, *target.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    return CapacityError(
        f"No room to write {target}: {said}, with {free / 1e9:.1f} GB free in {place}. "
        "Nothing was left behind. Make room, or choose another disk."
    )
