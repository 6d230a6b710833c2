"""Examples to documents: token ids, and which of them are learnt.

Where examples come from, how documents share a row and what a loss does with them is not known here.

    Text         BOS text EOS                     all but the first token
    Completion   BOS prompt completion EOS        the completion and its EOS
    Conversation what the chat template writes    what the assistant wrote, or only some of its messages
    Preference   two conversations                their answers
    Labelled     a conversation and its label     its answer

What follows the last learnt token changes no loss and no gradient, and is left off.

A document longer than a row is dropped, refused, or split so that every token that is learnt is learnt exactly once:
a conversation between its exchanges, each piece with the system message and written by the template anew; a text,
or an exchange that is too long by itself, at any token, each piece with the BOS and some of what came before as
context, which is not learnt again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from ..chat import Template
from ..errors import ChatError, FormatError, OptionError, TokenizerError
from ..tokenizer import Tokenizer
from ..tokenizer.base import common
from .examples import Completion, Conversation, Example, Labelled, Messages, Preference, Text

__all__ = ["Document", "Documents", "Dropped", "Item", "Judged", "Paired", "Report", "prepare"]

Long = Literal["drop", "split", "error"]
Learn = Literal["assistant", "all", "last"]

SHORTEST = 4  # tokens of a row: BOS, one of context, one that is learnt, and one to spare
NAMED = 3  # sources that are named for each reason

TOO_LONG = "longer than a row"
SILENT = "without a token to learn"
REFUSED = "refused"
SAME = "with two answers that are the same"


@dataclass(frozen=True, slots=True)
class Document:
    """One sequence: ids int32 (T,); loss bool (T,), whether each token is learnt from those before it."""

    ids: np.ndarray
    loss: np.ndarray
    source: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def learnt(self) -> int:
        """How many of its tokens are learnt."""
        return int(np.count_nonzero(self.loss))


@dataclass(frozen=True, slots=True)
class Paired:
    """The two sequences of a preference."""

    chosen: Document
    rejected: Document
    source: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A sequence whose answer was found good or not."""

    document: Document
    good: bool
    source: str


Item = Document | Paired | Judged


def sequences(item: Item) -> tuple[Document, ...]:
    """The sequences that an item holds."""
    match item:
        case Paired():
            return item.chosen, item.rejected
        case Judged():
            return (item.document,)
        case _:
            return (item,)


# What became of the examples


@dataclass
class Dropped:
    """Examples left out for one reason: how many, where the first of them stand, what was wrong with the first, and
    how many tokens the longest has, where they were counted."""

    count: int = 0
    sources: list[str] = field(default_factory=list)
    words: str = ""
    longest: int = 0

    def add(self, source: str, words: str = "", tokens: int = 0) -> None:
        self.count += 1
        self.words = self.words or words
        self.longest = max(self.longest, tokens)
        if len(self.sources) < NAMED:
            self.sources.append(source)

    def text(self, reason: str) -> str:
        """`3 longer than a row, up to 812 tokens (a.json:1, a.json:7, a.json:9)`"""
        most = f", up to {self.longest:,} tokens" if self.longest else ""
        more = ", …" if self.count > len(self.sources) else ""
        words = f": {self.words.rstrip('.')}" if self.words else ""
        return f"{self.count:,} {reason}{most} ({', '.join(self.sources)}{more}){words}"


