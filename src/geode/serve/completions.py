"""OpenAI's older completions: POST /v1/completions. A text, or ids, and what follows.

How answers are made is not known here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..errors import OptionError
from .answer import Said, gathered
from .ask import Ask, Ends, Event, Logprob, Spent, Text
from .http import Events, Json, begin, dumps, models_of, there, who
from .record import current
from .replies import Tokens, cut, finite, head, stream, usage
from .schema import CompletionBody, as_list

if TYPE_CHECKING:
    from .models import Served

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/completions")
async def completions(body: CompletionBody, request: Request) -> Response:
    """What follows each prompt, whole or streamed: n answers to the first prompt, then n to the next."""
    if body.max_tokens == 0:
        return await _echo_only(body, request)
    running = await begin(request, body.model, lambda served: _asks(body, request, served))
    served, prompts = running.served, running.answer.prompts
    if body.stream:
        writer = _Choices(served, body.logprobs is not None)
        first = [writer(Text(i, echo.text)) for i, echo in enumerate(_each(body, _echoes(body, served, prompts)))]
        parts = stream(running, head("cmpl", "text_completion", served), writer, body.stream_options, first)
        return Events(parts, running.close, running.seconds)
    async with running:
        said = await there(request, gathered(running.answer))
        if body.echo:
            echoes = await there(request, _scored(body, served, prompts))
            said = [_joined(echo, one) for echo, one in zip(_each(body, echoes), said, strict=True)]
        return _whole(body, served, said, running.answer.spent)


def _asks(body: CompletionBody, request: Request, served: Served) -> list[Ask]:
    options = body.options(served.local.ends, max_tokens=body.max_tokens, logprobs=body.logprobs)
    common: dict[str, Any] = {
        "model": served.name,
        "options": options,
        "n": body.n or 1,
        "format": body.format(),
        "truncate": cut(request, served, body.truncate_prompt_tokens, body.max_tokens),
        "salt": body.cache_salt or "",
        **who(request),
    }
    prompts = as_list(body.prompt)
    return [Ask(text=each, **common) if isinstance(each, str) else Ask(ids=each, **common) for each in prompts]


async def _echo_only(body: CompletionBody, request: Request) -> Response:
    """The prompts themselves, and how likely they are: nothing is generated."""
    if body.stream:
        raise OptionError("max_tokens must be 1 or more where an answer is streamed; 0 was given.")
    async with models_of(request).use(body.model) as served:
        prompts = await asyncio.to_thread(lambda: [served.local._ids(each) for each in as_list(body.prompt)])
        echoes = await there(request, _scored(body, served, prompts))
        for echo in echoes:
            echo.finish_reason = "length"
        spent = Spent(sum(map(len, prompts)), 0)
        current().spent(spent)
        return _whole(body, served, _each(body, echoes), spent)


# Echoes


def _echoes(body: CompletionBody, served: Served, prompts: Sequence[Sequence[int]]) -> list[Said]:
    """The prompts as the beginnings of their answers, where that is asked for: as they were sent, unless truncated."""
    if not body.echo:
        return []
    sent, found = as_list(body.prompt), []
    for text, ids in zip(sent, prompts, strict=True):
        whole = isinstance(text, str) and len(served.local._ids(text)) == len(ids)
        found.append(Said(text if whole else served.local.detokenize(ids), list(ids)))
    return found


async def _scored(body: CompletionBody, served: Served, prompts: Sequence[Sequence[int]]) -> list[Said]:
    """The same, with the log-probabilities of their tokens where these are asked for. The first token has none."""
    echoes = _echoes(body, served, prompts)
    if body.logprobs is None:
        return echoes
    engine, adapter = served.engine, served.adapter
    futures = [engine.score(ids, 1, adapter=adapter) if len(ids) > 1 else None for ids in prompts]
    for echo, future in zip(echoes, futures, strict=True):
        logprobs = (await asyncio.wrap_future(future))[0] if future else []
        pairs = zip(echo.tokens, [math.nan, *logprobs], strict=True)
        echo.logprobs = [Logprob(token, logprob) for token, logprob in pairs]
    return echoes


def _each(body: CompletionBody, echoes: Sequence[Said]) -> list[Said]:
    """One for each answer."""
    return [echo for echo in echoes for _ in range(body.n or 1)]


def _joined(echo: Said, said: Said) -> Said:
    return Said(
        echo.text + said.text, [*echo.tokens, *said.tokens], [*echo.logprobs, *said.logprobs], [], said.finish_reason
    )


# Responses


def _whole(body: CompletionBody, served: Served, said: Sequence[Said], spent: Spent) -> Response:
    tokens = Tokens(served)
    choices = [
        {
            "index": i,
            "text": one.text,
            "logprobs": None if body.logprobs is None else _logprobs(one.logprobs, tokens, 0)[0],
            "finish_reason": one.finish_reason,
        }
        for i, one in enumerate(said)
    ]
    first = head("cmpl", "text_completion", served)
    return Json({**first.fields, "choices": choices, "usage": usage(spent)})


def _logprobs(found: Sequence[Logprob], tokens: Tokens, offset: int) -> tuple[dict[str, Any], int]:
    """The four lists, and where in the text the next token begins. Alternatives count the chosen token in."""
    texts = [tokens.text(one.token) for one in found]
    offsets = [offset]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    pairs = [((one.token, one.logprob), *one.top) for one in found]
    lists = {
        "tokens": texts,
        "token_logprobs": [_or_none(one.logprob) for one in found],
        "top_logprobs": [{tokens.text(token): _or_none(logprob) for token, logprob in pair} for pair in pairs],
        "text_offset": offsets[:-1],
    }
    return lists, offsets[-1]


def _or_none(logprob: float) -> float | None:
    return None if math.isnan(logprob) else finite(logprob)


class _Choices:
    """What each event says as the only choice of a chunk; b"" for nothing."""

    def __init__(self, served: Served, logprobs: bool):
        self._tokens = Tokens(served) if logprobs else None
        self._offsets: dict[int, int] = {}

    def __call__(self, event: Event) -> bytes:
        if isinstance(event, Text):
            form = b'{"index":%d,"text":%s,"logprobs":%s,"finish_reason":null}'
            return form % (event.index, dumps(event.text), self._logprobs(event))
        if isinstance(event, Ends):
            form = b'{"index":%d,"text":"","logprobs":null,"finish_reason":%s}'
            return form % (event.index, dumps(event.finish_reason))
        return b""

    def _logprobs(self, event: Text) -> bytes:
        if self._tokens is None:
            return b"null"
        at = self._offsets.get(event.index, 0)
        lists, self._offsets[event.index] = _logprobs(event.logprobs, self._tokens, at)
        return dumps(lists)
