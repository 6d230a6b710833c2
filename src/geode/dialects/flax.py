"""Gemma's own Flax names and layouts <-> canonical ones, as github.com/google-deepmind/gemma has them in gm/nn.

Where the bytes lie is not known here. H query heads, K key/value heads, D width, F hidden width of the network's MLP.

theirs                                            ours
embedder/input_embedding       (V + padding, D)   token_embd
layer_i/attn/q_einsum/w        (H, D, head)       attn_q
layer_i/attn/kv_einsum/w       (2, K, D, head)    attn_k, attn_v
layer_i/attn/qkv_einsum/w      (3, H, D, head)    all three, where H = K
layer_i/attn/attn_vec_einsum/w (H, head, D)       attn_output
layer_i/mlp/gating_einsum/w    (2, D, F)          ffn_gate, ffn_up; (2, F, D) in later models
layer_i/mlp/linear/w           (F, D)             ffn_down
…norm/scale                    w                  1 + w

Three spellings of these are read: the published one (FLAT: "transformer/" before all), the network's own (NESTED: no
prefix, no "/w" in mlp) and layers of one kind in one array (STACKED). FLAT is written: gemma reads it into all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ..config import Config
from ..families import Family
from ..tensors import Entry, Tensors, shapes
from . import Rule, matches, rule
from . import read as read_rules
from . import write as write_rules
from .ops import AddOne, Op, Padded, Reshape, Transpose, Unstack

PREFIX = "transformer/"
EMBEDDING = "embedder/input_embedding"
PADDED = {256_000: 256_128}
"""Rows of the embedding that the first two generations are stored with, by their vocabulary."""

IGNORED = ("SigLiPFromPatches_0/*", "vision_encoder/*", "embedder/mm_*")
"""The vision tower and its projector."""

Cut = Callable[[Entry, int], list[Entry]]

_NORMS = {
    "attn_norm": "pre_attention_norm",
    "post_attention_norm": "post_attention_norm",
    "ffn_norm": "pre_ffw_norm",
    "post_ffw_norm": "post_ffw_norm",
    "attn_q_norm": "attn/_query_norm",
    "attn_k_norm": "attn/_key_norm",
}


def rules(config: Config, rows: int, transposed: bool) -> list[Rule]:
    """The whole table for one network. `rows`: of the embedding. `transposed`: gating_einsum is (2, F, D)."""
    padding: tuple[Op, ...] = (Padded(rows, config.vocab),) if rows != config.vocab else ()
    made = [rule("token_embd.weight", EMBEDDING, *padding), rule("output_norm.weight", "final_norm/scale", AddOne())]
    for i in range(config.depth):
        made += _block(config, i, transposed)
    known = shapes(config)
    return [one for one in made if one.ours[0] in known]


def _block(c: Config, i: int, transposed: bool) -> list[Rule]:
    def fused(parts: tuple[str, ...], theirs: str, *ops: Op) -> Rule:
        return Rule(tuple(f"blk.{i}.{part}.weight" for part in parts), (f"layer_{i}/{theirs}",), ops)

    def heads(count: int) -> tuple[Op, ...]:
        return Transpose((0, 2, 1)), Reshape((count, c.head_dim, c.width), (count * c.head_dim, c.width))

    made = [fused((ours,), f"{theirs}/scale", AddOne()) for ours, theirs in _NORMS.items()]
    if c.heads == c.kv_heads:
        made.append(fused(("attn_q", "attn_k", "attn_v"), "attn/qkv_einsum/w", Unstack(3), *heads(c.heads)))
    else:
        made.append(fused(("attn_q",), "attn/q_einsum/w", *heads(c.heads)))
        made.append(fused(("attn_k", "attn_v"), "attn/kv_einsum/w", Unstack(2), *heads(c.kv_heads)))
    out = Reshape((c.heads, c.head_dim, c.width), (c.q_width, c.width))
    made.append(fused(("attn_output",), "attn/attn_vec_einsum/w", out, Transpose()))
    turned = () if transposed else (Transpose(),)
    made.append(fused(("ffn_gate", "ffn_up"), "mlp/gating_einsum/w", Unstack(2), *turned))
    made.append(fused(("ffn_down",), "mlp/linear/w", Transpose()))
    return made


def nameless(config: Config) -> list[str]:
    """Tensors of a network that have no name here: biases, a head of its own."""
    named = {name for one in rules(config, config.vocab, False) for name in one.ours}
    return [name for name in shapes(config) if name not in named]


def transposed_by_size(config: Config) -> bool:
    """Whether gating_einsum is (2, F, D): in all published models from the 9B of the second generation on."""
    return config.block == "sandwich" and (config.qk_norm != "none" or config.width > 2304)


def flat(stored: Tensors, cut: Cut) -> Tensors:
    """Any spelling as the names above, without prefix. `cut` makes one entry for each slice along an axis."""
    training = any(name.startswith("opt_state/") or name == "step" for name in stored.entries)
    found: dict[str, Entry] = {}
    kinds = [int(seen[1]) for name in stored.entries if (seen := _STACKED.fullmatch(name))]
    for name, entry in stored.entries.items():
        if training and not name.startswith("params/"):
            continue
        plain = name.removeprefix("params/").removeprefix(PREFIX)
        stacked = _STACKED.fullmatch(name)
        if stacked and entry.shape:
            slices = cut(entry, 0)
            found |= {f"layer_{j * (max(kinds) + 1) + int(stacked[1])}/{stacked[2]}": e for j, e in enumerate(slices)}
        else:
            found[f"{plain}/w" if plain.endswith(("/mlp/linear", "/mlp/gating_einsum")) else plain] = entry
    return Tensors(found)


_STACKED = re.compile(r"(?:params/)?(?:transformer/)?stacked_layers/attention_type_(\d{1,4})/(.+)")


def read(stored: Tensors, config: Config, family: Family) -> Tensors:
    """Canonical tensors over those of `flat`."""
    embedding, gates = stored.entries.get(EMBEDDING), stored.entries.get("layer_0/mlp/gating_einsum/w")
    rows = max(embedding.shape[0], config.vocab) if embedding and embedding.shape else config.vocab
    transposed = transposed_by_size(config)
    if gates is not None and config.ffn != config.width:
        transposed = gates.shape == (2, config.ffn, config.width)
    return read_rules(rules(config, rows, transposed), stored, config, IGNORED)


def write(canonical: Tensors, config: Config, family: Family) -> Tensors:
    """The published spelling over canonical tensors; norms in the type of the embeddings."""
    kind = canonical.entries["token_embd.weight"].type
    table = rules(config, PADDED.get(config.vocab, config.vocab), transposed_by_size(config))
    made = write_rules(table, canonical, kind if kind in ("F16", "BF16", "F64") else "F32")
    return Tensors({PREFIX + name: entry for name, entry in made.entries.items()})


def of_vision(name: str) -> bool:
    return any(matches(name, pattern) for pattern in IGNORED)
