"""safetensors: Hugging Face's file of named arrays, alone or in shards with an index; read in place, written whole.

What the names mean is not known here: a dialect knows.

    header length u64 | header, JSON, padded with spaces | the tensors' bytes, one after another

    header: {"__metadata__": {"format": "pt"}, "NAME": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, …}
    index:  {"metadata": {"total_size": 12}, "weight_map": {"NAME": "model-00001-of-00002.safetensors", …}}

The truth is github.com/huggingface/safetensors, README.md and safetensors/src/tensor.rs.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn

import numpy as np

from ..errors import FormatError, ModelNotFound, OptionError, TensorError
from ..quant import DTYPES
from ..tensors import Array, Entry, Tensors
from .files import Staging, array_at, cut, entries, map_file, staging, write_tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-{:05}-of-{:05}.safetensors"
METADATA = "__metadata__"
MAX_HEADER = 100_000_000  # bytes, the reference's limit
MAX_AXES = 64  # numpy's limit
FORMAT = {"format": "pt"}  # what transformers asks for: weights in PyTorch's layout, (out, in)


def read(path: str | os.PathLike[str]) -> Tensors:
    """The tensors of one file, or of a directory: `model.safetensors`, an index with its shards, or its only file.

    Reads headers only. Raises FormatError for bytes that are not what they say, ModelNotFound for files not there.
    """
    path = Path(path)
    index = _index_of(path)
    if index is not None:
        return _read_shards(index)
    header = _read_header(_single(path))
    return Tensors(header.entries)


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that the writer put into the header; of shards all together, the first one's where they differ."""
    path = Path(path)
    index = _index_of(path)
    files = [_single(path)] if index is None else sorted(set(_weight_map(index).values()))
    headers = [_read_header(file).metadata for file in files]
    return {key: value for header in reversed(headers) for key, value in header.items()}


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes one file when `path` ends in .safetensors, else a directory, in shards where the bytes ask for it.

    One tensor is in memory at a time; names are given only when all is written. In a directory the files of an earlier
    checkpoint of the same names go. `metadata` is {"format": "pt"} unless given. Raises TensorError for a type that
    the format does not hold, OptionError for an impossible request, CapacityError when the disk is full.
    """
    path = Path(path)
    known = entries(tensors)
    texts = _checked_texts(FORMAT if metadata is None else metadata)
    shards = cut(known, max_shard_bytes)
    if path.suffix == ".safetensors" and not path.is_dir():
        if len(shards) > 1:
            raise OptionError(f"{len(shards)} shards do not go into the one file {path}; give a directory.")
        with staging(path) as stage:
            _write_file(stage, path, known, texts)
        return
    with staging(path) as stage:
        stage.directory(path)
        names = _write_directory(stage, path, shards, texts)
    _remove_earlier(path, names)


# Reading one file


@dataclass(frozen=True)
class _Header:
    metadata: dict[str, str]
    entries: dict[str, Entry]


def _fail(path: Path, problem: str, remedy: str = "The file is damaged: fetch or convert it again.") -> NoReturn:
    raise FormatError(f"{path} is not a good safetensors file: {problem}. {remedy}")


def _read_header(path: Path) -> _Header:
    data = map_file(path)
    if len(data) < 8:
        _fail(path, f"it has {len(data)} bytes, and the header's length alone takes 8")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > MAX_HEADER:
        _fail(path, f"its header would have {length} bytes, more than the format's limit of {MAX_HEADER}")
    if length > len(data) - 8:
        _fail(path, f"its header should have {length} bytes, and the file ends after {len(data) - 8}")
    header = _json_object(path, data[8 : 8 + length].tobytes(), "its header")
    texts = header.pop(METADATA, {})
    if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
        _fail(path, f"{METADATA} is {texts!r:.100}, expected names with texts")
    infos = [_info(path, name, value) for name, value in header.items()]
    _check_cover(path, infos, len(data) - 8 - length)
    body = data[8 + length :]
    return _Header(texts, {i.name: Entry(i.shape, i.type, i.end - i.begin, partial(_load, body, i)) for i in infos})


def _json_object(path: Path, raw: bytes, what: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            _fail(path, f"{what} has {twice!r:.90} twice")
        return found

    try:
        text = raw.decode("utf-8")
        found = json.loads(text, object_pairs_hook=unique)
    except UnicodeDecodeError:
        _fail(path, f"{what} is not UTF-8")
    except (ValueError, RecursionError) as error:
        _fail(path, f"{what} is not JSON ({error})")
    if not isinstance(found, dict):
        _fail(path, f"{what} is {type(found).__name__}, expected an object of names")
    return found


@dataclass(frozen=True)
class _Info:
    """One tensor as the header tells it; offsets count from the end of the header."""

    name: str
    shape: tuple[int, ...]
    type: str
    begin: int
    end: int


def _info(path: Path, name: str, value: Any) -> _Info:
    what = f"the tensor {name!r:.90}"
    if not _is_utf8(name):
        _fail(path, f"{what} has a name that is not UTF-8")
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        _fail(path, f"{what} is {value!r:.100}, expected dtype, shape and data_offsets")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        _fail(path, f"{what} has dtype {kind!r:.40}", f"The dtypes read here are {', '.join(DTYPES)}.")
    if not _sizes(shape) or len(shape) > MAX_AXES:
        _fail(path, f"{what} has shape {shape!r:.100}, expected at most {MAX_AXES} sizes")
    if not _sizes(offsets) or len(offsets) != 2:
        _fail(path, f"{what} has data_offsets {offsets!r:.100}, expected two offsets")
    if math.prod(size or 1 for size in shape) * DTYPES[kind].itemsize > np.iinfo(np.int64).max:
        _fail(path, f"{what} has shape {shape!r:.100}, more than any machine addresses")
    begin, end = offsets
    nbytes = math.prod(shape) * DTYPES[kind].itemsize
    if end - begin != nbytes:
        _fail(path, f"{what}, {kind} {tuple(shape)}, takes {nbytes} bytes, and its data_offsets {offsets} span another")
    return _Info(name, tuple(shape), kind, begin, end)


def _is_utf8(name: str) -> bool:
    """False for the halves of surrogate pairs, which JSON can spell and no encoding can."""
    return name.isascii() or not re.search("[\ud800-\udfff]", name)


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_cover(path: Path, infos: list[_Info], size: int) -> None:
    """The tensors fill the rest of the file: no overlap, no hole, nothing beyond the end, nothing left over."""
    at = 0
    for info in sorted(infos, key=lambda info: (info.begin, info.end)):
        if info.begin != at:
            problem = "overlaps another one" if info.begin < at else "leaves a hole before it"
            _fail(path, f"the tensor {info.name!r:.90} begins at {info.begin}, expected {at}: it {problem}")
        at = info.end
    if at != size:
        _fail(path, f"its tensors take {at} bytes, and {size} follow the header")


def _load(body: np.ndarray, info: _Info) -> np.ndarray:
    return array_at(body, info.begin, DTYPES[info.type], info.shape)


# Directories and shards


def _index_of(path: Path) -> Path | None:
    """The index that `path` is or holds; None where one file holds everything."""
    if path.name.endswith(".safetensors.index.json"):
        return path
    has_index = path.is_dir() and not (path / SINGLE).exists() and (path / INDEX).exists()
    return path / INDEX if has_index else None


def _single(path: Path) -> Path:
    if not path.is_dir() or (path / SINGLE).exists():
        return path / SINGLE if path.is_dir() else path
    found = sorted(path.glob("*.safetensors"))
    if not found:
        raise ModelNotFound(f"There is no .safetensors file in {path}. Give a directory that holds a checkpoint.")
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:8])
        raise ModelNotFound(
            f"{path} holds {len(found)} files ({names}) and no {INDEX} that joins them. Name one of them."
        )
    return found[0]


def _weight_map(index: Path) -> dict[str, Path]:
    """Each tensor's file."""
    found = _json_object(index, map_file(index).tobytes(), "the index").get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        _fail(index, f"weight_map is {found!r:.100}, expected tensor names with file names")
    for file in found.values():
        if not _stays_inside(file):
            _fail(
                index, f"weight_map names {file!r:.100}, a path that leaves the directory", "Do not trust this model."
            )
    return {name: index.parent / file for name, file in found.items()}


