"""Tensor names and layouts of two PyTorch programs: Google's gemma_pytorch and Meta's llama <-> canonical ones.

gemma_pytorch                   ours
qkv_proj                        [q; k; v] cut in three
norms, w                        1 + w
freqs_cis                       left out: rotations, which whoever has the configuration computes

Meta's llama                    ours
wq, wk: pairs side by side      rows permuted so that pairs lie half against half
w1, w3, w2                      ffn_gate, ffn_up, ffn_down

The truth is gemma/model.py in github.com/google/gemma_pytorch and llama/model.py in github.com/meta-llama/llama.
"""

from __future__ import annotations

import numpy as np

from ..config import Config
from ..families import Family
from ..tensors import Entry, Tensors, shapes
from . import Rule, fused, halved_rows, rule, split_name
from . import read as read_rules
from . import write as write_rules
from .ops import AddOne, Op, Rows

# ------------------------------------------------------------------------------------------------------ gemma_pytorch

GEMMA_NAMES = {
    "token_embd": "embedder",
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.query_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.key_norm",
}
"""Where gemma_pytorch's names are not Hugging Face's."""

TABLES = ("freqs_cis", "local_freqs_cis", "global_freqs_cis")
MULTIMODAL = "text_token_embedder"  # the embedder of the files that see images too
VISION = ("siglip_vision_model.*", "mm_soft_embedding_norm.*", "mm_input_projection.*")


def gemma_rules(config: Config, family: Family) -> list[Rule]:
    names = family.names_for(config) | GEMMA_NAMES
    made = []
    for ours in shapes(config):
        layer, stem, kind = split_name(ours)
        if stem in ("blk.{}.attn_k", "blk.{}.attn_v"):
            continue
        if stem == "blk.{}.attn_q":
            made.append(fused(config, layer, kind, f"model.layers.{layer}.self_attn.qkv_proj.{kind}"))
        else:
            ops: tuple[Op, ...] = (AddOne(),) if stem.endswith("norm") else ()
            made.append(rule(ours, f"{names[stem].format(layer)}.{kind}", *ops))
    return made


def read_gemma(stored: Tensors, config: Config, family: Family) -> Tensors:
    """Canonical tensors over gemma_pytorch's, those of a multimodal file too."""
    plain = {name.replace(MULTIMODAL, "embedder", 1): entry for name, entry in stored.entries.items()}
    return read_rules(gemma_rules(config, family), Tensors(plain), config, (*TABLES, *VISION))


def write_gemma(canonical: Tensors, config: Config, family: Family) -> Tensors:
    """gemma_pytorch's tensors over canonical ones; with the table of rotations, which other readers take for granted.

    Gemma 3 goes without its two tables: they are as long as the reader's context, which need not be ours, and a table
    of another length is refused where an absent one is not (`load_state_dict(strict=False)`).
    """
    embeddings = canonical.entries["token_embd.weight"].type
    made = write_rules(gemma_rules(config, family), canonical, embeddings if embeddings in ("F16", "BF16") else "F32")
    return made if config.qk_norm != "none" else Tensors(made.entries | {"freqs_cis": _rotations(config)})


def _rotations(config: Config) -> Entry:
    """complex64 (2 · context, head_dim / 2)."""
    shape = (2 * config.context, config.head_dim // 2)

    def load() -> np.ndarray:
        frequencies = config.pattern[0].rope.frequencies(config.head_dim)
        angles = np.outer(np.arange(shape[0], dtype=np.float32), frequencies)
        return (np.cos(angles) + 1j * np.sin(angles)).astype(np.complex64)

    return Entry(shape, "COMPLEX64", 8 * shape[0] * shape[1], load)


# --------------------------------------------------------------------------------------------------------------- Meta

META_NAMES = {
    "token_embd": "tok_embeddings",
    "output_norm": "norm",
    "output": "output",
    "blk.{}.attn_norm": "layers.{}.attention_norm",
    "blk.{}.attn_q": "layers.{}.attention.wq",
    "blk.{}.attn_k": "layers.{}.attention.wk",
    "blk.{}.attn_v": "layers.{}.attention.wv",
    "blk.{}.attn_output": "layers.{}.attention.wo",
    "blk.{}.ffn_norm": "layers.{}.ffn_norm",
    "blk.{}.ffn_gate": "layers.{}.feed_forward.w1",
    "blk.{}.ffn_up": "layers.{}.feed_forward.w3",
    "blk.{}.ffn_down": "layers.{}.feed_forward.w2",
}


def meta_rules(config: Config) -> list[Rule]:
    made = []
    for ours in shapes(config):
        layer, stem, kind = split_name(ours)
        heads = {"blk.{}.attn_q": config.heads, "blk.{}.attn_k": config.kv_heads}.get(stem)
        ops = () if heads is None else (Rows(halved_rows(heads, config.head_dim)),)
        made.append(rule(ours, f"{META_NAMES[stem].format(layer)}.{kind}", *ops))
    return made


def read_meta(stored: Tensors, config: Config) -> Tensors:
    """Canonical tensors over Meta's, whole ones: `parallel.joined` makes them of the ranks'."""
    copies = ("output.weight",) if config.tied else ()
    return read_rules(meta_rules(config), stored, config, ("rope.freqs", *copies))
