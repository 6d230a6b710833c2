"""One `Ask` of a model to events, as they come: the prompt's ids, a request for each of the n answers, their pieces.

JSON and HTTP are not known here, nor how an engine shares its steps.

    ask ── prepared (all that can be wrong) ──> requests ──> engine ── pieces ──> Inbox ──> events
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from ..chat import needed
from ..engine.request import Constraint, Request, Ticket
from ..errors import ContextError, OptionError
from ..generate import Piece, room
from ..generate import Text as Decoded
from .ask import Ask, CallBegins, CallGoesOn, Ends, Event, Logprob, Message, Spent, Text
from .bridge import Inbox
from .grammar import constraint_for
from .tools import tools_for

if TYPE_CHECKING:
    from .loading import Served
    from .tools import Parser, Tools

MOST = 128  # answers to one ask


@dataclass(frozen=True)
class Prepared:
    """An ask that nothing is wrong with: a request and perhaps a parser for each answer."""

    requests: tuple[Request, ...]
    parsers: tuple[Parser | None, ...]
    tools: Tools | None = None
    truncated: int = 0


async def answer(served: Served, ask: Ask) -> Answer:
    """Events as they come: `async with await answer(served, ask) as events: async for event in events: ...`

    What is wrong with the ask is raised at once: OptionError, ContextError, ChatError, TokenizerError, CapacityError.
    """
    return await together(served, [ask])


async def together(served: Served, asks: Sequence[Ask]) -> Answer:
    """The answers to several asks at the same time, numbered through: n of the first, then those of the next."""
    ready = await asyncio.to_thread(lambda: [prepared(served, ask) for ask in asks])
    return Answer(served, ready)


def prepared(served: Served, ask: Ask) -> Prepared:
    """Whatever can be wrong with an ask by itself is raised here. Takes milliseconds: not for the event loop."""
    if not 1 <= ask.n <= MOST:
        raise OptionError(f"n must be from 1 to {MOST}; {ask.n} was given.")
    ids, truncated = _fitting(served, ask, prompt(served, ask))
    left = room(len(ids), ask.options.max_tokens, served.engine.context)
    _check_bias(served, ask)
    tools = tools_for(served) if ask.tools and ask.tool_choice != "none" else None
    constraint = constraint_for(served, ask, left)
    made = range(ask.n)
    return Prepared(
        tuple(_request(served, ask, ids, i, constraint() if constraint else None) for i in made),
        tuple(tools.parser(ask.tools, ask.tool_choice) if tools else None for _ in made),
        tools,
        truncated,
    )


def prompt(served: Served, ask: Ask) -> list[int]:
    """The whole prompt's ids, whatever their number."""
    if ask.messages is None:
        return served.local.ids_of(ask.text if ask.text is not None else list(ask.ids or ()))
    if ask.continue_last:
        return _begun(served, ask)
    if ask.tools or any(message.get("tool_calls") or message.get("role") == "tool" for message in ask.messages):
        return tools_for(served).prompt(ask)
    if not ask.template_options:
        return served.local.ids_of(ask.messages)
    return list(needed(served.local.template).tokens(ask.messages, **ask.template_options))


def _begun(served: Served, ask: Ask) -> list[int]:
    """The conversation up to what its last message, the assistant's, says; without what ends its turn."""
    messages = list(ask.messages or ())
    text = _said_last(messages)
    template = needed(served.local.template)
    ids, mask = template.training(messages, answers=[len(messages) - 1], **ask.template_options)
    start, end = mask.index(1) if 1 in mask else 0, len(ids)
    while text in served.local.detokenize(ids[start : end - 1]):
        end -= 1
    return ids[:end]


def _said_last(messages: Sequence[Message]) -> str:
    """The text of the last message, without the space around it, which templates cut off. Raises OptionError."""
    content = messages[-1].get("content") if messages and messages[-1].get("role") == "assistant" else None
    parts = [part.get("text", "") for part in content] if isinstance(content, list) else [content or ""]
    if not (text := "".join(parts).strip()):
        raise OptionError("Only an answer can be continued: the last message must be the assistant's, with a text.")
    return text


