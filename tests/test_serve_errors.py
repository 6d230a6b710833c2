"""Requests that cannot be answered: OpenAI's errors, which name the field, and a server that goes on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

import httpx  # noqa: E402
from live import Gated, Live, idle, scripted, serving, tiny  # noqa: E402
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams  # noqa: E402
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams  # noqa: E402
from openai.types.embedding_create_params import EmbeddingCreateParams  # noqa: E402

from geode.generate import Options  # noqa: E402
from geode.lm import Fake, Local  # noqa: E402
from geode.serve import schema  # noqa: E402

HTTP = httpx.Client(timeout=30)
HI = [{"role": "user", "content": "Hi"}]
CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    bare = Local(Fake().executor)
    with serving({"fake": scripted(["Hello"]), "tiny": tiny(), "bare": bare}, body=100_000) as found:
        yield found


@pytest.fixture(autouse=True)
def _unharmed(live: Live) -> Iterator[None]:
    """Whatever was sent, the next request is answered."""
    yield
    found = HTTP.post(live.url + CHAT, json={"messages": HI})
    assert found.json()["choices"][0]["message"]["content"] == "Hello"


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith((".", "!"))
    assert response.headers["x-request-id"]
    return error


BODIES: list[tuple[str, str | None, bytes]] = [
    ("invalid_json", None, b"{"),
    ("invalid_json", None, b'{"messages": [,]}'),
    ("invalid_json", None, b"\xff\xfe"),
    ("invalid_json", None, b"[" * 90_000),
    ("invalid_json", None, b'{"seed": ' + b"9" * 9000 + b"}"),
    ("invalid_value", None, b"[]"),
    ("invalid_value", None, b'"text"'),
    ("missing_field", "messages", b"{}"),
]


@pytest.mark.parametrize(("code", "param", "body"), BODIES, ids=[str(body[:20]) for *_, body in BODIES])
def test_bodies_that_are_none(live: Live, code: str, param: str | None, body: bytes) -> None:
    error = refused(HTTP.post(live.url + CHAT, content=body, headers=JSON))
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")


FIELDS: list[tuple[str, str, dict[str, Any]]] = [
    (CHAT, "temprature", {"temprature": 1}),
    (CHAT, "temperature", {"temperature": "warm"}),
    (CHAT, "temperature", {"temperature": -1}),
    (CHAT, "top_p", {"top_p": 0}),
    (CHAT, "n", {"n": 0}),
    (CHAT, "n", {"n": 1_000_000}),
    (CHAT, "n", {"n": True}),
    (CHAT, "max_tokens", {"max_tokens": 0}),
    (CHAT, "max_tokens", {"max_tokens": 1.5}),
    (CHAT, "seed", {"seed": -1}),
    (CHAT, "stop.1", {"stop": ["a", 1]}),
    (CHAT, "logit_bias", {"logit_bias": {"9999": 1}}),
    (CHAT, "presence_penalty", {"presence_penalty": 3}),
    (CHAT, "top_logprobs", {"logprobs": True, "top_logprobs": 50}),
    (CHAT, "messages.0.role", {"messages": [{"role": "robot", "content": "x"}]}),
    (CHAT, "messages.0.content.0.type", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    (CHAT, "messages.0.mood", {"messages": [{"role": "user", "content": "x", "mood": "good"}]}),
    (CHAT, "messages", {"messages": "Hi"}),
    (CHAT, "tools.0.function.name", {"tools": [{"type": "function", "function": {}}]}),
    (CHAT, "tools.0.type", {"tools": [{"type": "web_search", "function": {"name": "a"}}]}),
    (CHAT, "response_format", {"response_format": {"type": "xml"}}),
    (CHAT, "stream_options.speed", {"stream": True, "stream_options": {"speed": 1}}),
    (CHAT, "store", {"store": True}),
    (CHAT, "service_tier", {"service_tier": "priority"}),
    (CHAT, "audio", {"audio": {"voice": "a"}}),
    (CHAT, "modalities.0", {"modalities": ["audio"]}),
    (CHAT, "functions", {"functions": []}),
    (CHAT, "prediction", {"prediction": {"type": "content", "content": "x"}}),
    (CHAT, "web_search_options", {"web_search_options": {}}),
    (CHAT, "verbosity", {"verbosity": "low"}),
    (CHAT, "reasoning_effort", {"reasoning_effort": "low"}),
    (CHAT, "thinking", {"chat_template_kwargs": {"thinking": True}}),
    (TEXT, "suffix", {"prompt": "x", "suffix": "y"}),
    (TEXT, "prompt", {"prompt": None}),
    (TEXT, "prompt.0", {"prompt": [1.5]}),
    (TEXT, "logprobs", {"prompt": "x", "logprobs": 21}),
    (EMBED, "dimensions", {"input": "x", "dimensions": 8, "model": "tiny"}),
    (EMBED, "encoding_format", {"input": "x", "encoding_format": "int8", "model": "tiny"}),
    (EMBED, "input", {"input": [], "model": "bare"}),
    (CHAT, "messages", {"chat_template_kwargs": {"messages": []}}),
]


@pytest.mark.parametrize(
    ("path", "param", "body"), FIELDS, ids=[f"{param}-{i}" for i, (_, param, _) in enumerate(FIELDS)]
)
def test_the_field_is_named(live: Live, path: str, param: str, body: dict[str, Any]) -> None:
    whole = {"messages": HI, **body} if path == CHAT else body
    error = refused(HTTP.post(live.url + path, json=whole))
    assert error["param"] == param
    assert param.rsplit(".", maxsplit=1)[-1] in error["message"] or param in error["message"]


OTHER = {"type": "function", "function": {"name": "b"}}
TOGETHER: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
    (CHAT, {"top_logprobs": 2}, "logprobs"),
    (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
    (CHAT, {"tool_choice": "required"}, "tools"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "a"}}] * 2}, "same name"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice": OTHER}, "one of the tools"),
    ("/tokenize", {"messages": HI, "tools": [{"type": "function", "function": {"name": "a"}}] * 2}, "differently"),
    (CHAT, {"repetition_penalty": 1.1, "repeat_penalty": 1.2}, "repeat_penalty"),
    (CHAT, {"grammar": 'start: "a"', "json_schema": {}}, "json_schema and grammar"),
    (CHAT, {"structured_outputs": {"regex": "a", "json": {}}}, "exactly one"),
    (CHAT, {"continue_final_message": True}, "assistant"),
    (CHAT, {"add_generation_prompt": False}, "continue_final_message"),
    (TEXT, {"prompt": "x", "best_of": 3}, "best_of"),
    (TEXT, {"prompt": "x", "max_tokens": 0}, "echo"),
    (TEXT, {"prompt": []}, "prompt"),
    (TEXT, {"prompt": [7777]}, "0 to 257"),
    (TEXT, {"prompt": "x", "model": "bare"}, "tokenizer"),
    (CHAT, {"model": "bare"}, "tokenizer"),
    (CHAT, {"model": "tiny", "response_format": {"type": "regex", "regex": "("}}, "cannot be enforced"),
]


@pytest.mark.parametrize(("path", "body", "words"), TOGETHER, ids=[words for *_, words in TOGETHER])
def test_what_does_not_go_together(live: Live, path: str, body: dict[str, Any], words: str) -> None:
    whole = {"messages": HI, **body} if path == CHAT else body
    assert words in refused(HTTP.post(live.url + path, json=whole))["message"]


NEUTRAL: dict[str, Any] = {
    "user": "me", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "modalities": ["text"],
    "prompt_cache_key": "k", "safety_identifier": "s", "prompt_cache_retention": "in-memory", "verbosity": "medium",
    "audio": None, "functions": None, "function_call": None, "prediction": None, "web_search_options": None,
    "reasoning_effort": None, "parallel_tool_calls": True, "stop": None, "logit_bias": None, "tools": None,
}  # fmt: skip


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_asks_for_nothing_is_taken(live: Live, name: str) -> None:
    found = HTTP.post(live.url + CHAT, json={"messages": HI, name: NEUTRAL[name]})
    assert found.status_code == 200, found.text


@pytest.mark.parametrize(
    ("params", "body"),
    [(ChatParams, schema.ChatBody), (TextParams, schema.CompletionBody), (EmbeddingCreateParams, schema.EmbeddingBody)],
)
def test_every_field_of_openai_is_known_or_told(live: Live, params: Any, body: Any) -> None:
    """A field that OpenAI adds later is refused by its name, as any other."""
    unknown = set(params.__annotations__) - set(body.model_fields) - {"stream"}
    assert unknown <= {"prompt_cache_options"}
    path = {schema.ChatBody: CHAT, schema.CompletionBody: TEXT}.get(body, EMBED)
    for name in unknown:
        sent = {"messages": HI, "prompt": "x", "input": "x"}
        needed = {key: sent[key] for key in sent if key in body.model_fields}
        assert refused(HTTP.post(live.url + path, json={**needed, name: {}}))["param"] == name


def test_every_option_can_be_sent() -> None:
    sent = {field.name for field in fields(Options)} - {"logprobs"}
    assert sent - set(schema.ChatBody.model_fields) == set()


# Sizes, addresses, types


def test_a_prompt_that_is_too_long_is_told_with_both_numbers(live: Live) -> None:
    for body in ({"max_tokens": 5}, {}):
        error = refused(
            HTTP.post(live.url + CHAT, json={"messages": [{"role": "user", "content": "x" * 5000}], **body})
        )
        assert error["code"] == "context_length_exceeded"
        assert "5019" in error["message"]
        assert "4096" in error["message"]
    error = refused(HTTP.post(live.url + CHAT, json={"messages": HI, "max_tokens": 5000}))
    assert error["code"] == "context_length_exceeded"
    error = refused(HTTP.post(live.url + EMBED, json={"model": "tiny", "input": "x" * 2000}))
    assert "2001" in error["message"]
    assert "1024" in error["message"]


def test_a_body_that_is_too_large(live: Live) -> None:
    body = {"messages": [{"role": "user", "content": "x" * 200_000}]}
    assert refused(HTTP.post(live.url + CHAT, json=body), 413)["code"] == "request_too_large"


def test_a_body_must_say_that_it_is_json(live: Live) -> None:
    """Else a page of any origin could send it: a browser asks first only for other types than a form's."""
    body = json.dumps({"messages": HI}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        refused(HTTP.post(live.url + CHAT, content=body, headers={"content-type": kind}), 415)


def test_unknown_models_paths_and_methods(live: Live) -> None:
    assert refused(HTTP.post(live.url + CHAT, json={"messages": HI, "model": "no"}), 404)["code"] == "model_not_found"
    refused(HTTP.get(f"{live.url}/v1/nothing"), 404)
    refused(HTTP.get(live.url + CHAT), 405)


def test_what_is_nested_too_deeply(live: Live) -> None:
    deep: Any = {}
    for _ in range(400):
        deep = {"properties": {"a": deep}}
    body = {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": deep}}}
    refused(HTTP.post(live.url + CHAT, json=body))
    text = b'{"a":' * 400 + b"1" + b"}" * 400
    whole = b'{"messages":[{"role":"user","content":"x"}],"chat_template_kwargs":' + text + b"}"
    refused(HTTP.post(live.url + CHAT, content=whole, headers=JSON))


def test_adapters_that_cannot_be(live: Live) -> None:
    path = f"{live.url}/v1/load_lora_adapter"
    refused(HTTP.post(path, json={"lora_name": "a", "lora_path": "no/such/place"}), 404)
    refused(HTTP.post(path, json={"lora_name": "tiny", "lora_path": "x"}))
    refused(HTTP.post(path, json={"lora_name": "a"}))
    refused(HTTP.post(f"{live.url}/v1/unload_lora_adapter", json={"lora_name": "zzz"}), 404)
    refused(HTTP.post(f"{live.url}/v1/unload_lora_adapter", json={"lora_name": "tiny"}))


# Errors of the engine


class Broken(Fake):
    """Its third token cannot be computed."""

    def __init__(self) -> None:
        super().__init__(["abcdef"])
        inner, self.steps = self.executor.step, 0

        def step(*given: Any) -> Any:
            self.steps += 1
            if self.steps % 3 == 0:
                raise ZeroDivisionError
            return inner(*given)

        self.executor.step = step  # type: ignore[method-assign]


def test_an_error_in_the_middle() -> None:
    with serving({"broken": Broken()}) as live:
        error = refused(HTTP.post(live.url + CHAT, json={"messages": HI}), 500)
        assert error["type"] == "server_error"
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0) as client:
            parts = client.chat.completions.create(model="broken", messages=HI, stream=True)
            with pytest.raises(openai.APIError):
                list(parts)
        idle(live, "broken")


def test_an_answer_that_takes_too_long() -> None:
    slow = Gated()
    with serving({"slow": slow}, timeout=0.2) as live:
        assert refused(HTTP.post(live.url + CHAT, json={"messages": HI}), 504)["code"] == "timeout"
        with HTTP.stream("POST", live.url + CHAT, json={"messages": HI, "stream": True}) as response:
            *_, last = [line for line in response.iter_lines() if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        slow.gate.set()
        idle(live, "slow")


def test_a_full_queue() -> None:
    slow = Gated()
    with serving({"slow": slow}, running=1, waiting=1) as live:
        body = {"messages": HI, "max_tokens": 5}
        found: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: found.append(HTTP.post(live.url + CHAT, json=body, timeout=30)))
            for _ in range(2)
        ]
        (served,) = live.models.loaded()
        for i, thread in enumerate(threads):
            thread.start()
            while served.engine.stats().running + served.engine.stats().waiting <= i:
                time.sleep(0.001)
        response = HTTP.post(live.url + CHAT, json=body)
        assert refused(response, 429)["code"] == "rate_limit_exceeded"
        assert int(response.headers["retry-after"]) >= 1
        slow.gate.set()
        for thread in threads:
            thread.join()
        assert [each.status_code for each in found] == [200, 200]
        idle(live, "slow")
