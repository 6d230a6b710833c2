"""What one HTTP request is about, noted while it is answered, for logs, metrics and traces.

Who reads it is not known here. No text of a prompt or an answer is kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from .ask import CallBegins, CallGoesOn, Ends, Event, Spent, Text
from .keys import Key


@dataclass(eq=False)
class Record:
    """One request. Times are `time.perf_counter`'s; `begun_ns` is the clock on the wall.

    route     the path as the app declares it: never what a client has made up
    client    the name of the key it came with, or the address it came from
    error     the class of what went wrong; its message may quote a prompt
    first     when the first of the answer was there; `last` when the latest was
    gaps      seconds from one part of an answer to the next, divided by the tokens in it, and how many these were
    """

    id: str
    method: str = "GET"
    path: str = ""
    client: str = ""
    key: Key | None = None
    begun: float = field(default_factory=time.perf_counter)
    begun_ns: int = field(default_factory=time.time_ns)
    route: str = ""
    status: int = 0
    error: str = ""
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    truncated: int = 0
    queued: float = 0.0
    first: float | None = None
    last: float = 0.0
    ended: float = 0.0
    finish: str = ""
    body: bytes = field(default=b"", repr=False)
    parent: str = ""
    watch: Watch | None = field(default=None, repr=False)

    @property
    def priority(self) -> int:
        return self.key.priority if self.key else 0

    @property
    def seconds(self) -> float:
        return (self.ended or time.perf_counter()) - self.begun

    def said(self, model: str, events: Iterable[Event]) -> None:
        """Events of an answer, those that came together."""
        now, tokens, spoke = time.perf_counter(), 0, False
        self.model = model
        for event in events:
            if isinstance(event, Text | CallBegins | CallGoesOn):
                spoke = True
                tokens += len(event.tokens) if isinstance(event, Text) else 1
            elif isinstance(event, Ends):
                self.finish = event.finish_reason
            elif isinstance(event, Spent):
                self.spent(event)
        if spoke:
            self._part(now, tokens or 1)

    def spent(self, spent: Spent) -> None:
        """Tokens of a further answer, or of what is not streamed."""
        self.prompt_tokens += spent.prompt_tokens
        self.completion_tokens += spent.completion_tokens
        self.cached_tokens += spent.cached_tokens
        self.drafted_tokens += spent.drafted_tokens
        self.accepted_tokens += spent.accepted_tokens
        self.truncated += spent.truncated
        self.queued = max(self.queued, spent.queued_seconds)

    def _part(self, now: float, tokens: int) -> None:
        if self.first is None:
            self.first = now
        elif self.watch is not None:
            self.watch.between(self, (now - self.last) / tokens, tokens)
        self.last = now


class Watch(Protocol):
    """Whoever wants to know of requests."""

    def begins(self, record: Record) -> None: ...

    def between(self, record: Record, seconds: float, tokens: int) -> None: ...

    def ends(self, record: Record) -> None: ...


class Watches:
    """Several as one."""

    def __init__(self, watches: Iterable[Watch]):
        self._watches = tuple(watches)

    def begins(self, record: Record) -> None:
        for watch in self._watches:
            watch.begins(record)

    def between(self, record: Record, seconds: float, tokens: int) -> None:
        for watch in self._watches:
            watch.between(record, seconds, tokens)

    def ends(self, record: Record) -> None:
        for watch in self._watches:
            watch.ends(record)


RECORD: ContextVar[Record | None] = ContextVar("record", default=None)


def current() -> Record:
    """The record of the request that this task answers; outside of any one that nobody reads."""
    return RECORD.get() or Record("")
