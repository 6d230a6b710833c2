"""OpenAI's own client against a live server: chat, streams, tools, formats, logprobs, completions, embeddings."""

from __future__ import annotations

import asyncio
import json
import math
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

import httpx  # noqa: E402
from live import Gated, Live, idle, scripted, serving, tiny  # noqa: E402

from geode.lm import Local  # noqa: E402
from geode.sampling import log_softmax, top_k  # noqa: E402
from geode.serve.bridge import Inbox  # noqa: E402

HTTP = httpx.Client(timeout=30)
HI = [{"role": "user", "content": "Hi"}]
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks out",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "Köln"}}\n</tool_call>'


def says(prompt: str) -> str:
    if "Weather" in prompt:
        return "Let me look.\n" + CALL
    if "Twice" in prompt:
        return f"{CALL}\n{CALL}"
    return prompt if "echo" in prompt else "Hello, wörld!"


@pytest.fixture(scope="module")
def native() -> Local:
    return tiny()


@pytest.fixture(scope="module")
def live(native: Local) -> Iterator[Live]:
    with serving({"fake": scripted(says), "tiny": native, "gated": Gated()}) as found:
        yield found


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def post(live: Live, path: str, **body: Any) -> Any:
    response = HTTP.post(live.url + path, json=body, timeout=30)
    assert response.status_code == 200, response.text
    return response.json()


# Chat


def test_an_answer(client: Any) -> None:
    found = client.chat.completions.create(model="fake", messages=HI)
    assert found.object == "chat.completion"
    assert found.model == "fake"
    (choice,) = found.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello, wörld!", "stop")
    prompt = "user: Hi\nassistant: "
    assert found.usage.prompt_tokens == 1 + len(prompt)
    assert found.usage.completion_tokens == len("Hello, wörld!".encode()) + 1
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_a_stream_says_the_same(client: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            model="fake", messages=HI, stream=True, n=3, stream_options={"include_usage": True}
        )
    )
    *others, last = chunks
    assert last.choices == []
    assert last.usage.completion_tokens == 3 * 15
    assert all(chunk.usage is None for chunk in others)
    for index in range(3):
        mine = [chunk.choices[0] for chunk in others if chunk.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in mine) == "Hello, wörld!"
        assert [choice.delta.role for choice in mine] == ["assistant"] + [None] * (len(mine) - 1)
        assert [choice.finish_reason for choice in mine] == [None] * (len(mine) - 1) + ["stop"]


