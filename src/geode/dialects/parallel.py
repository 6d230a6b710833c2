"""Tensors split over ranks, as tensor-parallel programs store them, and joined again.

Which tensor is split how is a table of the dialect's; what it means is not known here.

    Cut(axis=0, parts=((6, 2),))                      rows 0-2 | rows 3-5
    Cut(axis=0, parts=((4, 2), (2, 2)))               [gate; up]: rows 0-1, 4 | rows 2-3, 5
    Cut(axis=0, parts=((8, 4), (4, 2)))               four ranks, two pieces: neighbours hold the same one
    WHOLE                                             every rank holds everything
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import TensorError
from ..quant import DTYPES
from ..tensors import Entry, Tensors


@dataclass(frozen=True)
class Cut:
    """How one tensor is split: along `axis` lie `parts`, each of a length and cut into so many pieces."""

    axis: int = 0
    parts: tuple[tuple[int, int], ...] = ()

    def slices(self, rank: int, ranks: int) -> list[slice]:
        """What of the whole tensor a rank holds, one slice a part."""
        found, begin = [], 0
        for length, pieces in self.parts:
            step = length // pieces
            at = begin + rank * pieces // ranks * step
            found.append(slice(at, at + step))
            begin += length
        return found

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of each rank's piece."""
        if not self.parts:
            return whole
        mine = sum(length // pieces for length, pieces in self.parts)
        return (*whole[: self.axis], mine, *whole[self.axis + 1 :])


WHOLE = Cut()


def even(length: int, ranks: int, axis: int = 0) -> Cut:
    """Equal pieces, one a rank."""
    return Cut(axis, ((length, ranks),)) if ranks > 1 else WHOLE


def cut(tensors: Tensors, cuts: Mapping[str, Cut], rank: int, ranks: int) -> Tensors:
    """The tensors of one rank, still lazy; what `cuts` does not name is whole."""
    return Tensors({name: _piece(entry, cuts.get(name, WHOLE), rank, ranks) for name, entry in tensors.entries.items()})


def _piece(entry: Entry, how: Cut, rank: int, ranks: int) -> Entry:
    if not how.parts:
        return entry
    slices = [(slice(None),) * how.axis + (part,) for part in how.slices(rank, ranks)]
    shape = how.shape(entry.shape)

    def load() -> np.ndarray:
        whole = np.asarray(entry.load())
        return np.concatenate([whole[part] for part in slices], how.axis)

    return Entry(shape, entry.type, math.prod(shape) * DTYPES[entry.type].itemsize, load)


def joined(ranks: Sequence[Tensors], cuts: Mapping[str, Cut]) -> Tensors:
    """Whole tensors over those of all ranks, still lazy. Raises TensorError where ranks disagree."""
    names = set(ranks[0].entries)
    for rank, tensors in enumerate(ranks):
        if odd := names ^ set(tensors.entries):
            raise TensorError(
                f"Rank {rank} and rank 0 do not hold the same tensors: {', '.join(sorted(odd)[:4])} differ."
            )
    return Tensors({name: _joined(name, ranks, cuts.get(name, WHOLE)) for name in ranks[0].entries})


def _joined(name: str, ranks: Sequence[Tensors], how: Cut) -> Entry:
    entries = [tensors.entries[name] for tensors in ranks]
    if not how.parts:
        return entries[0]
    first = entries[0]
    if any((entry.shape, entry.type) != (first.shape, first.type) for entry in entries):
        raise TensorError(f"The ranks hold pieces of different shape or type of {name}; are they of one checkpoint?")
    expected = sum(length // pieces for length, pieces in how.parts)
    if len(first.shape) <= how.axis or first.shape[how.axis] != expected:
        raise TensorError(
            f"Each of {len(ranks)} ranks should hold {expected} entries of {name}; shape {first.shape} came."
        )
    whole = sum(length for length, _ in how.parts)
    shape = (*first.shape[: how.axis], whole, *first.shape[how.axis + 1 :])

    def load() -> np.ndarray:
        made = np.empty(shape, DTYPES[first.type])
        before = (slice(None),) * how.axis
        for rank, entry in enumerate(entries):
            pieces = _apart(np.asarray(entry.load()), how)
            for part, piece in zip(how.slices(rank, len(entries)), pieces, strict=True):
                made[(*before, part)] = piece
        return made

    return Entry(shape, first.type, math.prod(shape) * DTYPES[first.type].itemsize, load)


def _apart(array: np.ndarray, how: Cut) -> list[np.ndarray]:
    """A rank's array as its parts."""
    ends = np.cumsum([length // pieces for length, pieces in how.parts])[:-1]
    return np.split(array, ends, how.axis)