def _fitting(served: Served, ask: Ask, ids: list[int]) -> tuple[list[int], int]:
    """The ids that `truncate` leaves, and how many it takes away; a BOS at the beginning stays there."""
    keep, context = ask.truncate, served.engine.context
    if keep is None or len(ids) <= keep:
        return ids, 0
    if not 1 <= keep < context:
        raise ContextError(
            f"The prompt has {len(ids)} tokens. The model's context holds {context}, so a prompt can be truncated to "
            f"1 to {context - 1} tokens; {keep} was asked for."
        )
    tokenizer = served.local.tokenizer
    first = ids[:1] if tokenizer is not None and ids[0] == tokenizer.bos and keep > 1 else []
    return [*first, *ids[len(ids) - keep + len(first) :]], len(ids) - keep


def _request(served: Served, ask: Ask, ids: list[int], number: int, constraint: Constraint | None) -> Request:
    """One of the n: each draws from a seed of its own."""
    seed = ask.options.seed
    options = ask.options if not number or seed is None else replace(ask.options, seed=seed + number)
    return Request(
        ids=ids,
        options=options,
        constraint=constraint,
        client=ask.client,
        priority=ask.priority,
        adapter=served.adapter,
        salt=ask.salt,
    )


def _check_bias(served: Served, ask: Ask) -> None:
    largest = max(ask.options.logit_bias, default=0)
    if largest >= served.local.config.vocab:
        raise OptionError(
            f"logit_bias must be of tokens of this model, 0 to {served.local.config.vocab - 1}; {largest} was given."
        )


class Answer:
    """Events of all answers, those of different answers interleaved; `Spent` is the last. To be closed, best by `async
    with`: whatever still runs is cancelled then. Must be made on the event loop that reads it. `hear` is told of
    every batch."""

    def __init__(self, served: Served, ready: Sequence[Prepared]):
        self._inbox: Inbox[tuple[int, Piece | Exception]] = Inbox()
        self._ready = ready
        requests = [request for one in ready for request in one.requests]
        pairs = [(one, parser) for one in ready for parser in one.parsers]
        self._voices = [_Voice(i, served, one, parser) for i, (one, parser) in enumerate(pairs)]
        self._events: deque[Event] = deque()
        self._tickets: list[Ticket] = []
        self._running = len(self._voices)
        self.hear: Callable[[list[Event]], None] | None = None
        try:
            for number, request in enumerate(requests):
                self._tickets.append(served.engine.submit(request, self._deliver(number)))
        except BaseException:
            self.close()
            raise

    @property
    def prompts(self) -> list[Sequence[int]]:
        """The ids of each ask's prompt, as the model sees them."""
        return [one.requests[0].ids for one in self._ready]

    @property
    def count(self) -> int:
        """How many answers there are."""
        return len(self._voices)

    @property
    def spent(self) -> Spent:
        """Tokens and seconds so far."""
        usages = [ticket.usage for ticket in self._tickets]
        starts = accumulate((len(one.requests) for one in self._ready[:-1]), initial=0)
        return Spent(
            prompt_tokens=sum(len(ids) for ids in self.prompts),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            cached_tokens=sum(usages[start].cached_tokens for start in starts),
            accepted_tokens=sum(usage.accepted_tokens for usage in usages),
            drafted_tokens=sum(usage.drafted_tokens for usage in usages),
            truncated=sum(one.truncated for one in self._ready),
            queued_seconds=max(usage.queued_seconds for usage in usages),
            prompt_seconds=max(usage.prompt_seconds for usage in usages),
            completion_seconds=max(usage.completion_seconds for usage in usages),
        )

    def fail(self, problem: Exception) -> None:
        """Ends all answers with an error, on the loop: whoever reads the events is told."""
        self._inbox.add((0, problem))

    def close(self) -> None:
        """Ends what still runs, at once. Harmless twice."""
        self._running = 0
        for ticket in self._tickets:
            ticket.cancel()

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if not self._events:
            self._events.extend(await self.batch())
        if not self._events:
            raise StopAsyncIteration
        return self._events.popleft()

    async def batch(self) -> list[Event]:
        """The events that are there, at least one; none at all once `Spent` is out. Raises what went wrong."""
        events: list[Event] = []
        while self._running and not events:
            for number, pieces in self._gathered(await self._inbox.take()):
                events += self._voices[number].said(pieces)
            self._running -= sum(isinstance(event, Ends) for event in events)
            if not self._running:
                events.append(self.spent)
        if self.hear is not None:
            self.hear(events)
        return events

    def _deliver(self, number: int) -> Callable[[Piece | Exception], None]:
        put = self._inbox.put
        return lambda item: put((number, item))

    def _gathered(self, items: Sequence[tuple[int, Piece | Exception]]) -> Iterable[tuple[int, list[Piece]]]:
        """The pieces of each answer, in order."""
        found: dict[int, list[Piece]] = {}
        for number, item in items:
            if isinstance(item, Exception):
                self.close()
                raise item
            found.setdefault(number, []).append(item)
        return found.items()


