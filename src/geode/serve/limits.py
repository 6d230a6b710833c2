"""How much each client has asked for in the last minute, and whether it may ask again.

Who a client is, and HTTP, are not known here.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from ..errors import TooMany
from .keys import Limits

CLIENTS = 10_000  # that are remembered: those that were quiet longest are forgotten


class Meter:
    """Requests, tokens and what runs, for each client. Buckets that fill again over a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    def enter(self, name: str, limits: Limits) -> None:
        """Counts a request that begins. Raises TooMany, and then nothing is counted."""
        with self._lock:
            client = self._client(name)
            now = self._clock()
            running, most = client.running, limits.concurrent
            if most is not None and running >= most:
                raise TooMany(
                    f"{running} requests of this client are running and its limit is {most} at a time. "
                    "Wait until one has ended.",
                    1.0,
                )
            client.tokens.check(limits.tokens_per_minute, 0, now, "tokens")
            client.requests.check(limits.requests_per_minute, 1, now, "requests")
            client.requests.take(limits.requests_per_minute, 1, now)
            client.running += 1

    def leave(self, name: str, limits: Limits, tokens: int) -> None:
        """Counts the end of a request, and the tokens that it took."""
        with self._lock:
            client = self._client(name)
            client.running = max(0, client.running - 1)
            client.tokens.take(limits.tokens_per_minute, tokens, self._clock())

    def running(self, name: str) -> int:
        with self._lock:
            return self._clients[name].running if name in self._clients else 0

    def _client(self, name: str) -> _Client:
        client = self._clients.setdefault(name, _Client())
        self._clients.move_to_end(name)
        while len(self._clients) > CLIENTS:
            quiet = next((each for each in self._clients.items() if not each[1].running), None)
            if quiet is None:
                break
            del self._clients[quiet[0]]
        return client


class _Bucket:
    """What may be taken now: up to `most`, and a sixtieth of it more every second. Less than nothing: a debt."""

    def __init__(self) -> None:
        self._there: float | None = None
        self._when = 0.0

    def check(self, most: int | None, need: int, now: float, what: str) -> None:
        """Raises TooMany where fewer than `need` are there; for a need of 0, where there is a debt."""
        if most is None:
            return
        there = self._filled(most, now)
        if there >= need and (need or there > 0):
            return
        wait = max((max(need, 1) - there) * 60 / most, 0.001)
        raise TooMany(
            f"This client's limit is {most} {what} a minute, and it is used up. Try again in {math.ceil(wait)} s.",
            wait,
        )

    def take(self, most: int | None, count: int, now: float) -> None:
        if most is not None:
            self._there, self._when = self._filled(most, now) - count, now

    def _filled(self, most: int, now: float) -> float:
        if self._there is None:
            return float(most)
        return min(float(most), self._there + (now - self._when) * most / 60)


class _Client:
    def __init__(self) -> None:
        self.running = 0
        self.requests = _Bucket()
        self.tokens = _Bucket()
