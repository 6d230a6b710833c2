"""Canonical tensor names (GGUF's) and their shapes; the lazy mapping that every reader returns.

Which file format a tensor came from is not known here: dialects have undone that. Weights are (out, in).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .config import Config
from .quant import TYPE_NAMES, QTensor

Array = np.ndarray | QTensor


@dataclass(frozen=True)
class Entry:
    """One tensor as its file's header tells it; `load` reads the bytes (memory-mapped where it can be)."""

    shape: tuple[int, ...]
    type: str  # "F32" "F16" "BF16" "Q4_K" ...: the name in the file's own type system, upper case
    nbytes: int
    load: Callable[[], Array]


class Tensors(Mapping[str, Array]):
    """Names to arrays, read when asked for. `entries` holds what is known without reading."""

    def __init__(self, entries: Mapping[str, Entry]):
        self.entries = dict(entries)

    def __getitem__(self, name: str) -> Array:
        return self.entries[name].load()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(entry.nbytes for entry in self.entries.values())


def from_arrays(arrays: Mapping[str, Array]) -> Tensors:
    """Arrays in memory as `Tensors`."""
    return Tensors({name: entry_of(array) for name, array in arrays.items()})


def entry_of(array: Array) -> Entry:
    kind = array.type if isinstance(array, QTensor) else TYPE_NAMES.get(array.dtype.name, array.dtype.name.upper())
    return Entry(tuple(array.shape), kind, array.nbytes, lambda: array)


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of the network with its shape: the one schema that readers, executors and counts share."""
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab, config.width)}
    for i in range(config.depth):
        tensors |= {f"blk.{i}.{name}": shape for name, shape in _block_shapes(config).items()}
    tensors |= _norm_shapes(config, "output_norm")
    if not config.tied:
        tensors["output.weight"] = (config.vocab, config.width)
    return tensors


NORM_SLOTS = {
    "pre": ("attn_norm", "ffn_norm"),
    "post": ("post_attention_norm", "post_ffw_norm"),
    "sandwich": ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"),
    "parallel": ("attn_norm", "ffn_norm"),
    "parallel_shared": ("attn_norm",),
}


def _block_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for slot in NORM_SLOTS[c.block]:
        found |= _norm_shapes(c, slot)
    found |= _linear("attn_q", c.q_width, c.width, c.qkv_bias)
    found |= _linear("attn_k", c.kv_width, c.width, c.qkv_bias)
    found |= _linear("attn_v", c.kv_width, c.width, c.qkv_bias)
    found |= _linear("attn_output", c.width, c.q_width, c.out_bias)
    for name, heads in (("attn_q_norm", c.heads), ("attn_k_norm", c.kv_heads)):
        if c.qk_norm == "shared":
            found[f"{name}.weight"] = (c.head_dim,)
        elif c.qk_norm == "per_head":
            found[f"{name}.weight"] = (heads, c.head_dim)
        elif c.qk_norm == "whole":
            found[f"{name}.weight"] = (heads * c.head_dim,)
    if c.gated:
        found |= _linear("ffn_gate", c.ffn, c.width, c.ffn_bias)
    found |= _linear("ffn_up", c.ffn, c.width, c.ffn_bias)
    found |= _linear("ffn_down", c.width, c.ffn, c.ffn_bias)
    return found


def _linear(name: str, out: int, width: int, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width)} | ({f"{name}.bias": (out,)} if bias else {})


def _norm_shapes(c: Config, name: str) -> dict[str, tuple[int, ...]]:
    kinds = ["weight"] * c.norm.weight + ["bias"] * c.norm.bias
    return {f"{name}.{kind}": (c.width,) for kind in kinds}


def parameters(config: Config) -> int:
    """Trained numbers in the network, tied weights once; allocates nothing."""
    return sum(math.prod(shape) for shape in shapes(config).values())


def flops_per_token(config: Config, context: int) -> int:
    """Multiplications and additions to compute one token's logits with `context` tokens visible."""
    matrices = sum(math.prod(shape) for name, shape in shapes(config).items() if _is_matrix(name))
    head = config.vocab * config.width
    seen = sum(min(context, layer.window or context) for layer in config.layers)
    return 2 * (matrices + head) + 4 * seen * config.q_width


def _is_matrix(name: str) -> bool:
    return name.endswith(".weight") and "norm" not in name and name not in ("token_embd.weight", "output.weight")
