"""The scale (and lowest value) with which a run of numbers survives rounding best: a search for each kind of lattice.

Bytes and formats are not known here. The ideas are ggml's (`make_qkx3_quants`, `make_qx_quants`, `make_qp_quants`,
`make_q3_quants` in ggml-quants.c), and so are the constants: a checkpoint quantised here is as good as one quantised
there.

Every array is float32 (run, n): one run of numbers a column. Sums go down a column in order, each step rounded to
float32, so that the extension finds the same bits (csrc/lattice.inl). `weights` say how much each number's error
counts; an importance matrix is one more way to make them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

f32 = np.float32
ROUNDER = f32(1.5 * 2**23)  # float32 holds no fractions here: adding and subtracting it rounds
FLAT = f32(1e-15)  # runs with no number above this are zeros


def tries(first: float, by: float, count: int) -> list[f32]:
    """Widths to try beside a lattice's own: first, first + by … as float32 has them."""
    return [f32(first) + f32(by) * f32(step) for step in range(count)]


def affine(
    x: Floats, weights: Floats, top: int, widths: Sequence[f32], error: Callable[[Floats], Floats] = np.square
) -> tuple[Floats, Floats, Floats]:
    """x ≈ scale·q - low, q in 0 … top and low ≥ 0: scale and low float32 (n,), q (run, n); scale 0 for a run of one
    number not above 0, and its q is no number.

    Tries top and top + each of `widths` for the span of the numbers, fits scale and low to the rounded numbers of each
    by least squares, and keeps what has the least weighted `error`.
    """
    sum_w, sum_x = total(weights), total(weights * x)
    high, low = x.max(axis=0), np.minimum(x.min(axis=0), f32(0))
    spread = high > low

    def steps(width: Floats | f32, low: Floats) -> Floats:
        return nearest(width / (high - low) * (x - low), 0, top)

    def loss(q: Floats, scale: Floats, low: Floats) -> Floats:
        return total(weights * error(scale * q + low - x))

    start, width = low, np.full_like(low, top)  # of the q that are kept
    scale = f32(1) / (width / (high - low))
    best = loss(steps(width, low), scale, low)
    for wider in widths:
        tried = wider + f32(top)
        q = steps(tried, low)
        determined, *line = _least_squares(x, weights, q, sum_w, sum_x)
        found = loss(q, *line)
        better = determined & (found < best)
        pairs = zip((found, tried, low, *line), (best, width, start, scale, low), strict=True)
        best, width, start, scale, low = (np.where(better, *pair) for pair in pairs)
    return np.where(spread, scale, f32(0)), -low, steps(width, start)


def _least_squares(
    x: Floats, weights: Floats, q: Floats, sum_w: Floats, sum_x: Floats
) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """Whether the line x ≈ scale·q + low is determined, its scale, and its low, which may not rise above 0."""
    wq = weights * q
    sum_q, sum_qq, sum_xq = total(wq), total(wq * q), total(wq * x)
    determinant = sum_w * sum_qq - sum_q * sum_q
    scale = (sum_w * sum_xq - sum_x * sum_q) / determinant
    low = (sum_qq * sum_x - sum_q * sum_xq) / determinant
    above = low > 0
    return determinant > 0, np.where(above, sum_xq / sum_qq, scale), np.where(above, f32(0), low)


def symmetric(x: Floats, weights: Floats, top: int) -> tuple[Floats, Floats]:
    """x ≈ scale·q, q in -top … top - 1: scale float32 (n,), of the sign that gives the largest number the longer side,
    and the q (run, n) that it was fitted to; -top where all numbers are zeros.

    Tries -top and nine widths of 0.1 more and less for the largest number; the best fit by least squares is kept.
    """
    largest = peak(x)

    def steps(width: Floats | f32) -> Floats:
        return nearest(-width / largest * x, -top, top - 1)

    scale = best = np.zeros_like(largest)
    width = np.full_like(largest, top)
    for step in (0, *range(-9, 0), *range(1, 10)):
        tried = f32(top) + f32(0.1) * f32(step)
        q = steps(tried)
        sum_xq, sum_qq = total(weights * x * q), total(weights * q * q)
        better = (sum_qq > 0) & ((sum_xq * sum_xq > best * sum_qq) | (step == 0))
        scale = np.where(better, sum_xq / sum_qq, scale)
        best = np.where(better, scale * sum_xq, best)
        width = np.where(better, tried, width)
    return _usable(scale, largest, top), np.where(np.abs(largest) < FLAT, f32(-top), steps(width))


