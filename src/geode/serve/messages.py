"""Anthropic's API: POST /v1/messages and /v1/messages/count_tokens.

How answers are made is not known here. What the models here cannot do, such as thinking and images, is refused by name.
The truth is the types of the `anthropic` client, and platform.claude.com/docs/en/build-with-claude/streaming.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..errors import OptionError
from ..generate import Options
from . import answer
from .answer import Call, Said, gathered
from .ask import Ask, CallBegins, CallGoesOn, Ends, Event, Format, JsonSchema, Spent, Text, Tool, as_call, choice_of
from .http import Events, Json, there, typed_event
from .loan import Running, begin, models_of, who
from .messages_schema import Choice, MessagesBody, Output, Talk, TextBlock, ToolResult, ToolSpec, ToolUse, Turn
from .problems import anthropic_shape, problem_of
from .record import current

router = APIRouter(tags=["Anthropic"])
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@router.post("/v1/messages")
async def messages(body: MessagesBody, request: Request) -> Response:
    """An answer to a conversation, whole or streamed."""
    ask = _ask(body, _options(body)) | who(request)
    limit = await _fitting(body, request, ask)
    ask["options"] = _options(body, limit)
    running = await begin(request, body.model, lambda served: [Ask(**ask)])
    cut = limit < body.max_tokens
    if body.stream:
        return Events(_stream(running, cut), running.close, running.seconds)
    async with running:
        said = await there(request, gathered(running.answer))
        return Json(_message(running, said[0], cut))


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: Talk, request: Request) -> Response:
    """How many tokens a prompt has."""
    ask = Ask(**_ask(body, Options()))
    async with models_of(request).use(body.model) as served:
        return Json({"input_tokens": len(await asyncio.to_thread(answer.prompt, served, ask))})


async def _fitting(body: MessagesBody, request: Request, ask: dict[str, Any]) -> int:
    """max_tokens, or as many as the prompt leaves: here it is a limit that every request must name, not a wish.

    A prompt that leaves no room at all is refused later, with both numbers.
    """
    async with models_of(request).use(body.model) as served:
        if body.max_tokens + 2 * len(current().body) < served.context:
            return body.max_tokens  # a token has at least a byte, and templates add less than the JSON had
        ids = await asyncio.to_thread(answer.prompt, served, Ask(**ask))
        return max(1, min(body.max_tokens, served.context - len(ids)))


# To an ask


def _ask(body: Talk, options: Options) -> dict[str, Any]:
    """The fields of an `Ask`. Raises OptionError for what does not go together."""
    tools, choice = body.tools or [], body.tool_choice
    last = body.messages[-1].role == "assistant"
    if last and (tools or not all(isinstance(block, TextBlock) for block in body.messages[-1].blocks)):
        raise OptionError("messages must end with the user's turn where tools are used: only a text can be continued.")
    return {
        "model": body.model,
        "messages": list(_conversation(body)),
        "options": options,
        "tools": [_tool(tool) for tool in tools],
        "tool_choice": _choice(choice, [tool.name for tool in tools]),
        "parallel_calls": not (choice and choice.disable_parallel_tool_use),
        "format": _format(body.output_config),
        "continue_last": last,
    }


def _options(body: MessagesBody, limit: int | None = None) -> Options:
    sent = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k, "stop": body.stop_sequences}
    given: dict[str, Any] = {name: value for name, value in sent.items() if value is not None}
    return Options(max_tokens=limit, **given)


def _tool(spec: ToolSpec) -> Tool:
    return Tool(spec.name, spec.description or "", spec.input_schema, spec.strict)


def _choice(choice: Choice | None, names: Sequence[str]) -> str:
    if choice is None:
        return choice_of(names, None)
    if (choice.type == "tool") != (choice.name is not None):
        raise OptionError('tool_choice must be {"type": "tool", "name": ...} where it has a name, and nowhere else.')
    return choice_of(names, "required" if choice.type == "any" else choice.type, choice.name)


def _format(output: Output | None) -> Format | None:
    return JsonSchema(output.format.schema_) if output is not None and output.format is not None else None


def _conversation(body: Talk) -> Iterator[dict[str, Any]]:
    """Messages as chat templates know them; turns of one role that follow each other are one, as Anthropic has it."""
    if body.system:
        yield {"role": "system", "content": _text(body.system)}
    known: dict[str, str] = {}
    waiting: dict[str, Any] = {}
    for turn in body.messages:
        for message in _messages(turn, known):
            if waiting and message["role"] == waiting["role"] != "tool":
                waiting = _joined(waiting, message)
                continue
            if waiting:
                yield waiting
            waiting = message
    if waiting:
        yield waiting


def _messages(turn: Turn, known: dict[str, str]) -> Iterator[dict[str, Any]]:
    """One turn: results of tools first, each a message of its own. `known`: names of the calls so far, by their ids."""
    texts = [block.text for block in turn.blocks if isinstance(block, TextBlock)]
    calls = [block for block in turn.blocks if isinstance(block, ToolUse)]
    results = [block for block in turn.blocks if isinstance(block, ToolResult)]
    if (calls and turn.role == "user") or (results and turn.role == "assistant"):
        raise OptionError("messages must have tool_use in turns of the assistant, tool_result in those of the user.")
    for result in results:
        if result.tool_use_id not in known:
            raise OptionError(
                f"messages must have the tool_use before its tool_result; {result.tool_use_id!r} is not there."
            )
        text = "Error: " * result.is_error + _text(result.content or "")
        name = known[result.tool_use_id]
        yield {"role": "tool", "tool_call_id": result.tool_use_id, "name": name, "content": text}
    known |= {call.id: call.name for call in calls}
    if texts or calls or not results:
        found: dict[str, Any] = {"role": turn.role, "content": "".join(texts) if texts or not calls else None}
        said = [as_call(call.id, call.name, json.dumps(call.input)) for call in calls]
        yield found | ({"tool_calls": said} if said else {})


def _joined(first: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    texts = [message["content"] for message in (first, then) if message["content"]]
    calls = [*first.get("tool_calls", ()), *then.get("tool_calls", ())]
    joined = {"role": first["role"], "content": "\n\n".join(texts) if texts or not calls else None}
    return joined | ({"tool_calls": calls} if calls else {})


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n\n".join(block.text for block in content)


# From an answer


def _message(running: Running, said: Said, cut: bool) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": said.text}] if said.text else []
    content += [block for call in said.calls for block in _use(call)]
    end = _end(Ends(0, said.finish_reason, said.stop), cut)
    return {**_head(running), "content": content, **end, "usage": _usage(running.answer.spent)}


def _use(call: Call) -> list[dict[str, Any]]:
    """The block of a call; none where the answer ended before its arguments were whole."""
    try:
        return [{"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments or "{}")}]
    except ValueError:
        return []


def _head(running: Running) -> dict[str, Any]:
    name = running.served.name
    return {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": name}


def _end(event: Ends, cut: bool) -> dict[str, Any]:
    reason = "stop_sequence" if event.stop is not None else REASONS[event.finish_reason]
    if cut and reason == "max_tokens":
        reason = "model_context_window_exceeded"
    return {"stop_reason": reason, "stop_sequence": event.stop}


def _usage(spent: Spent) -> dict[str, Any]:
    return {
        "input_tokens": spent.prompt_tokens - spent.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": spent.cached_tokens,
        "output_tokens": spent.completion_tokens,
    }


async def _stream(running: Running, cut: bool) -> AsyncIterator[bytes]:
    """Server-sent events, from the first token on. An error in the middle is told, and ends the stream."""
    blocks = _Blocks(cut)
    begun = False
    try:
        while batch := await running.answer.batch():
            parts = []
            if not begun:
                begun = True
                parts.append(_started(running))
            parts += [part for event in batch for part in blocks.parts(event)]
            yield b"".join(parts)
    except Exception as error:
        yield typed_event(anthropic_shape(problem_of(error)))


def _started(running: Running) -> bytes:
    usage = _usage(running.answer.spent) | {"output_tokens": 1}
    message = {**_head(running), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    return typed_event({"type": "message_start", "message": message})


class _Blocks:
    """Events as the beginnings, changes and ends of numbered blocks."""

    def __init__(self, cut: bool):
        self._cut = cut
        self._number = -1
        self._open = ""
        self._end: dict[str, Any] = {}

    def parts(self, event: Event) -> Iterator[bytes]:
        if isinstance(event, Text):
            if event.text:
                yield from self._begin("text", {"type": "text", "text": ""}, self._open != "text")
                yield self._delta({"type": "text_delta", "text": event.text})
        elif isinstance(event, CallBegins):
            yield from self._begin("call", {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}, True)
        elif isinstance(event, CallGoesOn):
            yield self._delta({"type": "input_json_delta", "partial_json": event.arguments})
        elif isinstance(event, Ends):
            yield from self._close()
            self._end = _end(event, self._cut)
        else:
            yield typed_event({"type": "message_delta", "delta": self._end, "usage": _usage(event)})
            yield typed_event({"type": "message_stop"})

    def _begin(self, kind: str, block: dict[str, Any], new: bool) -> Iterator[bytes]:
        if not new:
            return
        yield from self._close()
        self._number, self._open = self._number + 1, kind
        start = {"type": "content_block_start", "index": self._number, "content_block": block}
        yield typed_event(start)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        found = {"type": "content_block_delta", "index": self._number, "delta": delta}
        return typed_event(found)

    def _close(self) -> Iterator[bytes]:
        if self._open:
            self._open = ""
            yield typed_event({"type": "content_block_stop", "index": self._number})
