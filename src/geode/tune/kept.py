"""What a forward pass keeps of each token until its backward pass has been there: bytes, from a configuration alone.

This mirrors `network`: what each layer of it saves has a line here, and tests compare both tensor by tensor. What a
device or a framework takes besides is `plan`'s to know.

    a block keeps             numbers a token                             in
      a norm                  what came in, and one scale                 activations, float32
      an adapted or trained   what came in, once for those that share it  activations
      matrix                  with a low-rank pair the R of A x too
        of a thrifty block    nothing where a norm or a gate made it
      attention               queries, keys, values, outputs, log Σ exp   activations, float32
        with a soft-cap       the scores, three times                     float32, float32, activations
      a gated activation      both factors                                activations
      weights                 nothing, but for copies in the activations' type of what is held in float32
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..config import Attn, Config
from ..tensors import NORM_SLOTS, shapes

WIDE = 4  # bytes of float32
BLOCK, ORDERED = 64, 128  # `network.backend`: queries that share their keys; so where programs are compiled
INPUTS = {
    "attn": ("attn_q", "attn_k", "attn_v"),
    "attn_output": ("attn_output",),
    "ffn": ("ffn_gate", "ffn_up"),
    "ffn_down": ("ffn_down",),
}
"""Matrices that share what comes in."""


@dataclass(frozen=True)
class Method:
    """What training asks of a network: pairs and tensors trained whole by canonical name, how frozen matrices are kept,
    bytes of an activation's number."""

    pairs: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    rank: int = 0
    dora: bool = False
    quantize: str | None = None
    item: int = WIDE
    eager: bool = True  # PyTorch's way; compilers have no kernel of their own for attention here
    thrifty: bool = False  # blocks that compute norms and gates again, as PyTorch's do unless whole blocks are

    def changed(self, block: int, kind: str) -> list[str]:
        """Roles of a block's matrices that get a pair ("pairs") or are trained whole ("whole")."""
        start = f"blk.{block}."
        names: tuple[str, ...] = getattr(self, kind)
        return [name[len(start) : -len(".weight")] for name in names if name.startswith(start)]


def block_bytes(
    config: Config, block: int, rows: int, length: int, method: Method, tensor: int = 1
) -> dict[str, float]:
    """Bytes that one block keeps of rows × length tokens, by what keeps them. `tensor`: devices that share heads and
    the ffn's channels."""
    attn = config.layers[block]
    tokens = rows * length
    lines = {
        "norms": _norms(config, block, method),
        "inputs": _inputs(config, block, length, method, tensor),
        "low rank": _low_rank(config, block, method, tensor),
        "attention": _attention(config, method, tensor),
        "ffn": _ffn(config, method, tensor),
    }
    found = {name: value * tokens for name, value in lines.items()}
    found["scores"] = rows * _scores(config, attn, length, method) / tensor
    found["copies"] = _copies(config, block, method) / tensor
    return found


def between(config: Config, rows: int, length: int, method: Method) -> int:
    """Bytes between two blocks: all that rematerialisation keeps of one."""
    return rows * length * config.width * method.item


