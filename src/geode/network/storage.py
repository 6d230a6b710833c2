"""What weights are kept in: floats, int8 or int4, one face for all: `product` and `rows`.

Names and shapes come from `tensors.shapes`, what an integer means from `integers`; layers are not known here.

Shape letters: D columns, E rows of a matrix; G groups of 32 columns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from ..config import Config
from ..integers import GROUP, plan, to_int4, to_int8
from ..tensors import Array, shapes
from . import backend, digits
from .backend import Tensor

Fetch = Callable[[str], Array]  # a canonical name -> its array, packed or not


class Store:
    """Where parts get their weights from: the schema, the arrays, and what to hold them in."""

    def __init__(
        self,
        config: Config,
        fetch: Fetch,
        dtype: str,
        quantize: str | None = None,
        wide: Collection[str] = (),
    ):
        self.wide = wide
        self.shapes = shapes(config)
        self.fetch = fetch
        self.dtype = dtype
        self.kinds = {} if quantize is None else plan(config, quantize)
        self.variables: dict[str, Any] = {}  # canonical name -> the variable that holds its floats
        self.holders: dict[str, Part] = {}  # canonical name of a matrix -> the part whose `weight` it is

    def type_of(self, name: str, dtype: str | None = None) -> str:
        """What a tensor is held in: float32 where `wide` names it, else `dtype`, else the network's own."""
        return "float32" if name in self.wide else dtype or self.dtype

    def matrix(self, name: str, holder: Part) -> Floats | Int8 | Int4:
        """The matrix of a canonical name, kept as it should be, for `holder.weight`."""
        self.holders[name] = holder
        return {"int8": Int8, "int4": Int4}.get(self.kinds.get(name, ""), Floats)(self, name)


class Part(keras.layers.Layer):
    """A Keras layer for its weights' sake, called directly: Keras's bookkeeping around `call` costs more than a norm.

    It knows no masks, no autocasting, no symbolic building.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.built = True

    def __call__(self, *inputs: Any) -> Any:
        return self.call(*inputs)

    def weight_from(self, store: Store, name: str, dtype: str | None = None) -> Any:
        """The variable of a canonical name; None when the schema has no such tensor."""
        if name not in store.shapes:
            return None
        store.variables[name] = self.variable(name, store.fetch(name), store.type_of(name, dtype))
        return store.variables[name]

    def variable(self, name: str, array: Array, dtype: str, trainable: bool = True) -> Any:
        """A variable with these numbers."""
        return self.add_weight(
            name=name.replace(".", "_"),
            shape=array.shape,
            dtype=dtype,
            trainable=trainable,
            initializer=lambda shape, dtype=None: backend.tensor(array, dtype),
        )


class Floats(Part):
    """A matrix in the network's own dtype."""

    def __init__(self, store: Store, name: str):
        super().__init__()
        self.weight = self.weight_from(store, name)

    def product(self, x: Tensor, bias_E: Tensor | None = None) -> Tensor:
        """x (..., D) -> x · weightᵀ + bias (..., E)."""
        return backend.linear(x, self.weight.value, bias_E)

    def rows(self, indices: Tensor) -> Tensor:
        """The rows of these numbers (...) -> (..., D)."""
        return ops.take(self.weight.value, indices, axis=0)

    def factors(self, x: Tensor) -> list[tuple[Tensor, Matrix]]:
        """Pairs whose products add up to `product(x)`."""
        return [(x, self)]

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """What `cut` cuts from."""
        return (backend.read(self.weight),)

    def cut(self, arrays: Sequence[Tensor], start: Any, size: int) -> Tensor:
        """`size` rows as floats (size, D)."""
        return backend.rows(arrays[0], start, size)

    def squares(self) -> Tensor:
        """The sum of squares of each row: float32 (E,)."""
        return ops.sum(ops.square(backend.cast(self.weight.value, "float32")), axis=-1)


class Integers(Part):
    """A matrix as integers `q` and their scales, neither of them trained. Gradients flow through x, and of the floats
    that a product may make nothing is kept for them."""

    def __init__(self, store: Store, name: str, q: np.ndarray, scale: np.ndarray):
        super().__init__()
        self.kind = store.dtype
        self.q = self.variable(f"{name}.q", q, q.dtype.name, trainable=False)
        self.scale = self.variable(f"{name}.scale", scale, scale.dtype.name, trainable=False)

    def product(self, x: Tensor, bias_E: Tensor | None = None) -> Tensor:
        """x (..., D) -> x · weightᵀ + bias (..., E)."""
        q, scale = self.q.value, self.scale.value  # widened inside: what a closure makes outside leaks from JAX's remat
        wide = partial(backend.cast, scale, "float32")
        y = backend.with_gradient(x, lambda x: self.forward(x, q, wide()), lambda dy: self.backward(dy, q, wide()))
        return y if bias_E is None else y + bias_E

    def factors(self, x: Tensor) -> list[tuple[Tensor, Matrix]]:
        """Pairs whose products add up to `product(x)`."""
        return [(x, self)]

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """What `cut` cuts from."""
        return backend.read(self.q), backend.read(self.scale)

    def squares(self) -> Tensor:
        """The sum of squares of each row: float32 (E,)."""
        cuts = (self.cut(self.arrays, start, size) for start, size in pieces(self.q.shape[0]))
        return ops.concatenate([ops.sum(ops.square(backend.cast(cut, "float32")), axis=-1) for cut in cuts])


