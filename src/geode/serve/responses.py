"""OpenAI's Responses: POST /v1/responses, and reading or deleting one that was kept.

How answers are made is not known here. What was said is kept in memory, within bounds, for `previous_response_id`,
unless a request says `store: false`. The truth is platform.openai.com/docs/api-reference/responses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..errors import OptionError
from ..generate import Options
from .ask import Ask, Format, JsonObject, JsonSchema, as_call, choice_of
from .http import Events, Json, there
from .loan import Running, begin, who
from .problems import problem_of
from .replies import cut
from .responses_schema import (
    FunctionCall,
    FunctionOutput,
    Item,
    Message,
    Named,
    ResponseBody,
    SchemaFormat,
    TextSettings,
    joined,
)
from .responses_store import Store
from .responses_writer import Writer

if TYPE_CHECKING:
    from .loading import Served

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/responses")
async def create(body: ResponseBody, request: Request) -> Response:
    """An answer to a text or to items, whole or streamed."""
    store, client = _store(request), who(request)["client"]
    items = [*store.items(body.previous_response_id, client), *_items(body.input)]
    running = await begin(request, body.model, lambda served: [_ask(body, items, request, served)])
    writer = Writer(body, running.served)

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


async def _write(running: Running, writer: Writer) -> None:
    async for event in running.answer:
        for _ in writer.events(event):
            pass


async def _stream(running: Running, writer: Writer, keep: Callable[[], None]) -> AsyncIterator[bytes]:
    yield b"".join(writer.begin())
    try:
        while batch := await running.answer.batch():
            parts = [part for event in batch for part in writer.events(event)]
            if writer.over:
                keep()
            yield b"".join(parts)
    except Exception as error:
        yield writer.failed(problem_of(error))


def _store(request: Request) -> Store:
    state = request.app.state
    if not hasattr(state, "responses"):
        state.responses = Store()
    found: Store = state.responses
    return found


# To an ask


def _items(given: str | list[Item]) -> list[Item]:
    return [Message(role="user", content=given)] if isinstance(given, str) else given


def _ask(body: ResponseBody, items: Sequence[Item], request: Request, served: Served) -> Ask:
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sent = {"temperature": body.temperature, "top_p": body.top_p, "logprobs": logprobs}
    given: dict[str, Any] = {name: value for name, value in sent.items() if value is not None}
    tools = body.tools or []
    return Ask(
        model=served.name,
        messages=[*_system(body.instructions), *_conversation(items)],
        options=Options(max_tokens=body.max_output_tokens, **given),
        tools=[tool.tool() for tool in tools],
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
            speaking.setdefault("tool_calls", []).append(as_call(item.call_id, item.name, item.arguments))
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


def _result(item: FunctionOutput, names: dict[str, str]) -> dict[str, Any]:
    if item.call_id not in names:
        raise OptionError(f"input must have the function_call before its output; {item.call_id!r} is not there.")
    text = joined(item.output)
    return {"role": "tool", "tool_call_id": item.call_id, "name": names[item.call_id], "content": text}


def _choice(choice: str | Named | None, names: Sequence[str]) -> str:
    if isinstance(choice, Named):
        return choice_of(names, None, choice.name)
    return choice_of(names, None if choice == "auto" else choice)  # "auto" asks for nothing: it may stand without tools


def _format(text: TextSettings | None) -> Format | None:
    asked = None if text is None else text.format
    if isinstance(asked, SchemaFormat):
        return JsonSchema(asked.schema_, asked.name)
    return JsonObject() if asked is not None and asked.type == "json_object" else None


def _item(output: dict[str, Any]) -> Item:
    """What was answered, as it would be sent back."""
    if output["type"] == "function_call":
        return FunctionCall(**output)
    return Message(role="assistant", content=output["content"][0]["text"])
