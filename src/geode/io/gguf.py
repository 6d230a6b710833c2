"""GGUF: llama.cpp's one-file checkpoint of metadata, tokenizer and tensors, read in place and written whole.

What a key or a tensor's name means is not known here, save the container's own (`general.alignment`, `split.*`).

    magic "GGUF" | version u32 | tensors u64 | keys u64
    key:     name string | type u32 | value             string: length u64 | bytes
    tensor:  name string | axes u32 | each axis u64, fastest first | type u32 | offset u64
    zeros up to the alignment | the tensors' bytes, each starting at a multiple of the alignment

The truth is docs/gguf.md in github.com/ggml-org/ggml and ggml/src/gguf.cpp in github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ..errors import FormatError, ModelNotFound, OptionError, TensorError
from ..quant import BLOCKS, DTYPES, QTensor, row_bytes
from ..strings import StringArray, places
from ..tensors import Array, Entry, Tensors
from .files import array_at, cut, entries, map_file, staging, write_tensor
from .gguf_values import VALUE_TYPES, packed_name, packed_value, type_of

__all__ = ["GGUF", "TENSOR_TYPES", "VALUE_TYPES", "StringArray", "read", "write", "write_parts"]

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
MAX_AXES = 4  # GGML_MAX_DIMS
MAX_NAME = 63  # bytes; llama.cpp keeps a tensor's name in 64 with a zero at the end
MAX_NESTING = 4  # arrays in arrays: the format sets no limit, and no file in use goes beyond 2

TENSOR_TYPES: dict[str, int] = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "I8": 24,
    "I16": 25,
    "I32": 26,
    "I64": 27,
    "F64": 28,
    "BF16": 30,
}
"""Types of tensors: name -> number in the file (`enum ggml_type`)."""

_VALUE_NAMES = {number: name for name, (number, _) in VALUE_TYPES.items()}
_TENSOR_NAMES = {number: name for name, number in TENSOR_TYPES.items()}


@dataclass(frozen=True)
class GGUF:
    """One checkpoint, of one file or of many parts.

    `metadata` holds str, bool, int, float, numpy arrays, `StringArray`, and lists for arrays in arrays. `types` holds
    each key's type in the file ("u32", "array[string]"), which `write` takes to write the same bytes again.
    """

    metadata: dict[str, object]
    types: dict[str, str]
    tensors: Tensors
    version: int


def read(path: str | os.PathLike[str]) -> GGUF:
    """Opens a GGUF file, versions 2 and 3, reading its header only; any part of a split one opens the whole.

    Raises FormatError for a file that is not what it says, ModelNotFound for one that is not there.
    """
    path = Path(path)
    first = _read_one(path)
    count = _split_number(path, first, "split.count", 1)
    return first if count in (0, 1) else _join(path, count)


def write(
    path: str | os.PathLike[str],
    metadata: Mapping[str, object],
    tensors: Mapping[str, Array],
    types: Mapping[str, str] | None = None,
) -> None:
    """Writes a version 3 file, one tensor in memory at a time, under a temporary name until it is whole.

    A metadata value takes its type from `types`, or from numpy where it is a numpy value; else an int is u32, i32 or
    64 bits as it needs, a float f32, a list of ints i32. `general.alignment` is obeyed. Raises OptionError for metadata
    and TensorError for tensors that GGUF cannot hold, CapacityError when the disk is full.
    """
    path = Path(path)
    alignment = _checked_alignment(metadata.get("general.alignment", ALIGNMENT))
    known = entries(tensors)
    types = {**(types or {}), "general.alignment": "u32"}
    header = b"".join(_header(metadata, types, known, alignment))
    with staging(path) as stage, stage.open(path) as file:
        file.write(header)
        _pad(file, alignment)
        for name, entry in known.items():
            write_tensor(file, name, entry)
            _pad(file, alignment)


def write_parts(
    path: str | os.PathLike[str],
    metadata: Mapping[str, object],
    tensors: Tensors,
    max_bytes: int,
    types: Mapping[str, str] | None = None,
) -> None:
    """Writes PATH-00001-of-0000N.gguf and so on, each of at most `max_bytes` of tensors or of one tensor.

    The first part has all metadata, as llama.cpp's gguf-split makes it. Raises as `write` does.
    """
    path = Path(path)
    parts = cut(tensors.entries, max_bytes)
    for index, part in enumerate(parts):
        split: dict[str, object] = {"split.no": np.uint16(index), "split.count": np.uint16(len(parts))}
        split |= {"split.tensors.count": np.int32(len(tensors))}
        name = f"{path.name.removesuffix('.gguf')}-{index + 1:05}-of-{len(parts):05}.gguf"
        alignment = {key: value for key, value in metadata.items() if key == "general.alignment"}
        write(path.with_name(name), {**(alignment if index else metadata), **split}, Tensors(part), types)


# Reading


class _Cursor:
    """Walks over a file's header; what it would read beyond the end, or allocate beyond the file's size, it refuses."""

    def __init__(self, path: Path, data: np.ndarray):
        self.path = path
        self.buffer = data.data
        self.size = len(data)
        self.at = 0

    def fail(self, problem: str, remedy: str = "The file is damaged: fetch or convert it again.") -> NoReturn:
        raise FormatError(f"{self.path} is not a good GGUF file: {problem}. {remedy}")

    def need(self, nbytes: int, what: str) -> None:
        if nbytes > self.size - self.at:
            self.fail(f"{what} at byte {self.at} needs {nbytes} bytes, and the file ends after {self.size - self.at}")

    def number(self, code: str, what: str) -> Any:
        self.need(struct.calcsize(code), what)
        (value,) = struct.unpack_from("<" + code, self.buffer, self.at)
        self.at += struct.calcsize(code)
        return value

    def count(self, least: int, what: str) -> int:
        """A number of things that take `least` bytes each or more."""
        value: int = self.number("Q", what)
        if value > (self.size - self.at) // least:
            self.fail(f"{what} says {value}, more than the {self.size - self.at} bytes that follow can hold")
        return value

    def bytes(self, what: str) -> bytes:
        length = self.count(1, f"the length of {what}")
        self.at += length
        return bytes(self.buffer[self.at - length : self.at])

    def name(self, what: str) -> str:
        raw = self.bytes(what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is {raw[:80]!r}, which is not UTF-8")

    def numbers(self, code: str, what: str) -> np.ndarray:
        dtype = np.dtype("<" + code)
        count = self.count(dtype.itemsize, f"the length of {what}")
        found = np.frombuffer(self.buffer, dtype, count, self.at).copy()
        self.at += found.nbytes
        return found

    def strings(self, what: str) -> StringArray:
        count = self.count(8, f"the length of {what}")
        starts, end = places(np.frombuffer(self.buffer, np.uint8, offset=self.at), count)
        if len(starts) < count:
            self.fail(f"{what} ends the file in the middle, at string {len(starts)} of {count}")
        start, self.at = self.at, self.at + end
        if self.at > self.size:
            self.fail(f"{what}, {count} strings, says it goes on until byte {self.at}, and the file has {self.size}")
        return StringArray(bytes(self.buffer[start : self.at]), np.append(starts, end))


def _read_one(path: Path) -> GGUF:
    data = map_file(path)  # apart from the cursor's, whose pages of the header go when it goes
    cursor = _Cursor(path, map_file(path))
    version = _preamble(cursor)
    tensor_count = cursor.count(8 + 4 + 8 + 4 + 8, "the number of tensors")
    key_count = cursor.count(8 + 4 + 1, "the number of metadata keys")
    metadata, types = _metadata(cursor, key_count)
    if types.get("general.alignment", "u32") != "u32":
        cursor.fail(f"general.alignment is of type {types['general.alignment']}, expected u32")
    alignment = _checked_alignment(metadata.get("general.alignment", ALIGNMENT), path)
    infos = _tensor_infos(cursor, tensor_count)
    return GGUF(metadata, types, Tensors(_entries(cursor, data, infos, alignment)), version)


def _preamble(cursor: _Cursor) -> int:
    cursor.need(4, "the magic number")
    magic = bytes(cursor.buffer[:4])
    if magic != MAGIC:
        cursor.fail(
            f"it starts with {magic!r}, expected {MAGIC!r}", "Give a .gguf file, or look for a broken download."
        )
    cursor.at = 4
    version: int = cursor.number("I", "the version")
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0:
        cursor.fail("its numbers are big-endian", "Only little-endian files are read; convert it on a usual machine.")
    cursor.fail(f"it has version {version}, expected 2 or 3", "Convert the model again with a current llama.cpp.")


def _metadata(cursor: _Cursor, count: int) -> tuple[dict[str, object], dict[str, str]]:
    metadata: dict[str, object] = {}
    types: dict[str, str] = {}
    for index in range(count):
        key = cursor.name(f"the name of metadata key {index}")
        if key in metadata:
            cursor.fail(f"the metadata key {key!r:.90} comes twice")
        metadata[key], types[key] = _value(cursor, f"the metadata key {key!r:.90}")
    return metadata, types


def _value(cursor: _Cursor, what: str) -> tuple[object, str]:
    kind = _value_type(cursor, what)
    if kind == "array":
        return _array(cursor, what, 1)
    if kind == "string":
        return cursor.bytes(what).decode("utf-8", "surrogateescape"), kind
    if kind == "bool":
        return bool(_checked_bools(cursor, cursor.number("B", what), what)), kind
    return cursor.number(VALUE_TYPES[kind][1], what), kind


def _value_type(cursor: _Cursor, what: str) -> str:
    number = cursor.number("I", f"the type of {what}")
    if number not in _VALUE_NAMES:
        cursor.fail(f"{what} has type {number}, expected 0 to {max(_VALUE_NAMES)}")
    return _VALUE_NAMES[number]


def _array(cursor: _Cursor, what: str, depth: int) -> tuple[object, str]:
    kind = _value_type(cursor, f"the elements of {what}")
    if kind == "string":
        return cursor.strings(what), "array[string]"
    if kind == "bool":
        return _checked_bools(cursor, cursor.numbers("B", what), what).astype(bool), "array[bool]"
    if kind != "array":
        return cursor.numbers(VALUE_TYPES[kind][1], what), f"array[{kind}]"
    if depth == MAX_NESTING:
        cursor.fail(f"{what} holds arrays in arrays deeper than {MAX_NESTING}")
    count = cursor.count(4 + 8, f"the length of {what}")
    return [_array(cursor, what, depth + 1)[0] for _ in range(count)], "array[array]"


def _checked_bools(cursor: _Cursor, value: Any, what: str) -> Any:
    if np.any(np.asarray(value) > 1):
        cursor.fail(f"{what} has a boolean of {np.max(value)}, expected 0 or 1")
    return value


@dataclass(frozen=True)
class _Info:
    """One tensor as the header tells it; `offset` counts from the start of the tensors' bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    offset: int


