"""A runner over any `generate.Executor`: each text has a state of its own, and takes its steps alone.

Nothing is shared and nothing is forgotten here. It serves executors that cannot mix texts, and scripts for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import OptionError
from ..generate import Executor, Logits
from ..sampling import Need, log_softmax
from .runner import Adapter, Part


class SinglyRunner:
    """See `runner.Runner`: `most` texts are open at a time."""

    rolls_back = False
    page_bytes = ()

    def __init__(self, executor: Executor, step_tokens: int = 512, most: int = 16):
        self.config = executor.config
        self.step_tokens = step_tokens
        self.most = most
        self.capacity = self.config.context
        self.executor = executor
        self.open = 0

    def text(self, ids: np.ndarray, adapter: Adapter | None, salt: str) -> Alone:
        if adapter is not None:
            raise OptionError("This model runs where adapters cannot be loaded beside it. Leave the adapter out.")
        return Alone(self, ids)

    def run(self, parts: Sequence[Part]) -> np.ndarray:
        """Logits (W, V)."""
        rows = [row for part in parts for row in part.text.run(part.tokens, part.wanted)]
        return np.stack(rows) if rows else np.empty((0, self.config.vocab), np.float32)

    def logits(self, hidden: np.ndarray, rows: Sequence[int] | None, needs: Sequence[Need | None]) -> Logits:
        return hidden if rows is None else hidden[list(rows)]

    def vectors(self, hidden: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        raise OptionError("This model runs where hidden states cannot be seen, and so it makes no embeddings.")

    def score(
        self, hidden: np.ndarray, rows: Sequence[int], targets: Sequence[int], size: int | None
    ) -> tuple[list[float], list[bool]]:
        logits, ids = hidden[list(rows)], np.asarray(targets)
        found = log_softmax(logits)[np.arange(len(ids)), ids]
        return found.tolist(), (logits[:, :size].argmax(axis=1) == ids).tolist()

    def pages(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        return (self.open,), (0,), (self.most,)

    def check(self) -> None:
        assert 0 <= self.open <= self.most, f"{self.open} texts are said to be open"


class Alone:
    """One text and its executor's state. A prompt runs when its last tokens come; chunks before that only wait."""

    def __init__(self, runner: SinglyRunner, ids: np.ndarray):
        self.length = 0
        self.cached = 0
        self._runner = runner
        self._ids = ids
        self._state: Any = None
        self._is_open = False
        self._ran: tuple[int, list[np.ndarray]] = (-1, [])  # the length before the last run, and what it gave

    def waits(self, shared: int) -> bool:
        return False

    def open(self, known: int, shared: int) -> bool:
        self._is_open = True
        self._runner.open += 1
        return True

    def grow(self, tokens: int) -> bool:
        return True

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def release(self, keep: bool = True) -> None:
        self._runner.open -= self._is_open
        self._is_open, self._state, self.length, self._ran = False, None, 0, (-1, [])

    def run(self, tokens: Sequence[int], wanted: int) -> list[np.ndarray]:
        """Logits after the last `wanted` tokens; 0 leaves all for later. The same again gives the same again."""
        if not wanted:
            return []
        if self._ran[0] != self.length:
            self._ran = self.length, self._run(tokens, wanted)
        return self._ran[1]

    def _run(self, tokens: Sequence[int], wanted: int) -> list[np.ndarray]:
        executor, ids = self._runner.executor, [*self._ids[: self.length].tolist(), *tokens]
        if wanted > 1:
            return list(np.concatenate(list(executor.rows(ids, len(ids) - wanted))))
        if self._state is None:
            self._state, logits = executor.prefill([ids], executor.config.context - len(ids))
        else:
            self._state, logits = executor.step(self._state, [tokens[0]])
            for token in tokens[1:]:  # forced ones
                self._state, logits = executor.step(self._state, [token])
        return [np.asarray(logits[0])]
