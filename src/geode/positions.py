"""Rotary positions and attention windows as Hugging Face and GGUF spell them.

Both spell in many keys what `Config.pattern` says in one: which layer sees how far, and how its heads rotate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import Attn, Bands, Config, Factors, Rope, Scaling, Stretch, Yarn
from .errors import ConfigError
from .keys import Draft, Source

Windowed = Callable[[int, int], bool]  # (layer, depth) -> does this layer have the window?


def everywhere(layer: int, depth: int) -> bool:
    return True


def alternating(layer: int, depth: int) -> bool:
    """Windows on layers 0, 2, 4 …"""
    return layer % 2 == 0


def five_of_six(layer: int, depth: int) -> bool:
    """Every sixth layer sees all."""
    return (layer + 1) % 6 != 0


@dataclass(frozen=True)
class HfPositions:
    """rope_theta, rope_scaling or rope_parameters, sliding_window, layer_types and their relatives."""

    theta: float = 10_000.0
    theta_key: str = "rope_theta"
    fraction: float = 1.0
    fraction_key: str = "partial_rotary_factor"
    windowed: Windowed | None = None  # which layers have the window when layer_types does not say; None: no windows here
    gate: bool = False  # use_sliding_window and max_window_layers decide
    local_theta: float | None = None  # windowed layers rotate by this base of their own, unscaled

    def read(self, source: Source, draft: Draft) -> None:
        parameters = source.take("rope_parameters", {})
        flat = {"rope_theta": source.take(self.theta_key, self.theta)}
        flat |= {"partial_rotary_factor": source.take(self.fraction_key, self.fraction)}
        scaling = source.take("rope_scaling", {})
        if not isinstance(parameters, dict) or not isinstance(scaling, dict):
            raise ConfigError(f"{source.what}: rope_parameters and rope_scaling should be objects.")
        whole, local = self._halves(parameters, source)
        rope = _hf_rope(flat | scaling | whole, draft["context"], source.what)
        near = rope if local is None else _hf_rope(flat | local, draft["context"], source.what)
        window, flags = self._windows(source, draft)
        layers = [Attn(window, near) if flag else Attn(None, rope) for flag in flags]
        draft["pattern"] = shortest_cycle(layers)

    def _halves(self, parameters: dict[str, Any], source: Source) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Rope settings of the layers that see all, and of the windowed ones if theirs differ."""
        local = None
        if self.local_theta is not None:
            local = {"rope_theta": source.take("rope_local_base_freq", self.local_theta)}
        if "full_attention" in parameters or "sliding_attention" in parameters:
            return parameters.get("full_attention") or {}, parameters.get("sliding_attention") or local
        return parameters, local

    def _windows(self, source: Source, draft: Draft) -> tuple[int | None, list[bool]]:
        depth = draft["depth"]
        types = source.take("layer_types")
        if self.windowed is None and not self.gate:
            if types is not None and set(types) != {"full_attention"}:
                raise ConfigError(f"{source.what}: layer_types are {sorted(set(types))}; only full_attention is known.")
            return None, [False] * depth
        window = source.take("sliding_window")
        if self.gate:
            if not source.take("use_sliding_window", False):
                window = None
            start = source.take("max_window_layers", depth)
            flags = [i >= start for i in range(depth)]
        else:
            assert self.windowed is not None
            period = source.take(("sliding_window_pattern", "_sliding_window_pattern"))
            flags = [bool((i + 1) % period) if period else self.windowed(i, depth) for i in range(depth)]
        if types is not None:
            flags = _flags_of_types(types, depth, source.what)
        if window is None:
            return None, [False] * depth if self.local_theta is None else flags
        return int(window), flags

    def write(self, config: Config, out: dict[str, Any]) -> None:
        layers = config.layers
        whole = next((layer.rope for layer in layers if layer.window is None), layers[0].rope)
        out[self.theta_key] = whole.theta
        if whole.fraction != self.fraction or self.fraction != 1.0:
            out[self.fraction_key] = whole.fraction
        if whole.scaling is not None:
            out["rope_scaling"] = _hf_scaling(whole.scaling)
        local = next((layer.rope for layer in layers if layer.window is not None), None)
        if self.local_theta is not None and local is not None:
            out["rope_local_base_freq"] = local.theta
        if self.windowed is None and not self.gate:
            return
        windows = [layer.window for layer in layers]
        out["sliding_window"] = next((window for window in windows if window is not None), None)
        if self.gate:
            out["use_sliding_window"] = out["sliding_window"] is not None
        if self.windowed is not everywhere:
            out["layer_types"] = ["full_attention" if window is None else "sliding_attention" for window in windows]