def _tensor_infos(cursor: _Cursor, count: int) -> list[_Info]:
    infos: dict[str, _Info] = {}
    for index in range(count):
        info = _tensor_info(cursor, index)
        if info.name in infos:
            cursor.fail(f"the tensor {info.name!r:.90} comes twice")
        infos[info.name] = info
    return list(infos.values())


def _tensor_info(cursor: _Cursor, index: int) -> _Info:
    name = cursor.name(f"the name of tensor {index}")
    what = f"the tensor {name!r:.90}"
    axes = cursor.number("I", f"the number of axes of {what}")
    if not 1 <= axes <= MAX_AXES:
        cursor.fail(f"{what} has {axes} axes, expected 1 to {MAX_AXES}")
    shape = tuple(cursor.number("Q", f"the shape of {what}") for _ in range(axes))[::-1]
    number = cursor.number("I", f"the type of {what}")
    if number not in _TENSOR_NAMES:
        known = ", ".join(f"{n} {t}" for n, t in _TENSOR_NAMES.items())
        cursor.fail(
            f"{what} has type number {number}", f"The types read here are {known}. Get the model in one of these."
        )
    kind = _TENSOR_NAMES[number]
    if 0 in shape:
        cursor.fail(f"{what} has shape {shape}, expected no empty axis")
    if kind in BLOCKS and shape[-1] % BLOCKS[kind].elements:
        cursor.fail(
            f"{what} has rows of {shape[-1]} elements, expected a multiple of {BLOCKS[kind].elements} for {kind}"
        )
    return _Info(name, shape, kind, _nbytes(kind, shape), cursor.number("Q", f"the offset of {what}"))


