"""From prompts to new tokens: the naive loop, which is the truth, and the cached one that streams.

How logits are computed is the executor's business; what a conversation is, nobody's here.

    prompts ── prefill ──> logits (B, V) ── each row takes its own ──> pieces of text out
                             ^                     │
                             └────── step <────────┘ one token a row
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .errors import ContextError, OptionError, TokenizerError
from .sampling import Candidates, Choice, Need, Params, Sampler, log_total

if TYPE_CHECKING:
    from .config import Config
    from .tokenizer import StreamDecoder, Tokenizer

State = Any  # an executor's keys and values: made by prefill, handed to step, never looked into
Logits = np.ndarray | list[np.ndarray | Candidates]  # of B rows: all (B, V), or what each row needs


class Executor(Protocol):
    """What computes logits. Ids are those of the network's rows, 0 to config.vocab - 1; logits are float32.

    `needs` tells for each row which logits matter (None: all); an executor may give all of them nevertheless.
    """

    config: Config

    def rows(self, ids: Sequence[int], start: int = 0) -> Iterator[np.ndarray]:
        """Logits after the positions start, start + 1 ... len(ids) - 1, in consecutive chunks (t, V)."""

    def prefill(
        self, prompts: Sequence[Sequence[int]], room: int, needs: Sequence[Need | None] | None = None
    ) -> tuple[State, Logits]:
        """Runs B prompts of any lengths; room for `room` >= 0 more tokens each. Logits after each last token."""

    def step(
        self, state: State, tokens: Sequence[int], needs: Sequence[Need | None] | None = None
    ) -> tuple[State, Logits]:
        """One more token for each of the B rows, and its logits. The old state must not be used again."""


@dataclass(frozen=True, kw_only=True)
class Options(Params):
    """Everything a request may ask for: how to choose (`Params`) and where to end.

    `max_tokens` None goes on until the context is full. `stop` is a string or several: the text ends before the first
    that is completed, and no part of it is ever shown. Raises OptionError.
    """

    max_tokens: int | None = None
    stop: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.max_tokens
        if count is not None and (isinstance(count, bool) or not isinstance(count, Integral) or count < 1):
            raise OptionError(
                f"max_tokens must be an integer, 1 or more, or None for all that fit; {count!r} was given."
            )
        good = self.stop is None or isinstance(self.stop, str | Sequence)
        if not good or not all(isinstance(stop, str) and stop for stop in self.stops):
            raise OptionError(f"stop must be a string or several, none of them empty; {self.stop!r} was given.")

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


@dataclass(frozen=True)
class Piece:
    """What one token added. `text` is "" while its characters are incomplete or may still become a stop string.

    `logprob` and `top_logprobs` (id, logprob) are there when asked for; `finish_reason` in the last piece only:
    "stop" (an end token or a stop string) or "length" (max_tokens, or the context is full). `stop` is that stop string.
    """

    text: str
    token: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: str | None = None
    stop: str | None = None


@dataclass
class Usage:
    """Tokens and seconds of one answer; in a batch the seconds are those of all rows together."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_seconds: float = 0.0
    completion_seconds: float = 0.0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def prompt_speed(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def speed(self) -> float:
        """Generated tokens per second, without the first, whose logits came with the prompt's."""
        return max(self.completion_tokens - 1, 0) / self.completion_seconds if self.completion_seconds else 0.0


def naive(
    executor: Executor,
    prompt: Sequence[int],
    options: Options | None = None,
    ends: frozenset[int] = frozenset(),
    size: int | None = None,
) -> list[int]:
    """The truth that every faster loop is held to: the whole forward again for each token. Returns the new ids."""
    options = options or Options()
    sampler = Sampler(options, size)
    ids = list(prompt)
    for _ in range(room(len(prompt), options.max_tokens, executor.config.context)):
        *_, logits = executor.rows(ids, start=len(ids) - 1)
        ids.append(sampler.pick(logits[-1], ids, len(prompt)).token)
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


def stream(executor: Executor, rows: Sequence[Row]) -> Iterator[tuple[int, Piece]]:
    """Continues all rows together until each is finished: (number of the row, what it gained), one token at a time.

    Lazy: the next step runs when the next piece is asked for, and the time between is nobody's.
    """
    vocab = executor.config.vocab
    begun = perf_counter()
    state, logits = executor.prefill(
        [row.prompt for row in rows], max(row.room for row in rows) - 1, [row.need(vocab) for row in rows]
    )
    for row in rows:
        row.usage.prompt_seconds = perf_counter() - begun
    begun = perf_counter()
    while True:
        pieces = [(i, row.take(logits[i])) for i, row in enumerate(rows) if row.finish_reason is None]
        for i, _ in pieces:
            rows[i].usage.completion_seconds += perf_counter() - begun
        yield from pieces
        if all(row.finish_reason for row in rows):
            return
        begun = perf_counter()
        state, logits = executor.step(state, [row.last for row in rows], [row.need(vocab) for row in rows])


def likelihood(
    executor: Executor, ids: Sequence[int], start: int, size: int | None = None
) -> tuple[list[float], list[bool]]:
    """For each id from `start` on: its log-probability, and whether it is the likeliest of the first `size`.

    An executor that has a `score` of its own is asked for it, and then logits never exist whole.
    """
    if score := getattr(executor, "score", None):
        return score(ids, start, size)  # type: ignore[no-any-return]
    logprobs: list[float] = []
    greedy: list[bool] = []
    for chunk in executor.rows(ids[:-1], start=start - 1):
        done = start + len(logprobs)
        targets = np.asarray(ids[done : done + len(chunk)])
        logprobs += (chunk[np.arange(len(chunk)), targets] - log_total(chunk)).tolist()
        greedy += (chunk[:, :size].argmax(axis=1) == targets).tolist()
    return logprobs, greedy


class Row:
    """One sequence that grows: its ids, its sampler, its text, and whether it is finished.

    Raises OptionError on an empty prompt, ContextError when prompt and max_tokens exceed `context`, TokenizerError when
    stop strings are given without a tokenizer.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        options: Options,
        context: int,
        ends: frozenset[int] = frozenset(),
        tokenizer: Tokenizer | None = None,
        usage: Usage | None = None,
    ):
        if options.stops and tokenizer is None:
            raise TokenizerError(
                "Stop strings need a tokenizer, and this model has none. Use max_tokens to end the text."
            )
        self.prompt = list(prompt)
        self.room = room(len(self.prompt), options.max_tokens, context)
        self.usage = usage or Usage()
        self.usage.prompt_tokens = len(self.prompt)
        self.finish_reason: str | None = None
        self._ids = np.zeros(len(self.prompt) + self.room, np.int64)
        self._ids[: len(self.prompt)] = self.prompt
        self._ends = ends
        self._sampler = Sampler(options, tokenizer.size if tokenizer else None)
        self._text = Text(tokenizer.stream() if tokenizer else _Silent(), options.stops)

    @property
    def last(self) -> int:
        return int(self._ids[self.usage.total_tokens - 1])

    @property
    def ids(self) -> np.ndarray:
        """The prompt and what follows, int64: `usage.total_tokens` are known, the others are there to be filled."""
        return self._ids

    @property
    def greedy(self) -> bool:
        return self._sampler.params.greedy

    def guess(self, tokens: Sequence[int]) -> None:
        """Notes what may come next, so that `need` can be asked ahead."""
        known = self.usage.total_tokens
        self._ids[known : known + len(tokens)] = tokens

    def need(self, vocab: int, ahead: int = 0) -> Need | None:
        """What the choice after `ahead` guessed tokens must know of `vocab` logits; None: all of them."""
        if self.finish_reason is not None:
            return Need(1, math.inf, np.empty(0, np.int32), vocab)  # nobody will look: the cheapest
        return self._sampler.need(vocab, self._ids[: self.usage.total_tokens + ahead], len(self.prompt))

    def take(self, logits: np.ndarray | Candidates, mask: np.ndarray | None = None) -> Piece:
        """Chooses the next token by its logits, all (V,) or those that it needs, and says what that adds."""
        return self.add(self.choose(logits, mask))

    def choose(self, logits: np.ndarray | Candidates, mask: np.ndarray | None = None) -> Choice:
        """The next token; the row stays as it is but for its random numbers. `mask`, bool (V,), needs all logits."""
        return self._sampler.pick(logits, self._ids[: self.usage.total_tokens], len(self.prompt), mask)

    def add(self, choice: Choice) -> Piece:
        """Goes on with a token, chosen or given, and says what that adds."""
        self._ids[self.usage.total_tokens] = choice.token
        self.usage.completion_tokens += 1
        text = self._read(choice.token)
        return Piece(text, *choice, self.finish_reason, self._text.stop)

    def _read(self, token: int) -> str:
        """The text that `token` lets out; sets `finish_reason` where it is the last."""
        ended = token in self._ends
        shown = "" if ended else self._text.push(token)
        if ended or self._text.stopped or self.usage.completion_tokens == self.room:
            shown += self._text.flush()
            self.finish_reason = "stop" if ended or self._text.stopped else "length"
        return shown


class Text:
    """Ids in, text out; holds back what may still become a stop string, and ends before the first completed one."""

    def __init__(self, decoder: StreamDecoder | _Silent, stops: Sequence[str]):
        self.stop: str | None = None  # the one that was completed
        self._decoder = decoder
        self._stops = tuple(stops)
        self._held = ""

    def push(self, token: int) -> str:
        return self._show(self._decoder.push(token))

    def flush(self) -> str:
        """The rest: no more ids will come."""
        if self.stopped:
            return ""
        shown = self._show(self._decoder.flush())
        shown, self._held = shown + self._held, ""
        return shown

    @property
    def stopped(self) -> bool:
        return self.stop is not None

    def _show(self, text: str) -> str:
        self._held += text
        cut, self.stop = self._completed() or (len(self._held) - self._begun(), None)
        shown, self._held = self._held[:cut], "" if self.stopped else self._held[cut:]
        return shown

    def _completed(self) -> tuple[int, str] | None:
        """The stop string that is completed first, and where it starts; of two that end together the longer counts."""
        starts = [(self._held.find(stop), stop) for stop in self._stops]
        found = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
        return min(found)[1:] if found else None

    def _begun(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)


def room(prompt: int, max_tokens: int | None, context: int) -> int:
    """How many tokens may follow a prompt of so many. Raises OptionError, or ContextError with both numbers."""
    if prompt == 0:
        raise OptionError(
            "The prompt is empty and the model has no token to begin with. Give at least one token or one word."
        )
    if prompt >= context:
        raise ContextError(
            f"The prompt has {prompt} tokens and the model's context holds {context}, which leaves no room for an "
            "answer. Shorten the prompt."
        )
    if max_tokens is None:
        return context - prompt
    if prompt + max_tokens > context:
        raise ContextError(
            f"The prompt has {prompt} tokens and max_tokens asks for {max_tokens} more, together "
            f"{prompt + max_tokens}, but the model's context holds {context}. "
            f"Shorten the prompt, or ask for at most {context - prompt} tokens."
        )
    return int(max_tokens)


class _Silent:
    """The decoder of a model that has no tokenizer."""

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""
