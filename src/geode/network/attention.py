"""Rotary positions, masks and attention, as functions.

    scores, one key/value head           the queries of all its G heads are rows of one matrix:
                                          R = G·T, so grouped and multi-query attention need no copies of keys
          S ->
      R [ . . . ]      visible(q, s)  =  0 <= pos(s) <= pos(q)  and  pos(s) > pos(q) - window
        [ . . . ]                        and  segment(s) = segment(q)

Shape letters: B batch, T queries, S keys, N heads, K key/value heads, G = N/K, R = G·T, H head size, P rotated pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

from keras import ops

from ..config import Rope
from . import backend
from .backend import Tensor


def rotation(rope: Rope, head_dim: int, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 (B, T, 1, P)."""
    angles = ops.cast(positions_BT, "float32")[:, :, None, None] * ops.convert_to_tensor(rope.frequencies(head_dim))
    return ops.cos(angles) * rope.magnitude, ops.sin(angles) * rope.magnitude


def rotate(x_BTNH: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Turns channel i against channel i + P for the first 2·P channels, in float32."""
    cos, sin = cos_sin
    pairs = cos.shape[-1]
    if pairs == 0:
        return x_BTNH
    if backend.trains_eagerly():
        return backend.turn(x_BTNH, cos, sin)
    x = backend.cast(x_BTNH, "float32")
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x_BTNH[..., 2 * pairs :]
    turned = ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    turned = backend.cast(turned, x_BTNH.dtype)
    return turned if 2 * pairs == x_BTNH.shape[-1] else ops.concatenate([turned, rest], axis=-1)


def visible(
    queries_BT: Tensor, keys_BS: Tensor, window: int | None, segments: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Which key each query may see, from their positions (-1: no key there): bool (B, T, S)."""
    q, k = queries_BT[:, :, None], keys_BS[:, None, :]
    seen = ops.logical_and(k <= q, k >= 0)
    if window is not None:
        seen = ops.logical_and(seen, k > q - window)
    if segments is not None:
        seen = ops.logical_and(seen, segments[0][:, :, None] == segments[1][:, None, :])
    return seen


Span = tuple[slice, slice]
"""Some queries, and the keys among which all those lie that they see."""


def attend(
    q_BTNH: Tensor,
    k_BKSH: Tensor,
    v_BKSH: Tensor,
    mask_BTS: Tensor,
    scale: float,
    softcap: float | None,
    spans: Sequence[Span] | None = None,
) -> Tensor:
    """Attention of N query heads over K key/value heads: (B, T, N·H). Soft-cap and softmax in float32.

    With spans only these parts of the scores are computed: causal rows need half, packed short documents far less.
    """
    if spans is not None:
        out = backend.attention_over(spans, q_BTNH, k_BKSH, v_BKSH, mask_BTS, scale) if softcap is None else None
        if out is not None:
            return out
        parts = [
            attend(q_BTNH[:, t], k_BKSH[:, :, s], v_BKSH[:, :, s], mask_BTS[:, t, s], scale, softcap) for t, s in spans
        ]
        return ops.concatenate(parts, axis=1)
    b, t, n, h = q_BTNH.shape
    kv = k_BKSH.shape[1]
    group = n // kv
    q_BKRH = ops.reshape(ops.transpose(q_BTNH, (0, 2, 1, 3)), (b, kv, group * t, h))
    mask_B1RS = mask_BTS[:, None] if group == 1 or t == 1 else ops.tile(mask_BTS, (1, group, 1))[:, None]
    out = backend.fused_attention(q_BKRH, k_BKSH, v_BKSH, mask_B1RS, scale) if softcap is None else None
    if out is None:
        out = _attend(q_BKRH, k_BKSH, v_BKSH, mask_B1RS, scale, softcap)
    return ops.reshape(ops.transpose(ops.reshape(out, (b, n, t, h)), (0, 2, 1, 3)), (b, t, n * h))


def _attend(
    q_BKRH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask_B1RS: Tensor, scale: float, softcap: float | None
) -> Tensor:
    scores = ops.cast(ops.einsum("bkrh,bksh->bkrs", q_BKRH, k_BKSH), "float32") * scale
    if softcap is not None:
        scores = ops.tanh(scores / softcap) * softcap
    scores = ops.where(mask_B1RS, scores, -1e30)
    return ops.matmul(ops.cast(ops.softmax(scores, axis=-1), v_BKSH.dtype), v_BKSH)
