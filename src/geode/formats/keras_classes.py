"""keras_hub's backbone classes: their arguments <-> a Config, as tables of keys.

Files, weights and tokenizers are not known here. A class computes what it is made for and takes no argument for the
rest: `nearest` says what that leaves of a network.

The truth is keras_hub/src/models/*/*_backbone.py in github.com/keras-team/keras-hub, version 0.32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import keys, positions
from ..config import Attn, Bands, Config, Norm, Rope, Scaling, Stretch
from ..dialects.keras_hub import HEAD
from ..errors import ConfigError
from ..families import Family
from ..keys import Derived, Draft, Fixed, Key, Part, Source, positive, truth, whole


@dataclass(frozen=True)
class Backbone:
    """One class of keras_hub that computes a family: `stem` + "Backbone", in the package `module`."""

    stem: str
    module: str
    family: str
    keys: tuple[Part, ...]
    constants: Mapping[str, Any]  # what the class computes with and has no key for
    context: int  # tokens; no key tells, but for GPT-NeoX

    @property
    def name(self) -> str:
        return f"{self.stem}Backbone"

    def config_from(self, family: Family, values: Mapping[str, Any], stored: Iterable[str], what: str) -> Config:
        """A Config from a class's arguments and the names in its weights. Raises ConfigError."""
        source = Source(values, what, dict.fromkeys(stored, ()))
        constants = {"context": self.context, **family.constants, **self.constants}
        return keys.read(self.keys, source, constants, HARMLESS_KEYS)

    def config_to(self, config: Config) -> dict[str, Any]:
        """The arguments of the class that come nearest to a network: `differences` says what they do not reach."""
        return keys.write(self.keys, config)


HARMLESS_KEYS = frozenset(
    # The last two belong to embedding models, which `is_embedding_model` tells.
    "name trainable dtype dropout image_size vision_encoder pooling_intermediate_dim embedding_dim".split()
)


def nearest(backbone: Backbone, family: Family, config: Config) -> Config:
    """What the class computes when it is told as much of a network as it has arguments for. Raises ConfigError."""
    values = backbone.config_to(config)
    stored = () if config.tied else (HEAD,)
    made = backbone.config_from(family, values, stored, backbone.name)
    return made.replace(context=config.context)


@dataclass(frozen=True)
class Doubled:
    """Gemma's intermediate_dim counts gate and up together."""

    def read(self, source: Source, draft: Draft) -> None:
        both = whole(source.take("intermediate_dim"), "intermediate_dim", source.what, least=2)
        if both % 2:
            raise ConfigError(f"{source.what}: intermediate_dim is {both}; an even number was expected, gate and up.")
        draft["ffn"] = both // 2

    def write(self, config: Config, out: dict[str, Any]) -> None:
        out["intermediate_dim"] = 2 * config.ffn