def _nbytes(kind: str, shape: tuple[int, ...]) -> int:
    if kind in BLOCKS:
        return math.prod(shape[:-1]) * row_bytes(kind, shape)
    return math.prod(shape) * DTYPES[kind].itemsize


def _entries(cursor: _Cursor, data: np.ndarray, infos: list[_Info], alignment: int) -> dict[str, Entry]:
    start = _aligned(cursor.at, alignment)
    for info in infos:
        what = f"the tensor {info.name!r:.90}, {info.type} {info.shape},"
        if info.offset % alignment:
            cursor.fail(f"{what} has offset {info.offset}, expected a multiple of {alignment}")
        end = start + info.offset + info.nbytes
        if end > cursor.size:
            cursor.fail(f"{what} ends at byte {end}, and the file has {cursor.size}")
    _refuse_overlap(cursor, infos)
    return {i.name: Entry(i.shape, i.type, i.nbytes, partial(_load, data, i, start + i.offset)) for i in infos}


def _refuse_overlap(cursor: _Cursor, infos: list[_Info]) -> None:
    ordered = sorted(infos, key=lambda info: info.offset)
    for one, two in itertools.pairwise(ordered):
        end = one.offset + one.nbytes
        if end > two.offset:
            names = f"{one.name!r:.90} and {two.name!r:.90}"
            cursor.fail(f"the tensors {names} overlap: one ends at offset {end}, the other starts at {two.offset}")


