"""What can lie between a tensor of ours and one of theirs: pairs of pure functions, each the other's inverse.

Names are not known here, nor which dialect needs what. `forward` makes ours of theirs, `inverse` theirs of ours, and
`shapes` tells theirs from ours without reading anything. Only the first three take packed tensors.

    Rows       rows in another order            Transpose   axes in another order
    Split      one cut along an axis            Reshape     the same numbers, other axes
    Stack      several as one with a new axis   Padded      rows of zeros at the end, which ours are without
    AddOne     a norm as distance from one      Scale       multiplied by a constant
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import TensorError
from ..quant import QTensor, concatenate, to_float32
from ..tensors import Array

Shape = tuple[int, ...]


class Op(Protocol):
    """A pair of pure functions on lists of arrays, each the other's inverse."""

    @property
    def widens(self) -> bool: ...  # numbers are computed, in float64, and not only moved

    def forward(self, arrays: list[Array]) -> list[Array]: ...

    def inverse(self, arrays: list[Array]) -> list[Array]: ...

    def shapes(self, ours: list[Shape]) -> list[Shape]: ...


class Moves:
    """An op that moves numbers one array at a time and leaves their shape alone, unless it says otherwise."""

    widens = False

    def shapes(self, ours: list[Shape]) -> list[Shape]:
        return ours


@dataclass(frozen=True)
class Rows(Moves):
    """Rows in another order: `ours = theirs[index]`. Whole rows move, so quantised tensors stay in their bits."""

    index: tuple[int, ...]

    def forward(self, arrays: list[Array]) -> list[Array]:
        return [take_rows(array, np.asarray(self.index)) for array in arrays]

    def inverse(self, arrays: list[Array]) -> list[Array]:
        return [take_rows(array, np.argsort(self.index)) for array in arrays]


@dataclass(frozen=True)
class Split(Moves):
    """One array cut along an axis into several of the given lengths. Packed tensors can be cut along their rows."""

    lengths: tuple[int, ...]
    axis: int = 0

    def forward(self, arrays: list[Array]) -> list[Array]:
        (whole,) = arrays
        if whole.shape[self.axis] != sum(self.lengths):
            raise TensorError(
                f"A fused tensor has {whole.shape[self.axis]} entries along axis {self.axis}; "
                f"{' + '.join(map(str, self.lengths))} were expected."
            )
        ends = np.cumsum(self.lengths)
        cuts = [slice(int(end - length), int(end)) for end, length in zip(ends, self.lengths, strict=True)]
        if self.axis == 0:
            return [take_rows(whole, cut) for cut in cuts]
        before = (slice(None),) * self.axis
        return [np.asarray(whole)[(*before, cut)] for cut in cuts]

    def inverse(self, arrays: list[Array]) -> list[Array]:
        quantised = [array for array in arrays if isinstance(array, QTensor)]
        if len(quantised) == len(arrays) and len({array.type for array in quantised}) == 1 and self.axis == 0:
            return [concatenate(quantised)]
        if quantised or len({array.dtype for array in arrays if isinstance(array, np.ndarray)}) > 1:
            return [np.concatenate([to_float32(array) for array in arrays], self.axis)]
        return [np.concatenate([np.asarray(array) for array in arrays], self.axis)]

    def shapes(self, ours: list[Shape]) -> list[Shape]:
        return [(*ours[0][: self.axis], sum(self.lengths), *ours[0][self.axis + 1 :])]


@dataclass(frozen=True)
class Stack(Moves):
    """Several arrays of theirs as one of ours with a new axis; `Unstack` is the other way round."""

    count: int
    axis: int = 0

    def forward(self, arrays: list[Array]) -> list[Array]:
        return [np.stack([np.asarray(array) for array in arrays], self.axis)]

    def inverse(self, arrays: list[Array]) -> list[Array]:
        return list(np.moveaxis(np.asarray(arrays[0]), self.axis, 0))

    def shapes(self, ours: list[Shape]) -> list[Shape]:
        axis = self.axis % len(ours[0])
        return [(*ours[0][:axis], *ours[0][axis + 1 :])] * self.count


