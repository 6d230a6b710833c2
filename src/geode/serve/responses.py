"""OpenAI's Responses: POST /v1/responses, what its prompt takes, and reading or deleting one that was kept.

How answers are made is not known here. What was said is kept in memory, within bounds, for `previous_response_id`,
unless a request says `store: false`. The truth is platform.openai.com/docs/api-reference/responses.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..errors import OptionError
from ..generate import Options
from . import answer
from .ask import Ask, Format, JsonObject, JsonSchema, as_call
from .http import Events, Json, there
from .loan import Running, begin, models_of, who
from .problems import problem_of
from .replies import cut
from .responses_schema import (
    FunctionCall,
    FunctionOutput,
    Item,
    ItemsQuery,
    Message,
    ReadQuery,
    Reference,
    ResponseBody,
    SchemaFormat,
    Talk,
    TextSettings,
    TokensBody,
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
    items = _all_items(body, request)
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


@router.post("/v1/responses/input_tokens")
async def count_tokens(body: TokensBody, request: Request) -> Response:
    """How many tokens a prompt has."""
    items = _all_items(body, request)
    async with models_of(request).use(body.model) as served:
        ids = await asyncio.to_thread(answer.prompt, served, Ask(model=served.name, **_asked(body, items)))
        return Json({"object": "response.input_tokens", "input_tokens": len(ids)})


@router.get("/v1/responses/{response_id}")
async def read(response_id: str, query: Annotated[ReadQuery, Query()], request: Request) -> Response:
    """One that was kept."""
    return Json(_store(request).find(response_id, who(request)["client"]).response)


@router.get("/v1/responses/{response_id}/input_items")
async def input_items(response_id: str, query: Annotated[ItemsQuery, Query()], request: Request) -> Response:
    """The items that led to one that was kept, those of the responses before it included."""
    items = _store(request).find(response_id, who(request)["client"]).given
    found = items if query.order == "asc" else items[::-1]
    if query.after is not None:
        places = [i for i, item in enumerate(found) if item.id == query.after]
        if not places:
            raise OptionError(f"after must be the id of one of the items; {query.after[:100]!r} is none.")
        found = found[places[0] + 1 :]
    data = [_listed(item) for item in found[: query.limit]]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return Json({"object": "list", "data": data, **ends, "has_more": len(found) > query.limit})


@router.post("/v1/responses/{response_id}/cancel")
async def cancel(response_id: str, request: Request) -> Response:
    """Refused: only a response in the background can be cancelled so. Any other is by closing its connection."""
    _store(request).find(response_id, who(request)["client"])
    raise HTTPException(
        400, "This response was not made in the background, so it is over. Close its connection to cancel one."
    )


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


def _all_items(body: Talk, request: Request) -> list[Item]:
    """What went before, and what is sent now. Each has an id."""
    store, client = _store(request), who(request)["client"]
    given = [Message(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    sent = [store.item(each.id, client) if isinstance(each, Reference) else each for each in given]
    return [*store.items(body.previous_response_id, client), *map(_identified, sent)]


PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}


def _identified(item: Item) -> Item:
    if item.id is not None:
        return item
    return item.model_copy(update={"id": f"{PREFIXES[item.type]}_{secrets.token_hex(12)}"})


def _ask(body: ResponseBody, items: Sequence[Item], request: Request, served: Served) -> Ask:
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sent = {"temperature": body.temperature, "top_p": body.top_p, "logprobs": logprobs}
    given: dict[str, Any] = {name: value for name, value in sent.items() if value is not None}
    return Ask(
        model=served.name,
        options=Options(max_tokens=body.max_output_tokens, **given),
        truncate=cut(request, served, -1 if body.truncation == "auto" else None, body.max_output_tokens),
        **_asked(body, items),
        **who(request),
    )


def _asked(body: Talk, items: Sequence[Item]) -> dict[str, Any]:
    """The fields of an `Ask` that a prompt is made of."""
    return {
        "messages": [*_system(body.instructions), *_conversation(items)],
        "tools": body.offered,
        "tool_choice": body.choice,
        "parallel_calls": body.parallel_tool_calls is not False,
        "format": _format(body.text),
    }


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


def _format(text: TextSettings | None) -> Format | None:
    asked = None if text is None else text.format
    if isinstance(asked, SchemaFormat):
        return JsonSchema(asked.schema_, asked.name)
    return JsonObject() if asked is not None and asked.type == "json_object" else None


def _item(output: dict[str, Any]) -> Item:
    """What was answered, as it would be sent back."""
    if output["type"] == "function_call":
        return FunctionCall(**output)
    return Message(id=output["id"], role="assistant", content=output["content"][0]["text"])


def _listed(item: Item) -> dict[str, Any]:
    """An item as OpenAI lists it: a message's text as a part, what an answer may lack filled in."""
    found = {"status": "completed", **item.model_dump(exclude_none=True)}
    if not isinstance(item, Message):
        return found
    part = {"type": "output_text", "annotations": []} if item.role == "assistant" else {"type": "input_text"}
    return found | {"content": [part | {"text": item.text}]}
