"""MaxText's names and layouts <-> canonical ones, as github.com/AI-Hypercomputer/maxtext converts checkpoints.

Where the bytes lie is not known here. All are below params/params/. L layers, H query heads, D width, F hidden width.

theirs, layer by layer                                      ours
token_embedder/embedding             (V + padding, D)       token_embd, · √D where the network scales embeddings
decoder/logits_dense/kernel          (D, V)                 output
decoder/layers_i/self_attention/query/kernel (D, H, head)   attn_q, · score scale where MaxText does not apply it
decoder/layers_i/self_attention/out/kernel   (H, head, D)   attn_output
decoder/layers_i/mlp/{wi_0,wi_1,wo}/kernel   (D, F), (F, D) ffn_gate, ffn_up, ffn_down
…norm/scale                                                 as it is: Gemma's with one added, unlike anywhere else

Scanned, the layers of one kind are one array, layer axis 1, below decoder/layers:

    all alike      layers/mlp/wo/kernel               (F, L, D)
    Gemma 2        layers/mlp_local/…, mlp_global/…   pairs of layers; without scanning layers_i is a pair too
    Gemma 3        layers/layers_0/… layers_5/…       blocks of six; the rest is layers_remainder/layers_i, not scanned

Sources: maxtext checkpoint_conversion/utils/param_mapping.py, standalone_scripts/{convert_gemma_chkpt,
convert_gemma2_chkpt,convert_gemma3_chkpt,llama_or_mistral_ckpt}.py, layers/attentions.py (query scale, kinds of rope).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from ..config import Bands, Config
from ..families import Family
from ..quant import DTYPES
from ..tensors import Entry, Tensors, shapes
from . import Rule, halved_rows, matches, rule
from . import read as read_rules
from . import write as write_rules
from .flax import PADDED, Cut
from .ops import Op, Padded, Reshape, Rows, Scale, Transpose

PREFIX = "params/params/"
EMBEDDING = "token_embedder/embedding"
HEAD = "decoder/logits_dense/kernel"
IGNORED = ("vision_encoder/*",)
LAYER_AXIS = 1


@dataclass(frozen=True)
class Kind:
    """How MaxText spells one family."""

    block: str  # decoder_block
    norms: tuple[str, str] = ("pre_self_attention_layer_norm", "post_self_attention_layer_norm")
    baked_scale: bool = True  # the query is stored with the score scale in it
    pairs: bool = False  # a local and a global layer are one of its layers
    period: int | None = None  # layers of a scanned block


_GEMMA_NORMS = ("pre_self_attention_norm", "pre_ffw_norm")
KINDS = {
    "gemma": Kind("gemma", _GEMMA_NORMS),
    "gemma2": Kind("gemma2", _GEMMA_NORMS, pairs=True),
    "gemma3": Kind("gemma3", _GEMMA_NORMS, baked_scale=False, period=6),
    "llama": Kind("llama2"),
    "mistral": Kind("mistral"),
    "qwen2": Kind("qwen2", baked_scale=False),
    "qwen3": Kind("qwen3", baked_scale=False),
}
"""By the family's name."""


def rules(config: Config, family: Family, rows: int) -> list[Rule]:
    """The whole table for one network, layer by layer. `rows`: of the embedding."""
    padding: tuple[Op, ...] = (Padded(rows, config.vocab),) if rows != config.vocab else ()
    scale: tuple[Op, ...] = (Scale(math.sqrt(config.width)),) if config.scale_embedding else ()
    made = [rule("token_embd.weight", EMBEDDING, *padding, *scale)]
    made.append(rule("output_norm.weight", "decoder/decoder_norm/scale"))
    if not config.tied:
        made.append(rule("output.weight", HEAD, Transpose(), *padding))
    for i in range(config.depth):
        made += _block(config, KINDS[family.name], i)
    known = shapes(config)
    return [one for one in made if one.ours[0] in known]


def _block(c: Config, kind: Kind, i: int) -> list[Rule]:
    def one(ours: str, theirs: str, *ops: Op) -> Rule:
        part, rest = theirs.split("/", 1)
        if kind.pairs:
            part += "_global" if i % 2 else "_local"
        return rule(f"blk.{i}.{ours}", f"decoder/layers_{i // 2 if kind.pairs else i}/{part}/{rest}", *ops)

    out = Reshape((c.heads, c.head_dim, c.width), (c.q_width, c.width))
    made = [one(f"{ours}.weight", f"{theirs}/scale") for ours, theirs in _norms(kind).items()]
    for ours, theirs, heads in (
        ("attn_q", "query", c.heads),
        ("attn_k", "key", c.kv_heads),
        ("attn_v", "value", c.kv_heads),
    ):
        made.append(one(f"{ours}.weight", f"self_attention/{theirs}/kernel", *_head_ops(c, kind, theirs, heads)))
        flat = Reshape((heads, c.head_dim), (heads * c.head_dim,))
        made.append(one(f"{ours}.bias", f"self_attention/{theirs}/bias", flat))
    made.append(one("attn_output.weight", "self_attention/out/kernel", out, Transpose()))
    for ours, theirs in (("ffn_gate", "wi_0"), ("ffn_up", "wi_1"), ("ffn_down", "wo")):
        made.append(one(f"{ours}.weight", f"mlp/{theirs}/kernel", Transpose()))
    return made


def _norms(kind: Kind) -> dict[str, str]:
    before_attention, before_mlp = kind.norms
    gemma = {"post_attention_norm": "post_self_attention_norm", "post_ffw_norm": "post_ffw_norm"}
    per_head = {"attn_q_norm": "self_attention/query_norm", "attn_k_norm": "self_attention/key_norm"}
    return {"attn_norm": before_attention, "ffn_norm": before_mlp} | gemma | per_head


