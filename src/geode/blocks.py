"""How ggml packs 32 or 256 numbers into a few bytes: what the bytes mean, and which bytes are best for given numbers.

Tensors and files are not known here; how a scale is found is `lattice`'s to know.

In the drawings a cell is bytes; `f16` is a half-precision number, and `d` the scale of a whole block. A field of a few
bits is always taken low bits first: of w bytes in a row, first all their lowest fields, then all their next ones, so

    w = 16, 4 bits    byte 0 … 15 = [q0 | q16<<4] [q1 | q17<<4] … [q15 | q31<<4]

The truth is ggml/src/ggml-quants.c (`dequantize_row_*`, `quantize_row_*_ref`) and ggml-common.h (`block_*`) in
github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import lattice
from .lattice import Floats, nearest

Bytes = NDArray[np.uint8]

f32 = np.float32


@dataclass(frozen=True)
class Block:
    """One block format: `unpack` takes uint8 (n, nbytes) and gives float32 (n, elements); `pack` is the way back.

    What `pack` takes is finite; a scale beyond half precision becomes infinite. With float32 weights (n, elements) it
    finds the scales by how much each number's error counts. `weigh` makes them: of rows (r, c) and how much each column
    counts (c,), both float32.
    """

    elements: int
    nbytes: int
    unpack: Callable[[Bytes], Floats]
    pack: Callable[[Floats, Floats | None], Bytes]
    weigh: Callable[[Floats, Floats], Floats]


def _by_row(rows: Floats, importance: Floats) -> Floats:
    """What a column counts, times the size of a number beside its row's."""
    return importance * np.sqrt(_mean_square(rows) + rows * rows)


def _by_block(times: int) -> Callable[[Floats, Floats], Floats]:
    """The same beside `times` the block's."""

    def weigh(rows: Floats, importance: Floats) -> Floats:
        blocks = rows.reshape(-1, 256)
        size = np.sqrt(f32(times) * _mean_square(blocks) + blocks * blocks)
        return importance * size.reshape(rows.shape)

    return weigh


def _by_column(rows: Floats, importance: Floats) -> Floats:
    return np.broadcast_to(importance, rows.shape)


def _mean_square(x: Floats) -> Floats:
    return (lattice.total((x * x).T) / f32(x.shape[1]))[:, None]


def _half(blocks: Bytes, at: int) -> Floats:
    """The half-precision number at byte `at` of each block: float32 (n, 1)."""
    return blocks[:, at : at + 2].view("<f2").astype(np.float32)


def _as_half(x: Floats) -> Bytes:
    """float32 (n, 1) as the two bytes of half precision."""
    return x.astype("<f2").view(np.uint8)


