"""Keys and values of the tokens so far: an explicit value that goes into a forward and comes out of it.

    one row of one layer          slot = position mod (S - 1)          the last slot is a bin for padding
      [ p0 p1 p2 … pn  .  .  . | bin ]       S follows the text, doubling
      [ p7 p8 p3 p4 p5 p6 | bin ]            a windowed layer's ring: window + CHUNK slots, so that a chunk of a
                                              prompt can be written before any of its tokens looks back

Which slot holds which token is told by the positions kept beside them, so rows of a batch may differ in length.
Shape letters: B batch, K key/value heads, S slots, H head size, T new tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from keras import ops

from ..config import Config
from . import backend
from .backend import Tensor

CHUNK = 256  # most tokens that one forward may add


class Cache(NamedTuple):
    """`keys`, `values`: one (B, K, S, H) a layer. `positions`: one int32 (B, S) for each window of the network."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    positions: tuple[Tensor, ...]


def windows(config: Config) -> tuple[int | None, ...]:
    """The distinct windows of a network's layers."""
    return tuple(dict.fromkeys(layer.window for layer in config.layers))


def slots_for(window: int | None, tokens: int) -> int:
    """Slots that a layer needs to hold a text of `tokens`."""
    return (tokens if window is None else min(tokens, window + CHUNK)) + 1


def empty(config: Config, batch: int, tokens: int, dtype: str) -> Cache:
    """A cache with room for `tokens` a row."""
    shapes = [(batch, config.kv_heads, slots_for(layer.window, tokens), config.head_dim) for layer in config.layers]
    return Cache(
        tuple(ops.zeros(shape, dtype) for shape in shapes),
        tuple(ops.zeros(shape, dtype) for shape in shapes),
        tuple(ops.full((batch, slots_for(window, tokens)), -1, "int32") for window in windows(config)),
    )


def grow(cache: Cache, config: Config, tokens: int) -> Cache:
    """The same contents with room for `tokens` a row. Rings that have reached their size stay."""
    groups = windows(config)
    wide = [slots_for(layer.window, tokens) for layer in config.layers]
    return Cache(
        tuple(_widen(kept, 2, slots, 0) for kept, slots in zip(cache.keys, wide, strict=True)),
        tuple(_widen(kept, 2, slots, 0) for kept, slots in zip(cache.values, wide, strict=True)),
        tuple(
            _widen(kept, 1, slots_for(window, tokens), -1) for kept, window in zip(cache.positions, groups, strict=True)
        ),
    )


def _widen(kept: Tensor, axis: int, slots: int, filler: int) -> Tensor:
    """More slots after the used ones; the old bin becomes an empty slot. Valid while no ring has turned over."""
    have = kept.shape[axis]
    if have >= slots:
        return kept
    shape = list(kept.shape)
    shape[axis] = slots - have + 1
    index = (slice(None),) * axis + (slice(0, have - 1),)
    return ops.concatenate([kept[index], ops.full(shape, filler, kept.dtype)], axis=axis)


def slots_of(positions_BT: Tensor, slots: int) -> Tensor:
    """Where tokens at these positions go among `slots`; padding (-1) goes to the bin."""
    return ops.where(positions_BT >= 0, positions_BT % (slots - 1), slots - 1)


def write_positions(kept_BS: Tensor, positions_BT: Tensor, slots_BT: Tensor) -> Tensor:
    """The positions kept, with the new tokens' at their slots."""
    written = backend.write_slots(kept_BS[:, None, :, None], positions_BT[:, None, :, None], slots_BT)
    return written[:, 0, :, 0]
