"""Canonical tensors into the extension's memory, in their own bits.

How a panel is laid out is not known here.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from time import monotonic
from typing import Any

import numpy as np

from ..config import Config
from ..errors import OptionError, TensorError
from ..io.progress import Progress
from ..quant import DTYPES, TYPE_NAMES, QTensor, checked_weights, row_bytes, to_float32
from ..tensors import Array, Tensors, shapes
from . import extension

NARROW = ("F32", "F16", "BF16")  # what the extension reads and writes beside packed types
QUIET_SECONDS = 1.0  # loading that takes longer shows its progress


def load(model: Any, config: Config, tensors: Tensors, types: Mapping[str, str], quiet: bool = False) -> None:
    """Gives every tensor of the schema to `model`. `types` names what a matrix is turned into first, if anything.

    Raises TensorError where one is missing or has another shape: the extension trusts what it is given.
    """
    wanted = shapes(config)
    _check(wanted, tensors)
    with _Bar(sum(tensors.entries[name].nbytes for name in wanted), quiet) as bar:
        for name in wanted:
            array = tensors[name]
            if is_matrix(name):
                load_matrix(model, name, _as(name, array, types.get(name)))
            else:
                model.load_vector(name, np.ascontiguousarray(to_float32(array).reshape(-1)))
            bar.add(array.nbytes)


def _check(wanted: Mapping[str, tuple[int, ...]], tensors: Tensors) -> None:
    for name, shape in wanted.items():
        entry = tensors.entries.get(name)
        if entry is None or entry.shape != shape:
            found = "is missing" if entry is None else f"has shape {entry.shape}"
            raise TensorError(f"The network needs {name} of shape {shape}, which {found}. Are these its weights?")


class _Bar:
    """A progress bar that shows itself once loading has taken long."""

    def __init__(self, total: int, quiet: bool):
        self._total, self._quiet = total, quiet
        self._begun, self._done = monotonic(), 0
        self._shown: Progress | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None:
            self._shown.close()

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._shown is None and monotonic() - self._begun > QUIET_SECONDS:
            self._shown = Progress("Loading", self._total, quiet=self._quiet)
            nbytes = self._done
        if self._shown is not None:
            self._shown.add(nbytes)


def is_matrix(name: str) -> bool:
    """Whether a canonical name is a matrix that rows are multiplied with; the rest are vectors, kept in float32."""
    return name.endswith(".weight") and "norm" not in name


def load_matrix(model: Any, name: str, array: Array) -> None:
    """One matrix (rows, columns), packed or in a float type."""
    if not isinstance(array, QTensor) and TYPE_NAMES.get(array.dtype.name) not in NARROW:
        array = to_float32(array)
    if isinstance(array, QTensor):
        kind, data = array.type, array.data
    else:
        kind = TYPE_NAMES[array.dtype.name]
        data = np.ascontiguousarray(array).view(np.uint8).reshape(array.shape[0], -1)
    data = np.ascontiguousarray(data)
    model.load_matrix(name, kind, data, array.shape[1], _is_mapped(data))


def _as(name: str, array: Array, kind: str | None) -> Array:
    """The matrix in another type, by float32."""
    if kind is None or (isinstance(array, QTensor) and array.type == kind):
        return array
    if kind in DTYPES:
        return to_float32(array).astype(DTYPES[kind], copy=False)
    try:
        return quantize(to_float32(array) if isinstance(array, QTensor) else array, kind)
    except TensorError as problem:
        raise TensorError(f"{name}: {problem}") from None


def quantize(
    array: np.ndarray,
    kind: str,
    threads: int | None = None,
    weights: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> QTensor:
    """A float array packed as `kind` by the extension, the same bits as `quant.quantize`; its last axis in blocks.

    float32, float16 and bfloat16 are read where they lie, a file's mapping for instance, a few KB at a time. `weights`
    (last axis,): how much each column counts. `out`: uint8 (rows, bytes of a row) to fill, or some of a larger one's
    rows. Raises TensorError as `quant.quantize` does, OptionError for an `out` of another shape.
    """
    shape = (math.prod(array.shape[:-1]), row_bytes(kind, array.shape))  # says so where the rows are no whole blocks
    if weights is not None:
        weights = checked_weights(weights, array.shape[-1])
    source = array if TYPE_NAMES.get(array.dtype.name) in NARROW else to_float32(array)
    data = _room(shape, out)
    try:
        extension.module().quantize(
            kind,
            TYPE_NAMES[source.dtype.name],
            _bytes(source),
            data,
            extension.threads(threads),
            extension.isa(),
            weights,
        )
    except ValueError:
        raise TensorError(
            f"Numbers that are not finite, or too large for {kind}'s half-precision scales, cannot be packed. "
            "Keep the float weights (leave out --quantize or --quant), and look for damage with --check."
        ) from None
    return QTensor(kind, array.shape, data)


def dequantize(
    packed: QTensor, dtype: str = "F32", threads: int | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """The numbers as "F32", "F16" or "BF16" of `packed.shape`, rounded to nearest even: the same bits as
    `packed.dequantize()` and numpy's rounding of it; numbers beyond half precision become infinite.

    `out`: an array of that dtype and shape to fill, contiguous. Raises OptionError for another dtype or `out`.
    """
    if dtype not in NARROW:
        raise OptionError(f"Packed tensors are unpacked as {', '.join(NARROW)}; {dtype!r} was given.")
    if out is None:
        out = np.empty(packed.shape, DTYPES[dtype])
    elif out.dtype != DTYPES[dtype] or out.shape != packed.shape or not out.flags.c_contiguous:
        raise OptionError(
            f"The output must be contiguous {DTYPES[dtype].name} {packed.shape}; got {out.dtype} {out.shape}."
        )
    data = np.ascontiguousarray(packed.data)
    extension.module().unpack(packed.type, data, dtype, _bytes(out), extension.threads(threads), extension.isa())
    return out


def _room(shape: tuple[int, int], out: np.ndarray | None) -> np.ndarray:
    if out is None:
        return np.empty(shape, np.uint8)
    if out.dtype != np.uint8 or out.shape != shape or not out.flags.c_contiguous:
        raise OptionError(f"The output must be contiguous uint8 {shape}; got {out.dtype} {out.shape}.")
    return out


def _bytes(array: np.ndarray) -> np.ndarray:
    """The rows of a contiguous array as bytes: uint8 (rows, bytes of a row)."""
    whole = np.ascontiguousarray(array)
    return whole.reshape(-1, whole.shape[-1]).view(np.uint8)


def _is_mapped(array: np.ndarray) -> bool:
    """Whether the array lies in a file's mapping, whose pages may be let go once they are read."""
    base: Any = array
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    return isinstance(base, np.memmap | mmap.mmap)
