"""llama2.c's first kind of file: seven numbers and float32 arrays in a fixed order, read in place.

What the network is for is not known here.

    width ffn depth heads kv_heads ±vocab context, i32 each; a vocabulary below zero: a head of its own at the end
    tok_embeddings | attention_norm of each layer | wq … | wk … | wv … | wo … | ffn_norm … | w1 … | w2 … | w3 … | norm |
    cosines | sines | output

The truth is `legacy_export` of export.py and `memory_map_weights` of run.c in github.com/karpathy/llama2.c.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np

from ..errors import FormatError
from ..quant import DTYPES
from ..tensors import Entry, Tensors
from .files import array_at, map_file, staging, write_tensor

HEADER = struct.Struct("<7i")
NEWER = b"24ka"  # "ak42" as a little-endian number: versions 1 and 2
TABLES = ("freqs_cos", "freqs_sin")


@dataclass(frozen=True)
class Header:
    """The sizes of a network, as the file's first 28 bytes say them."""

    width: int
    ffn: int
    depth: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every array of the file in its order, by Meta's names."""
        kv = self.kv_heads * self.head_dim
        made: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (self.vocab, self.width)}
        for name, shape in {
            "attention_norm": (self.width,),
            "attention.wq": (self.width, self.width),
            "attention.wk": (kv, self.width),
            "attention.wv": (kv, self.width),
            "attention.wo": (self.width, self.width),
            "ffn_norm": (self.width,),
            "feed_forward.w1": (self.ffn, self.width),
            "feed_forward.w2": (self.width, self.ffn),
            "feed_forward.w3": (self.ffn, self.width),
        }.items():
            made |= {f"layers.{layer}.{name}.weight": shape for layer in range(self.depth)}
        made["norm.weight"] = (self.width,)
        made |= dict.fromkeys(TABLES, (self.context, self.head_dim // 2))
        return made | ({} if self.tied else {"output.weight": (self.vocab, self.width)})

    def nbytes(self) -> int:
        """Bytes of the whole file."""
        layer = 2 * self.width + (2 * self.heads + 2 * self.kv_heads) * self.head_dim * self.width
        layer += 3 * self.ffn * self.width
        ends = self.vocab * self.width * (1 if self.tied else 2) + self.width
        return HEADER.size + 4 * (self.depth * layer + ends + self.context * (self.head_dim // 2) * 2)


def header_of(raw: bytes) -> Header | None:
    """The header in a file's first bytes; None where these cannot be one."""
    if len(raw) < HEADER.size:
        return None
    width, ffn, depth, heads, kv_heads, vocab, context = HEADER.unpack(raw[: HEADER.size])
    sizes = (width, ffn, depth, heads, kv_heads, abs(vocab), context)
    if min(sizes) < 1 or max(sizes) > 1 << 24 or depth > 10_000 or width % heads or heads % kv_heads:
        return None
    return Header(width, ffn, depth, heads, kv_heads, abs(vocab), context, vocab > 0)


def looks_like(path: Path) -> bool:
    """Whether a file's header and size agree, or it is one of the newer kinds."""
    with path.open("rb") as file:
        raw = file.read(HEADER.size)
    header = header_of(raw)
    return raw[:4] == NEWER or (header is not None and header.nbytes() == path.stat().st_size)


def read(path: Path) -> tuple[Header, Tensors]:
    """Sizes and arrays. Reads the header only. Raises FormatError."""
    data = map_file(path)
    raw = data[: HEADER.size].tobytes()
    if raw[:4] == NEWER:
        _fail(
            path, "it is of version 1 or 2", "Export it again with `--version 0`, or from the checkpoint it came from."
        )
    header = header_of(raw)
    if header is None:
        _fail(path, "its first 28 bytes are no sizes of a network")
    if header.nbytes() != len(data):
        _fail(path, f"its sizes ask for {header.nbytes()} bytes, and it has {len(data)}")
    made: dict[str, Entry] = {}
    at = HEADER.size
    for name, shape in header.shapes().items():
        nbytes = 4 * math.prod(shape)
        made[name] = Entry(shape, "F32", nbytes, partial(array_at, data, at, DTYPES["F32"], shape))
        at += nbytes
    return header, Tensors(made)


def _fail(path: Path, problem: str, remedy: str = "The file is damaged: fetch or export it again.") -> NoReturn:
    raise FormatError(f"{path} is not a good llama2.c file: {problem}. {remedy}")


def write(path: Path, header: Header, entries: Mapping[str, Entry]) -> None:
    """Writes all arrays in their order, one in memory at a time. Raises CapacityError, TensorError."""
    with staging(path) as stage, stage.open(path) as file:
        vocab = header.vocab if header.tied else -header.vocab
        sizes = (header.width, header.ffn, header.depth, header.heads, header.kv_heads, vocab, header.context)
        file.write(HEADER.pack(*sizes))
        for name in header.shapes():
            write_tensor(file, name, entries[name])


def rotations(header: Header) -> dict[str, Entry]:
    """Cosines and sines of each position, which run.c skips and other readers use: float32 (context, head_dim / 2)."""
    shape = (header.context, header.head_dim // 2)

    def table(turn: np.ufunc) -> np.ndarray:
        exponent = np.arange(0, header.head_dim, 2)[: shape[1]].astype(np.float32) / np.float32(header.head_dim)
        angles = np.outer(np.arange(shape[0], dtype=np.float32), np.float32(1) / np.float32(10_000.0) ** exponent)
        return np.asarray(turn(angles), np.float32)

    sizes = (shape, "F32", 4 * shape[0] * shape[1])
    return {name: Entry(*sizes, partial(table, turn)) for name, turn in zip(TABLES, (np.cos, np.sin), strict=True)}
