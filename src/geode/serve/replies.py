"""What the responses of OpenAI's API have in common: who answers, what it took, tokens with their probabilities.

A streamed token costs microseconds: what stays the same within a stream is made into bytes once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fastapi import Request

from .ask import Event, Logprob, Spent
from .http import dumps
from .loan import Running, settings_of
from .problems import openai_shape, problem_of
from .record import current

if TYPE_CHECKING:
    from .loading import Served
    from .schema import StreamOptions

LEAST = -9999.0  # stands for a logarithm of nothing, which JSON cannot write


@dataclass(frozen=True)
class Head:
    """How a response begins."""

    id: str
    object: str
    created: int
    model: str

    @property
    def fields(self) -> dict[str, Any]:
        return {"id": self.id, "object": self.object, "created": self.created, "model": self.model}

    @property
    def chunk(self) -> bytes:
        """The beginning of a chunk, up to the first of its choices."""
        return b"data: " + dumps(self.fields)[:-1] + b',"choices":['


def head(prefix: str, object: str, served: Served) -> Head:
    return Head(f"{prefix}-{secrets.token_hex(12)}", object, int(time.time()), served.name)


def usage(spent: Spent) -> dict[str, Any]:
    """Tokens as OpenAI counts them; where it was truncated, how many were left out; and the seconds that it took."""
    found: dict[str, Any] = {
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "total_tokens": spent.total_tokens,
        "prompt_tokens_details": {"cached_tokens": spent.cached_tokens},
        "drafted_tokens": spent.drafted_tokens,
        "accepted_tokens": spent.accepted_tokens,
        "queued_seconds": round(spent.queued_seconds, 6),
        "prompt_seconds": round(spent.prompt_seconds, 6),
        "completion_seconds": round(spent.completion_seconds, 6),
    }
    return found | ({"truncated_tokens": spent.truncated} if spent.truncated else {})


async def stream(
    running: Running,
    first: Head,
    choice: Callable[[Event], bytes],
    options: StreamOptions | None,
    before: Iterable[bytes] = (),
) -> AsyncIterator[bytes]:
    """Server-sent events: a chunk for each event that `choice` has something to say of, then the usage, then [DONE].

    `before`: choices that come first. An error in the middle is told as OpenAI tells it, and ends the stream.
    """
    begin, each = first.chunk, options is not None and options.continuous_usage_stats
    include = options is not None and options.include_usage
    end = b'],"usage":null}\n\n' if include else b"]}\n\n"
    answer = running.answer
    waiting = [*before]
    try:
        while batch := await answer.batch():
            if each:
                end = b'],"usage":' + dumps(usage(answer.spent)) + b"}\n\n"
            chunks = [begin + said + end for said in (*waiting, *map(choice, batch)) if said]
            waiting = []
            last = batch[-1]
            if isinstance(last, Spent):
                chunks += [begin + b'],"usage":' + dumps(usage(last)) + b"}\n\n"] if include else []
                chunks.append(b"data: [DONE]\n\n")
            yield b"".join(chunks)
    except Exception as error:
        current().error = type(error).__name__
        yield b"data: " + dumps(openai_shape(problem_of(error))) + b"\n\n"


def cut(request: Request, served: Served, asked: int | None, max_tokens: int | None) -> int | None:
    """How many tokens of a prompt that is too long may stay: `Ask.truncate`.

    -1, as the server's setting, leaves room for the answer: max_tokens, or a quarter of the context.
    """
    if asked is None and not settings_of(request).truncate:
        return None
    if asked is not None and asked >= 0:
        return asked
    context = served.engine.context
    return max(1, context - (max_tokens or max(1, context // 4)))


class Tokens:
    """Tokens as text and bytes, for one tokenizer."""

    def __init__(self, served: Served):
        self._served = served
        self._tokenizer: Any = served.local.tokenizer
        self._begun: dict[int, bytes] = {}

    def raw(self, token: int) -> bytes:
        """The bytes of one id; none without a tokenizer."""
        if self._tokenizer is None:
            return b""
        piece = getattr(self._tokenizer, "piece", None)
        found: bytes = piece(token) if piece else self._tokenizer.decode([token]).encode()
        return found

    def text(self, token: int) -> str:
        """The same as text: U+FFFD for a part of a character."""
        return self.raw(token).decode("utf-8", "replace")

    def reader(self) -> Reader:
        """For the places of tokens in the text that they spell."""
        return Reader(self._tokenizer)

    def logprobs(self, found: Sequence[Logprob]) -> bytes:
        """JSON as in chat completions: all generated tokens, an end token included, each with its id."""
        return b'{"content":[' + b",".join(map(self._entry, found)) + b'],"refusal":null}'

    def _entry(self, one: Logprob) -> bytes:
        top = b",".join(self._one(token, logprob) + b"}" for token, logprob in one.top)
        return self._one(one.token, one.logprob) + b',"top_logprobs":[' + top + b"]}"

    def _one(self, token: int, logprob: float) -> bytes:
        begun = self._begun.get(token)
        if begun is None:
            facts = {"id": token, "token": self.text(token), "bytes": list(self.raw(token))}
            facts |= {"special": True} if token in self._special else {}
            begun = self._begun[token] = dumps(facts)[:-1] + b',"logprob":'
        return begun + b"%.6g" % finite(logprob)

    @cached_property
    def _special(self) -> frozenset[int]:
        """Control tokens, and those that end an answer: no text shows them."""
        kept: dict[str, Any] = self._served.kept
        if "special" not in kept:
            control: dict[str, int] = getattr(self._tokenizer, "control", {})
            kept["special"] = frozenset(control.values()) | self._served.local.ends
        special: frozenset[int] = kept["special"]
        return special


class Reader:
    """Where in a text each of its tokens begins: what does not show takes no place."""

    def __init__(self, tokenizer: Any):
        self._stream = tokenizer.stream() if tokenizer is not None else None
        self._at = 0

    def read(self, token: int) -> int:
        """Characters before this token, which follows those that were read."""
        at = self._at
        if self._stream is not None:
            self._at += len(self._stream.push(token))
        return at


def finite(logprob: float) -> float:
    return max(logprob, LEAST)
