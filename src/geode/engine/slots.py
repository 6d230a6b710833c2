"""A runner for the frameworks: texts in slots of one cache, in programs of fixed shapes.

A slot keeps what it held when its text has left, for one that begins alike. Who may enter, and when, is the scheduler's
to know; what a slot is made of is `network.slots`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from ..errors import CapacityError, OptionError
from ..generate import Logits
from ..memory import available
from ..network import backend
from ..network.cache import CHUNK
from ..network.executor import Executor
from ..network.slots import Slots, stacked
from ..sampling import Need, log_total
from .runner import Adapter, Part

Hidden = list[Any]  # one (D,) for each wanted row, on the device


@dataclass
class Slot:
    """What is in one place of the cache: ids, the salt of their owner, and since when nobody uses them."""

    number: int
    ids: list[int] = field(default_factory=list)
    salt: str = ""
    owner: Text | None = None
    left: int = 0


class Text:
    """One text's place in a slot."""

    def __init__(self, runner: SlotRunner, ids: np.ndarray, salt: str):
        self.length = 0
        self.cached = 0
        self.salt = salt
        self.ids = ids
        self.slot: Slot | None = None
        self._runner = runner

    def waits(self, shared: int) -> bool:
        """Slots share nothing while they run."""
        return False

    def open(self, known: int, shared: int) -> bool:
        """Enters a free slot, that with the longest common beginning; False where none is free."""
        self.slot = self._runner.enter(self, shared) if self._runner.make_room(known) else None
        if self.slot is None:
            return False
        self.length = self.cached = len(self.slot.ids)
        return True

    def grow(self, tokens: int) -> bool:
        """Makes room for so many more."""
        return self._runner.make_room(self.length + tokens)

    def advance(self, tokens: int) -> None:
        """So many of the tokens behind `length` hold. What lies behind them is never seen, and written over in time."""
        assert self.slot is not None
        self.slot.ids += self.ids[self.length : self.length + tokens].tolist()
        self.length += tokens

    def release(self, keep: bool = True) -> None:
        """Leaves the slot."""
        if self.slot is not None:
            self._runner.leave(self.slot, keep)
        self.slot, self.length = None, 0


