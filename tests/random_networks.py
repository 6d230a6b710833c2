"""Tiny networks of random weights in any type of the files, made from a `Config` alone; no framework is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from geode import families
from geode.config import Attn, Config
from geode.dialects import gguf as gguf_dialect
from geode.dialects import hf as hf_dialect
from geode.io import gguf, safetensors
from geode.quant import BLOCKS, DTYPES, QTensor, quantize, to_float32
from geode.tensors import Array, Tensors, from_arrays, shapes

KINDS = ("F32", "F16", "BF16", *BLOCKS)

WINDOWS = Config(
    96, width=48, depth=4, heads=4, kv_heads=2, head_dim=32, ffn=80, context=1024,
    pattern=(Attn(100), Attn(8), Attn()), block="sandwich",
)  # fmt: skip
"""Layers that see 100 tokens, 8, and all; nothing is a whole number of panels but the heads."""

BLOCKY = Config(
    320, width=256, depth=4, heads=4, kv_heads=2, head_dim=64, ffn=512, context=1024, pattern=(Attn(100), Attn()),
)  # fmt: skip
"""Rows of whole blocks of every type."""

LLAMA = families.by_name("llama")
SMALL = Config(
    260, width=64, depth=2, heads=4, kv_heads=2, head_dim=32, ffn=96, context=256, norm=LLAMA.constants["norm"],
)  # fmt: skip
"""A Llama that files can hold."""


def arrays(config: Config, kind: str = "F32", seed: int = 0) -> dict[str, Array]:
    """Weights whose logits spread as a trained network's do; matrices as `kind`, the rest float32."""
    rng = np.random.default_rng(seed)
    return {name: _array(name, shape, kind, rng) for name, shape in shapes(config).items()}


def _array(name: str, shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> Array:
    noise = rng.standard_normal(shape).astype(np.float32)
    if "norm" in name:
        return 0.3 * noise + np.float32(name.endswith("weight"))
    if name.endswith("bias"):
        return 0.3 * noise
    gain = {"token_embd.weight": 1.0, "output.weight": 3 * shape[-1] ** -0.5}.get(name, 1.5 * shape[-1] ** -0.5)
    noise *= np.float32(gain)
    return quantize(noise, kind) if kind in BLOCKS else noise.astype(DTYPES[kind])


def network(config: Config, kind: str = "F32", seed: int = 0) -> Tensors:
    return from_arrays(arrays(config, kind, seed))


def widened(tensors: Tensors) -> Tensors:
    """The same numbers in float32."""
    return from_arrays({name: to_float32(array) for name, array in tensors.items()})


def text(length: int, seed: int = 1, vocab: int = 96) -> list[int]:
    return np.random.default_rng([length, seed]).integers(0, vocab, length).tolist()


def write_hf(folder: Path, kind: str = "F32", config: Config = SMALL, seed: int = 0) -> Path:
    """A directory of config.json and model.safetensors, without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / "model.safetensors", hf_dialect.write(network(config, kind, seed), config, LLAMA))
    (folder / "config.json").write_text(json.dumps(LLAMA.config_to_hf(config)), encoding="utf-8")
    return folder


def write_gguf(path: Path, kind: str = "F32", config: Config = SMALL, seed: int = 0) -> Path:
    return save_gguf(path, arrays(config, kind, seed), config)


def save_gguf(path: Path, weights: Mapping[str, Array], config: Config = SMALL) -> Path:
    """A Llama of these canonical tensors as a file without a tokenizer."""
    metadata = {"general.architecture": "llama", **LLAMA.config_to_gguf(config)}
    known = {name: value for name, value in metadata.items() if value is not None}
    gguf.write(path, known, gguf_dialect.write(from_arrays(weights), config, LLAMA))
    return path


def packed_row(tensors: Tensors, name: str, row: int) -> bytes:
    """The bytes of one row of a matrix, whatever its type."""
    array = tensors[name]
    return (
        bytes(array.data[row]) if isinstance(array, QTensor) else bytes(np.ascontiguousarray(array[row]).view(np.uint8))
    )
