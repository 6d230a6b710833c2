"""What answers a request: a model on loan, and what its engine is asked.

What any API's bodies look like is not known here, nor how an answer is made.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request

from ..errors import TooMany
from .answer import Answer, together
from .ask import Ask
from .http import there
from .record import current

if TYPE_CHECKING:
    from .loading import Served
    from .models import Models
    from .settings import Settings
    from .slots import Lease

T = TypeVar("T")
AT_ONCE = 32  # texts of one request that an engine is given at a time


def models_of(request: Request) -> Models:
    found: Models = request.app.state.models
    return found


def settings_of(request: Request) -> Settings:
    found: Settings = request.app.state.settings
    return found


def who(request: Request) -> dict[str, Any]:
    """The fields of an `Ask` that tell whose it is, as whoever checked the keys has found."""
    state = request.state
    return {"client": getattr(state, "client", ""), "priority": getattr(state, "priority", 0)}


class Running:
    """A model on loan and the answers it gives. `close` ends both, and is harmless twice."""

    def __init__(self, lease: Lease, answer: Answer, seconds: float):
        self.served: Served = lease.served
        self.answer = answer
        self.seconds = seconds
        self._lease = lease
        self._timer = asyncio.get_running_loop().call_later(seconds, answer.fail, TimeoutError())

    def close(self) -> None:
        self._timer.cancel()
        self.answer.close()
        self._lease.release()

    async def __aenter__(self) -> Running:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


async def begin(request: Request, model: str | None, asks: Callable[[Served], Sequence[Ask]]) -> Running:
    """Borrows a model and asks it. All that can be wrong with the asks is raised here, before any byte is sent."""
    lease = await models_of(request).acquire(model)
    try:
        events = await there(request, together(lease.served, asks(lease.served)))
        events.hear = partial(current().said, lease.served.name)
        return Running(lease, events, settings_of(request).timeout)
    except BaseException:
        lease.release()
        raise


async def promised(begin: Callable[..., Future[T]], inputs: Iterable[Sequence[Any]], **options: Any) -> list[T]:
    """What an engine makes of each input, `begin(*input, **options)`: as many at a time as its queue takes, and none
    further once nobody waits for them. Raises TooMany where it does not take one."""
    begun: deque[Future[T]] = deque()
    found: list[T] = []
    try:
        for one in inputs:
            while len(begun) == AT_ONCE or (next_one := _tried(begin, one, options, alone=not begun)) is None:
                found.append(await asyncio.wrap_future(begun.popleft()))
            begun.append(next_one)
        while begun:
            found.append(await asyncio.wrap_future(begun.popleft()))
        return found
    finally:
        for left in begun:
            left.cancel()


def _tried(
    begin: Callable[..., Future[T]], one: Sequence[Any], options: Mapping[str, Any], alone: bool
) -> Future[T] | None:
    try:
        return begin(*one, **options)
    except TooMany:
        if alone:
            raise
        return None
