"""Ollama's API, for tools that only speak it: /api/chat, /api/generate, /api/embed.

How answers are made is not known here. What Ollama would silently cut is an error, unless `truncate` asks for it. The
truth is github.com/ollama/ollama docs/api.md.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..errors import OptionError
from .answer import gathered
from .ask import Ask, choice_of
from .embeddings import embedded
from .http import Events, Json, Untyped, dumps, there
from .loan import Running, begin, models_of, who
from .ollama_models import kept, seconds_of
from .ollama_schema import Asked, ChatBody, EmbedBody, GenerateBody, OldEmbedBody, Sampling
from .ollama_writer import SECOND, Chat, Generate, Lines, Shape, last, likely_in, now
from .problems import ollama_shape, problem_of
from .replies import Tokens, cut

if TYPE_CHECKING:
    from .loading import Served


router = APIRouter(prefix="/api", tags=["Ollama"], route_class=Untyped)
NDJSON = "application/x-ndjson"


@router.post("/chat")
async def chat(body: ChatBody, request: Request) -> Response:
    """An answer to a conversation, streamed unless `stream` is false. Without messages the model is only loaded."""
    return await _answered(body, request, Chat(), bool(body.messages), lambda: _talk(body))


@router.post("/generate")
async def generate(body: GenerateBody, request: Request) -> Response:
    """What follows a text; through the model's chat template, where it has one, unless `raw`."""
    return await _answered(body, request, Generate(), bool(body.prompt), lambda: _prompt(body))


async def _answered(
    body: Asked, request: Request, shape: Shape, asks: bool, prompt: Callable[[], dict[str, Any]]
) -> Response:
    name, started = kept(body.model, body.keep_alive, request), time.perf_counter()
    if not asks:
        return await _touched(name, body, request, shape)
    running = await begin(request, name, lambda served: [_ask(body, prompt(), request, served)])
    loading = time.perf_counter() - started
    if body.stream:
        return Events(_stream(running, body.model, shape, loading), running.close, running.seconds, NDJSON)
    async with running:
        said = (await there(request, gathered(running.answer)))[0]
        likely = likely_in(said.logprobs, Tokens(running.served))
        head = {"model": body.model, "created_at": now(), **shape.whole(said), **likely}
        return Json(head | last(said.finish_reason, running.answer.spent, loading))


def _ask(body: Asked, prompt: dict[str, Any], request: Request, served: Served) -> Ask:
    if prompt.pop("plain", False) and served.local.own_template:
        text, system = prompt.pop("text"), prompt.pop("system")
        first = [] if system is None else [{"role": "system", "content": system}]
        prompt["messages"] = [*first, {"role": "user", "content": text}]
    elif prompt.pop("system", None):
        raise OptionError(f"system must be left out: {served.name} has no chat template, or `raw` was asked for.")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    options = (body.options or Sampling()).options(served, logprobs)
    return Ask(
        model=served.name,
        options=options,
        format=body.asked(),
        truncate=cut(request, served, -1 if body.truncate else None, options.max_tokens),
        **prompt,
        **who(request),
    )


def _talk(body: ChatBody) -> dict[str, Any]:
    tools = [tool.tool() for tool in body.tools or ()]
    return {
        "messages": [message.plain() for message in body.messages],
        "tools": tools,
        "tool_choice": choice_of([tool.name for tool in tools], None),
        "continue_last": body.messages[-1].role == "assistant" and not body.messages[-1].tool_calls,
    }


def _prompt(body: GenerateBody) -> dict[str, Any]:
    return {"text": body.prompt, "system": body.system, "plain": not body.raw}


async def _touched(name: str, body: Asked, request: Request, shape: Shape) -> Response:
    """Nothing was asked: the model is loaded, or let go of where keep_alive is 0."""
    ends = body.keep_alive is not None and seconds_of(body.keep_alive) == 0
    if ends:
        models_of(request).card(name)
        models_of(request).sweep()
    else:
        async with models_of(request).use(name):
            pass
    done = {"done": True, "done_reason": "unload" if ends else "load"}
    return Json({"model": body.model, "created_at": now(), **shape.part(""), **done})


async def _stream(running: Running, name: str, shape: Shape, loading: float) -> AsyncIterator[bytes]:
    """A line of JSON for each event. An error in the middle is the last line."""
    lines = Lines(name, shape, loading, Tokens(running.served))
    try:
        while batch := await running.answer.batch():
            yield b"".join(line for event in batch for line in lines.of(event))
    except Exception as error:
        yield dumps(ollama_shape(problem_of(error))) + b"\n"


# Embeddings


@router.post("/embed")
async def embed(body: EmbedBody, request: Request) -> Response:
    """A vector of length 1 for each text."""
    name, started = kept(body.model, body.keep_alive, request), time.perf_counter()
    texts = [body.input] if isinstance(body.input, str) else body.input
    async with models_of(request).use(name) as served:
        loading = time.perf_counter() - started
        if body.dimensions not in (None, served.local.config.width):
            raise OptionError(f"dimensions must be left out, or {served.local.config.width}, which the vectors have.")
        work = embedded(request, served, texts, -1 if body.truncate else None)
        vectors, count, lost = await there(request, work)
    found: dict[str, Any] = {
        "model": body.model,
        "embeddings": [vector.tolist() for vector in vectors],
        "total_duration": int((time.perf_counter() - started) * SECOND),
        "load_duration": int(loading * SECOND),
        "prompt_eval_count": count,
    }
    return Json(found | ({"truncated_tokens": lost} if lost else {}))


@router.post("/embeddings")
async def embeddings(body: OldEmbedBody, request: Request) -> Response:
    """The older form: one text, one vector."""
    async with models_of(request).use(kept(body.model, body.keep_alive, request)) as served:
        vectors, _, _ = await there(request, embedded(request, served, [body.prompt], None))
    return Json({"embedding": vectors[0].tolist()})
