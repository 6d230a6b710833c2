"""Orbax: a directory of named arrays, as JAX programs save them; read by arrays or slices, written one at a time.

What the names mean is not known here: a dialect knows. tensorstore moves the bytes, and JAX is not needed.

    _METADATA             JSON: the path of keys of each array, and whether OCDBT and zarr 3 are used
    checkpoint            msgpack, before 2025: the tree of keys, small values in it, others by the name of their array
    manifest.ocdbt, d/    one database of all arrays, each a zarr array under its keys joined by dots; or, without one,
    KEYS.JOINED.BY.DOTS/  a directory for each zarr array
    _CHECKPOINT_METADATA  JSON, in the directory above where there is one: which handler wrote it

The truth is github.com/google/orbax checkpoint/orbax/checkpoint/_src/{metadata/tree,serialization/tensorstore_utils}.py
and orbax/checkpoint/msgpack_utils.py. Missing packages: MissingExtra.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .. import memory
from ..errors import FormatError, MissingExtra, ModelNotFound, TensorError
from ..quant import DTYPES, TYPE_NAMES, QTensor
from ..tensors import Entry, Tensors, entry_of
from .files import explained

METADATA = "_METADATA"
AGGREGATE = "checkpoint"
DATABASE = "manifest.ocdbt"
ITEMS = ("default", "items", "params", "model_params", "state")  # what programs call the part that has the weights
HANDLERS = "orbax.checkpoint._src.handlers"
STANDARD = f"{HANDLERS}.standard_checkpoint_handler.StandardCheckpointHandler"
PYTREE = f"{HANDLERS}.pytree_checkpoint_handler.PyTreeCheckpointHandler"

PLACEHOLDER = "PLACEHOLDER://"
CHUNK = 1 << 26  # bytes of one piece of an array, which is packed and unpacked at once
DEEPEST = 64  # keys on the way to an array
MOST_SLICES = 4096  # layers of one network

Keys = tuple[str, ...]


def find(path: Path) -> Path | None:
    """The directory with arrays that `path` is or holds: by the usual names, the latest step, or the only one."""
    if _holds_arrays(path):
        return path
    for name in ITEMS:
        if _holds_arrays(path / name):
            return path / name
    if not path.is_dir():
        return None
    below = {one: found for one in path.iterdir() if one.is_dir() and (found := _item_of(one)) is not None}
    steps = {int(one.name): found for one, found in below.items() if re.fullmatch(r"[0-9]{1,18}", one.name)}
    if steps:
        return steps[max(steps)]
    return next(iter(below.values())) if len(below) == 1 else None


def _item_of(path: Path) -> Path | None:
    return next((place for place in (path, *(path / name for name in ITEMS)) if _holds_arrays(place)), None)


def _holds_arrays(path: Path) -> bool:
    return (path / METADATA).is_file() or (path / DATABASE).is_file() or _is_msgpack(path / AGGREGATE)


def _is_msgpack(path: Path) -> bool:
    """Whether a file begins as a msgpack map does; TensorFlow too writes a file of this name, as text."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.read(1)
    return bool(first) and (0x80 <= first[0] <= 0x8F or first[0] in (0xDE, 0xDF))


def names(folder: Path) -> list[str]:
    """The arrays' names, keys joined by "/", without opening one. Raises FormatError."""
    return list(_listing(folder).arrays)


def read(folder: Path) -> Tensors:
    """The arrays of a directory that `find` found, by keys joined by "/". Headers only; `unstacked` reads slices.

    Raises FormatError for anything damaged, ModelNotFound for arrays not there, MissingExtra.
    """
    listing = _listing(folder)
    tensorstore = _tensorstore("Reading Orbax checkpoints")
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _cache_bytes()}})
    opening = {
        name: tensorstore.open(listing.spec(folder, array), open=True, read=True, context=context)
        for name, array in listing.arrays.items()
        if isinstance(array, str)
    }
    found = {}
    for name, array in listing.arrays.items():
        with _explaining(folder, name):
            found[name] = entry_of(array) if isinstance(array, np.ndarray) else _entry(folder, name, opening[name])
    return Tensors(found)


