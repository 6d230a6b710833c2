"""A model behind an OpenAI-compatible server that wears the face of `lm.LM`.

Its network is not known here, only what the server tells; HTTP is `wire`'s to know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from time import perf_counter
from typing import Any
from urllib.parse import urldefrag, urlsplit

import numpy as np

from ..config import Config
from ..errors import BackendError, OptionError, RemoteError
from ..generate import Options, Piece, Usage
from ..results import Result, Score, Stream, options_of
from .pace import Pace, Prices, Spending
from .wire import Json, Wire

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]
OPENAI = "api.openai.com"
SAME = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")  # named so by everybody
EXTRAS = ("top_k", "min_p", "repetition_penalty")  # not OpenAI's: sent only where they change anything
ENDS = {"stop": "stop", "length": "length", "tool_calls": "stop", "eos": "stop", "stop_sequence": "stop"}


class Remote:
    """A model on a server. Text and ids go to /completions, conversations to /chat/completions.

    url       where the API begins: http://127.0.0.1:8080/v1; "#name" at its end chooses a model, as `model` does.
              Without either the server must have exactly one.
    key       the server's key; without one GEODE_API_KEY, and for OpenAI's own server OPENAI_API_KEY
    retries   how often a request is sent again that was refused for now (429, 5xx) or lost
    pace      at most so many requests and tokens a minute: `Pace(requests=60)`
    prices    for `cost`: `Prices(prompt=0.15, completion=0.60)` for a million tokens
    parallel  requests that a list of prompts has under way together

    An answer's tokens are ids only where the server tells them; else `Piece.token` is None. Raises RemoteError.
    """

    # Whether it chats, and how it reads, is the server's to know; who asks here is told that it does.
    own_template = True
    template: Any = True
    tokenizer: Any = True

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        key: str | None = None,
        timeout: float = 600.0,
        retries: int = 4,
        pace: Pace | None = None,
        prices: Prices | None = None,
        parallel: int = 8,
    ):
        address, chosen = urldefrag(url)
        self.spending, self.prices, self.parallel = Spending(), prices, parallel
        self._pace = pace or Pace()
        self._wire = Wire(address, key or _key(address), timeout, retries, self._pace, self.spending)
        self._api = urlsplit(address).path.rstrip("/") or "/v1"
        self._beside = self._api.removesuffix("/v1")  # where servers have what is not OpenAI's
        self._named = model or chosen or None

    @cached_property
    def model(self) -> str:
        """The model's name on the server."""
        if self._named:
            return self._named
        names = [str(each.get("id")) for each in self._wire.get(f"{self._api}/models").get("data", [])]
        if len(names) != 1:
            raise OptionError(
                f"{self._wire.url} has {len(names)} models ({', '.join(names[:8]) or 'none'}). "
                "Choose one: model=…, or #name at the end of the address."
            )
        return names[0]

    @property
    def config(self) -> Config:
        raise BackendError(
            f"{self._wire.url} does not tell what network it runs. Load the model here (geode.load) to look inside it."
        )

    @property
    def cost(self) -> float:
        """What everything so far has cost, in the prices' money. Raises OptionError where no prices were given."""
        if self.prices is None:
            raise OptionError("No prices were given. Make the model with prices=Prices(prompt=…, completion=…).")
        return self.spending.cost(self.prices)

    def stream(self, prompt: Prompt, **options: Any) -> Stream:
        """Pieces of the answer as they arrive. Options: `generate.Options`. The request goes out with the first."""
        path, body = self._request(prompt, options_of(options))
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        usage = Usage()
        return Stream(self._pieces(path, body, usage), usage)

    def generate(self, prompt: Prompt | Sequence[Prompt], **options: Any) -> Result | list[Result]:
        """The whole answer; for a list of prompts a list of answers, `parallel` of them asked for together."""
        asked = options_of(options)
        if not _is_many(prompt):
            return self._whole(prompt, asked)  # type: ignore[arg-type]
        with ThreadPoolExecutor(max(1, min(self.parallel, len(prompt)))) as pool:
            return list(pool.map(lambda one: self._whole(one, asked), prompt))

    def score(self, context: str | Sequence[int], continuation: str | Sequence[int]) -> Score:
        """The log-probability of `continuation` after `context`; both text or both ids.

        Asks /completions to echo the prompt with its log-probabilities, which Geode, vLLM and their like do and most
        closed models do not: RemoteError then. An empty context means BOS.
        """
        if not len(continuation) or isinstance(context, str) != isinstance(continuation, str):
            raise OptionError("score needs two texts or two lists of ids, and a continuation that is not empty.")
        prompt: Any = context + continuation if isinstance(context, str) else [*context, *continuation]  # type: ignore
        body = {"model": self.model, "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
        found = self._post("/completions", body)
        told = _choice(found).get("logprobs") or {}
        if not told.get("token_logprobs"):
            raise RemoteError(f"{self._wire.url} gives no log-probabilities of a prompt, so it cannot score.")
        return _score(told, prompt, context)

    def tokenize(self, text: str, bos: bool | None = None) -> list[int]:
        """Ids by the server's tokenizer, where it has that beside the API (Geode, vLLM)."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": bos is not False}
        return [int(token) for token in self._wire.post(f"{self._beside}/tokenize", body)["tokens"]]

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, likewise."""
        body = {"model": self.model, "tokens": list(map(int, ids))}
        return str(self._wire.post(f"{self._beside}/detokenize", body)["prompt"])

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """One vector a text: float32 (texts, D)."""
        found = self._post("/embeddings", {"model": self.model, "input": list(texts), "encoding_format": "float"})
        rows = sorted(found["data"], key=lambda row: int(row["index"]))
        return np.asarray([row["embedding"] for row in rows], np.float32)

    # Requests

    def _request(self, prompt: Prompt, options: Options) -> tuple[str, Json]:
        """Where a prompt goes, and the body that asks for it."""
        body: Json = {"model": self.model, **self._asked(options)}
        if _is_messages(prompt):
            if options.logprobs is not None:
                body |= {"logprobs": True, "top_logprobs": options.logprobs}
            return "/chat/completions", body | {"messages": [dict(message) for message in prompt]}  # type: ignore
        if options.logprobs is not None:
            body["logprobs"] = options.logprobs
        return "/completions", body | {"prompt": prompt if isinstance(prompt, str) else list(map(int, prompt))}  # type: ignore

    def _asked(self, options: Options) -> Json:
        """The fields of a body that are not neutral."""
        neutral = Options()
        names = [name for name in SAME + EXTRAS if getattr(options, name) != getattr(neutral, name)]
        found: Json = {name: getattr(options, name) for name in names}
        if options.stops:
            found["stop"] = list(options.stops)
        if options.logit_bias:
            found["logit_bias"] = {str(token): bias for token, bias in options.logit_bias.items()}
        if options.max_tokens is not None:
            found["max_completion_tokens" if self._wire.host == OPENAI else "max_tokens"] = options.max_tokens
        return found

    def _post(self, path: str, body: Json) -> Json:
        found = self._wire.post(self._api + path, body)
        self._count(found.get("usage") or {})
        return found

    def _count(self, usage: Mapping[str, Any]) -> None:
        prompt, completion = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        self.spending.prompt_tokens += prompt
        self.spending.completion_tokens += completion
        self.spending.cached_tokens += int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        self._pace.spent(prompt + completion)

    # Answers

    def _whole(self, prompt: Prompt, options: Options) -> Result:
        path, body = self._request(prompt, options)
        begun = perf_counter()
        found = self._post(path, body)
        choice, told = _choice(found), found.get("usage") or {}
        usage = Usage(int(told.get("prompt_tokens") or 0), int(told.get("completion_tokens") or 0))
        usage.completion_seconds = perf_counter() - begun
        chosen = _logprobs(choice)
        return Result(
            text=_text(choice, "message"),
            tokens=_tokens(choice),
            finish_reason=ENDS.get(str(choice.get("finish_reason")), choice.get("finish_reason")),
            usage=usage,
            logprobs=[logprob for logprob, _ in chosen] or None,
            top_logprobs=[top for _, top in chosen] or None,
        )

    def _pieces(self, path: str, body: Json, usage: Usage) -> Iterator[Piece]:
        """Pieces by the server's events; the last has the finish reason."""
        begun, reason = perf_counter(), None
        for event in self._wire.events(self._api + path, body):
            if told := event.get("usage"):
                usage.prompt_tokens = int(told.get("prompt_tokens") or 0)
                usage.completion_tokens = int(told.get("completion_tokens") or 0)
            choice = (event.get("choices") or [{}])[0]
            text = _text(choice, "delta")
            if text and not usage.prompt_seconds:
                usage.prompt_seconds = perf_counter() - begun
            usage.completion_seconds = perf_counter() - begun - usage.prompt_seconds
            reason = choice.get("finish_reason") or reason
            if text:
                yield Piece(text, *_first(choice))
        self._count({"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens})
        yield Piece("", finish_reason=ENDS.get(str(reason), reason))


def _key(url: str) -> str | None:
    """A key from the environment; OpenAI's goes to nobody else."""
    own = os.environ.get("OPENAI_API_KEY") if f"//{OPENAI}/" in f"{url}/" else None
    return own or os.environ.get("GEODE_API_KEY")


def _choice(found: Json) -> Json:
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise RemoteError(f"The server's answer has no choices: {str(found)[:200]}.")
    return choices[0]


def _text(choice: Json, inner: str) -> str:
    said = choice[inner].get("content") if isinstance(choice.get(inner), dict) else choice.get("text")
    return said if isinstance(said, str) else ""


def _tokens(choice: Json) -> list[int]:
    """Ids, of servers that give them, beside the text or beside log-probabilities."""
    told = choice.get("logprobs") or {}
    listed = [each["id"] for each in told.get("content") or () if "id" in each]
    return [int(token) for token in choice.get("token_ids") or told.get("token_ids") or listed]


Top = tuple[tuple[int, float], ...]


def _logprobs(choice: Json) -> list[tuple[float, Top]]:
    """Each token's log-probability, and those in its place whose ids the server tells."""
    told = choice.get("logprobs") or {}
    if told.get("content"):
        return [(float(each["logprob"]), _top(each.get("top_logprobs") or ())) for each in told["content"]]
    return [(float(logprob), ()) for logprob in told.get("token_logprobs") or () if logprob is not None]


def _top(entries: Sequence[Json]) -> Top:
    return tuple((int(each["id"]), float(each["logprob"])) for each in entries if "id" in each)


def _first(choice: Json) -> tuple[int | None, float | None, Top]:
    """Token, log-probability and alternatives of a piece that came as one event."""
    tokens, logprobs = _tokens(choice), _logprobs(choice)
    token = tokens[0] if len(tokens) == 1 else None
    return (token, *(logprobs[0] if len(logprobs) == 1 else (None, ())))


def _score(told: Json, prompt: Any, context: str | Sequence[int]) -> Score:
    """The continuation's part of an echoed prompt."""
    logprobs = told["token_logprobs"]
    start = len(context)
    if isinstance(context, str):
        offsets: list[int] = told["text_offset"]
        before = offsets[1] if len(offsets) > 1 and not prompt.startswith(told["tokens"][0]) else 0  # a BOS that counts
        kept = before + len(context.rstrip())
        ends = [*offsets[1:], before + len(prompt)]
        start = next((i for i, end in enumerate(ends) if end > kept), len(ends) - 1)
    start = max(start, 1) if logprobs[0] is None else start
    own = [float(logprob) for logprob in logprobs[start:] if logprob is not None]
    tops = told.get("top_logprobs") or []
    greedy = [_is_top(logprob, top) for logprob, top in zip(logprobs[start:], tops[start:], strict=False)]
    return Score(
        sum(own), bool(greedy) and all(greedy), own, [int(token) for token in told.get("token_ids") or ()][start:]
    )


def _is_top(logprob: float | None, top: Mapping[str, float] | None) -> bool:
    return logprob is not None and bool(top) and logprob >= max(top.values()) - 1e-6  # type: ignore[union-attr]


def _is_messages(prompt: Any) -> bool:
    return isinstance(prompt, list | tuple) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _is_many(prompt: Any) -> bool:
    return isinstance(prompt, list | tuple) and len(prompt) > 0 and isinstance(prompt[0], str | Sequence)