def test_a_stream_on_the_wire(live: Live) -> None:
    body = {"messages": HI, "stream": True, "stream_options": {"continuous_usage_stats": True}}
    with HTTP.stream("POST", f"{live.url}/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["x-request-id"]
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 15
    assert {(chunk["id"], chunk["object"]) for chunk in chunks} == {(chunks[0]["id"], "chat.completion.chunk")}


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.5, "seed": 1},
    {"temperature": 0.8, "top_p": 0.5, "seed": 2},
    {"seed": 3, "extra_body": {"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.3}},
    {"seed": 4, "presence_penalty": 1.5, "frequency_penalty": 1.0},
    {"seed": 5, "logit_bias": {"65": 100, "66": 99}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options))
def test_options_mean_what_they_mean_elsewhere(client: Any, native: Local, options: dict[str, Any]) -> None:
    found = client.chat.completions.create(model="tiny", messages=HI, max_completion_tokens=24, **options)
    flat = {**options, **options.get("extra_body", {})}
    flat.pop("extra_body", None)
    if "logit_bias" in flat:
        flat["logit_bias"] = {int(token): bias for token, bias in flat["logit_bias"].items()}
    wanted = native.generate(HI, max_tokens=24, **flat)
    assert found.choices[0].message.content == wanted.text
    assert found.choices[0].finish_reason == wanted.finish_reason
    assert found.usage.completion_tokens == len(wanted.tokens)


def test_each_of_n_has_a_seed_of_its_own(client: Any, native: Local) -> None:
    found = client.chat.completions.create(model="tiny", messages=HI, max_tokens=12, n=3, seed=7)
    wanted = [native.generate(HI, max_tokens=12, seed=7 + i).text for i in range(3)]
    assert [choice.message.content for choice in found.choices] == wanted
    assert len(set(wanted)) == 3


@pytest.mark.parametrize(
    ("stop", "wanted"), [("wör", "Hello, "), (["x", "o", "!"], "Hell"), (["ld!!", "!"], "Hello, wörld")]
)
def test_stop(client: Any, stop: Any, wanted: str) -> None:
    found = client.chat.completions.create(model="fake", messages=HI, stop=stop)
    assert found.choices[0].message.content == wanted
    parts = client.chat.completions.create(model="fake", messages=HI, stop=stop, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == wanted


def test_a_limit_is_told_as_such(client: Any) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        found = client.chat.completions.create(model="fake", messages=HI, **{name: 5})
        assert (found.choices[0].message.content, found.choices[0].finish_reason) == ("Hello", "length")


def test_logprobs(client: Any, native: Local) -> None:
    options = {"max_tokens": 10, "seed": 0}
    found = client.chat.completions.create(model="tiny", messages=HI, logprobs=True, top_logprobs=3, **options)
    wanted = native.generate(HI, logprobs=3, **options)
    listed = found.choices[0].logprobs.content
    assert [entry.id for entry in listed] == wanted.tokens
    assert wanted.logprobs is not None
    assert wanted.top_logprobs is not None
    for entry, token, logprob, top in zip(listed, wanted.tokens, wanted.logprobs, wanted.top_logprobs, strict=True):
        assert native.tokenizer is not None
        assert bytes(entry.bytes) == native.tokenizer.piece(token)
        assert math.isclose(entry.logprob, logprob, rel_tol=1e-4, abs_tol=1e-5)
        assert [one.id for one in entry.top_logprobs] == [one for one, _ in top]
    parts = client.chat.completions.create(
        model="tiny", messages=HI, logprobs=True, top_logprobs=3, stream=True, **options
    )
    streamed = [entry for part in parts if part.choices[0].logprobs for entry in part.choices[0].logprobs.content]
    assert streamed == listed


def test_an_impossible_token_has_a_logprob_that_json_can_write(client: Any) -> None:
    found = client.chat.completions.create(model="fake", messages=HI, logprobs=True, top_logprobs=0, max_tokens=2)
    assert [entry.logprob for entry in found.choices[0].logprobs.content] == [0, 0]


def test_end_tokens_can_be_ignored(client: Any) -> None:
    found = client.chat.completions.create(model="fake", messages=HI, max_tokens=40, extra_body={"ignore_eos": True})
    assert found.usage.completion_tokens == 40
    assert found.choices[0].finish_reason == "length"


def test_an_answer_is_continued(live: Live, native: Local) -> None:
    talk = [*HI, {"role": "assistant", "content": "abc"}]
    more = {"continue_final_message": True, "add_generation_prompt": False, "max_tokens": 8, "temperature": 0}
    found = post(live, "/v1/chat/completions", model="tiny", messages=talk, **more)
    wanted = native.generate("user: Hi\nassistant: abc", max_tokens=8, temperature=0)
    assert found["choices"][0]["message"]["content"] == wanted.text


def test_template_options(live: Live) -> None:
    found = post(live, "/apply-template", model="tiny", messages=HI, chat_template_kwargs={"shout": True})
    assert found["prompt"] == "<s>user: Hi\nassistant: !"


def test_a_prompt_is_cut_where_that_is_asked_for(live: Live) -> None:
    talk = [{"role": "user", "content": "echo " + "x" * 5000}]
    found = post(live, "/v1/chat/completions", model="fake", messages=talk, truncate_prompt_tokens=40, max_tokens=50)
    assert found["usage"]["prompt_tokens"] == 40
    assert found["usage"]["truncated_tokens"] == 1 + len(f"user: {talk[0]['content']}\nassistant: ") - 40
    whole = post(live, "/v1/chat/completions", model="fake", messages=talk, truncate_prompt_tokens=-1, max_tokens=50)
    assert whole["usage"]["prompt_tokens"] == 4096 - 50
    short = post(live, "/v1/chat/completions", model="fake", messages=HI, truncate_prompt_tokens=40)
    assert "truncated_tokens" not in short["usage"]


# Tools and formats


def test_tools(client: Any) -> None:
    talk = [{"role": "user", "content": "Weather?"}]
    found = client.chat.completions.create(model="fake", messages=talk, tools=[LOOK])
    (choice,) = found.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    (call,) = choice.message.tool_calls
    assert call.function.name == "look"
    assert json.loads(call.function.arguments) == {"city": "Köln"}

    parts = [
        part.choices[0]
        for part in client.chat.completions.create(model="fake", messages=talk, tools=[LOOK], stream=True)
    ]
    calls = [call for part in parts for call in part.delta.tool_calls or ()]
    assert [call.function.name for call in calls] == ["look"] + [None] * (len(calls) - 1)
    assert [call.id is None for call in calls] == [False] + [True] * (len(calls) - 1)
    assert json.loads("".join(call.function.arguments for call in calls)) == {"city": "Köln"}
    assert "".join(part.delta.content or "" for part in parts) == "Let me look."
    assert parts[-1].finish_reason == "tool_calls"


def test_one_call_at_most(client: Any) -> None:
    pytest.importorskip("llguidance")
    talk = [{"role": "user", "content": "Twice"}]
    for more, count in (({}, 2), ({"parallel_tool_calls": False}, 1)):
        (choice,) = client.chat.completions.create(model="fake", messages=talk, tools=[LOOK], **more).choices
        assert [call.function.name for call in choice.message.tool_calls] == ["look"] * count
        assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize("most", [8, 15, 25, 35, 40])
def test_a_call_that_is_cut(client: Any, most: int) -> None:
    options = {"model": "fake", "messages": [{"role": "user", "content": "Weather?"}], "tools": [LOOK]}
    (choice,) = client.chat.completions.create(**options, max_tokens=most).choices
    assert choice.finish_reason == "length"
    assert (choice.message.content or "") == "Let me look."[:most]
    parts = client.chat.completions.create(**options, max_tokens=most, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == (choice.message.content or "")


def test_a_call_and_its_result_go_back_in(client: Any) -> None:
    talk: list[Any] = [{"role": "user", "content": "echo"}]
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Rome"}'}}
    talk += [{"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": None}]
    talk += [{"role": "tool", "tool_call_id": "c1", "content": "22 degrees"}]
    found = client.chat.completions.create(model="fake", messages=talk).choices[0].message.content
    assert "Rome" in found
    assert "22 degrees" in found


def test_tools_that_must_not_be_called_are_not(client: Any) -> None:
    talk = [{"role": "user", "content": "Weather?"}]
    found = client.chat.completions.create(model="fake", messages=talk, tools=[LOOK], tool_choice="none")
    assert found.choices[0].message.tool_calls is None
    assert found.choices[0].finish_reason == "stop"


NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
OTHER = {"type": "function", "function": {"name": "other", "parameters": NOTHING}}


def only(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}
    return {"tools": [OTHER, LOOK], "tool_choice": choice}


def test_only_some_tools_may_be_called(client: Any, live: Live) -> None:
    pytest.importorskip("llguidance")
    talk = [{"role": "user", "content": "Weather?"}]
    found = client.chat.completions.create(model="fake", messages=talk, **only("auto", "look")).choices[0]
    assert [call.function.name for call in found.message.tool_calls] == ["look"]
    found = client.chat.completions.create(model="fake", messages=talk, **only("auto", "other")).choices[0]
    assert found.message.tool_calls is None and found.finish_reason == "stop"
    must = only("required", "other") | {"parallel_tool_calls": False, "max_tokens": 100}
    made = client.chat.completions.create(model="tiny", messages=HI, **must).choices[0].message
    assert [call.function.name for call in made.tool_calls] == ["other"]
    told = post(live, "/apply-template", model="tiny", messages=talk, **only("auto", "look"))["prompt"]
    assert '"look"' in told and '"other"' not in told


@pytest.mark.parametrize(
    ("choice", "param", "said"),
    [
        (only("auto", "look", "third"), "tool_choice", "'third' is none"),
        (only("auto"), "tool_choice.allowed_tools.tools", "at least 1"),
        (only("none", "look"), "tool_choice.allowed_tools.mode", "not 'none'"),
        (only("required", "look") | {"tools": None}, "tool_choice", "no tools"),
        ({"tools": [LOOK], "tool_choice": {"type": "some"}}, "tool_choice", "not 'some'"),
    ],
)
def test_a_wrong_choice_is_refused(live: Live, choice: dict[str, Any], param: str, said: str) -> None:
    found = HTTP.post(f"{live.url}/v1/chat/completions", json={"model": "fake", "messages": HI, **choice})
    error = found.json()["error"]
    assert found.status_code == 400 and error["param"] == param and said in error["message"]


FORMATS: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "regex", "regex": "(ab|cd){2}"}}, "(ab|cd){2}"),
    ({"response_format": {"type": "grammar", "grammar": 'start: "yes" | "no"'}}, "yes|no"),
    ({"grammar": 'root ::= "left" | "right"'}, "left|right"),
    ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
    ({"structured_outputs": {"regex": "[0-9]{3}"}}, "[0-9]{3}"),
    ({"json_schema": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
                      "additionalProperties": False}}, r'\{\s*"a"\s*:\s*[12]\s*\}'),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "b", "schema": {"type": "boolean"}}}},
     "true|false"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "pattern"), FORMATS, ids=[pattern for _, pattern in FORMATS])