def _head_ops(c: Config, kind: Kind, part: str, heads: int) -> tuple[Op, ...]:
    ops: tuple[Op, ...] = (Reshape((c.width, heads, c.head_dim), (c.width, heads * c.head_dim)), Transpose())
    if part != "value" and adjacent_pairs(c):
        ops += (Rows(halved_rows(heads, c.head_dim)),)
    if part == "query" and kind.baked_scale:
        ops += (Scale(c.scale),)
    return ops


def adjacent_pairs(config: Config) -> bool:
    """Whether neighbours (0,1)(2,3)… rotate together: in MaxText's rope for Llama 3.1, and nowhere else here."""
    return isinstance(config.layers[0].rope.scaling, Bands)


def nameless(config: Config, family: Family) -> list[str]:
    """Tensors of a network that MaxText's layers have not."""
    named = {name for one in rules(config, family, config.vocab) for name in one.ours}
    return [name for name in shapes(config) if name not in named]


def unscanned(stored: Tensors, cut: Cut) -> Tensors:
    """The weights alone, layer by layer, from below params/ if there. `cut`: an entry for each slice along an axis."""
    inside = any(name.startswith("params/") for name in stored.entries)
    plain = {
        name.removeprefix("params/").removeprefix("params/"): entry
        for name, entry in stored.entries.items()
        if name.startswith("params/") or not inside
    }
    blocks = {int(seen[1]): seen for name in plain if (seen := _SCANNED.fullmatch(name)) and seen[1]}
    period = max(blocks) + 1 if blocks else 1
    count = max(
        (e.shape[1] for n, e in plain.items() if (s := _SCANNED.fullmatch(n)) and s[1] and len(e.shape) > 1), default=0
    )
    found: dict[str, Entry] = {}
    for name, entry in plain.items():
        scanned, left = _SCANNED.fullmatch(name), _REMAINDER.fullmatch(name)
        if scanned and len(entry.shape) > LAYER_AXIS:
            first = int(scanned[1] or 0)
            for j, part in enumerate(cut(entry, LAYER_AXIS)):
                found[f"decoder/layers_{j * period + first}/{scanned[2]}"] = part
        elif left:
            found[f"decoder/layers_{count * period + int(left[1])}/{left[2]}"] = entry
        else:
            found[name] = entry
    return Tensors(found)


_SCANNED = re.compile(r"decoder/layers/(?:layers_(\d{1,4})/)?(.+)")
_REMAINDER = re.compile(r"decoder/layers_remainder/layers_(\d{1,4})/(.+)")
_LAYER = re.compile(r"decoder/layers_(\d+)/(.+)")


def scanned(tensors: Tensors, config: Config, family: Family) -> tuple[Tensors, dict[str, int]]:
    """Layers stacked, and the axis of each array that holds some."""
    groups: dict[str, list[str]] = {}
    for name in tensors.entries:
        groups.setdefault(_scanned_name(name, config.depth, KINDS[family.name].period), []).append(name)
    found, axes = {}, {}
    for name, members in groups.items():
        found[name] = tensors.entries[members[0]]
        if name.startswith("decoder/layers/"):
            found[name], axes[name] = _stack(tensors, members), LAYER_AXIS
    return Tensors(found), axes


def _scanned_name(name: str, depth: int, period: int | None) -> str:
    seen = _LAYER.fullmatch(name)
    if seen is None:
        return name
    layer, rest = int(seen[1]), seen[2]
    if period is None:
        return f"decoder/layers/{rest}"
    whole = depth - depth % period
    return (
        f"decoder/layers/layers_{layer % period}/{rest}"
        if layer < whole
        else f"decoder/layers_remainder/layers_{layer - whole}/{rest}"
    )


def _stack(tensors: Tensors, members: list[str]) -> Entry:
    entries = [tensors.entries[name] for name in members]
    first = entries[0]
    shape = (*first.shape[:LAYER_AXIS], len(members), *first.shape[LAYER_AXIS:])
    kind = first.type if {entry.type for entry in entries} == {first.type} else "F32"
    nbytes = math.prod(shape) * DTYPES[kind].itemsize
    return Entry(shape, kind, nbytes, lambda: _filled(entries, np.empty(shape, DTYPES[kind])))


def _filled(entries: list[Entry], whole: np.ndarray) -> np.ndarray:
    for j, entry in enumerate(entries):
        whole[:, j] = np.asarray(entry.load())
    return whole


def read(stored: Tensors, config: Config, family: Family) -> Tensors:
    """Canonical tensors over those of `unscanned`, in the types that they are stored in, factors taken out."""
    embedding = stored.entries.get(EMBEDDING)
    rows = max(embedding.shape[0], config.vocab) if embedding and embedding.shape else config.vocab
    table = rules(config, family, rows)
    found = read_rules(table, stored, config, IGNORED)
    kinds = {one.ours[0]: stored.entries[one.theirs[0]].type for one in table}
    return Tensors({name: _narrowed(entry, kinds[name]) for name, entry in found.entries.items()})


def _narrowed(entry: Entry, kind: str) -> Entry:
    """A tensor that was computed in float64, in the type of the numbers it was computed from."""
    if entry.type == kind:
        return entry
    dtype = DTYPES[kind]
    return Entry(
        entry.shape, kind, math.prod(entry.shape) * dtype.itemsize, lambda: np.asarray(entry.load()).astype(dtype)
    )


def write(canonical: Tensors, config: Config, family: Family, narrow: str = "F32") -> Tensors:
    """MaxText's tensors, layer by layer; `narrow` is the type of those that a factor goes into."""
    return write_rules(rules(config, family, PADDED.get(config.vocab, config.vocab)), canonical, narrow)


def of_vision(name: str) -> bool:
    return any(matches(name, pattern) for pattern in IGNORED)