def _stays_inside(file: str) -> bool:
    """Read as either kind of system reads it; links are followed, as the hub's cache is made of them."""
    inside = PureWindowsPath(file)  # which takes both / and \ for separators
    return bool(inside.parts) and not inside.anchor and ".." not in inside.parts and "\0" not in file


def _read_shards(index: Path) -> Tensors:
    where = _weight_map(index)
    files: dict[Path, list[str]] = {}
    for name, file in sorted(where.items(), key=lambda item: item[1]):
        files.setdefault(file, []).append(name)
    missing = [file.name for file in files if not file.exists()]
    if missing:
        shown = ", ".join(missing[:8]) + (" …" if len(missing) > 8 else "")
        raise ModelNotFound(f"{index} asks for {len(missing)} shards that are not there: {shown}. Fetch them too.")
    joined: dict[str, Entry] = {}
    for file, names in files.items():
        found = _read_header(file).entries
        absent = [name for name in names if name not in found]
        if absent:
            _fail(file, f"{index.name} says that {absent[0]!r:.90} is in it ({len(absent)} such), and it is not")
        mine = {name: entry for name, entry in found.items() if where.get(name, file) == file}
        if mine.keys() & joined.keys():
            _fail(file, f"{min(mine.keys() & joined.keys())!r:.90} is in two shards, and {INDEX} does not choose")
        joined |= mine  # also what the index forgot: whoever asks for tensors by name will see that nobody wants it
    return Tensors(joined)


