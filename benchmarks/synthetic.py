"""Models of a real size with random weights, as GGUF: the shapes, types and keys of the real file, none of its licence.

    python benchmarks/synthetic.py gemma-2b-q4_0 gemma-2b.gguf

Blocks are random bits with scales that give every matrix a deviation of 1/sqrt(its inputs), so activations stay finite
and the words that come out mean nothing. What is measured with such a file is speed; weights are written one tensor at
a time, so memory holds the largest one only.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from geode import families
from geode.config import Config, Norm
from geode.io import gguf
from geode.quant import BLOCKS, QTensor, row_bytes
from geode.tensors import Array, Entry, Tensors, shapes
from geode.tokenizer.spm import BYTE, CONTROL, NORMAL, UNKNOWN

SCALES = {"Q4_0": {0: 1.0}, "Q6_K": {208: 1.0}, "Q4_K": {0: 1.0, 2: 7.5}}
"""Where a block's half-precision scales lie and how they compare; 7.5 puts Q4_K's minimum at the mean of its digits."""


@dataclass(frozen=True)
class Model:
    """A network and the types its file has. `file_type` is llama.cpp's number for the mix (`enum llama_ftype`)."""

    family: str
    config: Config
    kind: str
    file_type: int


GEMMA_2B = Config(
    vocab=256_000, width=2048, depth=18, heads=8, kv_heads=1, head_dim=256, ffn=16_384, context=8192,
    norm=Norm("rms", eps=1e-6), activation="gelu_tanh", scale_embedding=True, tied=True,
)  # fmt: skip
MISTRAL_7B = Config(
    vocab=32_000, width=4096, depth=32, heads=32, kv_heads=8, head_dim=128, ffn=14_336, context=32_768,
    norm=Norm("rms", eps=1e-5), activation="silu", tied=False,
)  # fmt: skip
MODELS = {
    "gemma-2b-q4_0": Model("gemma", GEMMA_2B, "Q4_0", 2),
    "mistral-7b-q4_k_m": Model("llama", MISTRAL_7B, "Q4_K", 15),
}


def write(name: str, path: Path) -> None:
    """Writes one of `MODELS`, under a temporary name until it is whole."""
    model = MODELS[name]
    gguf.write(path, _metadata(name, model) | _tokenizer(model.config.vocab), _tensors(model))


def size(name: str) -> int:
    """Bytes of the tensors of one of `MODELS`."""
    return _tensors(MODELS[name]).nbytes


def _tensors(model: Model) -> Tensors:
    return Tensors({name: _entry(name, shape, model) for name, shape in shapes(model.config).items()})


def _entry(name: str, shape: tuple[int, ...], model: Model) -> Entry:
    if len(shape) == 1:  # norms
        return Entry(shape, "F32", 4 * shape[0], partial(np.ones, shape, np.float32))
    kind = _type(name, model)
    return Entry(shape, kind, shape[0] * row_bytes(kind, shape), partial(_blocks, name, kind, shape))


def _type(name: str, model: Model) -> str:
    """What llama-quantize chooses for a matrix: llama.cpp's src/llama-quant.cpp `llama_tensor_get_type_impl`."""
    if name == ("token_embd.weight" if model.config.tied else "output.weight"):
        return "Q6_K"
    layer = re.fullmatch(r"blk\.(\d+)\.(?:attn_v|ffn_down)\.weight", name)
    if model.kind == "Q4_K" and layer and _wants_more_bits(int(layer[1]), model.config.depth):
        return "Q6_K"
    return model.kind


def _wants_more_bits(layer: int, depth: int) -> bool:
    return layer < depth // 8 or layer >= 7 * depth // 8 or (layer - depth // 8) % 3 == 2


def _blocks(name: str, kind: str, shape: tuple[int, ...]) -> Array:
    """A matrix of random blocks; the same name gives the same bits."""
    random = np.random.default_rng(list(name.encode()))
    count = shape[0] * shape[1] // BLOCKS[kind].elements
    data = random.integers(256, size=(count, BLOCKS[kind].nbytes), dtype=np.uint8)
    signs = random.choice(np.array([-1, 1], np.float16), count)  # or all matrices would lean to one side
    unit = _deviation(kind, data[:4096])
    for at, weight in SCALES[kind].items():
        scale = np.float16(weight / (unit * shape[1] ** 0.5))
        data[:, at : at + 2] = (signs * scale)[:, None].view(np.uint8)
    return QTensor(kind, shape, data.reshape(shape[0], -1))


def _deviation(kind: str, sample: np.ndarray) -> float:
    """Root mean square of these blocks' numbers if their scales were one."""
    sample = sample.copy()
    for at, weight in SCALES[kind].items():
        sample[:, at : at + 2] = np.array([weight], np.float16).view(np.uint8)
    return float(np.sqrt(np.mean(BLOCKS[kind].unpack(sample) ** 2)))


def _metadata(name: str, model: Model) -> dict[str, object]:
    family = families.by_name(model.family)
    general = {"general.architecture": family.gguf_arch, "general.name": f"{name}, random weights"}
    types = {"general.file_type": model.file_type, "general.quantization_version": 2}
    return general | types | family.config_to_gguf(model.config)


def _tokenizer(vocab: int) -> dict[str, object]:
    """A SentencePiece vocabulary: four roles, the bytes, and words that no text spells."""
    roles = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "<pad>": CONTROL}
    pieces = [*roles, *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [*roles.values(), *[BYTE] * 256]
    words = [f"▁word{i}" for i in range(len(pieces), vocab)]
    ids = {"unknown": 0, "bos": 1, "eos": 2, "padding": 3}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces + words,
        "tokenizer.ggml.scores": -np.arange(vocab, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(types + [NORMAL] * len(words), np.int32),
        "tokenizer.ggml.add_bos_token": True,
        **{f"tokenizer.ggml.{role}_token_id": token for role, token in ids.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    start = time.perf_counter()
    write(args.name, args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes in {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
