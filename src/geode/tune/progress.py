"""Who is told of a run while it goes on: one listener, or several of which none can stop it.

Terminals, files and pictures are not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from .events import Evaluation, Finished, Sample, Saved, Started, Step

__all__ = ["Listener", "Listeners", "Silent"]


class Listener(Protocol):
    """What a run tells; each is called in the run's own thread and should be quick."""

    def started(self, event: Started) -> None:
        """Before the first step of this process."""

    def step(self, event: Step) -> None:
        """After each optimizer step."""

    def evaluated(self, event: Evaluation) -> None:
        """After the validation data were measured."""

    def sampled(self, event: Sample) -> None:
        """After a prompt was answered."""

    def saved(self, event: Saved) -> None:
        """After a checkpoint is whole on the disk."""

    def finished(self, event: Finished) -> None:
        """Last of all, whatever ended the run."""


class Silent:
    """A listener that does nothing; those who care for one event only override that."""

    def started(self, event: Started) -> None:
        pass

    def step(self, event: Step) -> None:
        pass

    def evaluated(self, event: Evaluation) -> None:
        pass

    def sampled(self, event: Sample) -> None:
        pass

    def saved(self, event: Saved) -> None:
        pass

    def finished(self, event: Finished) -> None:
        pass


class Listeners(Silent):
    """Several listeners as one, told in their order.

    One that fails is told nothing more and `say` hears why: a full disk costs the log, not the run. What is no
    `Exception` (Ctrl-C) passes through.
    """

    def __init__(self, listeners: Sequence[Listener], say: Callable[[str], None]):
        self._all = list(listeners)
        self._say = say

    def started(self, event: Started) -> None:
        self._tell(lambda listener: listener.started(event))

    def step(self, event: Step) -> None:
        self._tell(lambda listener: listener.step(event))

    def evaluated(self, event: Evaluation) -> None:
        self._tell(lambda listener: listener.evaluated(event))

    def sampled(self, event: Sample) -> None:
        self._tell(lambda listener: listener.sampled(event))

    def saved(self, event: Saved) -> None:
        self._tell(lambda listener: listener.saved(event))

    def finished(self, event: Finished) -> None:
        self._tell(lambda listener: listener.finished(event))

    def _tell(self, call: Callable[[Listener], None]) -> None:
        for listener in list(self._all):
            try:
                call(listener)
            except Exception as problem:
                self._all.remove(listener)
                self._say(_lost(listener, problem))


def _lost(listener: Listener, problem: Exception) -> str:
    name = getattr(listener, "name", type(listener).__name__)
    said = str(problem).strip().rstrip(".") or type(problem).__name__
    return f"{name} is not written any further, the run goes on: {said}."
