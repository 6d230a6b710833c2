"""Canonical tensors in the types that a file asks for: kept, cast, packed, or put back into the very blocks they were.

Which type each tensor gets is `mixes`'s choice, how a block is packed `quant`'s; names of files are not known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from .. import mixes
from ..quant import BLOCKS, DTYPES, QTensor, quantize, row_bytes
from ..tensors import Array, Entry, Tensors
from .base import Checkpoint, Target, unpacked

Pack = Callable[..., QTensor]


def typed(checkpoint: Checkpoint, target: Target) -> Tensors:
    """Canonical tensors as `target` wants them: vectors F32, matrices in the types of `types_of`; still lazy."""
    known = checkpoint.tensors.entries
    weights = _importance(target)
    pack = packer(target.threads)
    return Tensors(
        {
            name: _retyped(known[name], kind, pack, weights(name), checkpoint.signs(name))
            for name, kind in types_of(checkpoint, target).items()
        }
    )


def types_of(checkpoint: Checkpoint, target: Target) -> dict[str, str]:
    """Canonical names to types. Raises OptionError for a mix that does not exist."""
    known = checkpoint.tensors.entries
    if target.quant is None:
        return {name: _kept(name, entry, target.dtype) for name, entry in known.items()}
    family = checkpoint.family
    return mixes.plan(checkpoint.config, target.quant, fused_qkv=family.fused_qkv, imatrix=target.imatrix is not None)


def requantised(checkpoint: Checkpoint, target: Target) -> list[str]:
    """A sentence where packed weights would be packed again in another type, which adds one error to the other."""
    if target.quant is None:
        return []
    wanted, known = types_of(checkpoint, target), checkpoint.tensors.entries
    again = sorted({(known[n].type, kind) for n, kind in wanted.items() if _packed_twice(known[n].type, kind)})
    shown = ", ".join(f"{old} to {new}" for old, new in again)
    return [f"Weights that are packed already would be packed again ({shown}): the errors add up."] * bool(again)


def packer(threads: int | None = None) -> Pack:
    """The extension's packer, or numpy's where the extension was not built; both give the same bits."""
    from ..native import extension, weights

    if not extension.is_there():
        return quantize

    return partial(weights.quantize, threads=threads)


def _importance(target: Target) -> Callable[[str], np.ndarray | None]:
    if target.imatrix is None:
        return lambda name: None
    from .. import imatrix

    return imatrix.read(target.imatrix).weights


def _kept(name: str, entry: Entry, dtype: str | None) -> str:
    if len(entry.shape) < 2 or name.endswith("_norm.weight"):
        return "F32"  # llama.cpp multiplies with vectors in float32 only
    if dtype is not None:
        return dtype
    return "F32" if entry.type == "F64" else entry.type


def _packed_twice(old: str, new: str) -> bool:
    return old in BLOCKS and new in BLOCKS and old != new


def _retyped(entry: Entry, kind: str, pack: Pack, weights: np.ndarray | None, signs: np.ndarray | None) -> Entry:
    if entry.type == kind:
        return entry
    if kind in DTYPES:
        nbytes = math.prod(entry.shape) * DTYPES[kind].itemsize
        return Entry(entry.shape, kind, nbytes, lambda: _cast(entry.load(), kind))
    nbytes = math.prod(entry.shape[:-1]) * row_bytes(kind, entry.shape)
    return Entry(entry.shape, kind, nbytes, lambda: _packed(entry.load(), kind, pack, weights, signs))


def _cast(array: Array, kind: str) -> Array:
    return unpacked(array, kind) if isinstance(array, QTensor) else array.astype(DTYPES[kind], copy=False)


def _packed(array: Array, kind: str, pack: Pack, weights: np.ndarray | None, signs: np.ndarray | None) -> QTensor:
    """Numbers that were unpacked from such blocks go back into them; all others are packed, as llama.cpp packs them."""
    from ..recover import recover

    plain = unpacked(array, "F32") if isinstance(array, QTensor) else array
    found = None if kind == "Q8_0" else recover(plain, kind, signs)  # packing Q8_0 gives its own numbers back
    return pack(plain, kind, weights=weights) if found is None else found
