"""keras_hub's names and layouts of a backbone's weights <-> canonical ones.

A preset's names follow Keras's saving: attributes of Python objects; layers of one class are counted.

theirs                                             ours
query, key, value (d, N, H) or Gemma's (N, d, H)   rows of N heads, (N · H, d)
attention_output (N, H, d)                         (d, N · H)
query_key_value (d, N, 3 · H), GPT-NeoX            [q k v] of each head, cut in three
dense kernels (in, out)                            (out, in)
reverse_embeddings (d, V)                          output.weight (V, d)
Gemma's norms, w                                   1 + w

The truth is keras_hub/src/models/*/*_backbone.py in github.com/keras-team/keras-hub, version 0.32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..config import Config
from ..families import Family
from ..tensors import Tensors, shapes
from . import Rule, fused, grouped_rows, rule, split_name
from . import read as read_rules
from . import write as write_rules
from .ops import AddOne, Op, Reshape, Rows, Transpose

HEAD = "layers/reversible_embedding/vars/1"

_GEMMA_NAMES = {
    "attn_norm": "pre_attention_norm",
    "post_attention_norm": "post_attention_norm",
    "attn_q": "attention/query_dense",
    "attn_k": "attention/key_dense",
    "attn_v": "attention/value_dense",
    "attn_output": "attention/output_dense",
    "attn_q_norm": "attention/query_norm",
    "attn_k_norm": "attention/key_norm",
    "ffn_norm": "pre_ffw_norm",
    "post_ffw_norm": "post_ffw_norm",
    "ffn_gate": "gating_ffw",
    "ffn_up": "gating_ffw_2",
    "ffn_down": "ffw_linear",
}
_LLAMA_NAMES = {
    "attn_norm": "_self_attention_layernorm",
    "attn_q": "_self_attention_layer/_query_dense",
    "attn_k": "_self_attention_layer/_key_dense",
    "attn_v": "_self_attention_layer/_value_dense",
    "attn_output": "_self_attention_layer/_output_dense",
    "attn_q_norm": "_self_attention_layer/_query_dense_layer_norm",
    "attn_k_norm": "_self_attention_layer/_key_dense_layer_norm",
    "ffn_norm": "_feedforward_layernorm",
    "ffn_gate": "_feedforward_gate_dense",
    "ffn_up": "_feedforward_intermediate_dense",
    "ffn_down": "_feedforward_output_dense",
}
_NEOX_NAMES = {
    "attn_norm": "_self_attention_layer_norm",
    "attn_qkv": "_self_attention_layer/_qkv_dense",
    "attn_output": "_self_attention_layer/_output_dense",
    "ffn_norm": "_feedforward_layer_norm",
    "ffn_up": "_feedforward_intermediate_dense",
    "ffn_down": "_feedforward_output_dense",
}


@dataclass(frozen=True)
class Layers:
    """How one backbone's layers are called in a file: Keras counts them by the snake_case of their classes."""

    block: str
    norm: str
    names: Mapping[str, str]
    heads_first: bool = False  # query (N, d, H), not (d, N, H)


LAYERS = {
    "gemma": Layers("gemma_decoder_block", "rms_normalization", _GEMMA_NAMES, heads_first=True),
    "gemma2": Layers("gemma_decoder_block", "rms_normalization", _GEMMA_NAMES, heads_first=True),
    "gemma3": Layers("gemma3_decoder_block", "rms_normalization", _GEMMA_NAMES, heads_first=True),
    "llama": Layers("llama_transformer_decoder", "llama_layer_norm", _LLAMA_NAMES),
    "mistral": Layers("mistral_transformer_decoder", "mistral_layer_normalization", _LLAMA_NAMES),
    "gpt_neox": Layers("gpt_neo_x_decoder", "layer_normalization", _NEOX_NAMES),
    "qwen2": Layers("qwen_transformer_decoder", "qwen_layer_norm", _LLAMA_NAMES),
    "qwen3": Layers("qwen3_transformer_decoder", "qwen3_layer_norm", _LLAMA_NAMES),
}
"""By the name of the family."""


def rules(config: Config, family: Family) -> list[Rule]:
    """The whole table for one network."""
    layers = LAYERS[family.name]
    made = []
    for ours in shapes(config):
        layer, stem, kind = split_name(ours)
        part = stem.removeprefix("blk.{}.")
        if family.fused_qkv and part in ("attn_q", "attn_k", "attn_v"):
            if part == "attn_q":
                made.append(_fused(config, _theirs(layers, layer, "attn_qkv", kind), layer, kind))
            continue
        ops = (AddOne(),) if family.norm_plus_one and stem.endswith("norm") else _ops(config, layers, part, kind)
        made.append(rule(ours, _theirs(layers, layer, part, kind), *ops))
    return made


def _theirs(layers: Layers, layer: str, part: str, kind: str) -> str:
    """'0', 'attn_q', 'weight' -> 'layers/llama_transformer_decoder/_self_attention_layer/_query_dense/vars/0'."""
    if part == "output":
        return HEAD
    if not layer:
        place = layers.norm if part == "output_norm" else "reversible_embedding"
    else:
        place = f"{layers.block}{'' if layer == '0' else f'_{layer}'}/{layers.names[part]}"
    return f"layers/{place}/vars/{0 if kind == 'weight' else 1}"


def _ops(config: Config, layers: Layers, part: str, kind: str) -> tuple[Op, ...]:
    width, heads, size = (
        config.width,
        config.kv_heads if part in ("attn_k", "attn_v") else config.heads,
        config.head_dim,
    )
    if part in ("attn_q", "attn_k", "attn_v"):
        if kind == "bias":
            return (Reshape((heads, size), (heads * size,)),)
        if layers.heads_first:
            return (Transpose((0, 2, 1)), Reshape((heads, size, width), (heads * size, width)))
        return (Reshape((width, heads, size), (width, heads * size)), Transpose())
    if kind == "bias" or part.endswith("norm") or part == "token_embd":
        return ()
    if part == "attn_output" and "attn_qkv" not in layers.names:
        return (Reshape((heads, size, width), (heads * size, width)), Transpose())
    return (Transpose(),)


def _fused(config: Config, theirs: str, layer: str, kind: str) -> Rule:
    width, heads, size = config.width, config.heads, config.head_dim
    flat: tuple[Op, ...] = (Reshape((heads, 3 * size), (3 * heads * size,)),)
    if kind == "weight":
        flat = (Reshape((width, heads, 3 * size), (width, 3 * heads * size)), Transpose())
    return fused(config, layer, kind, theirs, *flat, Rows(grouped_rows(config)))


VISION = ("layers/gemma3_vision_encoder*",)
"""Patterns of a vision tower's weights, which the text half does without."""


def read(stored: Tensors, config: Config, family: Family) -> Tensors:
    """Canonical tensors over a preset's."""
    return read_rules(rules(config, family), stored, config, VISION)


def write(canonical: Tensors, config: Config, family: Family) -> Tensors:
    """A preset's tensors over canonical ones; Gemma's norms in the type of the embeddings."""
    embeddings = canonical.entries["token_embd.weight"].type
    return write_rules(rules(config, family), canonical, embeddings if embeddings in ("F16", "BF16", "F64") else "F32")
