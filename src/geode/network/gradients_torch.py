"""PyTorch's gradients of a norm, a gated activation, a rotation, a sum of products and attention over spans, from
what came in alone.

Left to itself autograd keeps the float32 copy that a norm works on, and the activation beside both of its factors:
about a third of all that a block keeps (dev/LOG.md). Only `backend` imports this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import kernels_torch as kernels

Tensor = Any  # torch.Tensor


class Rms(torch.autograd.Function):
    """x (..., D) · weight / rms(x), worked out in float32, in x's dtype; `cast_first` rounds before the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, cast_first: bool) -> Tensor:
        y, scale = kernels.rms(x, weight_D, eps, cast_first)
        ctx.save_for_backward(x, weight_D, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight_D, scale = ctx.saved_tensors
        return *kernels.rms_back(x, weight_D, scale, dy[0], ctx.needs_input_grad[1]), None, None


class Added(torch.autograd.Function):
    """y (..., E) + x (..., R) · weightᵀ, in place: autograd's own way copies the gradient of what was a view of y."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight_ED: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, weight_ED)
        y.view(-1, y.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), weight_ED.t())
        return y

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        (x, weight_ED), flat = ctx.saved_tensors, dy[0].flatten(0, -2)
        dx = dy[0] @ weight_ED if ctx.needs_input_grad[1] else None
        return dy[0], dx, flat.t() @ x.flatten(0, -2) if ctx.needs_input_grad[2] else None


class Gated(torch.autograd.Function):
    """act(gate) · up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return kernels.gated(gate, up, act)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        return *kernels.gated_back(gate, up, dy[0], ctx.act), None


class Turned(torch.autograd.Function):
    """A rotation of x (B, T, N, H) by angles (B, T, 1, P), whose gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x_BTNH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return kernels.turn(x_BTNH, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return kernels.turn(dy[0], cos, sin, back=True), None, None


class Attention(torch.autograd.Function):
    """Attention of q (B, T, N, H) over k and v (B, K, S, H), span by span: (B, T, N·H). Spans are consecutive queries,
    each with the keys that they see; the framework's flash kernel does one at a time.

    A query's N/K heads for one head of keys are rows of one matrix, as in `attention`; gradients for keys that several
    spans see are added up in float32.
    """

    @staticmethod
    def forward(ctx: Any, q_BTNH: Tensor, k: Tensor, v: Tensor, mask_BTS: Tensor, scale: float, spans: Any) -> Tensor:
        out_BTNH = torch.empty_like(q_BTNH, memory_format=torch.contiguous_format)
        sums = []
        for t, s in spans:
            q, mask = _as_rows(q_BTNH[:, t], k.shape[1]), _additive(mask_BTS[:, t, s], q_BTNH, k)
            part, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k[:, :, s], v[:, :, s], attn_mask=mask, scale=scale
            )
            out_BTNH[:, t] = _as_heads(part, q_BTNH.shape[2])
            sums.append(lse)
        ctx.scale, ctx.spans = scale, spans
        ctx.save_for_backward(q_BTNH, k, v, mask_BTS, out_BTNH, *sums)
        return out_BTNH.flatten(2)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q_BTNH, k, v, mask_BTS, out_BTNH, *sums = ctx.saved_tensors
        kv, dy_BTNH = k.shape[1], dy[0].reshape(q_BTNH.shape)
        dq_BTNH = torch.empty_like(dy_BTNH)
        dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k, v))
        for (t, s), lse in zip(ctx.spans, sums, strict=True):
            rise, q, out = (_as_rows(x[:, t], kv) for x in (dy_BTNH, q_BTNH, out_BTNH))
            mask = _additive(mask_BTS[:, t, s], q_BTNH, k)
            dq, dks, dvs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                rise, q, k[:, :, s], v[:, :, s], out, lse, 0.0, False, attn_mask=mask, scale=ctx.scale
            )
            dq_BTNH[:, t] = _as_heads(dq, q_BTNH.shape[2])
            dk[:, :, s] += dks
            dv[:, :, s] += dvs
        return dq_BTNH, dk.to(k.dtype), dv.to(v.dtype), None, None, None


def rebuilt(h: Tensor, make: Callable[[], Tensor]) -> Any:
    """A context in which nothing keeps `h` for its gradient: `make` makes it again when it is asked for."""
    place, size = h.untyped_storage().data_ptr(), h.numel()  # not h itself: what is kept holds on to `pack`

    def pack(kept: Tensor) -> Any:
        whole = kept.numel() == size and kept.is_contiguous()
        return kept.shape if whole and kept.untyped_storage().data_ptr() == place else kept

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        with torch.no_grad():
            return make().view(packed)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _as_rows(x_BTNH: Tensor, kv: int) -> Tensor:
    """Heads that share keys as rows of one matrix: (B, K, N/K · T, H)."""
    b, t, n, h = x_BTNH.shape
    return x_BTNH.transpose(1, 2).reshape(b, kv, n // kv * t, h)


def _as_heads(x_BKRH: Tensor, n: int) -> Tensor:
    b, kv, r, h = x_BKRH.shape
    return x_BKRH.reshape(b, n, r * kv // n, h).transpose(1, 2)


def _additive(mask_BTS: Tensor, q_BTNH: Tensor, k_BKSH: Tensor) -> Tensor:
    """The mask of all rows as what is added to their scores: (B, 1, N/K · T, S)."""
    seen = mask_BTS.repeat(1, q_BTNH.shape[2] // k_BKSH.shape[1], 1)[:, None]
    return torch.zeros(seen.shape, dtype=q_BTNH.dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
