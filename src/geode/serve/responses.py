"""OpenAI's Responses: POST /v1/responses, and reading or deleting one that was kept.

How answers are made is not known here. What was said is kept in memory, within bounds, for `previous_response_id`,
unless a request says `store: false`. The truth is platform.openai.com/docs/api-reference/responses.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Discriminator, Field, Tag
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..errors import OptionError
from ..generate import Options
from .ask import Ask, CallBegins, CallGoesOn, Ends, Event, Format, JsonObject, JsonSchema, Logprob, Spent, Text, Tool
from .http import Events, Json, Problem, Running, begin, dumps, problem_of, there, who
from .record import current
from .replies import Tokens, cut
from .schema import MOST_LIKELY, Body, Neutral

if TYPE_CHECKING:
    from .models import Served

router = APIRouter(tags=["OpenAI"])
KEPT = 1000  # responses
KEPT_BYTES = 64 << 20
LOGPROBS = "message.output_text.logprobs"


# Bodies


class Part(Body):
    """A part of a message. Answers that clients send back have empty lists in them."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None


class Message(Body):
    type: Literal["message"] = "message"
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]
    status: str | None = None
    phase: str | None = None

    @property
    def text(self) -> str:
        return _joined(self.content)


class FunctionCall(Body):
    type: Literal["function_call"]
    id: str | None = None
    call_id: str
    name: str
    arguments: str
    status: str | None = None


class FunctionOutput(Body):
    type: Literal["function_call_output"]
    id: str | None = None
    call_id: str
    output: str | list[Part]
    status: str | None = None


def _kind(item: Any) -> str | None:
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


Item = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionOutput, Tag("function_call_output")],
    Discriminator(_kind),
]


class Function(Body):
    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Named(Body):
    type: Literal["function"]
    name: str


class PlainFormat(Body):
    type: Literal["text", "json_object"]


class SchemaFormat(Body):
    type: Literal["json_schema"]
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextSettings(Body):
    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class StreamSettings(Body):
    include_obfuscation: Literal[False] | None = None


class NoReasoning(Body):
    """The models here do not think apart from their answer."""

    effort: None = None
    summary: None = None


class ResponseBody(Neutral):
    """POST /v1/responses."""

    model: str | None = None
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELY)] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    tools: list[Function] | None = None
    tool_choice: Literal["auto", "none", "required"] | Named | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    stream: bool | None = None
    stream_options: StreamSettings | None = None
    store: bool | None = None  # type: ignore[assignment]
    previous_response_id: str | None = None
    truncation: Literal["auto", "disabled"] | None = None
    reasoning: NoReasoning | None = None
    background: Literal[False] | None = None
    conversation: None = None
    prompt: None = None
    max_tool_calls: None = None


# Routes


@router.post("/v1/responses")
async def create(body: ResponseBody, request: Request) -> Response:
    """An answer to a text or to items, whole or streamed."""
    store, client = _store(request), who(request)["client"]
    items = [*store.items(body.previous_response_id, client), *_items(body.input)]
    running = await begin(request, body.model, lambda served: [_ask(body, items, request, served)])
    writer = _Writer(body, running.served)

    def keep() -> None:
        if body.store is not False and writer.over:
            store.keep(writer.response, [*items, *map(_item, writer.output)], client)

    if body.stream:
        return Events(_stream(running, writer, keep), running.close, running.seconds)
    async with running:
        await there(request, _write(running, writer))
        keep()
        return Json(writer.response)


@router.get("/v1/responses/{response_id}")
async def read(response_id: str, request: Request) -> Response:
    """One that was kept."""
    return Json(_store(request).find(response_id, who(request)["client"]).response)


@router.delete("/v1/responses/{response_id}")
async def delete(response_id: str, request: Request) -> Response:
    """Forgets one that was kept."""
    store = _store(request)
    store.forget(store.find(response_id, who(request)["client"]))
    return Json({"id": response_id, "object": "response", "deleted": True})


async def _write(running: Running, writer: _Writer) -> None:
    async for event in running.answer:
        for _ in writer.events(event):
            pass


async def _stream(running: Running, writer: _Writer, keep: Any) -> AsyncIterator[bytes]:
    yield b"".join(writer.begin())
    try:
        while batch := await running.answer.batch():
            parts = [part for event in batch for part in writer.events(event)]
            if writer.over:
                keep()
            yield b"".join(parts)
    except Exception as error:
        yield writer.failed(problem_of(error))


# To an ask


def _items(given: str | list[Item]) -> list[Item]:
    return [Message(role="user", content=given)] if isinstance(given, str) else given


