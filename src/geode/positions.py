"""Rotary positions and attention windows as Hugging Face and GGUF spell them.

Both spell in many keys what `Config.pattern` says in one: which layer sees how far, and how its heads rotate.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import Attn, Bands, Config, Factors, Rope, Scaling, Stretch, Yarn
from .errors import ConfigError
from .keys import Draft, Source, positive, truth, whole

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
    fraction_keys: tuple[str, ...] = ("partial_rotary_factor",)  # the first is written
    windowed: Windowed | None = (
        None  # which layers have the window when layer_types does not say; None: no windows here
    )
    window: int | None = None  # when no key says; an explicit null says that there is none
    gate: bool = False  # use_sliding_window and max_window_layers decide
    local_theta: float | None = None  # windowed layers rotate by this base of their own, unscaled

    def read(self, source: Source, draft: Draft) -> None:
        flat = {"rope_theta": source.take(self.theta_key, self.theta)}
        flat |= {"partial_rotary_factor": source.take(self.fraction_keys, self.fraction)}
        scaling, parameters = (_object(source, name) for name in ("rope_scaling", "rope_parameters"))
        far, local = self._halves(parameters, source)
        rope = _hf_rope(flat | scaling | far, draft["context"], source.what)
        near = rope if local is None else _hf_rope(flat | local, draft["context"], source.what)
        if local is not None and near.scaling is not None:
            raise ConfigError(f"{source.what}: rope_parameters scale the windowed layers; none is known that does.")
        flags = self._flags(source, draft["depth"])
        window = self._window(source)
        if window is None and any(flags) and self.windowed in (alternating, five_of_six):
            raise ConfigError(f"{source.what}: sliding_window is null, and some layers of this family must have one.")
        windowed, whole_view = Attn(window, near), Attn(None, rope)
        draft["pattern"] = shortest_cycle([windowed if flag and window else whole_view for flag in flags])

    def _halves(self, parameters: dict[str, Any], source: Source) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Rope settings of the layers that see all, and of the windowed ones if theirs differ."""
        if self.local_theta is None:
            return parameters, None
        local = {"rope_theta": source.take("rope_local_base_freq", self.local_theta)}
        if "full_attention" in parameters or "sliding_attention" in parameters:
            nested = Source(parameters, f"{source.what}, rope_parameters")
            far, near = (_object(nested, name) for name in ("full_attention", "sliding_attention"))
            nested.finish(())
            return far, local | near
        return parameters, local

    def _window(self, source: Source) -> int | None:
        """Tokens that windowed layers see; None where the window is switched off."""
        if self.windowed is None and not self.gate:
            return None
        gate = truth(source.take("use_sliding_window", False), "use_sliding_window", source.what) if self.gate else True
        older = source.take("sliding_window_size", self.window)  # beside the other in the first Gemma 2 files
        window = None if source.says_null("sliding_window") else source.take("sliding_window", older)
        if not gate or window is None:
            return None
        return whole(window, "sliding_window", source.what)

    def _flags(self, source: Source, depth: int) -> list[bool]:
        """For each layer, whether it has the window."""
        types = source.take("layer_types")
        flags = self._usual_flags(source, depth)
        if types is None:
            return flags
        found = _flags_of_types(types, depth, source.what)
        if (
            self.windowed in (None, everywhere)
            and not self.gate
            and found != [found[0] and bool(self.windowed)] * depth
        ):
            raise ConfigError(f"{source.what}: layer_types give a window to some layers, which this family never does.")
        return found

    def _usual_flags(self, source: Source, depth: int) -> list[bool]:
        if self.gate:
            start = whole(source.take("max_window_layers", 28), "max_window_layers", source.what, least=0)
            return [i >= start for i in range(depth)]
        if self.windowed is None:
            return [False] * depth
        period = source.take(("sliding_window_pattern", "_sliding_window_pattern"))
        if period is None:
            return [self.windowed(i, depth) for i in range(depth)]
        period = whole(period, "sliding_window_pattern", source.what)
        return [bool((i + 1) % period) for i in range(depth)]

    def write(self, config: Config, out: dict[str, Any]) -> None:
        far, near = _far_and_near(config)
        out[self.theta_key] = far.theta
        if far.fraction != self.fraction or self.fraction != 1.0:
            out[self.fraction_keys[0]] = far.fraction
        if far.scaling is not None:
            out["rope_scaling"] = _hf_scaling(far.scaling)
        if self.local_theta is not None:
            out["rope_local_base_freq"] = near.theta
        if self.windowed is None and not self.gate:
            return
        windows = [layer.window for layer in config.layers]
        out["sliding_window"] = next((window for window in windows if window is not None), None)
        if self.gate:
            out["use_sliding_window"] = out["sliding_window"] is not None
        if self.windowed is not everywhere:
            out["layer_types"] = ["full_attention" if window is None else "sliding_attention" for window in windows]