def from_zero(x: Floats, weights: Floats, top: int) -> tuple[Floats, Floats]:
    """x ≈ scale·q for numbers ≥ 0, q in 0 … top: scale float32 (n,) and q (run, n); zeros for zeros.

    Tries top and four widths of 0.1 more and less, keeps the one with the least weighted square error, and moves each q
    to its best place.
    """
    largest = np.maximum(x.max(axis=0), f32(0))

    def loss(width: Floats | f32) -> Floats:
        inverse = width / largest
        off = x - f32(1) / inverse * nearest(inverse * x, 0, top)
        return total(weights * off * off)

    width = np.full_like(largest, top)
    best = loss(width)
    for step in (*range(-4, 0), *range(1, 5)):
        tried = f32(0.1) * f32(step) + f32(top)
        found = loss(tried)
        better = found < best
        width, best = np.where(better, tried, width), np.where(better, found, best)
    q, sum_xq, sum_qq = _moved(x, weights, nearest(width / largest * x, 0, top), 0, top)
    there = largest >= FLAT
    return np.where(there & (sum_qq > 0), sum_xq / sum_qq, f32(0)), np.where(there, q, f32(0))


def descent(x: Floats, weights: Floats, top: int) -> Floats:
    """x ≈ scale·q as `symmetric` has it, for lattices so coarse that every q is worth a try of its own."""
    largest = peak(x)
    _, sum_xq, sum_qq = _moved(x, weights, nearest(-f32(top) / largest * x, -top, top - 1), -top, top - 1)
    return _usable(sum_xq / sum_qq, largest, top)


def _moved(x: Floats, weights: Floats, q: Floats, low: int, high: int) -> tuple[Floats, Floats, Floats]:
    """The q and their sums, after five times down the column: each moves to its best place, given all others, when that
    makes the fit better."""
    wx = weights * x
    sum_xq, sum_qq = total(wx * q), total(weights * q * q)
    for i in [*range(len(x))] * 5:
        others_x, others_q = sum_xq - wx[i] * q[i], sum_qq - weights[i] * q[i] * q[i]
        moved = nearest(x[i] * others_q / others_x, low, high)
        now_x, now_q = others_x + wx[i] * moved, others_q + weights[i] * moved * moved
        better = (others_x > 0) & (moved != q[i]) & (now_q > 0)
        better &= now_x * now_x * sum_qq > sum_xq * sum_xq * now_q
        pairs = ((moved, q[i]), (now_x, sum_xq), (now_q, sum_qq))
        q[i], sum_xq, sum_qq = (np.where(better, *pair) for pair in pairs)
    return q, sum_xq, sum_qq


def _usable(scale: Floats, largest: Floats, top: int) -> Floats:
    """The scale that was fitted; -largest / top where the sums were beyond float32; 0 for zeros."""
    fitted = np.where(np.isfinite(scale), scale, largest / f32(-top))
    return np.where(np.abs(largest) < FLAT, f32(0), fitted)


def peak(x: Floats) -> Floats:
    """The number farthest from zero of each column, with its sign; of two the first."""
    largest: Floats = np.take_along_axis(x, np.abs(x).argmax(axis=0, keepdims=True), axis=0)[0]
    return largest


def total(x: Floats) -> Floats:
    """The sum of each column, row after row: numpy's own order depends on the shape."""
    return reduce(np.add, x)


def nearest(x: Floats, low: int, high: int) -> Floats:
    """The nearest whole number, halves to even, in low … high; never -0."""
    return np.clip(x, f32(low), f32(high)) + ROUNDER - ROUNDER