class _Voice:
    """One of the answers: its number, its parser where calls are looked for, and whether it called anything."""

    def __init__(self, number: int, served: Served, ready: Prepared, parser: Parser | None):
        self._number = number
        self._parser = parser
        self._ends = served.local.ends
        self._called = False
        self._held: tuple[int, ...] = ()  # tokens that have shown no text yet
        self._text: Decoded | None = None  # with the control tokens that calls are spelt with
        if parser is not None and ready.tools is not None and ready.tools.marks:
            self._text = Decoded(ready.tools.decoder(), ready.requests[0].options.stops)

    def said(self, pieces: Sequence[Piece]) -> list[Event]:
        """What some pieces, which came together, say: one event for each that shows text."""
        reason = pieces[-1].finish_reason
        texts = [text for text in map(self._plain, pieces) if text is not None]
        events: list[Event] = [*texts]
        if self._parser is not None:
            silent = [replace(text, text="") for text in texts if text.logprobs]
            events = [*self._parsed(self._parser, pieces, reason), *silent]
        if reason is not None:
            name = "tool_calls" if self._called and reason == "stop" else reason
            events.append(Ends(self._number, name, pieces[-1].stop))
        return events

    def _plain(self, piece: Piece) -> Text | None:
        if piece.token is not None:
            self._held += (piece.token,)
        if not piece.text and piece.logprob is None:
            return None
        tokens, self._held = self._held, ()
        return Text(self._number, piece.text, tokens, () if piece.logprob is None else (_logprob(piece),))

    def _parsed(self, parser: Parser, pieces: Sequence[Piece], reason: str | None) -> list[Event]:
        text = "".join(map(self._shown, pieces))
        if reason is not None and self._text is not None:
            text += self._text.flush()
        found = [*parser.push(text), *(parser.finish(cut=reason == "length") if reason is not None else ())]
        self._called |= any(isinstance(event, CallBegins) for event in found)
        return [replace(event, index=self._number) for event in found]

    def _shown(self, piece: Piece) -> str:
        if self._text is None or piece.token is None:
            return piece.text
        return "" if piece.token in self._ends else self._text.push(piece.token)


def _logprob(piece: Piece) -> Logprob:
    return Logprob(int(piece.token or 0), float(piece.logprob or 0.0), piece.top_logprobs)


@dataclass
class Call:
    """A call of a tool, whole: `arguments` is a JSON text."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Said:
    """One answer, gathered."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    finish_reason: str = ""
    stop: str | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, Text):
            self.text += event.text
            self.tokens += event.tokens
            self.logprobs += event.logprobs
        elif isinstance(event, CallBegins):
            self.calls.append(Call(event.id, event.name))
        elif isinstance(event, CallGoesOn):
            self.calls[event.call].arguments += event.arguments
        elif isinstance(event, Ends):
            self.finish_reason, self.stop = event.finish_reason, event.stop


async def gathered(events: Answer) -> list[Said]:
    """All answers, whole, by their numbers. `events.spent` tells what they took."""
    said = [Said() for _ in range(events.count)]
    async for event in events:
        if not isinstance(event, Spent):
            said[event.index].add(event)
    return said