def test_formats(live: Live, body: dict[str, Any], pattern: str) -> None:
    pytest.importorskip("llguidance")
    found = post(live, "/v1/chat/completions", model="tiny", messages=HI, n=3, max_tokens=60, **body)
    texts = [choice["message"]["content"] for choice in found["choices"]]
    assert all(re.fullmatch(pattern, text) for text in texts), texts
    assert {choice["finish_reason"] for choice in found["choices"]} == {"stop"}


def test_a_tool_must_be_called_where_that_is_asked_for(client: Any) -> None:
    pytest.importorskip("llguidance")
    choice = {"type": "function", "function": {"name": "look"}}
    tool = json.loads(json.dumps(LOOK))
    tool["function"]["parameters"] |= {"properties": {"city": {"enum": ["Rome"]}}, "additionalProperties": False}
    found = client.chat.completions.create(
        model="tiny", messages=HI, tools=[tool], tool_choice=choice, parallel_tool_calls=False, max_tokens=100
    )
    (call,) = found.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Rome"}


def test_langchain(live: Live, native: Local) -> None:
    langchain = pytest.importorskip("langchain_openai")
    more = {"base_url": f"{live.url}/v1", "api_key": "none", "max_retries": 0}
    chat = langchain.ChatOpenAI(model="fake", **more)
    assert chat.invoke("Hi").content == "".join(part.content for part in chat.stream("Hi")) == "Hello, wörld!"
    (call,) = chat.bind_tools([LOOK]).invoke("Weather?").tool_calls
    assert (call["name"], call["args"]) == ("look", {"city": "Köln"})
    tiny = langchain.ChatOpenAI(model="tiny", temperature=0, max_tokens=12, logprobs=True, **more)
    found, wanted = tiny.invoke("Hi"), native.generate(HI, temperature=0, max_tokens=12)
    assert found.content == wanted.text and found.usage_metadata["output_tokens"] == len(wanted.tokens)
    assert len(found.response_metadata["logprobs"]["content"]) == len(wanted.tokens)
    vectors = langchain.OpenAIEmbeddings(model="tiny", check_embedding_ctx_length=False, **more)
    assert len(vectors.embed_documents(["ab", "cd"])[1]) == 64


