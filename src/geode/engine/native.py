"""The engine's runner over the native executor: pages that texts share, many texts in one forward.

Which tokens are run, and what is chosen from the logits, is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..generate import Logits
from ..memory import available
from ..native.executor import Executor
from ..native.executor import Part as NativePart
from ..sampling import Need
from .pages import Store, Text, root
from .plan import capacity, page_counts, useful
from .runner import Adapter, Part


class NativeRunner:
    """See `runner.Runner`. `memory`: bytes for keys and values, None: half of what is free, as far as it is of use.

    Raises CapacityError where not even a short text fits.
    """

    rolls_back = True

    def __init__(self, executor: Executor, step_tokens: int = 512, memory: int | None = None, most: int = 256):
        self.config = executor.config
        self.step_tokens = step_tokens
        self.most = min(most, step_tokens)
        self.executor = executor
        self.page_bytes = tuple(map(executor.page_bytes, executor.groups))
        memory = _memory(executor, step_tokens) if memory is None else memory
        counts = page_counts(self.config, executor.kv_type, memory, step_tokens)
        self.store = Store(counts, executor.groups, step_tokens)
        self.cache = executor.cache(counts)
        self._adapters: Sequence[Any] = ()  # of the wanted rows of the last run
        self.capacity = capacity(executor.groups, counts, step_tokens, self.config.context)

    def text(self, ids: np.ndarray, adapter: Adapter | None, salt: str) -> Text:
        return Text(self.store, ids, root(adapter.key if adapter else b"", salt))

    def run(self, parts: Sequence[Part]) -> np.ndarray:
        """Hidden states (W, D)."""
        self._adapters = _adapters(parts)
        return self.executor.run(self.cache, [_native(part) for part in parts])

    def logits(self, hidden: np.ndarray, rows: Sequence[int] | None, needs: Sequence[Need | None]) -> Logits:
        return self.executor.needed(self._some(hidden, rows), needs, self._of(rows))

    def vectors(self, hidden: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        return hidden[list(rows)]

    def score(
        self, hidden: np.ndarray, rows: Sequence[int], targets: Sequence[int], size: int | None
    ) -> tuple[list[float], list[bool]]:
        return self.executor.judge(self._some(hidden, rows), targets, size, self._of(rows))

    def _some(self, hidden: np.ndarray, rows: Sequence[int] | None) -> np.ndarray:
        return hidden if rows is None else hidden[list(rows)]

    def _of(self, rows: Sequence[int] | None) -> Sequence[Any]:
        """The adapters that some rows of the last run came through."""
        return self._adapters if rows is None or not self._adapters else [self._adapters[row] for row in rows]

    def adopt(self, group: int, name: bytes, data: bytes) -> bool:
        """Takes in a page that was kept elsewhere; False where it does not fit."""
        page = self.store.adopt(group, name) if len(data) == self.cache.page_bytes(group) else None
        if page is not None:
            self.cache.write(group, page, data)
        return page is not None

    def pages(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        return self.store.counted()

    def check(self) -> None:
        self.store.check()


def _native(part: Part) -> NativePart:
    size = len(part.tokens)
    weights = part.adapter.native if part.adapter else None
    return NativePart(part.text, part.tokens, wanted=range(size - part.wanted, size), adapter=weights)


def _adapters(parts: Sequence[Part]) -> list[Any]:
    """Of each wanted row the adapter's weights; nothing where nobody has any."""
    if not any(part.adapter for part in parts):
        return []
    return [part.adapter.native if part.adapter else None for part in parts for _ in range(part.wanted)]


def _memory(executor: Executor, step_tokens: int) -> int:
    most, free = useful(executor.config, executor.kv_type, step_tokens), available()
    return most if free is None else min(most, free // 2)