def ends(config: Config, rows: int, length: int, learnt: int, method: Method) -> dict[str, float]:
    """Bytes kept outside blocks: angles, what each query sees, the last norm, and what each learnt position has."""
    ropes = {attn.rope: attn.rope.dims(config.head_dim) for attn in config.layers}
    angles = 2 * sum(dims // 2 for dims in ropes.values()) * WIDE * rows * length
    reaches = bool(method.pairs or method.whole)
    windows = {attn.window for attn in config.layers}
    return {
        "angles": angles,
        "masks": len(windows) * rows * length**2 * _spanned(config, length, method),
        "last norm": rows * length * (config.width * method.item + WIDE) * reaches,
        # Hidden states, the same in float32, the embedding of each target, and what their gradient will be.
        "positions": learnt * config.width * (method.item + (3 if "token_embd.weight" in method.whole else 2) * WIDE),
    }


def spans(length: int, window: int | None, block: int = BLOCK) -> int:
    """Scores of one head that are computed: for each `block` of queries the keys that any of them sees, in a full
    row."""
    if length <= block:
        return length * length
    found = 0
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = 0 if window is None else max(0, start - window + 1)
        found += (stop - start) * (stop - first)
    return found


def _norms(c: Config, block: int, method: Method) -> float:
    inputs = len(NORM_SLOTS[c.block]) - (c.block == "parallel")
    numbers = inputs * c.width
    heads = {"none": 0}.get(c.qk_norm, c.q_width + c.kv_width)
    plain = c.norm.kind == "rms" and c.norm.weight and not c.norm.bias and method.eager
    scales = inputs + {"none": 0, "whole": 2}.get(c.qk_norm, c.heads + c.kv_heads)
    if plain:
        return (numbers + heads) * method.item + scales * WIDE
    trained = any(f"blk.{block}." in name and "norm" in name for name in method.whole)
    return (numbers + heads) * WIDE * (1 + (trained and c.norm.weight)) + scales * WIDE * (1 + (c.norm.kind == "layer"))


def _inputs(c: Config, block: int, length: int, method: Method, tensor: int) -> float:
    widths = {"attn": c.width, "attn_output": c.q_width / tensor, "ffn": c.width, "ffn_down": c.ffn / tensor}
    kept = {*method.changed(block, "pairs"), *method.changed(block, "whole")}
    needed = [key for key, roles in INPUTS.items() if method.quantize or kept & set(roles)]
    if c.block == "parallel_shared" and {"attn", "ffn"} <= set(needed):
        needed.remove("ffn")
    again = {"attn": "attn_norm", "ffn": "ffn_norm"}
    if method.thrifty:
        needed = [key for key in needed if again.get(key) not in NORM_SLOTS[c.block]]
        needed = [key for key in needed if key != "ffn_down" or not c.gated]
    if _spanned(c, length, method):
        needed = [key for key in needed if key != "attn_output"]  # attention's own outputs
    return sum(widths[key] for key in needed) * method.item


def _low_rank(c: Config, block: int, method: Method, tensor: int) -> float:
    roles = method.changed(block, "pairs")
    numbers = float(len(roles) * method.rank)
    if method.dora:
        outputs = {name: shape[0] for name, shape in shapes(c.replace(depth=1)).items() if name.startswith("blk.")}
        numbers += sum(outputs[f"blk.0.{role}.weight"] for role in roles) / tensor
    return numbers * method.item


def _attention(c: Config, method: Method, tensor: int) -> float:
    if method.eager and c.attn_softcap is None:
        return (2 * c.q_width + 2 * c.kv_width) * method.item / tensor + c.heads * WIDE / tensor
    return (c.q_width + 2 * c.kv_width) * method.item / tensor


def _spanned(c: Config, length: int, method: Method) -> bool:
    """Whether attention has a gradient of its own, which keeps no mask."""
    return method.eager and c.attn_softcap is None and length > BLOCK


def _scores(c: Config, attn: Attn, length: int, method: Method) -> float:
    """Of one row: the mask that a fused kernel takes, or the scores themselves."""
    if _spanned(c, length, method):
        return 0.0
    if method.eager and c.attn_softcap is None:
        return spans(length, attn.window) * (c.heads // c.kv_heads) * method.item
    seen = spans(length, attn.window, BLOCK if method.eager else ORDERED)
    floats = WIDE * (1 + (c.attn_softcap is not None)) + (method.item if method.item != WIDE else 0)
    return seen * c.heads * (floats + 1 / c.kv_heads)


def _ffn(c: Config, method: Method, tensor: int) -> float:
    return (2 if c.gated else 1) * c.ffn * method.item / tensor


def _copies(c: Config, block: int, method: Method) -> float:
    """Weights held in float32 that products take in another type: pairs, and matrices trained whole."""
    if method.item == WIDE:
        return 0.0
    start, found = f"blk.{block}.", 0
    known: Mapping[str, tuple[int, ...]] = shapes(c)
    for name in method.pairs:
        found += method.rank * sum(known[name]) * name.startswith(start)
    for name in method.whole:
        found += math.prod(known[name]) * (name.startswith(start) and len(known[name]) == 2 and "norm" not in name)
    return found * method.item
