"""NeMo's tensor names and layouts, those of Megatron-Core's GPT <-> canonical ones.

theirs                                          ours
self_attention.linear_qkv                       [q; k; v], grouped per key/value head as [q … q k v]
mlp.linear_fc1                                  [gate; up] cut in two; up alone where there is no gate
linear_qkv.layer_norm_weight, linear_fc1.…      norms before attention and MLP, which lie in the next matrix's module
word_embeddings, output_layer                   with rows of padding at the end, which are left out
norms where gamma is zero-centered              1 + w

Gemma 1's norms are stored as 1 + w: in float32, so that little is lost. A tied head is written a second time, except
for Gemma, as NeMo's own converters do: scripts/checkpoint_converters in github.com/NVIDIA/NeMo.
"""

from __future__ import annotations

from ..config import Config
from ..families import Family
from ..tensors import Tensors, shapes
from . import Rule, fused, grouped_rows, rule, split_name
from . import read as read_rules
from . import write as write_rules
from .ops import AddOne, Op, Padded, Rows, Split
from .parallel import WHOLE, Cut, even

EMBEDDINGS, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
NAMES = {
    "token_embd": "embedding.word_embeddings.{kind}",
    "output_norm": "decoder.final_layernorm.{kind}",
    "output": "output_layer.{kind}",
    "blk.{}.attn_norm": "decoder.layers.{layer}.self_attention.linear_qkv.layer_norm_{kind}",
    "blk.{}.attn_output": "decoder.layers.{layer}.self_attention.linear_proj.{kind}",
    "blk.{}.post_attention_norm": "decoder.layers.{layer}.self_attention.linear_proj.post_layernorm.{kind}",
    "blk.{}.ffn_norm": "decoder.layers.{layer}.mlp.linear_fc1.layer_norm_{kind}",
    "blk.{}.ffn_up": "decoder.layers.{layer}.mlp.linear_fc1.{kind}",
    "blk.{}.ffn_down": "decoder.layers.{layer}.mlp.linear_fc2.{kind}",
    "blk.{}.post_ffw_norm": "decoder.layers.{layer}.mlp.linear_fc2.post_layernorm.{kind}",
}
FALCON_NAMES = {
    "blk.{}.attn_norm": "decoder.layers.{layer}.input_layernorm.{kind}",
    "blk.{}.ffn_norm": "decoder.layers.{layer}.pre_mlp_layernorm.{kind}",
}
QKV = "decoder.layers.{layer}.self_attention.linear_qkv.{kind}"
IGNORE = ("*_extra_state", "*rotary_pos_emb.inv_freq")
FAMILIES = ("llama", "mistral", "gemma", "gemma2", "qwen2", "falcon")
"""Those that NeMo's converters know."""


def zero_centered(family: Family) -> bool:
    """Whether NeMo stores this family's norms as their distance from one."""
    return family.name == "gemma2"


def rules(config: Config, family: Family, centered: bool, rows: int | None = None) -> list[Rule]:
    """The whole table for one network; `rows` that the embeddings have with their padding."""
    names = NAMES | (FALCON_NAMES if family.name == "falcon" else {})
    made = []
    for ours in shapes(config):
        layer, stem, kind = split_name(ours)
        if stem in ("blk.{}.attn_k", "blk.{}.attn_v", "blk.{}.ffn_gate"):
            continue
        if stem == "blk.{}.attn_q":
            made.append(fused(config, layer, kind, QKV.format(layer=layer, kind=kind), Rows(grouped_rows(config))))
            continue
        theirs = names[stem].format(layer=layer, kind=kind)
        if stem == "blk.{}.ffn_up" and config.gated:
            made.append(Rule((f"blk.{layer}.ffn_gate.{kind}", ours), (theirs,), (Split((config.ffn, config.ffn)),)))
        else:
            made.append(rule(ours, theirs, *_ops(config, stem, centered, rows)))
    return made


def _ops(config: Config, stem: str, centered: bool, rows: int | None) -> tuple[Op, ...]:
    if stem in ("token_embd", "output") and rows not in (None, config.vocab):
        return (Padded(rows or 0, config.vocab),)
    return (AddOne(),) if centered and stem.endswith("norm") else ()


def read(stored: Tensors, config: Config, family: Family, centered: bool) -> Tensors:
    """Canonical tensors over NeMo's, whole and without the prefix of their module."""
    rows = stored.entries[EMBEDDINGS].shape[0] if EMBEDDINGS in stored.entries else None
    copies = (HEAD,) if config.tied else ()
    return read_rules(rules(config, family, centered, rows), stored, config, (*IGNORE, *copies))


def write(canonical: Tensors, config: Config, family: Family) -> Tensors:
    """NeMo's tensors over canonical ones, with their prefix."""
    made = dict(write_rules(rules(config, family, zero_centered(family)), canonical).entries)
    if config.tied and not shares(family):
        made[HEAD] = made[EMBEDDINGS]
    return Tensors({f"model.{name}": entry for name, entry in made.items()})


def shares(family: Family) -> bool:
    """Whether NeMo keeps no head apart from the embeddings."""
    return family.name in ("gemma", "gemma2")


def plain(stored: Tensors) -> Tensors:
    """The same without the prefixes that modules around the network put before names."""
    return Tensors({name.removeprefix("model.").removeprefix("module."): e for name, e in stored.entries.items()})


def cuts(config: Config, rows: int, ranks: int) -> dict[str, Cut]:
    """How Megatron splits each tensor over `ranks`; `rows` that all of them hold of the embeddings."""
    fused = config.q_width + 2 * config.kv_width
    fc1 = Cut(0, ((config.ffn, ranks),) * (2 if config.gated else 1)) if ranks > 1 else WHOLE
    found = {EMBEDDINGS: even(rows, ranks), HEAD: even(rows, ranks)}
    for layer in range(config.depth):
        for kind in ("weight", "bias"):
            found[QKV.format(layer=layer, kind=kind)] = even(fused, ranks)
            found[NAMES["blk.{}.ffn_up"].format(layer=layer, kind=kind)] = fc1
        found[NAMES["blk.{}.attn_output"].format(layer=layer, kind="weight")] = even(config.q_width, ranks, 1)
        found[NAMES["blk.{}.ffn_down"].format(layer=layer, kind="weight")] = even(config.ffn, ranks, 1)
    return found
