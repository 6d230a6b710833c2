"""One step of the engine: plan, run, take. What threads and callers are is not known here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from time import perf_counter

import numpy as np

from ..sampling import Candidates
from .runner import Drafter, Hidden, Runner
from .scheduler import Scheduler, Turn, never
from .sequence import ENDED, Embedding, Generation, Progress, Scoring

Rows = list[list[int]]  # for each turn its rows of the hidden states


class Stepper:
    """Steps over the requests of a scheduler; totals are counted along. One request's error ends that request only.

    `ended` is told of each request that is over.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        drafter: Drafter | None = None,
        ended: Callable[[Progress], None] = lambda _: None,
    ):
        self.steps = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generated_tokens = 0
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.batch = 0
        self._runner = runner
        self._scheduler = scheduler
        self._drafter = drafter
        self._ended = ended

    def step(self) -> bool:
        """Runs one step; False where there was nothing to do."""
        turns = self._scheduler.plan()
        if not turns:
            return self._give_up()
        begun = perf_counter()
        turns, hidden = self._run(turns)
        self.steps += 1
        self.batch = sum(len(turn.part.tokens) for turn in turns)
        self._scheduler.ran(turns, perf_counter() - begun)
        self._take(turns, hidden)
        return True

    def drop(self, sequence: Progress, error: Exception | None = None) -> None:
        """Ends a request before its time, with an error if its receiver is to hear of it."""
        self._end(sequence, keep=error is None)
        if error is not None:
            tell(sequence, error)

    def _give_up(self) -> bool:
        stuck = self._scheduler.stuck()
        if stuck is not None:
            self.drop(stuck, never(stuck))
        return stuck is not None

    def _run(self, turns: list[Turn]) -> tuple[list[Turn], Hidden]:
        """Runs all together; where that fails, finds out who cannot be run, and goes on without them."""
        try:
            return turns, self._runner.run([turn.part for turn in turns])
        except Exception as error:
            if len(turns) == 1:
                self.drop(turns[0].sequence, error)
                return [], None
        good = [turn for turn in turns if self._runs_alone(turn)]
        if not good:
            return [], None
        return good, self._runner.run([turn.part for turn in good])

    def _runs_alone(self, turn: Turn) -> bool:
        try:
            self._runner.run([turn.part])
        except Exception as error:
            self.drop(turn.sequence, error)
            return False
        return True

    def _take(self, turns: Sequence[Turn], hidden: Hidden) -> None:
        """Every turn gets its rows; texts advance, and those that are whole end."""
        rows = _rows(turns)
        asking = [i for i, turn in enumerate(turns) if isinstance(turn.sequence, Generation) and rows[i]]
        found = self._chosen(turns, hidden, rows, asking) if asking else {}
        now = perf_counter()
        for i, turn in enumerate(turns):
            sequence = turn.sequence
            if i in found:
                self._advance(turn, found[i], now)
            elif isinstance(sequence, Embedding | Scoring):
                self._look(turn, hidden, rows[i])
            elif i not in asking:
                self._pass(turn)
        for i in found:
            self._deliver(turns[i].sequence)

    def _chosen(self, turns: Sequence[Turn], hidden: Hidden, rows: Rows, asking: Sequence[int]) -> dict[int, int]:
        """Lets every text that is asked about choose; for each that could, how many of its drafts came true."""
        logits = self._logits(turns, hidden, rows, asking)
        takers = {i: turns[i].sequence.take(logits[i], turns[i].drafts) for i in asking}  # type: ignore[attr-defined]
        answers: dict[int, np.ndarray | None] = dict.fromkeys(asking)
        found: dict[int, int] = {}
        while wishes := self._ask(turns, takers, answers, found):
            whole = self._runner.logits(hidden, [rows[i][at] for i, at in wishes.items()], [None] * len(wishes))
            answers = {i: np.asarray(whole[n]) for n, i in enumerate(wishes)}
        return found

    def _ask(
        self,
        turns: Sequence[Turn],
        takers: dict[int, Generator[int, np.ndarray, int]],
        answers: dict[int, np.ndarray | None],
        found: dict[int, int],
    ) -> dict[int, int]:
        """Goes on with some takers; returns the rows that they must see whole."""
        wishes: dict[int, int] = {}
        for i, logits in answers.items():
            try:
                wishes[i] = takers[i].send(logits)  # type: ignore[arg-type]
            except StopIteration as done:
                found[i] = done.value
            except Exception as error:
                self.drop(turns[i].sequence, error)
        return wishes

    def _logits(
        self, turns: Sequence[Turn], hidden: Hidden, rows: Rows, asking: Sequence[int]
    ) -> dict[int, list[np.ndarray | Candidates]]:
        """For each turn that asks, what its choices depend on."""
        vocab = self._runner.config.vocab
        needs = []
        for i in asking:
            turn = turns[i]
            sequence = turn.sequence
            assert isinstance(sequence, Generation)
            if turn.drafts:
                sequence.row.guess(turn.drafts)
            needs += [sequence.need(vocab, ahead) for ahead in range(len(rows[i]))]
        flat = [row for i in asking for row in rows[i]]
        is_all = len(flat) == sum(map(len, rows))
        every = iter(self._runner.logits(hidden, None if is_all else flat, needs))
        return {i: [next(every) for _ in rows[i]] for i in asking}

    def _advance(self, turn: Turn, right: int, now: float) -> None:
        sequence = turn.sequence
        assert isinstance(sequence, Generation)
        fresh = sequence.usage.completion_tokens == len(sequence.pieces) and sequence.usage.prompt_seconds == 0
        if fresh:
            self.prompt_tokens += sequence.usage.prompt_tokens
            self.cached_tokens += sequence.usage.cached_tokens
        self.generated_tokens += len(sequence.pieces)
        self.drafted_tokens += len(turn.drafts)
        self.accepted_tokens += right
        sequence.timed(now)
        sequence.text.advance(len(turn.part.tokens) - len(turn.drafts) + right)
        if turn.drafts and self._drafter is not None:
            self._drafter.judged(sequence, len(turn.drafts), right)
        if sequence.finish_reason is not None:
            self._end(sequence)

    def _pass(self, turn: Turn) -> None:
        """A chunk of a prompt that nobody asks about yet."""
        turn.sequence.text.advance(len(turn.part.tokens))

    def _look(self, turn: Turn, hidden: Hidden, rows: Sequence[int]) -> None:
        sequence = turn.sequence
        assert isinstance(sequence, Embedding | Scoring)
        sequence.text.advance(len(turn.part.tokens))
        is_last = sequence.left == 0
        try:
            sequence.look(self._runner, hidden, rows, is_last)
        except Exception as error:
            self.drop(sequence, error)
            return
        if is_last:
            self.prompt_tokens += sequence.known
            self.cached_tokens += sequence.text.cached
            self._end(sequence)

    def _deliver(self, sequence: Progress) -> None:
        assert isinstance(sequence, Generation)
        try:
            sequence.flush()
        except Exception:  # whoever listens is broken: there is nobody to tell
            if not sequence.over:
                sequence.over = True
                self._end(sequence)
            return
        sequence.over = sequence.over or sequence.finish_reason is not None

    def _end(self, sequence: Progress, keep: bool = True) -> None:
        if sequence.number == ENDED:  # it was cancelled while its last piece was on its way
            return
        self._scheduler.remove(sequence, keep)
        if isinstance(sequence, Generation) and self._drafter is not None:
            self._drafter.forget(sequence)
        sequence.number = ENDED
        self._ended(sequence)


def _rows(turns: Sequence[Turn]) -> Rows:
    found, at = [], 0
    for turn in turns:
        found.append(list(range(at, at + turn.part.wanted)))
        at += turn.part.wanted
    return found


def tell(sequence: Progress, error: Exception) -> None:
    """Ends a request with an error, whoever listens."""
    try:
        sequence.fail(error)
    except Exception:  # nobody listens
        sequence.over = True
