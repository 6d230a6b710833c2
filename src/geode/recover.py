"""Numbers that were unpacked from blocks, put back into blocks that hold the very same numbers.

How good a packing is, is not known here: numbers lie on a lattice that a block type can hold, or they do not.

Every type has x = d·s·q - b·m with half-precision d and b for a block and small whole s and m for a run. Halves are
whole numbers of 2**-24, so x is one too, and float32 holds it unrounded (below 1 always, above 1 unless d and b are of
very different size). Then the lattice is a matter of common divisors: d·s divides what numbers of a run differ by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import BLOCKS, Bytes, _as_half, _fields, _from_fields, _from_five_bits
from .lattice import Floats, peak
from .quant import PIECE, QTensor, quantize, row_bytes

__all__ = ["SIGNED", "recover", "recover_or_pack", "signs"]

Doubles = NDArray[np.float64]
Whole = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]

UNIT = 2.0**24  # the least half-precision number is 1 / UNIT
NARROW = 64  # numbers below this, in units, and their differences are int32
CHUNK = 64  # blocks that may wait for the slower search at a time
GUESSES = 16  # how many d that search tries
SIGNED = ("Q3_K", "Q6_K")  # types whose s has a sign, which their numbers alone do not tell
SAMPLE = 16  # blocks that are looked at before all others


def recover(array: np.ndarray, kind: str, signs: Bytes | None = None) -> QTensor | None:
    """The blocks of type `kind` that unpack to exactly these numbers (-0 is 0), or None where there are none.

    The same numbers may be spelt in several ways, and the one that packers use is taken; Q6_K and Q3_K leave open with
    which sign a run was packed, which `signs`, of the blocks that once were, tells.

    `array` is of any float type, its last axis packed. Takes 20 to 90 ns a number; to refuse others, less than 1 ms.
    Raises TensorError when the last axis is no whole number of blocks.
    """
    data, numbers = _room(array, kind)
    if signs is not None and (kind not in SIGNED or signs.shape != (len(data), 3)):
        signs = None
    if len(numbers) and not _solved(numbers[:: max(1, len(numbers) // SAMPLE)], kind)[1].all():
        return None
    for at in _steps(numbers):
        data[at], exact = _solved(numbers[at], kind, None if signs is None else signs[at])
        if not exact.all():
            return None if signs is None else recover(array, kind)
    return QTensor(kind, array.shape, data.reshape(-1, row_bytes(kind, array.shape)))


def recover_or_pack(
    array: np.ndarray, kind: str, pack: Callable[[np.ndarray, str], QTensor] = quantize
) -> tuple[QTensor, float]:
    """As `recover`, but blocks that cannot hold their numbers exactly are packed; and the largest |difference|.

    `pack` takes float32 (blocks, elements of one). Raises TensorError as `recover` and `pack` do.
    """
    data, numbers = _room(array, kind)
    largest = 0.0
    for at in _steps(numbers):
        data[at], exact = _solved(numbers[at], kind)
        rest = numbers[at][~exact]
        if len(rest):
            data[at][~exact] = pack(rest.astype(np.float32), kind).data
            difference = BLOCKS[kind].unpack(data[at][~exact]) - rest.astype(np.float64)
            largest = max(largest, float(np.abs(difference).max()))
    return QTensor(kind, array.shape, data.reshape(-1, row_bytes(kind, array.shape))), largest


def signs(packed: QTensor) -> Bytes | None:
    """The signs of d and of each s: uint8 (blocks, 1 + runs / 8), bits set for negative ones. None for types of which
    the numbers tell everything.
    """
    if packed.type not in SIGNED:
        return None
    blocks = packed.data.reshape(-1, BLOCKS[packed.type].nbytes)
    if packed.type == "Q6_K":
        negative = blocks[:, 192:208].view(np.int8) < 0
    else:
        negative = (_fields(blocks[:, 104:108], 4, 2) & 2) == 0  # the top bit of s + 32
    return np.concatenate([blocks[:, -1:] >> 7, np.packbits(negative, axis=1)], axis=1)


def _room(array: np.ndarray, kind: str) -> tuple[Bytes, np.ndarray]:
    """Room for the packed blocks (n, nbytes), and the numbers (n, elements)."""
    size = math.prod(array.shape[:-1]) * row_bytes(kind, array.shape)
    block = BLOCKS[kind]
    return np.empty((size // block.nbytes, block.nbytes), np.uint8), array.reshape(-1, block.elements)


def _steps(numbers: np.ndarray) -> Iterator[slice]:
    step = 2 * PIECE // numbers.shape[1]
    return (slice(at, at + step) for at in range(0, len(numbers), step))


# A block as whole numbers, and the forms that the types give it.


@dataclass
class Solution:
    """Whole numbers of n blocks: d and b (n, 1) in units, s and m (n, runs); and which blocks have been solved (n,)."""

    d: Doubles
    b: Doubles
    s: Doubles
    m: Doubles
    done: Mask


@dataclass(frozen=True)
class Form:
    """x = d·s·q - b·m: which s, q and m a type has, and how many numbers share an s.

    `write` takes half-precision bytes of d and b (n, 2), and s, m (n, runs) and q (n, elements) from the least on.
    """

    run: int
    s: range
    q: range
    m: range
    write: Callable[[Bytes, Bytes, Bytes, Bytes, Bytes], Bytes]

    @property
    def reach(self) -> int:
        """The largest |s·q|."""
        return max(abs(self.s[0]), self.s[-1]) * max(abs(self.q[0]), self.q[-1])

    @property
    def shifted(self) -> bool:
        """Whether anything is subtracted: then only differences within a run tell of d."""
        return self.m != ZERO


ZERO, ONE = range(1), range(1, 2)


def _plain(*parts: NDArray[np.integer[Any]]) -> Bytes:
    return np.concatenate([part.astype(np.uint8, copy=False) for part in parts], axis=1)


def _q3_k(d: Bytes, _: Bytes, s: Bytes, __: Bytes, q: Bytes) -> Bytes:
    low = [_from_fields(q >> 2, 32, 1), _from_fields(q & 3, 32, 2)]
    return _plain(*low, _from_fields(s & 15, 8, 4), _from_fields(s >> 4, 4, 2), d)


def _q6_k(d: Bytes, _: Bytes, s: Bytes, __: Bytes, q: Bytes) -> Bytes:
    return _plain(_from_fields(q & 15, 64, 4), _from_fields(q >> 4, 32, 2), s ^ np.uint8(128), d)


def _head(d: Bytes, b: Bytes, s: Bytes, m: Bytes) -> Bytes:
    """What Q4_K and Q5_K begin with, as `blocks` draws it."""
    tops = (levels[:, :4] | levels[:, 4:] >> 4 << 6 for levels in (s, m))
    return _plain(d, b, *tops, s[:, 4:] & 15 | m[:, 4:] << 4)


# The writers follow the drawings in blocks.py.
FORMS: dict[str, Form] = {
    "Q8_0": Form(32, ONE, range(-128, 128), ZERO, lambda d, b, s, m, q: _plain(d, q ^ np.uint8(128))),
    "Q4_0": Form(32, ONE, range(-8, 8), ZERO, lambda d, b, s, m, q: _plain(d, _from_fields(q, 16, 4))),
    "Q5_0": Form(32, ONE, range(-16, 16), ZERO, lambda d, b, s, m, q: _plain(d, _from_five_bits(q))),
    "Q4_1": Form(32, ONE, range(16), range(-1, 0), lambda d, b, s, m, q: _plain(d, b, _from_fields(q, 16, 4))),
    "Q5_1": Form(32, ONE, range(32), range(-1, 0), lambda d, b, s, m, q: _plain(d, b, _from_five_bits(q))),
    "Q3_K": Form(16, range(-32, 32), range(-4, 4), ZERO, _q3_k),
    "Q6_K": Form(16, range(-128, 128), range(-32, 32), ZERO, _q6_k),
    "Q2_K": Form(
        16, range(16), range(4), range(16), lambda d, b, s, m, q: _plain(s | m << 4, _from_fields(q, 32, 2), d, b)
    ),
    "Q4_K": Form(
        32, range(64), range(16), range(64), lambda d, b, s, m, q: _plain(_head(d, b, s, m), _from_fields(q, 32, 4))
    ),
    "Q5_K": Form(
        32,
        range(64),
        range(32),
        range(64),
        lambda d, b, s, m, q: _plain(_head(d, b, s, m), _from_fields(q >> 4, 32, 1), _from_fields(q & 15, 32, 4)),
    ),
}


# From numbers to a solution.


@dataclass
class Runs:
    """Of every run (n, runs), in units: its least and its greatest number, and what divides all of it."""

    low: Doubles
    high: Doubles
    divisor: Doubles

    def __getitem__(self, blocks: NDArray[np.intp] | Mask) -> Runs:
        return Runs(self.low[blocks], self.high[blocks], self.divisor[blocks])


def _solved(numbers: np.ndarray, kind: str, given: Bytes | None = None) -> tuple[Bytes, Mask]:
    """Packed blocks (n, nbytes), and which of them unpack to exactly `numbers` (n, elements): (n,)."""
    form, block = FORMS[kind], BLOCKS[kind]
    with np.errstate(all="ignore"):  # what is not finite is found out at the end
        x = np.ascontiguousarray(numbers.reshape(-1, form.run).T, np.float32)
        found = _solution(x, form, block.elements // form.run)
        found.d, found.s = _widest(found.d, found.s, form.s)
        found.b, found.m = _widest(found.b, found.m, form.m)
        if form.s[0] < 0:
            found.d, found.s = _signed(found, x, form, given)
        q = _levels(x, found, form).reshape(form.run, -1).T.reshape(numbers.shape)
        d = np.where((q != -form.q[0]).any(axis=1, keepdims=True), found.d, 0)
        d, b = (_as_half((scale / UNIT).astype(np.float32)) for scale in (d, found.b))
        s, m = (found.s - form.s[0]).astype(np.uint8), (found.m - form.m[0]).astype(np.uint8)
        data = form.write(d, b, s, m, q)
        return data, (block.unpack(data) == numbers).all(axis=1)


def _solution(x: Floats, form: Form, width: int) -> Solution:
    """What the blocks of `width` runs are likely to be, x (run, n) one run a column; unpacking them is the proof."""
    runs = _runs(x, form, width)
    found = _unsolved(*runs.low.shape)
    _search(np.arange(len(runs.low)), runs, form, found)
    if form.shifted and not found.done.all():
        large = np.abs(x).max(axis=0).reshape(-1, width).max(axis=1) >= 1
        rest = np.flatnonzero(large & ~found.done & np.isfinite(runs.high).all(axis=1))
        numbers = x.T.reshape(*runs.low.shape, form.run)
        for at in range(0, len(rest), CHUNK):
            _search_rounded(rest[at : at + CHUNK], numbers, runs, form, found)
        if not found.done[rest].all():
            below_one = np.where(np.abs(x) < 1, x, x.min(axis=0))
            _search(rest, _runs(below_one, form, width), form, found)
    return found


def _widest(scale: Doubles, steps: Doubles, form: range) -> tuple[Doubles, Doubles]:
    """The same products of scale (n, 1) and steps (n, runs) as packers spell them: the largest step as far out as its
    range allows. Other spellings are as exact, and round elsewhere when they are multiplied.
    """
    if len(form) <= 2:
        return scale, steps
    top = max(-form[0], form[-1])
    most = np.maximum(np.abs(steps).max(axis=1, keepdims=True), 1)
    more = np.where(top % most == 0, top // most, 1)
    fits = (scale / more / UNIT).astype(np.float16).astype(np.float64) * UNIT == scale / more
    more = np.where(fits & (steps * more <= form[-1]).all(axis=1, keepdims=True), more, 1)
    return scale / more, steps * more


def _signed(found: Solution, x: Floats, form: Form, given: Bytes | None) -> tuple[Doubles, Doubles]:
    """d and s with the signs given; else with packers' own: the largest q of a run and the largest s are negative."""
    if given is not None:
        d, s = (np.where(bits, -1.0, 1.0) for bits in (given[:, :1], np.unpackbits(given[:, 1:], axis=1)))
        return np.abs(found.d) * d, np.abs(found.s) * s
    s = -np.abs(found.s) * np.sign(found.d) * np.sign(peak(x)).reshape(found.s.shape)
    largest = np.take_along_axis(s, np.abs(s).argmax(axis=1, keepdims=True), axis=1)
    turn = np.where(largest > 0, -1.0, 1.0)
    holds = (s * turn <= form.s[-1]).all(axis=1, keepdims=True)
    return np.where(holds, found.d * turn, found.d), np.where(holds, s * turn, found.s)


