"""OpenAI's Responses through OpenAI's own client, against a live server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from live import WEATHER, Forecaster, Live, scripted, serving

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

FUNCTION = {"type": "function", **WEATHER, "strict": False}
says = Forecaster()


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving({"fake": scripted(says)}) as found:
        yield found


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def ask(client: Any, given: Any = "Hi", **more: Any) -> Any:
    return client.responses.create(model="fake", input=given, **more)


def test_an_answer(client: Any) -> None:
    found = ask(client, instructions="Be kind.", metadata={"a": "b"})
    assert (found.object, found.status, found.output_text) == ("response", "completed", "Hello.")
    assert found.output[0].role == "assistant" and found.output[0].status == "completed"
    assert found.usage.output_tokens == len("Hello.") + 1
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    assert found.metadata == {"a": "b"} and found.error is None
    assert says.prompts[-1].endswith("system: Be kind.\nuser: Hi\nassistant: ")


def test_items_are_a_conversation(client: Any) -> None:
    items = [
        {"role": "developer", "content": "Brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "One"}, {"type": "input_text", "text": " two"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Three"}]},
        {"role": "user", "content": "Four"},
    ]
    ask(client, items)
    assert says.prompts[-1].endswith("system: Brief.\nuser: One two\nassistant: Three\nuser: Four\nassistant: ")


def test_streamed_events(client: Any) -> None:
    events = list(ask(client, stream=True))
    kinds = [event.type for event in events]
    text = [event for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(text),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in text) == "Hello." == events[-1].response.output_text
    assert {event.item_id for event in text} == {events[-1].response.output[0].id}


def test_the_clients_own_gathering(client: Any) -> None:
    with client.responses.stream(model="fake", input="Hi") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "Hello."


def test_a_limit_leaves_it_incomplete(client: Any) -> None:
    found = ask(client, max_output_tokens=3)
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert found.output_text == "Hel" and found.output[0].status == "incomplete"
    last = list(ask(client, max_output_tokens=3, stream=True))[-1]
    assert last.type == "response.incomplete" and last.response.output_text == "Hel"


def test_a_tool_is_called_and_its_result_read(client: Any) -> None:
    question = {"role": "user", "content": "What is the weather in Oslo?"}
    first = ask(client, [question], tools=[FUNCTION])
    call = first.output[-1]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Oslo"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}
    sent = [item.model_dump(exclude_none=True) for item in first.output]
    assert ask(client, [question, *sent, result], tools=[FUNCTION]).output_text == "It rains."
    kept = ask(client, [result], previous_response_id=first.id, tools=[FUNCTION])
    assert kept.output_text == "It rains."


def test_a_streamed_call(client: Any) -> None:
    events = list(ask(client, "weather?", tools=[FUNCTION], tool_choice="required", stream=True))
    parts = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert "".join(parts) == done.arguments and json.loads(done.arguments) == {"city": "Oslo"}
    assert events[-1].response.output[-1].name == "weather"


OTHER = FUNCTION | {"name": "other"}


def only(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "name": name} for name in names]
    return {"tools": [OTHER, FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": mode, "tools": tools}}


def test_only_some_tools_may_be_called(client: Any) -> None:
    for mode in ("auto", "required"):
        found = ask(client, "weather?", **only(mode, "weather"))
        assert found.output[-1].name == "weather" and '"other"' not in says.prompts[-1]
        assert found.tool_choice.tools == [{"type": "function", "name": "weather"}]
        assert [tool.name for tool in found.tools] == ["other", "weather"]
    found = ask(client, "weather?", **only("auto", "other"))
    assert not [item for item in found.output if item.type == "function_call"]
    with pytest.raises(openai.BadRequestError, match="'third' is none") as caught:
        ask(client, **only("auto", "weather", "third"))
    assert caught.value.param == "tool_choice"


def test_json_by_a_schema(client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    shape = {"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}}
    assert json.loads(ask(client, "JSON", text=shape).output_text)["a"] == 1
    assert json.loads(ask(client, "JSON", text={"format": {"type": "json_object"}}).output_text) == {"a": 1}


def test_logprobs(client: Any) -> None:
    found = ask(client, include=["message.output_text.logprobs"], top_logprobs=2)
    logprobs = found.output[0].content[0].logprobs
    assert "".join(each.token for each in logprobs).startswith("Hello.")
    assert all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in logprobs)
    assert not ask(client).output[0].content[0].logprobs


def test_what_was_said_is_kept(client: Any) -> None:
    first = ask(client, "First")
    then = ask(client, "Second", previous_response_id=first.id)
    assert says.prompts[-1].endswith("user: First\nassistant: Hello.\nuser: Second\nassistant: ")
    assert then.previous_response_id == first.id
    assert client.responses.retrieve(first.id).output_text == "Hello."
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        ask(client, previous_response_id=first.id)
    assert ask(client, previous_response_id=then.id).status == "completed"  # it holds all that went before


def test_what_is_not_to_be_stored_is_not(client: Any) -> None:
    found = ask(client, store=False)
    assert found.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(found.id)
    streamed = list(ask(client, stream=True))[-1].response
    assert client.responses.retrieve(streamed.id).output_text == "Hello."


def test_what_led_to_a_response_is_listed(client: Any) -> None:
    asked = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "text", "text": "Yes?"}]}]
    first = ask(client, [*asked, {"role": "user", "content": "weather?", "id": "msg_mine"}], tools=[FUNCTION])
    call = first.output[-1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}
    then = ask(client, [result], previous_response_id=first.id, tools=[FUNCTION])
    found = list(client.responses.input_items.list(then.id, order="asc", limit=2))  # the client asks again for the rest
    kinds = ["message", "message", "message", "function_call", "function_call_output"]
    assert [item.type for item in found] == kinds
    assert [item.content[0].type for item in found[:3]] == ["input_text", "output_text", "input_text"]
    assert found[1].content[0].text == "Yes?" and found[2].id == "msg_mine" and found[-1].output == "Rain"
    assert found[-2].id == call.id and len({item.id for item in found}) == len(found)
    newest = client.responses.input_items.list(then.id, limit=1)
    assert [item.id for item in newest.data] == [found[-1].id] and newest.has_more
    rest = client.responses.input_items.list(then.id, order="desc", after=found[1].id)
    assert [item.id for item in rest.data] == [found[0].id] and not rest.has_more
    assert not client.responses.input_items.list(then.id, after=found[0].id).data
    assert [item.id for item in client.responses.input_items.list(first.id)] == [item.id for item in found[2::-1]]


@pytest.mark.parametrize(
    ("query", "param"), [("limit=0", "limit"), ("order=up", "order"), ("after=x", "after"), ("include=x", "include")]
)
def test_a_wrong_list_is_refused(live: Live, client: Any, query: str, param: str) -> None:
    address = f"{live.url}/v1/responses/{ask(client).id}"
    found = httpx.get(f"{address}/input_items?{query}")
    assert found.status_code == 400 and found.json()["error"]["param"] == param
    assert httpx.get(f"{live.url}/v1/responses/resp_none/input_items").status_code == 404
    assert httpx.get(f"{address}?stream=true").json()["error"]["param"] == "stream"
    assert httpx.get(f"{address}?api-version=1").status_code == 200


def test_what_is_over_is_not_cancelled(client: Any) -> None:
    found = ask(client)
    with pytest.raises(openai.BadRequestError, match="background") as caught:
        client.responses.cancel(found.id)
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_none")
    assert client.responses.retrieve(found.id).status == "completed"


def test_tokens_are_counted(client: Any) -> None:
    asked: dict[str, Any] = {"model": "fake", "input": "Hi", "instructions": "Brief."}
    first = client.responses.create(**asked)
    for more in ({}, {"tools": [FUNCTION]}, {"previous_response_id": first.id}, only("auto", "weather")):
        counted = client.responses.input_tokens.count(**asked, **more)
        assert counted.object == "response.input_tokens"
        assert counted.input_tokens == client.responses.create(**asked, **more).usage.input_tokens
    with pytest.raises(openai.NotFoundError):
        client.responses.input_tokens.count(**asked | {"model": "none"})
    with pytest.raises(openai.BadRequestError, match="truncation"):
        client.responses.input_tokens.count(**asked, truncation="auto")


def test_what_is_kept_has_a_bound(live: Live, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from geode.serve import responses_store

    monkeypatch.setattr(responses_store, "KEPT", 3)
    ids = [ask(client).id for _ in range(4)]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(ids[0])
    assert client.responses.retrieve(ids[-1]).id == ids[-1]


def test_nobody_reads_what_another_client_said() -> None:
    from geode.serve import keys

    both = (keys.key("one", "key-of-one"), keys.key("two", "key-of-two"))
    with serving({"fake": scripted(["Hello."])}, keys=both) as live:
        one, two = (
            openai.OpenAI(base_url=f"{live.url}/v1", api_key=f"key-of-{name}", max_retries=0) for name in ("one", "two")
        )
        found = ask(one)
        assert one.responses.retrieve(found.id).id == found.id
        for asks in (lambda: two.responses.retrieve(found.id), lambda: ask(two, previous_response_id=found.id)):
            with pytest.raises(openai.NotFoundError):
                asks()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
    ({"background": True}, "'background' is wrong: it should be false, not true"),
    ({"max_tool_calls": 3}, "'max_tool_calls' is wrong: it should be null or left out, not 3"),
    ({"truncation": "some"}, "not 'some'"),
    ({"conversation": "c"}, "conversation"),
    ({"prompt": {"id": "p"}}, "'prompt' is wrong: it should be null or left out, not an object"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "none", "tools": []}}, "mode"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"extra_body": {"seed": 1}}, "seed"),
    ({"include": ["file_search_call.results"]}, "include"),
    ({"given": [{"type": "reasoning", "id": "r", "summary": []}]}, "input"),
    ({"given": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
    ({"given": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "function_call"),
    ({"given": []}, "input"),
]


@pytest.mark.parametrize(("more", "said"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_cannot_be_done_is_refused_by_name(client: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **more)
    assert said in caught.value.body["message"]


def test_prompts_that_are_too_long(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="4096"):
        ask(client, "x" * 5000)
    found = ask(client, "x" * 5000, truncation="auto", max_output_tokens=10)
    assert found.output_text == "Hello." and found.usage.truncated_tokens > 0
