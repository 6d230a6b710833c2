"""What goes over HTTP whatever the API: JSON, parts of a stream as they come, and whether anybody still waits.

What is said is not known here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
GRACE = 5.0  # seconds that the last bytes of a stream have to leave, once its time is up


class Json(Response):
    """A value as JSON."""

    media_type = "application/json"

    def __init__(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None):
        super().__init__(dumps(value), status, headers)


class Events(Response):
    """Parts of a text as they come. `close` is called when they have ended, or the client is gone."""

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        close: Callable[[], None],
        seconds: float | None = None,
        media_type: str = "text/event-stream",
    ):
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.raw_headers = [
            (b"content-type", f"{media_type}; charset=utf-8".encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # nginx would keep parts back
        ]
        self._parts, self._close = parts, close
        self._seconds = None if seconds is None else seconds + GRACE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing, gone = asyncio.ensure_future(self._write(send)), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((writing, gone), timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            writing.cancel()
            gone.cancel()
            self._close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Untyped(APIRoute):
    """Reads a body as JSON whatever its type: Ollama does, and its examples send another. Not from a page, which says
    its origin: there a type that only JSON has makes the browser ask first."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def typed(request: Request) -> Response:
            if "origin" not in request.headers:
                headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
                scope = {**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}
                request = Request(scope, request.receive)
            return await handle(request)

        return typed


def typed_event(value: Mapping[str, Any]) -> bytes:
    """A server-sent event that is called by its value's `type`, as Anthropic's are and those of OpenAI's Responses."""
    return b"event: %s\ndata: %s\n\n" % (value["type"].encode(), dumps(value))


def dumps(value: Any) -> bytes:
    """Compact JSON; lone surrogates, which UTF-8 has no bytes for, become "?"."""
    return _ENCODER.encode(value).encode(errors="replace")


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


async def there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, unless the client goes away first: then it is cancelled. Raises ClientDisconnect."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