def _unsolved(n: int, width: int) -> Solution:
    d, b, s, m = (np.zeros((n, columns)) for columns in (1, 1, width, width))
    return Solution(d, b, s, m, np.zeros(n, bool))


def _runs(x: Floats, form: Form, width: int) -> Runs:
    """x (run, n) float32, one run a column. A run of others than whole units is of no bounds."""
    scaled = x * np.float32(UNIT)
    units: Whole = scaled.astype(np.int32 if np.abs(x).max(initial=0) < NARROW else np.int64)
    whole = (units == scaled).all(axis=0)
    low, high = units.min(axis=0), units.max(axis=0)
    divisor = np.gcd.reduce(units - low if form.shifted else units, axis=0)
    columns = (low, np.where(whole, high, np.inf), divisor)
    return Runs(*(column.astype(np.float64).reshape(-1, width) for column in columns))


def _levels(x: Floats, found: Solution, form: Form) -> Bytes:
    """The q of each number, from the least on: uint8 (run, n)."""
    scale, shift = ((part / UNIT).reshape(-1) for part in (found.d * found.s, found.b * found.m))
    kind = x.dtype.type
    q = np.rint((x + shift.astype(kind)) / scale.astype(kind))
    q = np.where(scale == 0, kind(0), q) - kind(form.q[0])
    return np.clip(q, 0, len(form.q) - 1).astype(np.uint8)


