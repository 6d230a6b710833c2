"""The passes of a training step over PyTorch's tensors on CPUs, by the extension where it is there.

Each has two forms: the extension's, one pass over memory, and PyTorch's own operations. What gradients are made of
them is `gradients_torch`'s to know.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from ..native import training

Tensor = Any  # torch.Tensor
GELU = {"gelu": "none", "gelu_tanh": "tanh"}


def fit(*tensors: Tensor) -> bool:
    """Whether the extension can take these."""
    kinds = (torch.bfloat16, torch.float32)
    return training.are_there() and all(x.device.type == "cpu" and x.dtype in kinds and x.numel() for x in tensors)


def rms(x: Tensor, weight_D: Tensor, eps: float, cast_first: bool) -> tuple[Tensor, Tensor]:
    """x (..., D) · weight / rms(x) in x's dtype, and 1 / rms(x) (..., 1) in float32."""
    if not fit(x):
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True).add_(eps))
        unit = x * scale  # float32, as scale is
        return unit.to(x.dtype) * weight_D.to(x.dtype) if cast_first else unit.mul_(weight_D).to(x.dtype), scale
    x, weight_D = x.contiguous(), weight_D.float().contiguous()
    y, scale = torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    _passes(x).rms_norm(*_rows(x), weight_D.data_ptr(), eps, cast_first, y.data_ptr(), scale.data_ptr())
    return y, scale


def rms_back(x: Tensor, weight_D: Tensor, scale: Tensor, dy: Tensor, trains: bool) -> tuple[Tensor, Tensor | None]:
    """The gradients for x and, if it `trains`, the weight, from that for y."""
    if not fit(x, dy):
        unit, rise = x * scale, dy * weight_D.float()
        d_weight = (dy * unit).flatten(0, -2).sum(0) if trains else None
        rise.sub_(unit.mul_((rise * unit).mean(-1, keepdim=True))).mul_(scale)
        return rise.to(x.dtype), d_weight
    x, dy, wide_D = x.contiguous(), dy.to(x.dtype).contiguous(), weight_D.float().contiguous()
    dx, d_weight = torch.empty_like(x), torch.zeros_like(wide_D) if trains else None
    at = (wide_D.data_ptr(), scale.data_ptr(), dx.data_ptr(), 0 if d_weight is None else d_weight.data_ptr())
    _passes(x).rms_norm_back(x.data_ptr(), dy.data_ptr(), *_shape(x), *at)
    return dx, d_weight


def gated(gate: Tensor, up: Tensor, act: str) -> Tensor:
    """act(gate) · up."""
    if not fit(gate, up):
        return _act(gate, act).mul_(up)
    gate, up = gate.contiguous(), up.contiguous()
    y = torch.empty_like(gate)
    at = (x.data_ptr() for x in (gate, up))
    _passes(gate).gate(training.ACTIVATIONS[act], *at, gate.numel(), y.data_ptr())
    return y


def gated_back(gate: Tensor, up: Tensor, dy: Tensor, act: str) -> tuple[Tensor, Tensor]:
    """The gradients for gate and up."""
    if not fit(gate, up, dy):
        bent = dy * up
        if act == "silu":
            return torch.ops.aten.silu_backward(bent, gate), _act(gate, act).mul_(dy)
        return torch.ops.aten.gelu_backward(bent, gate, approximate=GELU[act]), _act(gate, act).mul_(dy)
    gate, up, dy = gate.contiguous(), up.contiguous(), dy.to(gate.dtype).contiguous()
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(gate)
    at = (x.data_ptr() for x in (gate, up, dy))
    _passes(gate).gate_back(training.ACTIVATIONS[act], *at, gate.numel(), d_gate.data_ptr(), d_up.data_ptr())
    return d_gate, d_up


def turn(x_BTNH: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """Channels i and i + P turned against each other by angles (B, T, 1, P) in float32; `back` the other way."""
    if not fit(x_BTNH, cos):
        return _turned(x_BTNH, cos, -sin if back else sin)
    x, cos, sin = x_BTNH.contiguous(), cos.contiguous(), sin.contiguous()
    y, (b, t, heads, size) = torch.empty_like(x), x.shape
    at = (cos.data_ptr(), sin.data_ptr(), back, y.data_ptr())
    _passes(x).turn(x.data_ptr(), b * t, heads, size, cos.shape[-1], *at)
    return y


def exponentials(
    z_MS: Tensor, most_M1: Tensor, total_M1: Tensor, cap: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `backend.exponentials`, in place but for the third."""
    shrink_M1 = torch.empty_like(most_M1)
    at = (most_M1.data_ptr(), total_M1.data_ptr(), shrink_M1.data_ptr())
    _passes(z_MS).softmax(*_rows(z_MS), cap or 0.0, *at)
    return most_M1, total_M1, shrink_M1, z_MS


def blend(to_MD: Tensor, keep_M1: Tensor, x_MD: Tensor) -> Tensor:
    """As `backend.blend`, in place."""
    _passes(x_MD).blend(*_rows(x_MD), keep_M1.data_ptr(), to_MD.data_ptr())
    return to_MD


def _passes(x: Tensor) -> Any:
    return training.passes(torch.get_num_threads(), x.dtype == torch.bfloat16)


def _shape(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], x.shape[-1]


def _rows(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), *_shape(x)


def _act(gate: Tensor, act: str) -> Tensor:
    return functional.silu(gate) if act == "silu" else functional.gelu(gate, approximate=GELU[act])


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = cos.shape[-1]
    first, second = x[..., :pairs].float(), x[..., pairs : 2 * pairs].float()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
    return torch.cat([turned, x[..., 2 * pairs :]], dim=-1)
