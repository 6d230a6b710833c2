"""MaxText checkpoints: an Orbax directory with a training state's parameters, layers scanned or each for itself.

Tensor names are the dialect's business, bytes `io.orbax`'s. A checkpoint has no configuration: our manifest tells it,
or the size of a published Gemma. `maxtext.yml` beside the weights says the same to MaxText.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from ..config import Bands, Config, Rope, Stretch, Yarn
from ..dialects import maxtext as dialect
from ..dialects.flax import PADDED
from ..errors import ConfigError, GeodeError, ModelNotFound
from ..tensors import Tensors
from .base import Checkpoint, Format, Target, floats, write_sentencepiece, write_tokenizer
from .flax import OrbaxCheckpoint, Sizes, by_size, told

STEP, ITEM = "0", "items"  # what MaxText's own converters save: load_parameters_path=DIRECTORY/0/items
SETTINGS = "maxtext.yml"


class MaxText(OrbaxCheckpoint):
    """An Orbax directory with MaxText's names."""

    def _tensors(self) -> Tensors:
        from ..io import orbax

        return dialect.read(dialect.unscanned(self.stored, orbax.unstacked), self.config, self.family)

    def _vision(self) -> list[str]:
        plain = [name.removeprefix("params/").removeprefix("params/") for name in self.stored.entries]
        return [name for name in plain if dialect.of_vision(name)]


def claims(path: Path) -> bool:
    """An Orbax directory with MaxText's embedding in it."""
    from ..io import orbax

    folder = orbax.find(path) if path.is_dir() else None
    if folder is None:
        return False
    try:
        return any(name.endswith(dialect.EMBEDDING) for name in orbax.names(folder))
    except GeodeError:  # whoever opens it will say what is wrong
        return False


def open(path: Path) -> MaxText:
    """Opens a directory of steps, one step, or its items."""
    from ..io import orbax

    folder = orbax.find(path)
    if folder is None:
        raise ModelNotFound(f"{path} holds no Orbax checkpoint. Give the directory that has _METADATA in it.")
    stored = orbax.read(folder)
    layers = dialect.unscanned(stored, orbax.unstacked)
    family, config = told(path) or by_size(_sizes(layers, str(folder)), str(folder))
    return MaxText(path, "maxtext", family, config, stored, {})


def _sizes(layers: Tensors, what: str) -> Sizes:
    """The sizes of a Gemma. Raises ConfigError for other families, which do not say their rope."""
    family = _gemma_of(layers)
    side = "_local" if family == "gemma2" else ""
    query = layers.entries.get(f"decoder/layers_0/self_attention{side}/query/kernel")
    key = layers.entries.get(f"decoder/layers_0/self_attention{side}/key/kernel")
    up = layers.entries.get(f"decoder/layers_0/mlp{side}/wi_1/kernel")
    embedding = layers.entries.get(dialect.EMBEDDING)
    if family is None or embedding is None or query is None or key is None or up is None:
        raise ConfigError(
            f"{what} is a MaxText checkpoint, which does not say what network it is, and no Gemma's. Put a geode.json "
            'beside, with what a Hugging Face config.json says under "config".'
        )
    if [len(entry.shape) for entry in (embedding, query, key, up)] != [2, 3, 3, 2]:
        raise ConfigError(
            f"{what}: the embedding has shape {embedding.shape}, a query {query.shape}: expected 2, 3 axes."
        )
    rows, width = embedding.shape
    depth = len({seen[1] for name in layers.entries if (seen := re.match(r"decoder/layers_(\d+)/", name))})
    return Sizes(
        family=family,
        vocab_size=next((kept for kept, padded in PADDED.items() if padded == rows), rows),
        hidden_size=width,
        num_hidden_layers=2 * depth if family == "gemma2" else depth,
        num_attention_heads=query.shape[1],
        num_key_value_heads=key.shape[1],
        head_dim=query.shape[2],
        intermediate_size=up.shape[1],
    )


def _gemma_of(layers: Tensors) -> str | None:
    marks = {"gemma2": "mlp_local/wi_0/kernel", "gemma3": "post_ffw_norm/scale", "gemma": "pre_ffw_norm/scale"}
    return next((name for name, mark in marks.items() if f"decoder/layers_0/{mark}" in layers.entries), None)


# Writing


def write(checkpoint: Checkpoint, folder: Path, name: str, target: Target) -> None:
    """A directory whose `0/items` MaxText takes as load_parameters_path; without a dtype, what has a factor folded in
    is float32, so that nothing is rounded."""
    from ..io import orbax

    config, family = checkpoint.config, checkpoint.family
    exact = dialect.write(floats(checkpoint.tensors, None), config, family, "F64" if target.dtype else "F32")
    stored = floats(exact, target.dtype)  # rounded once, with its factor in it
    axes: dict[str, int] = {}
    if target.scanned:
        stored, axes = dialect.scanned(stored, config, family)
    stored = Tensors({dialect.PREFIX + one: entry for one, entry in stored.entries.items()})
    stacks = {dialect.PREFIX + one: axis for one, axis in axes.items()}
    orbax.write(folder / STEP, stored, item=ITEM, zarr3=True, stacks=stacks)
    (folder / SETTINGS).write_text(_yaml(settings(checkpoint, target.scanned)), encoding="utf-8")
    write_tokenizer(checkpoint, folder)
    write_sentencepiece(checkpoint, folder)


