"""What a network is: its mathematics and nothing else.

No model names, dtypes, devices, files or cache lengths are known here.

    one block, by `block`            (n = norm of that slot)

    pre              x + attn(n(x))                       then  x + ffn(n(x))
    post             x + n(attn(x))                       then  x + n(ffn(x))
    sandwich         x + n(attn(n(x)))                    then  x + n(ffn(n(x)))
    parallel         x + attn(n1(x)) + ffn(n2(x))
    parallel_shared  x + attn(n(x))  + ffn(n(x))
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Block = Literal["pre", "post", "sandwich", "parallel", "parallel_shared"]
Activation = Literal["silu", "gelu", "gelu_tanh"]
QKNorm = Literal["none", "shared", "per_head", "whole"]


@dataclass(frozen=True)
class Stretch:
    """Positions divided by `factor`. arxiv.org/abs/2306.15595"""

    factor: float

    def apply(self, inverse: np.ndarray, rope: Rope, dims: int) -> np.ndarray:
        return inverse / np.float32(self.factor)


@dataclass(frozen=True)
class Bands:
    """Long waves stretched, short ones kept, a linear ramp between (Llama 3.1's rule).

    github.com/meta-llama/llama-models models/llama3/model.py `apply_scaling`
    """

    factor: float
    low: float
    high: float
    original_context: int

    def apply(self, inverse: np.ndarray, rope: Rope, dims: int) -> np.ndarray:
        wavelength = 2 * math.pi / inverse
        ramp = (self.original_context / wavelength - self.low) / (self.high - self.low)
        mixed = (1 - ramp) * inverse / self.factor + ramp * inverse
        stretched = np.where(wavelength > self.original_context / self.low, inverse / self.factor, mixed)
        return np.where(wavelength < self.original_context / self.high, inverse, stretched).astype(np.float32)


@dataclass(frozen=True)
class Yarn:
    """Interpolation by wavelength with a warmer softmax. arxiv.org/abs/2309.00071

    `attention` multiplies cos and sin; None means 0.1·ln(factor) + 1.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention: float | None = None
    truncate: bool = True

    def apply(self, inverse: np.ndarray, rope: Rope, dims: int) -> np.ndarray:
        def dimension(rotations: float) -> float:
            turns = self.original_context / (rotations * 2 * math.pi)
            return dims * math.log(turns) / (2 * math.log(rope.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dims - 1)
        span = (high - low) or 0.001
        ramp = np.clip((np.arange(dims // 2, dtype=np.float32) - low) / span, 0, 1)
        return np.asarray(inverse / self.factor * ramp + inverse * (1 - ramp), np.float32)


@dataclass(frozen=True)
class Factors:
    """One divisor for each rotated pair, as GGUF files spell every other rule."""

    values: tuple[float, ...]

    def apply(self, inverse: np.ndarray, rope: Rope, dims: int) -> np.ndarray:
        return inverse / np.asarray(self.values, np.float32)


Scaling = Stretch | Bands | Yarn | Factors


@dataclass(frozen=True)
class Rope:
    """Rotary positions over the first `fraction` of each head, channels paired half against half."""

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: Scaling | None = None

    def dims(self, head_dim: int) -> int:
        """Channels of a head that rotate."""
        return int(head_dim * self.fraction)

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians per position of each pair: float32 (dims // 2,)."""
        dims = self.dims(head_dim)
        exponent = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
        # The power in double and its inverse in single: what a correctly rounded float32 power gives.
        inverse = np.float32(1.0) / np.power(np.float64(self.theta), exponent.astype(np.float64)).astype(np.float32)
        if self.scaling is not None:
            inverse = self.scaling.apply(inverse, self, dims)
        return np.asarray(inverse, np.float32)

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied by (1 for every rule but YaRN)."""
        if not isinstance(self.scaling, Yarn):
            return 1.0
        if self.scaling.attention is not None:
            return self.scaling.attention
        return 0.1 * math.log(self.scaling.factor) + 1.0 if self.scaling.factor > 1 else 1.0


@dataclass(frozen=True)
class Attn:
    """What one layer's attention sees: `window` counts the token itself; None sees all before it."""

    window: int | None = None
    rope: Rope = Rope()

    def same(self, other: Attn, head_dim: int) -> bool:
        """Whether both see as far and rotate by the same angles, to the rounding of float32."""
        ours, theirs = (layer.rope.frequencies(head_dim) for layer in (self, other))
        return (
            self.window == other.window
            and ours.shape == theirs.shape
            and np.allclose(ours, theirs, rtol=1e-6, atol=0)
            and math.isclose(self.rope.magnitude, other.rope.magnitude, rel_tol=1e-6)
        )


@dataclass(frozen=True)
class Norm:
    """`rms`: x / rms(x) · w.  `layer`: (x - mean) / std · w + b.  Statistics in float32, always.

    `cast_first`: the normalised value is rounded to the activation's dtype before it meets the weight
    (Llama's order); otherwise weight and value meet in float32 (Gemma's and OLMo 2's).
    """

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    weight: bool = True
    bias: bool = False
    cast_first: bool = False


@dataclass(frozen=True)
class Config:
    """One decoder-only network. Widths are in channels, `context` in tokens."""

    vocab: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    pattern: tuple[Attn, ...] = (Attn(),)  # cycled over the layers
    block: Block = "pre"
    norm: Norm = Norm()
    qk_norm: QKNorm = "none"  # shared: (head_dim,); per_head: (heads, head_dim); whole: (heads * head_dim,)
    activation: Activation = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    query_scalar: float | None = None  # scores are divided by its square root; None: head_dim
    attn_softcap: float | None = None  # tanh(score / cap) * cap, before the mask
    final_softcap: float | None = None
    clip_qkv: float | None = None
    scale_embedding: bool = False  # by sqrt(width), rounded in the activation's dtype
    tied: bool = False

    @property
    def scale(self) -> float:
        """Multiplier of every query-key product."""
        return float((self.query_scalar or self.head_dim) ** -0.5)

    @property
    def layers(self) -> tuple[Attn, ...]:
        """The attention of each layer: the pattern, cycled to `depth`."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.depth))

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    def same(self, other: Config) -> bool:
        """Whether both are the same mathematics: equal fields, and layers that see and rotate alike, however spelt."""
        if dataclasses.replace(self, pattern=()) != dataclasses.replace(other, pattern=()):
            return False
        pairs = set(zip(self.layers, other.layers, strict=True))
        return all(one == two or one.same(two, self.head_dim) for one, two in pairs)

    def kv_bytes(self, tokens: int, itemsize: int = 2) -> int:
        """Bytes that keys and values of one sequence of `tokens` take; windowed layers stop at their window."""
        kept = sum(min(tokens, layer.window or tokens) for layer in self.layers)
        return 2 * kept * self.kv_width * itemsize

    def replace(self, **changes: object) -> Config:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