def _search(todo: NDArray[np.intp], runs: Runs, form: Form, found: Solution) -> None:
    """Tries d = (what divides the whole block) / t, for t = 1, 2 …: 1 nearly always."""
    divisor, span = _measure(runs, form)
    t = 1
    while len(todo := todo[~found.done[todo] & (t * span[todo] <= form.reach * divisor[todo])]):
        d = divisor[todo] / t
        fit = _is_half(d)
        for sign in (1, -1):
            left = fit & ~found.done[todo]
            if left.any():
                _try(todo[left], sign * d[left], runs, form, found)
        t += 1


def _measure(runs: Runs, form: Form) -> tuple[Doubles, Doubles]:
    """What divides all of a block's differences, at least 1, and the widest difference of a run: (n,) each."""
    flat = ~runs.divisor.any(axis=1, keepdims=True)  # no differences: then the numbers themselves
    positive = np.maximum(runs.high, 0)
    steps = np.where(flat, positive, runs.divisor)
    spans = np.where(flat, positive, runs.high - runs.low) if form.shifted else np.maximum(runs.high, -runs.low)
    divisor = np.gcd.reduce(steps.astype(np.int64), axis=1).astype(np.float64)
    return np.maximum(divisor, 1), np.maximum(spans.max(axis=1), 1)