def _flags_of_types(types: Sequence[str], depth: int, what: str) -> list[bool]:
    known = {"sliding_attention": True, "full_attention": False}
    if len(types) != depth or any(kind not in known for kind in types):
        raise ConfigError(
            f"{what}: layer_types should name {depth} layers as sliding_attention or full_attention; "
            f"it names {len(types)}: {sorted(set(map(str, types)))}."
        )
    return [known[kind] for kind in types]


def _hf_rope(p: dict[str, Any], context: int, what: str) -> Rope:
    kind = p.get("rope_type", p.get("type", "default"))
    make = _HF_SCALINGS.get(kind)
    if make is None:
        raise ConfigError(f"{what}: rope type {kind!r}; known are {', '.join(_HF_SCALINGS)}.")
    try:
        scaling = make(p, context)
    except KeyError as lacking:
        raise ConfigError(f"{what}: rope type {kind!r} needs the key {lacking}, which is absent.") from None
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_SCALING_KEYS}
    if unknown := sorted(set(p) - known):
        raise ConfigError(f"{what}: rope parameters that are not handled: {', '.join(unknown)}.")
    return Rope(float(p["rope_theta"]), float(p["partial_rotary_factor"]), scaling)


def _hf_bands(p: dict[str, Any], context: int) -> Scaling:
    original = p.get("original_max_position_embeddings", context)
    return Bands(float(p["factor"]), float(p["low_freq_factor"]), float(p["high_freq_factor"]), int(original))


def _hf_yarn(p: dict[str, Any], context: int) -> Scaling:
    original = int(p.get("original_max_position_embeddings") or context)
    factor = float(p.get("factor") or context / original)
    attention = p.get("attention_factor")
    if attention is None and p.get("mscale") and p.get("mscale_all_dim"):
        attention = _warmth(factor, p["mscale"]) / _warmth(factor, p["mscale_all_dim"])
    fast, slow = float(p.get("beta_fast") or 32), float(p.get("beta_slow") or 1)
    return Yarn(factor, original, fast, slow, attention, bool(p.get("truncate", True)))