@dataclass
class Report:
    """Counts, exact. `split` are examples, `items` what came out: documents, pairs, or documents with a label."""

    length: int
    examples: int = 0
    items: int = 0
    split: int = 0
    tokens: int = 0
    learnt: int = 0
    longest: int = 0
    dropped: dict[str, Dropped] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The counts as plain JSON types."""
        dropped = {reason: asdict(each) for reason, each in self.dropped.items()}
        counts = {name: getattr(self, name) for name in "length examples items split tokens learnt longest".split()}
        return counts | {"dropped": dropped}

    def text(self) -> str:
        """One paragraph."""
        share = f" ({self.learnt / self.tokens:.0%})" if self.tokens else ""
        parts = [
            f"{_count(self.examples, 'example')} gave {_count(self.items, 'document')} of "
            f"{_count(self.tokens, 'token')}, {self.learnt:,} of which are learnt{share}; the longest has "
            f"{self.longest:,} of at most {self.length:,}."
        ]
        if self.split:
            parts.append(f"{_count(self.split, 'example')} longer than that {_were(self.split)} split.")
        if self.dropped:
            count = sum(each.count for each in self.dropped.values())
            parts.append(f"{_count(count, 'example')} {_were(count)} left out: {self.reasons()}.")
        return " ".join(parts)

    def reasons(self) -> str:
        """Why examples were left out: how many for each reason, and which."""
        return "; ".join(dropped.text(reason) for reason, dropped in self.dropped.items())


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + "s" * (count != 1)


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


@dataclass(frozen=True)
class Documents(Sequence[Any]):
    """Items of one kind, in the order of the examples, and what became of these."""

    items: Sequence[Item]
    report: Report

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: Any) -> Any:
        return self.items[place]


# The way there


def prepare(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    template: Template | None = None,
    *,
    length: int = 512,
    long: Long = "drop",
    learn: Learn = "assistant",
    system: str | None = None,
) -> Documents:
    """Documents of at most `length` tokens. `system` is said first where no system message is.

    Examples that the template refuses, that do not fit or that teach nothing are left out and counted. Raises
    OptionError for a length that holds nothing, for conversations without a template, for a document that is longer
    where `long` is "error", and when nothing is left; FormatError when there are no examples, or of several kinds.
    """
    if length < SHORTEST:
        raise OptionError(f"data.length is {length}; a row holds at least {SHORTEST} tokens. Usual are 512 to 4096.")
    maker = _Maker(tokenizer, template, length, long, learn, system)
    for example in examples:
        maker.add(example)
    report = maker.report
    if not report.examples:
        raise FormatError("The data hold no examples, so there is nothing to learn. Look at the files that were named.")
    if not maker.items:
        raise OptionError(f"Nothing is left to learn: {_left_out(report)}. {_advice(report)}")
    return Documents(maker.items, report)


def _left_out(report: Report) -> str:
    return f"of {_count(report.examples, 'example')} all were left out: {report.reasons()}"


def _advice(report: Report) -> str:
    """What to do about the reason that took most."""
    first = max(report.dropped, key=lambda reason: report.dropped[reason].count)
    return {
        TOO_LONG: f"Raise data.length, which is {report.length}, or set data.long to split.",
        SILENT: "The chat template marks no answer of the assistant: see that the data have answers that are not "
        "empty, name a built-in format by data.template, or set data.learn to all.",
        REFUSED: "Mend the data, name another format by data.template, or say by data.shape and data.columns what "
        "the rows are.",
        SAME: "Check which columns hold the chosen and the rejected answers.",
    }[first]


class _Unfit(Exception):
    """An example that is left out: the reason, and its tokens where they are too many."""

    def __init__(self, reason: str, tokens: int = 0):
        super().__init__(reason)
        self.reason, self.tokens = reason, tokens


@dataclass
class _Maker:
    """Takes examples one by one."""

    tokenizer: Tokenizer
    template: Template | None
    length: int
    long: Long
    learn: Learn
    system: str | None

    def __post_init__(self) -> None:
        self.items: list[Item] = []
        self.report = Report(self.length)

    def add(self, example: Example) -> None:
        self.report.examples += 1
        try:
            made = self._made(example)
        except _Unfit as problem:
            return self._dropped(problem.reason).add(example.source, tokens=problem.tokens)
        except (ChatError, TokenizerError) as problem:
            return self._dropped(REFUSED).add(example.source, str(problem))
        self._check_kind(made[0])
        self.items += made
        self._count(made)

    def _dropped(self, reason: str) -> Dropped:
        return self.report.dropped.setdefault(reason, Dropped())

    def _count(self, made: Sequence[Item]) -> None:
        report = self.report
        report.items += len(made)
        for document in (each for item in made for each in sequences(item)):
            report.tokens += len(document)
            report.learnt += document.learnt
            report.longest = max(report.longest, len(document))

    def _check_kind(self, item: Item) -> None:
        if self.items and type(item) is not type(self.items[0]):
            first = self.items[0]
            raise FormatError(
                f"One run learns from one kind of example: {first.source} is {KINDS[type(first)]}, {item.source} is "
                f"{KINDS[type(item)]}. Tune on one of them, or name by data.columns what the rows have in common."
            )

    # Kinds of examples

    def _made(self, example: Example) -> list[Item]:
        match example:
            case Text():
                return self._fit(self._text(example.text, "", example.source))
            case Completion():
                return self._completion(example)
            case Conversation():
                return self._talk(self._chosen(example))
            case Preference():
                return [self._pair(example)]
            case Labelled():
                document = self._whole(self._answer(example.prompt, example.answer, example.source))
                return [Judged(document, example.good, example.source)]

    def _completion(self, example: Completion) -> list[Item]:
        if isinstance(example.prompt, str):
            document = self._text(example.completion, example.prompt, example.source)
            return self._fit(document, context=1 if self.learn == "all" else self.length // 2)
        answer = [{"role": "assistant", "content": example.completion}]
        return self._talk(self._answer(example.prompt, answer, example.source))

    def _pair(self, pair: Preference) -> Paired:
        chosen, rejected = (
            self._whole(self._answer(pair.prompt, each, pair.source)) for each in (pair.chosen, pair.rejected)
        )
        if np.array_equal(chosen.ids, rejected.ids):
            raise _Unfit(SAME)
        return Paired(chosen, rejected, pair.source)

    def _whole(self, talk: Conversation) -> Document:
        """A document that cannot be split: half an answer is neither better nor worse than another."""
        document = self._rendered(talk)
        self._check(document)
        if len(document) > self.length:
            raise _Unfit(TOO_LONG, len(document))
        return document

    def _talk(self, talk: Conversation) -> list[Item]:
        document = self._rendered(talk, self.learn == "all")
        if len(document) <= self.length or self.long != "split" or self.learn == "all":
            return self._fit(document)
        return self._split(self._exchanges(talk))

    def _fit(self, document: Document, context: int = 1) -> list[Item]:
        """The document if it fits, its pieces where they are asked for. Raises what is to become of it else."""
        self._check(document)
        if len(document) <= self.length:
            return [document]
        if self.long != "split":
            raise _Unfit(TOO_LONG, len(document))
        return self._split(_pieces(document, self.length, self._head(document), context))

    def _split(self, pieces: Iterator[Document]) -> list[Item]:
        made: list[Item] = [*pieces]
        if not made:  # a template that marks answers only in the whole
            raise _Unfit(SILENT)
        self.report.split += 1
        return made

    def _check(self, document: Document) -> None:
        if not len(document):
            raise _Unfit(SILENT)
        if len(document) > self.length and self.long == "error":
            raise OptionError(
                f"{document.source} has {len(document):,} tokens, and a row holds {self.length:,} (data.length). "
                "Raise data.length, or set data.long to drop or split."
            )

    def _head(self, document: Document) -> int:
        """Tokens that every piece begins with: the BOS, which many networks rely on."""
        return int(self.tokenizer.bos is not None and document.ids[0] == self.tokenizer.bos)

    # Texts

    def _text(self, text: str, prompt: str, source: str) -> Document:
        """A text after its prompt, which may be empty. The prompt is what both have in common as tokens."""
        words = self.tokenizer
        ids = words.encode(prompt + text, bos=words.adds_bos)
        first = common(words.encode(prompt, bos=words.adds_bos), ids) if prompt and self.learn != "all" else 0
        ids += [] if words.roles.eos is None or not text else [words.roles.eos]
        loss = np.arange(len(ids)) >= max(first, 1)
        return _document(ids, loss & bool(text), source)

    # Conversations

    def _chosen(self, talk: Conversation) -> Conversation:
        """The conversation with those of its answers that the recipe learns."""
        if self.learn == "last":
            own = [i for i, message in enumerate(talk.messages) if message.get("role") == "assistant"]
            talk = replace(talk, learn=frozenset(sorted(own if talk.learn is None else talk.learn)[-1:]))
        return self._with_system(talk)

    def _answer(self, prompt: Messages, answer: Messages, source: str) -> Conversation:
        """A conversation of which only the answer is learnt."""
        messages = [*prompt, *answer]
        own = (i for i in range(len(prompt), len(messages)) if messages[i].get("role") == "assistant")
        return self._with_system(Conversation(messages, None, source, frozenset(own)))

    def _with_system(self, talk: Conversation) -> Conversation:
        if self.system is None or any(message.get("role") in SYSTEM for message in talk.messages):
            return talk
        messages = [{"role": "system", "content": self.system}, *talk.messages]
        return replace(
            talk, messages=messages, learn=None if talk.learn is None else frozenset(i + 1 for i in talk.learn)
        )

    def _rendered(self, talk: Conversation, everything: bool = False) -> Document:
        if self.template is None:
            raise OptionError(
                f"{talk.source} is a conversation, and this model has no chat template. Name a built-in format or a "
                "Jinja file by data.template."
            )
        ids, mask = self.template.training(talk.messages, tools=talk.tools, answers=talk.learn)
        return _document(ids, np.arange(len(ids)) > 0 if everything else np.array(mask, bool), talk.source)

    def _exchanges(self, talk: Conversation) -> Iterator[Document]:
        """Pieces of as many exchanges as fit, and of those that are too long by themselves."""
        exchanges = _exchanges(talk.messages)
        at = 0
        while at < len(exchanges):
            end = at + 1
            piece = self._rendered(_part(talk, exchanges[at:end]))
            while end < len(exchanges):
                longer = self._rendered(_part(talk, exchanges[at : end + 1]))
                if len(longer) > self.length:
                    break
                piece, end = longer, end + 1
            yield from _pieces(piece, self.length, self._head(piece) if len(piece) else 0, self.length // 2)
            at = end


SYSTEM = ("system", "developer")
KINDS = {Document: "a text or a conversation", Paired: "a pair of answers", Judged: "an answer with a label"}


def _document(ids: Sequence[int], loss: np.ndarray, source: str) -> Document:
    """The document up to its last learnt token; nothing stands before the first token, so it cannot be learnt."""
    learnt = np.flatnonzero(loss[1:])
    end = int(learnt[-1]) + 2 if len(learnt) else 0
    loss = loss[:end].copy()
    loss[:1] = False
    return Document(np.array(ids[:end], np.int32), loss, source)


def _exchanges(messages: Messages) -> list[range]:
    """The places of each exchange: from a user's message to the one before the next; system messages go before all."""
    roles = [message.get("role") for message in messages]
    first = next((i for i, role in enumerate(roles) if role not in SYSTEM), len(roles))
    starts = [i for i in range(first + 1, len(roles)) if roles[i] == "user" and roles[i - 1] in ("assistant", "tool")]
    return [range(start, end) for start, end in pairwise([first, *starts, len(roles)])]