# Completions


def test_completions_of_texts_and_ids(client: Any, native: Local) -> None:
    options = {"max_tokens": 8, "temperature": 0}
    texts = ["ab", "cde"]
    wanted = [native.generate(text, **options).text for text in texts]
    ids = [native.tokenize(text) for text in texts]
    for prompt in (texts, ids):
        found = client.completions.create(model="tiny", prompt=prompt, **options)
        assert [choice.text for choice in found.choices] == wanted
        alone = client.completions.create(model="tiny", prompt=prompt[0], **options)
        assert alone.choices[0].text == wanted[0]
    assert found.usage.prompt_tokens == sum(map(len, ids))


def test_completions_have_sixteen_tokens_unless_told(client: Any) -> None:
    found = client.completions.create(model="tiny", prompt="x", logit_bias={"257": -100})
    assert found.usage.completion_tokens == 16


def test_completions_of_several_prompts_are_numbered_through(client: Any) -> None:
    found = client.completions.create(model="fake", prompt=["echo a", "echo b"], n=2, echo=True)
    assert [choice.text for choice in found.choices] == ["echo aecho a"] * 2 + ["echo becho b"] * 2
    parts = list(client.completions.create(model="fake", prompt=["echo a", "echo b"], n=2, echo=True, stream=True))
    joined = ["".join(part.choices[0].text for part in parts if part.choices[0].index == i) for i in range(4)]
    assert joined == [choice.text for choice in found.choices]


