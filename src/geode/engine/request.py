"""What is asked of the engine, and what it hands back.

How requests share steps and pages is the rest of this room's to know; text formats and HTTP are nobody's here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from ..generate import Options, Piece, Usage

Deliver = Callable[[Piece | Exception], None]
"""Given each piece of an answer, or the error that ended it, on the engine's own thread: it must return at once."""


class Constraint(Protocol):
    """Which tokens may come next: a grammar's state, made anew for each answer."""

    def mask(self) -> np.ndarray | None:
        """bool (V,): the tokens that may follow; None when all may. End tokens are among them where it may end."""

    def allows(self, token: int) -> bool:
        """Whether one token may follow: cheaper than the whole mask."""

    def accept(self, token: int) -> None:
        """The token was chosen."""

    def forced(self) -> list[int]:
        """The tokens that must follow now, as far as that is known; they need no choice."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to be continued. `ids` is the prompt.

    client     whose it is: clients take turns (fair queueing)
    priority   higher goes first; equal ones take turns
    adapter    the name of a loaded adapter, None for the model as it is
    salt       answers share kept prefixes only with requests of the same salt
    speculate  whether tokens may be drafted for it (the answer is the same)
    """

    ids: Sequence[int]
    options: Options = field(default_factory=Options)
    constraint: Constraint | None = None
    client: str = ""
    priority: int = 0
    adapter: str | None = None
    salt: str = ""
    speculate: bool = True


@dataclass
class Counts(Usage):
    """What one request took: `Usage`, and what was saved."""

    cached_tokens: int = 0  # of the prompt, taken from kept pages
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    queued_seconds: float = 0.0


class Ticket(Protocol):
    """A request that was taken in."""

    @property
    def usage(self) -> Counts: ...

    @property
    def finish_reason(self) -> str | None: ...

    def cancel(self) -> None:
        """Ends it; its pages are free before the next step. Harmless twice and after the end. Nothing more is
        delivered."""


Top = tuple[tuple[int, float], ...]
"""The likeliest tokens in one place, the best first: (id, log-probability)."""


class Scores(NamedTuple):
    """Of each id that was judged: its log-probability, whether it was the likeliest, the likeliest in its place."""

    logprobs: list[float]
    greedy: list[bool]
    top: list[Top]


@dataclass(frozen=True)
class Stats:
    """The engine at one moment; totals since it began."""

    waiting: int
    running: int
    pages_used: tuple[int, ...]  # held by requests, by group
    pages_kept: tuple[int, ...]  # held only for reuse
    pages: tuple[int, ...]  # all there are
    kv_used: int  # bytes of the pages that are held or kept, where that is known
    kv_bytes: int  # and of all
    steps: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    preemptions: int
    batch: int  # rows of the last step
