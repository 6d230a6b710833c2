"""Running a Decoder for generation: chunks of prompts, steps, shapes that compile once.

Keeps the contract of `generate.Executor`; what is sampled, and text, are not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..config import Config
from ..tensors import Tensors
from . import backend

BUCKETS = (1, 16, 64, 256)  # lengths of a chunk that are compiled; the last is cache.CHUNK
SMALLEST = 256  # tokens that a new cache holds at least


def open(
    config: Config,
    tensors: Tensors,
    on: str,
    dtype: str = "auto",
    threads: int | None = None,
    quantize: str | None = None,
) -> Executor:
    """A network on one framework. dtype "auto" is float32 on a CPU, bfloat16 on an accelerator.

    `quantize` keeps matrices as integers, "int8" or "int4"; the rest stays `dtype`. Raises BackendError when this
    process already runs another framework, TensorError where numbers cannot be kept so.
    """
    backend.select(on)
    if threads is not None:
        backend.set_threads(threads)
    if dtype == "auto":
        dtype = "float32" if backend.on_cpu() else "bfloat16"
    from .decoder import Decoder

    return Executor(Decoder(config, tensors.__getitem__, dtype, quantize))


@dataclass
class State:
    """B texts in progress: their cache, how many tokens each has, and how many fit."""

    cache: Any
    lengths: list[int]
    room: int


class Executor:
    """A Decoder behind the contract of `generate.Executor`."""

    def __init__(self, decoder: Any):
        self.decoder = decoder
        self.config: Config = decoder.config

    def rows(self, ids: Sequence[int], start: int = 0) -> Iterator[np.ndarray]:
        """Float32 logits (t, V) after positions start … T-1, in chunks."""
        state = self._begin(1, len(ids))
        for tokens, positions, count in _chunks([list(ids)]):
            at = int(positions[0, 0])
            logits = self._run(self._all, state, tokens, positions)
            if at + count > start:
                yield backend.to_numpy(logits)[0, max(start - at, 0) : count]

    def prefill(self, prompts: Sequence[Sequence[int]], room: int, needs: Any = None) -> tuple[State, np.ndarray]:
        """Logits (B, V) after each prompt's last token, and the state to go on from."""
        longest = max(len(prompt) for prompt in prompts)
        most = max(longest, self.config.context)
        state = self._begin(len(prompts), min(longest + min(room, SMALLEST), most))
        state.lengths = [len(prompt) for prompt in prompts]
        result = np.empty((len(prompts), self.config.vocab), np.float32)
        for tokens, positions, _ in _chunks([list(prompt) for prompt in prompts]):
            last = positions.argmax(axis=1)
            logits = backend.to_numpy(self._run(self._last, state, tokens, positions, last.astype(np.int32)))
            for row, length in enumerate(state.lengths):
                if positions[row].max() == length - 1:
                    result[row] = logits[row]
        return state, result

    def step(self, state: State, tokens: Sequence[int], needs: Any = None) -> tuple[State, np.ndarray]:
        """One more token for each row -> logits (B, V). A row whose context is full gets padding and noise."""
        context = self.config.context
        positions = np.asarray([n if n < context else -1 for n in state.lengths], np.int32)[:, None]
        state.lengths = [min(n + 1, context) for n in state.lengths]
        self._make_room(state, max(state.lengths))
        array = np.asarray(tokens, np.int32)[:, None]
        logits = self._run(self._last, state, array, positions, np.zeros(len(tokens), np.int32))
        return state, backend.to_numpy(logits)

    def _begin(self, batch: int, tokens: int) -> State:
        from .cache import empty

        room = bucket(tokens, self.config.context)
        return State(empty(self.config, batch, room, self.decoder.activations), [0] * batch, room)

    def _make_room(self, state: State, tokens: int) -> None:
        from .cache import grow

        if tokens > state.room:
            state.room = bucket(tokens, self.config.context)
            state.cache = grow(state.cache, self.config, state.room)

    def _run(self, step: Any, state: State, tokens: np.ndarray, positions: np.ndarray, *more: np.ndarray) -> Any:
        hidden, state.cache = step(state.cache, tokens, positions, *more)
        return self.head(hidden)

    def head(self, hidden: Any) -> Any:
        """Logits of hidden states (..., D) -> (..., V)."""
        return self._head((), hidden)[0]

    @cached_property
    def _all(self) -> Any:
        """Every position's hidden state."""
        return backend.compile(self._hidden, self.decoder.variables)

    @cached_property
    def _last(self) -> Any:
        """The hidden state of one position of each row."""
        from keras import ops

        def run(cache: Any, tokens: Any, positions: Any, last: Any) -> Any:
            h, cache = self._hidden(cache, tokens, positions)
            return ops.take_along_axis(h, ops.cast(last, "int32")[:, None, None], axis=1)[:, 0], cache

        return backend.compile(run, self.decoder.variables)

    @cached_property
    def _head(self) -> Any:
        """Logits of hidden states. A program of its own: in one with the embedding, XLA's CPU compiler would widen a
        tied bfloat16 table for both on every step."""
        last = self.decoder.unembed or self.decoder.token_embd
        return backend.compile(lambda nothing, h: (self.decoder.head(h), nothing), last.variables)

    def _hidden(self, cache: Any, tokens: Any, positions: Any) -> Any:
        return self.decoder.hidden(tokens, positions, None, cache)


def bucket(tokens: int, context: int) -> int:
    """The next power of two, not beyond the context."""
    return max(tokens, min(context, max(SMALLEST, 1 << (tokens - 1).bit_length())))


def width(count: int) -> int:
    """Tokens that a chunk of so many is padded to."""
    return next(size for size in BUCKETS if size >= count) if backend.is_compiled() else count


def _chunks(prompts: list[list[int]]) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Prompts side by side in chunks: tokens and positions int32 (B, T), padded with 0 and -1, and the real length."""
    longest, most = max(map(len, prompts)), BUCKETS[-1]
    for start in range(0, longest, most):
        count = min(most, longest - start)
        wide = width(count)
        tokens = np.zeros((len(prompts), wide), np.int32)
        positions = np.full((len(prompts), wide), -1, np.int32)
        for row, prompt in enumerate(prompts):
            part = prompt[start : start + count]
            tokens[row, : len(part)] = part
            positions[row, : len(part)] = np.arange(start, start + len(part))
        yield tokens, positions, count
