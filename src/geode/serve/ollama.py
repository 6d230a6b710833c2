"""Ollama's API, for tools that only speak it: /api/chat, /api/generate, /api/embed, /api/tags, /api/show, /api/ps ...

How answers are made is not known here. Models are not pulled or made through it. What Ollama would silently cut is an
error, unless `truncate` asks for it. The truth is github.com/ollama/ollama docs/api.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BeforeValidator, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from .. import __version__
from ..errors import ModelNotFound, OptionError
from ..generate import Options
from .answer import Call, Said, gathered
from .ask import Ask, CallBegins, CallGoesOn, Ends, Event, Format, JsonObject, JsonSchema, Spent, Text
from .http import (
    Events,
    Json,
    Running,
    begin,
    dumps,
    models_of,
    ollama_shape,
    problem_of,
    promised,
    settings_of,
    there,
    who,
)
from .record import current
from .replies import cut
from .schema import Body, FunctionTool

if TYPE_CHECKING:
    from .models import Card, Models, Served

router = APIRouter(prefix="/api", tags=["Ollama"])
SPOKEN = "0.12.0"  # whose API this is: clients compare it with what they need
NDJSON = "application/x-ndjson"
SECOND = 10**9
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

Float = Annotated[float, BeforeValidator(lambda value: float(value) if type(value) is int else value)]


# Bodies


class Sampling(Body):
    """Ollama's `options`. Those that say how a model is run belong to the server, and are refused."""

    num_predict: Annotated[int, Field(ge=-2)] | None = None
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    temperature: Float | None = None
    top_k: int | None = None
    top_p: Float | None = None
    min_p: Float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: Float | None = None
    repeat_last_n: Literal[-1] | None = None
    presence_penalty: Float | None = None
    frequency_penalty: Float | None = None
    typical_p: Annotated[Float, Field(ge=1, le=1)] | None = None
    mirostat: Literal[0] | None = None

    def options(self, served: Served) -> Options:
        """As `Options`; what was not sent is what Ollama has it. Raises OptionError."""
        if self.num_ctx is not None and self.num_ctx > served.context:
            raise OptionError(
                f"num_ctx must be at most {served.context}, the context of {served.name}; {self.num_ctx} was given."
            )
        limit = self.num_predict if self.num_predict is not None and self.num_predict > 0 else None
        sent = {ours: getattr(self, theirs) for ours, theirs in NAMES.items()}
        given = {name: value for name, value in sent.items() if value is not None}
        return Options(max_tokens=limit, **{**DEFAULTS, **given})


NAMES = {name: name for name in ("temperature", "top_k", "top_p", "min_p", "seed", "stop")}
NAMES |= {name: name for name in ("presence_penalty", "frequency_penalty")}
NAMES |= {"repetition_penalty": "repeat_penalty"}
DEFAULTS: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}


class Asked(Body):
    """What every request for an answer may have."""

    model: str
    options: Sampling | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    stream: bool = True
    keep_alive: str | int | Float | None = None
    think: Literal[False] | None = None
    truncate: bool | None = None
    shift: Literal[False] | None = None

    def asked(self) -> Format | None:
        if isinstance(self.format, dict):
            return JsonSchema(self.format)
        return JsonObject() if self.format == "json" else None


class CalledFunction(Body):
    name: str
    arguments: dict[str, Any]
    index: int | None = None


class ToolCall(Body):
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