def _fields(data: Bytes, width: int, bits: int) -> Bytes:
    """Bytes (n, m) as fields of `bits` (n, m * 8 / bits), in the order that the top of this file draws."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    spread = data.reshape(len(data), -1, 1, width) >> shifts
    return (spread & np.uint8((1 << bits) - 1)).reshape(len(data), -1)


def _from_fields(q: NDArray[np.integer[Any]], width: int, bits: int) -> Bytes:
    """Fields (n, m * 8 / bits) as bytes (n, m): the inverse of `_fields`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    spread = q.astype(np.uint8).reshape(len(q), -1, 8 // bits, width) << shifts
    packed: Bytes = np.bitwise_or.reduce(spread, axis=2).reshape(len(q), -1)
    return packed


def _scaled(scales: Floats, q: Floats) -> Floats:
    """q (n, elements), each run of elements times its own scale (n, runs): float32 (n, runs, run)."""
    return scales[:, :, None] * q.reshape(*scales.shape, -1)


def _inverse(d: Floats) -> Floats:
    """1 / d; 0 where d is too small for that."""
    return _over(f32(1), d)


def _over(x: f32, y: Floats) -> Floats:
    """x / y; 0 where y is too small for that."""
    ratio = x / y
    return np.where(np.isfinite(ratio), ratio, f32(0))


WEIGHED = lattice.tries(-0.9, 0.05, 37)
"""Widths that ggml tries where an importance matrix says what counts (`quantize_row_*_impl`)."""


def _around_zero(x: Floats, weights: Floats | None, top: int) -> tuple[Floats, Bytes]:
    """x ≈ d·(q - top), the number farthest from zero at q = 0: d (n, 1) and q (n, elements)."""
    if weights is not None:
        scale, found = lattice.symmetric(x.T, weights.T, top)
        return scale[:, None], (found.T + f32(top)).astype(np.uint8)
    d = lattice.peak(x.T)[:, None] / f32(-top)
    return d, _floored(x * _inverse(d) + f32(top + 0.5), 2 * top - 1)


def _from_minimum(x: Floats, weights: Floats | None, top: int) -> tuple[Floats, Floats, Bytes]:
    """x ≈ d·q + m from the least number to the greatest: d and m (n, 1), q (n, elements)."""
    if weights is not None:
        scale, low, found = lattice.affine(x.T, weights.T, top, WEIGHED)
        return scale[:, None], -low[:, None], np.where(scale != 0, found, f32(0)).T.astype(np.uint8)
    m, high = (end(axis=1, keepdims=True) + f32(0) for end in (x.min, x.max))  # 0 and not -0
    d = (high - m) / f32(top)
    return d, m, _floored((x - m) * _inverse(d) + f32(0.5), top)


def _floored(x: Floats, top: int) -> Bytes:
    return np.clip(x, f32(0), f32(top)).astype(np.uint8)


def _q8_0(b: Bytes) -> Floats:
    """Value = d·q.

    0        2                    34
    | d f16  | q0 … q31 as int8   |
    """
    return _half(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _to_q8_0(x: Floats, weights: Floats | None) -> Bytes:
    """Weights are not asked: rounding leaves nothing to choose."""
    d = np.abs(x).max(axis=1, keepdims=True) / f32(127)
    q = x * _inverse(d)
    whole = np.trunc(q)
    away = np.copysign(np.abs(q - whole) >= f32(0.5), q)  # ggml rounds halves away from zero here
    return np.concatenate([_as_half(d), (whole + away).astype(np.int8).view(np.uint8)], axis=1)


def _q4_0(b: Bytes) -> Floats:
    """Value = d·(q - 8).

    0        2                      18
    | d f16  | 16 B: q, w 16 4 bits |
    """
    return _half(b, 0) * (_fields(b[:, 2:], 16, 4).astype(np.float32) - f32(8))


def _to_q4_0(x: Floats, weights: Floats | None) -> Bytes:
    d, q = _around_zero(x, weights, 8)
    return np.concatenate([_as_half(d), _from_fields(q, 16, 4)], axis=1)


def _q4_1(b: Bytes) -> Floats:
    """Value = d·q + m.

    0        2        4                      20
    | d f16  | m f16  | 16 B: q, w 16 4 bits |
    """
    return _half(b, 0) * _fields(b[:, 4:], 16, 4).astype(np.float32) + _half(b, 2)


def _to_q4_1(x: Floats, weights: Floats | None) -> Bytes:
    d, m, q = _from_minimum(x, weights, 15)
    return np.concatenate([_as_half(d), _as_half(m), _from_fields(q, 16, 4)], axis=1)


def _five_bits(b: Bytes, at: int) -> Bytes:
    """Four high bytes then sixteen low ones at byte `at`: uint8 (n, 32) of 0 … 31."""
    low, high = _fields(b[:, at + 4 :], 16, 4), _fields(b[:, at : at + 4], 1, 1)
    return low | high << np.uint8(4)


def _from_five_bits(q: Bytes) -> Bytes:
    """The inverse of `_five_bits`: uint8 (n, 20)."""
    return np.concatenate([_from_fields(q >> 4, 1, 1), _from_fields(q & 15, 16, 4)], axis=1)


def _q5_0(b: Bytes) -> Floats:
    """Value = d·(q - 16), q = low | high << 4.

    0        2                       6                        22
    | d f16  | 4 B: high, w 1 1 bit  | 16 B: low, w 16 4 bits |
    """
    return _half(b, 0) * (_five_bits(b, 2).astype(np.float32) - f32(16))


def _to_q5_0(x: Floats, weights: Floats | None) -> Bytes:
    d, q = _around_zero(x, weights, 16)
    return np.concatenate([_as_half(d), _from_five_bits(q)], axis=1)


def _q5_1(b: Bytes) -> Floats:
    """Value = d·q + m, q = low | high << 4.

    0        2        4                       8                        24
    | d f16  | m f16  | 4 B: high, w 1 1 bit  | 16 B: low, w 16 4 bits |
    """
    return _half(b, 0) * _five_bits(b, 4).astype(np.float32) + _half(b, 2)


def _to_q5_1(x: Floats, weights: Floats | None) -> Bytes:
    d, m, q = _from_minimum(x, weights, 31)
    return np.concatenate([_as_half(d), _as_half(m), _from_five_bits(q)], axis=1)


# Blocks of 256: runs of 16 or 32 numbers, whose scales are themselves rounded to a few bits of the block's own.


def _runs(x: Floats, run: int) -> Floats:
    """Blocks (n, 256) as columns of one run each: (run, n * 256 / run)."""
    return np.ascontiguousarray(x.reshape(-1, run).T)


def _rounded_up_from_zero(values: Floats, top: int, weights: Floats | None) -> tuple[Floats, Floats]:
    """Values ≥ 0 (n, runs) ≈ d·s, s in 0 … top: d (n, 1) as half precision has it, and s."""
    if weights is not None:
        return _fitted(lattice.from_zero, values, top, weights)
    largest = np.maximum(values.max(axis=1, keepdims=True), f32(0)) + f32(0)
    s = nearest(_over(f32(top), largest) * values, 0, top)
    return _halved(largest / f32(top)), s


def _rounded_around_zero(values: Floats, top: int) -> tuple[Floats, Floats]:
    """Values (n, runs) ≈ d·s, s in -top … top - 1: d (n, 1) as half precision has it, and s."""
    largest = lattice.peak(values.T)[:, None]
    inverse = np.where(np.abs(largest) < lattice.FLAT, f32(0), _over(f32(-top), largest))
    return _halved(_inverse(inverse)), nearest(inverse * values, -top, top - 1)


def _fitted(
    search: Callable[[Floats, Floats, int], tuple[Floats, Floats]], values: Floats, top: int, weights: Floats
) -> tuple[Floats, Floats]:
    """Values (n, runs) ≈ d·s by a search in which each run counts as all its numbers do: d (n, 1) halved, and s."""
    counts = lattice.total(_runs(weights, weights.shape[1] // values.shape[1])).reshape(values.shape)
    d, s = search(values.T, counts.T, top)
    return _halved(d[:, None]), s.T


def _halved(x: Floats) -> Floats:
    return x.astype(np.float16).astype(np.float32)


def _rounded(x: Floats, d: Floats, m: Floats, low: int, high: int) -> Bytes:
    """The q - low of x + m ≈ d·q (n, runs, run), q in low … high, 0 where d is 0: uint8 (n, 256)."""
    d = d[:, :, None]
    q = nearest((x.reshape(*d.shape[:2], -1) + m[:, :, None]) / d, low, high) - f32(low)
    return np.where(d != 0, q, f32(0)).astype(np.uint8).reshape(len(x), 256)


def _q2_k(b: Bytes) -> Floats:
    """Value = d·s·q - dmin·m; s and m, 4 bits each, for every 16 elements.

    0                       16                     80       82          84
    | 16 B: each s | m << 4 | 64 B: q, w 32 2 bits | d f16  | dmin f16  |
    """
    scales = _half(b, 80) * (b[:, :16] & 15).astype(np.float32)
    mins = _half(b, 82) * (b[:, :16] >> 4).astype(np.float32)
    q = _fields(b[:, 16:80], 32, 2).astype(np.float32)
    return (_scaled(scales, q) - mins[:, :, None]).reshape(-1, 256)


def _to_q2_k(x: Floats, weights: Floats | None) -> Bytes:
    runs = _runs(x, 16)
    if weights is None:
        found = lattice.affine(runs, np.abs(runs), 3, lattice.tries(-0.5, 0.1, 16), np.abs)
    else:
        found = lattice.affine(runs, _runs(weights, 16), 3, WEIGHED)
    (d, s), (dmin, m) = (_rounded_up_from_zero(values.reshape(-1, 16), 15, weights) for values in found[:2])
    q = _rounded(x, d * s, dmin * m, 0, 3)
    pairs = s.astype(np.uint8) | m.astype(np.uint8) << 4
    return np.concatenate([pairs, _from_fields(q, 32, 2), _as_half(d), _as_half(dmin)], axis=1)


def _q3_k(b: Bytes) -> Floats:
    """Value = d·(s - 32)·(q - 4); q = low | high << 2, and s, 6 bits, for every 16 elements.

    0                         32                       96             108      110
    | 32 B: high, w 32 1 bit  | 64 B: low, w 32 2 bits | 12 B: s      | d f16  |

    s:  | 8 B: low, w 8 4 bits | 4 B: high, w 4 2 bits |
    """
    s = _fields(b[:, 96:104], 8, 4) | _fields(b[:, 104:108], 4, 2) << 4
    scales = _half(b, 108) * (s.astype(np.float32) - f32(32))
    q = _fields(b[:, 32:96], 32, 2) | _fields(b[:, :32], 32, 1) << 2
    return _scaled(scales, q.astype(np.float32) - f32(4)).reshape(-1, 256)


def _to_q3_k(x: Floats, weights: Floats | None) -> Bytes:
    runs = _runs(x, 16)
    if weights is None:
        d, s = _rounded_around_zero(lattice.descent(runs, runs * runs, 4).reshape(-1, 16), 32)
    else:
        scales, _ = lattice.symmetric(runs, _runs(weights, 16), 4)
        d, s = _fitted(lattice.symmetric, scales.reshape(-1, 16), 32, weights)
    q = _rounded(x, d * s, np.zeros_like(s), -4, 3)
    levels = (s + f32(32)).astype(np.uint8)
    packed = [_from_fields(q >> 2, 32, 1), _from_fields(q & 3, 32, 2)]
    packed += [_from_fields(levels & 15, 8, 4), _from_fields(levels >> 4, 4, 2)]
    return np.concatenate([*packed, _as_half(d)], axis=1)


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


def _to_scales_and_mins(x: Floats, weights: Floats | None, top: int, widths: Sequence[f32]) -> tuple[Bytes, Bytes]:
    """The head (n, 16) and q (n, 256) in 0 … top. Without weights, errors count by size beside the run's root mean
    square, and `widths` are tried."""
    runs = _runs(x, 32)
    if weights is None:
        counts = np.sqrt(lattice.total(runs * runs) / f32(32)) + np.abs(runs)
        found = lattice.affine(runs, counts, top, widths)
    else:
        found = lattice.affine(runs, _runs(weights, 32), top, WEIGHED)
    (d, s), (dmin, m) = (_rounded_up_from_zero(values.reshape(-1, 8), 63, weights) for values in found[:2])
    q = _rounded(x, d * s, dmin * m, 0, top)
    scales, mins = s.astype(np.uint8), m.astype(np.uint8)
    head, tail = (levels[:, :4] | levels[:, 4:] >> 4 << 6 for levels in (scales, mins))
    mixed = scales[:, 4:] & 15 | mins[:, 4:] << 4
    return np.concatenate([_as_half(d), _as_half(dmin), head, tail, mixed], axis=1), q


def _q4_k(b: Bytes) -> Floats:
    """Value = d·s·q - dmin·m.

    0                          16                      144
    | 16 B: scales and minima  | 128 B: q, w 32 4 bits |
    """
    scales, mins = _scales_and_mins(b)
    q = _fields(b[:, 16:], 32, 4).astype(np.float32)
    return (_scaled(scales, q) - mins[:, :, None]).reshape(-1, 256)


def _to_q4_k(x: Floats, weights: Floats | None) -> Bytes:
    head, q = _to_scales_and_mins(x, weights, 15, lattice.tries(-1, 0.1, 21))
    return np.concatenate([head, _from_fields(q, 32, 4)], axis=1)


def _q5_k(b: Bytes) -> Floats:
    """Value = d·s·q - dmin·m, q = low | high << 4.

    0                          16                        48                        176
    | 16 B: scales and minima  | 32 B: high, w 32 1 bit  | 128 B: low, w 32 4 bits |
    """
    scales, mins = _scales_and_mins(b)
    q = _fields(b[:, 48:], 32, 4) | _fields(b[:, 16:48], 32, 1) << 4
    return (_scaled(scales, q.astype(np.float32)) - mins[:, :, None]).reshape(-1, 256)


def _to_q5_k(x: Floats, weights: Floats | None) -> Bytes:
    head, q = _to_scales_and_mins(x, weights, 31, lattice.tries(-0.5, 0.1, 16))
    return np.concatenate([head, _from_fields(q >> 4, 32, 1), _from_fields(q & 15, 32, 4)], axis=1)


def _q6_k(b: Bytes) -> Floats:
    """Value = d·s·(q - 32), q = low | high << 4; s for every 16 elements.

    0                          128                        192                208      210
    | 128 B: low, w 64 4 bits  | 64 B: high, w 32 2 bits  | 16 B: s as int8  | d f16  |
    """
    scales = _half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    q = _fields(b[:, :128], 64, 4) | _fields(b[:, 128:192], 32, 2) << 4
    return _scaled(scales, q.astype(np.float32) - f32(32)).reshape(-1, 256)


def _to_q6_k(x: Floats, weights: Floats | None) -> Bytes:
    runs = _runs(x, 16)
    scales, _ = lattice.symmetric(runs, runs * runs if weights is None else _runs(weights, 16), 32)
    d, s = _rounded_around_zero(scales.reshape(-1, 16), 128)
    q = _rounded(x, d * s, np.zeros_like(s), -32, 31)
    packed = [_from_fields(q & 15, 64, 4), _from_fields(q >> 4, 32, 2)]
    return np.concatenate([*packed, s.astype(np.int8).view(np.uint8), _as_half(d)], axis=1)


BLOCKS: dict[str, Block] = {
    "Q8_0": Block(32, 34, _q8_0, _to_q8_0, _by_row),
    "Q4_0": Block(32, 18, _q4_0, _to_q4_0, _by_row),
    "Q4_1": Block(32, 20, _q4_1, _to_q4_1, _by_row),
    "Q5_0": Block(32, 22, _q5_0, _to_q5_0, _by_row),
    "Q5_1": Block(32, 24, _q5_1, _to_q5_1, _by_row),
    "Q2_K": Block(256, 84, _q2_k, _to_q2_k, _by_block(1)),
    "Q3_K": Block(256, 110, _q3_k, _to_q3_k, _by_block(2)),
    "Q4_K": Block(256, 144, _q4_k, _to_q4_k, _by_block(2)),
    "Q5_K": Block(256, 176, _q5_k, _to_q5_k, _by_block(2)),
    "Q6_K": Block(256, 210, _q6_k, _to_q6_k, _by_column),
}
