"""From an engine's thread into an event loop: what comes while the loop is busy arrives together, with one wake.

What is carried is not known here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class Inbox(Generic[T]):
    """What other threads `put` for one reader on the event loop on which it was made."""

    def __init__(self) -> None:
        self._bridge = _bridge(asyncio.get_running_loop())
        self._items: list[T] = []
        self._reader: asyncio.Future[None] | None = None

    def put(self, item: T) -> None:
        """From any thread; returns at once. Where the loop is closed nobody reads any more, and nothing happens."""
        self._bridge.carry(self, item)

    async def take(self) -> list[T]:
        """All that has come and was not yet taken, in order; waits for the first."""
        while not self._items:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        items, self._items = self._items, []
        return items

    def add(self, item: T) -> None:
        """On the loop."""
        self._items.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class _Bridge:
    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._wake_loop = loop.call_soon_threadsafe
        self._waiting: deque[tuple[Inbox[Any], Any]] = deque()
        self._woken = False

    def carry(self, inbox: Inbox[Any], item: Any) -> None:
        self._waiting.append((inbox, item))
        if not self._woken:
            self._woken = True
            try:
                self._wake_loop(self._arrive)
            except RuntimeError:  # the loop is closed
                self._waiting.clear()

    def _arrive(self) -> None:
        self._woken = False  # first: who puts from now on wakes the loop again, so nothing is left lying
        while self._waiting:
            inbox, item = self._waiting.popleft()
            inbox.add(item)


_BRIDGES: WeakKeyDictionary[asyncio.AbstractEventLoop, _Bridge] = WeakKeyDictionary()


def _bridge(loop: asyncio.AbstractEventLoop) -> _Bridge:
    found = _BRIDGES.get(loop)
    if found is None:
        found = _BRIDGES[loop] = _Bridge(loop)
    return found