def _cache_bytes() -> int:
    """For unpacked pieces that several slices share, where layers lie together in one array."""
    free = memory.available()
    return 1 << 30 if free is None else free // 4


def unstacked(entry: Entry, axis: int) -> list[Entry]:
    """One entry for each slice of an array along an axis; where the array lies in pieces, the others are not read."""
    count = entry.shape[axis]
    if count > MOST_SLICES:
        raise FormatError(
            f"An array of shape {entry.shape} would be {count} layers; at most {MOST_SLICES} are believed."
        )
    shape = entry.shape[:axis] + entry.shape[axis + 1 :]
    load = entry.load

    def part(i: int) -> Callable[[], np.ndarray]:
        where = (slice(None),) * axis + (i,)
        if isinstance(load, _Stored):
            return lambda: load.read(where)
        return lambda: np.asarray(load())[where]

    return [Entry(shape, entry.type, entry.nbytes // max(count, 1), part(i)) for i in range(count)]


# What is there


@dataclass(frozen=True)
class _Listing:
    """What a directory says of itself: each array's name in the store, or the array where it is kept in the listing."""

    arrays: Mapping[str, str | np.ndarray]
    database: bool
    zarr3: bool
    full: bool  # arrays of zeros are stored too, so that a missing piece is a damage

    def spec(self, folder: Path, array: str) -> dict[str, Any]:
        base = f"{os.path.abspath(folder)}/"
        place: dict[str, Any] = {"driver": "file", "path": f"{base}{array}/"}
        if self.database:
            place = {"driver": "ocdbt", "base": {"driver": "file", "path": base}, "path": f"{array}/"}
        driver = "zarr3" if self.zarr3 else "zarr"
        return {"driver": driver, "kvstore": place, "fill_missing_data_reads": not self.full}


def _listing(folder: Path) -> _Listing:
    said = _json(folder / METADATA)
    database = (folder / DATABASE).is_file()
    zarr3, full = said.get("use_zarr3") is True, said.get("store_array_data_equal_to_fill_value") is True
    if _is_msgpack(folder / AGGREGATE):
        return _Listing(_aggregated(folder, database), database, zarr3, full)
    if said:
        return _Listing(_said(folder, said), database, zarr3, full)
    if database:
        stored = _stored_names(folder)
        return _Listing({name.replace(".", "/"): name for name in stored}, True, any(stored.values()), False)
    raise ModelNotFound(f"{folder} holds no Orbax checkpoint: there is no {METADATA} and no {DATABASE} in it.")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as problem:
        _fail(path, f"it is not JSON ({problem})")
    if not isinstance(found, dict):
        _fail(path, f"it is {type(found).__name__}, expected an object of names")
    return found


def _fail(path: Path, problem: str, remedy: str = "The checkpoint is damaged: fetch or save it again.") -> NoReturn:
    raise FormatError(f"{path} is not a good part of an Orbax checkpoint: {problem}. {remedy}") from None


def _said(folder: Path, said: Mapping[str, Any]) -> dict[str, str | np.ndarray]:
    """Arrays as _METADATA lists them: {"('a', 'b')": {"key_metadata": [{"key": "a"}, …], "value_metadata": {…}}}."""
    tree = said.get("tree_metadata")
    if not isinstance(tree, dict):
        _fail(folder / METADATA, f"tree_metadata is {tree!r:.90}, expected an object of arrays")
    found: dict[str, str | np.ndarray] = {}
    for label, value in tree.items():
        try:
            keys = tuple(part["key"] for part in value["key_metadata"])
            skipped = value["value_metadata"].get("skip_deserialize", False)
            kind = value["value_metadata"].get("value_type")
        except (KeyError, TypeError, AttributeError):
            _fail(folder / METADATA, f"the array {label!r:.90} is {value!r:.90}, expected key_metadata, value_metadata")
        if skipped or kind == "string":  # an empty node, or text
            continue
        _add(found, folder / METADATA, keys, ".".join(map(str, keys)))
    return found


def _add(found: dict[str, str | np.ndarray], path: Path, keys: tuple[Any, ...], array: str | np.ndarray) -> None:
    name = "/".join(map(str, keys))
    if not keys or not all(isinstance(key, str | int) for key in keys) or not _stays_inside(name):
        _fail(path, f"it names an array {name!r:.90}", "Do not trust this model.")
    if isinstance(array, str) and not _stays_inside(array):
        _fail(path, f"it says that {name!r:.90} is in {array!r:.90}", "Do not trust this model.")
    if name in found:
        _fail(path, f"it has the array {name!r:.90} twice")
    found[name] = array


def _stays_inside(name: str) -> bool:
    parts = re.split(r"[/\\]", name)
    return all(part not in ("", ".", "..") for part in parts) and not re.search(r"[\0:]", name)


def _stored_names(folder: Path) -> dict[str, bool]:
    """Arrays that a database holds, and whether they are zarr 3, when nothing else tells."""
    tensorstore = _tensorstore("Reading Orbax checkpoints")
    base = {"driver": "file", "path": f"{os.path.abspath(folder)}/"}
    with _explaining(folder, DATABASE):
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        listed = [key.decode("utf-8") for key in store.list().result()]
    ends = {"/.zarray": False, "/zarr.json": True}
    found = {key.removesuffix(end): new for key in listed for end, new in ends.items() if key.endswith(end)}
    if not all(_stays_inside(name) for name in found):
        _fail(folder / DATABASE, "it names an array outside of itself", "Do not trust this model.")
    return found


# The older listing, in msgpack


def _aggregated(folder: Path, database: bool) -> dict[str, str | np.ndarray]:
    """Arrays as the file `checkpoint` lists them: a tree whose leaves are values, or texts that name an array."""
    path = folder / AGGREGATE
    found: dict[str, str | np.ndarray] = {}
    for keys, leaf in _leaves(path, _unpack(path), ()):
        if isinstance(leaf, np.ndarray):
            _add(found, path, keys, leaf)
        elif isinstance(leaf, str) and leaf.startswith(PLACEHOLDER):
            _add(found, path, keys, _place_of(folder, leaf.removeprefix(PLACEHOLDER), database))
    return found


def _place_of(folder: Path, name: str, database: bool) -> str:
    """An array's directory; keys with "/" in them became dots in some."""
    dotted = name.replace("/", ".")
    return dotted if not database and _stays_inside(name) and not (folder / name).is_dir() else name


def _unpack(path: Path) -> Any:
    msgpack = _msgpack()
    try:
        return msgpack.unpackb(path.read_bytes(), raw=False, strict_map_key=False, ext_hook=_extended)
    except (ValueError, TypeError, AttributeError, RecursionError, msgpack.UnpackException) as problem:
        _fail(path, f"it is not msgpack ({problem})")


def _extended(code: int, data: bytes) -> Any:
    """Flax's own kinds: 1 is an array and 3 a number, (shape, name of the dtype, bytes); others are of no use here."""
    if code not in (1, 3):
        return None
    shape, kind, raw = _msgpack().unpackb(data, raw=True)
    dtype = DTYPES[TYPE_NAMES[kind.decode()]] if kind.decode() in TYPE_NAMES else None
    if dtype is None:
        raise ValueError(f"an array has dtype {kind!r:.40}")
    return np.frombuffer(raw, dtype).reshape([int(size) for size in shape])


def _msgpack() -> Any:
    try:
        return importlib.import_module("msgpack")
    except ImportError:
        raise MissingExtra("msgpack", "orbax", "Reading this older Orbax checkpoint") from None


def _leaves(path: Path, tree: Any, keys: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if len(keys) > DEEPEST:
        _fail(path, f"its tree is more than {DEEPEST} keys deep")
    if isinstance(tree, dict) and "__msgpack_chunked_array__" in tree:
        yield keys, _joined(path, tree)
    elif isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(path, value, (*keys, key))
    else:
        yield keys, tree


def _joined(path: Path, tree: dict[str, Any]) -> np.ndarray:
    """An array of more than a gigabyte, which lies in flat pieces."""
    try:
        shape = [tree["shape"][str(i)] for i in range(len(tree["shape"]))]
        return np.concatenate([tree["chunks"][str(i)] for i in range(len(tree["chunks"]))]).reshape(shape)
    except (KeyError, TypeError, ValueError) as problem:
        _fail(path, f"an array in pieces cannot be joined ({problem})")


# Reading one array


@dataclass(frozen=True)
class _Stored:
    """An opened array: all of it when called, or a part."""

    folder: Path
    name: str
    store: Any

    def __call__(self) -> np.ndarray:
        return self.read(())

    def read(self, where: tuple[Any, ...]) -> np.ndarray:
        with _explaining(self.folder, self.name):
            return np.asarray((self.store[where] if where else self.store).read().result())


def _entry(folder: Path, name: str, opening: Any) -> Entry:
    store = opening.result()
    kind = TYPE_NAMES.get(store.dtype.name)
    if kind is None:
        _fail(folder, f"the array {name!r:.90} has dtype {store.dtype.name}", f"Known are {', '.join(TYPE_NAMES)}.")
    shape = tuple(int(size) for size in store.shape)
    return Entry(shape, kind, math.prod(shape) * DTYPES[kind].itemsize, _Stored(folder, name, store))


@contextlib.contextmanager
def _explaining(folder: Path, name: str) -> Iterator[None]:
    """tensorstore's complaints as ours."""
    try:
        yield
    except (ValueError, OverflowError, NotImplementedError, RuntimeError) as problem:
        what = _first_line(problem)
        if what.startswith("NOT_FOUND"):
            raise ModelNotFound(
                f"{folder} lists the array {name}, which is not there: {what}. Fetch the checkpoint's other files too."
            ) from None
        _fail(folder, f"the array {name!r:.90} cannot be read: {what}")


def _first_line(problem: Exception) -> str:
    """tensorstore's complaint without the specification that follows in brackets."""
    return str(problem).partition(" [")[0].partition("\n")[0]


def _tensorstore(purpose: str) -> Any:
    try:
        import tensorstore
    except ImportError:
        raise MissingExtra("tensorstore", "orbax", purpose) from None
    return tensorstore


# Writing


def by_slash(name: str) -> Keys:
    """A name's keys: all that "/" parts."""
    return tuple(name.split("/"))


def write(
    folder: Path,
    tensors: Mapping[str, Any],
    *,
    keys: Callable[[str], Keys] = by_slash,
    item: str | None = None,
    zarr3: bool = False,
    stacks: Mapping[str, int] | None = None,
) -> None:
    """Writes arrays into an empty directory, or into its part `item`, for Orbax's checkpointers to restore.

    One array is in memory at a time. `keys` says where in the tree a name stands. `stacks` names arrays that hold
    layers along an axis: each of them is a piece of its own, so that it can be read alone. Raises TensorError for
    packed tensors, CapacityError when the disk is full, MissingExtra.
    """
    tensorstore = _tensorstore("Writing Orbax checkpoints")
    begun = time.time_ns()
    place = folder / item if item else folder
    place.mkdir(parents=True, exist_ok=True)
    known = tensors.entries if isinstance(tensors, Tensors) else {name: entry_of(tensors[name]) for name in tensors}
    try:
        for name, entry in known.items():
            axis = (stacks or {}).get(name)
            _write_array(tensorstore, place, ".".join(keys(name)), entry, _chunk(entry, axis), zarr3)
        _write_json(place / METADATA, _metadata(known, keys, zarr3))
        _write_json(folder / "_CHECKPOINT_METADATA", _root_metadata({item: PYTREE} if item else STANDARD, begun))
        for one in {folder, place}:
            (one / "commit_success.txt").write_text("Checkpoint commit was successful", encoding="utf-8")
    except OSError as error:
        raise explained(error, folder) from None


def _chunk(entry: Entry, stacked: int | None) -> list[int]:
    """The shape of one piece: one layer of a stack, cut along the first axes while it has too many bytes."""
    chunk = [1 if axis == stacked else max(size, 1) for axis, size in enumerate(entry.shape)]
    itemsize = DTYPES[entry.type].itemsize if entry.type in DTYPES else 1
    for axis in range(len(chunk)):
        whole = math.prod(chunk) * itemsize
        if whole > CHUNK:
            chunk[axis] = max(1, chunk[axis] * CHUNK // whole)
    return chunk


def _write_array(tensorstore: Any, folder: Path, name: str, entry: Entry, chunk: list[int], zarr3: bool) -> None:
    array = entry.load()
    if isinstance(array, QTensor) or entry_of(array).type != entry.type or tuple(array.shape) != entry.shape:
        raise TensorError(
            f"The tensor {name} was announced as {entry.type} {entry.shape} and came as {entry_of(array).type} "
            f"{tuple(array.shape)}; Orbax holds plain arrays only. This is a fault of whoever made the mapping."
        )
    base = {"driver": "file", "path": f"{os.path.abspath(folder)}/"}
    spec = {
        "driver": "zarr3" if zarr3 else "zarr",
        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
        "metadata": _zarr3(array, chunk) if zarr3 else _zarr2(array, chunk),
        "store_data_equal_to_fill_value": True,
    }
    try:
        store = tensorstore.open(spec, create=True, delete_existing=True).result()
        store.write(np.asarray(array, order="C")).result()
    except ValueError as problem:
        raise _system_error(problem) from None


def _system_error(problem: ValueError) -> OSError:
    full = any(word in str(problem) for word in ("RESOURCE_EXHAUSTED", "No space left", "quota"))
    return OSError(errno.ENOSPC if full else errno.EIO, _first_line(problem))


def _zarr2(array: np.ndarray, chunk: list[int]) -> dict[str, Any]:
    kind = "bfloat16" if array.dtype.name == "bfloat16" else array.dtype.newbyteorder("<").str
    made = {"shape": list(array.shape), "chunks": chunk, "dtype": kind, "order": "C", "fill_value": None}
    return made | {"filters": None, "compressor": {"id": "zstd", "level": 1}, "dimension_separator": "."}


def _zarr3(array: np.ndarray, chunk: list[int]) -> dict[str, Any]:
    order = {"name": "bytes", "configuration": {"endian": "little"}}
    packing = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
    made = {"shape": list(array.shape), "data_type": array.dtype.name, "chunk_grid": grid}
    return made | {"chunk_key_encoding": {"name": "default"}, "codecs": [order, packing], "fill_value": 0}


def _metadata(known: Mapping[str, Entry], keys: Callable[[str], Keys], zarr3: bool) -> dict[str, Any]:
    def one(path: Keys) -> dict[str, Any]:
        parts = [{"key": key, "key_type": 2} for key in path]  # 2: a dictionary's key
        return {"key_metadata": parts, "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False}}

    tree = {str(keys(name)): one(keys(name)) for name in known}
    made = {"tree_metadata": tree, "use_ocdbt": True, "use_zarr3": zarr3}
    return made | {"store_array_data_equal_to_fill_value": True, "custom_metadata": None}


def _root_metadata(handlers: str | dict[str, str], begun: int) -> dict[str, Any]:
    made = {"item_handlers": handlers, "metrics": {}, "performance_metrics": {}, "custom_metadata": {}}
    return made | {"init_timestamp_nsecs": begun, "commit_timestamp_nsecs": time.time_ns()}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
