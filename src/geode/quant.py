"""Packed tensors: rows of blocks of 32 or 256 numbers in a few bytes, as GGUF has them, and the way there and back.

Files, names and layers are not known here, nor what the bytes of a block mean: `blocks.BLOCKS` is the definition of
each type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from .blocks import BLOCKS, Block
from .errors import OptionError, TensorError

__all__ = [
    "BLOCKS",
    "DTYPES",
    "TYPE_NAMES",
    "Block",
    "QTensor",
    "checked_weights",
    "concatenate",
    "find_nonfinite",
    "float_type",
]
__all__ += ["pieces", "quantize", "row_bytes", "to_float32"]

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""Unpacked types by the name that GGUF and safetensors share."""

TYPE_NAMES: dict[str, str] = {dtype.name: name for name, dtype in DTYPES.items()}
"""The same table from numpy's side: "float32" -> "F32"."""


def float_type(name: str) -> np.dtype:
    """The dtype of a plain float type: "F64", "F32", "F16" or "BF16". Raises OptionError for any other name."""
    if name not in ("F64", "F32", "F16", "BF16"):
        raise OptionError(f"Expected a float type, one of F64, F32, F16 and BF16; got {name!r}.")
    return DTYPES[name]


@dataclass(frozen=True, eq=False)
class QTensor:
    """Rows of packed blocks. `shape` is logical and row-major, its last axis packed; `data` is uint8 (rows, row bytes).

    `data` may be a view into a memory-mapped file. Raises TensorError when type, shape and bytes disagree.
    """

    type: str
    shape: tuple[int, ...]
    data: np.ndarray

    def __post_init__(self) -> None:
        expected = (math.prod(self.shape[:-1]), row_bytes(self.type, self.shape))
        if self.data.dtype != np.uint8 or self.data.shape != expected:
            raise TensorError(
                f"A {self.type} tensor of shape {self.shape} is stored as uint8 {expected} (rows, bytes of a row); "
                f"got {self.data.dtype} {self.data.shape}."
            )

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dequantize(self) -> np.ndarray:
        """The numbers: float32 of `shape`. Besides the result, a few MB are in use at a time."""
        flat = np.empty(math.prod(self.shape), np.float32)
        at = 0
        for piece in pieces(self):
            flat[at : at + piece.size] = piece
            at += piece.size
        return flat.reshape(self.shape)

    def rows(self, index: slice | np.ndarray | Sequence[int]) -> QTensor:
        """The chosen rows, still packed: shape (chosen, last). Leading axes count as one; a plain slice is a view."""
        data = self.data[index]
        return QTensor(self.type, (len(data), self.shape[-1]), data)


