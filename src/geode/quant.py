"""Block formats: how ggml packs 32 or 256 numbers into a few bytes, and the numbers that those bytes mean.

Files, names and layers are not known here: a `QTensor` is rows of bytes, and `BLOCKS` is the definition of each type.

In the drawings a cell is bytes; `f16` is a half-precision number, and `d` the scale of a whole block. A field of a few
bits is always taken low bits first: of w bytes in a row, first all their lowest fields, then all their next ones, so

    w = 16, 4 bits    byte 0 … 15 = [q0 | q16<<4] [q1 | q17<<4] … [q15 | q31<<4]

The truth is ggml/src/ggml-quants.c (`dequantize_row_*`) and ggml-common.h (`block_*`) in github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .errors import OptionError, TensorError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

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


@dataclass(frozen=True)
class Block:
    """One block format: `unpack` takes uint8 (n, nbytes) and gives float32 (n, elements)."""

    elements: int
    nbytes: int
    unpack: Callable[[Bytes], Floats]


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


# The formats. Each takes uint8 (n, bytes of a block) and gives float32 (n, elements).


def _half(blocks: Bytes, at: int) -> Floats:
    """The half-precision number at byte `at` of each block: float32 (n, 1)."""
    return blocks[:, at : at + 2].view("<f2").astype(np.float32)


def _fields(data: Bytes, width: int, bits: int) -> Bytes:
    """Bytes (n, m) as fields of `bits` (n, m * 8 / bits), in the order that the top of this file draws."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    spread = data.reshape(len(data), -1, 1, width) >> shifts
    return (spread & np.uint8((1 << bits) - 1)).reshape(len(data), -1)


def _scaled(scales: Floats, q: Floats) -> Floats:
    """q (n, elements), each run of elements times its own scale (n, runs): float32 (n, runs, run)."""
    return scales[:, :, None] * q.reshape(*scales.shape, -1)


