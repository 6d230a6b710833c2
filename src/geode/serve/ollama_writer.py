"""Answers as Ollama has them: a line of JSON for each event, or one for all.

Where events come from, and who reads the lines, is not known here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from .answer import Call, Said
from .ask import CallBegins, CallGoesOn, Ends, Event, Logprob, Spent, Text
from .http import dumps
from .replies import Tokens

SECOND = 10**9  # in nanoseconds


class Lines:
    """Events of one answer as the lines of its stream.

    name  the model as the client called it; loading  seconds until it was there
    """

    def __init__(self, name: str, shape: Shape, loading: float, tokens: Tokens):
        self._name, self._shape, self._loading, self._tokens = name, shape, loading, tokens
        self._said = Said()

    def of(self, event: Event) -> list[bytes]:
        """Calls are told whole, when all of the answer is there: Ollama knows no parts of arguments."""
        if isinstance(event, Text):
            said = self._shape.part(event.text) | likely_in(event.logprobs, self._tokens)
            return [self._line(said, {"done": False})] if event.text or event.logprobs else []
        if isinstance(event, CallBegins | CallGoesOn | Ends):
            self._said.add(event)
            if isinstance(event, Ends) and self._said.calls:
                return [self._line(self._shape.calls(self._said.calls), {"done": False})]
            return []
        return [self._line(self._shape.part(""), last(self._said.finish_reason, event, self._loading))]

    def _line(self, said: dict[str, Any], end: dict[str, Any]) -> bytes:
        return dumps({"model": self._name, "created_at": now(), **said, **end}) + b"\n"


class Shape:
    """How one of the two requests has its answers."""

    def part(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def calls(self, calls: Sequence[Call]) -> dict[str, Any]:
        return self.part("")

    def whole(self, said: Said) -> dict[str, Any]:
        return self.part(said.text)


class Chat(Shape):
    def part(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def calls(self, calls: Sequence[Call]) -> dict[str, Any]:
        told = [{"id": call.id, "function": {"name": call.name, "arguments": _arguments(call)}} for call in calls]
        return {"message": {"role": "assistant", "content": "", "tool_calls": told}}

    def whole(self, said: Said) -> dict[str, Any]:
        found = self.calls(said.calls) if said.calls else self.part("")
        found["message"]["content"] = said.text
        return found


class Generate(Shape):
    def part(self, text: str) -> dict[str, Any]:
        return {"response": text}


def last(reason: str, spent: Spent, loading: float) -> dict[str, Any]:
    """What the last line tells. Ollama's durations are nanoseconds."""
    took = (loading, spent.prompt_seconds, spent.completion_seconds)
    load, prompt, answer = (int(seconds * SECOND) for seconds in took)
    found = {
        "done": True,
        "done_reason": "length" if reason == "length" else "stop",
        "total_duration": load + prompt + answer,
        "load_duration": load,
        "prompt_eval_count": spent.prompt_tokens,
        "prompt_eval_duration": prompt,
        "eval_count": spent.completion_tokens,
        "eval_duration": answer,
    }
    return found | ({"truncated_tokens": spent.truncated} if spent.truncated else {})


def likely_in(logprobs: Sequence[Logprob], tokens: Tokens) -> dict[str, Any]:
    """The field for the probabilities of tokens, where there are any."""
    return {"logprobs": json.loads(tokens.logprobs(logprobs))["content"]} if logprobs else {}


def now() -> str:
    """The time, as `time_of` writes it."""
    return time_of(time.time())


def time_of(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 has them, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _arguments(call: Call) -> dict[str, Any]:
    """{} where the answer ended before they were whole."""
    try:
        found = json.loads(call.arguments or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
