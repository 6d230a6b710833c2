"""Every optimizer on one framework, on gradients that numpy makes; prints, as JSON, where weights came to.

python optimizers_worker.py FRAMEWORK. On "torch" the same runs by PyTorch's and transformers' own optimizers are there
too, under "theirs".
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from geode.network import backend
from geode.tune.recipe import Optim

SHAPES = {
    "token_embd": (96, 64),
    "wide": (64, 160),
    "tall": (160, 48),
    "experts": (3, 20, 12),
    "norm": (64,),
}
"""8-bit are the first three; blocks of 256 in all of them."""

STEPS = 20
PLAIN = Optim(lr=0.01, weight_decay=0.1, clip=3.0)
OPTIMS = {
    "adamw": PLAIN,
    "adamw, other values": replace(PLAIN, epsilon=1e-2, beta1=0.0, beta2=0.95, clip=None),
    "adafactor": replace(PLAIN, name="adafactor"),
    "muon": replace(PLAIN, name="muon"),
    "sgd": replace(PLAIN, name="sgd"),
    "adam8bit": replace(PLAIN, name="adam8bit"),
}

Weights = dict[str, np.ndarray]


def start(seed: int = 0) -> Weights:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradients(weights: Weights, step: int) -> Weights:
    """Of a bowl around other weights, steeper along some columns than along others, with noise on top."""
    random, goal = np.random.default_rng(100 + step), start(1)
    found = {}
    for name, value in weights.items():
        steep = np.logspace(-3, 0, value.shape[-1]) if value.ndim else 1.0
        found[name] = ((value - goal[name]) * steep + 0.01 * random.standard_normal(value.shape)).astype(np.float32)
    return found


def rate(optim: Optim, step: int) -> np.float32:
    assert optim.lr is not None
    return np.float32(optim.lr * (1 + step) / STEPS)


class Ours:
    """Trained variables and their optimizer, as a trainer holds them."""

    def __init__(self, optim: Optim, weights: Weights):
        import keras

        from geode.network import optimizers

        self.optim, self.variables = optim, [keras.Variable(value, name=name) for name, value in weights.items()]
        self.optimizer = optimizers.make(optim, self.variables, apart=["token_embd"])
        self.run = backend.application(self.optimizer.apply, self.variables, self.optimizer.state)

    def apply(self, step: int, times: float = 1.0) -> float:
        from keras import ops

        given = [ops.convert_to_tensor(g * np.float32(times)) for g in gradients(self.weights(), step).values()]
        return float(backend.to_numpy(self.run(given, rate(self.optim, step))))

    def weights(self) -> Weights:
        return {v.name: np.array(backend.to_numpy(v.value)) for v in self.variables}

    def state(self) -> Weights:
        return {v.name: np.array(backend.to_numpy(v.value)) for v in self.optimizer.state}

    def load(self, weights: Weights, state: Weights) -> None:
        for variable in (*self.variables, *self.optimizer.state):
            variable.assign((weights | state)[variable.name])


def same(one: Ours, other: Ours) -> bool:
    """Whether all numbers of both are the same bits."""
    a, b = (run.weights() | run.state() for run in (one, other))
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def course(optim: Optim) -> dict[str, Any]:
    """Where the weights came to, and the norms on the way; and, asked on that way:

    means: how far running means are from their definition.
    resumes: whether another optimizer that takes up the run half way comes to the same bits.
    survives: whether a step of gradients that are no numbers changes nothing at all.
    """
    optim = replace(optim, ema=0.8)
    ours = Ours(optim, start())
    norms, means, half = [], start(), (start(), start())
    for step in range(STEPS):
        if step == STEPS // 2:
            half = ours.weights(), ours.state()
        norms.append(ours.apply(step))
        share = 1 - min(0.8, (2 + step) / (11 + step))
        means = {name: value + share * (ours.weights()[name] - value) for name, value in means.items()}
    found = {name: ours.state()[f"{name}_mean"] for name in means}
    assert [mean.name for mean in ours.optimizer.means] == [f"{name}_mean" for name in means]
    ended = {name: value.tolist() for name, value in ours.weights().items()}
    return {"norms": norms, "weights": ended, "means": distance(means, found)} | again(ours, half)


def again(ours: Ours, half: tuple[Weights, Weights]) -> dict[str, bool]:
    """`resumes` and `survives` of `course`. Not of AdamW twice, nor of what keeps nothing."""
    if ours.optim.name == "sgd" or ours.optim.clip is None:
        return {}
    other = Ours(ours.optim, start(2))
    other.load(*half)
    for step in range(STEPS // 2, STEPS):
        other.apply(step)
    resumes = same(ours, other)
    norm = other.apply(STEPS, math.nan)
    return {"resumes": resumes, "survives": not math.isfinite(norm) and same(ours, other)}


def scaled() -> float:
    """How much a step of gradients of a thousandth, with a scale of thousand and zeros where the others have None,
    differs from the plain step."""
    given = gradients(start(), 0) | {"tall": np.zeros(SHAPES["tall"])}
    plain, small = Ours(PLAIN, start()), Ours(PLAIN, start())
    apply = small.optimizer.apply
    run = backend.application(lambda g, lr: apply(g, lr, lr * 10_000), small.variables, small.optimizer.state)
    lr = np.float32(0.1)
    norm = plain.run([None if name == "tall" else _tensor(value) for name, value in given.items()], lr)
    same = run([_tensor(value / 1000) for value in given.values()], lr)
    return distance(*(x.weights() | {"norm": backend.to_numpy(n)} for x, n in ((plain, norm), (small, same))))


def shares_of_bytes() -> float:
    """Bytes of the 8-bit state as a share of what floats would need, of the tensors that are large."""
    ours = Ours(OPTIMS["adam8bit"], {"large": np.zeros((128, 128), np.float32)})
    held = {name: value for name, value in ours.state().items() if name != "steps"}
    assert {str(value.dtype) for value in held.values()} == {"int8", "uint8", "float32"}
    return sum(value.nbytes for value in held.values()) / (2 * 4 * 128 * 128)


def descent(optim: Optim, steps: int = 250) -> tuple[float, float]:
    """The loss before and after of a small network that learns a rule from examples, a few at a time."""
    random = np.random.default_rng(0)
    x, rule = random.standard_normal((512, 32)), random.standard_normal((32, 64))
    x *= np.logspace(-2, 0, 32)  # columns whose gradients' squares differ ten-thousandfold
    y = np.tanh(x @ rule)
    first = {"in": 0.2 * random.standard_normal((32, 128)), "out": 0.1 * random.standard_normal((128, 64))}
    ours = Ours(optim, {name: value.astype(np.float32) for name, value in first.items()})

    def loss() -> float:
        a, b = ours.weights().values()
        return float(np.square(np.tanh(x @ a) @ b - y).mean())

    before = loss()
    for step in range(steps):
        a, b = ours.weights().values()
        rows = random.integers(0, 512, 32)
        h = np.tanh(x[rows] @ a)
        error = (h @ b - y[rows]) / len(rows)
        pulled = x[rows].T @ (error @ b.T * (1 - h * h))
        ours.run([_tensor(pulled), _tensor(h.T @ error)], np.float32(0.01 * (1 - step / steps)))
    return before, loss()


def _tensor(array: np.ndarray) -> Any:
    from keras import ops

    return ops.convert_to_tensor(array.astype(np.float32))


def by_ways_of_ours() -> float:
    """How far the framework's own kernel of AdamW is from our definition."""
    from geode.network import optimizers

    ours, plain = Ours(PLAIN, start()), Ours(PLAIN, start())
    way = plain.optimizer._ways[0][0]
    way.apply = lambda *given: optimizers.Way.apply(way, *given)  # type: ignore[method-assign]
    for step in range(STEPS):
        ours.apply(step), plain.apply(step)
    return distance(ours.weights(), plain.weights())


