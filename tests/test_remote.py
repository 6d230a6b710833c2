"""A model behind a server, against a stand-in that speaks OpenAI's API and misbehaves on request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import geode
from geode.errors import BackendError, OptionError, RemoteError
from geode.remote import Pace, Prices, Remote

Json = dict[str, Any]


class Server:
    """Answers what `answers` says for a path: a JSON object, (status, headers, text), or a list of events."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Json], Any]] = {
            "/v1/models": lambda body: {"data": [{"id": "tiny"}]},
            "/v1/chat/completions": chat,
            "/v1/completions": completion,
            "/tokenize": lambda body: {"tokens": list(body["prompt"].encode())},
            "/detokenize": lambda body: {"prompt": bytes(body["tokens"]).decode()},
            "/v1/embeddings": lambda body: {
                "data": [
                    {"index": i, "embedding": [len(text), 1.0]} for i, text in reversed([*enumerate(body["input"])])
                ]
            },
        }
        self.seen: list[tuple[str, Json, dict[str, str]]] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply({})

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def reply(self, body: Json) -> None:
                stand_in.seen.append((self.path, body, dict(self.headers)))
                answer = stand_in.answers[self.path](body)
                if isinstance(answer, list):
                    return self.stream(answer)
                status, headers, text = answer if isinstance(answer, tuple) else (200, {}, json.dumps(answer))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def stream(self, events: list[Any]) -> None:
                self.close_connection = True
                self.send_response(200)
                self.end_headers()
                for event in events:
                    self.wfile.write(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode())

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def bodies(self, path: str) -> list[Json]:
        return [body for at, body, _ in self.seen if at == path]


USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}


