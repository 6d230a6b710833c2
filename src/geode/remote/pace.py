"""How fast a server may be asked, and what asking has cost. What is asked is not known here."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, sleep

from ..errors import OptionError

MINUTE = 60.0


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, in whatever money; `cached` are prompt tokens that the server had kept."""

    prompt: float
    completion: float
    cached: float | None = None


@dataclass
class Spending:
    """Everything one `Remote` has asked for so far."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def cost(self, prices: Prices) -> float:
        """In the prices' money."""
        cached = prices.prompt if prices.cached is None else prices.cached
        fresh = self.prompt_tokens - self.cached_tokens
        return (
            fresh * prices.prompt + self.cached_tokens * cached + self.completion_tokens * prices.completion
        ) / 1_000_000


class Pace:
    """At most so many requests and tokens within any minute; None: no limit. Threads wait here in turn.

    Tokens count when an answer is there, so the limit is kept on the whole, not for each minute's last request.
    """

    def __init__(
        self,
        requests: int | None = None,
        tokens: int | None = None,
        clock: Callable[[], float] = monotonic,
        wait: Callable[[float], None] = sleep,
    ):
        for name, limit in (("requests", requests), ("tokens", tokens)):
            if limit is not None and limit < 1:
                raise OptionError(f"{name} a minute must be 1 or more, or None for no limit; {limit} was given.")
        self._limits = (requests, tokens)
        self._clock, self._wait = clock, wait
        self._past: deque[tuple[float, int, int]] = deque()  # time, requests, tokens
        self._turn, self._lock = threading.Lock(), threading.Lock()

    def enter(self) -> None:
        """Returns when one more request may go out."""
        with self._turn:
            while (seconds := self._left()) > 0:
                self._wait(seconds)
            self._add(1, 0)

    def spent(self, tokens: int) -> None:
        """So many tokens were asked for and answered."""
        self._add(0, tokens)

    def _add(self, requests: int, tokens: int) -> None:
        with self._lock:
            self._past.append((self._clock(), requests, tokens))

    def _left(self) -> float:
        """Seconds until the last minute holds less than the limits."""
        with self._lock:
            now = self._clock()
            while self._past and self._past[0][0] <= now - MINUTE:
                self._past.popleft()
            return max(
                (self._until(now, kind, limit) for kind, limit in enumerate(self._limits, 1) if limit), default=0
            )

    def _until(self, now: float, kind: int, limit: int) -> float:
        over = sum(int(entry[kind]) for entry in self._past) - limit
        for entry in self._past:
            if over < 0:
                break
            over -= int(entry[kind])
            if over < 0:
                return entry[0] + MINUTE - now
        return 0.0
