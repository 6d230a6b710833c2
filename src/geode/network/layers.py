"""Linear, Norm and Embedding: the parts that own weights.

How weights are kept is `storage`'s to know; a part whose tensor is not in the schema has none.
"""

from __future__ import annotations

from keras import ops

from ..config import Config
from ..config import Norm as NormKind
from . import backend
from .backend import Tensor
from .storage import Part, Store


class Linear(Part):
    """x (..., D) -> x · weightᵀ + bias (..., E): the one seam for storage, adapters and sharding."""

    def __init__(self, store: Store, name: str):
        super().__init__()
        self.weight = store.matrix(f"{name}.weight", self)
        self.bias = self.weight_from(store, f"{name}.bias")

    def call(self, x: Tensor) -> Tensor:
        return self.weight.product(x, None if self.bias is None else self.bias.value)


class Norm(Part):
    """RMS or layer norm over the last axis, statistics in float32 whatever comes in."""

    def __init__(self, store: Store, name: str, kind: NormKind):
        super().__init__()
        self.kind = kind
        self.weight = self.weight_from(store, f"{name}.weight", "float32")
        self.bias = self.weight_from(store, f"{name}.bias", "float32")

    def call(self, x: Tensor) -> Tensor:
        if self.weight is not None and self.bias is None and self.kind.kind == "rms" and backend.trains_eagerly():
            return backend.rms(x, self.weight.value, self.kind.eps, self.kind.cast_first)
        h = backend.standardise(backend.cast(x, "float32"), self.kind.eps, self.kind.kind == "layer")
        if self.weight is None:
            return backend.cast(h, x.dtype)
        if self.kind.cast_first:
            return backend.cast(h, x.dtype) * backend.cast(self.weight.value, x.dtype)
        h = h * self.weight.value
        return backend.cast(h if self.bias is None else h + self.bias.value, x.dtype)


class Embedding(Part):
    """Token ids (B, T) -> rows (B, T, D), scaled where the network asks for it; `head` is the way back when tied."""

    def __init__(self, store: Store, config: Config, compute: str):
        super().__init__()
        self.compute = compute
        self.weight = store.matrix("token_embd.weight", self)
        self.scale = float(config.width) ** 0.5 if config.scale_embedding else None

    def call(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = backend.cast(self.weight.rows(tokens_BT), self.compute)
        if self.scale is None:
            return x_BTD
        # The factor is rounded to the activation's dtype first: 55.43 is 55.5 in bfloat16. unsloth.ai/blog/gemma-bugs
        return x_BTD * ops.cast(self.scale, x_BTD.dtype)

    def head(self, x: Tensor) -> Tensor:
        return self.weight.product(x)