def _q8_0(b: Bytes) -> Floats:
    """Value = d·q.

    0        2                    34
    | d f16  | q0 … q31 as int8   |
    """
    return _half(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(b: Bytes) -> Floats:
    """Value = d·(q - 8).

    0        2                      18
    | d f16  | 16 B: q, w 16 4 bits |
    """
    return _half(b, 0) * (_fields(b[:, 2:], 16, 4).astype(np.float32) - np.float32(8))


def _q4_1(b: Bytes) -> Floats:
    """Value = d·q + m.

    0        2        4                      20
    | d f16  | m f16  | 16 B: q, w 16 4 bits |
    """
    return _half(b, 0) * _fields(b[:, 4:], 16, 4).astype(np.float32) + _half(b, 2)


def _five_bits(b: Bytes, at: int) -> Bytes:
    """Four high bytes then sixteen low ones at byte `at`: uint8 (n, 32) of 0 … 31."""
    low, high = _fields(b[:, at + 4 :], 16, 4), _fields(b[:, at : at + 4], 1, 1)
    return low | high << np.uint8(4)


def _q5_0(b: Bytes) -> Floats:
    """Value = d·(q - 16), q = low | high << 4.

    0        2                       6                        22
    | d f16  | 4 B: high, w 1 1 bit  | 16 B: low, w 16 4 bits |
    """
    return _half(b, 0) * (_five_bits(b, 2).astype(np.float32) - np.float32(16))


def _q5_1(b: Bytes) -> Floats:
    """Value = d·q + m, q = low | high << 4.

    0        2        4                       8                        24
    | d f16  | m f16  | 4 B: high, w 1 1 bit  | 16 B: low, w 16 4 bits |
    """
    return _half(b, 0) * _five_bits(b, 4).astype(np.float32) + _half(b, 2)


def _q2_k(b: Bytes) -> Floats:
    """Value = d·s·q - dmin·m; s and m, 4 bits each, for every 16 elements.

    0                       16                     80       82          84
    | 16 B: each s | m << 4 | 64 B: q, w 32 2 bits | d f16  | dmin f16  |
    """
    scales = _half(b, 80) * (b[:, :16] & 15).astype(np.float32)
    mins = _half(b, 82) * (b[:, :16] >> 4).astype(np.float32)
    q = _fields(b[:, 16:80], 32, 2).astype(np.float32)
    return (_scaled(scales, q) - mins[:, :, None]).reshape(-1, 256)


def _q3_k(b: Bytes) -> Floats:
    """Value = d·(s - 32)·(q - 4); q = low | high << 2, and s, 6 bits, for every 16 elements.

    0                         32                       96             108      110
    | 32 B: high, w 32 1 bit  | 64 B: low, w 32 2 bits | 12 B: s      | d f16  |

    s:  | 8 B: low, w 8 4 bits | 4 B: high, w 4 2 bits |
    """
    s = _fields(b[:, 96:104], 8, 4) | _fields(b[:, 104:108], 4, 2) << 4
    scales = _half(b, 108) * (s.astype(np.float32) - np.float32(32))
    q = _fields(b[:, 32:96], 32, 2) | _fields(b[:, :32], 32, 1) << 2
    return _scaled(scales, q.astype(np.float32) - np.float32(4)).reshape(-1, 256)


def _scales_and_mins(b: Bytes) -> tuple[Floats, Floats]:
    """The head that Q4_K and Q5_K share: d·s and dmin·m for every 32 elements, float32 (n, 8) each.

    0        2           4        8        12        16
    | d f16  | dmin f16  | 4 B: a | 4 B: b | 4 B: c  |      for i in 0 … 3:

    s[i] = a[i] & 63        s[4 + i] = c[i] & 15 | (a[i] >> 6) << 4
    m[i] = b[i] & 63        m[4 + i] = c[i] >> 4 | (b[i] >> 6) << 4
    """
    head, tail, mixed = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    s = np.concatenate([head & 63, mixed & 15 | head >> 6 << 4], axis=1)
    m = np.concatenate([tail & 63, mixed >> 4 | tail >> 6 << 4], axis=1)
    return _half(b, 0) * s.astype(np.float32), _half(b, 2) * m.astype(np.float32)


def _q4_k(b: Bytes) -> Floats:
    """Value = d·s·q - dmin·m.

    0                          16                      144
    | 16 B: scales and minima  | 128 B: q, w 32 4 bits |
    """
    scales, mins = _scales_and_mins(b)
    q = _fields(b[:, 16:], 32, 4).astype(np.float32)
    return (_scaled(scales, q) - mins[:, :, None]).reshape(-1, 256)


def _q5_k(b: Bytes) -> Floats:
    """Value = d·s·q - dmin·m, q = low | high << 4.

    0                          16                        48                        176
    | 16 B: scales and minima  | 32 B: high, w 32 1 bit  | 128 B: low, w 32 4 bits |
    """
    scales, mins = _scales_and_mins(b)
    q = _fields(b[:, 48:], 32, 4) | _fields(b[:, 16:48], 32, 1) << 4
    return (_scaled(scales, q.astype(np.float32)) - mins[:, :, None]).reshape(-1, 256)


def _q6_k(b: Bytes) -> Floats:
    """Value = d·s·(q - 32), q = low | high << 4; s for every 16 elements.

    0                          128                        192                208      210
    | 128 B: low, w 64 4 bits  | 64 B: high, w 32 2 bits  | 16 B: s as int8  | d f16  |
    """
    scales = _half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    q = _fields(b[:, :128], 64, 4) | _fields(b[:, 128:192], 32, 2) << 4
    return _scaled(scales, q.astype(np.float32) - np.float32(32)).reshape(-1, 256)


BLOCKS: dict[str, Block] = {
    "Q8_0": Block(32, 34, _q8_0),
    "Q4_0": Block(32, 18, _q4_0),
    "Q4_1": Block(32, 20, _q4_1),
    "Q5_0": Block(32, 22, _q5_0),
    "Q5_1": Block(32, 24, _q5_1),
    "Q2_K": Block(256, 84, _q2_k),
    "Q3_K": Block(256, 110, _q3_k),
    "Q4_K": Block(256, 144, _q4_k),
    "Q5_K": Block(256, 176, _q5_k),
    "Q6_K": Block(256, 210, _q6_k),
}
