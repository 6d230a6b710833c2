"""Anthropic's API through Anthropic's own client, against a live server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from live import WEATHER, Forecaster, Live, scripted, serving

anthropic = pytest.importorskip("anthropic")
httpx = pytest.importorskip("httpx")

TOOL = {"name": "weather", "description": WEATHER["description"], "input_schema": WEATHER["parameters"]}
says = Forecaster("Hello, friend. Bye.")


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving({"fake": scripted(says)}) as found:
        yield found


@pytest.fixture
def client(live: Live) -> Any:
    return anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0)


def ask(client: Any, *content: Any, **more: Any) -> Any:
    turns = [{"role": ("user", "assistant")[i % 2], "content": each} for i, each in enumerate(content)]
    return client.messages.create(**{"model": "fake", "max_tokens": 200, "messages": turns} | more)


def test_an_answer(client: Any) -> None:
    found = ask(client, "Hi", system="Be kind.")
    assert (found.type, found.role, found.model) == ("message", "assistant", "fake")
    assert [block.text for block in found.content] == ["Hello, friend. Bye."]
    assert (found.stop_reason, found.stop_sequence) == ("end_turn", None)
    assert found.usage.output_tokens == len("Hello, friend. Bye.") + 1  # and the end
    assert found._request_id.startswith("req_")
    assert "system: Be kind.\nuser: Hi\nassistant: " in says.prompts[-1]


def test_where_an_answer_ends(client: Any) -> None:
    stopped = ask(client, "Hi", stop_sequences=["nothing", "friend", "."])
    assert stopped.content[0].text == "Hello, " and stopped.stop_reason == "stop_sequence"
    assert stopped.stop_sequence == "friend"
    short = ask(client, "Hi", max_tokens=5)
    assert short.content[0].text == "Hello" and short.stop_reason == "max_tokens"
    assert short.usage.output_tokens == 5


def test_a_limit_beyond_the_context_is_what_fits(client: Any) -> None:
    """Clients must name a limit, and name large ones."""
    assert ask(client, "Hi", max_tokens=20_000).stop_reason == "end_turn"
    endless = scripted(["a" * 9000])
    with serving({"fake": endless}) as live:
        other = anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0)
        found = ask(other, "Hi", max_tokens=20_000)
        assert found.stop_reason == "model_context_window_exceeded"
        assert found.usage.input_tokens + found.usage.output_tokens == endless.context
        with pytest.raises(anthropic.BadRequestError, match=str(endless.context)):
            ask(other, "x" * 5000)


def test_streamed_events_come_in_order(client: Any) -> None:
    raw = ask(client, "Hi", stream=True)
    events = list(raw)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "".join(event.delta.text for event in events[2:-3]) == "Hello, friend. Bye."
    assert events[0].message.usage.input_tokens == events[-2].usage.input_tokens > 0
    assert events[-2].delta.stop_reason == "end_turn"


def test_a_stream_gathers_to_the_same_message(client: Any) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    with client.messages.stream(model="fake", max_tokens=99, messages=turns, stop_sequences=["friend"]) as stream:
        texts = list(stream.text_stream)
        found = stream.get_final_message()
    assert "".join(texts) == found.content[0].text == "Hello, "
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", "friend")


def test_a_tool_is_called_and_its_result_read(client: Any) -> None:
    first = ask(client, "What is the weather in Oslo?", tools=[TOOL])
    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    assert (call.type, call.name, call.input) == ("tool_use", "weather", {"city": "Oslo"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "Rain"}]}
    then = ask(client, "What is the weather in Oslo?", first.content, [result], tools=[TOOL])
    assert then.content[0].text == "It rains." and then.stop_reason == "end_turn"


def test_a_streamed_call(client: Any) -> None:
    turns = [{"role": "user", "content": "What is the weather in Oslo?"}]
    with client.messages.stream(model="fake", max_tokens=99, messages=turns, tools=[TOOL]) as stream:
        events = list(stream)
        found = stream.get_final_message()
    parts = [event.partial_json for event in events if event.type == "input_json"]
    assert json.loads("".join(parts)) == {"city": "Oslo"}
    assert found.content[-1].input == {"city": "Oslo"} and found.stop_reason == "tool_use"
    indices = [event.index for event in events if event.type == "content_block_start"]
    assert indices == list(range(len(indices)))


def test_a_call_can_be_required(client: Any) -> None:
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        found = ask(client, "weather?", tools=[TOOL], tool_choice=choice)
        assert found.stop_reason == "tool_use" and found.content[-1].name == "weather"
    none = ask(client, "Hi", tools=[TOOL | {"name": "other"}], tool_choice={"type": "none"})
    assert none.stop_reason == "end_turn"


def test_an_answer_can_be_begun(client: Any) -> None:
    ask(client, "Hi", "Once upon")
    assert says.prompts[-1].endswith("assistant: Once upon")


def test_json_by_a_schema(client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    found = ask(client, "JSON", output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(found.content[0].text)["a"] == 1


def test_turns_of_one_role_are_one(live: Live) -> None:
    turns = [{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}]
    body = {"model": "fake", "max_tokens": 5, "messages": turns}
    assert httpx.post(f"{live.url}/v1/messages", json=body).status_code == 200
    assert "user: One\n\nTwo\nassistant: " in says.prompts[-1]


def test_models(client: Any) -> None:
    found = client.models.list()
    assert [(model.id, model.type, model.display_name) for model in found] == [("fake", "model", "fake")]
    assert client.models.retrieve("fake").created_at.year > 2000


def test_tokens_are_counted(client: Any) -> None:
    counted = client.messages.count_tokens(model="fake", messages=[{"role": "user", "content": "Hi"}], system="S")
    assert counted.input_tokens == ask(client, "Hi", system="S").usage.input_tokens
    more = client.messages.count_tokens(model="fake", messages=[{"role": "user", "content": "Hi"}], tools=[TOOL])
    assert more.input_tokens > counted.input_tokens


def test_what_asks_for_nothing_is_taken(client: Any) -> None:
    empty = {"mcp_servers": [], "fallbacks": [], "context_management": {"edits": []}, "speed": "standard"}
    tool = {"name": "other", "input_schema": {"type": "object"}, "input_examples": []}
    tool |= {"defer_loading": False, "allowed_callers": ["direct"]}
    for more in (empty, {"thread": None, "container": None}):
        found = client.beta.messages.create(
            model="fake",
            max_tokens=200,
            messages=[{"role": "user", "content": "Hi"}],
            tools=[tool],
            betas=["context-management-2025-06-27", "mcp-client-2025-11-20"],
            extra_body=more,
        )
        assert found.content[0].text == "Hello, friend. Bye."


def test_what_is_beta_matters_not(live: Live) -> None:
    body = {"model": "fake", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}
    beta = {"anthropic-beta": "message-threads-2026-08-12,other", "anthropic-version": "2023-06-01"}
    for path, headers in (("/v1/messages?beta=true", beta), ("/v1/messages", {})):
        found = httpx.post(live.url + path, json=body, headers=headers)
        assert found.json()["content"] == [{"type": "text", "text": "Hello, friend. Bye."}]


# Threads, which newer clients ask for


def weather(city: str) -> str:
    """The weather of a city

    Args:
        city: its name
    """
    return f"Rain in {city}"


@pytest.mark.parametrize("stream", [False, True])
def test_the_clients_tool_runner(client: Any, stream: bool) -> None:
    runner = client.beta.messages.tool_runner(
        model="fake",
        max_tokens=200,
        tools=[anthropic.beta_tool(weather)],
        messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
        stream=stream,
    )
    said = [each.get_final_message() if stream else each for each in runner]
    assert [each.stop_reason for each in said] == ["tool_use", "end_turn"]
    assert said[-1].content[-1].text == "It rains." and "Rain in Oslo" in says.prompts[-1]


@pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}, True])
def test_a_thread_is_refused_as_clients_expect(live: Live, thread: Any) -> None:
    body = {"model": "fake", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}], "thread": thread}
    found = httpx.post(f"{live.url}/v1/messages?beta=true", json=body)
    error = found.json()["error"]
    assert found.status_code == 400 and error["type"] == "invalid_request_error" and "'thread'" in error["message"]
    assert error["details"] == {"error_code": "thread_unsupported_request"}
    other = httpx.post(f"{live.url}/v1/messages", json=body | {"thread": None, "max_tokens": 0})
    assert other.json()["error"]["details"] is None


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
BAD = [
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
    ({"extra_body": {"container": "x"}}, "container"),
    ({"extra_body": {"mcp_servers": [{"type": "url", "url": "http://a", "name": "a"}]}}, "mcp_servers"),
    ({"extra_body": {"context_management": {"edits": [{"type": "compact_20260112"}]}}}, "context_management.edits"),
    ({"extra_body": {"speed": "fast"}}, "not 'fast'"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "none"}}, "tool_choice"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": 1.5}, "temperature"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "image"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]}, "tool_use"),
    ({"messages": [{"role": "system", "content": "x"}]}, "role"),
]


@pytest.mark.parametrize(("more", "said"), BAD, ids=[said for _, said in BAD])
def test_what_cannot_be_done_is_refused_by_name(client: Any, more: dict[str, Any], said: str) -> None:
    if "temperature" in more:
        more = {"extra_body": more}
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(client, "Hi", **more)
    body = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert said in body["error"]["message"]


def test_errors_have_anthropics_shape(client: Any, live: Live) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        ask(client, "Hi", model="none")
    assert caught.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="none", messages=[{"role": "user", "content": "Hi"}])
    broken = httpx.post(f"{live.url}/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 400 and broken.json()["type"] == "error"