def distance(a: Weights, b: Weights) -> float:
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def theirs(name: str) -> dict[str, Any]:
    """The same run by torch.optim or transformers."""
    import torch

    optim = OPTIMS[name]
    parameters = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in start().items()}
    optimizers = list(_theirs(optim, parameters))
    norms = []
    for step in range(STEPS):
        weights = {key: value.detach().numpy() for key, value in parameters.items()}
        for key, gradient in gradients(weights, step).items():
            parameters[key].grad = torch.tensor(gradient)
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters.values(), optim.clip or math.inf)))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = float(rate(optim, step))
            optimizer.step()
    return {"norms": norms, "weights": {key: value.tolist() for key, value in parameters.items()}}


def _theirs(optim: Optim, parameters: dict[str, Any]) -> Iterator[Any]:
    import torch
    from transformers.optimization import Adafactor

    adam = {"betas": (optim.beta1, optim.beta2), "eps": optim.epsilon}
    fixed = {"relative_step": False, "scale_parameter": False, "lr": 1.0}
    kinds: dict[str, Callable[..., Any]] = {
        "adamw": lambda given, decay: torch.optim.AdamW(given, weight_decay=decay, **adam),
        "adafactor": lambda given, decay: Adafactor(given, weight_decay=decay, **fixed),
        "muon": lambda given, decay: torch.optim.Muon(given, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        "sgd": lambda given, decay: torch.optim.SGD(given, weight_decay=decay),
    }
    hidden = [key for key in ("wide", "tall") if optim.name == "muon"]
    if hidden:
        torch.Tensor.bfloat16 = torch.Tensor.clone  # theirs is always in bfloat16, which hides what differs
        yield kinds["muon"]([parameters[key] for key in hidden], optim.weight_decay)
    for decay in (0.0, optim.weight_decay):
        rest = [v for key, v in parameters.items() if key not in hidden and (v.ndim > 1) == (decay > 0)]
        yield kinds["adamw" if hidden else optim.name](rest, decay)


def main(on: str) -> dict[str, Any]:
    backend.select(on)
    if on == "torch":
        backend.set_threads(1)  # tensors this small only wait for each other's threads
    found: dict[str, Any] = {
        "courses": {name: course(optim) for name, optim in OPTIMS.items()},
        "scaled": scaled(),
        "bytes": shares_of_bytes(),
    }
    if on == "torch":
        found["kernel"] = by_ways_of_ours()
        for name in ("adamw", "adam8bit"):
            before, after = descent(replace(PLAIN, name=name, weight_decay=0.0))
            found.setdefault("losses", {}).update({"before": before, name: after})
        found["theirs"] = {name: theirs(name) for name in OPTIMS if name != "adam8bit"}
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
