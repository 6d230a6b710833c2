"""Guesses how texts go on: by looking up what followed the same words before, or by asking a smaller model.

Whether a guess was right is found out elsewhere; it never changes an answer, only how many steps that takes.

    … the cat sat on the mat. The dog  said:  the cat sat
           ▲───────── same words ────────────  ▲
                       └ on the mat …          guess: as many as the words that agree, more while guesses come true
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import OptionError
from ..generate import Executor
from ..sampling import Candidates, Need
from .runner import Part, Runner, Text
from .sequence import Generation

WORDS = 3  # ids that must agree before anything is looked up
LONGEST = 16  # ids guessed at a time
REST = 32  # steps that a text whose guesses were wrong goes without, at most
Key = tuple[int, ...]


@dataclass(slots=True)
class Memory:
    """What one text has said: behind which words what follows, and how guesses have fared."""

    places: dict[Key, int] = field(default_factory=dict)  # words -> where the last text behind them begins
    seen: int = WORDS - 1  # ids whose words are in `places`, the last not among them
    reach: int = 4  # ids to guess at most
    failures: int = 0  # guesses in a row of which nothing was right
    rest: int = 0  # steps to go without


class Lookup:
    """Prompt lookup (github.com/apoorvumang/prompt-lookup-decoding), with a length that follows its luck."""

    def __init__(self) -> None:
        self._memories: dict[int, Memory] = {}

    def draft(self, sequences: Sequence[Generation], most: Sequence[int]) -> list[list[int]]:
        """For each text what followed its last words when they were last said; empty where they are new."""
        return [self._one(sequence, limit) for sequence, limit in zip(sequences, most, strict=True)]

    def judged(self, sequence: Generation, drafted: int, accepted: int) -> None:
        """Guesses further after good ones; after bad ones less far, and then for some steps not at all."""
        memory = self._memories.get(sequence.number)
        if memory is None or not drafted:
            return
        if accepted == drafted:
            memory.reach, memory.failures = min(LONGEST, 2 * memory.reach), 0
        elif accepted:
            memory.reach, memory.failures = max(2, accepted + 1), 0
        else:
            memory.failures += 1
            memory.reach, memory.rest = 2, min(REST, 2**memory.failures)

    def forget(self, sequence: Generation) -> None:
        self._memories.pop(sequence.number, None)

    def _one(self, sequence: Generation, most: int) -> list[int]:
        memory = self._memories.setdefault(sequence.number, Memory())
        if memory.rest:
            memory.rest -= 1
            return []
        ids, known = sequence.ids, sequence.known
        if known <= WORDS:
            return []
        place = self._place(memory, ids, known)
        if place is None:
            return []
        count = min(most, memory.reach, _agree(ids, place, known), known - place)
        found: list[int] = ids[place : place + count].tolist()
        return found

    def _place(self, memory: Memory, ids: np.ndarray, known: int) -> int | None:
        """Where the text goes on that followed the last words before; takes in what is new."""
        new: list[int] = ids[memory.seen - WORDS + 1 : known].tolist()
        places = memory.places
        for i in range(len(new) - WORDS):
            places[new[i], new[i + 1], new[i + 2]] = memory.seen + 1 + i
        memory.seen = known - 1
        return places.get(tuple(new[-WORDS:]))


def _agree(ids: np.ndarray, place: int, known: int) -> int:
    """How many ids before `place` and before `known` are the same, up to LONGEST."""
    span = min(LONGEST, place)
    same = ids[place - span : place] == ids[known - span : known]
    return int(span if same.all() else np.argmin(same[::-1]))


class Smaller:
    """A smaller model of the same vocabulary, which continues greedily. It keeps pages of its own."""

    def __init__(self, runner: Runner, most: int = 4):
        self._runner, self._most = runner, most
        self._texts: dict[int, Text] = {}

    def draft(self, sequences: Sequence[Generation], most: Sequence[int]) -> list[list[int]]:
        """What the model says next, up to four ids for each text that has room in its memory."""
        return [self._one(sequence, min(limit, self._most)) for sequence, limit in zip(sequences, most, strict=True)]

    def judged(self, sequence: Generation, drafted: int, accepted: int) -> None:
        """The model does not learn."""

    def forget(self, sequence: Generation) -> None:
        text = self._texts.pop(sequence.number, None)
        if text is not None:
            text.release()

    def _one(self, sequence: Generation, most: int) -> list[int]:
        text = self._text(sequence)
        if text is None or not self._catch_up(sequence, text):
            return []
        return self._guess(sequence, text, most)

    def _text(self, sequence: Generation) -> Text | None:
        """Its place in the model's memory; None where there is none free."""
        text = self._texts.get(sequence.number)
        if text is None:
            text = self._runner.text(sequence.ids, None, sequence.salt)
            if not text.open(sequence.known, sequence.known - 1):
                return None
            self._texts[sequence.number] = text
        return text

    def _catch_up(self, sequence: Generation, text: Text) -> bool:
        """Runs all known ids but the last; False where there is no room."""
        while (left := sequence.known - 1 - text.length) > 0:
            count = min(left, self._runner.step_tokens)
            if not text.grow(count):
                return False
            self._runner.run([Part(text, sequence.ids[text.length : text.length + count].tolist(), 0)])
            text.advance(count)
        return text.grow(1 + self._most)

    def _guess(self, sequence: Generation, text: Text, most: int) -> list[int]:
        """Greedy ids behind the last known. A text may not take back what it advanced over, so each guess runs those
        before it again: few rows of a small model."""
        found: list[int] = []
        need = Need(1, float("inf"), np.empty(0, np.int32), self._runner.config.vocab)
        for _ in range(most):
            hidden = self._runner.run([Part(text, [int(sequence.ids[sequence.known - 1]), *found], 1)])
            (row,) = self._runner.logits(hidden, None, [need])
            found.append(int(row.ids[row.logits.argmax()]) if isinstance(row, Candidates) else int(row.argmax()))
        return found


def check_same(large: Executor, small: Executor) -> None:
    """Raises OptionError where a smaller model cannot guess for a larger."""
    if large.config.vocab != small.config.vocab:
        raise OptionError(
            f"The drafting model has {small.config.vocab} tokens and the model {large.config.vocab}: their ids mean "
            "different words. Choose one of the same family."
        )
