"""Gradients into changes: AdamW, the same with moments of eight bits, Adafactor, Muon and plain descent.

Each is one pure function of a gradient and what is remembered, so that one spelling serves all three frameworks; where
gradients come from and what learning rate a step has is not known here.

Keras has three of these, but with epsilon elsewhere than the papers and PyTorch (AdamW), with the whole second moment
beside its factors and the weights' size in every step (Adafactor), and at a tenth of the rate for what Muon leaves out.

Shape letters: E rows, D columns of a matrix; N blocks of K numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import keras
from keras import ops

from ..errors import OptionError
from . import backend
from .backend import Tensor

Variable = Any
Kept = tuple[Tensor, ...]


class Values(Protocol):
    """What `make` reads of a recipe's `Optim`."""

    @property
    def name(self) -> str: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def epsilon(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def ema(self) -> float | None: ...


def make(optim: Values, variables: Sequence[Variable], apart: Collection[str] = ()) -> Optimizer:
    """The optimizer of these float32 variables.

    apart: the names (`variable.name`) of matrices that Muon leaves to AdamW, as it does all that is no matrix:
        embeddings and the head. Other optimizers do not read it.

    Raises OptionError for an optimizer that is not here and for two variables of one name.
    """
    if optim.name not in WAYS:
        raise OptionError(f"optim.name={optim.name!r} is no optimizer here; expected one of {', '.join(WAYS)}.")
    names = [variable.name for variable in variables]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise OptionError(f"Trained variables need different names, to find their state again; {twice} came twice.")
    return Optimizer(optim, variables, _ways(optim, variables, frozenset(apart)))


class Now(NamedTuple):
    """What a step is made with besides gradients: its number from 1, the rate, and what gradients are multiplied by."""

    step: Tensor
    lr: Tensor
    factor: Tensor


class Optimizer:
    """Trained variables, what is remembered of their gradients, and the step that changes both.

    state: every variable that the next step depends on, besides the trained ones; names are stable and all different.
    means: running means of the trained variables in their order where `ema` is asked for, else empty; part of `state`.
    """

    def __init__(self, optim: Values, variables: Sequence[Variable], ways: Sequence[tuple[Way, list[int]]]):
        self.variables = list(variables)
        self.clip, self.ema = optim.clip, optim.ema
        self.steps = _variable("steps", (), "float32")
        self.means = [_variable(f"{v.name}_mean", v.shape, "float32", v) for v in variables if optim.ema is not None]
        self._ways = ways
        self.state = [self.steps, *(v for way, _ in ways for v in way.state()), *self.means]

    def apply(self, gradients: Sequence[Tensor | None], lr: Tensor, scale: Tensor | None = None) -> Tensor:
        """One step, in place or in the scope that stands for it; returns the length of all gradients before clipping.

        gradients: one for each variable; None is a gradient of zeros. They are given away: PyTorch may overwrite them.
        lr: the learning rate, a scalar.
        scale: a scalar that gradients are multiplied by first.

        Where the length is no finite number, nothing changes.
        """
        found = [ops.zeros(v.shape) if g is None else g for g, v in zip(gradients, self.variables, strict=True)]
        norm = backend.norm(found) if scale is None else backend.norm(found) * scale
        allowed = ops.isfinite(norm)
        if backend.is_compiled() or bool(allowed):
            backend.update(lambda steps: (steps + 1,), [self.steps], [], None, allowed)
            now = Now(self.steps.value, lr, self._factor(norm, scale))
            for way, members in self._ways:
                way.apply(now, [found[i] for i in members], allowed)
            self._average(now, allowed)
        return norm

    def _factor(self, norm: Tensor, scale: Tensor | None) -> Tensor:
        """What brings gradients to a length of `clip` at most, as torch.nn.utils.clip_grad_norm_ does."""
        factor = ops.ones(()) if self.clip is None else ops.minimum(self.clip / (norm + 1e-6), 1.0)
        return factor if scale is None else factor * scale

    def _average(self, now: Now, allowed: Tensor) -> None:
        """Young means follow faster, or the first weights would outweigh a short run."""
        if self.ema is None:
            return
        share = 1 - ops.minimum(self.ema, (1 + now.step) / (10 + now.step))

        def follow(mean: Tensor, value: Tensor) -> Kept:
            return (mean + (value - mean) * share,)

        for mean, variable in zip(self.means, self.variables, strict=True):
            backend.update(follow, [mean], [variable.value], _rows(variable), allowed)


class Way:
    """How some of the variables are changed: what is kept of each one's gradients, and a direction from it.

    Weights shrink by lr · weight_decay beside the change (arxiv.org/abs/1711.05101), those of matrices only: norms,
    biases and DoRA's magnitudes do not.
    """

    def __init__(self, optim: Values, variables: Sequence[Variable]):
        self.variables = list(variables)
        self.decays = [optim.weight_decay if len(v.shape) > 1 else 0.0 for v in variables]
        self.kept = [self.remember(variable) for variable in variables]

    def state(self) -> list[Variable]:
        return [kept for every in self.kept for kept in every]

    def apply(self, now: Now, gradients: Sequence[Tensor], allowed: Tensor) -> None:
        """Changes every variable and what is kept of it."""
        for gradient, variable, kept, decay in zip(gradients, self.variables, self.kept, self.decays, strict=True):
            step = self._step(now, decay)
            backend.update(step, [variable, *kept], [gradient], self.rows(variable), allowed)

    def _step(self, now: Now, decay: float) -> Callable[..., Kept]:
        def step(value: Tensor, *rest: Tensor) -> Kept:
            *kept, gradient = rest
            direction, *new = self.direct(now, gradient * now.factor, *kept)
            shrunk = value * (1 - now.lr * decay) if decay else value
            return shrunk - now.lr * direction, *new

        return step

    def remember(self, variable: Variable) -> list[Variable]:
        """New variables for what is kept of this one's gradients."""
        return []

    def rows(self, variable: Variable) -> int | None:
        """How many rows it and what is kept of it fall into, each of which can be changed by itself; None for one."""
        return _rows(variable)

    def direct(self, now: Now, gradient: Tensor, *kept: Tensor) -> Kept:
        """The direction in which weights go down, and what is kept from now on. Pure."""
        raise NotImplementedError


class Descent(Way):
    """The gradient itself; nothing is kept."""

    def direct(self, now: Now, gradient: Tensor, *kept: Tensor) -> Kept:
        return (gradient,)


class AdamW(Way):
    """arxiv.org/abs/1711.05101; epsilon is added to √v̂."""

    def __init__(self, optim: Values, variables: Sequence[Variable]):
        self.betas, self.epsilon = (optim.beta1, optim.beta2), optim.epsilon
        super().__init__(optim, variables)

    def remember(self, variable: Variable) -> list[Variable]:
        return [_variable(f"{variable.name}_{kind}", variable.shape, "float32") for kind in "mv"]

    def apply(self, now: Now, gradients: Sequence[Tensor], allowed: Tensor) -> None:
        m, v = [m for m, _ in self.kept], [v for _, v in self.kept]
        if not backend.adamw(self.variables, gradients, m, v, *now, self.betas, self.epsilon, self.decays):
            super().apply(now, gradients, allowed)

    def direct(self, now: Now, gradient: Tensor, *kept: Tensor) -> Kept:
        m, v = self.moments(gradient, *kept)
        return self.ratio(now, m, ops.sqrt(v)), m, v

    def moments(self, gradient: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Running means of the gradient and of its square."""
        m = m + (gradient - m) * (1 - self.betas[0])
        return m, v * self.betas[1] + gradient * gradient * (1 - self.betas[1])

    def ratio(self, now: Now, m: Tensor, root: Tensor) -> Tensor:
        """m̂ / (√v̂ + ε) from m and √v."""
        first, second = (_unbiased(beta, now.step) for beta in self.betas)
        return m / first / (root / ops.sqrt(second) + self.epsilon)


BLOCK = 256  # numbers that share a scale, as in the paper
SMALLEST = 4096  # numbers of a tensor for which eight bits pay


class Adam8bit(AdamW):
    """AdamW whose moments are kept in blocks of eight-bit codes. After arxiv.org/abs/2110.02861.

    A block's m and √v are shares of its largest, and a code is a share's square root: fine where numbers are small,
    without a table to search. Codes are rounded up or down by a sequence that visits both in proportion, so that what
    moves by less than one code a step, as v does, moves in the mean. No √v becomes 0, or a step would be endless.
    """

    def remember(self, variable: Variable) -> list[Variable]:
        shape = _blocks(variable)
        codes = [_variable(f"{variable.name}_{kind}", shape, t) for kind, t in (("m8", "int8"), ("r8", "uint8"))]
        return codes + [_variable(f"{variable.name}_{kind}_top", (shape[0], 1), "float32") for kind in "mr"]

    def apply(self, now: Now, gradients: Sequence[Tensor], allowed: Tensor) -> None:
        Way.apply(self, now, gradients, allowed)

    def rows(self, variable: Variable) -> int | None:
        return _blocks(variable)[0]

    def direct(self, now: Now, gradient: Tensor, *kept: Tensor) -> Kept:
        m_NK, r_NK, m_N1, r_N1 = kept
        x, root = (backend.cast(codes, "float32") for codes in (m_NK, r_NK))
        x, root = x * ops.abs(x) * (m_N1 / 127**2), root * root * (r_N1 / 255**2)
        m, v = self.moments(gradient, x, root * root)
        size, root, dither = ops.abs(m), ops.sqrt(v), _dither(now.step, m.shape[-1])
        m_N1, r_N1 = (ops.max(each, axis=-1, keepdims=True) for each in (size, root))
        m_NK = backend.cast(ops.sign(m) * _code(size, m_N1, 127, dither), "int8")
        r_NK = backend.cast(ops.maximum(_code(root, r_N1, 255, 1 - dither), 1.0), "uint8")
        return self.ratio(now, m, root), m_NK, r_NK, m_N1, r_N1


def _blocks(variable: Variable) -> tuple[int, int]:
    """How many blocks, and how many numbers in each: 256 or the largest power of two that leaves no rest."""
    size = math.prod(variable.shape)
    block = math.gcd(size, BLOCK)
    return size // block, block


def _is_large(variable: Variable) -> bool:
    return math.prod(variable.shape) >= SMALLEST and _blocks(variable)[1] >= BLOCK // 8


def _code(size_NK: Tensor, top_N1: Tensor, levels: int, dither_K: Tensor) -> Tensor:
    """levels · √(size / top), of which whole numbers are to be made by cutting off: dither decides which neighbour."""
    per_N1 = levels**2 / ops.maximum(top_N1, 1e-30)
    return ops.minimum(ops.sqrt(size_NK * per_N1) + dither_K, levels)


def _dither(step: Tensor, size: int) -> Tensor:
    """Numbers between 0 and 1 (size,): along columns and from step to step each goes on by an irrational share of one,
    which spreads evenly. extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences"""
    turns = ops.arange(size, dtype="int32") * 37374 + ops.cast(step % 32768, "int32") * 49471
    return (ops.cast(turns % 65536, "float32") + 0.5) / 65536


class Adafactor(Way):
    """Second moments of a matrix by its rows and columns. arxiv.org/abs/1804.04235, algorithm 4.

    Without momentum, and steps of the given rate: neither relative to the step's number nor to the weights' size.
    """

    LEAST = 1e-30  # ε₁: added to squares
    POWER = -0.8  # β₂ at step t is 1 - t^POWER

    def remember(self, variable: Variable) -> list[Variable]:
        shape, name = tuple(variable.shape), variable.name
        if len(shape) < 2:
            return [_variable(f"{name}_v", shape, "float32")]
        sides = (("rows", shape[:-1]), ("columns", shape[:-2] + shape[-1:]))
        return [_variable(f"{name}_{side}", kept, "float32") for side, kept in sides]

    def rows(self, variable: Variable) -> int | None:
        return None

    def direct(self, now: Now, gradient: Tensor, *kept: Tensor) -> Kept:
        squares, share = gradient * gradient, now.step**self.POWER
        means = [squares] if len(kept) == 1 else [ops.mean(squares, axis=axis) for axis in (-1, -2)]
        kept = tuple(old + (mean + self.LEAST - old) * share for old, mean in zip(kept, means, strict=True))
        direction = self._over_root(gradient, *kept)
        length = backend.norm([direction]) / math.sqrt(max(1, math.prod(gradient.shape)))
        return direction * (1 / ops.maximum(length, 1.0)), *kept

    def _over_root(self, gradient: Tensor, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """gradient / √v̂, where v̂ is rows · columns / the rows' mean, or what is kept of a vector."""
        if columns is None:
            return gradient * ops.rsqrt(rows)
        rows = rows / ops.mean(rows, axis=-1, keepdims=True)
        return gradient * ops.rsqrt(rows)[..., None] * ops.rsqrt(columns)[..., None, :]


class Muon(Way):
    """Momentum with all singular values brought near one. kellerjordan.github.io/posts/muon

    Changes are as large as AdamW's, so that one learning rate serves both: 0.2 · √(the longer side) times the
    orthogonal matrix. arxiv.org/abs/2502.16982
    """

    MOMENTUM = 0.95

    def remember(self, variable: Variable) -> list[Variable]:
        return [_variable(f"{variable.name}_m", variable.shape, "float32")]

    def rows(self, variable: Variable) -> int | None:
        return None

    def direct(self, now: Now, gradient: Tensor, *kept: Tensor) -> Kept:
        m = kept[0] + (gradient - kept[0]) * (1 - self.MOMENTUM)
        ahead = gradient + (m - gradient) * self.MOMENTUM
        return orthogonal(ahead) * (0.2 * math.sqrt(max(m.shape))), m


COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x³, x⁵: steepest at 0, and near 1 not for good. Keller Jordan's


def orthogonal(x_ED: Tensor) -> Tensor:
    """U Vᵀ of x = U S Vᵀ, roughly: singular values end between 0.7 and 1.2. Five Newton-Schulz steps."""
    rows, columns = x_ED.shape
    wide = ops.transpose(x_ED) if rows > columns else x_ED
    wide = wide / ops.maximum(ops.sqrt(ops.sum(ops.square(wide))), 1e-7)
    wide = backend.cast(wide, "float32" if backend.on_cpu() else "bfloat16")
    a, b, c = COEFFICIENTS
    for _ in range(5):
        square = ops.matmul(wide, ops.transpose(wide))
        wide = a * wide + ops.matmul(b * square + c * ops.matmul(square, square), wide)
    return backend.cast(ops.transpose(wide) if rows > columns else wide, "float32")


def _ways(optim: Values, variables: Sequence[Variable], apart: Collection[str]) -> list[tuple[Way, list[int]]]:
    """The named way for the variables that it is made for, AdamW for the others; with their indices."""
    way, fits = WAYS[optim.name]
    mine = [i for i, v in enumerate(variables) if fits(v) and not (way is Muon and v.name in apart)]
    rest = sorted(set(range(len(variables))) - set(mine))
    groups: Iterable[tuple[type[Way], list[int]]] = ((way, mine), (AdamW, rest))
    return [(kind(optim, [variables[i] for i in members]), members) for kind, members in groups if members]


WAYS: dict[str, tuple[type[Way], Callable[[Variable], bool]]] = {
    "adamw": (AdamW, lambda variable: True),
    "adam8bit": (Adam8bit, _is_large),
    "adafactor": (Adafactor, lambda variable: True),
    "muon": (Muon, lambda variable: len(variable.shape) == 2),
    "sgd": (Descent, lambda variable: True),
}


def _unbiased(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step, without the digits that float32 loses of beta."""
    return -ops.expm1(step * (math.log(beta) if beta else -math.inf))


def _rows(variable: Variable) -> int | None:
    return variable.shape[0] if len(variable.shape) else None


def _variable(name: str, shape: Sequence[int], dtype: str, like: Variable | None = None) -> Variable:
    """A variable of zeros, or of another's numbers."""

    def first(shape: Sequence[int], dtype: str | None = None) -> Tensor:
        return ops.zeros(shape, dtype) if like is None else ops.copy(like.value)

    return keras.Variable(first, shape=tuple(shape), dtype=dtype, trainable=False, name=name)
