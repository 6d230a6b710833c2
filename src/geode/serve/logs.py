"""One line for every request and every event, for people or as JSON; never a key, and no prompt unless it is asked for.

What happens is not known here.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import IO, Any

from .record import RECORD, Record

NAMES = ("geode.serve", "geode.engine", "uvicorn", "uvicorn.error", "opentelemetry")
QUIET = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds by machines
log = logging.getLogger("geode.serve.requests")


def setup(style: str, prompts: bool, out: IO[str] | None = None) -> None:
    """Sends what this server says to `out`, stderr where None. `style`: "text" or "json"."""
    handler = logging.StreamHandler(out or sys.stderr)
    handler.setFormatter(_Json(prompts) if style == "json" else _Text(prompts))
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.handlers = [handler] if "." not in name or name.startswith("geode") else []
        logger.propagate = bool(not logger.handlers)
        logger.setLevel(logging.INFO if name.startswith("geode") else logging.WARNING)


class Requests:
    """Logs each request at its end. With `prompts` its body too."""

    def __init__(self, prompts: bool = False):
        self._prompts = prompts

    def begins(self, record: Record) -> None:
        pass

    def between(self, record: Record, seconds: float, tokens: int) -> None:
        pass

    def ends(self, record: Record) -> None:
        level = logging.DEBUG if record.path in QUIET and record.status < 400 else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "request", extra={"fields": fields(record, self._prompts)})


def fields(record: Record, prompts: bool = False) -> dict[str, Any]:
    """What a log tells of a request; what does not apply is left out."""
    every: dict[str, Any] = {
        "client": record.client,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "seconds": round(record.seconds, 4),
        "model": record.model,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "truncated": record.truncated,
        "queued": round(record.queued, 4),
        "first_token": None if record.first is None else round(record.first - record.begun, 4),
        "finish": record.finish,
        "error": record.error,
    }
    if prompts and record.body:
        every["body"] = record.body.decode(errors="replace")
    return {"id": record.id} | {name: value for name, value in every.items() if value not in ("", None, 0, 0.0)}


class _Formatter(logging.Formatter):
    def __init__(self, prompts: bool):
        super().__init__()
        self._prompts = prompts

    def found(self, line: logging.LogRecord) -> dict[str, Any]:
        """The parts of one line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(line.created))
        found = {
            "time": f"{seconds}.{int(line.msecs):03}Z",
            "level": line.levelname.lower(),
            "event": line.getMessage(),
        }
        record = RECORD.get()
        if record is not None:
            found["id"] = record.id
        found |= getattr(line, "fields", {})
        if line.exc_info and line.exc_info[0] is not None:
            found["exception"] = self._exception(*line.exc_info[:2])
        return found

    def _exception(self, kind: Any, problem: BaseException | None) -> str:
        """Where it happened. What it says may quote a prompt."""
        if problem is None:
            return str(kind)
        frames = "".join(traceback.format_tb(problem.__traceback__))
        said = f": {problem}" if self._prompts else ""
        return f"{frames}{type(problem).__name__}{said}"


class _Json(_Formatter):
    def format(self, line: logging.LogRecord) -> str:
        return json.dumps(self.found(line), ensure_ascii=True, default=str)


class _Text(_Formatter):
    def format(self, line: logging.LogRecord) -> str:
        found = self.found(line)
        exception = found.pop("exception", None)
        head = f"{found.pop('time')} {found.pop('level'):7} {found.pop('event')}"
        words = " ".join(f"{name}={_shown(value)}" for name, value in found.items())
        shown = f"{_shown(head)} {words}".rstrip()
        return f"{shown}\n{exception}" if exception else shown


def _shown(value: Any) -> str:
    """As one line, whatever a client has put into it."""
    text = str(value)
    return text if text.isprintable() else text.encode("unicode_escape").decode()