class Message(Body):
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    images: Annotated[list[Any], Field(max_length=0)] | None = None
    thinking: Literal[""] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    name: str | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """As chat templates know messages."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if name := self.tool_name or self.name:
            found["name"] = name
        if self.tool_call_id:
            found["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            found["tool_calls"] = [_called(i, call) for i, call in enumerate(self.tool_calls)]
        return found


class ChatBody(Asked):
    """POST /api/chat."""

    messages: list[Message] = Field(default_factory=list)
    tools: list[FunctionTool] | None = None


class GenerateBody(Asked):
    """POST /api/generate."""

    prompt: str = ""
    system: str | None = None
    raw: bool = False
    suffix: Literal[""] | None = None
    template: Literal[""] | None = None
    context: Annotated[list[int], Field(max_length=0)] | None = None
    images: Annotated[list[Any], Field(max_length=0)] | None = None


class EmbedBody(Body):
    """POST /api/embed."""

    model: str
    input: str | Annotated[list[str], Field(min_length=1, max_length=2048)]
    truncate: bool = False
    options: Sampling | None = None
    keep_alive: str | int | Float | None = None
    dimensions: int | None = None


class OldEmbedBody(Body):
    """POST /api/embeddings."""

    model: str
    prompt: str
    options: Sampling | None = None
    keep_alive: str | int | Float | None = None


class ShowBody(Body):
    """POST /api/show."""

    model: str | None = None
    name: str | None = None
    verbose: bool = False


# Answers


@router.post("/chat")
async def chat(body: ChatBody, request: Request) -> Response:
    """An answer to a conversation, streamed unless `stream` is false. Without messages the model is only loaded."""
    return await _answered(body, request, _Chat(), bool(body.messages), lambda: _talk(body))


@router.post("/generate")
async def generate(body: GenerateBody, request: Request) -> Response:
    """What follows a text; through the model's chat template, where it has one, unless `raw`."""
    return await _answered(body, request, _Generate(), bool(body.prompt), lambda: _prompt(body))


async def _answered(
    body: Asked, request: Request, shape: _Shape, asks: bool, prompt: Callable[[], dict[str, Any]]
) -> Response:
    name, started = _kept(body.model, body.keep_alive, request), time.perf_counter()
    if not asks:
        return await _touched(name, body, request, shape)
    running = await begin(request, name, lambda served: [_ask(body, prompt(), request, served)])
    loading = time.perf_counter() - started
    if body.stream:
        return Events(_stream(running, body.model, shape, loading), running.close, running.seconds, NDJSON)
    async with running:
        said = (await there(request, gathered(running.answer)))[0]
        head = {"model": body.model, "created_at": _now(), **shape.whole(said)}
        return Json(head | _last(said.finish_reason, running.answer.spent, loading))


def _ask(body: Asked, prompt: dict[str, Any], request: Request, served: Served) -> Ask:
    if prompt.pop("plain", False) and served.local.own_template:
        text, system = prompt.pop("text"), prompt.pop("system")
        first = [] if system is None else [{"role": "system", "content": system}]
        prompt["messages"] = [*first, {"role": "user", "content": text}]
    elif prompt.pop("system", None):
        raise OptionError(f"system must be left out: {served.name} has no chat template, or `raw` was asked for.")
    options = (body.options or Sampling()).options(served)
    return Ask(
        model=served.name,
        options=options,
        format=body.asked(),
        truncate=cut(request, served, -1 if body.truncate else None, options.max_tokens),
        **prompt,
        **who(request),
    )


def _talk(body: ChatBody) -> dict[str, Any]:
    return {
        "messages": [message.plain() for message in body.messages],
        "tools": [tool.tool() for tool in body.tools or ()],
        "continue_last": body.messages[-1].role == "assistant" and not body.messages[-1].tool_calls,
    }


def _prompt(body: GenerateBody) -> dict[str, Any]:
    return {"text": body.prompt, "system": body.system, "plain": not body.raw}


async def _touched(name: str, body: Asked, request: Request, shape: _Shape) -> Response:
    """Nothing was asked: the model is loaded, or let go of where keep_alive is 0."""
    ends = body.keep_alive is not None and _seconds(body.keep_alive) == 0
    if ends:
        models_of(request).card(name)
        models_of(request).sweep()
    else:
        async with models_of(request).use(name):
            pass
    done = {"done": True, "done_reason": "unload" if ends else "load"}
    return Json({"model": body.model, "created_at": _now(), **shape.part(""), **done})


async def _stream(running: Running, name: str, shape: _Shape, loading: float) -> AsyncIterator[bytes]:
    """A line of JSON for each event. An error in the middle is the last line."""
    lines = _Lines(name, shape, loading)
    try:
        while batch := await running.answer.batch():
            yield b"".join(line for event in batch for line in lines.of(event))
    except Exception as error:
        yield dumps(ollama_shape(problem_of(error))) + b"\n"


