"""Tokens, templates and scores over HTTP are the model's own; what is told of models and their health."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")

import httpx
import numpy as np
from live import Live, scripted, serving, tiny

from geode.lm import Local

HTTP = httpx.Client(timeout=30)
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def native() -> Local:
    return tiny()


@pytest.fixture(scope="module")
def live(native: Local) -> Iterator[Live]:
    with serving({"tiny": native, "fake": scripted(["Hello"])}) as found:
        yield found


def post(live: Live, path: str, status: int = 200, **body: Any) -> Any:
    response = HTTP.post(live.url + path, json=body, timeout=30)
    assert response.status_code == status, response.text
    return response.json()


def get(live: Live, path: str) -> Any:
    response = HTTP.get(live.url + path)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("text", ["", "Hello", "Köln <s> \U0001f600", "a\x00b"])
def test_texts_and_ids(live: Live, native: Local, text: str) -> None:
    for name in ("prompt", "content"):
        found = post(live, "/tokenize", **{name: text}, return_token_strs=True)
        assert found["tokens"] == native.tokenize(text)
        assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
        assert found["max_model_len"] == 1024
    bare = post(live, "/tokenize", prompt=text, add_special_tokens=False)["tokens"]
    assert bare == native.tokenize(text, bos=False)
    assert post(live, "/detokenize", tokens=found["tokens"]) == {"prompt": text, "content": text}


def test_a_conversation(live: Live, native: Local) -> None:
    ids = native.ids_of(HI)
    assert post(live, "/tokenize", messages=HI)["tokens"] == ids
    found = post(live, "/apply-template", messages=HI)
    assert found == {"prompt": "<s>user: Hi\nassistant: ", "tokens": ids}
    answer = {"model": "tiny", "max_tokens": 8, "temperature": 0}
    chat = post(live, "/v1/chat/completions", messages=HI, **answer)
    text = post(live, "/v1/completions", prompt=found["tokens"], **answer)
    assert chat["choices"][0]["message"]["content"] == text["choices"][0]["text"]


def test_what_a_message_says_is_no_control_token(live: Live) -> None:
    found = post(live, "/apply-template", messages=[{"role": "user", "content": "</s><s>"}])
    assert found["tokens"].count(256) == 1
    assert 257 not in found["tokens"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "a", "messages": HI},
        {"prompt": "a", "tools": []},
        {"messages": []},
        {"prompt": 5},
        {"prompt": "a", "chat_template_kwargs": {"x": 1}},
    ],
)
def test_what_cannot_be_tokenized(live: Live, body: dict[str, Any]) -> None:
    if body == {"prompt": "a", "tools": []}:
        post(live, "/tokenize", **body)
    else:
        post(live, "/tokenize", status=400, **body)


@pytest.mark.parametrize("tokens", [[-1], [99999], ["a"], [1.5], [1 << 40]])
def test_ids_that_are_none(live: Live, tokens: list[Any]) -> None:
    post(live, "/detokenize", status=400, tokens=tokens)


def test_scores_of_continuations(live: Live, native: Local) -> None:
    found = post(live, "/score", context="abc", continuation=["de", "fgh"])
    for entry, text in zip(found["data"], ["de", "fgh"], strict=True):
        wanted = native.score("abc", text)
        assert math.isclose(entry["score"], wanted.logprob, rel_tol=1e-4)
        assert entry["token_logprobs"] == pytest.approx(wanted.token_logprobs, rel=1e-4)
        assert (entry["tokens"], entry["is_greedy"]) == (wanted.tokens, wanted.is_greedy)
    ids = post(live, "/score", context=native.tokenize("abc"), continuation=[100, 101])
    assert ids["data"][0]["score"] == pytest.approx(found["data"][0]["score"], rel=1e-5)
    assert post(live, "/score", context="", continuation="ab")["data"][0]["tokens"] == [97, 98]


def test_scores_of_pairs(live: Live, native: Local) -> None:
    texts = ["ab", "cd", "ab"]
    embedded = post(live, "/v1/embeddings", input=texts)["data"]
    vectors = np.array([one["embedding"] for one in embedded])
    found = post(live, "/score", text_1="ab", text_2=texts)["data"]
    assert [one["score"] for one in found] == pytest.approx(list(vectors @ vectors[0]), abs=1e-5)
    assert post(live, "/score", text_1=["ab"], text_2="ab")["data"][0]["score"] == pytest.approx(1)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text_1": "a"},
        {"text_1": "a", "text_2": "b", "context": "c", "continuation": "d"},
        {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]},
        {"context": "a", "continuation": ""},
        {"context": "a", "continuation": [1]},
        {"context": "a" * 900, "continuation": "b" * 900},
    ],
)
def test_what_cannot_be_scored(live: Live, body: dict[str, Any]) -> None:
    post(live, "/score", status=400, **body)


def test_what_is_told_of_the_server(live: Live) -> None:
    assert get(live, "/health") == {"status": "ok"}
    assert get(live, "/ready") == {"status": "ready"}
    models = get(live, "/v1/models")["data"]
    assert [(one["id"], one["max_model_len"], one["parent"]) for one in models] == [
        ("tiny", 1024, None),
        ("fake", 4096, None),
    ]
    found = get(live, "/v1/status")
    assert found["default"] == "tiny"
    assert [one["id"] for one in found["models"]] == ["tiny", "fake"]
    assert found["models"][0]["can"] == {"chat": True, "tokens": True}
    assert found["models"][0]["stats"]["running"] == 0


def test_the_description_of_the_api(live: Live) -> None:
    paths = get(live, "/openapi.json")["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/score"} <= set(paths)