def _is_half(units: Doubles) -> Mask:
    """Whether half precision holds these numbers exactly."""
    value = units / UNIT
    fit: Mask = (units == np.rint(units)) & (value.astype(np.float16) == value)
    return fit


def _try(blocks: NDArray[np.intp], d: Doubles, runs: Runs, form: Form, found: Solution) -> None:
    """Notes the blocks for which this d (n,) is part of a solution.

    The number nearest to q = 0 of a run is d·s·q - b·m, and its q is known where the run's span fills all levels: b
    divides what these runs subtract. Where that is not enough, other runs are tried with every q they have room for.
    """
    _place(blocks, d, np.zeros_like(d), runs, form, found)
    blocks, d = blocks[left := ~found.done[blocks]], d[left]
    if not form.shifted or not len(blocks):
        return
    step, room, end = _ends(runs[blocks], d[:, None], form)
    known = np.where(room == 0, -end, 0)
    _place_all(blocks, d, known, np.arange(len(blocks)), runs, form, found)
    unknown = (known == 0).all(axis=1)
    for run in range(room.shape[1]):
        todo = np.flatnonzero(unknown & ~found.done[blocks])
        subtracted = step[todo, run, None] * np.array(form.q) - end[todo, run, None]
        possible = room[todo, run, None] >= np.array(form.q)
        unknown &= np.isin(np.arange(len(d)), todo[(possible & (subtracted == 0)).any(axis=1)])  # others have told all
        _place_all(blocks, d, subtracted[possible][:, None], np.repeat(todo, possible.sum(axis=1)), runs, form, found)


def _ends(runs: Runs, d: Doubles, form: Form) -> tuple[Doubles, Doubles, Doubles]:
    """d·s, the largest q of the number nearest to q = 0, and that number: (n, runs) each, the least q first."""
    step = d * _largest_divisor((runs.divisor / abs(d)).astype(np.int64), form.s[-1])
    room = np.where(step == 0, form.q[-1], form.q[-1] - (runs.high - runs.low) / abs(step))
    order = np.argsort(room, axis=1, kind="stable")
    ends = np.where(d > 0, runs.low, runs.high)
    step, room, ends = (np.take_along_axis(part, order, axis=1) for part in (step, room, ends))
    return step, room, ends