class Int8(Integers):
    """One scale a row, so the scales come after the product: x · qᵀ · scale."""

    def __init__(self, store: Store, name: str):
        super().__init__(store, name, *to_int8(store.fetch(name)))

    def forward(self, x: Tensor, q_ED: Tensor, scale_E: Tensor) -> Tensor:
        y = digits.product(x, q_ED)
        y = backend.linear_int8(x, q_ED) if y is None else y
        return backend.cast(backend.cast(y, "float32") * scale_E, x.dtype)

    def backward(self, dy: Tensor, q_ED: Tensor, scale_E: Tensor) -> Tensor:
        scaled = backend.cast(dy, "float32") * scale_E
        q_ED = backend.after(dy, backend.cast(q_ED, "float32"))
        return backend.linear(backend.cast(scaled, dy.dtype), ops.transpose(q_ED))

    def rows(self, indices: Tensor) -> Tensor:
        """The rows of these numbers (...) -> (..., D)."""
        q, scale = (ops.take(kept.value, indices, axis=0) for kept in (self.q, self.scale))
        return backend.cast(backend.cast(q, "float32") * scale[..., None], self.kind)

    def cut(self, arrays: Sequence[Tensor], start: Any, size: int) -> Tensor:
        """`size` rows as floats (size, D)."""
        q, scale = (backend.rows(kept, start, size) for kept in arrays)
        return backend.cast(backend.cast(q, "float32") * scale[..., None], self.kind)


class Int4(Integers):
    """One scale a group. The low and the high halves of the bytes are two matrices, each for half of x's channels; only
    one matrix's floats are there at a time."""

    def __init__(self, store: Store, name: str):
        super().__init__(store, name, *to_int4(store.fetch(name)))
        self.columns = store.shapes[name][1]

    def forward(self, x: Tensor, q: Tensor, scale_EG: Tensor) -> Tensor:
        lead, groups = tuple(x.shape[:-1]), scale_EG.shape[1]
        if missing := groups * GROUP - self.columns:
            x = ops.pad(x, [(0, 0)] * len(lead) + [(0, missing)])
        x = ops.reshape(x, (*lead, groups, 2, GROUP // 2))
        low, high = (ops.reshape(x[..., i, :], (*lead, -1)) for i in (0, 1))
        low_ED, high_ED = _halves(q, backend.after(x, scale_EG))
        return backend.linear(low, low_ED) + backend.linear(high, high_ED)

    def backward(self, dy: Tensor, q: Tensor, scale_EG: Tensor) -> Tensor:
        lead, groups = tuple(dy.shape[:-1]), scale_EG.shape[1]
        halves = [backend.linear(dy, ops.transpose(half_ED)) for half_ED in _halves(q, backend.after(dy, scale_EG))]
        dx = ops.stack([ops.reshape(half, (*lead, groups, GROUP // 2)) for half in halves], axis=-2)
        return ops.reshape(dx, (*lead, groups * GROUP))[..., : self.columns]

    def cut(self, arrays: Sequence[Tensor], start: Any, size: int) -> Tensor:
        """`size` rows as floats (size, D)."""
        q, scale_EG = (backend.rows(kept, start, size) for kept in arrays)
        low, high = _halves(q, backend.cast(scale_EG, "float32"))
        groups = [ops.reshape(half, (*scale_EG.shape, GROUP // 2)) for half in (low, high)]
        whole = ops.reshape(ops.concatenate(groups, axis=-1), (size, -1))
        return backend.cast(whole[:, : self.columns], self.kind)


Matrix = Floats | Int8 | Int4


def pieces(count: int, most: int = 4096) -> list[tuple[int, int]]:
    """Start and size of consecutive pieces of `count` rows."""
    return [(start, min(most, count - start)) for start in range(0, count, most)]


def _halves(q: Tensor, scale_EG: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of the low and of the high four bits, each float32 (E, 16·G)."""
    halves = backend.halves(ops.reshape(q, (*scale_EG.shape, GROUP // 2)), scale_EG[..., None])
    low, high = (ops.reshape(half, q.shape) for half in halves)
    return low, high