def _part(talk: Conversation, exchanges: Sequence[range]) -> Conversation:
    """These exchanges after the system messages that the whole begins with."""
    first = exchanges[0].start
    lead = next((i for i, message in enumerate(talk.messages) if message.get("role") not in SYSTEM), first)
    places = [*range(lead), *range(first, exchanges[-1].stop)]
    learn = None if talk.learn is None else frozenset(new for new, old in enumerate(places) if old in talk.learn)
    return replace(talk, messages=[talk.messages[place] for place in places], learn=learn)


def _pieces(document: Document, length: int, head: int, context: int) -> Iterator[Document]:
    """The document in pieces of at most `length` tokens, in each of which other tokens are learnt.

    The first begins where the document does, if something is learnt there; every other with the document's `head`
    tokens and `context` tokens that stand before the first one that it learns.
    """
    ids, loss = document.ids, document.loss
    learnt = np.flatnonzero(loss)
    done = 0
    while (place := int(np.searchsorted(learnt, done))) < len(learnt):
        first = int(learnt[place])
        later = bool(done) or first >= length
        start, kept = (first - context, head) if later else (0, 0)
        end = int(learnt[np.searchsorted(learnt, start + length - kept) - 1]) + 1
        own = np.arange(start, end) >= first
        yield Document(
            np.concatenate([ids[:kept], ids[start:end]]),
            np.concatenate([np.zeros(kept, bool), loss[start:end] & own]),
            document.source,
        )
        done = end
