"""PyTorch's gradients of a norm and of a gated activation, from what came in alone.

Left to itself autograd keeps the float32 copy that a norm works on, and the activation beside both of its factors:
about a third of all that a block keeps (dev/LOG.md). Only `backend` imports this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

Tensor = Any  # torch.Tensor
GELU = {"gelu": "none", "gelu_tanh": "tanh"}


class Rms(torch.autograd.Function):
    """x (..., D) · weight / rms(x), worked out in float32, in x's dtype; `cast_first` rounds before the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, cast_first: bool) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True).add_(eps))
        ctx.save_for_backward(x, weight_D, scale)
        unit = x * scale  # float32, as scale is
        return unit.to(x.dtype) * weight_D.to(x.dtype) if cast_first else unit.mul_(weight_D).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight_D, scale = ctx.saved_tensors
        unit, rise = x * scale, dy[0] * weight_D.float()
        d_weight = (dy[0] * unit).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        rise.sub_(unit.mul_((rise * unit).mean(-1, keepdim=True))).mul_(scale)
        return rise.to(x.dtype), d_weight, None, None


class Gated(torch.autograd.Function):
    """act(gate) · up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return _act(gate, act).mul_(up)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        bent = dy[0] * up
        if ctx.act == "silu":
            d_gate = torch.ops.aten.silu_backward(bent, gate)
        else:
            d_gate = torch.ops.aten.gelu_backward(bent, gate, approximate=GELU[ctx.act])
        return d_gate, _act(gate, ctx.act).mul_(dy[0]), None


def _act(gate: Tensor, act: str) -> Tensor:
    return functional.silu(gate) if act == "silu" else functional.gelu(gate, approximate=GELU[act])