def _yaml(values: dict[str, Any]) -> str:
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())


_MODELS = {
    ("gemma", 2048, 18): "gemma-2b",
    ("gemma", 3072, 28): "gemma-7b",
    ("gemma2", 2304, 26): "gemma2-2b",
    ("gemma2", 3584, 42): "gemma2-9b",
    ("gemma2", 4608, 46): "gemma2-27b",
    ("gemma3", 2560, 34): "gemma3-4b",
    ("gemma3", 3840, 48): "gemma3-12b",
    ("gemma3", 5376, 62): "gemma3-27b",
}


def settings(checkpoint: Checkpoint, scanned: bool) -> dict[str, Any]:
    """The network as MaxText's configs/models/*.yml say it."""
    c, kind = checkpoint.config, dialect.KINDS[checkpoint.family.name]
    model = _MODELS.get((checkpoint.family.name, c.width, c.depth))
    made: dict[str, Any] = {"model_name": model, "override_model_config": True} if model else {}
    made |= {
        "decoder_block": kind.block,
        "base_emb_dim": c.width,
        "base_num_query_heads": c.heads,
        "base_num_kv_heads": c.kv_heads,
        "base_mlp_dim": c.ffn,
        "base_num_decoder_layers": c.depth // 2 if kind.pairs else c.depth,
        "head_dim": c.head_dim,
        "vocab_size": PADDED.get(c.vocab, c.vocab),
        "mlp_activations": ["silu" if c.activation == "silu" else "gelu", "linear"],
        "normalization_layer_epsilon": c.norm.eps,
        "logits_via_embedding": c.tied,
        "normalize_embedding_logits": c.scale_embedding,
        "use_qk_norm": c.qk_norm != "none",
        "attention_bias": c.qkv_bias,
        "scan_layers": scanned,
    }
    caps = {"attn_logits_soft_cap": c.attn_softcap, "final_logits_soft_cap": c.final_softcap}
    made |= {key: cap for key, cap in caps.items() if cap is not None}
    if c.block == "sandwich":
        made |= {"use_post_attn_norm": True, "use_post_ffw_norm": True}
    return made | _positions(c)


def _positions(config: Config) -> dict[str, Any]:
    near = next((layer for layer in config.layers if layer.window is not None), None)
    far = next((layer for layer in config.layers if layer.window is None), config.layers[0]).rope
    made: dict[str, Any] = {"rope_max_timescale": far.theta}
    if near is not None:
        made["sliding_window_size"] = near.window
        if near.rope.theta != far.theta:
            made["local_rope_max_timescale"] = near.rope.theta
    return made | _scaling(far)


def _scaling(rope: Rope) -> dict[str, Any]:
    found = rope.scaling
    if isinstance(found, Stretch):
        return {"rope_linear_scaling_factor": found.factor}
    if isinstance(found, Bands):
        return {"rope_type": "llama3.1"}
    if isinstance(found, Yarn):
        made = {"rope_type": "yarn", "rope_factor": found.factor, "rope_interleave": False}
        made |= {"original_max_position_embeddings": found.original_context, "beta_fast": found.beta_fast}
        return made | {"beta_slow": found.beta_slow, "rope_truncate": found.truncate, "rope_attention_scaling": True}
    return {}


def refuses(checkpoint: Checkpoint, target: Target) -> str | None:
    """What MaxText's layers have no place for."""
    family, c = checkpoint.family, checkpoint.config
    if family.name not in dialect.KINDS:
        return f"MaxText's layouts known here are for {', '.join(dialect.KINDS)}; this model is {family.name}."
    if nameless := dialect.nameless(c, family):
        return f"MaxText's {family.name} has no place for {nameless[0]} ({len(nameless)} such tensors)."
    if dialect.KINDS[family.name].pairs and c.depth % 2:
        return f"MaxText's {family.name} is made of pairs of layers; this model has {c.depth}."
    if c.activation == "gelu":
        return "MaxText's gelu is the tanh formula; this model has the exact one."
    return None


def losses(checkpoint: Checkpoint, target: Target) -> list[str]:
    """What the weights do not say and MaxText's own layers compute otherwise; Geode's manifest keeps it."""
    c, kind = checkpoint.config, dialect.KINDS.get(checkpoint.family.name)
    if kind is None:
        return []
    found = []
    windows = [layer.window is not None for layer in c.layers]
    period = kind.period or (2 if kind.pairs else 0)
    if windows != [bool(period) and (i + 1) % period != 0 for i in range(c.depth)]:
        found.append(f"MaxText's {checkpoint.family.name} has other layers with a window; only geode.json says which.")
    if not all(_known_rope(layer.rope) for layer in c.layers):
        found.append("MaxText has no such scaling of rotary positions; only geode.json says it.")
    return found


def _known_rope(rope: Rope) -> bool:
    found = rope.scaling
    if isinstance(found, Bands):
        return found == Bands(8.0, 1.0, 4.0, 8192)  # what layers/embeddings.py has as constants
    if isinstance(found, Yarn):
        return found.attention is None or math.isclose(found.attention, 0.1 * math.log(found.factor) + 1.0)
    return found is None or isinstance(found, Stretch)


FORMAT = Format(
    name="maxtext",
    about="MaxText: an Orbax directory, layers scanned or not",
    claims=claims,
    open=open,
    write=write,
    refuses=refuses,
    losses=losses,
    options=frozenset({"dtype", "scanned"}),
)
