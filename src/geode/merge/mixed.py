"""Models of one shape mixed: mean, arc, and changes from a base that are trimmed, elected or dropped at random.

File formats are not known here. The methods are those of github.com/arcee-ai/mergekit, and its definitions hold where a
paper leaves a choice.

    linear   arxiv.org/abs/2203.05482      ties   arxiv.org/abs/2306.01708
    slerp    doi.org/10.1145/325165.325242 dare   arxiv.org/abs/2311.03099
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import ConfigError, OptionError
from ..formats import Checkpoint
from ..tensors import Entry, shapes
from .computed import Made, Rows, Shift, computed, made, rows_of, steps

Sparse = Callable[[np.ndarray, str, int], np.ndarray]
"""What is kept of a change: (the change, the tensor's name, which model)."""


def check_alike(models: Sequence[Checkpoint]) -> None:
    """Raises ConfigError unless all are the same network with other weights."""
    first = models[0]
    for model in models[1:]:
        if model.family.name != first.family.name:
            raise ConfigError(
                f"Models of one family can be mixed; {first.path} is {first.family.name}, "
                f"{model.path} is {model.family.name}."
            )
        ours, theirs = vars(first.config), vars(model.config)
        differ = [key for key in ours if ours[key] != theirs[key] and key not in ("context", "pattern")]
        if differ:
            shown = ", ".join(f"{key} ({ours[key]} and {theirs[key]})" for key in differ)
            raise ConfigError(f"Models of one shape can be mixed; {first.path} and {model.path} differ in {shown}.")


def linear(models: Sequence[Checkpoint], weights: Sequence[float] | None = None, *, normalize: bool = True) -> Made:
    """Σ weight · W, the weights made to sum to 1 unless `normalize` is off. Types are the first model's.

    Raises ConfigError for models of different shape, OptionError for weights that do not fit.
    """
    shares = _checked(models, weights)
    total = sum(shares) if normalize else 1.0
    if not total:
        raise OptionError("Weights that sum to 0 cannot be made to sum to 1. Give others, or leave them as they are.")
    shares = [share / total for share in shares]

    def exact(parts: Sequence[Rows], name: str) -> Rows:
        return lambda cut: _weighted([rows(cut) for rows in parts], shares)

    return _mixed(models, exact)


def slerp(a: Checkpoint, b: Checkpoint, t: float) -> Made:
    """The point `t` of the way on the arc from a (0) to b (1), tensor by tensor; the straight line where they point the
    same way. Types are a's. Raises ConfigError for models of different shape, OptionError for `t` outside 0 … 1.
    """
    if not 0 <= t <= 1:
        raise OptionError(f"t is between 0 (the first model) and 1 (the second); got {t}.")
    _checked([a, b], None)

    def exact(parts: Sequence[Rows], name: str) -> Rows:
        weights = _arc(parts, a.tensors.entries[name].shape, t)
        return lambda cut: _weighted([rows(cut) for rows in parts], weights)

    return _mixed([a, b], exact)


STRAIGHT = 0.9995  # the cosine from which an arc is a straight line


def _arc(parts: Sequence[Rows], shape: tuple[int, ...], t: float) -> list[float]:
    dots = np.zeros(3)
    for cut, one in steps(shape, parts[0]):
        x, y = one.astype(np.float64), parts[1](cut).astype(np.float64)
        dots += (np.vdot(x, x), np.vdot(y, y), np.vdot(x, y))
    sizes = math.sqrt(dots[0] * dots[1])
    cosine = float(np.clip(dots[2] / sizes, -1, 1)) if sizes else 1.0
    if abs(cosine) > STRAIGHT:
        return [1 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


def ties(
    base: Checkpoint,
    models: Sequence[Checkpoint],
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    *,
    normalize: bool = True,
    scale: float = 1.0,
) -> Made:
    """base + scale · the changes that agree: of each model's change the largest `density` of a tensor is kept, each
    number's sign is that of the weighted sum, and those of that sign are averaged by weight.

    Types are the base's. Raises ConfigError for models of different shape, OptionError.
    """

    def sparse(change: np.ndarray, name: str, model: int) -> np.ndarray:
        return _largest(change, density)

    return _tuned(base, models, weights, density, sparse, elect=True, normalize=normalize, scale=scale)


def dare(
    base: Checkpoint,
    models: Sequence[Checkpoint],
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    seed: int = 0,
    *,
    elect: bool = False,
    normalize: bool = False,
    scale: float = 1.0,
) -> Made:
    """base + scale · Σ weight · change, of each change a random `density` kept and divided by `density`.

    `elect` adds TIES's election of signs. Which numbers are kept follows from seed, model and tensor's name alone.
    Types are the base's. Raises ConfigError for models of different shape, OptionError.
    """

    def sparse(change: np.ndarray, name: str, model: int) -> np.ndarray:
        chance = np.random.default_rng([seed, model, zlib.crc32(name.encode())])
        kept = chance.random(change.shape, np.float32) < density
        return np.asarray(np.where(kept, change / change.dtype.type(density), change.dtype.type(0)))

    if seed < 0:
        raise OptionError(f"A seed is 0 or more; got {seed}.")
    return _tuned(base, models, weights, density, sparse, elect=elect, normalize=normalize, scale=scale)


def _largest(change: np.ndarray, density: float) -> np.ndarray:
    """The largest `density` of the numbers by size, zeros elsewhere; of equals at the edge all are kept."""
    count = max(1, int(density * change.size))
    if count >= change.size:
        return change
    edge = np.partition(np.abs(change).reshape(-1), change.size - count)[change.size - count]
    return np.where(np.abs(change) >= edge, change, change.dtype.type(0))


def _tuned(
    base: Checkpoint,
    models: Sequence[Checkpoint],
    weights: Sequence[float] | None,
    density: float,
    sparse: Sparse,
    *,
    elect: bool,
    normalize: bool,
    scale: float,
) -> Made:
    """base + scale · what the models' changes from it come to."""
    if not 0 < density <= 1:
        raise OptionError(f"density is above 0 and at most 1, the share of each change that is kept; got {density}.")
    shares = _checked(models, weights)

    def exact(parts: Sequence[Rows], name: str) -> Rows:
        every = slice(0, shapes(base.config)[name][0])
        old = parts[0](every)
        mixed = _Mixed(old, shares, elect, normalize)
        for model, rows in enumerate(parts[1:]):
            mixed.add(sparse(rows(every) - old, name, model), model)
        new = old + old.dtype.type(scale) * mixed.value()
        return lambda cut: new[cut]

    return _mixed([base, *models], exact, changed=True)


class _Mixed:
    """Weighted changes, summed; with an election only those whose sign won, so up and down are kept apart."""

    def __init__(self, like: np.ndarray, shares: Sequence[float], elect: bool, normalize: bool):
        self.shares, self.elect, self.normalize = shares, elect, normalize
        self.sums = {sign: np.zeros_like(like) for sign in (1, -1)}
        self.weights = {sign: np.zeros_like(like) for sign in (1, -1) if elect and normalize}

    def add(self, change: np.ndarray, model: int) -> None:
        share = change.dtype.type(self.shares[model])
        part = change * share
        for sign in self.sums:
            mine = part * sign > 0
            self.sums[sign] += np.where(mine, part, share * 0)
            if sign in self.weights:
                self.weights[sign] += np.where(mine, share, share * 0)

    def value(self) -> np.ndarray:
        total = self.sums[1] + self.sums[-1]
        if not self.elect:
            divisor = sum(self.shares) if self.normalize else 1.0
            return np.asarray(total / total.dtype.type(divisor if abs(divisor) >= 1e-8 else 1.0))
        chosen = np.where(total >= 0, self.sums[1], self.sums[-1])
        if not self.weights:
            return chosen
        weight = np.where(total >= 0, self.weights[1], self.weights[-1])
        return np.asarray(chosen / np.where(weight == 0, weight.dtype.type(1), weight))


def _checked(models: Sequence[Checkpoint], weights: Sequence[float] | None) -> list[float]:
    """One weight for each model, 1 where none are given."""
    if not models:
        raise OptionError("Give at least one model to mix.")
    check_alike(models)
    shares = [1.0] * len(models) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(models) or not all(math.isfinite(share) for share in shares):
        raise OptionError(f"{len(models)} models need as many weights, finite numbers; got {shares}.")
    return shares


def _weighted(parts: Sequence[np.ndarray], shares: Sequence[float]) -> np.ndarray:
    wide = np.result_type(*(part.dtype for part in parts)).type
    total = parts[0] * wide(shares[0])
    for part, share in zip(parts[1:], shares[1:], strict=True):
        total += part * wide(share)
    return np.asarray(total)


def _mixed(models: Sequence[Checkpoint], exact: Callable[[Sequence[Rows], str], Rows], changed: bool = False) -> Made:
    """Each tensor by `exact` of all models' rows of it; `changed`: from the first model's, so that a change is told."""
    check_alike(models)
    shifts: dict[str, Shift] = {}

    def entry(name: str, like: Entry) -> Entry:
        def start() -> tuple[Rows, Rows | None]:
            parts = [rows_of(model.tensors[name]) for model in models]
            return exact(parts, name), parts[0] if changed else None

        return computed(name, like, start, shifts)

    found = {name: entry(name, like) for name, like in models[0].tensors.entries.items()}
    return made(models, found, shifts=shifts)
