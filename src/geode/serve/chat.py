"""OpenAI's chat completions: POST /v1/chat/completions.

How answers are made is not known here.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..errors import OptionError
from .answer import Said, gathered
from .ask import Ask, CallBegins, CallGoesOn, Ends, Event, Text, as_call
from .http import Events, Json, dumps, there
from .loan import Running, begin, who
from .replies import Head, Tokens, cut, head, stream, usage
from .schema import ChatBody

if TYPE_CHECKING:
    from .loading import Served

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """An answer to a conversation, whole or streamed."""
    running = await begin(request, body.model, lambda served: [_ask(body, request, served)])
    if body.stream:
        first = head("chatcmpl", "chat.completion.chunk", running.served)
        parts = stream(running, first, _Choices(running.served), body.stream_options)
        return Events(parts, running.close, running.seconds)
    async with running:
        said = await there(request, gathered(running.answer))
        return Json(_whole(running, head("chatcmpl", "chat.completion", running.served), said))


def _ask(body: ChatBody, request: Request, served: Served) -> Ask:
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    asked = body.asked()
    asked["template_options"] = {**asked["template_options"], **_effort(body.reasoning_effort, served)}
    known_to_template(served, asked["template_options"])
    return Ask(
        model=served.name,
        options=body.options(served.local.ends, max_tokens=limit, logprobs=logprobs),
        n=body.n or 1,
        format=body.format(),
        truncate=cut(request, served, body.truncate_prompt_tokens, limit),
        salt=body.cache_salt or "",
        **asked,
        **who(request),
    )


def _effort(effort: str | None, served: Served) -> dict[str, Any]:
    """The template's option for how much to think; "none" is what is done by a template that has none."""
    source = getattr(served.local.template, "source", "")
    if effort == "none" and "reasoning_effort" not in source:
        return {"enable_thinking": False} if "enable_thinking" in source else {}
    return {} if effort is None else {"reasoning_effort": effort}


OURS = ("self", "messages", "tools", "add_generation_prompt", "answers")


def known_to_template(served: Served, options: dict[str, Any]) -> None:
    """Raises OptionError for an option that the model's chat template never looks at: it would change nothing."""
    source = getattr(served.local.template, "source", "")
    for name in options:
        if name in OURS or not re.search(rf"\b{re.escape(name)}\b", source):
            raise OptionError(f"{name} must be left out: the chat template of {served.name} has no such option.")


def _whole(running: Running, first: Head, said: list[Said]) -> dict[str, Any]:
    tokens = Tokens(running.served)
    choices = [_choice(i, one, tokens) for i, one in enumerate(said)]
    return {**first.fields, "choices": choices, "usage": usage(running.answer.spent)}


def _choice(index: int, said: Said, tokens: Tokens) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
    if said.calls:
        message["content"] = said.text or None
        message["tool_calls"] = [as_call(call.id, call.name, call.arguments) for call in said.calls]
    logprobs = json.loads(tokens.logprobs(said.logprobs)) if said.logprobs else None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": said.finish_reason}


class _Choices:
    """What each event says as the only choice of a chunk; b"" for nothing."""

    def __init__(self, served: Served):
        self._tokens = Tokens(served)
        self._begun: set[int] = set()

    def __call__(self, event: Event) -> bytes:
        if isinstance(event, Text):
            return self._text(event)
        if isinstance(event, CallBegins):
            function = {"name": event.name, "arguments": ""}
            return self._call(event.index, {"index": event.call, "id": event.id, "type": "function"}, function)
        if isinstance(event, CallGoesOn):
            return self._call(event.index, {"index": event.call}, {"arguments": event.arguments})
        if isinstance(event, Ends):
            return b'%s},"logprobs":null,"finish_reason":%s}' % (
                self._delta(event.index).rstrip(b","),
                dumps(event.finish_reason),
            )
        return b""

    def _text(self, event: Text) -> bytes:
        logprobs = self._tokens.logprobs(event.logprobs) if event.logprobs else b"null"
        return b'%s"content":%s},"logprobs":%s,"finish_reason":null}' % (
            self._delta(event.index),
            dumps(event.text),
            logprobs,
        )

    def _call(self, index: int, facts: dict[str, Any], function: dict[str, Any]) -> bytes:
        return b'%s"tool_calls":[%s]},"logprobs":null,"finish_reason":null}' % (
            self._delta(index),
            dumps({**facts, "function": function}),
        )

    def _delta(self, index: int) -> bytes:
        """The beginning of a choice, within its delta; the first of an answer tells the role."""
        if index in self._begun:
            return b'{"index":%d,"delta":{' % index
        self._begun.add(index)
        return b'{"index":%d,"delta":{"role":"assistant",' % index