class _Lines:
    def __init__(self, name: str, shape: _Shape, loading: float):
        self._name, self._shape, self._loading = name, shape, loading
        self._said = Said()

    def of(self, event: Event) -> list[bytes]:
        """Calls are told whole, when all of the answer is there: Ollama knows no parts of arguments."""
        if isinstance(event, Text):
            return [self._line(self._shape.part(event.text), {"done": False})] if event.text else []
        if isinstance(event, CallBegins | CallGoesOn | Ends):
            self._said.add(event)
            if isinstance(event, Ends) and self._said.calls:
                return [self._line(self._shape.calls(self._said.calls), {"done": False})]
            return []
        return [self._line(self._shape.part(""), _last(self._said.finish_reason, event, self._loading))]

    def _line(self, said: dict[str, Any], end: dict[str, Any]) -> bytes:
        return dumps({"model": self._name, "created_at": _now(), **said, **end}) + b"\n"


class _Shape:
    """How one of the two requests has its answers."""

    def part(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def calls(self, calls: Sequence[Call]) -> dict[str, Any]:
        return self.part("")

    def whole(self, said: Said) -> dict[str, Any]:
        return self.part(said.text)


class _Chat(_Shape):
    def part(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def calls(self, calls: Sequence[Call]) -> dict[str, Any]:
        told = [{"id": call.id, "function": {"name": call.name, "arguments": _arguments(call)}} for call in calls]
        return {"message": {"role": "assistant", "content": "", "tool_calls": told}}

    def whole(self, said: Said) -> dict[str, Any]:
        found = self.calls(said.calls) if said.calls else self.part("")
        found["message"]["content"] = said.text
        return found


class _Generate(_Shape):
    def part(self, text: str) -> dict[str, Any]:
        return {"response": text}


def _arguments(call: Call) -> dict[str, Any]:
    """{} where the answer ended before they were whole."""
    try:
        found = json.loads(call.arguments or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _called(number: int, call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": json.dumps(call.function.arguments)}
    return {"id": call.id or f"call_{number}", "type": "function", "function": function}


def _last(reason: str, spent: Spent, loading: float) -> dict[str, Any]:
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


# Embeddings


@router.post("/embed")
async def embed(body: EmbedBody, request: Request) -> Response:
    """A vector of length 1 for each text."""
    name, started = _kept(body.model, body.keep_alive, request), time.perf_counter()
    texts = [body.input] if isinstance(body.input, str) else body.input
    async with models_of(request).use(name) as served:
        loading = time.perf_counter() - started
        if body.dimensions not in (None, served.local.config.width):
            raise OptionError(f"dimensions must be left out, or {served.local.config.width}, which the vectors have.")
        vectors, count, lost = await there(request, _vectors(served, texts, body.truncate, request))
    found: dict[str, Any] = {
        "model": body.model,
        "embeddings": vectors,
        "total_duration": int((time.perf_counter() - started) * SECOND),
        "load_duration": int(loading * SECOND),
        "prompt_eval_count": count,
    }
    return Json(found | ({"truncated_tokens": lost} if lost else {}))


@router.post("/embeddings")
async def embeddings(body: OldEmbedBody, request: Request) -> Response:
    """The older form: one text, one vector."""
    async with models_of(request).use(_kept(body.model, body.keep_alive, request)) as served:
        vectors, _, _ = await there(request, _vectors(served, [body.prompt], False, request))
    return Json({"embedding": vectors[0]})


async def _vectors(
    served: Served, texts: Sequence[str], truncate: bool, request: Request
) -> tuple[list[list[float]], int, int]:
    """The vectors, how many tokens were read, and how many left out."""
    every = await asyncio.to_thread(lambda: [served.local._ids(text) for text in texts])
    kept = [ids[: served.context] if truncate else ids for ids in every]
    asked = ((ids,) for ids in kept)
    vectors = await promised(served.engine.embed, asked, adapter=served.adapter, **who(request))
    count, lost = sum(map(len, kept)), sum(map(len, every)) - sum(map(len, kept))
    current().spent(Spent(count, 0, truncated=lost))
    return [(vector / max(float(np.linalg.norm(vector)), 1e-12)).tolist() for vector in vectors], count, lost


# Models


@router.get("/tags")
async def tags(request: Request) -> Response:
    """All models and adapters."""
    cards = await asyncio.to_thread(models_of(request).cards)
    return Json({"models": [_listed(card) for card in cards]})


@router.get("/ps")
async def running_models(request: Request) -> Response:
    """Those that are in memory."""
    cards = await asyncio.to_thread(models_of(request).cards)
    return Json({"models": [_listed(card) | {"size_vram": 0} for card in cards if card.loaded and card.base is None]})


@router.post("/show")
async def show(body: ShowBody, request: Request) -> Response:
    """What is known of one model."""
    if (body.model is None) == (body.name is None):
        raise OptionError("model must be the name of a model; `name` is its older spelling.")
    name = _name(body.model or body.name or "", models_of(request))
    card = await asyncio.to_thread(models_of(request).card, name)
    return Json(await _shown(card, models_of(request)))


@router.get("/version")
async def version() -> Response:
    """Which version of Ollama's API this is, and of Geode."""
    return Json({"version": SPOKEN, "geode": __version__})


async def _shown(card: Card, models: Models) -> dict[str, Any]:
    async with models.use(card.name) as served:  # templates and tokenizers are read only with the model
        local = served.local
        source = getattr(local.template, "source", "")
        abilities = ["completion", *(["tools"] if local.template else []), "embedding"]
    config, kind = local.config, card.family or "unknown"
    return {
        "modelfile": f"FROM {card.name}\n",
        "parameters": "",
        "template": source,
        "details": _details(card),
        "model_info": {
            "general.architecture": kind,
            "general.parameter_count": _parameters(card),
            f"{kind}.context_length": card.context,
            f"{kind}.embedding_length": config.width,
            f"{kind}.block_count": config.depth,
            f"{kind}.attention.head_count": config.heads,
            f"{kind}.attention.head_count_kv": config.kv_heads,
            f"{kind}.feed_forward_length": config.ffn,
        },
        "capabilities": abilities,
        "modified_at": _time(card.created),
    }


def _listed(card: Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "model": card.name,
        "modified_at": _time(card.created),
        "size": card.size,
        "digest": hashlib.sha256(f"{card.name} {card.created} {card.size}".encode()).hexdigest(),
        "details": _details(card),
    }


def _details(card: Card) -> dict[str, Any]:
    count = _parameters(card)
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"
    return {
        "parent_model": card.base or "",
        "format": card.format,
        "family": card.family,
        "families": [card.family] if card.family else [],
        "parameter_size": size,
        "quantization_level": "",
    }


def _parameters(card: Card) -> int:
    from ..tensors import parameters

    return parameters(card.config)


def _kept(name: str, keep: str | float | None, request: Request) -> str:
    """The model that is meant, once it is noted how long it stays; 0 lets go of it after this request.

    A server that is not private keeps it no shorter than its own setting says.
    """
    models, settings = models_of(request), settings_of(request)
    found, seconds = _name(name, models), settings.idle if keep is None else _seconds(keep)
    if not settings.private:
        if seconds == 0 and keep is not None:
            raise HTTPException(403, "keep_alive must be more than 0: others use the model, too, and it stays.")
        seconds = None if seconds is None or settings.idle is None else max(seconds, settings.idle)
    models.keep(found, seconds)
    return found


def _name(name: str, models: Models) -> str:
    """Ollama's clients add ":latest" to names that have no tag. Raises ModelNotFound."""
    try:
        models.find(name)
    except ModelNotFound:
        short = name.removesuffix(":latest")
        models.find(short)
        return short
    return name


def _seconds(keep: str | float) -> float | None:
    """A duration as Go writes it, "1h30m", or seconds; None for a negative one: for good. Raises OptionError."""
    if isinstance(keep, str):
        parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", keep)
        if re.fullmatch(r"-?\d+(\.\d+)?", keep):
            keep = float(keep)
        elif not parts or "".join(number + unit for number, unit in parts) != keep.lstrip("-"):
            raise OptionError(f'keep_alive must be a duration, as in "5m", or seconds; {keep[:100]!r} was given.')
        else:
            keep = sum(float(number) * UNITS[unit] for number, unit in parts) * (-1 if keep.startswith("-") else 1)
    return None if keep < 0 else float(keep)


def _now() -> str:
    return _time(time.time())


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
