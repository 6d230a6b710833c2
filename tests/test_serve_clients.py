"""What clients of others send without being told to, as they send it: the clients themselves are not needed here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")

from live import Live, scripted, serving, tiny

from geode.serve.keys import key

HI = [{"role": "user", "content": "Hi"}]
HTTP = httpx.Client(timeout=30)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving({"fake": scripted(lambda prompt: "Hello!"), "tiny": tiny()}) as found:
        yield found


def sent(live: Live, path: str, status: int = 200, **body: Any) -> Any:
    response = HTTP.post(live.url + path, json=body)
    assert response.status_code == status, response.text
    return response.json()


def test_null_asks_for_nothing_in_any_field(live: Live) -> None:
    nulls = dict.fromkeys(("guided_json", "ignore_eos", "continue_final_message", "stream", "reasoning_content"))
    sent(live, "/v1/chat/completions", messages=HI, **nulls)
    options = {"mirostat_eta": None, "num_gpu": None, "temperature": None}  # LangChain's embeddings for Ollama
    sent(live, "/api/embed", model="tiny", input="a", options=options, truncate=None)
    sent(live, "/v1/messages", model="fake", max_tokens=8, messages=HI, container=None, output_config={"effort": None})
    missing = sent(live, "/v1/messages", 400, model="fake", max_tokens=8, messages=None)
    assert "messages" in missing["error"]["message"]
    assert sent(live, "/v1/chat/completions", 400, messages=HI, guided_json={})["error"]["param"] == "guided_json"


def test_a_choice_of_auto_needs_no_tools(live: Live) -> None:
    sent(live, "/v1/chat/completions", messages=HI, tools=[], tool_choice="auto")
    sent(live, "/v1/responses", input="Hi", tools=[], tool_choice="auto")
    sent(live, "/v1/messages", model="fake", max_tokens=8, messages=HI, tool_choice={"type": "auto"})
    refused = sent(live, "/v1/chat/completions", 400, messages=HI, tool_choice="required")
    assert "tool_choice" in refused["error"]["message"]


def test_fields_of_other_servers_that_ask_for_what_is_done_anyway(live: Live) -> None:
    body: dict[str, Any] = {"min_tokens": 0, "length_penalty": 1.0, "skip_special_tokens": True, "cache_prompt": True}
    body |= {"use_beam_search": False, "include_stop_str_in_output": False, "stop_token_ids": []}
    sent(live, "/v1/chat/completions", messages=HI, spaces_between_special_tokens=True, **body)
    sent(live, "/v1/completions", prompt="Hi", **body)
    for name, value in {"min_tokens": 3, "cache_prompt": False, "stop_token_ids": [1]}.items():
        found = sent(live, "/v1/chat/completions", 400, messages=HI, **{name: value})
        assert found["error"]["param"] == name


def test_no_reasoning_is_what_is_done(live: Live) -> None:
    sent(live, "/v1/chat/completions", messages=HI, reasoning_effort="none")
    found = sent(
        live, "/v1/responses", input="Hi", reasoning={"effort": "none"}, include=["reasoning.encrypted_content"]
    )
    assert found["output"][0]["content"][0]["logprobs"] == []
    sent(live, "/v1/chat/completions", 400, messages=HI, reasoning_effort="high")


def test_an_answer_as_litellm_sends_it_back(live: Live) -> None:
    said = {"role": "assistant", "content": "Hello!", "tool_calls": None, "function_call": None}
    said["provider_specific_fields"] = {"refusal": None}
    sent(live, "/v1/chat/completions", messages=[*HI, said, *HI])
    said["provider_specific_fields"] = {"thinking_blocks": ["Hm."]}
    found = sent(live, "/v1/chat/completions", 400, messages=[*HI, said, *HI])
    assert found["error"]["param"].startswith("messages.1.provider_specific_fields")


def test_ollama_takes_json_of_any_type_but_not_from_pages(live: Live) -> None:
    body = json.dumps({"model": "fake", "prompt": "Hi", "stream": False}).encode()
    form = {"content-type": "application/x-www-form-urlencoded"}  # as `curl -d` has it
    for headers in ({}, form):
        found = HTTP.post(f"{live.url}/api/generate", content=body, headers=headers)
        assert (found.status_code, found.json()["response"]) == (200, "Hello!")
    shown = HTTP.post(f"{live.url}/api/show", content=b'{"model": "tiny"}', headers=form)
    assert "completion" in shown.json()["capabilities"]
    own = HTTP.post(f"{live.url}/api/generate", content=body, headers=form | {"origin": live.url})
    assert own.status_code == 415
    other = HTTP.post(f"{live.url}/api/generate", content=body, headers=form | {"origin": "http://a.example"})
    assert other.status_code == 403
    assert HTTP.post(f"{live.url}/v1/completions", content=b'{"prompt": "Hi"}', headers=form).status_code == 415


@pytest.mark.parametrize("stream", [False, True])
def test_ollama_tells_probabilities(live: Live, stream: bool) -> None:
    body = {"model": "tiny", "prompt": "Hi", "logprobs": True, "top_logprobs": 2, "stream": stream}
    body["options"] = {"num_predict": 4, "temperature": 0}
    found = HTTP.post(f"{live.url}/api/generate", json=body)
    lines = [json.loads(line) for line in found.text.splitlines()]
    likely = [one for line in lines for one in line.get("logprobs", ())]
    assert len(likely) == lines[-1]["eval_count"] > 0
    assert all(one["logprob"] <= 0 and len(one["top_logprobs"]) == 2 for one in likely)
    plain = sent(live, "/api/generate", **body | {"logprobs": False, "top_logprobs": None, "stream": False})
    assert "logprobs" not in plain


def test_images_are_refused_by_name(live: Live) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    found = sent(live, "/v1/chat/completions", 400, messages=[{"role": "user", "content": [image]}])
    assert "'image_url'" in found["error"]["message"]
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
    talk = [{"role": "user", "content": [block]}]
    assert "'image'" in sent(live, "/v1/messages", 400, model="fake", max_tokens=8, messages=talk)["error"]["message"]
    talk = [{"role": "user", "content": "See", "images": ["AA"]}]
    found = sent(live, "/api/chat", 400, model="fake", messages=talk)
    assert "images" in found["error"] and "empty" in found["error"]


def test_answers_are_sent_back_by_their_ids(live: Live) -> None:
    """As Vercel's AI SDK does."""
    asked = {"role": "user", "content": "Hi"}
    first = sent(live, "/v1/responses", model="fake", input=[asked])
    said = first["output"][0]
    whole = sent(live, "/v1/responses", model="fake", input=[asked, {"role": "assistant", "content": "Hello!"}, asked])
    referred = {"type": "item_reference", "id": said["id"]}
    found = sent(live, "/v1/responses", model="fake", input=[asked, referred, asked])
    assert found["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    no_item = {"type": "item_reference", "id": first["id"]}
    assert first["id"] in sent(live, "/v1/responses", 404, input=[no_item])["error"]["message"]
    HTTP.delete(f"{live.url}/v1/responses/{first['id']}").raise_for_status()
    assert said["id"] in sent(live, "/v1/responses", 404, input=[asked, referred])["error"]["message"]


def test_items_of_another_client_are_as_if_there_were_none() -> None:
    keys = (key("alice", "alice-secret"), key("bob", "bob-secret"))
    with serving({"fake": scripted(lambda prompt: "Hello!")}, keys=keys) as live:

        def asked(secret: str, given: Any) -> httpx.Response:
            headers = {"authorization": f"Bearer {secret}"}
            return HTTP.post(f"{live.url}/v1/responses", json={"input": given}, headers=headers)

        first = asked("alice-secret", "Hi").json()
        referred = {"type": "item_reference", "id": first["output"][0]["id"]}
        assert asked("alice-secret", [referred, *HI]).status_code == 200
        refused = asked("bob-secret", [referred, *HI])
        assert refused.status_code == 404 and first["id"] not in refused.text


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/api/version", "/api/tags", "/v1/models", "/v1/nothing"])
def test_head_is_get_without_the_body(live: Live, path: str) -> None:
    """What monitors ask, and Ollama's command line before anything else."""
    found, asked = HTTP.get(live.url + path), HTTP.head(live.url + path)
    assert (asked.status_code, asked.content) == (found.status_code, b"")
    assert asked.headers["content-length"] == found.headers["content-length"]
    assert HTTP.head(f"{live.url}/v1/embeddings").status_code == 405