def _warmth(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


_HF_SCALINGS: dict[str, Callable[[dict[str, Any], int], Scaling | None]] = {
    "default": lambda p, context: None,
    "linear": lambda p, context: Stretch(float(p["factor"])),
    "llama3": _hf_bands,
    "yarn": _hf_yarn,
}
_SCALING_KEYS = (
    *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    *("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
)


def _hf_scaling(scaling: Scaling) -> dict[str, Any]:
    if isinstance(scaling, Stretch):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Bands):
        found: dict[str, Any] = {"rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low}
        return found | {
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original_context,
        }
    if isinstance(scaling, Yarn):
        found = {"rope_type": "yarn", "factor": scaling.factor, "beta_fast": scaling.beta_fast}
        found |= {"beta_slow": scaling.beta_slow, "original_max_position_embeddings": scaling.original_context}
        found |= {} if scaling.attention is None else {"attention_factor": scaling.attention}
        return found | ({} if scaling.truncate else {"truncate": False})
    raise ConfigError(
        "This rope scaling is known only by its per-channel factors, as GGUF files store it, and Hugging Face has no key "
        "for that. Take config.json from the original checkpoint."
    )


@dataclass(frozen=True)
class GgufPositions:
    """rope.freq_base, rope.dimension_count, rope.scaling.*, the rope_freqs tensor, attention.sliding_window.

    `scaled`: the factor of linear scaling belongs to layers without window only, where `local_theta` is given.
    """

    theta: float = 10_000.0
    windowed: Windowed | None = None
    local_theta: float | None = None

    def read(self, source: Source, draft: Draft) -> None:
        theta = float(source.take("rope.freq_base", self.theta))
        dims = source.take("rope.dimension_count", draft["head_dim"])
        fraction = dims / draft["head_dim"]
        rope = Rope(theta, fraction, self._scaling(source, draft, dims))
        local = source.take("rope.freq_base_swa", self.local_theta)
        near = rope if local is None else Rope(float(local), fraction)
        window = source.take("attention.sliding_window")
        rule = self.windowed or everywhere
        flags = [window is not None and rule(i, draft["depth"]) for i in range(draft["depth"])]
        draft["pattern"] = shortest_cycle([Attn(int(window), near) if f else Attn(None, rope) for f in flags])

    def _scaling(self, source: Source, draft: Draft, dims: int) -> Scaling | None:
        kind = source.take("rope.scaling.type", "none")
        factor = float(source.take(("rope.scaling.factor", "rope.scale_linear"), 1.0))
        original = int(source.take("rope.scaling.original_context_length", draft["context"]))
        attention = source.take("rope.scaling.attn_factor")
        factors = source.values.get("rope_freqs")
        if factors is not None:
            source.asked.add("rope_freqs")
            if np.shape(factors) != (dims // 2,):
                raise ConfigError(f"{source.what}: rope_freqs has shape {np.shape(factors)}, expected {(dims // 2,)}.")
            return Factors(tuple(float(f) for f in factors))
        if kind not in ("none", "linear", "yarn"):
            raise ConfigError(f"{source.what}: rope.scaling.type is {kind!r}; known are none, linear, yarn.")
        if kind == "yarn":
            return Yarn(factor, original, attention=None if attention is None else float(attention))
        return Stretch(factor) if kind == "linear" and factor != 1.0 else None

    def write(self, config: Config, out: dict[str, Any]) -> None:
        layers = config.layers
        whole = next((layer.rope for layer in layers if layer.window is None), layers[0].rope)
        out["rope.freq_base"] = whole.theta
        out["rope.dimension_count"] = whole.dims(config.head_dim)
        if isinstance(whole.scaling, Stretch | Yarn):
            out["rope.scaling.type"] = "yarn" if isinstance(whole.scaling, Yarn) else "linear"
            out["rope.scaling.factor"] = whole.scaling.factor
        if isinstance(whole.scaling, Yarn):
            out["rope.scaling.original_context_length"] = whole.scaling.original_context
            if whole.scaling.attention is not None:
                out["rope.scaling.attn_factor"] = whole.scaling.attention
        if isinstance(whole.scaling, Bands | Factors):  # a tensor in the file
            out["rope_freqs"] = rope_factors(whole, config.head_dim)
        window = next((layer.window for layer in layers if layer.window is not None), None)
        if window is not None:
            out["attention.sliding_window"] = window


def rope_factors(rope: Rope, head_dim: int) -> np.ndarray:
    """What each pair's frequency is divided by, float32 (dims // 2,): GGUF's rope_freqs."""
    plain = Rope(rope.theta, rope.fraction).frequencies(head_dim)
    return (plain / rope.frequencies(head_dim)).astype(np.float32)


def shortest_cycle(layers: Sequence[Attn]) -> tuple[Attn, ...]:
    """The shortest prefix that gives all layers when repeated."""
    depth = len(layers)
    for period in range(1, depth + 1):
        if all(layers[i] == layers[i % period] for i in range(depth)):
            return tuple(layers[:period])
    return tuple(layers)
