"""The one answer to a Responses request, as events of a response and as the response itself.

Where events come from, and who reads them, is not known here. The truth is
platform.openai.com/docs/api-reference/responses-streaming.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .ask import CallBegins, CallGoesOn, Ends, Event, Logprob, Spent, Text
from .http import typed_event
from .problems import Problem
from .replies import Tokens
from .responses_schema import ResponseBody

if TYPE_CHECKING:
    from .loading import Served


class Writer:
    """Events of the one answer as events of a response, and the response as far as it has come."""

    def __init__(self, body: ResponseBody, served: Served):
        self.output: list[dict[str, Any]] = []
        self.over = False
        self._tokens = Tokens(served)
        self._logprobs = body.logprobs
        self._count = 0
        self._open: dict[str, Any] | None = None
        self.response = _response(body, served, self.output)

    def begin(self) -> Iterator[bytes]:
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def events(self, event: Event) -> Iterator[bytes]:
        if isinstance(event, Text):
            yield from self._text(event)
        elif isinstance(event, CallBegins):
            yield from self._call(event)
        elif isinstance(event, CallGoesOn):
            assert self._open is not None
            self._open["arguments"] += event.arguments
            yield self._event("response.function_call_arguments.delta", **self._place, delta=event.arguments)
        elif isinstance(event, Ends):
            yield from self._close("incomplete" if event.finish_reason == "length" else "completed")
            self._ends(event)
        else:
            self.response |= {"usage": _usage(event), "completed_at": int(time.time())}
            self.over = True
            yield self._event(f"response.{self.response['status']}", response=self.response)

    def failed(self, problem: Problem) -> bytes:
        error = {"code": problem.code or "server_error", "message": problem.message}
        self.response |= {"status": "failed", "error": error}
        return self._event("response.failed", response=self.response)

    @property
    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.output) - 1}

    def _text(self, event: Text) -> Iterator[bytes]:
        logprobs = self._entries(event.logprobs)
        if not event.text and (self._open is None or not logprobs):
            return
        if self._open is None or self._open["type"] != "message":
            yield from self._close("completed")
            yield from self._add({"type": "message", "role": "assistant", "content": []}, "msg")
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield self._event("response.content_part.added", **self._place, content_index=0, part=part)
            self._open["content"].append(part)  # type: ignore[index]
        part = self._open["content"][0]  # type: ignore[index]
        part["text"] += event.text
        part["logprobs"] += logprobs
        where = {**self._place, "content_index": 0}
        yield self._event("response.output_text.delta", **where, delta=event.text, logprobs=logprobs)

    def _entries(self, logprobs: Sequence[Logprob]) -> list[Any]:
        if not self._logprobs or not logprobs:
            return []
        found: list[Any] = json.loads(self._tokens.logprobs(logprobs))["content"]
        return found

    def _call(self, event: CallBegins) -> Iterator[bytes]:
        yield from self._close("completed")
        yield from self._add({"type": "function_call", "call_id": event.id, "name": event.name, "arguments": ""}, "fc")

    def _add(self, item: dict[str, Any], prefix: str) -> Iterator[bytes]:
        self._open = {"id": f"{prefix}_{secrets.token_hex(12)}", "status": "in_progress", **item}
        self.output.append(self._open)
        yield self._event("response.output_item.added", output_index=len(self.output) - 1, item=self._open)

    def _close(self, status: str) -> Iterator[bytes]:
        item = self._open
        if item is None:
            return
        if item["type"] == "message":
            part = item["content"][0]
            where = {**self._place, "content_index": 0}
            yield self._event("response.output_text.done", **where, text=part["text"], logprobs=part["logprobs"])
            yield self._event("response.content_part.done", **where, part=part)
        else:
            name, arguments = item["name"], item["arguments"]
            yield self._event("response.function_call_arguments.done", **self._place, name=name, arguments=arguments)
        item["status"] = status
        yield self._event("response.output_item.done", output_index=len(self.output) - 1, item=item)
        self._open = None

    def _ends(self, event: Ends) -> None:
        if event.finish_reason == "length":
            self.response |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        else:
            self.response["status"] = "completed"

    def _event(self, kind: str, **fields: Any) -> bytes:
        value = {"type": kind, "sequence_number": self._count, **fields}
        self._count += 1
        return typed_event(value)


def _response(body: ResponseBody, served: Served, output: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields of a response that has just begun."""
    sent = body.model_dump(by_alias=True, exclude_none=True)
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "model": served.name,
        "output": output,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"}, **sent.get("text", {})},
        "tool_choice": sent.get("tool_choice", "auto"),
        "tools": [{"strict": None, "description": None, "parameters": None, **tool} for tool in sent.get("tools", ())],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }


def _usage(spent: Spent) -> dict[str, Any]:
    found: dict[str, Any] = {
        "input_tokens": spent.prompt_tokens,
        "input_tokens_details": {"cached_tokens": spent.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": spent.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": spent.total_tokens,
    }
    return found | ({"truncated_tokens": spent.truncated} if spent.truncated else {})
