"""Low-rank changes beside a matrix that stays as it is: LoRA, rsLoRA and DoRA, on whatever the matrix is kept in.

What is adapted is chosen elsewhere; how the base keeps its numbers is `storage`'s to know.

    W x + scale · B (A x)                                    arxiv.org/abs/2106.09685
    magnitude / |W + scale · B A| · (W x + scale · B (A x))  arxiv.org/abs/2402.09353

The lengths of rows are no path of gradients.

Shape letters: D columns, E rows of the matrix; R rank.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from ..errors import OptionError
from . import backend
from .backend import Tensor
from .storage import Matrix, Part

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


class LowRank(Part):
    """A matrix with a pair beside it: `a` (R, D) and `b` (E, R), float32, and with DoRA a `magnitude` (E,)."""

    def __init__(self, base: Matrix, name: str, shape: tuple[int, int], rank: int, scale: float, dora: bool, seed: int):
        super().__init__()
        self.base, self.scale = base, scale
        rows, columns = shape
        self.a = self.variable(f"{name}.lora_a", first(name, rank, columns, seed), "float32")
        self.b = self.variable(f"{name}.lora_b", np.zeros((rows, rank), np.float32), "float32")
        self.magnitude: Any = None
        self.length: Any = None
        if dora:
            squares = backend.to_numpy(base.squares())
            self.length = self.variable(f"{name}.squares", squares, "float32", trainable=False)
            self.magnitude = self.variable(f"{name}.lora_magnitude", np.sqrt(squares), "float32")

    def product(self, x: Tensor, bias_E: Tensor | None = None) -> Tensor:
        """x (..., D) -> the changed matrix's product (..., E)."""
        y = backend.add_product(self.base.product(x), self._low(x), self.b.value)
        if self.magnitude is not None:
            y = y * backend.cast(self.magnitude.value / self._lengths(), y.dtype)
        return y if bias_E is None else y + backend.cast(bias_E, y.dtype)

    def rows(self, indices: Tensor) -> Tensor:
        """The rows of these numbers (...) -> (..., D)."""
        rows = self.base.rows(indices)
        low = backend.cast(ops.take(self.b.value, indices, axis=0) * self.scale, rows.dtype)
        return rows + ops.matmul(low, backend.cast(self.a.value, rows.dtype))

    def factors(self, x: Tensor) -> list[tuple[Tensor, Any]]:
        """Pairs whose products add up to `product(x)`."""
        return [*self.base.factors(x), (self._low(x), Columns(self.b))]

    def _low(self, x: Tensor) -> Tensor:
        """scale · A x: (..., R)."""
        return backend.linear(x, backend.cast(self.a.value, x.dtype)) * self.scale

    def _lengths(self) -> Tensor:
        """The lengths of the rows of W + scale · B A, from |W|², W Aᵀ and A Aᵀ; float32 (E,)."""
        a, b = ops.stop_gradient(self.a.value), ops.stop_gradient(self.b.value)
        mixed_ER = ops.transpose(backend.cast(self.base.product(a), "float32"))
        own_ER = ops.matmul(b, ops.matmul(a, ops.transpose(a)))
        squares = self.length.value + ops.sum(b * (2 * self.scale * mixed_ER + self.scale**2 * own_ER), axis=-1)
        return ops.stop_gradient(ops.sqrt(ops.maximum(squares, 1e-24)))


class Columns:
    """A trained variable (E, R) as a factor of the head: `storage.Floats` without a layer."""

    def __init__(self, variable: Any):
        self.weight = variable

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """What `cut` cuts from."""
        return (backend.read(self.weight),)

    def cut(self, arrays: Sequence[Tensor], start: Any, size: int) -> Tensor:
        """`size` rows (size, R)."""
        return backend.rows(arrays[0], start, size)


def first(name: str, rank: int, columns: int, seed: int) -> np.ndarray:
    """A before the first step: uniform within ±1/√D, as PEFT has it; the same numbers on every framework."""
    random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    most = 1 / math.sqrt(columns)
    return random.uniform(-most, most, (rank, columns)).astype(np.float32)


def attach(
    decoder: Any, names: Sequence[str], *, rank: int, scale: float, dora: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Puts a pair beside each named matrix of a decoder; the variables of all pairs, by "{name}.lora_a" and so on.

    Raises OptionError where one cannot be adapted so.
    """
    found: dict[str, Any] = {}
    for name in names:
        if dora and name in (EMBEDDING, HEAD):
            raise OptionError(
                f"DoRA is for matrices inside blocks; {name} was chosen. Leave it out, or train it whole."
            )
        holder, shape = decoder.store.holders[name], decoder.store.shapes[name]
        low = LowRank(holder.weight, name, shape, rank, scale, dora, seed)
        holder.weight = low
        kinds = {"lora_a": low.a, "lora_b": low.b, "magnitude": low.magnitude}
        found |= {f"{name}.{kind}": variable for kind, variable in kinds.items() if variable is not None}
    return found


def freeze(decoder: Any, but: Sequence[str] = ()) -> dict[str, Any]:
    """Makes every tensor of a decoder untrained but these; their variables, by name."""
    for name, variable in decoder.store.variables.items():
        variable.trainable = name in but
    return {name: decoder.store.variables[name] for name in but}