def quantize(array: np.ndarray, kind: str, weights: np.ndarray | None = None) -> QTensor:
    """A float array packed as `kind`, its last axis in blocks; besides the result, a few MB are in use at a time.

    `weights` (last axis,) is how much each column counts, an importance matrix's: the scales are then found by weighted
    errors. Raises TensorError when the last axis is no whole number of blocks, a number is not finite or too large for
    the type's half-precision scales, or the weights do not fit or are not finite numbers ≥ 0.
    """
    rows, columns = math.prod(array.shape[:-1]), array.shape[-1] if array.shape else 0
    data = np.empty((rows, row_bytes(kind, array.shape)), np.uint8)
    block = BLOCKS[kind]
    if weights is not None:
        weights = checked_weights(weights, columns)
    numbers = array.reshape(rows, columns) if weights is not None else array.reshape(-1, block.elements)
    packed = data.reshape(len(numbers), numbers.shape[1] // block.elements, block.nbytes)
    step = max(1, PIECE // max(1, numbers.shape[1]))
    for at in range(0, len(numbers), step):
        piece = numbers[at : at + step].astype(np.float32)
        with np.errstate(all="ignore"):  # the searches try what cannot be and drop it
            packed[at : at + step] = _pack(block, piece, weights).reshape(len(piece), *packed.shape[1:])
            unpacked = block.unpack(packed[at : at + step].reshape(-1, block.nbytes))
            if not (np.isfinite(piece).all() and np.isfinite(unpacked).all()):
                raise TensorError(_unpackable(kind, piece))
    return QTensor(kind, array.shape, data)


def _pack(block: Block, rows: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    blocks = rows.reshape(-1, block.elements)
    if weights is None:
        return block.pack(blocks, None)
    return block.pack(blocks, block.weigh(rows, weights).reshape(blocks.shape))


def checked_weights(weights: np.ndarray, columns: int) -> np.ndarray:
    """How much columns count, as float32. Raises TensorError unless they are `columns` finite numbers ≥ 0."""
    found = np.ascontiguousarray(weights, np.float32)
    if found.shape != (columns,) or not np.isfinite(found).all() or (found < 0).any():
        raise TensorError(
            f"The weights of a matrix of {columns} columns are as many finite numbers, 0 or more; got shape "
            f"{np.shape(weights)} with values that do not all fit. Collect the importance matrix anew from this model."
        )
    return found


def _unpackable(kind: str, piece: np.ndarray) -> str:
    if not np.isfinite(piece).all():
        return f"Only finite numbers can be packed as {kind}; the tensor holds infinities or NaNs. Mend the checkpoint."
    return (
        f"{kind} keeps its scales in half precision, up to 65504; the tensor's largest number, "
        f"{float(np.abs(piece).max()):.4g}, is too large for them. Keep this tensor in a float type."
    )


def row_bytes(kind: str, shape: Sequence[int]) -> int:
    """Bytes of one packed row of `shape`. Raises TensorError when the last axis is no whole number of blocks."""
    if kind not in BLOCKS:
        raise TensorError(f"{kind!r} is no block type; the block types are {', '.join(BLOCKS)}.")
    block = BLOCKS[kind]
    if not shape or shape[-1] % block.elements:
        raise TensorError(
            f"A row of {kind} holds a whole number of blocks of {block.elements} elements; "
            f"shape {tuple(shape)} cannot be stored so. Keep this tensor in a float type."
        )
    return shape[-1] // block.elements * block.nbytes


def concatenate(tensors: Sequence[QTensor]) -> QTensor:
    """Joined along the first axis without unpacking. Raises TensorError unless types and other axes agree."""
    kinds = {(t.type, t.shape[1:]) for t in tensors}
    if len(kinds) != 1 or min(t.ndim for t in tensors) < 2:
        found = ", ".join(f"{t.type} {t.shape}" for t in tensors) or "nothing"
        raise TensorError(
            "Packed tensors are joined by whole rows: one type, two axes or more, all axes but the first equal; "
            f"got {found}."
        )
    first = tensors[0]
    shape = (sum(t.shape[0] for t in tensors), *first.shape[1:])
    return QTensor(first.type, shape, np.concatenate([t.data for t in tensors]))


def to_float32(array: np.ndarray | QTensor) -> np.ndarray:
    """The numbers as float32; a float32 array comes back as it is."""
    return array.dequantize() if isinstance(array, QTensor) else array.astype(np.float32, copy=False)


PIECE = 1 << 17  # elements: 512 KB of float32, with its temporaries about one core's cache


def pieces(array: np.ndarray | QTensor) -> Iterator[np.ndarray]:
    """All numbers in row-major order, a flat piece at a time: packed ones as float32, others in their own dtype."""
    if not isinstance(array, QTensor):
        flat = array.reshape(-1)
        yield from (flat[at : at + PIECE] for at in range(0, flat.size, PIECE))
        return
    block = BLOCKS[array.type]
    blocks = array.data.reshape(-1, block.nbytes)
    step = PIECE // block.elements
    for at in range(0, len(blocks), step):
        with np.errstate(invalid="ignore"):  # infinite scales: `find_nonfinite` speaks of them, not a warning
            piece = block.unpack(blocks[at : at + step]).reshape(-1)
        yield piece


def find_nonfinite(tensors: Mapping[str, np.ndarray | QTensor]) -> list[str]:
    """Names of the tensors that hold an infinity or a NaN; reads every byte, a small piece at a time."""
    return [name for name in tensors if not all(np.isfinite(piece).all() for piece in pieces(tensors[name]))]
