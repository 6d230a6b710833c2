"""A checkpoint that is computed: tensors made of other checkpoints' tensors when somebody asks for them.

What is computed is not known here, only that it comes a few rows at a time and is stored in the first one's types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..formats import Checkpoint
from ..formats.base import unpacked
from ..formats.packing import Pack, packer
from ..quant import BLOCKS, DTYPES, QTensor, concatenate, row_bytes, to_float32
from ..tensors import Array, Entry, Tensors, shapes

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer, Vocabulary

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
STEP = 1 << 22  # numbers computed at a time: 16 MB of float32

Rows = Callable[[slice], np.ndarray]
"""Some rows of a tensor, float32 or float64."""


@dataclass(frozen=True)
class Shift:
    """What storing a computed tensor in its type did to it.

    largest   |stored - exact|, absolute
    error     root mean square of stored - exact, relative to that of exact
    survived  how much of the change reached the stored numbers: 1 is all, 0 none; None where nothing was changed
    """

    type: str
    largest: float
    error: float
    survived: float | None


@dataclass
class Made(Checkpoint):
    """A checkpoint whose tensors are computed from those of `sources`; everything else is the first one's.

    `shifts` fills while tensors are loaded. `remarks` say what was decided on the way. `words` is a vocabulary that was
    made longer or shorter.
    """

    sources: tuple[Checkpoint, ...] = ()
    shifts: dict[str, Shift] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    words: Vocabulary | None = None

    def files(self) -> list[Path]:
        return list(dict.fromkeys(file for source in self.sources for file in source.files()))

    def tokenizer_files(self) -> list[Path]:
        return self.sources[0].tokenizer_files() if self.words is None else []

    def left_out(self) -> list[str]:
        return list(dict.fromkeys(sentence for source in self.sources for sentence in source.left_out()))

    def report(self) -> list[str]:
        """What storing did, a sentence for each type, and the remarks; whole once every tensor was loaded."""
        kinds = dict.fromkeys(shift.type for shift in self.shifts.values())
        return [_sentence(kind, self.shifts) for kind in kinds] + self.remarks

    def _tensors(self) -> Tensors:
        return self.stored

    def _tokenizer(self) -> Tokenizer | None:
        return self.sources[0].tokenizer if self.words is None else self.words.tokenizer()

    def _vocabulary(self) -> Vocabulary | None:
        return self.words or self.sources[0].vocabulary

    def _template(self) -> str | None:
        return self.sources[0].template

    def _ends(self) -> frozenset[int]:
        return self.sources[0].ends


def _sentence(kind: str, shifts: Mapping[str, Shift]) -> str:
    here = {name: shift for name, shift in shifts.items() if shift.type == kind}
    worst = max(here, key=lambda name: here[name].largest)
    error = max(shift.error for shift in here.values())
    told = f"{len(here)} tensors computed and stored as {kind}: largest |Δ| {here[worst].largest:.3g} ({worst})"
    told += f", relative RMS at most {error:.2g}"
    kept = [shift.survived for shift in here.values() if shift.survived is not None]
    return told + (f"; of the change {np.mean(kept):.1%} survived (at least {min(kept):.1%})." if kept else ".")


def made(sources: Sequence[Checkpoint], found: Mapping[str, Entry], **changes: Any) -> Made:
    """`found` in the order of the schema, with what the first source is; `changes` are fields of `Made`."""
    base = sources[0]
    config, kind = changes.pop("config", base.config), changes.pop("format", base.format)
    tensors = Tensors({name: found[name] for name in shapes(config)})
    return Made(base.path, kind, base.family, config, tensors, base.metadata, tuple(sources), **changes)


def computed(
    name: str, like: Entry, start: Callable[[], tuple[Rows, Rows | None]], shifts: dict[str, Shift] | None
) -> Entry:
    """An entry of `like`'s shape and type. `start` is called for each load: exact rows, and those before a change.

    What storing did is told to `shifts`, if there are any: it takes longer than the work itself.
    """

    def load() -> Array:
        exact, before = start()
        pack = packer()
        pieces = ((cut, numbers, _as(like.type, numbers, pack)) for cut, numbers in steps(like.shape, exact))
        if shifts is None:
            return _joined([stored for _, _, stored in pieces])
        sums = _Sums(before)
        found = _joined([sums.added(cut, stored, numbers) for cut, numbers, stored in pieces])
        shifts[name] = sums.shift(like.type)
        return found

    return Entry(like.shape, like.type, like.nbytes, load)


def _joined(pieces: Sequence[Array]) -> Array:
    if len(pieces) == 1:
        return pieces[0]
    packed = [piece for piece in pieces if isinstance(piece, QTensor)]
    return concatenate(packed) if packed else np.concatenate([np.asarray(piece) for piece in pieces])


def retyped(entry: Entry, kind: str) -> Entry:
    """What an entry of that shape says of itself in another type; `load` is still its own."""
    if entry.type == kind:
        return entry
    rows, columns = math.prod(entry.shape[:-1]), entry.shape[-1]
    width = row_bytes(kind, entry.shape) if kind in BLOCKS else columns * DTYPES[kind].itemsize
    return Entry(entry.shape, kind, rows * width, entry.load)


def steps(shape: tuple[int, ...], rows: Rows) -> Iterable[tuple[slice, np.ndarray]]:
    """All rows, some millions of numbers at a time."""
    step = max(1, STEP // max(1, math.prod(shape[1:])))
    for at in range(0, shape[0], step):
        cut = slice(at, min(at + step, shape[0]))
        yield cut, rows(cut)


def rows_of(array: Array) -> Rows:
    """A tensor's own numbers; packed and mapped ones are unpacked as they are asked for."""
    return lambda cut: wide(array.rows(cut) if isinstance(array, QTensor) else array[cut])


def wide(array: Array) -> np.ndarray:
    """float64 as it is, everything else as float32."""
    if isinstance(array, QTensor):
        return unpacked(array, "F32")
    return array if array.dtype == np.float64 else to_float32(array)


def _as(kind: str, numbers: np.ndarray, pack: Pack) -> Array:
    return pack(numbers.astype(np.float32, copy=False), kind) if kind in BLOCKS else numbers.astype(DTYPES[kind])


class _Sums:
    """What a `Shift` is made of, summed in double while pieces go by."""

    def __init__(self, before: Rows | None):
        self.before = before
        self.largest = self.missed = self.size = self.reached = self.change = 0.0

    def added(self, cut: slice, stored: Array, exact: np.ndarray) -> Array:
        target, found = exact.astype(np.float64), wide(stored).astype(np.float64)
        off = found - target
        self.largest = max(self.largest, float(np.abs(off).max(initial=0.0)))
        self.missed += float(np.vdot(off, off))
        self.size += float(np.vdot(target, target))
        if self.before is not None:
            old = self.before(cut)
            self.reached += float(np.vdot(found - old, target - old))
            self.change += float(np.vdot(target - old, target - old))
        return stored

    def shift(self, kind: str) -> Shift:
        survived = self.reached / self.change if self.change else None
        return Shift(kind, self.largest, math.sqrt(self.missed / self.size) if self.size else 0.0, survived)
