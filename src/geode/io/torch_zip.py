"""PyTorch's checkpoint files, read and written without PyTorch and without ever running what a pickle asks for.

What the names mean is not known here: a dialect knows.

    a zip, nothing compressed

    data.pkl    dicts, lists, numbers, texts; of each tensor: storage, offset, shape, strides
    data/0 …    one storage each, mapped where it lies
    byteorder, version

The truth is torch/serialization.py and caffe2/serialize/inline_container.cc of PyTorch.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ..errors import FormatError, ModelNotFound
from ..tensors import Entry, Tensors
from . import torch_pickle
from .files import map_file, staging, write_tensor

MAGIC = b"PK\x03\x04"
FILE_NAME = re.compile(r"[\w-][\w.-]*")
ALIGNMENT = 64
MAX_PICKLE = 100_000_000  # bytes; a thousand tensors take 0.2 MB


def load(source: Path | np.ndarray, what: str = "") -> Any:
    """What a checkpoint holds: dicts, lists, numbers and texts, with an `Entry` in the place of each tensor.

    `source` is a file or its bytes; `what` names it in messages. Reads headers only. Raises FormatError for bytes that
    are not what they say and for a pickle that asks for more than tensors, ModelNotFound for a file not there.
    """
    data = map_file(source) if isinstance(source, Path) else source
    archive = _Archive(data, what or str(source))
    raw = archive.member("data.pkl")
    if len(raw) > MAX_PICKLE:
        archive.fail(f"its pickle has {len(raw)} bytes, more than the {MAX_PICKLE} that names and shapes ever need")
    return torch_pickle.loads(raw.tobytes(), archive.what, lambda key: archive.member(f"data/{key}"))


def tensors(value: Any, what: str) -> Tensors:
    """The tensors of a state dict that `load` gave; what is no tensor in it is left out. Raises FormatError."""
    if not isinstance(value, dict):
        raise FormatError(f"{what} should hold names with tensors; it holds a {type(value).__name__}.")
    found = {name: entry for name, entry in value.items() if isinstance(entry, Entry)}
    if odd := [name for name in found if not isinstance(name, str)]:
        raise FormatError(f"{what} names a tensor {odd[0]!r:.60}, which is no text. The file is damaged.")
    return Tensors(found)


def read(path: Path) -> Tensors:
    """The tensors of one file of Hugging Face's older kind, of `pytorch_model.bin.index.json`, or of a directory."""
    if path.is_dir():
        single = path / "pytorch_model.bin"
        path = single if single.is_file() else path / INDEX
    if path.name != INDEX:
        return tensors(load(path), str(path))
    where = _weight_map(path)
    if lacking := sorted({file for file in where.values() if not file.is_file()}):
        shown = ", ".join(file.name for file in lacking[:8])
        raise ModelNotFound(f"{path} names {len(lacking)} files that are not beside it: {shown}. Fetch them too.")
    shards = {file: read(file).entries for file in dict.fromkeys(where.values())}
    if absent := [name for name, file in where.items() if name not in shards[file]]:
        raise FormatError(f"{path} says that {absent[0]!r:.90} is in {where[absent[0]].name}, and it is not.")
    return Tensors({name: shards[file][name] for name, file in where.items()})


INDEX = "pytorch_model.bin.index.json"


def _weight_map(index: Path) -> dict[str, Path]:
    """Each tensor's file, which lies beside the index."""
    try:
        found = json.loads(map_file(index).tobytes()).get("weight_map")
    except (ValueError, AttributeError, RecursionError) as problem:
        raise FormatError(f"{index} is not a JSON object ({problem}). Fetch it again.") from None
    names = list(found.values()) if isinstance(found, dict) else [None]
    if odd := [name for name in names if not isinstance(name, str) or not FILE_NAME.fullmatch(name)]:
        raise FormatError(f"{index} names {odd[0]!r:.90} for a file beside it. Do not trust where it came from.")
    return {name: index.parent / file for name, file in found.items()}


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Writes nested dicts of texts, numbers and `Tensors`, for `torch.load(path, weights_only=True, mmap=True)`.

    One tensor is in memory at a time; the name is given when all is written. Raises TensorError for a type that
    PyTorch has no storage for, CapacityError when the disk is full.
    """
    with staging(path) as stage, stage.open(path) as file:
        write_to(file, value)


def write_to(file: BinaryIO, value: Mapping[str, Any]) -> None:
    """The same into a file that is open for writing and can seek; its position 0 is the archive's beginning."""
    raw, found = torch_pickle.dumps(value)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("data.pkl", raw), ("byteorder", b"little")):
            with _new_member(archive, file, name) as member:
                member.write(data)
        for i, (name, entry) in enumerate(found):
            with _new_member(archive, file, f"data/{i}") as member:
                write_tensor(member, name, _as_pairs(entry))
        with _new_member(archive, file, "version") as member:
            member.write(b"3\n")


