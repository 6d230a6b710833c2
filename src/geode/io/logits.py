"""Saved logits: how likely a reference model found every token at every scored position of a text.

Who wrote them is not known here, nor what they are compared with. A file is, in little-endian numbers,

    8 bytes    "_logits_", llama.cpp's (--kl-divergence-base), or "logits32", exact and ours
    uint32     context: tokens of a chunk
    int32 × 2  vocab, chunks
    int32 …    the tokens, chunks × context
    records    chunk after chunk, for the positions context // 2 … context - 2, what follows each of them

Ours has vocab float32 log-probabilities in a record. llama.cpp's has float32 scale and lowest, then vocab uint16 made
even: log-probability = scale × number + lowest, at most 1.2e-4 off; what is more than 16 below the likeliest is lowest.
https://github.com/ggml-org/llama.cpp/blob/master/tools/perplexity/perplexity.cpp (log_softmax, kl_divergence)
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import CapacityError, FormatError
from . import files

ROUNDED, EXACT = b"_logits_", b"logits32"
DEPTH = 16.0  # nats below the likeliest token, beyond which llama.cpp forgets
LARGEST = 1 << 24  # tokens of a vocabulary; no tokenizer comes near
HEAD = np.dtype([("magic", "S8"), ("context", "<u4"), ("vocab", "<i4"), ("chunks", "<i4")])


@dataclass(frozen=True)
class Layout:
    """What a file's header says. `tokens` int32 (chunks, context), each chunk's first as the text had it."""

    exact: bool
    vocab: int
    tokens: np.ndarray

    @property
    def chunks(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def context(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def scored(self) -> int:
        """Positions of a chunk that have a record."""
        return _scored(self.context)

    @property
    def floor(self) -> float:
        """Log-probabilities at or below this one may be wrong, and count for nothing."""
        return -math.inf if self.exact else -DEPTH

    @property
    def record(self) -> np.dtype:
        return _record(self.exact, self.vocab)

    @property
    def nbytes(self) -> int:
        """Of the whole file."""
        return _nbytes(self.exact, self.vocab, self.chunks, self.context)

    def pack(self, logprobs: np.ndarray) -> bytes:
        """Records of log-probabilities float32 (t, V)."""
        return np.ascontiguousarray(logprobs, "<f4").tobytes() if self.exact else self._round(logprobs).tobytes()

    def unpack(self, data: np.ndarray) -> np.ndarray:
        """Log-probabilities float32 (t, V) of the records in these bytes."""
        if self.exact:
            return data.view("<f4").reshape(-1, self.vocab).astype(np.float32, copy=False)
        rows = data.view(self.record)
        levels = rows["levels"][:, : self.vocab].astype(np.float32)
        return np.asarray(levels * rows["scale"][:, None] + rows["lowest"][:, None], np.float32)

    def _round(self, logprobs: np.ndarray) -> np.ndarray:
        peak = logprobs.max(axis=1, keepdims=True)
        lowest = np.maximum(logprobs.min(axis=1, keepdims=True), peak - np.float32(DEPTH))
        scale = (peak - lowest) / np.float32(65535)
        rows = np.zeros(len(logprobs), self.record)
        rows["scale"], rows["lowest"] = scale[:, 0], lowest[:, 0]
        steps = (np.maximum(logprobs, lowest) - lowest) / np.where(scale > 0, scale, np.float32(1))
        rows["levels"][:, : self.vocab] = np.rint(steps)
        return rows


@dataclass(frozen=True)
class Saved:
    """A file of logits, mapped into memory and read where it is asked."""

    layout: Layout
    path: Path
    data: np.ndarray  # uint8: the records

    def rows(self, chunk: int, start: int, stop: int) -> np.ndarray:
        """Log-probabilities float32 (stop - start, V) of a chunk's scored positions start … stop - 1."""
        size, first = self.layout.record.itemsize, chunk * self.layout.scored
        return self.layout.unpack(self.data[(first + start) * size : (first + stop) * size])


def read(path: str | Path) -> Saved:
    """Opens a file of saved logits. Raises ModelNotFound, FormatError."""
    path = Path(path)
    data = files.map_file(path)
    if data.size < HEAD.itemsize or bytes(data[:8]) not in (ROUNDED, EXACT):
        raise FormatError(
            f"{path} holds no saved logits: it should begin with '_logits_' (llama.cpp's) or 'logits32'. "
            "Make one with --save-logits, or with llama.cpp's --kl-divergence-base."
        )
    head = data[: HEAD.itemsize].view(HEAD)[0]
    exact, context, vocab, chunks = (
        bytes(data[:8]) == EXACT,
        *map(int, (head["context"], head["vocab"], head["chunks"])),
    )
    if context < 3 or not 0 < vocab <= LARGEST or chunks < 1:
        raise FormatError(
            f"{path} says that it holds {chunks} chunks of {context} tokens out of {vocab}, which cannot be. "
            "It is damaged; save the logits again."
        )
    if data.size != (promised := _nbytes(exact, vocab, chunks, context)):
        raise FormatError(
            f"{path} holds {data.size:,} bytes, and its header promises {promised:,}. "
            "The program that wrote it was stopped, or the copy is not whole; save the logits again."
        )
    begin = HEAD.itemsize + chunks * context * 4
    tokens = data[HEAD.itemsize : begin].view("<i4").reshape(chunks, context)
    bad = tokens[(tokens < 0) | (tokens >= vocab)]
    if bad.size:
        raise FormatError(
            f"{path} names the token {bad[0]}, and its vocabulary has 0 to {vocab - 1}. "
            "It is damaged; save the logits again."
        )
    return Saved(Layout(exact, vocab, tokens), path, data[begin:])


def _scored(context: int) -> int:
    return context - 1 - context // 2


def _record(exact: bool, vocab: int) -> np.dtype:
    if exact:
        return np.dtype(("<f4", (vocab,)))
    return np.dtype([("scale", "<f4"), ("lowest", "<f4"), ("levels", "<u2", (vocab + vocab % 2,))])


def _nbytes(exact: bool, vocab: int, chunks: int, context: int) -> int:
    return HEAD.itemsize + chunks * (context * 4 + _scored(context) * _record(exact, vocab).itemsize)


@contextlib.contextmanager
def writing(path: str | Path, layout: Layout) -> Iterator[Callable[[np.ndarray], None]]:
    """`with writing(path, layout) as add: add(logprobs (t, V))`, position after position; a file only when all came.

    Raises CapacityError before anything is written, OptionError where the place cannot be written.
    """
    path = Path(path)
    _check_room(path, layout.nbytes)
    head = np.zeros((), HEAD)
    head["magic"] = EXACT if layout.exact else ROUNDED
    head["context"], head["vocab"], head["chunks"] = layout.context, layout.vocab, layout.chunks
    with files.staging(path) as stage, stage.open(path) as file:
        file.write(head.tobytes() + layout.tokens.astype("<i4").tobytes())

        def add(logprobs: np.ndarray) -> None:
            file.write(layout.pack(logprobs))

        yield add


def _check_room(path: Path, nbytes: int) -> None:
    place = next(folder for folder in path.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if nbytes > free:
        raise CapacityError(
            f"The logits would take {nbytes / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB free. "
            "Save fewer chunks, or choose another disk."
        )