@dataclass(frozen=True)
class Unstack(Moves):
    """One array of theirs, cut along an axis that then goes: layers scanned together, or gate and up."""

    count: int
    axis: int = 0

    def forward(self, arrays: list[Array]) -> list[Array]:
        return list(np.moveaxis(np.asarray(arrays[0]), self.axis, 0))

    def inverse(self, arrays: list[Array]) -> list[Array]:
        return [np.stack([np.asarray(array) for array in arrays], self.axis)]

    def shapes(self, ours: list[Shape]) -> list[Shape]:
        axis = self.axis % (len(ours[0]) + 1)
        return [(*ours[0][:axis], self.count, *ours[0][axis:])]


@dataclass(frozen=True)
class Transpose(Moves):
    """Axes in another order: `ours = theirs.transpose(axes)`; without axes all are turned round."""

    axes: tuple[int, ...] | None = None

    def forward(self, arrays: list[Array]) -> list[Array]:
        return [np.asarray(array).transpose(self.axes) for array in arrays]

    def inverse(self, arrays: list[Array]) -> list[Array]:
        return [np.asarray(array).transpose(self._back(array.ndim)) for array in arrays]

    def shapes(self, ours: list[Shape]) -> list[Shape]:
        return [tuple(shape[axis] for axis in self._back(len(shape))) for shape in ours]

    def _back(self, ndim: int) -> Sequence[int]:
        return range(ndim)[::-1] if self.axes is None else [self.axes.index(axis) for axis in range(ndim)]


@dataclass(frozen=True)
class Reshape(Moves):
    """The same numbers in the same order, with other axes on their side."""

    theirs: Shape
    ours: Shape

    def forward(self, arrays: list[Array]) -> list[Array]:
        return [np.asarray(array).reshape(self.ours) for array in arrays]

    def inverse(self, arrays: list[Array]) -> list[Array]:
        return [np.asarray(array).reshape(self.theirs) for array in arrays]

    def shapes(self, ours: list[Shape]) -> list[Shape]:
        if any(math.prod(shape) != math.prod(self.theirs) for shape in ours):
            raise TensorError(f"Tensors of shape {ours} cannot be read as {self.theirs}: the sizes differ.")
        return [self.theirs] * len(ours)


@dataclass(frozen=True)
class Padded(Moves):
    """Theirs have `rows` rows, zeros after the last of ours, which are `kept`: a vocabulary rounded up."""

    rows: int
    kept: int

    def forward(self, arrays: list[Array]) -> list[Array]:
        return [take_rows(array, slice(0, self.kept)) for array in arrays]

    def inverse(self, arrays: list[Array]) -> list[Array]:
        return [self._filled(np.asarray(array)) for array in arrays]

    def shapes(self, ours: list[Shape]) -> list[Shape]:
        return [(self.rows, *shape[1:]) for shape in ours]

    def _filled(self, array: np.ndarray) -> np.ndarray:
        whole = np.zeros((self.rows, *array.shape[1:]), array.dtype)
        whole[: self.kept] = array
        return whole


class _Computes:
    """An op that changes numbers, in float64, where the result loses no bit of a weight worth storing."""

    widens = True

    def shapes(self, ours: list[Shape]) -> list[Shape]:
        return ours


class AddOne(_Computes):
    """A norm stored as its distance from one."""

    def forward(self, arrays: list[Array]) -> list[Array]:
        return [np.asarray(array).astype(np.float64) + 1.0 for array in arrays]

    def inverse(self, arrays: list[Array]) -> list[Array]:
        return [np.asarray(array).astype(np.float64) - 1.0 for array in arrays]


@dataclass(frozen=True)
class Scale(_Computes):
    """`theirs = ours · factor`: a constant of the network that somebody folds into its weights."""

    factor: float

    def forward(self, arrays: list[Array]) -> list[Array]:
        return [np.asarray(array).astype(np.float64) / self.factor for array in arrays]

    def inverse(self, arrays: list[Array]) -> list[Array]:
        return [np.asarray(array).astype(np.float64) * self.factor for array in arrays]


def take_rows(array: Array, index: np.ndarray | slice) -> Array:
    """Rows of a plain or quantised array."""
    return array.rows(index) if isinstance(array, QTensor) else np.asarray(array)[index]
