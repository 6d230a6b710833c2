"""GGUF's tensor layouts <-> canonical ones. The names are the same, for ours are GGUF's.

theirs                          ours
attn_qkv                        [q; k; v] cut in three
q and k, pairs side by side     rows permuted so that pairs lie half against half
norms                           as they are: GGUF has added Gemma's one already
"""

from __future__ import annotations

from ..config import Config
from ..families import Family
from ..tensors import Tensors, shapes
from . import Rule, fused, halved_rows, matches, rule, split_name
from . import read as read_rules
from . import write as write_rules
from .ops import Op, Rows


def rules(config: Config, family: Family) -> list[Rule]:
    """The whole table for one network."""
    names = family.gguf_names_by_block.get(config.block, {})
    made = []
    for ours in shapes(config):
        layer, stem, kind = split_name(ours)
        if family.fused_qkv and stem in ("blk.{}.attn_q", "blk.{}.attn_k", "blk.{}.attn_v"):
            if stem.endswith("attn_q"):
                made.append(fused(config, layer, kind, f"blk.{layer}.attn_qkv.{kind}"))
            continue
        theirs = f"{names.get(stem, stem).format(layer)}.{kind}"
        optional = any(matches(ours, pattern) for pattern in family.optional)
        made.append(rule(ours, theirs, *_rotation(config, family, stem), optional=optional))
    return made


def _rotation(config: Config, family: Family, stem: str) -> tuple[Op, ...]:
    if not family.gguf_pairs_adjacent or stem not in ("blk.{}.attn_q", "blk.{}.attn_k"):
        return ()
    heads = config.heads if stem.endswith("q") else config.kv_heads
    return (Rows(halved_rows(heads, config.head_dim)),)


def read(stored: Tensors, config: Config, family: Family) -> Tensors:
    """Canonical tensors over a GGUF file's."""
    return read_rules(rules(config, family), stored, config, (*family.ignore, "rope_freqs.weight"))


def write(canonical: Tensors, config: Config, family: Family) -> Tensors:
    """GGUF's tensors over canonical ones."""
    return write_rules(rules(config, family), canonical)