# The archive


class _View(io.RawIOBase):
    """Bytes in memory as a file, without a copy of them."""

    def __init__(self, data: np.ndarray):
        self._data, self._at = data.data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, (0, self._at, len(self._data))[whence] + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        piece = self._data[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


class _Archive:
    """The members of a zip, where they lie. All names share one folder, which is left out of them here."""

    def __init__(self, data: np.ndarray, what: str):
        self._data, self.what = data, what
        if data[:4].tobytes() != MAGIC:
            self._refuse_old()
        self._members = self._listed()
        if self.order() != "little":
            self.fail(
                "it was written on a big-endian machine", "Load it with PyTorch there and save it as safetensors."
            )

    def fail(self, problem: str, remedy: str = "The file is damaged: fetch or convert it again.") -> NoReturn:
        raise FormatError(f"{self.what} is not a good PyTorch checkpoint: {problem}. {remedy}")

    def order(self) -> str:
        if "byteorder" not in self._members:
            return "little"
        return self.member("byteorder")[:16].tobytes().decode("ascii", "replace")

    def member(self, name: str) -> np.ndarray:
        """Bytes of a member. Raises FormatError when there is none."""
        if name not in self._members:
            self.fail(f"it has no member {name!r:.60}")
        info = self._members[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            self.fail(f"its member {name!r:.60} is compressed or encrypted, which PyTorch never does")
        at = info.header_offset
        head = self._data[at : at + 30].tobytes() if 0 <= at < len(self._data) else b""
        if len(head) < 30 or head[:4] != MAGIC:
            self.fail(f"where its member {name!r:.60} should begin, none does")
        begin = at + 30 + sum(struct.unpack("<HH", head[26:30]))
        if begin + info.file_size > len(self._data):
            self.fail(f"its member {name!r:.60} should end at {begin + info.file_size}, beyond the file's end")
        return self._data[begin : begin + info.file_size]

    def _listed(self) -> dict[str, zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(io.BufferedReader(_View(self._data))) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, OverflowError) as problem:
            self.fail(f"its zip directory cannot be read ({problem})")
        found: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            self._check_name(info)
            name = info.filename.partition("/")[2]
            if name in found:
                self.fail(f"it has two members {name!r:.60}")
            found[name] = info
        return found

    def _check_name(self, info: zipfile.ZipInfo) -> None:
        parts = info.orig_filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in info.orig_filename:
            self.fail(f"its member {info.orig_filename!r:.60} points outside of it", "Do not trust where it came from.")
        if stat.S_ISLNK(info.external_attr >> 16):
            self.fail(f"its member {info.filename!r:.60} is a link", "Do not trust where it came from.")

    def _refuse_old(self) -> NoReturn:
        if self._data[:2].tobytes() in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
            self.fail(
                "it is a bare pickle, the form that PyTorch wrote before version 1.6",
                "Where you trust it, let PyTorch write the newer form: "
                "torch.save(torch.load(old, weights_only=True), new).",
            )
        self.fail("it does not begin as a zip does")


# Writing


def _new_member(archive: zipfile.ZipFile, file: BinaryIO, name: str) -> Any:
    """A member whose bytes begin at a multiple of 64, as PyTorch pads them: by an extra field in the header."""
    info = zipfile.ZipInfo(f"archive/{name}")
    header = 30 + len(info.filename) + 20 + 4  # with the sizes in 64 bits, and the head of the padding
    padding = -(file.tell() + header) % ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    return archive.open(info, "w", force_zip64=True)


def _as_pairs(entry: Entry) -> Entry:
    """Complex numbers as pairs of F32: the same bytes."""
    if entry.type != torch_pickle.COMPLEX:
        return entry
    return Entry((*entry.shape, 2), "F32", entry.nbytes, lambda: np.asarray(entry.load())[..., None].view(np.float32))


def looks_like(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as these do."""
    with Path(path).open("rb") as file:
        return file.read(4) == MAGIC
