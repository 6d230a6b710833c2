"""Many texts in one cache, each in a slot of its own: programs of fixed shapes for one token of all, or more of one.

Which text is in which slot, and for how long, is not known here.

    cache, a row for each slot            step   tokens (B, 1): one more for every slot that has one
      [ text a ......... | bin ]          chunk  tokens (1, T): some of one slot's, cut out and put back
      [ text b ..  .  .  | bin ]          clear  a slot holds nothing

Shape letters: B slots, T tokens of a chunk, D model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from keras import ops

from . import backend
from .cache import Cache, empty, grow
from .executor import bucket, width

Tensor = Any


class Slots:
    """A decoder's cache for `count` texts."""

    def __init__(self, decoder: Any, count: int):
        self.decoder, self.count = decoder, count
        self.room = bucket(1, decoder.config.context)
        self._cache = empty(decoder.config, count, self.room, decoder.activations)

    def make_room(self, tokens: int) -> None:
        """Every slot holds at least so many tokens from now on."""
        if tokens > self.room:
            self.room = bucket(tokens, self.decoder.config.context)
            self._cache = grow(self._cache, self.decoder.config, self.room)

    def nbytes(self, tokens: int) -> int:
        """Bytes of keys and values of all slots with room for so many tokens."""
        itemsize = 2 if "16" in str(self.decoder.activations) else 4
        return int(self.count * self.decoder.config.kv_bytes(bucket(tokens, self.decoder.config.context), itemsize))

    def step(self, tokens_B: np.ndarray, positions_B: np.ndarray) -> Tensor:
        """One more token in each slot whose position is not -1 -> hidden states (B, D)."""
        hidden, self._cache = self._step(self._cache, tokens_B[:, None], positions_B[:, None])
        return hidden

    def chunk(self, slot: int, tokens: Sequence[int], start: int) -> Tensor:
        """Some tokens of one slot, from position `start` on -> hidden states (T, D), T padded."""
        wide = width(len(tokens))
        ids, positions = np.zeros((1, wide), np.int32), np.full((1, wide), -1, np.int32)
        ids[0, : len(tokens)] = tokens
        positions[0, : len(tokens)] = np.arange(start, start + len(tokens))
        hidden, self._cache = self._chunk(self._cache, np.asarray([slot], np.int32), ids, positions)
        return hidden

    def clear(self, slot: int) -> None:
        """Forgets what is in a slot."""
        self._cache = self._clear(self._cache, np.asarray([slot], np.int32))[1]

    @cached_property
    def _step(self) -> Any:
        def run(cache: Cache, tokens: Tensor, positions: Tensor) -> Any:
            h_B1D, cache = self.decoder.hidden(tokens, positions, None, cache)
            return h_B1D[:, 0], cache

        return backend.compile(run, self.decoder.variables)

    @cached_property
    def _chunk(self) -> Any:
        def run(cache: Cache, slot: Tensor, tokens: Tensor, positions: Tensor) -> Any:
            own = Cache(*(tuple(_row(kept, slot) for kept in every) for every in cache))
            h_1TD, own = self.decoder.hidden(tokens, positions, None, own)
            pairs = [zip(every, mine, strict=True) for every, mine in zip(cache, own, strict=True)]
            return h_1TD[0], Cache(*(tuple(backend.with_row(kept, slot, row) for kept, row in some) for some in pairs))

        return backend.compile(run, self.decoder.variables)

    @cached_property
    def _clear(self) -> Any:
        def run(cache: Cache, slot: Tensor) -> Any:
            gone = ops.equal(ops.arange(self.count, dtype="int32"), slot)[:, None]
            return slot, cache._replace(positions=tuple(ops.where(gone, -1, kept) for kept in cache.positions))

        return backend.compile(run, [])


def _row(kept: Tensor, slot: Tensor) -> Tensor:
    return ops.take(kept, slot, axis=0)


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """Hidden states (D,) as one (W, D); where programs are compiled W is a power of two, the last row said again."""
    wide = 1 << (len(rows) - 1).bit_length() if backend.is_compiled() else len(rows)
    return ops.stack([*rows, *([rows[-1]] * (wide - len(rows)))])