def test_old_logprobs(client: Any, native: Local) -> None:
    found = client.completions.create(model="tiny", prompt="abc", max_tokens=6, logprobs=2, seed=0)
    wanted = native.generate("abc", max_tokens=6, logprobs=2, seed=0)
    lists = found.choices[0].logprobs
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset) == 6
    assert lists.token_logprobs == pytest.approx(wanted.logprobs, rel=1e-5)
    assert lists.text_offset[0] == 0
    parts = client.completions.create(model="tiny", prompt="abc", max_tokens=6, logprobs=2, seed=0, stream=True)
    streamed = [part.choices[0].logprobs for part in parts if part.choices[0].logprobs]
    assert [offset for one in streamed for offset in one.text_offset] == lists.text_offset


@pytest.mark.parametrize("more", [0, 4])
def test_a_prompt_is_scored(client: Any, native: Local, more: int) -> None:
    found = client.completions.create(model="tiny", prompt="abc", max_tokens=more, echo=True, logprobs=0, seed=0)
    (choice,) = found.choices
    ids = native.tokenize("abc")
    wanted = native.score(ids[:1], ids[1:])
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1 : len(ids)] == pytest.approx(wanted.token_logprobs, rel=1e-4)
    assert len(choice.logprobs.tokens) == len(ids) + more
    assert choice.text.startswith("abc")
    assert found.usage.completion_tokens == more


def test_a_prompt_is_scored_with_alternatives(client: Any, native: Local) -> None:
    options = {"model": "tiny", "prompt": "abc", "max_tokens": 2, "temperature": 0, "logprobs": 3, "echo": True}
    lists = client.completions.create(**options).choices[0].logprobs
    ids = native.tokenize("abc")
    assert native.tokenizer is not None
    every = log_softmax(native.logits(ids[:-1]))
    assert lists.tokens[0] == "<s>" and lists.top_logprobs[0] is None and lists.token_ids[: len(ids)] == ids
    assert lists.text_offset[:5] == [0, 0, 1, 2, 3], "<s> is not in the text"
    for i, (row, top, logprob) in enumerate(
        zip(every, lists.top_logprobs[1 : len(ids)], lists.token_logprobs[1 : len(ids)], strict=True), 1
    ):
        assert top[lists.tokens[i]] == logprob
        likeliest = {native.tokenizer.piece(one).decode("utf-8", "replace") for one in top_k(row, 3).tolist()}
        assert likeliest <= {*top} and max(top.values()) == pytest.approx(row.max(), rel=1e-4)
    parts = client.completions.create(**options, stream=True)
    streamed = [part.choices[0].logprobs for part in parts if part.choices[0].logprobs]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset", "token_ids"):
        assert [each for one in streamed for each in getattr(one, name)] == getattr(lists, name)


