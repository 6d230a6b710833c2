"""Keras's .weights.h5: HDF5 files of named arrays, alone or in shards with an index; read in place, written one by one.

What the names mean is not known here: a dialect knows. h5py reads headers and writes; links are not followed.

    layers/llama_transformer_decoder_1/_feedforward_gate_dense/vars/0      one dataset, contiguous and not compressed
    index: {"metadata": {"total_size": 12}, "weight_map": {"/layers/…/vars": "model_00000.weights.h5", …}}

bfloat16 lies as an opaque type of two bytes with the attribute dtype = "bfloat16".
The truth is keras/src/saving/saving_lib.py, H5IOStore and ShardedH5IOStore, in github.com/keras-team/keras.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PureWindowsPath
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import FormatError, MissingExtra, ModelNotFound
from ..quant import DTYPES
from ..tensors import Array, Entry, Tensors
from .files import array_at, cut, entries, map_file, staging

SINGLE = "model.weights.h5"
INDEX = "model.weights.json"
SHARD = "model_{:05}.weights.h5"
MAX_OBJECTS = 1 << 20
_DAMAGED = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, UnicodeError)  # what h5py raises


def read(path: str | os.PathLike[str]) -> Tensors:
    """The arrays of one .h5 file, or of all that a .json index names. Reads headers only.

    Raises FormatError for bytes that are not what they say, ModelNotFound for files not there, MissingExtra.
    """
    path = Path(path)
    if path.suffix != ".json":
        return Tensors(_entries(path))
    found: dict[str, Entry] = {}
    for shard in _shards(path):
        found |= _entries(shard)
    return Tensors(found)


def write(folder: Path, tensors: Mapping[str, Array], max_shard_bytes: int | None = None) -> None:
    """`model.weights.h5` in a folder, or shards with their index where the bytes ask for it.

    One tensor is in memory at a time; the arrays of one layer ("…/vars/0", "…/vars/1") stay in one file.
    Raises CapacityError when the disk is full, OptionError when the folder cannot be written, MissingExtra.
    """
    known = entries(tensors)
    layers: dict[str, dict[str, Entry]] = {}
    for name, entry in known.items():
        layers.setdefault(name.rpartition("/")[0], {})[name] = entry
    parts = cut({layer: _sum(inside) for layer, inside in layers.items()}, max_shard_bytes)
    with staging(folder):
        if len(parts) == 1:
            _write_file(folder / SINGLE, known)
            return
        for i, part in enumerate(parts):
            inside = {name: entry for layer in part for name, entry in layers[layer].items()}
            _write_file(folder / SHARD.format(i), inside)
        where = {f"/{layer}": SHARD.format(i) for i, part in enumerate(parts) for layer in part}
        index = {"metadata": {"total_size": sum(entry.nbytes for entry in known.values())}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=4), encoding="utf-8")


# Reading


def _entries(path: Path) -> dict[str, Entry]:
    data = map_file(path)
    h5py = _h5py("Reading Keras's .h5 files")
    found: dict[str, Entry] = {}
    try:
        with h5py.File(path, "r", locking=False) as file:
            file.visititems(lambda name, thing: _add(found, name, thing, data, h5py.Dataset))
    except _DAMAGED as problem:
        raise FormatError(
            f"{path} is not a good HDF5 file: {str(problem)[:300]}. It is damaged, incomplete, or something else: "
            "fetch or convert it again."
        ) from None
    return found


def _add(found: dict[str, Entry], name: str, thing: Any, data: np.ndarray, dataset: type) -> None:
    """One object of the file, if it holds numbers. Raises ValueError for one that Keras would not write."""
    if len(found) > MAX_OBJECTS:
        raise ValueError(f"it has more than {MAX_OBJECTS} arrays")
    if not isinstance(thing, dataset):
        return
    kind, shape = _kind(thing), tuple(thing.shape or ())  # type: ignore[attr-defined]
    if kind is None:
        raise ValueError(f"the array {name!r:.200} is of type {thing.dtype}, expected a float type")  # type: ignore[attr-defined]
    nbytes, at = math.prod(shape) * DTYPES[kind].itemsize, thing.id.get_offset()  # type: ignore[attr-defined]
    if nbytes and (at is None or thing.chunks is not None or thing.id.get_storage_size() != nbytes):  # type: ignore[attr-defined]
        raise ValueError(f"the array {name!r:.200} is compressed, empty or elsewhere, expected {nbytes} bytes in a row")
    if nbytes and at + nbytes > len(data):
        raise ValueError(f"the array {name!r:.200} would end at byte {at + nbytes}, and the file has {len(data)}")
    found[name] = Entry(shape, kind, nbytes, partial(array_at, data, at or 0, DTYPES[kind], shape))


def _kind(thing: Any) -> str | None:
    if thing.dtype == np.dtype("V2") and thing.attrs.get("dtype") == "bfloat16":
        return "BF16"
    return next((kind for kind in ("F32", "F16", "F64") if thing.dtype == DTYPES[kind]), None)


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all beside it."""
    try:
        found = json.loads(map_file(index).tobytes().decode("utf-8"))
        named = [file for value in found["weight_map"].values() for file in _listed(value)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise FormatError(
            f"{index} is no index of Keras's shards ({type(problem).__name__}: {str(problem)[:200]}): expected an "
            "object with weight_map, from layers to file names. Get the file again from its source."
        ) from None
    for file in named:
        if not isinstance(file, str) or len(PureWindowsPath(file).parts) != 1 or file in (".", "..") or "\0" in file:
            raise FormatError(f"{index} names the file {file!r:.200}; shards should lie beside their index.")
    paths = [index.parent / file for file in sorted(set(named))]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ModelNotFound(f"{index} asks for {len(missing)} shards that are not there: {', '.join(missing[:8])}.")
    return paths


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# Writing


def _sum(entries_in: Mapping[str, Entry]) -> Entry:
    return Entry((), "F32", sum(entry.nbytes for entry in entries_in.values()), lambda: np.zeros((), np.float32))


def _write_file(path: Path, known: Mapping[str, Entry]) -> None:
    h5py = _h5py("Writing Keras's .h5 files")
    with h5py.File(path, "w") as file:
        for name, entry in known.items():
            array = np.asarray(entry.load()).astype(DTYPES[entry.type], copy=False)
            made = file.create_dataset(name, data=np.ascontiguousarray(array).reshape(entry.shape))
            if entry.type == "BF16":
                made.attrs["dtype"] = "bfloat16"


def _h5py(purpose: str) -> ModuleType:
    try:
        return importlib.import_module("h5py")
    except ImportError:
        raise MissingExtra("h5py", "keras-files", purpose) from None