def _object(source: Source, name: str) -> dict[str, Any]:
    """The object under a key, without its nulls; {} when there is none."""
    found = source.take(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{source.what}: {name} should be an object, but it is a {type(found).__name__}.")
    return {key: value for key, value in found.items() if value is not None}


def _far_and_near(config: Config) -> tuple[Rope, Rope]:
    """The rope of the layers that see all, and of the windowed ones; where there is one kind only, it is both."""
    layers = config.pattern
    far = next((layer.rope for layer in layers if layer.window is None), layers[0].rope)
    return far, next((layer.rope for layer in layers if layer.window is not None), far)


def _flags_of_types(types: Any, depth: int, what: str) -> list[bool]:
    known = {"sliding_attention": True, "full_attention": False}
    if not isinstance(types, list) or len(types) != depth or any(str(kind) not in known for kind in types):
        raise ConfigError(
            f"{what}: layer_types should be a list that names {depth} layers as sliding_attention or full_attention, "
            f"but it is {reprlib.repr(types)}."
        )
    return [known[kind] for kind in types]


def _hf_rope(p: dict[str, Any], context: int, what: str) -> Rope:
    kind = p.get("rope_type", p.get("type", "default"))
    if not isinstance(kind, str) or kind not in _HF_SCALINGS:
        raise ConfigError(f"{what}: the rope type is {reprlib.repr(kind)}; known are {', '.join(_HF_SCALINGS)}.")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_SCALING_KEYS}
    if unknown := sorted(set(p) - known):
        raise ConfigError(f"{what}: rope parameters that are not handled: {', '.join(unknown)}.")
    numbers = {name: positive(p[name], f"the rope's {name}", what) for name in p if name in _NUMBERS}
    numbers[_ORIGINAL] = whole(p.get(_ORIGINAL, context), _ORIGINAL, what)
    truncate = truth(p.get("truncate", True), "truncate", what)
    try:
        scaling = _HF_SCALINGS[kind](numbers | {"truncate": truncate}, context)
    except KeyError as lacking:
        raise ConfigError(f"{what}: rope type {kind!r} needs the key {lacking}, which is absent.") from None
    except ValueError as problem:
        raise ConfigError(f"{what}: rope type {kind!r}: {problem}.") from None
    return Rope(numbers["rope_theta"], numbers["partial_rotary_factor"], scaling)


def _hf_linear(p: dict[str, Any], context: int) -> Scaling | None:
    return None if p["factor"] == 1.0 else Stretch(p["factor"])


def _hf_bands(p: dict[str, Any], context: int) -> Scaling:
    if p["low_freq_factor"] >= p["high_freq_factor"]:
        raise ValueError("low_freq_factor should be below high_freq_factor")
    return Bands(p["factor"], p["low_freq_factor"], p["high_freq_factor"], p[_ORIGINAL])


def _hf_yarn(p: dict[str, Any], context: int) -> Scaling:
    factor = p["factor"] if "factor" in p else context / p[_ORIGINAL]
    attention = p.get("attention_factor")
    if attention is None and "mscale" in p and "mscale_all_dim" in p:
        attention = _warmth(factor, p["mscale"]) / _warmth(factor, p["mscale_all_dim"])
    return Yarn(factor, p[_ORIGINAL], p.get("beta_fast", 32.0), p.get("beta_slow", 1.0), attention, p["truncate"])


