"""OpenAI's older completions: POST /v1/completions. A text, or ids, and what follows.

How answers are made is not known here.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..engine.request import Scores
from ..errors import OptionError
from .answer import Said, gathered
from .ask import Ask, Ends, Event, Logprob, Spent, Text
from .http import Events, Json, dumps, there
from .loan import Running, begin, models_of, promised, who
from .record import current
from .replies import Reader, Tokens, cut, finite, head, stream, usage
from .schema import CompletionBody, as_list

if TYPE_CHECKING:
    from .loading import Served

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/completions")
async def completions(body: CompletionBody, request: Request) -> Response:
    """What follows each prompt, whole or streamed: n answers to the first prompt, then n to the next."""
    if body.max_tokens == 0:
        return await _echo_only(body, request)
    running = await begin(request, body.model, lambda served: _asks(body, request, served))
    if body.stream:
        return await _streamed(body, request, running)
    async with running:
        said = await there(request, gathered(running.answer))
        if body.echo:
            echoes = await there(request, _scored(body, request, running.served, running.answer.prompts))
            said = [_joined(echo, one) for echo, one in zip(_each(body, echoes), said, strict=True)]
        return _whole(body, running.served, said, running.answer.spent)


async def _streamed(body: CompletionBody, request: Request, running: Running) -> Response:
    served = running.served
    try:
        echoes = await there(request, _scored(body, request, served, running.answer.prompts)) if body.echo else []
    except BaseException:
        running.close()
        raise
    writer = _Choices(served, body.logprobs is not None)
    first = [writer(Text(i, echo.text, (), (*echo.logprobs,))) for i, echo in enumerate(_each(body, echoes))]
    parts = stream(running, head("cmpl", "text_completion", served), writer, body.stream_options, first)
    return Events(parts, running.close, running.seconds)


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
        prompts = await asyncio.to_thread(lambda: [served.local.ids_of(each) for each in as_list(body.prompt)])
        echoes = await there(request, _scored(body, request, served, prompts))
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
        whole = isinstance(text, str) and len(served.local.ids_of(text)) == len(ids)
        found.append(Said(text if whole else served.local.detokenize(ids), list(ids)))
    return found


async def _scored(
    body: CompletionBody, request: Request, served: Served, prompts: Sequence[Sequence[int]]
) -> list[Said]:
    """The same, with the log-probabilities of their tokens where these are asked for. The first token has none."""
    echoes, count = _echoes(body, served, prompts), body.logprobs
    if count is None:
        return echoes
    more: dict[str, Any] = {"adapter": served.adapter, "salt": body.cache_salt or "", **who(request)}
    asked = ((echo.tokens, 1) for echo in echoes if len(echo.tokens) > 1)
    found = iter(await promised(served.engine.score, asked, top=count, **more))
    for echo in echoes:
        scores = next(found) if len(echo.tokens) > 1 else NONE
        tops = scores.top or [()] * len(scores.logprobs)
        rows = zip(echo.tokens, [math.nan, *scores.logprobs], [(), *tops], strict=True)
        echo.logprobs = [Logprob(*row) for row in rows]
    return echoes


NONE = Scores([], [], [])


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
            "logprobs": None if body.logprobs is None else _logprobs(one.logprobs, tokens, tokens.reader()),
            "finish_reason": one.finish_reason,
        }
        for i, one in enumerate(said)
    ]
    first = head("cmpl", "text_completion", served)
    return Json({**first.fields, "choices": choices, "usage": usage(spent)})


def _logprobs(found: Sequence[Logprob], tokens: Tokens, reader: Reader) -> dict[str, Any]:
    """OpenAI's four lists, and the tokens' ids. `reader` has read what came before."""
    return {
        "tokens": [tokens.text(one.token) for one in found],
        "token_logprobs": [None if math.isnan(one.logprob) else finite(one.logprob) for one in found],
        "top_logprobs": [_top(one, tokens) for one in found],
        "text_offset": [reader.read(one.token) for one in found],
        "token_ids": [one.token for one in found],
    }


def _top(one: Logprob, tokens: Tokens) -> dict[str, float] | None:
    """The likeliest, and the chosen token among them. Of several with the same text the likeliest counts."""
    if math.isnan(one.logprob):
        return None
    found: dict[str, float] = {}
    for token, logprob in (*one.top, (one.token, one.logprob)):
        text = tokens.text(token)
        found[text] = max(finite(logprob), found.get(text, -math.inf))
    return found


class _Choices:
    """What each event says as the only choice of a chunk; b"" for nothing."""

    def __init__(self, served: Served, logprobs: bool):
        self._tokens = Tokens(served)
        self._readers: defaultdict[int, Reader] | None = defaultdict(self._tokens.reader) if logprobs else None

    def __call__(self, event: Event) -> bytes:
        if isinstance(event, Text):
            form = b'{"index":%d,"text":%s,"logprobs":%s,"finish_reason":null}'
            return form % (event.index, dumps(event.text), self._logprobs(event))
        if isinstance(event, Ends):
            form = b'{"index":%d,"text":"","logprobs":null,"finish_reason":%s}'
            return form % (event.index, dumps(event.finish_reason))
        return b""

    def _logprobs(self, event: Text) -> bytes:
        if self._readers is None:
            return b"null"
        return dumps(_logprobs(event.logprobs, self._tokens, self._readers[event.index]))
