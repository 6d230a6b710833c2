"""HTTP on one connection, with the patience that uvicorn's own lacks: for headers that come slowly, or are endless.

Requests are not known here.
"""

from __future__ import annotations

import asyncio
from typing import Any

from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .settings import Settings

HEADERS = 65_536  # bytes of a request before its body
CONNECTIONS = 4096  # that are open at a time
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def protocol(settings: Settings) -> type[asyncio.Protocol]:
    """uvicorn's protocol for these settings."""
    return type("Patient", (Patient,), {"patience": settings.patience})


class Patient(HttpToolsProtocol):
    """A request's headers are whole within `patience` seconds and `HEADERS` bytes."""

    patience: float
    _timer: asyncio.TimerHandle | None = None
    _seen = 0  # bytes since the request began, until its headers are whole
    _size = 0  # bytes of its headers
    _whole = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self._end(BUSY)
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._come()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._whole:
            self._seen += len(data)
        super().data_received(data)
        if not self._whole and self._seen > HEADERS and not self.transport.is_closing():
            self._end(LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._whole, self._seen, self._size = False, 0, 0
        self._wait()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value) + 4
        if self._size > HEADERS:  # they came all at once
            raise HttpParserError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._whole = True
        self._come()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if self._size > HEADERS:
            self._end(LARGE)
        else:
            super().send_400_response(msg)

    def _wait(self) -> None:
        self._come()
        self._timer = self.loop.call_later(self.patience, self.transport.close)

    def _come(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, said: bytes) -> None:
        self._come()
        self.transport.write(said)
        self.transport.close()