def _warmth(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


_HF_SCALINGS: dict[str, Callable[[dict[str, Any], int], Scaling | None]] = {
    "default": lambda p, context: None,
    "linear": _hf_linear,
    "llama3": _hf_bands,
    "yarn": _hf_yarn,
}
_ORIGINAL = "original_max_position_embeddings"
_SCALING_KEYS = (
    *("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    *("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
)
_NUMBERS = {"rope_theta", "partial_rotary_factor", *_SCALING_KEYS} - {"truncate", _ORIGINAL}


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
        "This rope scaling is known only by its per-channel factors, as GGUF files store it, and Hugging Face has no "
        "key for that. Take config.json from the original checkpoint."
    )


@dataclass(frozen=True)
class GgufPositions:
    """rope.freq_base, rope.dimension_count, rope.scaling.*, the rope_freqs tensor, attention.sliding_window.

    Where `local_theta` is given, windowed layers rotate by it, and scaling belongs to the others only.
    """

    theta: float = 10_000.0
    windowed: Windowed = everywhere
    local_theta: float | None = None

    def read(self, source: Source, draft: Draft) -> None:
        what, depth = source.what, draft["depth"]
        theta = positive(source.take("rope.freq_base", self.theta), "rope.freq_base", what)
        dims = whole(source.take("rope.dimension_count", draft["head_dim"]), "rope.dimension_count", what)
        fraction = dims / draft["head_dim"]
        rope = Rope(theta, fraction, self._scaling(source, draft, theta, dims))
        local = source.take("rope.freq_base_swa", self.local_theta)
        near = rope if local is None else Rope(positive(local, "rope.freq_base_swa", what), fraction)
        window = source.take("attention.sliding_window")
        if window is None:
            draft["pattern"] = (Attn(None, rope),)
            return
        windowed, whole_view = Attn(whole(window, "attention.sliding_window", what), near), Attn(None, rope)
        draft["pattern"] = shortest_cycle([windowed if self.windowed(i, depth) else whole_view for i in range(depth)])

    def _scaling(self, source: Source, draft: Draft, theta: float, dims: int) -> Scaling | None:
        what = source.what

        def number(names: str | tuple[str, ...], default: float) -> float:
            return positive(source.take(names, default), names if isinstance(names, str) else names[0], what)

        kind = source.take("rope.scaling.type", "none")
        factor = number(("rope.scaling.factor", "rope.scale_linear"), 1.0)
        original = source.take("rope.scaling.original_context_length", draft["context"])
        original = whole(original, "rope.scaling.original_context_length", what)
        fast, slow = number("rope.scaling.yarn_beta_fast", 32.0), number("rope.scaling.yarn_beta_slow", 1.0)
        attention = number("rope.scaling.attn_factor", 1.0)
        if (factors := source.take("rope_freqs")) is not None:
            found = _factors(factors, dims, what)
            return _bands(found, theta, dims) or found
        if not isinstance(kind, str) or kind not in ("none", "linear", "yarn"):
            raise ConfigError(f"{what}: rope.scaling.type is {reprlib.repr(kind)}; known are none, linear, yarn.")
        if kind == "yarn":  # llama.cpp multiplies what the paper says; ours takes its place
            warmer = None if attention == 1.0 else attention * _warmth(factor)
            return Yarn(factor, original, fast, slow, warmer)
        return Stretch(factor) if kind == "linear" and factor != 1.0 else None

    def write(self, config: Config, out: dict[str, Any]) -> None:
        far, near = _far_and_near(config)
        out["rope.freq_base"] = far.theta
        out["rope.dimension_count"] = far.dims(config.head_dim)
        if isinstance(far.scaling, Bands | Factors):  # a tensor in the file
            out["rope_freqs"] = rope_factors(far, config.head_dim)
        elif far.scaling is not None:
            out |= _gguf_scaling(far.scaling)
        if near != far and near.theta != self.local_theta:
            out["rope.freq_base_swa"] = near.theta
        self._write_window(config, out)

    def _write_window(self, config: Config, out: dict[str, Any]) -> None:
        windows = [layer.window for layer in config.layers]
        window = next((window for window in windows if window is not None), None)
        if window is None:
            return
        if windows != [window if self.windowed(i, config.depth) else None for i in range(config.depth)]:
            raise ConfigError(
                "GGUF has no key for which layers have a sliding window: every reader takes the rule of the family, "
                "which is not this network's. Write the model as safetensors instead."
            )
        out["attention.sliding_window"] = window


def _factors(values: Any, dims: int, what: str) -> Factors:
    found = np.asarray(values)
    if found.shape != (dims // 2,):
        raise ConfigError(f"{what}: rope_freqs has the shape {found.shape}, expected {(dims // 2,)}.")
    return Factors(tuple(positive(float(factor), "each of rope_freqs", what) for factor in found))


def _bands(factors: Factors, theta: float, dims: int) -> Bands | None:
    """Llama 3.1's rule, where these are its factors, so that a GGUF file has its way back; None where they are not.

    Between both bands 1 / factor rises in a straight line over 1 / wavelength, which tells low, high and context up to
    a common multiple. Low is 1, as in every model that was published.
    """
    found = np.asarray(factors.values, np.float64)
    if not found.size or found.max() <= 1:
        return None
    most = float(f"{found.max():.6g}")
    frequencies = Rope(theta).frequencies(dims).astype(np.float64) / (2 * math.pi)
    between = (found > 1) & (found < found.max() * (1 - 1e-6))
    tried = [(4.0, 8192.0)]
    if between.any():
        ramp = (1 / found[between] - 1 / most) / (1 - 1 / most)
        x = frequencies[between]
        slope = np.polyfit(x, ramp, 1)[0] if len(x) > 1 else float((ramp[0] + 1 / 3) / x[0])
        low = float(np.mean(slope * x - ramp))
        tried += [(float(f"{1 + 1 / low:.6g}"), slope / low)] if low > 0 else []
    for high, context in tried:
        bands = Bands(most, 1.0, high, round(context))
        rope = Rope(theta, scaling=bands)
        if np.allclose(rope_factors(rope, dims), found, rtol=2e-6, atol=0):
            return bands
    return None


def _gguf_scaling(scaling: Stretch | Yarn) -> dict[str, Any]:
    if isinstance(scaling, Stretch):
        return {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    if not scaling.truncate:
        raise ConfigError("GGUF has no key for YaRN without truncation. Write the model as safetensors instead.")
    found: dict[str, Any] = {"rope.scaling.type": "yarn", "rope.scaling.factor": scaling.factor}
    found["rope.scaling.original_context_length"] = scaling.original_context
    usual = Yarn(scaling.factor, scaling.original_context)
    if (scaling.beta_fast, scaling.beta_slow) != (usual.beta_fast, usual.beta_slow):
        found |= {"rope.scaling.yarn_beta_fast": scaling.beta_fast, "rope.scaling.yarn_beta_slow": scaling.beta_slow}
    if scaling.attention is not None:
        found["rope.scaling.attn_factor"] = scaling.attention / _warmth(scaling.factor)
    return found


def rope_factors(rope: Rope, head_dim: int) -> np.ndarray:
    """What each pair's frequency is divided by, float32 (dims // 2,): GGUF's rope_freqs."""
    plain = Rope(rope.theta, rope.fraction).frequencies(head_dim)
    return np.asarray(plain / rope.frequencies(head_dim), np.float32)


def shortest_cycle(layers: list[Attn]) -> tuple[Attn, ...]:
    """The shortest prefix that gives all layers when repeated."""
    depth = len(layers)
    periods = (period for period in range(1, depth) if layers[period:] == layers[: depth - period])
    return tuple(layers[: next(periods, depth)])
