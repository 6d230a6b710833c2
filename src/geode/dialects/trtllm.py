"""TensorRT-LLM's tensor names and layouts <-> canonical ones.

theirs                          ours
attention.qkv                   [q; k; v] cut in three; over ranks, the heads of each rank as [q; k; v]
mlp.fc, mlp.gate                ffn_gate, ffn_up: the names are crossed. Where there is no gate, fc is ffn_up
Gemma's norms                   as they are: both hold 1 + w
lm_head, split by rows          output, or a copy of the embeddings; rows of zeros up to a multiple of the ranks

A norm of Gemma's is stored as 1 + w in the checkpoint's type, as their converter does: in float32 that moves logits
by rounding alone, in bfloat16 a norm keeps 8 bits of 1 + w. The truth is tensorrt_llm/models/*/convert.py in
github.com/NVIDIA/TensorRT-LLM.
"""

from __future__ import annotations

from ..config import Config
from ..families import Family
from ..tensors import Tensors, shapes
from . import Rule, fused, rule, split_name
from . import read as read_rules
from . import write as write_rules
from .ops import Op, Padded
from .parallel import Cut, even

EMBEDDINGS, HEAD = "transformer.vocab_embedding.weight", "lm_head.weight"
QKV = "transformer.layers.{}.attention.qkv"
NAMES = {
    "token_embd": "transformer.vocab_embedding",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{}.attn_norm": "transformer.layers.{}.input_layernorm",
    "blk.{}.attn_output": "transformer.layers.{}.attention.dense",
    "blk.{}.attn_q_norm": "transformer.layers.{}.attention.q_layernorm",
    "blk.{}.attn_k_norm": "transformer.layers.{}.attention.k_layernorm",
    "blk.{}.ffn_norm": "transformer.layers.{}.post_layernorm",
    "blk.{}.ffn_gate": "transformer.layers.{}.mlp.fc",
    "blk.{}.ffn_up": "transformer.layers.{}.mlp.gate",
    "blk.{}.ffn_down": "transformer.layers.{}.mlp.proj",
}
UNGATED = {"blk.{}.ffn_up": "transformer.layers.{}.mlp.fc"}
SANDWICH = {
    "blk.{}.post_attention_norm": "transformer.layers.{}.post_layernorm",
    "blk.{}.ffn_norm": "transformer.layers.{}.pre_feedforward_layernorm",
    "blk.{}.post_ffw_norm": "transformer.layers.{}.post_feedforward_layernorm",
}
OWN = {
    "falcon": {"blk.{}.ffn_norm": "transformer.layers.{}.mlp_layernorm"},
    "gpt_neox": {"blk.{}.ffn_norm": "transformer.layers.{}.post_attention_layernorm"},
}
"""Family -> what it calls otherwise."""


def names(config: Config, family: Family) -> dict[str, str]:
    changes = (SANDWICH if config.block == "sandwich" else {}) | ({} if config.gated else UNGATED)
    return NAMES | changes | OWN.get(family.name, {})


def rules(config: Config, family: Family, head_rows: int) -> list[Rule]:
    """The whole table for one network, before it is split; `head_rows` of the head with its padding."""
    table = names(config, family)
    made = []
    for ours in shapes(config):
        layer, stem, kind = split_name(ours)
        if stem in ("blk.{}.attn_k", "blk.{}.attn_v"):
            continue
        if stem == "blk.{}.attn_q":
            made.append(fused(config, layer, kind, f"{QKV.format(layer)}.{kind}"))
        else:
            padded = stem == "output" and head_rows != config.vocab
            ops: tuple[Op, ...] = (Padded(head_rows, config.vocab),) if padded else ()
            made.append(rule(ours, f"{table[stem].format(layer)}.{kind}", *ops))
    return made


def read(stored: Tensors, config: Config, family: Family) -> Tensors:
    """Canonical tensors over TensorRT-LLM's whole ones: `parallel.joined` makes these of the ranks'."""
    copies = (HEAD,) if config.tied else ()
    rows = stored.entries[HEAD].shape[0] if HEAD in stored.entries else config.vocab
    return read_rules(rules(config, family, rows), stored, config, copies)


def write(canonical: Tensors, config: Config, family: Family, ranks: int) -> Tensors:
    """TensorRT-LLM's whole tensors over canonical ones, the head with them where it is tied."""
    embeddings = canonical.entries["token_embd.weight"]
    narrow = embeddings.type if embeddings.type in ("F16", "BF16") else "F32"
    rows = padded_rows(config.vocab, ranks)
    made = write_rules(rules(config, family, rows), canonical, narrow)
    if not config.tied:
        return made
    head = rule("head", HEAD, *(() if rows == config.vocab else (Padded(rows, config.vocab),)))
    return Tensors(made.entries | write_rules([head], Tensors({"head": embeddings})).entries)


def padded_rows(vocab: int, ranks: int) -> int:
    return -(-vocab // ranks) * ranks


def cuts(config: Config, family: Family, ranks: int, embeddings: Cut, rows: int) -> dict[str, Cut]:
    """How each tensor is split over `ranks`; `rows` of the whole head. What is not named, every rank holds.

    Where there are fewer key/value heads than ranks, neighbours hold the same one.
    """
    if ranks == 1:
        return {}
    table = names(config, family)
    pieces = min(ranks, config.kv_heads)
    qkv = Cut(0, ((config.q_width, ranks), (config.kv_width, pieces), (config.kv_width, pieces)))
    found = {EMBEDDINGS: embeddings, HEAD: even(rows, ranks)}
    for layer in range(config.depth):
        for kind in ("weight", "bias"):
            found[f"{QKV.format(layer)}.{kind}"] = qkv
            for stem in ("blk.{}.ffn_up", "blk.{}.ffn_gate"):
                found[f"{table[stem].format(layer)}.{kind}"] = even(config.ffn, ranks)
        found[f"{table['blk.{}.attn_output'].format(layer)}.weight"] = even(config.q_width, ranks, 1)
        found[f"{table['blk.{}.ffn_down'].format(layer)}.weight"] = even(config.ffn, ranks, 1)
    return found
