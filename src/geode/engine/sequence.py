"""One request in progress: what is known of its text, which rows it asks about, what their results mean.

Whose turn it is, and where keys and values lie, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError
from ..generate import Piece, Row
from ..sampling import FEW, Candidates, Choice, Need, top_k
from .request import Counts, Deliver, Request, Scores, Top

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer
    from .runner import Adapter, Hidden, Runner, Text

RIVALS = 4  # of the likeliest tokens that are looked at where a constraint may forbid the first; more cost time
AT_ONCE = 16  # rows whose likeliest are looked for together: all of their logits may have to be made


ENDED = -1  # the number of a request that is over


class Progress:
    """What all requests have in common. `ids` is filled as far as `known`; `text` is its place in the runner's memory.

    `number` counts requests as they came, `turn` as they were admitted; `runs` while it is among those that run. Of
    its first `shareable` ids the results may be taken from others.
    """

    text: Text
    number = 0
    turn = 0
    runs = False

    def __init__(self, ids: np.ndarray, known: int, client: str, priority: int, adapter: Adapter | None, salt: str):
        self.ids = ids
        self.known = known
        self.client = client
        self.priority = priority
        self.adapter = adapter
        self.salt = salt
        self.begun = perf_counter()
        self.admitted: float | None = None
        self.over = False  # ended or cancelled: nothing more is delivered

    @property
    def left(self) -> int:
        """Tokens to be run before anything new is known."""
        return self.known - self.text.length

    @property
    def shareable(self) -> int:
        return self.known - 1

    @property
    def unwanted(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.over

    def wanted(self, tokens: int) -> int:
        """How many of the next so many rows are asked about, counted from the last."""
        raise NotImplementedError

    def admit(self) -> None:
        if self.admitted is None:
            self.admitted = perf_counter()

    def fail(self, error: Exception) -> None:
        """Ends it, and tells whoever asked."""
        raise NotImplementedError


class Generation(Progress):
    """A text that is to be continued; it is its own `Ticket`.

    Raises what `Row` raises. `changed` is called when it is cancelled.
    """

    def __init__(
        self,
        request: Request,
        deliver: Deliver,
        context: int,
        ends: frozenset[int],
        tokenizer: Tokenizer | None,
        adapter: Adapter | None = None,
        changed: Callable[[Progress], None] = lambda _: None,
    ):
        self.usage = Counts()
        self.row = Row(request.ids, request.options, context, ends, tokenizer, self.usage)
        super().__init__(self.row.ids, len(self.row.prompt), request.client, request.priority, adapter, request.salt)
        self.request = request
        self.pieces: list[Piece] = []  # not yet delivered
        self._constraint = request.constraint
        self._deliver = deliver
        self._changed = changed
        self._first: float | None = None  # when the first token was there

    @property
    def finish_reason(self) -> str | None:
        return self.row.finish_reason

    @property
    def may_draft(self) -> int:
        """Tokens that may be guessed: one more is chosen after the last of them."""
        return self.row.room - self.usage.completion_tokens - 1 if self.request.speculate else 0

    def cancel(self) -> None:
        if not self.over:
            self.over = True
            self._changed(self)

    def wanted(self, tokens: int) -> int:
        return int(tokens >= self.left)

    def admit(self) -> None:
        super().admit()
        assert self.admitted is not None
        if self._first is None:
            self.usage.queued_seconds = self.admitted - self.begun
            self.usage.cached_tokens = self.text.cached

    def need(self, vocab: int, ahead: int) -> Need | None:
        """As `Row.need`; with a constraint the choice may fall on any token, but hardly ever on an unlikely one."""
        need = self.row.need(vocab, ahead)
        if self._constraint is None or need is None:
            return need
        is_plain = self.row.greedy and not need.ids.size
        return need._replace(k=RIVALS) if is_plain and need.size >= FEW * RIVALS else None

    def take(self, logits: Sequence[np.ndarray | Candidates], drafts: Sequence[int]) -> Generator[int, np.ndarray, int]:
        """Chooses a token by each row, as far as the `drafts` it was run with come true. Returns how many did.

        Yields the index of a row all of whose logits it must see, and is sent them.
        """
        right = 0
        for index, row in enumerate(logits):
            choice = yield from self._choose(index, row)
            self._add(choice)
            if self.row.finish_reason or index == len(drafts) or choice.token != drafts[index]:
                break
            right += 1
        self._add_forced()
        self.usage.drafted_tokens += len(drafts)
        self.usage.accepted_tokens += right
        return right

    def timed(self, now: float) -> None:
        """Tokens were taken at a moment."""
        if self._first is None:
            self._first = now
            self.usage.prompt_seconds = now - (self.admitted or now)
        self.usage.completion_seconds = now - self._first

    def flush(self) -> None:
        """Delivers what was made. Raises what the receiver raises."""
        pieces, self.pieces = self.pieces, []
        for piece in pieces:
            if self.over:
                return
            self._deliver(piece)

    def fail(self, error: Exception) -> None:
        self.flush()
        if not self.over:
            self.over = True
            self._deliver(error)

    def _choose(self, index: int, row: np.ndarray | Candidates) -> Generator[int, np.ndarray, Choice]:
        if self._constraint is None:
            return self.row.choose(row)
        if self.row.greedy:  # the likeliest of all is the likeliest of those that are allowed, if it is one of them
            choice = self.row.choose(row)
            if self._constraint.allows(choice.token):
                return choice
        mask = self._constraint.mask()
        if mask is not None and isinstance(row, Candidates):
            few = _allowed(row, mask)
            row = few if few.ids.size else (yield index)
        return self.row.choose(row, mask)

    def _add(self, choice: Choice) -> None:
        self.pieces.append(self.row.add(choice))
        self.known += 1
        if self._constraint is not None and self.row.finish_reason is None:
            self._constraint.accept(choice.token)

    def _add_forced(self) -> None:
        """Goes on with what must follow; where log-probabilities are asked for, every token is looked at instead."""
        if self._constraint is None or self.request.options.logprobs is not None:
            return
        for token in self._constraint.forced() if self.row.finish_reason is None else ():
            self._add(Choice(token, None, ()))
            if self.row.finish_reason:
                return


class Embedding(Progress):
    """A text whose final hidden states are pooled: "mean" of all, or the "last"."""

    def __init__(self, ids: Sequence[int], pooling: str, client: str, priority: int, adapter: Adapter | None):
        if pooling not in ("mean", "last"):
            raise OptionError(f"pooling must be 'mean' or 'last'; {pooling!r} was given.")
        super().__init__(np.asarray(ids, np.int64), len(ids), client, priority, adapter, "")
        self.future: Future[np.ndarray] = Future()
        self._mean = pooling == "mean"
        self._seen: list[np.ndarray] = []

    @property
    def shareable(self) -> int:
        return 0 if self._mean else super().shareable

    @property
    def unwanted(self) -> bool:
        return self.over or self.future.cancelled()

    def wanted(self, tokens: int) -> int:
        return tokens if self._mean else int(tokens >= self.left)

    def admit(self) -> None:
        super().admit()
        self._seen.clear()  # it may have been put off half-way

    def look(self, runner: Runner, hidden: Hidden, rows: Sequence[int], is_last: bool) -> None:
        """Takes the rows that it wanted; `is_last` when no more will come."""
        if rows:
            self._seen.append(runner.vectors(hidden, rows))
        if is_last:
            every = np.concatenate(self._seen)
            _settle(self.future, every.mean(axis=0, dtype=np.float64).astype(np.float32))

    def fail(self, error: Exception) -> None:
        self.over = True
        _fail(self.future, error)


class Scoring(Progress):
    """A text whose ids from `start` on are judged: log-probabilities, whether each was the likeliest, the `top`."""

    def __init__(
        self,
        ids: Sequence[int],
        start: int,
        size: int | None,
        top: int,
        client: str,
        priority: int,
        adapter: Adapter | None,
        salt: str,
    ):
        super().__init__(np.asarray(ids, np.int64), len(ids) - 1, client, priority, adapter, salt)
        self.future: Future[Scores] = Future()
        self._start = start
        self._size = size
        self._top = top
        self._seen = Scores([], [], [])

    @property
    def shareable(self) -> int:
        return self._start - 1

    @property
    def unwanted(self) -> bool:
        return self.over or self.future.cancelled()

    def wanted(self, tokens: int) -> int:
        return min(tokens, max(0, self.text.length + tokens - (self._start - 1)))

    def admit(self) -> None:
        super().admit()
        self._seen = Scores([], [], [])

    def look(self, runner: Runner, hidden: Hidden, rows: Sequence[int], is_last: bool) -> None:
        if rows:
            at = self._start + len(self._seen.logprobs)
            targets = self.ids[at : at + len(rows)].tolist()
            logprobs, greedy = runner.score(hidden, rows, targets, self._size)
            self._seen.logprobs.extend(logprobs)
            self._seen.greedy.extend(greedy)
            for i in range(0, len(rows) if self._top else 0, AT_ONCE):
                some = slice(i, i + AT_ONCE)
                self._seen.top.extend(self._likeliest(runner, hidden, rows[some], targets[some], logprobs[some]))
        if is_last:
            _settle(self.future, self._seen)

    def _likeliest(
        self, runner: Runner, hidden: Hidden, rows: Sequence[int], targets: Sequence[int], logprobs: Sequence[float]
    ) -> Iterator[Top]:
        """Log-probabilities are told by the target's, which is known: nobody has to add all up again."""
        size = self._size or runner.config.vocab
        needs = [Need(self._top, np.inf, np.array([target], np.int32), size) for target in targets]
        asked = [need if target < size else None for need, target in zip(needs, targets, strict=True)]
        for found, target, logprob in zip(runner.logits(hidden, rows, asked), targets, logprobs, strict=True):
            is_few = isinstance(found, Candidates)
            ids, logits = (found.ids, found.logits) if is_few else (np.arange(size), found[:size])
            own = logits[np.searchsorted(ids, target)] if target < size else found[target]
            best = top_k(logits, self._top)
            pairs = zip(ids[best].tolist(), (logits[best] - own + logprob).tolist(), strict=True)
            yield tuple((i, logprob if i == target else other) for i, other in pairs)

    def fail(self, error: Exception) -> None:
        self.over = True
        _fail(self.future, error)


def _allowed(found: Candidates, mask: np.ndarray) -> Candidates:
    """Those of the `RIVALS` likeliest that a mask, bool (V,), lets through: no other it lets through is likelier."""
    least = np.partition(found.logits, -RIVALS)[-RIVALS]  # `found` may hold more, and then not all that are as likely
    kept = mask[found.ids] & (found.logits >= least)
    return Candidates(found.ids[kept], found.logits[kept], found.size)


def gathered(pieces: Iterator[Piece]) -> tuple[str, list[int], str | None]:
    """Pieces as one: text, tokens, why it ended."""
    every = list(pieces)
    tokens = [piece.token for piece in every if piece.token is not None]
    return "".join(piece.text for piece in every), tokens, every[-1].finish_reason if every else None


def _settle(future: Future[Any], result: Any) -> None:
    if future.set_running_or_notify_cancel():
        future.set_result(result)


def _fail(future: Future[Any], error: Exception) -> None:
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)