# Writing


def _checked_texts(texts: Mapping[str, str]) -> dict[str, str]:
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in texts.items()):
        raise OptionError(f"Metadata of safetensors is names with texts; got {dict(texts)!r:.200}.")
    return dict(texts)


def _write_directory(stage: Staging, path: Path, shards: list[dict[str, Entry]], texts: dict[str, str]) -> list[str]:
    """The shards, and last the index that makes them one checkpoint; returns the names."""
    if len(shards) == 1:
        _write_file(stage, path / SINGLE, shards[0], texts)
        return [SINGLE]
    names = [SHARD.format(i + 1, len(shards)) for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        _write_file(stage, path / name, shard, texts)
    index = {
        "metadata": {"total_size": sum(entry.nbytes for shard in shards for entry in shard.values())},
        "weight_map": {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
    }
    with stage.open(path / INDEX) as file:
        file.write(json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n")
    return [*names, INDEX]


def _write_file(stage: Staging, path: Path, known: Mapping[str, Entry], texts: dict[str, str]) -> None:
    ordered = dict(sorted(known.items(), key=lambda item: -_itemsize(*item)))  # so that each starts aligned
    with stage.open(path) as file:
        file.write(_header(ordered, texts))
        for name, entry in ordered.items():
            write_tensor(file, name, entry)


def _itemsize(name: str, entry: Entry) -> int:
    if entry.type not in DTYPES:
        raise TensorError(
            f"safetensors has no type {entry.type}, which {name} has; it has {', '.join(DTYPES)}. Dequantise it first."
        )
    return DTYPES[entry.type].itemsize


def _header(known: Mapping[str, Entry], texts: dict[str, str]) -> bytes:
    header: dict[str, object] = {METADATA: texts} if texts else {}
    bad = [name for name in [*known, *texts, *texts.values()] if not _is_utf8(name)] + [METADATA] * (METADATA in known)
    if bad:
        raise OptionError(f"A safetensors header cannot hold the name or text {bad[0]!r:.90}. Change it.")
    ends = itertools.accumulate((entry.nbytes for entry in known.values()), initial=0)
    for (name, entry), (begin, end) in zip(known.items(), itertools.pairwise(ends), strict=True):
        header[name] = {"dtype": entry.type, "shape": list(entry.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _remove_earlier(path: Path, names: list[str]) -> None:
    """An earlier checkpoint's files beside the new one's would be read instead of them, or with them."""
    earlier: Iterator[Path] = itertools.chain(
        [path / SINGLE, path / INDEX], path.glob("model-?????-of-?????.safetensors")
    )
    for file in earlier:
        if file.name not in names:
            file.unlink(missing_ok=True)