def test_the_evaluation_harness_is_told_what_it_asks(live: Live, native: Local) -> None:
    """As lm-evaluation-harness asks (models/openai_completions.py): ids, one token more, which it leaves out again."""
    pairs = [("abc", "de"), ("a", "bcdef"), ("xyz", "z")]
    split = [native.split(*pair) for pair in pairs]
    body = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    found = post(live, "/v1/completions", model="tiny", prompt=[ids for ids, _ in split], **body)
    for pair, (_, start), choice in zip(pairs, split, found["choices"], strict=True):
        lists, wanted = choice["logprobs"], native.score(*pair)
        logprobs, tops = lists["token_logprobs"][start:-1], lists["top_logprobs"][start:-1]
        assert sum(logprobs) == pytest.approx(wanted.logprob, rel=1e-4)
        assert all(own == max(top.values()) for own, top in zip(logprobs, tops, strict=True)) == wanted.is_greedy
    best = native.generate("abc", max_tokens=3, temperature=0, logit_bias=dict.fromkeys(range(256, 260), -100)).tokens
    lists = post(live, "/v1/completions", model="tiny", prompt=[*native.tokenize("abc"), *best], **body)["choices"][0]
    is_best = [own == max(top.values()) for own, top in zip(*_after(lists["logprobs"], 4), strict=True)]
    assert is_best == [native.score(native.tokenize("abc") + best[:i], best[i : i + 1]).is_greedy for i in range(3)]
    assert any(is_best)


def _after(lists: dict[str, Any], start: int) -> tuple[list[float], list[dict[str, float]]]:
    return lists["token_logprobs"][start:-1], lists["top_logprobs"][start:-1]


def test_control_tokens_are_marked(client: Any) -> None:
    found = client.chat.completions.create(model="fake", messages=HI, logprobs=True, top_logprobs=1)
    listed = found.choices[0].logprobs.content
    assert [getattr(one, "special", False) for one in listed] == [False] * (len(listed) - 1) + [True]
    assert listed[-1].top_logprobs[0].special


# Embeddings, models


def test_embeddings(client: Any, live: Live) -> None:
    found = client.embeddings.create(model="tiny", input=["ab", "cd", "ab"], encoding_format="float")
    vectors = [one.embedding for one in found.data]
    assert [len(vector) for vector in vectors] == [64] * 3
    assert all(math.isclose(sum(x * x for x in vector), 1, rel_tol=1e-5) for vector in vectors)
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-6)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)
    packed = client.embeddings.create(model="tiny", input="ab", encoding_format="base64")  # the client unpacks others
    default = client.embeddings.create(model="tiny", input="ab", dimensions=64)
    assert default.data[0].embedding == pytest.approx(vectors[0], abs=1e-6)
    assert isinstance(packed.data[0].embedding, str)
    last = post(live, "/v1/embeddings", model="tiny", input=[97, 98], pooling="last")
    assert last["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["fake", "tiny", "gated"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model 'none'"):
        client.models.retrieve("none")


# Leaving


def test_a_stream_that_is_left_frees_its_place(client: Any, live: Live) -> None:
    gated = live.models.slots.every[2]
    with client.chat.completions.create(model="gated", messages=HI, stream=True) as parts:
        assert next(iter(parts)).choices[0].delta.content.startswith("a")
    assert gated.root is not None
    gated.root.served.local.gate.set()  # one step may still run
    idle(live, "gated")


def test_who_hangs_up_before_the_answer_frees_its_place(live: Live) -> None:
    slot = live.models.slots.every[2]
    assert slot.root is not None
    gate = slot.root.served.local.gate
    gate.clear()
    host, port = live.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "gated", "messages": HI}).encode()
    with socket.create_connection((host, int(port))) as mine:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        mine.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
        while not slot.root.served.engine.stats().running:
            pass
    gate.set()
    idle(live, "gated")
    assert slot.root.served.engine.stats().generated_tokens < 4000


# The bridge


def test_what_other_threads_put_arrives_in_order_with_few_wakes() -> None:
    async def read() -> tuple[list[int], int]:
        inbox: Inbox[int] = Inbox()
        thread = threading.Thread(target=lambda: [inbox.put(i) for i in range(20_000)])
        thread.start()
        found: list[int] = []
        takes = 0
        while len(found) < 20_000:
            found += await inbox.take()
            takes += 1
        thread.join()
        return found, takes

    found, takes = asyncio.run(read())
    assert found == list(range(20_000))
    assert takes < 10_000


def test_a_closed_loop_hears_nothing() -> None:
    async def made() -> Inbox[int]:
        return Inbox()

    asyncio.run(made()).put(1)