class SlotRunner:
    """A Keras network with `slots` texts at a time, each of at most `length` tokens."""

    rolls_back = True
    step_tokens = CHUNK

    def __init__(self, executor: Executor, slots: int = 8, length: int | None = None):
        self.config = executor.config
        self.capacity = min(self.config.context, length or self.config.context)
        self.most = slots
        self._executor = executor
        self._cache = Slots(executor.decoder, slots)
        self._slots = [Slot(number) for number in range(slots)]
        self._clock = count(1)

    @property
    def page_bytes(self) -> tuple[int, ...]:
        """Of a slot, with the room that it has now."""
        return (self._cache.nbytes(self._cache.room) // self.most,)

    def text(self, ids: np.ndarray, adapter: Adapter | None, salt: str) -> Text:
        """A text that holds nothing yet. Raises OptionError for an adapter: here they are merged while weights load."""
        if adapter is not None:
            raise OptionError(
                "On a framework adapters cannot differ from request to request. Load the model with adapter=…, "
                "or run it natively (--on native)."
            )
        return Text(self, ids, salt)

    def run(self, parts: Sequence[Part]) -> Hidden:
        """One token of all who have one, together; longer parts one after the other."""
        single = [part for part in parts if len(part.tokens) == 1]
        stepped: Any = self._step(single) if single else None
        found: Hidden = []
        for part in parts:
            slot: Slot = part.text.slot
            if len(part.tokens) == 1:
                found += [stepped[slot.number]] * part.wanted
                continue
            hidden = self._cache.chunk(slot.number, part.tokens, part.text.length)
            found += [hidden[row] for row in range(len(part.tokens) - part.wanted, len(part.tokens))]
        return found

    def logits(self, hidden: Hidden, rows: Sequence[int] | None, needs: Sequence[Need | None]) -> Logits:
        """All logits of some rows (None: all)."""
        chosen = hidden if rows is None else [hidden[row] for row in rows]
        return self._logits(chosen)

    def vectors(self, hidden: Hidden, rows: Sequence[int]) -> np.ndarray:
        """Final hidden states of some rows: float32 (rows, D)."""
        return np.stack([backend.to_numpy(hidden[row]) for row in rows]).astype(np.float32)

    def score(
        self, hidden: Hidden, rows: Sequence[int], targets: Sequence[int], size: int | None
    ) -> tuple[list[float], list[bool]]:
        """For each row the log-probability of its target, and whether it is the likeliest of the first `size` ids."""
        logits, wanted = self._logits([hidden[row] for row in rows]), np.asarray(targets)
        logprobs = logits[np.arange(len(rows)), wanted] - log_total(logits)
        return logprobs.tolist(), (logits[:, :size].argmax(axis=1) == wanted).tolist()

    def pages(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Slots held, kept for reuse, and all."""
        held = sum(slot.owner is not None for slot in self._slots)
        kept = sum(slot.owner is None and bool(slot.ids) for slot in self._slots)
        return (held,), (kept,), (self.most,)

    def check(self) -> None:
        """Raises AssertionError where a slot and its text disagree."""
        for slot in self._slots:
            owner = slot.owner
            assert owner is None or owner.slot is slot, f"slot {slot.number} is held by a text that is elsewhere"
            assert owner is None or owner.length == len(slot.ids), f"slot {slot.number} holds another number of tokens"

    # Slots

    def enter(self, text: Text, most: int) -> Slot | None:
        """The free slot whose tokens serve best; it holds those that are shared, and no others."""
        free = [slot for slot in self._slots if slot.owner is None]
        if not free:
            return None
        wanted = text.ids[:most].tolist()
        shared = {slot.number: self._shared(slot, text.salt, wanted) for slot in free}
        best = max(free, key=lambda slot: (shared[slot.number], not slot.ids, -slot.left))
        best.ids, best.salt, best.owner = best.ids[: shared[best.number]], text.salt, text
        if not best.ids:
            self._cache.clear(best.number)
        return best

    def leave(self, slot: Slot, keep: bool) -> None:
        slot.owner, slot.left = None, next(self._clock)
        if not keep:
            slot.ids = []

    def make_room(self, tokens: int) -> bool:
        """Whether every slot can hold so many tokens now."""
        free = available()
        more = self._cache.nbytes(tokens) if tokens > self._cache.room else 0
        if free is not None and more > free:
            return False
        self._cache.make_room(tokens)
        return True

    def _shared(self, slot: Slot, salt: str, ids: list[int]) -> int:
        """How many tokens of a slot also begin a text.

        A ring of a windowed layer holds `window` tokens and a chunk: of a text that is longer than that, only the last
        chunk can be taken back.
        """
        if slot.salt != salt:
            return 0
        most = min(len(slot.ids), len(ids))
        shared = next((i for i in range(most) if slot.ids[i] != ids[i]), most)
        rings = [layer.window + CHUNK for layer in self.config.pattern if layer.window is not None]
        turned = any(len(slot.ids) > ring for ring in rings)
        return 0 if turned and shared < len(slot.ids) - CHUNK else shared

    # Programs

    def _step(self, parts: Sequence[Part]) -> Any:
        tokens, positions = np.zeros(self.most, np.int32), np.full(self.most, -1, np.int32)
        for part in parts:
            tokens[part.text.slot.number], positions[part.text.slot.number] = part.tokens[0], part.text.length
        return self._cache.step(tokens, positions)

    def _logits(self, rows: Sequence[Any]) -> np.ndarray:
        """Logits (rows, V)."""
        if not rows:
            raise CapacityError("Logits of no rows were asked for.")
        return backend.to_numpy(self._executor.head(stacked(rows)))[: len(rows)]
