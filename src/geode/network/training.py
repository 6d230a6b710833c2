"""Gradients and steps of a Decoder on any framework: micro-batches add up, one application ends the step.

What is minimised is `objectives`' to know, how gradients become changes `optimizers`'; data are not known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import allocator, backend
from .decoder import Decoder
from .objectives import Objective

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """What one step gave: sums over its micro-batches, and the length of the whole gradient before clipping."""

    metrics: dict[str, float]
    norm: float

    @property
    def loss(self) -> float:
        return self.metrics["loss"]


class Trainer:
    """A decoder, what of it is trained, and how. `trained` are its variables by name, as `decoder.train` gives them.

    `place` (`tune.place`) says where batches go, how figures of several processes add up, and how a tensor is read.
    `optimizer` is one of `optimizers.make`, for the same variables in the same order.
    """

    def __init__(
        self, decoder: Decoder, trained: Mapping[str, Any], optimizer: Any, objective: Objective, place: Any = None
    ):
        self.decoder = decoder
        self._batch = place.batch if place else dict
        self._summed = place.summed if place else dict
        self._read = place.read if place else lambda value: np.array(backend.to_numpy(value))
        self.trained = dict(trained)
        self.optimizer = optimizer
        self._stepped = False
        variables = list(self.trained.values())
        frozen = [v for v in decoder.variables if not v.trainable]
        self._gradients = backend.differentiate(lambda batch: objective(decoder, batch), variables, frozen)
        self._apply = backend.application(optimizer.apply, variables, list(optimizer.state))
        self._measure = backend.measurement(lambda batch: objective(decoder, batch)[1], variables + frozen)

    def step(self, micros: Iterable[Arrays], lr: float) -> Outcome:
        """One optimizer step over micro-batches whose weights add up to one. Nothing changes where the loss or the
        gradient is no finite number: `Outcome.norm` or a metric tells."""
        total: Any = None
        gathered: list[Any] = []
        for micro in micros:
            metrics, total = self._gradients(self._batch(micro), total)
            gathered.append(metrics)
        norm = float(backend.to_numpy(self._apply(total, np.float32(lr))))
        if not self._stepped:
            self._stepped = True
            allocator.give_back()
        return Outcome(self._summed(_sums(gathered)), norm)

    def measure(self, micros: Iterable[Arrays]) -> dict[str, float]:
        """The figures of micro-batches, summed; nothing is changed."""
        return _sums([self._measure(self._batch(micro)) for micro in micros])

    def state(self) -> dict[str, np.ndarray]:
        """All numbers that the next step depends on, by name."""
        return {name: self._read(variable.value) for name, variable in self._kept().items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes back what `state` gave: the same bits."""
        for name, variable in self._kept().items():
            variable.assign(state[name])

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The running means in the weights' place for the block, where the optimizer keeps any."""
        means = self.optimizer.means
        own = [self._read(variable.value) for variable in self.trained.values() if means]
        for variable, mean in zip(self.trained.values(), means, strict=bool(means)):
            variable.assign(mean.value)
        try:
            yield
        finally:
            for variable, array in zip(self.trained.values(), own, strict=bool(means)):
                variable.assign(array)

    def weights(self) -> dict[str, np.ndarray]:
        """What was trained, by name: the running means where the optimizer keeps any."""
        with self.averaged():
            return {name: self._read(variable.value) for name, variable in self.trained.items()}

    def _kept(self) -> dict[str, Any]:
        return self.trained | {f"optimizer.{i}.{v.name}": v for i, v in enumerate(self.optimizer.state)}


def _sums(gathered: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    every = [{name: float(backend.to_numpy(value)) for name, value in one.items()} for one in gathered]
    return {name: sum(one[name] for one in every) for name in (every[0] if every else {})}
