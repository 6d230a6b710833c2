"""Hugging Face's tensor names and layouts <-> canonical ones.

theirs                          ours
q_proj, k_proj, v_proj          attn_q, attn_k, attn_v           as they are
query_key_value                 [q; k; v] cut in three           fused per key/value head
Gemma's norms, w                1 + w
q_layernorm.norms.{h}           one matrix (heads, head_dim)
"""

from __future__ import annotations

from ..config import Config
from ..families import Family
from ..tensors import Tensors, shapes
from . import Rule, fused, grouped_rows, matches, rule, split_name
from . import read as read_rules
from . import write as write_rules
from .ops import AddOne, Op, Rows, Stack


def rules(config: Config, family: Family) -> list[Rule]:
    """The whole table for one network."""
    names = family.names_for(config)
    made = []
    for ours in shapes(config):
        layer, stem, kind = split_name(ours)
        if family.fused_qkv and stem in ("blk.{}.attn_q", "blk.{}.attn_k", "blk.{}.attn_v"):
            if stem.endswith("attn_q"):
                name = f"{names['blk.{}.attn_qkv'].format(layer)}.{kind}"
                made.append(fused(config, layer, kind, name, Rows(grouped_rows(config))))
            continue
        theirs = names[stem].format(layer)
        optional = any(matches(ours, pattern) for pattern in family.optional)
        if stem.endswith(("q_norm", "k_norm")) and config.qk_norm == "per_head":
            heads = config.heads if stem.endswith("q_norm") else config.kv_heads
            made.append(Rule((ours,), tuple(f"{theirs}.norms.{h}.{kind}" for h in range(heads)), (Stack(heads),)))
        else:
            ops: tuple[Op, ...] = (AddOne(),) if family.norm_plus_one and stem.endswith("norm") else ()
            made.append(rule(ours, f"{theirs}.{kind}", *ops, optional=optional))
    return made


def read(stored: Tensors, config: Config, family: Family) -> Tensors:
    """Canonical tensors over a Hugging Face checkpoint's."""
    renamed = Tensors({_renamed(name, family): entry for name, entry in stored.entries.items()})
    names = family.names
    copies = (f"{names['output']}.weight",) if config.tied else ()  # some savers store a tied head all the same
    return read_rules(rules(config, family), renamed, config, (*family.ignore, *family.vision, *copies))


def write(canonical: Tensors, config: Config, family: Family) -> Tensors:
    """Hugging Face's tensors over canonical ones; Gemma's norms in the type of the embeddings."""
    embeddings = canonical.entries["token_embd.weight"].type
    return write_rules(rules(config, family), canonical, embeddings if embeddings in ("F16", "BF16", "F64") else "F32")


def _renamed(name: str, family: Family) -> str:
    for theirs, ours in family.renames:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
