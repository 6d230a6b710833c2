"""What every request passes before an API sees it: its name, its host, its key, its limits, its size.

What is asked, and of which model, is not known here.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import keys as rights
from .limits import Meter
from .problems import Problem, problem_of, response_to
from .record import RECORD, Record, Watch
from .settings import Settings, is_loopback

OPEN = frozenset({"/", "/health", "/ready", "/favicon.ico"})
OPEN_BELOW = "/page/"
SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")
READS = frozenset({"GET", "HEAD", "OPTIONS"})
PLACES = (("authorization", "Bearer "), ("x-api-key", ""), ("api-key", ""))
"""Where clients put their key: OpenAI's, Anthropic's, Azure's."""


class Refused(Exception):
    """A request that no API sees."""

    def __init__(self, status: int, message: str, code: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.problem = Problem(status, message, code, headers=headers or {})


class Gate:
    """The outermost ASGI app. `draining` set refuses whatever begins from then on."""

    def __init__(self, app: ASGIApp, settings: Settings, watch: Watch):
        self.draining = False
        self.running = 0
        self._app, self._settings, self._watch = app, settings, watch
        self._meter = Meter()
        self._open = OPEN | ({settings.vertex.health} if settings.vertex else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1000})
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record = _record(scope, self._watch)
        token = RECORD.set(record)
        self.running += 1
        self._watch.begins(record)
        try:
            await self._pass(scope, receive, _noting(record, send), record)
        except asyncio.CancelledError:
            if not self.draining:
                raise
            record.error = "Stopped"  # the time to drain is over: the connection is closed, and the log tells why
        finally:
            self.running -= 1
            _finish(record, scope)
            self._watch.ends(record)
            RECORD.reset(token)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        headers = Headers(scope=scope)
        try:
            self._check(record, headers)
            record.body = await self._body(headers, receive)
        except Refused as refused:
            record.error = refused.problem.code or ""
            return await response_to(record.path, refused.problem)(scope, receive, send)
        except _GoneError:
            record.status = 499
            return None
        scope.setdefault("state", {}).update(client=record.client, priority=record.priority, record=record)
        if record.method in READS:
            return await self._read(scope, _again(record.body, receive), send)
        await self._metered(scope, _again(record.body, receive), send, record)

    async def _read(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app without limits. HEAD is GET to it: whoever writes the response leaves the body out."""
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._app(asked, receive, send)
        finally:
            scope["route"] = asked.get("route")

    async def _metered(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        """The app within its client's limits."""
        limits = (record.key.limits if record.key else rights.Limits()).over(self._settings.limits)
        try:
            self._meter.enter(record.client, limits)
        except Exception as error:
            record.error = type(error).__name__
            return await response_to(record.path, problem_of(error))(scope, receive, send)
        try:
            await self._app(scope, receive, send)
        finally:
            self._meter.leave(record.client, limits, record.prompt_tokens + record.completion_tokens)

    def _check(self, record: Record, headers: Headers) -> None:
        """Raises Refused for whoever must not, or cannot now, be served."""
        if self.draining and record.path not in ("/health", "/ready"):
            raise Refused(503, "The server is shutting down. Ask another one, or try again.", "shutting_down", AGAIN)
        _check_path(record.path)
        _check_once(headers)
        _check_host(headers, self._settings)
        _check_origin(headers, self._settings)
        if not self._settings.keys or record.method == "OPTIONS":
            return
        record.key = rights.find(self._settings.keys, _shown_key(headers))
        if record.key is not None:
            record.client = record.key.name
        elif record.path not in self._open and not record.path.startswith(OPEN_BELOW):
            raise Refused(401, "This server needs an API key: 'Authorization: Bearer KEY'.", "invalid_api_key", ASK)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, when it is here: who sends slowly keeps nothing else busy."""
        most = self._settings.body
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 15 or int(length) > most):
            raise _too_large(most)
        parts: list[bytes] = []
        count = 0
        try:
            async with asyncio.timeout(self._settings.patience):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    parts.append(message.get("body", b""))
                    count += len(parts[-1])
                    if count > most:
                        raise _too_large(most)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            seconds = self._settings.patience
            raise Refused(
                408, f"The request did not arrive within {seconds:g} seconds.", "timeout", {"connection": "close"}
            ) from None


AGAIN = {"retry-after": "5", "connection": "close"}
ASK = {"www-authenticate": "Bearer"}


class _GoneError(Exception):
    """The client went away before it had asked."""


def _too_large(most: int) -> Refused:
    return Refused(
        413, f"The request is larger than {most} bytes, which is this server's limit.", "request_too_large", CLOSE
    )


CLOSE = {"connection": "close"}


def _record(scope: Scope, watch: Watch) -> Record:
    headers = Headers(scope=scope)
    asked = headers.get("x-request-id", "")
    name = asked if SANE.fullmatch(asked) else f"req_{secrets.token_hex(12)}"
    address = (scope.get("client") or ("",))[0]
    trace = headers.get("traceparent", "")
    return Record(name, scope["method"], scope["path"], client=address, parent=trace, watch=watch)


def _finish(record: Record, scope: Scope) -> None:
    """What is known only at the end. The route as it was declared: a path with an id in it is no label."""
    record.ended = record.begun + record.seconds
    route = scope.get("route")
    record.route = getattr(route, "path", "") or ""
    if record.status == 0:
        record.status = 499


def _noting(record: Record, send: Send) -> Send:
    """Notes the status, and tells the client its request's id."""

    async def noted(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = record.id
            headers["request-id"] = record.id  # where Anthropic's clients look
            headers.setdefault("x-content-type-options", "nosniff")
        await send(message)

    return noted


def _again(body: bytes, receive: Receive) -> Receive:
    """Hands out a body that was read already, then whatever else comes."""
    waiting = [body]

    async def handed() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return handed


def _check_path(path: str) -> None:
    if len(path) > 2048 or not path.isprintable() or ".." in path.split("/"):
        raise Refused(400, "This is no path that a server has.", "invalid_path")


def _check_once(headers: Headers) -> None:
    """What another server on the way could have read otherwise, and what nobody here would undo."""
    if len(headers.getlist("host")) > 1:
        raise Refused(400, "The request has more than one Host.", "invalid_header")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "Bodies are read as they are. Send this one without content-encoding.", "invalid_header")


def _check_host(headers: Headers, settings: Settings) -> None:
    """A page elsewhere may let its own name point to this machine: then the name tells.

    github.com/nccgroup/singularity/wiki/Preventing-DNS-Rebinding-Attacks
    """
    known = settings.hosts
    if "*" in known or (not known and not settings.loopback):
        return
    host = _without_port(headers.get("host", ""))
    if is_loopback(host) or host in (settings.host, *known):
        return
    raise Refused(
        421,
        "This server is not called by the name that the request has as its Host. If it is, tell it so: "
        "geode serve --allow-host NAME.",
        "unknown_host",
    )


def _check_origin(headers: Headers, settings: Settings) -> None:
    """Pages of other origins may not ask, unless CORS lets them: what they send need not be read to do harm."""
    origin = headers.get("origin")
    if origin is None or "*" in settings.cors or origin in settings.cors:
        return
    if (place := origin.partition("://")[2]) and place == headers.get("host"):
        return
    raise Refused(
        403,
        "Pages of another origin may not use this server. To let one: geode serve --cors ORIGIN.",
        "cross_origin",
    )


def _without_port(host: str) -> str:
    return re.sub(r":\d*$", "", host).strip("[]").lower()


def _shown_key(headers: Headers) -> str:
    for name, before in PLACES:
        text = headers.get(name, "")
        if text[: len(before)].lower() == before.lower() and len(text) > len(before):
            return text[len(before) :].strip()
    return ""