def _place_all(
    blocks: NDArray[np.intp],
    d: Doubles,
    subtracted: Doubles,
    which: NDArray[np.intp],
    runs: Runs,
    form: Form,
    found: Solution,
) -> None:
    """Places `blocks[which]` with every b of which all that is subtracted (which, some) are multiples in `form.m`."""
    divisor = np.gcd.reduce(np.abs(subtracted).astype(np.int64), axis=1, keepdims=True).astype(np.float64)
    widest = np.abs(subtracted).max(axis=1, keepdims=True)
    sign = np.sign(subtracted.sum(axis=1, keepdims=True)) * np.sign(form.m[0] + form.m[-1])
    most = max(abs(form.m[0]), form.m[-1])
    u = np.arange(1, most + 1)
    row, column = np.nonzero((widest > 0) & (widest * u <= most * divisor) & _is_half(divisor / u))
    which = which[row]
    _place(blocks[which], d[which], (sign * divisor / u)[row, column], runs, form, found)


def _place(blocks: NDArray[np.intp], d: Doubles, b: Doubles, runs: Runs, form: Form, found: Solution) -> None:
    """Notes the blocks, among those not yet solved, all of whose runs can be had with d and b (n,)."""
    width = runs.low.shape[1]
    s, m = _scales(np.repeat(d, width), np.repeat(b, width), runs[blocks], form)
    fit = np.isfinite(s).all(axis=1)
    solved, first = np.unique(blocks[fit], return_index=True)
    found.d[solved, 0], found.b[solved, 0] = d[fit][first], b[fit][first]
    found.s[solved], found.m[solved] = s[fit][first], m[fit][first]
    found.done[solved] = True


def _scales(d: Doubles, b: Doubles, runs: Runs, form: Form) -> tuple[Doubles, Doubles]:
    """The s and m of every run, given its d and b (all runs,): (n, runs) each, s NaN where there are none.

    Tries every m, the usual one first: that which makes the end of the run q = 0.
    """
    low, high, divisor = (part.reshape(-1) for part in (runs.low, runs.high, runs.divisor))
    s, m = np.full(low.shape, np.nan), np.full(low.shape, float(form.m[0]))
    usual = np.nan_to_num(np.clip(np.rint(-np.where(d > 0, low, high) / b), form.m[0], form.m[-1])) - form.m[0]
    todo = np.arange(low.size)
    for step in range(len(form.m)):
        m[todo] = (usual[todo] + step) % len(form.m) + form.m[0]
        shift = b[todo] * m[todo]
        ends = [(end[todo] + shift) / d[todo] for end in (low, high)]
        s[todo] = _scale(ends[0], ends[1], divisor[todo] / abs(d[todo]), form)
        todo = todo[np.isnan(s[todo]) & (b[todo] != 0)]
        if not len(todo):
            break
    return s.reshape(runs.low.shape), m.reshape(runs.low.shape)


def _scale(low: Doubles, high: Doubles, divisor: Doubles, form: Form) -> Doubles:
    """The s of runs of s·q from low to high whose differences `divisor` divides; NaN where there is none.

    The largest s that divides all of a run leaves the smallest q; either sign of it is tried.
    """
    whole = (low == np.rint(low)) & (np.maximum(np.abs(low), np.abs(high)) <= form.reach)
    shared = np.gcd(*(np.where(whole, np.abs(part), 0).astype(np.int64) for part in (low, divisor)))
    s = np.full(low.shape, np.nan)
    for sign, top in ((-1, -form.s[0]), (1, form.s[-1])):
        if top > 0:
            tried = sign * _largest_divisor(shared, top)
            ends = [np.where(tried == 0, 0, end / tried) for end in (low, high)]
            fit = whole & (np.minimum(*ends) >= form.q[0]) & (np.maximum(*ends) <= form.q[-1])
            s = np.where(fit, tried, s)
    return s


def _largest_divisor(k: Whole, top: int) -> Doubles:
    """The largest divisor of k that is at most `top`; of 0 it is 0, where 1 is not the only one."""
    table = _divisors(top)
    return table[np.minimum(k, len(table) - 1)]


@lru_cache
def _divisors(top: int) -> Doubles:
    table = np.ones(max(form.reach for form in FORMS.values()) + 1)
    for s in range(2, top + 1):
        table[::s] = s
    table[0] = top == 1
    return table


# From 1 on float32 may have rounded d·s·q - b·m, and common divisors are lost. The numbers at q = 0 are never rounded.


