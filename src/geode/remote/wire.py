"""JSON over HTTP to one server: requests that are tried again, streams of events, errors with the server's own words.

What the JSON means is not known here.
"""

from __future__ import annotations

import http.client
import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from ..errors import OptionError, RemoteError
from .pace import Pace, Spending

PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # what may be gone when asked again
LONGEST = 60.0  # seconds between two tries, whatever the server wishes
Json = dict[str, Any]
Answer = tuple[http.client.HTTPConnection, http.client.HTTPResponse]


class Wire:
    """One server's address, key and manners. Threads may share it."""

    def __init__(self, url: str, key: str | None, timeout: float, retries: int, pace: Pace, spending: Spending):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OptionError(
                f"{url!r} is no address of a server; expected one like http://127.0.0.1:8080 or https://host/v1."
            )
        self.host = parts.netloc.rpartition("@")[2]
        self.url = f"{parts.scheme}://{self.host}"
        self._make: Callable[..., http.client.HTTPConnection] = http.client.HTTPConnection
        self._options: Json = {"timeout": timeout}
        if parts.scheme == "https":
            self._make = http.client.HTTPSConnection
            self._options["context"] = ssl.create_default_context()
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "geode"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self.retries, self._pace, self._spending = retries, pace, spending
        self._wait: Callable[[float], None] = time.sleep
        self._kept = threading.local()  # a connection for each thread

    def get(self, path: str) -> Json:
        """The JSON at a path. Raises RemoteError."""
        return self._json(self._answer("GET", path, None)[1])

    def post(self, path: str, body: Json) -> Json:
        """The JSON that answers a body. Raises RemoteError."""
        return self._json(self._answer("POST", path, body)[1])

    def events(self, path: str, body: Json) -> Iterator[Json]:
        """The server's events, each as JSON, until [DONE]. Closing the iterator hangs up."""
        connection, answer = self._answer("POST", path, body, alone=True)
        try:
            yield from self._events(answer)
        except (OSError, http.client.HTTPException) as error:
            raise RemoteError(
                f"{self.url} hung up in the middle of an answer ({_words(error)}). What came before is all there is; "
                "ask again."
            ) from None
        finally:
            answer.close()
            connection.close()

    def _events(self, answer: http.client.HTTPResponse) -> Iterator[Json]:
        data: list[str] = []
        for line in answer:
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            if text.startswith("data:"):
                data.append(text[5:].removeprefix(" "))
            elif not text and data:
                whole, data = "\n".join(data), []
                if whole == "[DONE]":
                    return
                event = self._parsed(whole)
                if isinstance(event.get("error"), dict | str):
                    raise RemoteError(f"{self.url} ended the answer: {_said(whole)}")
                yield event
        raise RemoteError(f"{self.url} ended its answer without saying that it was whole. Ask again.")

    def _answer(self, method: str, path: str, body: Json | None, alone: bool = False) -> Answer:
        """The first good response. Tries again what may pass: waits longer each time, or as long as the server says."""
        for left in range(self.retries, -1, -1):
            self._pace.enter()
            self._spending.requests += 1
            try:
                connection, answer = self._once(method, path, body, alone)
            except (OSError, http.client.HTTPException) as error:
                if not left:
                    raise RemoteError(
                        f"{self.url} cannot be reached ({_words(error)}). Is the server running, and the address right?"
                    ) from None
                wait = None
            else:
                if answer.status < 300:
                    return connection, answer
                said = answer.read(1 << 16).decode("utf-8", "replace")
                if answer.status not in PASSING or not left:
                    raise RemoteError(self._refusal(answer.status, path, said), answer.status)
                wait = answer.headers.get("Retry-After")
            self._spending.retries += 1
            self._wait(_pause(self.retries - left, wait))
        raise AssertionError("the last try either returns or raises")

    def _once(self, method: str, path: str, body: Json | None, alone: bool) -> Answer:
        """One request, on this thread's connection or (`alone`) on one of its own."""
        connection = None if alone else getattr(self._kept, "connection", None)
        fresh = connection is None
        connection = connection or self._make(self.host, **self._options)
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, self._headers)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException):
            connection.close()
            self._kept.connection = None
            if fresh:
                raise
            return self._once(method, path, body, alone)  # the server had closed a connection that we kept
        if not alone:
            self._kept.connection = connection
        return connection, answer

    def _json(self, answer: http.client.HTTPResponse) -> Json:
        try:
            said = answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise RemoteError(f"{self.url} hung up in the middle of an answer ({_words(error)}). Ask again.") from None
        return self._parsed(said)

    def _parsed(self, said: str) -> Json:
        try:
            found = json.loads(said)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RemoteError(
                f"{self.url} answered with something that is no JSON object: {said[:200]!r}. "
                "Is this the address of an OpenAI-compatible API (it often ends in /v1)?"
            )
        return found

    def _refusal(self, status: int, path: str, said: str) -> str:
        hints = {
            401: " Give the server's key with key=… or GEODE_API_KEY.",
            404: " Is the model's name right, and does the address end where the API begins (often /v1)?",
            429: " Ask more slowly (pace=), or later.",
        }
        return f"{self.url}{path} refused with status {status}: {_said(said)}{hints.get(status, '')}"


def _said(text: str) -> str:
    """The server's own words, from whatever shape of error."""
    try:
        found = json.loads(text)
    except ValueError:
        return text.strip()[:500] or "it gave no reason."
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return str(found)[:500]


def _pause(tries: int, wished: str | None) -> float:
    """Seconds before the next try: what the server wishes, else 0.5, 1, 2 … with up to a quarter more by chance."""
    try:
        seconds = float(wished) if wished else 0.0
    except ValueError:
        seconds = 0.0  # a date; we take our own time
    if seconds <= 0:
        seconds = 0.5 * 2**tries * (1 + random.random() / 4)
    return min(seconds, LONGEST)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