def chat(body: Json) -> Any:
    if body.get("stream"):
        pieces: list[Any] = [{"choices": [{"delta": {"content": part}}]} for part in ("", "Hel", "lo")]
        ends = [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": USAGE}, "[DONE]"]
        return pieces + ends
    said = body["messages"][-1]["content"].upper()
    return {"choices": [{"message": {"content": said}, "finish_reason": "length"}], "usage": USAGE}


def completion(body: Json) -> Any:
    if body.get("echo"):
        tokens = ["The", " sky", " is", " blue"]
        return {
            "choices": [
                {
                    "text": "",
                    "logprobs": {
                        "tokens": tokens,
                        "token_logprobs": [None, -3.0, -2.0, -0.5],
                        "top_logprobs": [None, {" cat": -1.0}, {" is": -2.0}, {" blue": -0.5}],
                        "text_offset": [0, 3, 7, 10],
                    },
                }
            ]
        }
    return {"choices": [{"text": f"{body['prompt']}!", "finish_reason": "stop"}], "usage": USAGE}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("GEODE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    found = Server()
    yield found
    found.server.shutdown()
    found.server.server_close()


def patient(lm: Remote) -> list[float]:
    """The pauses that a model would have made."""
    pauses: list[float] = []
    lm._wire._wait = pauses.append
    return pauses


def test_a_stream_has_pieces_usage_and_a_reason(server: Server) -> None:
    stream = geode.load(server.url).stream([{"role": "user", "content": "Hi"}], max_tokens=7, temperature=0)
    assert [piece.text for piece in stream] == ["Hel", "lo", ""]
    assert (stream.finish_reason, stream.usage.prompt_tokens, stream.usage.completion_tokens) == ("stop", 5, 2)
    (body,) = server.bodies("/v1/chat/completions")
    assert body["model"] == "tiny" and body["max_tokens"] == 7 and body["temperature"] == 0
    assert not {"top_k", "top_p", "seed", "logprobs", "stop"} & {*body}, "what is neutral is not sent"


def test_options_reach_the_server_by_its_names(server: Server) -> None:
    Remote(server.url + "/v1", "other").generate("x", top_k=3, stop="END", logit_bias={7: -1.0}, logprobs=2, seed=4)
    (body,) = server.bodies("/v1/completions")
    wanted = {"model": "other", "prompt": "x", "top_k": 3, "stop": ["END"], "logit_bias": {"7": -1.0}, "logprobs": 2}
    assert body == {**wanted, "seed": 4}
    with pytest.raises(OptionError, match="Unknown options: cheese"):
        Remote(server.url).generate("x", cheese=1)


def test_many_prompts_keep_their_order(server: Server) -> None:
    results = geode.load(f"{server.url}/v1#tiny").generate([f"p{i}" for i in range(20)])
    assert [result.text for result in results] == [f"p{i}!" for i in range(20)]
    assert results[0].finish_reason == "stop"


def test_what_is_refused_for_now_is_asked_again(server: Server) -> None:
    refusals = iter([(429, {"Retry-After": "3"}, "slow"), (503, {}, "busy"), (500, {}, "oops")])
    server.answers["/v1/completions"] = lambda body: next(refusals, None) or completion(body)
    lm = Remote(server.url, "tiny")
    pauses = patient(lm)
    assert lm.generate("x").text == "x!"  # type: ignore[union-attr]
    assert pauses[0] == 3 and 1 <= pauses[1] <= 1.25 and 2 <= pauses[2] <= 2.5
    assert (lm.spending.requests, lm.spending.retries) == (4, 3)


@pytest.mark.parametrize(
    ("status", "said", "shown"),
    [
        (400, '{"error": {"message": "top_k is no field", "type": "x"}}', "status 400: top_k is no field"),
        (401, '{"error": "who?"}', "who? Give the server's key"),
        (404, '{"detail": "no such model"}', "no such model Is the model's name right"),
        (503, "", "status 503: it gave no reason"),
    ],
)
def test_the_servers_own_words_are_told(server: Server, status: int, said: str, shown: str) -> None:
    server.answers["/v1/completions"] = lambda body: (status, {}, said)
    lm = Remote(server.url, "tiny", retries=1)
    patient(lm)
    with pytest.raises(RemoteError) as told:
        lm.generate("x")
    assert shown in str(told.value).replace("\n", " ") and told.value.status == status
    assert len(server.seen) == (2 if status == 503 else 1)


def test_a_server_that_hangs_up_is_told_of_and_loses_nothing(server: Server) -> None:
    server.answers["/v1/chat/completions"] = lambda body: [{"choices": [{"delta": {"content": "Hal"}}]}]
    stream = Remote(server.url, "tiny").stream([{"role": "user", "content": "Hi"}])
    assert next(stream).text == "Hal"
    with pytest.raises(RemoteError, match="without saying that it was whole"):
        next(stream)
    server.answers["/v1/chat/completions"] = lambda body: [{"error": {"message": "out of pages"}}]
    with pytest.raises(RemoteError, match="out of pages"):
        list(Remote(server.url, "tiny").stream([{"role": "user", "content": "Hi"}]))


def test_what_is_no_api_is_told(server: Server) -> None:
    server.answers["/v1/completions"] = lambda body: (200, {}, "<html>")
    with pytest.raises(RemoteError, match="no JSON object"):
        Remote(server.url, "tiny").generate("x")
    with pytest.raises(OptionError, match="no address of a server"):
        Remote("localhost:8080")
    lm = Remote("http://127.0.0.1:9", "tiny", retries=0)
    with pytest.raises(RemoteError, match="cannot be reached"):
        lm.generate("x")


def test_a_server_of_many_models_wants_a_choice(server: Server) -> None:
    server.answers["/v1/models"] = lambda body: {"data": [{"id": "a"}, {"id": "b"}]}
    with pytest.raises(OptionError, match=r"2 models \(a, b\)"):
        Remote(server.url).generate("x")


def test_scores_come_from_an_echo(server: Server) -> None:
    score = Remote(server.url, "tiny").score("The sky is", " blue")
    assert (score.logprob, score.is_greedy, score.token_logprobs) == (-0.5, True, [-0.5])
    assert not Remote(server.url, "tiny").score("The", " sky is blue").is_greedy
    assert Remote(server.url, "tiny").score([1, 2], [3, 4]).token_logprobs == [-2.0, -0.5]
    server.answers["/v1/completions"] = lambda body: {"choices": [{"text": "x"}]}
    with pytest.raises(RemoteError, match="cannot score"):
        Remote(server.url, "tiny").score("a", "b")


def test_tokens_and_vectors(server: Server) -> None:
    lm = Remote(server.url)
    assert lm.tokenize("Hi") == [72, 105] and lm.detokenize([72, 105]) == "Hi"
    assert lm.embed(["a", "bcd"]).tolist() == [[1, 1], [3, 1]]
    with pytest.raises(BackendError, match="does not tell what network"):
        _ = lm.config


def test_keys_go_only_where_they_belong(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    Remote(server.url, "tiny").generate("x")
    assert "Authorization" not in server.seen[-1][2]
    assert Remote("https://api.openai.com/v1", "m")._wire._headers["Authorization"] == "Bearer sk-openai"
    assert "Authorization" not in Remote("https://api.openai.com.evil.org/v1", "m")._wire._headers
    monkeypatch.setenv("GEODE_API_KEY", "own")
    Remote(server.url, "tiny").generate("x")
    assert server.seen[-1][2]["Authorization"] == "Bearer own"


def test_what_was_spent_is_counted(server: Server) -> None:
    lm = Remote(server.url, "tiny", prices=Prices(prompt=1.0, completion=10.0, cached=0.5))
    lm.generate(["a", "b"])
    assert lm.cost == pytest.approx(2 * (1 * 1.0 + 4 * 0.5 + 2 * 10.0) / 1e6)
    with pytest.raises(OptionError, match="No prices"):
        _ = Remote(server.url, "tiny").cost


def test_the_pace_is_kept_within_any_minute() -> None:
    now = [0.0]
    pauses: list[float] = []

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    pace = Pace(requests=2, tokens=100, clock=lambda: now[0], wait=wait)
    for _ in range(3):
        pace.enter()
        now[0] += 1
    assert pauses == [pytest.approx(58)]  # the third waits for the first to be a minute old
    pace.spent(500)
    pace.enter()
    assert now[0] >= 61 + 59
    with pytest.raises(OptionError, match="1 or more"):
        Pace(requests=0)


def test_options_of_loading_are_refused() -> None:
    with pytest.raises(OptionError, match="threads are for models that are loaded here"):
        geode.load("http://127.0.0.1:1", threads=2)