def _load(data: np.ndarray, info: _Info, at: int) -> Array:
    if info.type not in BLOCKS:
        return array_at(data, at, DTYPES[info.type], info.shape)
    rows = data[at : at + info.nbytes].reshape(-1, row_bytes(info.type, info.shape))
    return QTensor(info.type, info.shape, rows)


def _aligned(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment


def _checked_alignment(value: object, path: Path | None = None) -> int:
    if isinstance(value, int | np.integer) and value > 0 and int(value) & (int(value) - 1) == 0:
        return int(value)
    problem = f"general.alignment is {value!r}, expected a power of two"
    if path is None:
        raise OptionError(f"{problem}. Leave it out for the usual {ALIGNMENT}.")
    raise FormatError(f"{path} is not a good GGUF file: {problem}. The file is damaged: fetch or convert it again.")


# Split files: NAME-00001-of-00003.gguf, as llama.cpp's gguf-split names them

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def _split_number(path: Path, part: GGUF, key: str, default: int) -> int:
    value = part.metadata.get(key, default)
    if not isinstance(value, int):
        raise FormatError(f"{path}: {key} is of type {part.types[key]}, expected an integer. Fetch the file again.")
    return value


def _join(path: Path, count: int) -> GGUF:
    """All parts of a split checkpoint as one, without the keys that speak of splitting."""
    parts = [_read_one(part) for part in _part_paths(path, count)]
    joined: dict[str, Entry] = {}
    for index, part in enumerate(parts):
        _check_part(path, part, index, count)
        twice = joined.keys() & part.tensors.entries.keys()
        if twice:
            raise FormatError(f"{path}: the tensor {min(twice)!r} is in two parts of this split file. Fetch it again.")
        joined |= part.tensors.entries
    total = _split_number(path, parts[0], "split.tensors.count", len(joined))
    if total != len(joined):
        raise FormatError(f"{path}: the parts hold {len(joined)} tensors, and split.tensors.count says {total}.")
    metadata = {key: value for key, value in parts[0].metadata.items() if not key.startswith("split.")}
    types = {key: parts[0].types[key] for key in metadata}
    return GGUF(metadata, types, Tensors(joined), parts[0].version)


def _part_paths(path: Path, count: int) -> list[Path]:
    match = _PART.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise FormatError(
            f"{path} is one part of a file split in {count} (split.count), so its name should end in "
            f"-00001-of-{count:05}.gguf or alike. Give the parts the names back that they had."
        )
    paths = [path.with_name(f"{match[1]}-{i:05}-of-{match[3]}.gguf") for i in range(1, int(match[3]) + 1)]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        raise ModelNotFound(
            f"{path} is one part of {len(paths)}, and {len(missing)} of them are not beside it: "
            f"{', '.join(missing[:8])}{' …' if len(missing) > 8 else ''}. Fetch all parts into one directory."
        )
    return paths


def _check_part(path: Path, part: GGUF, index: int, count: int) -> None:
    found = tuple(_split_number(path, part, key, -1) for key in ("split.no", "split.count"))
    if found != (index, count):
        raise FormatError(
            f"{path}: part {index + 1} of this split file says split.no {found[0]} and split.count {found[1]}, "
            f"expected {index} and {count}. Parts of different files are mixed, or renamed: fetch them again."
        )


# Writing


def _header(
    metadata: Mapping[str, object], types: Mapping[str, str], known: Mapping[str, Entry], alignment: int
) -> Iterator[bytes]:
    yield MAGIC + struct.pack("<IQQ", VERSION, len(known), len(metadata))
    for key, value in metadata.items():
        kind = types.get(key) or type_of(key, value)
        yield packed_name(key)
        yield packed_value(key, value, kind)
    offset = 0
    for name, entry in known.items():
        yield _packed_info(name, entry, offset)
        offset = _aligned(offset + entry.nbytes, alignment)


def _packed_info(name: str, entry: Entry, offset: int) -> bytes:
    shape, packed = entry.shape, packed_name(name)
    if entry.type not in TENSOR_TYPES:
        raise TensorError(f"GGUF has no tensor type {entry.type}, which {name} has; it has {', '.join(TENSOR_TYPES)}.")
    if not 1 <= len(shape) <= MAX_AXES or 0 in shape:
        raise TensorError(f"GGUF holds tensors of 1 to {MAX_AXES} axes, none empty; {name} has shape {shape}.")
    if len(packed) - 8 > MAX_NAME:
        raise TensorError(f"llama.cpp reads tensor names of at most {MAX_NAME} bytes; {name} has {len(packed) - 8}.")
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return packed + sizes + struct.pack("<IQ", TENSOR_TYPES[entry.type], offset)


def _pad(file: BinaryIO, alignment: int) -> None:
    at = file.tell()
    file.write(bytes(_aligned(at, alignment) - at))
