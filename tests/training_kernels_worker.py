"""Gradients on PyTorch with the extension's passes and without them; prints JSON: the largest differences, by name.

python training_kernels_worker.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from layout_worker import GEMMA
from random_networks import network

from geode.config import Attn
from geode.network import backend

backend.select("torch")

import torch  # noqa: E402

from geode.network import attention, gradients_torch, kernels_torch, objectives  # noqa: E402
from geode.network.decoder import Decoder  # noqa: E402

Gradients = dict[str, Any]
CONFIG = GEMMA.replace(depth=3, attn_softcap=None, qk_norm="shared", pattern=(Attn(40), Attn()), context=256)
LENGTH = 192


def differs(one: Gradients, other: Gradients) -> dict[str, float]:
    """The largest difference of each, as a share of the largest number."""
    return {
        name: float((x.double() - other[name].double()).abs().max() / other[name].double().abs().max().clamp(min=1e-9))
        for name, x in one.items()
    }


def both(run: Callable[[], Gradients]) -> dict[str, float]:
    """With the passes, against without."""
    fit = kernels_torch.fit
    found = run()
    try:
        kernels_torch.fit = lambda *tensors: False
        return differs(found, run())
    finally:
        kernels_torch.fit = fit


def random(seed: int, *shape: int, dtype: Any = torch.float32) -> Any:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.requires_grad_()


def of(name: str, function: Any, *inputs: Any) -> Gradients:
    """A function's result, and its gradients for the inputs."""
    y = function(*inputs)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype)
    found = torch.autograd.grad(y, inputs, dy)
    return {name: y.detach()} | {f"d {name} {i}": each for i, each in enumerate(found)}


def functions(dtype: Any) -> Gradients:
    x, gate, up = (random(i, 2, 37, 80, dtype=dtype) for i in range(3))
    q, weight = random(4, 2, 37, 3, 20, dtype=dtype), random(3, 80)
    angles = torch.rand((2, 37, 1, 8), generator=torch.Generator().manual_seed(5)) * 6
    found: Gradients = {}
    for first in (False, True):
        found |= of(f"rms {first}", lambda x, w, first=first: gradients_torch.Rms.apply(x, w, 1e-6, first), x, weight)
    for act in kernels_torch.GELU.keys() | {"silu"}:
        found |= of(act, lambda gate, up, act=act: gradients_torch.Gated.apply(gate, up, act), gate, up)
    found |= of("turned", lambda q: gradients_torch.Turned.apply(q, angles.cos(), angles.sin()), q)
    return found | of("strided", lambda x: gradients_torch.Gated.apply(x[:, ::2], x[:, ::2], "silu"), x)


def trained(dtype: str, cap: float | None) -> Gradients:
    """The loss of a network and its gradients: norms, activations, rotations, attention over spans, head in slices."""
    decoder = Decoder(CONFIG.replace(final_softcap=cap), network(CONFIG).__getitem__, "float32", compute=dtype)
    random, shape = np.random.default_rng(0), (2, LENGTH)
    batch = {
        "tokens": random.integers(0, CONFIG.vocab, shape),
        "positions": np.tile(np.arange(LENGTH), (2, 1)),
        "segments": np.repeat([[1, 2]], LENGTH // 2, axis=1).repeat(2, axis=0),
        "at": np.arange(2 * LENGTH),
        "targets": random.integers(0, CONFIG.vocab, 2 * LENGTH),
        "weights": np.full(2 * LENGTH, 1 / (2 * LENGTH), np.float32),
    }
    loss, _ = objectives.sft()(decoder, {name: torch.tensor(array) for name, array in batch.items()})
    values = {name: variable.value for name, variable in decoder.store.variables.items()}
    found = torch.autograd.grad(loss, list(values.values()))
    return {"loss": loss.detach()} | dict(zip(values, found, strict=True))


def over_spans() -> Iterator[tuple[str, dict[str, float]]]:
    """Against every score computed and masked, for heads that share keys and heads that do not."""
    positions = torch.arange(150).repeat(2, 1)
    segments = positions // 70
    for kv, window in ((1, None), (2, 30), (4, None)):
        mask = attention.visible(positions, positions, window, (segments, segments))
        spans = backend.spans(mask, None, False)
        q, k, v = random(1, 2, 150, 4, 16), random(2, 2, kv, 150, 16), random(3, 2, kv, 150, 16)

        def run(q: Any, k: Any, v: Any, spans: Any = None, mask: Any = mask) -> Any:
            if spans is not None:
                return attention.attend(q, k, v, mask, 0.25, None, spans)
            n = q.shape[2] // k.shape[1]
            k, v = (x.repeat_interleave(n, dim=1) for x in (k, v))
            scores = (q.transpose(1, 2) @ k.transpose(2, 3) * 0.25).masked_fill(~mask[:, None], -1e30)
            return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

        split = of("out", lambda q, k, v, spans=spans, run=run: run(q, k, v, spans), q, k, v)
        yield f"{kv} {window}", differs(split, of("out", run, q, k, v))


if __name__ == "__main__":
    result: dict[str, Any] = {"uses passes": kernels_torch.fit(torch.zeros(1))}
    for dtype in ("float32", "bfloat16"):
        result[dtype] = both(lambda dtype=dtype: functions(getattr(torch, dtype)))
        for cap in (None, 10.0):
            found = both(lambda dtype=dtype, cap=cap: trained(dtype, cap))
            result[dtype] |= {f"{name} {cap}": most for name, most in found.items()}
    result["spans"] = {f"{kind} {name}": most for kind, each in over_spans() for name, most in each.items()}
    print(json.dumps(result))
