"""Whose turn it is: who waits, who runs, how many tokens of each go into the next step.

What the tokens mean, and where keys and values lie, is not known here.

Clients take turns by the tokens that were run for them (arxiv.org/abs/2401.00588). A step first gives every text that
is being continued its next token, then fills up with chunks of prompts. When memory is full, the youngest of the lowest
priority goes back to wait; what it had is computed again, as far as nobody kept it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from ..errors import CapacityError
from .pace import Pace
from .runner import Drafter, Part, Runner
from .sequence import Generation, Progress

SHORT = 16  # tokens still to be run that do not make a prompt
LOOKED = 32  # requests that are passed over in one step because what they share is still to come


@dataclass(slots=True)
class Turn:
    """What one request puts into a step; `drafts` are the last of its tokens."""

    sequence: Progress
    part: Part
    drafts: Sequence[int] = ()


class Scheduler:
    """The requests that wait and those that run. Not for several threads."""

    def __init__(self, runner: Runner, drafter: Drafter | None = None):
        self.running: list[Progress] = []  # as they were admitted
        self.preemptions = 0
        self._pace = Pace()
        self._runner = runner
        self._drafter = drafter if runner.rolls_back else None
        self._queues: dict[str, list[tuple[int, int, Progress]]] = {}  # of each client, a heap: highest priority first
        self._served: dict[str, int] = {}  # tokens run for each client
        self._came = 0
        self._turns = 0
        self._waiting = 0

    @property
    def waiting(self) -> int:
        return self._waiting

    def add(self, sequence: Progress) -> None:
        """It waits from now on."""
        self._came += 1
        sequence.number = self._came
        if not self._is_active(sequence.client):  # who was away has not saved up turns meanwhile
            least = min((self._served[client] for client in self._active()), default=0)
            self._served[sequence.client] = max(self._served.get(sequence.client, 0), least)
        self._push(sequence)

    def remove(self, sequence: Progress, keep: bool = True) -> None:
        """It has ended, or is to end now. Its pages are free, or kept for others if `keep`."""
        if sequence.runs:
            self._leave(sequence, keep)
        else:
            queue = self._queues.get(sequence.client, [])
            left = [entry for entry in queue if entry[2] is not sequence]
            self._waiting -= len(queue) - len(left)
            self._put_queue(sequence.client, sorted(left))
        self._tidy()

    def sequences(self) -> Iterator[Progress]:
        """All that run or wait."""
        yield from list(self.running)
        for queue in list(self._queues.values()):
            yield from [entry[2] for entry in queue]

    def plan(self) -> list[Turn]:
        """The next step; empty where nothing is to be done."""
        turns: list[Turn] = []
        budget = self._next_tokens(turns)
        if turns:
            budget = min(budget, self._pace.beside(sum(len(turn.part.tokens) for turn in turns)))
        budget = self._prompts(turns, budget)
        self._begin(turns, budget)
        return [turn for turn in turns if turn.sequence.runs]

    def ran(self, turns: Sequence[Turn], seconds: float) -> None:
        """Counts what was run, and in what time."""
        self._pace.ran(sum(len(turn.part.tokens) for turn in turns), seconds)
        for turn in turns:
            self._served[turn.sequence.client] += len(turn.part.tokens)

    def check(self) -> None:
        """Raises AssertionError where the books do not agree."""
        assert self._waiting == sum(map(len, self._queues.values())), "waiting requests are miscounted"
        assert all(one.runs == (one in self.running) for one in self.sequences()), "a request runs and does not"
        assert all(self._queues.values()), "an empty queue is kept"
        assert len(set(map(id, self.sequences()))) == self._waiting + len(self.running), "a request is there twice"

    # who goes on

    def _next_tokens(self, turns: list[Turn]) -> int:
        """Adds those that are being continued; returns how many tokens the step still takes."""
        ready = [sequence for sequence in self.running if sequence.left <= SHORT]
        budget = self._runner.step_tokens - sum(sequence.left for sequence in ready)
        for sequence, drafts in zip(ready, self._drafts(ready, budget), strict=True):
            if not sequence.runs:  # it made room for another
                continue
            has_room = sequence.text.grow(sequence.left + len(drafts))
            if has_room or self._grow(sequence, sequence.left):
                turns.append(self._turn(sequence, sequence.left, drafts if has_room else ()))
                budget -= len(turns[-1].drafts)
        return budget

    def _drafts(self, ready: Sequence[Progress], budget: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in ready]
        if self._drafter is None or budget <= 0:
            return found
        asked = [(i, one, min(one.may_draft, budget)) for i, one in enumerate(ready) if isinstance(one, Generation)]
        asked = [entry for entry in asked if entry[2] > 0]
        if not asked:
            return found
        try:
            drafts = self._drafter.draft([one for _, one, _ in asked], [most for _, _, most in asked])
        except Exception as error:
            warnings.warn(f"Tokens are no longer guessed, because guessing failed: {error!r}.", stacklevel=2)
            self._drafter = None
            return found
        for (i, _, most), tokens in zip(asked, drafts, strict=True):
            found[i] = tokens[: min(most, budget)]
            budget -= len(found[i])
        return found

    def _prompts(self, turns: list[Turn], budget: int) -> int:
        """Adds chunks of those with more to be run before their next token; returns what the step still takes."""
        for sequence in [one for one in self.running if one.left > SHORT]:
            if budget > 0 and sequence.runs:
                budget -= self._chunk(turns, sequence, budget)
        return budget

    def _begin(self, turns: list[Turn], budget: int) -> None:
        """Adds chunks of those that may begin."""
        passed: list[Progress] = []
        while budget > 0 and self._queues and len(self.running) < self._runner.most and len(passed) < LOOKED:
            sequence = self._pop()
            if sequence.text.waits(sequence.shareable):
                passed.append(sequence)
            elif self._open(sequence):
                budget -= self._chunk(turns, sequence, budget)
            else:
                passed.append(sequence)
                break
        for sequence in passed:
            self._push(sequence)

    def _chunk(self, turns: list[Turn], sequence: Progress, budget: int) -> int:
        tokens = min(sequence.left, budget)
        if not self._grow(sequence, tokens):
            return 0
        turns.append(self._turn(sequence, tokens))
        return tokens

    def _turn(self, sequence: Progress, tokens: int, drafts: Sequence[int] = ()) -> Turn:
        start = sequence.text.length
        ids = sequence.ids[start : start + tokens].tolist()
        wanted = sequence.wanted(tokens) + len(drafts)
        return Turn(sequence, Part(sequence.text, [*ids, *drafts], wanted, sequence.adapter), drafts)

    # memory

    def _grow(self, sequence: Progress, tokens: int) -> bool:
        """Makes room, if need be by sending others back, or the sequence itself."""
        while not sequence.text.grow(tokens):
            victim = min(self.running, key=_worth)
            self._send_back(victim)
            if victim is sequence:
                return False
        return True

    def _send_back(self, sequence: Progress) -> None:
        self._leave(sequence)
        self.preemptions += 1
        self._push(sequence)

    def _leave(self, sequence: Progress, keep: bool = True) -> None:
        sequence.runs = False
        self.running.remove(sequence)
        sequence.text.release(keep)

    # who begins

    def _open(self, sequence: Progress) -> bool:
        while not sequence.text.open(sequence.known, sequence.shareable):
            victim = min(self.running, key=_worth, default=None)
            if victim is None or victim.priority >= sequence.priority:
                return False
            self._send_back(victim)
        self._turns += 1
        sequence.turn = self._turns
        self.running.append(sequence)
        sequence.runs = True
        sequence.admit()
        return True

    def stuck(self) -> Progress | None:
        """The request that can never begin, though nobody else runs."""
        if self.running or not self._queues:
            return None
        sequence = self._pop()
        self._push(sequence)
        return sequence

    # queues

    def _pop(self) -> Progress:
        """Of the highest priority the request of the client that was served least, the longest waiting first."""
        client = min(
            self._queues, key=lambda one: (self._queues[one][0][0], self._served[one], self._queues[one][0][1])
        )
        queue = self._queues[client]
        sequence = heappop(queue)[2]
        self._waiting -= 1
        self._put_queue(client, queue)
        return sequence

    def _push(self, sequence: Progress) -> None:
        heappush(self._queues.setdefault(sequence.client, []), (-sequence.priority, sequence.number, sequence))
        self._waiting += 1

    def _put_queue(self, client: str, queue: list[tuple[int, int, Progress]]) -> None:
        if queue:
            self._queues[client] = queue
        else:
            self._queues.pop(client, None)

    def _active(self) -> set[str]:
        return {*self._queues, *(sequence.client for sequence in self.running)}

    def _is_active(self, client: str) -> bool:
        return client in self._queues or any(sequence.client == client for sequence in self.running)

    def _tidy(self) -> None:
        """Forgets how much was run for clients that are gone, when they become many."""
        if len(self._served) > 4096:
            active = self._active()
            self._served = {client: count for client, count in self._served.items() if client in active}


def _worth(sequence: Progress) -> tuple[int, int]:
    """What is sent back first: the lowest priority, the youngest."""
    return sequence.priority, -sequence.turn


def never(sequence: Progress) -> CapacityError:
    """What the request is told that memory cannot hold even alone."""
    return CapacityError(
        f"A text of {sequence.known} tokens does not fit the memory for keys and values, though nothing else runs. "
        "Give a shorter one, or the engine more memory."
    )