def _ask(body: ResponseBody, items: Sequence[Item], request: Request, served: Served) -> Ask:
    logprobs = (body.top_logprobs or 0) if body.include or body.top_logprobs else None
    sent = {"temperature": body.temperature, "top_p": body.top_p, "logprobs": logprobs}
    given: dict[str, Any] = {name: value for name, value in sent.items() if value is not None}
    tools = body.tools or []
    return Ask(
        model=served.name,
        messages=[*_system(body.instructions), *_conversation(items)],
        options=Options(max_tokens=body.max_output_tokens, **given),
        tools=[_tool(tool) for tool in tools],
        tool_choice=_choice(body.tool_choice, [tool.name for tool in tools]),
        parallel_calls=body.parallel_tool_calls is not False,
        format=_format(body.text),
        truncate=cut(request, served, -1 if body.truncation == "auto" else None, body.max_output_tokens),
        **who(request),
    )


def _system(text: str | None) -> list[dict[str, Any]]:
    return [] if text is None else [{"role": "system", "content": text}]


def _conversation(items: Sequence[Item]) -> Iterator[dict[str, Any]]:
    """Items as messages: calls belong to what the assistant said before them."""
    names: dict[str, str] = {}
    speaking: dict[str, Any] | None = None
    for item in items:
        if isinstance(item, FunctionCall):
            names[item.call_id] = item.name
            speaking = speaking or {"role": "assistant", "content": None}
            speaking.setdefault("tool_calls", []).append(_called(item))
            continue
        if speaking is not None:
            yield speaking
            speaking = None
        if isinstance(item, FunctionOutput):
            yield _result(item, names)
        elif item.role == "assistant":
            speaking = {"role": "assistant", "content": item.text}
        else:
            yield {"role": item.role, "content": item.text}
    if speaking is not None:
        yield speaking


def _called(call: FunctionCall) -> dict[str, Any]:
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _result(item: FunctionOutput, names: dict[str, str]) -> dict[str, Any]:
    if item.call_id not in names:
        raise OptionError(f"input must have the function_call before its output; {item.call_id!r} is not there.")
    text = _joined(item.output)
    return {"role": "tool", "tool_call_id": item.call_id, "name": names[item.call_id], "content": text}


def _joined(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _tool(function: Function) -> Tool:
    more = {} if function.parameters is None else {"parameters": function.parameters}
    return Tool(function.name, function.description or "", strict=bool(function.strict), **more)


def _choice(choice: str | Named | None, names: Sequence[str]) -> str:
    if len(set(names)) < len(names):
        raise OptionError("tools must be named differently; two have the same name.")
    if choice not in (None, "auto", "none") and not names:
        raise OptionError("tool_choice must be left out where there are no tools.")
    if isinstance(choice, Named) and choice.name not in names:
        raise OptionError(f"tool_choice must be one of the tools; {choice.name!r} is none.")
    return choice.name if isinstance(choice, Named) else choice or "auto"


def _format(text: TextSettings | None) -> Format | None:
    asked = None if text is None else text.format
    if isinstance(asked, SchemaFormat):
        return JsonSchema(asked.schema_, asked.name)
    return JsonObject() if asked is not None and asked.type == "json_object" else None


# From an answer


class _Writer:
    """Events of the one answer as events of a response, and the response as far as it has come."""

    def __init__(self, body: ResponseBody, served: Served):
        self.output: list[dict[str, Any]] = []
        self.over = False
        self._tokens = Tokens(served)
        self._logprobs = bool(body.include or body.top_logprobs)
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
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), dumps(value))


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


def _item(output: dict[str, Any]) -> Item:
    """What was answered, as it would be sent back."""
    if output["type"] == "function_call":
        return FunctionCall(**output)
    return Message(role="assistant", content=output["content"][0]["text"])


# What was said


@dataclass
class _Kept:
    response: dict[str, Any]
    items: list[Item]
    client: str
    size: int


@dataclass
class _Store:
    """Responses by their ids, for those who asked for them; the oldest go first."""

    kept: OrderedDict[str, _Kept] = field(default_factory=OrderedDict)
    size: int = 0

    def items(self, name: str | None, client: str) -> list[Item]:
        return [] if name is None else self.find(name, client).items

    def find(self, name: str, client: str) -> _Kept:
        """Raises HTTPException, which is the same for one that is another client's."""
        found = self.kept.get(name)
        if found is None or found.client != client:
            current().error = "response_not_found"
            raise HTTPException(
                404, f"There is no response {name[:100]!r}: it was not stored, it was another's, or it was forgotten."
            )
        self.kept.move_to_end(name)
        return found

    def keep(self, response: dict[str, Any], items: list[Item], client: str) -> None:
        size = len(dumps(response)) + sum(len(item.model_dump_json()) for item in items)
        self.kept[response["id"]] = _Kept(response, items, client, size)
        self.size += size
        while len(self.kept) > KEPT or self.size > KEPT_BYTES:
            self.forget(next(iter(self.kept.values())))

    def forget(self, kept: _Kept) -> None:
        if self.kept.pop(kept.response["id"], None) is not None:
            self.size -= kept.size


def _store(request: Request) -> _Store:
    state = request.app.state
    if not hasattr(state, "responses"):
        state.responses = _Store()
    found: _Store = state.responses
    return found
