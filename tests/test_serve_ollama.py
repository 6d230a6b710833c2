"""Ollama's API, as its clients use it, against a live server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from live import WEATHER, Forecaster, Live, scripted, serving, tiny

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")

FUNCTION = {"type": "function", "function": WEATHER}
HI = [{"role": "user", "content": "Hi"}]
says = Forecaster()


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving({"fake": scripted(says), "tiny": tiny()}) as found:
        yield found


def post(live: Live, path: str, status: int = 200, **body: Any) -> Any:
    response = httpx.post(f"{live.url}/api/{path}", json=body, timeout=30)
    assert response.status_code == status, response.text
    return response.json()


def lines(live: Live, path: str, **body: Any) -> list[Any]:
    with httpx.stream("POST", f"{live.url}/api/{path}", json=body, timeout=30) as response:
        assert response.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in response.iter_lines()]


def test_a_chat_is_streamed_by_default(live: Live) -> None:
    found = lines(live, "chat", model="fake", messages=HI)
    assert "".join(line["message"]["content"] for line in found) == "Hello."
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
    last = found[-1]
    assert last["done_reason"] == "stop" and last["eval_count"] == len("Hello.") + 1
    assert last["prompt_eval_count"] > 0 and last["total_duration"] >= last["eval_duration"] >= 0
    assert {line["model"] for line in found} == {"fake"}


def test_a_whole_answer(live: Live) -> None:
    found = post(live, "chat", model="fake:latest", messages=HI, stream=False, options={"num_predict": 3})
    assert found["message"] == {"role": "assistant", "content": "Hel"}
    assert (found["done"], found["done_reason"], found["model"]) == (True, "length", "fake:latest")


def test_generate(live: Live) -> None:
    parts = lines(live, "generate", model="fake", prompt="Hi", system="Be kind.")
    assert "".join(line["response"] for line in parts) == "Hello."
    assert says.prompts[-1].endswith("system: Be kind.\nuser: Hi\nassistant: ")
    assert post(live, "generate", model="fake", prompt="Hi", raw=True, stream=False)["response"] == "Hello."
    assert says.prompts[-1].endswith("Hi") and "user:" not in says.prompts[-1]


def test_options_mean_what_they_say(live: Live) -> None:
    same = [
        post(live, "generate", model="tiny", prompt="Once", raw=True, stream=False, options=options)["response"]
        for options in ({"seed": 7, "num_predict": 12},) * 2
    ]
    assert same[0] == same[1]
    greedy = {"temperature": 0, "num_predict": 12, "repeat_penalty": 1.0, "num_ctx": 64, "top_k": 3, "min_p": 0}
    cold = post(live, "generate", model="tiny", prompt="Once", raw=True, stream=False, options=greedy)
    (served,) = [one for one in live.models.loaded() if one.name == "tiny"]
    assert cold["response"] == served.local.generate("Once", temperature=0, max_tokens=12).text
    stopped = post(live, "chat", model="fake", messages=HI, stream=False, options={"stop": ["l"]})
    assert stopped["message"]["content"] == "He"


def test_tools(live: Live) -> None:
    turns = [{"role": "user", "content": "What is the weather in Oslo?"}]
    found = post(live, "chat", model="fake", messages=turns, tools=[FUNCTION], stream=False)
    (call,) = found["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": {"city": "Oslo"}}
    streamed = lines(live, "chat", model="fake", messages=turns, tools=[FUNCTION])
    told = [line["message"]["tool_calls"] for line in streamed if "tool_calls" in line["message"]]
    assert [each["function"]["arguments"] for each in told[0]] == [{"city": "Oslo"}]
    result = {"role": "tool", "tool_name": "weather", "content": "Rain"}
    then = post(live, "chat", model="fake", messages=[*turns, found["message"], result], tools=[FUNCTION], stream=False)
    assert then["message"]["content"] == "It rains."


def test_json(live: Live) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for form in ("json", schema):
        found = post(live, "generate", model="fake", prompt="JSON", stream=False, format=form)
        assert json.loads(found["response"])["a"] == 1


def test_embeddings(live: Live) -> None:
    found = post(live, "embed", model="tiny", input=["One", "Two"])
    first, second = found["embeddings"]
    assert sum(x * x for x in first) == pytest.approx(1, abs=1e-4) and first != second
    assert found["prompt_eval_count"] > 0
    old = post(live, "embeddings", model="tiny", prompt="One")["embedding"]
    assert old == pytest.approx(first, abs=1e-5)
    (served,) = [one for one in live.models.loaded() if one.name == "tiny"]
    long = "x" * (served.context + 100)
    post(live, "embed", 400, model="tiny", input=long)
    cut = post(live, "embed", model="tiny", input=long, truncate=True)
    assert cut["truncated_tokens"] > 0 and len(cut["embeddings"]) == 1


def test_models_are_listed_and_shown(live: Live) -> None:
    listed = httpx.get(f"{live.url}/api/tags").json()["models"]
    assert [model["name"] for model in listed] == ["fake", "tiny"]
    assert all(len(model["digest"]) == 64 and model["details"]["parameter_size"] for model in listed)
    shown = post(live, "show", model="tiny")
    assert shown["model_info"]["general.parameter_count"] > 0 and "completion" in shown["capabilities"]
    assert shown["template"]
    assert "version" in httpx.get(f"{live.url}/api/version").json()
    post(live, "show", 404, model="none")
    post(live, "show", 400)


def test_a_model_stays_as_long_as_it_is_told() -> None:
    with serving({"fake": scripted(["Hello."])}) as live:
        assert [m["name"] for m in httpx.get(f"{live.url}/api/ps").json()["models"]] == ["fake"]
        found = post(live, "generate", model="fake", keep_alive=0, stream=False)
        assert found["done_reason"] == "unload"
        assert httpx.get(f"{live.url}/api/ps").json()["models"] == []
        assert post(live, "generate", model="fake", stream=False, keep_alive="5m")["done_reason"] == "load"
        assert len(httpx.get(f"{live.url}/api/ps").json()["models"]) == 1
        post(live, "chat", 400, model="fake", messages=HI, keep_alive="long")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("-1", None),
        (-1, None),
        (60, 60.0),
        ("0", 0.0),
        ("-1m", None),
    ],
)
def test_durations_are_gos(text: Any, seconds: float | None) -> None:
    from geode.serve.ollama_models import seconds_of

    assert seconds_of(text) == seconds


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("chat", {"messages": HI, "think": True}, "think"),
    ("chat", {"messages": [{"role": "user", "content": "x", "images": ["AAAA"]}]}, "images"),
    ("chat", {"messages": HI, "options": {"num_gpu": 1}}, "num_gpu"),
    ("chat", {"messages": HI, "options": {"num_ctx": 1_000_000}}, "num_ctx"),
    ("chat", {"messages": HI, "options": {"mirostat": 1}}, "mirostat"),
    ("chat", {"messages": HI, "options": {"temperature": -1}}, "temperature"),
    ("generate", {"prompt": "x", "suffix": "y"}, "suffix"),
    ("generate", {"prompt": "x", "context": [1]}, "context"),
    ("generate", {"prompt": "x", "raw": True, "system": "y"}, "system"),
    ("generate", {"prompt": "x" * 5000}, "4096"),
]


@pytest.mark.parametrize(("path", "body", "said"), BAD, ids=[said for _, _, said in BAD])
def test_what_cannot_be_done_is_refused_by_name(live: Live, path: str, body: dict[str, Any], said: str) -> None:
    assert said in post(live, path, 400, model="fake", **body)["error"]


def test_errors_have_ollamas_shape(live: Live) -> None:
    assert "none" in post(live, "chat", 404, model="none", messages=HI)["error"]
    assert isinstance(httpx.get(f"{live.url}/api/nothing").json()["error"], str)
