"""Real models behind a live server, through the clients that applications use: OpenAI's, Anthropic's, LangChain's, ours.

The real Gemma 3 270M with the assistant's adapter, and SmolLM2. What they say is compared with the model in this
process, to the token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

from live import Live, idle, serving  # noqa: E402
from pydantic import BaseModel, Field  # noqa: E402

import geode  # noqa: E402
from geode import lm  # noqa: E402

pytestmark = pytest.mark.xdist_group("real")

ASK = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 16}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells the weather", "parameters": WEATHER}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
RAIN = [{"role": "user", "content": "How is the weather in Oslo?"}]


class Place(BaseModel):
    """A place. Everything in it has an end: small models like to go on."""

    city: str = Field(max_length=20)
    continent: Literal["Africa", "America", "Asia", "Europe"]
    rivers: int = Field(ge=0, le=99)


@pytest.fixture(scope="module")
def locals(real_model: Callable[[str], Path]) -> dict[str, lm.Local]:
    real_model("gemma3:270m")  # what the assistant is made of
    paths = {"assistant": "assistant", "smollm2": str(real_model("smollm2:135m-instruct"))}
    return {name: lm.open(path, on="native", threads=1) for name, path in paths.items()}


@pytest.fixture(scope="module")
def live(locals: dict[str, lm.Local]) -> Iterator[Live]:
    with serving(locals) as found:
        yield found
        for name in locals:
            idle(found, name)


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def valid(arguments: Any) -> bool:
    """Whether arguments are what `WEATHER` says."""
    found = json.loads(arguments) if isinstance(arguments, str) else arguments
    days = found.get("days", 1)
    known = {"city", "unit"} <= {*found} <= {"city", "unit", "days"} and found["unit"] in ("C", "F")
    return known and len(found["city"]) <= 20 and type(days) is int and 1 <= days <= 14


# OpenAI's client


@pytest.mark.parametrize("name", ["assistant", "smollm2"])
def test_a_chat_and_its_stream(client: Any, locals: dict[str, lm.Local], name: str) -> None:
    wanted = locals[name].generate(ASK, **GREEDY)
    found = client.chat.completions.create(model=name, messages=ASK, **GREEDY)
    (choice,) = found.choices
    assert "Paris" in choice.message.content or name != "assistant"
    assert (choice.message.content, choice.finish_reason) == (wanted.text, wanted.finish_reason)
    assert found.usage.prompt_tokens == wanted.usage.prompt_tokens
    assert found.usage.completion_tokens == len(wanted.tokens)
    *parts, last = client.chat.completions.create(
        model=name, messages=ASK, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    assert "".join(part.choices[0].delta.content or "" for part in parts) == wanted.text
    assert last.usage.completion_tokens == len(wanted.tokens)
    assert len(parts) > 3, "it comes in parts"


def test_many_at_once_say_what_each_says_alone(client: Any, locals: dict[str, lm.Local]) -> None:
    cities = ["France", "Italy", "Japan", "Egypt", "Peru"]
    talks = [[{"role": "user", "content": f"What is the capital of {city}?"}] for city in cities]
    wanted = locals["assistant"].generate(talks, temperature=0.7, seed=3, max_tokens=8)
    with ThreadPoolExecutor(len(talks)) as pool:
        more = {"model": "assistant", "temperature": 0.7, "seed": 3, "max_tokens": 8}
        found = list(pool.map(lambda talk: client.chat.completions.create(messages=talk, **more), talks))
    assert [one.choices[0].message.content for one in found] == [one.text for one in wanted]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=str)
@pytest.mark.parametrize("name", ["assistant", "smollm2"])
def test_tools(client: Any, name: str, choice: Any) -> None:
    pytest.importorskip("llguidance")
    more = {"tools": [TOOL] if choice == "required" else [CLOCK, TOOL], "tool_choice": choice}
    options = {"model": name, "messages": RAIN, "parallel_tool_calls": False, "temperature": 0, "max_tokens": 80}
    (found,) = client.chat.completions.create(**options, **more).choices
    (call,) = found.message.tool_calls
    assert call.function.name == "weather" and valid(call.function.arguments)
    assert (found.finish_reason, found.message.content) == ("tool_calls", None)
    with client.chat.completions.stream(**options, **more) as stream:
        kinds = {event.type for event in stream}
        (again,) = stream.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.done" in kinds
    assert (again.function.name, again.function.arguments) == ("weather", call.function.arguments)
    talk = [*RAIN, found.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "Rain, 7 degrees."}]
    last = client.chat.completions.create(model=name, messages=talk, tools=[TOOL], tool_choice="none", **GREEDY)
    assert last.choices[0].message.content and not last.choices[0].message.tool_calls


def test_json_of_a_schema(client: Any) -> None:
    pytest.importorskip("llguidance")
    for name in ("assistant", "smollm2"):
        found = client.chat.completions.parse(
            model=name, messages=ASK, response_format=Place, temperature=0, max_tokens=99
        )
        place = found.choices[0].message.parsed
        assert isinstance(place, Place) and found.choices[0].finish_reason == "stop"
    any_object = client.chat.completions.create(
        model="assistant", messages=ASK, response_format={"type": "json_object"}, temperature=0, max_tokens=120
    )
    said = any_object.choices[0]
    assert said.finish_reason == "length" or isinstance(json.loads(said.message.content), dict)


def test_logprobs(client: Any, locals: dict[str, lm.Local]) -> None:
    wanted = locals["assistant"].generate(ASK, logprobs=3, **GREEDY)
    found = client.chat.completions.create(model="assistant", messages=ASK, logprobs=True, top_logprobs=3, **GREEDY)
    listed = found.choices[0].logprobs.content
    assert [one.id for one in listed] == wanted.tokens
    assert [one.logprob for one in listed] == pytest.approx(wanted.logprobs, rel=1e-3, abs=1e-4)
    assert [[top.id for top in one.top_logprobs] for one in listed] == [
        [i for i, _ in top] for top in wanted.top_logprobs
    ]
    shown = b"".join(bytes(one.bytes) for one in listed if not getattr(one, "special", False))
    assert shown.decode() == wanted.text and listed[-1].special


def test_a_prompt_and_how_likely_it_is(client: Any, locals: dict[str, lm.Local]) -> None:
    """As lm-evaluation-harness asks, with texts in place of ids."""
    text = "The capital of France is Paris."
    found = client.completions.create(
        model="assistant", prompt=text, max_tokens=1, echo=True, logprobs=1, temperature=0
    )
    lists = found.choices[0].logprobs
    ids = locals["assistant"].tokenize(text)
    wanted = locals["assistant"].score(ids[:1], ids[1:])
    assert lists.token_ids[:-1] == ids and found.choices[0].text.startswith(text)
    assert lists.token_logprobs[1 : len(ids)] == pytest.approx(wanted.token_logprobs, rel=1e-3, abs=1e-3)
    places = zip(lists.text_offset[1 : len(ids)], lists.tokens[1 : len(ids)], strict=True)
    assert all(text[at:].startswith(token) for at, token in places)
    tops = lists.top_logprobs[1 : len(ids)]
    assert all(lists.token_logprobs[i] <= max(top.values()) for i, top in enumerate(tops, 1))


def test_embeddings(client: Any) -> None:
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The stock market fell by three percent."]
    found = client.embeddings.create(model="assistant", input=texts)
    a, b, c = (np.array(one.embedding) for one in found.data)
    assert np.linalg.norm(a) == pytest.approx(1, abs=1e-5) and len(a) == 640
    assert a @ b > a @ c, "what means the same is nearer"


def test_errors(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="assistant, smollm2"):
        client.chat.completions.create(model="gpt-4o", messages=ASK)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="assistant", messages=ASK, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="'best_friend' is not supported"):
        client.chat.completions.create(model="assistant", messages=ASK, extra_body={"best_friend": 1})
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "word " * 9000}])
    assert long.value.code == "context_length_exceeded" and "8192" in str(long.value)


# Anthropic's client


@pytest.fixture(scope="module")
def claude(live: Live) -> Any:
    anthropic = pytest.importorskip("anthropic")
    return anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0)


COLD: dict[str, Any] = {"model": "assistant", "extra_body": {"temperature": 0}}


def test_messages(claude: Any, locals: dict[str, lm.Local]) -> None:
    wanted = locals["assistant"].generate(ASK, **GREEDY)
    found = claude.messages.create(messages=ASK, max_tokens=16, **COLD)
    assert [block.text for block in found.content] == [wanted.text] and found.stop_reason == "end_turn"
    assert found.usage.input_tokens == wanted.usage.prompt_tokens
    assert claude.messages.count_tokens(model="assistant", messages=ASK).input_tokens == found.usage.input_tokens
    with claude.messages.stream(messages=ASK, max_tokens=16, **COLD) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_message().content[0].text == wanted.text
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert kinds.count("content_block_delta") > 3
    short = claude.messages.create(messages=ASK, max_tokens=3, **COLD)
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 3)


def test_tool_use(claude: Any) -> None:
    pytest.importorskip("llguidance")
    tools = [{"name": "weather", "description": "Tells the weather", "input_schema": WEATHER}]
    options = {"max_tokens": 80, "tools": tools, **COLD}
    one = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    with claude.messages.stream(messages=RAIN, tool_choice=one, **options) as stream:
        found = stream.get_final_message()
    (call,) = found.content
    assert (call.type, call.name, found.stop_reason) == ("tool_use", "weather", "tool_use") and valid(call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain"}
    talk = [*RAIN, {"role": "assistant", "content": found.content}, {"role": "user", "content": [result]}]
    assert claude.messages.create(messages=talk, tool_choice={"type": "none"}, **options).content[0].text


# LangChain


def test_langchain(live: Live, locals: dict[str, lm.Local]) -> None:
    langchain = pytest.importorskip("langchain_openai")
    pytest.importorskip("llguidance")
    more = {"base_url": f"{live.url}/v1", "api_key": "none", "max_retries": 0}
    chat = langchain.ChatOpenAI(model="assistant", **GREEDY, **more)
    wanted = locals["assistant"].generate(ASK, **GREEDY)
    found = chat.invoke("What is the capital of France?")
    assert found.content == wanted.text and found.usage_metadata["output_tokens"] == len(wanted.tokens)
    assert "".join(part.content for part in chat.stream(ASK)) == wanted.text
    assert [one.content for one in chat.batch(["What is the capital of France?"] * 2)] == [wanted.text] * 2
    chat = langchain.ChatOpenAI(model="assistant", temperature=0, max_tokens=80, **more)
    (call,) = chat.bind_tools([TOOL], tool_choice="weather").invoke("How is the weather in Oslo?").tool_calls
    assert call["name"] == "weather" and valid(call["args"])
    for method in ("json_schema", "function_calling"):
        place = chat.with_structured_output(Place, method=method).invoke("What is the capital of France?")
        assert isinstance(place, Place), method
    vectors = langchain.OpenAIEmbeddings(model="assistant", check_embedding_ctx_length=False, **more)
    assert math.hypot(*vectors.embed_query("A cat sleeps.")) == pytest.approx(1, abs=1e-5)


# Our own


@pytest.mark.parametrize("name", ["assistant", "smollm2"])
def test_remote_is_what_local_is(live: Live, locals: dict[str, lm.Local], name: str) -> None:
    near, far = locals[name], geode.load(f"{live.url}/v1#{name}")
    text = "The capital of France is"
    stream, wanted = far.stream(ASK, **GREEDY), near.generate(ASK, **GREEDY)
    assert "".join(piece.text for piece in stream) == wanted.text and stream.finish_reason == wanted.finish_reason
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (
        wanted.usage.prompt_tokens,
        len(wanted.tokens),
    )
    prompts = [text, "Once upon a time", near.tokenize("One, two, three,")]
    assert [one.text for one in far.generate(prompts, **GREEDY)] == [near.generate(p, **GREEDY).text for p in prompts]
    for prompt in (ASK, text):
        there, here = far.generate(prompt, logprobs=2, **GREEDY), near.generate(prompt, logprobs=2, **GREEDY)
        assert there.tokens == here.tokens
        assert there.logprobs == pytest.approx(here.logprobs, rel=1e-3, abs=1e-4)
    assert far.tokenize(text) == near.tokenize(text) and far.tokenize(text, bos=False) == near.tokenize(text, bos=False)
    assert far.detokenize(near.tokenize("Grüße, 世界!")) == near.detokenize(near.tokenize("Grüße, 世界!"))
    for pair in ((text, " Paris"), (text, " London."), (text + " ", "Paris"), (near.tokenize(text), [1000, 2000])):
        there, here = far.score(*pair), near.score(*pair)
        assert there.token_logprobs == pytest.approx(here.token_logprobs, rel=1e-3, abs=1e-3), pair
        assert (there.is_greedy, there.tokens) == (here.is_greedy, here.tokens), pair
    vectors = far.embed(["A cat sleeps.", text])
    assert vectors.shape == (2, near.config.width)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