def _search_rounded(blocks: NDArray[np.intp], numbers: Floats, runs: Runs, form: Form, found: Solution) -> None:
    """Notes the blocks that are solved by the b that most runs' least numbers share, and a d that fits with it."""
    part = runs[blocks]
    b, fair = _common_subtrahend(part.low, form)
    m = np.clip(np.rint(np.nan_to_num(-part.low / b)), form.m[0], form.m[-1])
    x = numbers[blocks].astype(np.float64) * UNIT
    guesses = _guesses((part.high + b * m).max(axis=1), np.abs(x).max(axis=(1, 2)), form)
    for d in guesses.T[:, :, None]:
        todo = np.flatnonzero(fair & ~found.done[blocks] & (d[:, 0] > 0))
        s = _fitting(x[todo], d[todo], b[todo] * m[todo], form)
        _mend(s, m, todo, x, d, b, form)
        fit = np.isfinite(s).all(axis=1)
        solved, here = blocks[todo[fit]], todo[fit]
        found.d[solved], found.b[solved], found.s[solved], found.m[solved] = d[here], b[here], s[fit], m[here]
        found.done[solved] = True


def _common_subtrahend(low: Doubles, form: Form) -> tuple[Doubles, Mask]:
    """The largest b (n, 1) that most runs' least numbers are multiples of; and whether half of those below 0 are."""
    m = np.array([m for m in form.m if m])
    best, votes = np.zeros((len(low), 1)), np.zeros((len(low), 1))
    for run in range(low.shape[1]):
        b = -low[:, run, None] / m
        b = np.where((b > 0) | (len(form.m) == 1), b, 0)  # no packer subtracts less than nothing
        of = -low[:, :, None] / b[:, None, :]
        agree = ((of == np.rint(of)) & (of >= form.m[0]) & (of <= form.m[-1])).sum(axis=1) * _is_half(b)
        chosen = np.argmax(agree - np.arange(len(m)) / 64, axis=1)[:, None]
        tried, count = (np.take_along_axis(of_each, chosen, axis=1) for of_each in (b, agree))
        best, votes = np.where(count > votes, tried, best), np.maximum(count, votes)
    return best, (votes[:, 0] > 0) & (2 * votes[:, 0] >= (low < 0).sum(axis=1))


def _guesses(widest: Doubles, largest: Doubles, form: Form) -> Doubles:
    """Half-precision d of which a multiple s·q is `widest` (n,), as nearly as numbers up to `largest` are rounded.

    (n, GUESSES), 0 where there are fewer; those of large s·q first, as packers like them.
    """
    products = np.unique(np.outer(np.array(form.s), np.array(form.q)))[:0:-1]
    d = (widest[:, None] / products / UNIT).astype(np.float16).astype(np.float64) * UNIT
    fit = np.abs(d * products - widest[:, None]) <= largest[:, None] / UNIT
    order = np.argsort(~fit, axis=1, kind="stable")[:, :GUESSES]
    return np.take_along_axis(np.where(fit, d, 0), order, axis=1)


def _fitting(x: Doubles, d: Doubles, shift: Doubles, form: Form) -> Doubles:
    """The largest s with which runs x (n, runs, run) are float32's d·s·q - shift; NaN where none is: (n, runs)."""
    s = np.array(form.s[::-1], float)[:, None]
    shifted = shift[:, :, None, None]
    scale = d[:, :, None, None] * s
    q = np.clip(np.nan_to_num(np.rint((x[:, :, None, :] + shifted) / scale)), form.q[0], form.q[-1])
    fit = ((scale * q - shifted).astype(np.float32) == x[:, :, None, :]).all(axis=3)
    return np.where(fit.any(axis=2), s[fit.argmax(axis=2), 0], np.nan)


def _mend(s: Doubles, m: Doubles, todo: NDArray[np.intp], x: Doubles, d: Doubles, b: Doubles, form: Form) -> None:
    """Tries every m for the runs without an s, where most runs of a block have one: into s and m."""
    missing = np.isnan(s)
    row, run = np.nonzero(missing & (2 * missing.sum(axis=1, keepdims=True) <= s.shape[1]))
    for other in form.m:
        block = todo[row]
        tried = _fitting(x[block, run, None], d[block], b[block] * other, form)[:, 0]
        good = np.isfinite(tried)
        s[row[good], run[good]], m[block[good], run[good]] = tried[good], other
        row, run = row[~good], run[~good]
