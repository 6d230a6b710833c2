"""Linear, Norm and Embedding: the parts that own weights.

Names and shapes of weights come from `tensors.shapes`; a part whose tensor is not in that schema has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from ..config import Config
from ..config import Norm as NormKind
from ..tensors import shapes
from . import backend
from .backend import Tensor

Fetch = Callable[[str], np.ndarray]  # a canonical name -> its float32 array


class Store:
    """Where parts get their weights from: the schema, the arrays, and the dtype to hold them in."""

    def __init__(self, config: Config, fetch: Fetch, dtype: str):
        self.shapes = shapes(config)
        self.fetch = fetch
        self.dtype = dtype


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
        kind = dtype or store.dtype
        return self.add_weight(
            name=name.replace(".", "_"),
            shape=store.shapes[name],
            dtype=kind,
            initializer=lambda shape, dtype=None: backend.tensor(store.fetch(name), kind),
        )


class Linear(Part):
    """x (..., D) -> x · weightᵀ + bias (..., E): the one seam for storage, adapters and sharding."""

    def __init__(self, store: Store, name: str):
        super().__init__()
        self.weight = self.weight_from(store, f"{name}.weight")
        self.bias = self.weight_from(store, f"{name}.bias")

    def call(self, x: Tensor) -> Tensor:
        return backend.linear(x, self.weight.value, None if self.bias is None else self.bias.value)


class Norm(Part):
    """RMS or layer norm over the last axis, statistics in float32 whatever comes in."""

    def __init__(self, store: Store, name: str, kind: NormKind):
        super().__init__()
        self.kind = kind
        self.weight = self.weight_from(store, f"{name}.weight", "float32")
        self.bias = self.weight_from(store, f"{name}.bias", "float32")

    def call(self, x: Tensor) -> Tensor:
        h = backend.standardise(backend.cast(x, "float32"), self.kind.eps, self.kind.kind == "layer")
        if self.weight is None:
            return backend.cast(h, x.dtype)
        if self.kind.cast_first:
            return backend.cast(h, x.dtype) * backend.cast(self.weight.value, x.dtype)
        h = h * self.weight.value
        return backend.cast(h if self.bias is None else h + self.bias.value, x.dtype)


class Embedding(Part):
    """Token ids (B, T) -> rows (B, T, D), scaled where the network asks for it; `head` is the way back when tied."""

    def __init__(self, store: Store, config: Config):
        super().__init__()
        self.weight = self.weight_from(store, "token_embd.weight")
        self.scale = float(config.width) ** 0.5 if config.scale_embedding else None

    def call(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = ops.take(self.weight.value, tokens_BT, axis=0)
        if self.scale is None:
            return x_BTD
        # The factor is rounded to the activation's dtype first: 55.43 is 55.5 in bfloat16. unsloth.ai/blog/gemma-bugs
        return x_BTD * ops.cast(self.scale, x_BTD.dtype)

    def head(self, x: Tensor) -> Tensor:
        return backend.linear(x, self.weight.value, None)