@dataclass(frozen=True)
class QueryScale:
    """query_head_dim_normalize: whether scores are divided by the root of head_dim, or of hidden_dim // heads.

    keras_hub 0.32 takes the key and computes with head_dim whatever it says (gemma_decoder_block.py), so it is read as
    its authors meant it (Gemma 2 27B), and never written false. github.com/keras-team/keras-hub/issues/1701
    """

    usual: bool = False  # the family leaves head_dim unsaid

    def read(self, source: Source, draft: Draft) -> None:
        by_head = truth(source.take("query_head_dim_normalize", True), "query_head_dim_normalize", source.what)
        by_width = float(draft["width"] // draft["heads"])
        draft["query_scalar"] = by_width if not by_head else None if self.usual else float(draft["head_dim"])

    def write(self, config: Config, out: dict[str, Any]) -> None:
        out["query_head_dim_normalize"] = True


@dataclass(frozen=True)
class Tied:
    """tie_word_embeddings. Llama's class takes it and does not save it, so the weights tell."""

    def read(self, source: Source, draft: Draft) -> None:
        source.take("tie_word_embeddings")
        draft["tied"] = HEAD not in source.tensors

    def write(self, config: Config, out: dict[str, Any]) -> None:
        out["tie_word_embeddings"] = config.tied


@dataclass(frozen=True)
class Turning:
    """Rotary positions: the base, the factor that positions are divided by, and Llama 3.1's bands.

    `theta` is a key, or the base that the class computes with. Windowed layers rotate as the others. `written`: where
    KerasHub takes a factor and computes without it, it is read as its authors meant it, and none is written.
    """

    theta: str | float = "rope_max_wavelength"
    scale: str = ""
    bands: bool = False
    fraction: str = ""
    written: bool = True

    def read(self, source: Source, draft: Draft) -> None:
        what = source.what
        theta = self.theta
        if isinstance(theta, str):
            theta = positive(source.take(theta, 10_000), theta, what)
        fraction = positive(source.take(self.fraction, 0.25), self.fraction, what) if self.fraction else 1.0
        bands = self._bands(source) if self.bands else None
        stretch = stretched(source, self.scale) if self.scale else None
        if bands and stretch:
            raise ConfigError(f"{what}: positions are scaled in two ways at once, and no network here does so.")
        rope = Rope(theta, fraction, bands or stretch)
        draft["pattern"] = (Attn(None, rope),)

    def _bands(self, source: Source) -> Bands | None:
        found = [source.take(key) for key in _BANDS]
        if all(value is None for value in found):
            return None
        factor, low, high = (positive(v, key, source.what) for v, key in zip(found[:3], _BANDS[:3], strict=True))
        if low >= high:
            raise ConfigError(f"{source.what}: rope_low_freq_factor should be below rope_high_freq_factor.")
        return Bands(factor, low, high, whole(found[3], _BANDS[3], source.what))

    def write(self, config: Config, out: dict[str, Any]) -> None:
        rope = config.layers[0].rope
        if isinstance(self.theta, str):
            out[self.theta] = rope.theta
        if self.fraction:
            out[self.fraction] = rope.fraction
        if self.scale:
            out[self.scale] = factor_of(rope.scaling) if self.written else 1.0
        if self.bands and isinstance(rope.scaling, Bands):
            b = rope.scaling
            out |= dict(zip(_BANDS, (b.factor, b.low, b.high, b.original_context), strict=True))


_BANDS = (
    "rope_frequency_adjustment_factor",
    "rope_low_freq_factor",
    "rope_high_freq_factor",
    "rope_pretraining_sequence_length",
)


def stretched(source: Source, key: str) -> Scaling | None:
    """Positions divided by the number under a key."""
    factor = positive(source.take(key, 1.0), key, source.what)
    return None if factor == 1.0 else Stretch(factor)


def factor_of(scaling: Scaling | None) -> float:
    return scaling.factor if isinstance(scaling, Stretch) else 1.0


@dataclass(frozen=True)
class Windows:
    """Which layers see how far; after `Turning`, whose rope all layers share unless `local` has one for these.

    `size` is the key of the window, None or absent for none; `gate` a key that must be true for it. `written`: where
    keras_hub drops the window on some backends, no window is written.
    """

    size: str
    windowed: positions.Windowed = positions.everywhere
    gate: str = ""
    usual: int | None = None  # the class's default
    local: float | None = None  # the base of windowed layers; they are stretched by local_rope_scaling_factor
    written: bool = True

    def read(self, source: Source, draft: Draft) -> None:
        on = truth(source.take(self.gate, False), self.gate, source.what) if self.gate else True
        found = None if source.says_null(self.size) else source.take(self.size, self.usual)
        far = draft["pattern"][0].rope
        near = Rope(self.local, 1.0, stretched(source, "local_rope_scaling_factor")) if self.local else far
        if not on or not found:
            return
        window = whole(found, self.size, source.what)
        depth = draft["depth"]
        flags = [self.windowed(i, depth) for i in range(depth)]
        draft["pattern"] = positions.shortest_cycle([Attn(window, near) if flag else Attn(None, far) for flag in flags])

    def write(self, config: Config, out: dict[str, Any]) -> None:
        seen = next((layer for layer in config.layers if layer.window), None) if self.written else None
        if self.gate:
            out[self.gate] = seen is not None
        if seen or not self.gate:
            out[self.size] = seen.window if seen else None
        if self.local:
            out["local_rope_scaling_factor"] = factor_of(seen.rope.scaling) if seen else 1.0


@dataclass(frozen=True)
class GlobalTurning:
    """Gemma 3's rope of the layers that see all: base a million, stretched by global_rope_scaling_factor."""

    def read(self, source: Source, draft: Draft) -> None:
        draft["pattern"] = (Attn(None, Rope(1_000_000.0, 1.0, stretched(source, "global_rope_scaling_factor"))),)

    def write(self, config: Config, out: dict[str, Any]) -> None:
        far = next((layer.rope for layer in config.layers if layer.window is None), config.layers[0].rope)
        out["global_rope_scaling_factor"] = factor_of(far.scaling)


def _narrow(draft: Draft) -> int:
    """The width of a head where no key tells it: what is left over is dropped, as Keras does."""
    return max(int(draft["width"]) // int(draft["heads"]), 1)


_NARROW = Derived("head_dim", lambda source, draft: _narrow(draft))


_SIZES: tuple[Part, ...] = (
    Key("vocabulary_size", "vocab"),
    Key("num_layers", "depth"),
    Key("num_query_heads", "heads"),
    Key("num_key_value_heads", "kv_heads"),
    Key("hidden_dim", "width"),
)
_LLAMA_SIZES: tuple[Part, ...] = (
    *_SIZES,
    Key("intermediate_dim", "ffn"),
    _NARROW,
    Key("layer_norm_epsilon", "norm.eps", 1e-6),
)
_GEMMA_SIZES: tuple[Part, ...] = (
    *_SIZES,
    Key("head_dim", "head_dim"),
    # The blocks of both Gemma classes keep 1e-6 whatever this key says; it reaches the last norm only.
    Fixed("layer_norm_epsilon", (1e-6,)),
)
_GEMMA_CONSTANTS = {"norm": Norm("rms", eps=1e-6), "tied": True, "activation": "gelu_tanh"}


def _post_norms(there: bool) -> tuple[Part, ...]:
    return Fixed("use_post_ffw_norm", (there,)), Fixed("use_post_attention_norm", (there,))


_SOFTCAPS: tuple[Part, ...] = (
    Key("attention_logit_soft_cap", "attn_softcap", None),
    Key("final_logit_soft_cap", "final_softcap", None),
)
_GEMMA_WINDOWS = Windows("sliding_window_size", positions.alternating, gate="use_sliding_window_attention", usual=4096)
_GEMMA3_WINDOWS = Windows(
    "sliding_window_size", positions.five_of_six, gate="use_sliding_window_attention", usual=1024, local=10_000.0
)

GEMMA = Backbone(
    "Gemma",
    "gemma",
    "gemma",
    (
        *_GEMMA_SIZES,
        Doubled(),
        *_post_norms(False),
        *_SOFTCAPS,
        QueryScale(usual=True),
        Turning(10_000.0),
        _GEMMA_WINDOWS,
    ),
    _GEMMA_CONSTANTS,
    8192,
)
GEMMA2 = Backbone(
    "Gemma",
    "gemma",
    "gemma2",
    (*_GEMMA_SIZES, Doubled(), *_post_norms(True), *_SOFTCAPS, QueryScale(), Turning(10_000.0), _GEMMA_WINDOWS),
    _GEMMA_CONSTANTS,
    8192,
)
GEMMA3 = Backbone(
    "Gemma3",
    "gemma3",
    "gemma3",
    (
        *_GEMMA_SIZES,
        Key("intermediate_dim", "ffn"),
        *_post_norms(True),
        *_SOFTCAPS,
        QueryScale(),
        GlobalTurning(),
        _GEMMA3_WINDOWS,
        Fixed("use_query_key_norm", (True,)),
        Fixed("use_bidirectional_attention", (False,)),
        Fixed("is_embedding_model", (False,)),
    ),
    _GEMMA_CONSTANTS,
    32_768,
)
# LlamaRotaryEmbedding's own inverse frequencies know nothing of the scaling factor that its base class divides by.
_LLAMA_KEYS = (*_LLAMA_SIZES, Tied(), Turning(scale="rope_position_scaling_factor", bands=True, written=False))
LLAMA = Backbone("Llama", "llama", "llama", _LLAMA_KEYS, {}, 4096)
LLAMA3 = Backbone("Llama3", "llama3", "llama", _LLAMA_KEYS, {}, 8192)
MISTRAL = Backbone(
    "Mistral",
    "mistral",
    "mistral",
    (
        *(part for part in _LLAMA_SIZES if part is not _NARROW),
        Key("head_dim", "head_dim", _narrow),
        Turning(scale="rope_scaling_factor"),
        Windows("sliding_window", usual=512),
    ),
    {"tied": False},
    32_768,
)
NEOX = Backbone(
    "GPTNeoX",
    "gpt_neo_x",
    "gpt_neox",
    (
        Key("vocabulary_size", "vocab"),
        Key("num_layers", "depth"),
        Key("num_heads", ("heads", "kv_heads")),
        Key("hidden_dim", "width"),
        Key("intermediate_dim", "ffn"),
        _NARROW,
        Key("layer_norm_epsilon", "norm.eps", 1e-5),
        Key("max_sequence_length", "context", 512),
        Turning("rotary_max_wavelength", fraction="rotary_percentage"),
    ),
    # gelu by the tanh formula, the head tied to the embedding: GPTNeoXBackbone knows nothing else.
    {"tied": True, "activation": "gelu_tanh", "block": "parallel", "qkv_bias": True, "out_bias": True},
    2048,
)
# On JAX and PyTorch the fused attention of Qwen's classes does not look at the window (qwen_attention.py).
QWEN = Backbone(
    "Qwen",
    "qwen",
    "qwen2",
    (
        *_LLAMA_SIZES,
        Tied(),
        Turning(scale="rope_scaling_factor"),
        Windows("sliding_window_size", gate="use_sliding_window_attention", usual=32_768, written=False),
    ),
    {},
    32_768,
)
QWEN3 = Backbone(
    "Qwen3",
    "qwen3",
    "qwen3",
    (
        *(part for part in _LLAMA_SIZES if part is not _NARROW),
        Key("head_dim", "head_dim"),
        Tied(),
        Turning(scale="rope_scaling_factor"),
        Windows("sliding_window_size", usual=32_768, written=False),
    ),
    {},
    40_960,
)

BACKBONES = (GEMMA, GEMMA2, GEMMA3, LLAMA, LLAMA3, MISTRAL, NEOX, QWEN, QWEN3)
