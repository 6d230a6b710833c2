"""What the engine asks of those beside it: of a runner, of whoever drafts tokens, of whoever keeps adapters.

How any of them does it is not known here. Runners: native.py (pages), slots.py (Keras), singly.py (any executor).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..config import Config
from ..generate import Logits
from ..sampling import Need

if TYPE_CHECKING:
    from pathlib import Path

    from .sequence import Generation

Hidden = Any  # what a run leaves behind of W rows: handed to `logits` and `score`, sliced by nobody else


class Adapter(Protocol):
    """A loaded adapter. It stays usable as long as somebody holds the object, even when its name is gone."""

    name: str
    key: bytes  # another for other weights: kept prefixes are shared by texts of the same key only
    native: Any  # what the native executor runs it by


class Adapters(Protocol):
    """adapters.py: what is loaded, by name. Called by any thread."""

    def load(self, name: str, path: str | Path) -> Adapter:
        """Raises OptionError for a name that is taken or weights that do not fit, FormatError."""

    def unload(self, name: str) -> None:
        """The name is free at once; requests in flight keep theirs. Raises ModelNotFound."""

    def names(self) -> list[str]: ...

    def get(self, name: str) -> Adapter:
        """Raises ModelNotFound, with the names that are there."""


class Text(Protocol):
    """One text's place in a runner's memory; it may be left and entered again."""

    length: int  # tokens that are there for good: the next run goes on behind them
    cached: int  # tokens that `open` found

    def waits(self, shared: int) -> bool:
        """Whether a text that is just being run will soon leave more of this one's first `shared` ids."""

    def open(self, known: int, shared: int) -> bool:
        """Enters with what is there of the first `shared` ids; False where there is no room for all that is `known`."""

    def grow(self, tokens: int) -> bool:
        """Makes room for so many behind `length`; False where there is none now."""

    def advance(self, tokens: int) -> None:
        """So many of the tokens that were run behind `length` hold; the others are forgotten."""

    def release(self, keep: bool = True) -> None:
        """Leaves; `length` is 0 again. What is there may be kept for others if `keep`."""


@dataclass(slots=True)
class Part:
    """Some consecutive tokens of one text, behind its `length`; the last `wanted` of them are asked about."""

    text: Any  # the runner's own
    tokens: Sequence[int]
    wanted: int
    adapter: Adapter | None = None


class Runner(Protocol):
    """A model and its memory, on the engine's thread only."""

    config: Config
    step_tokens: int  # rows of one run, at most
    most: int  # texts that may be open at a time
    capacity: int  # tokens that one text may have when it is alone
    rolls_back: bool  # whether `advance` may forget tokens: else nothing is drafted
    page_bytes: tuple[int, ...]  # of a page, by group; none where that is not known

    def text(self, ids: np.ndarray, adapter: Adapter | None, salt: str) -> Text:
        """A text that holds nothing yet. `ids`, int64, is only read, and filled by others as the text grows."""

    def run(self, parts: Sequence[Part]) -> Hidden:
        """One forward. Rows of the result are the wanted ones, in order. Texts do not advance."""

    def logits(self, hidden: Hidden, rows: Sequence[int] | None, needs: Sequence[Need | None]) -> Logits:
        """Of some rows (None: all) what each needs (None: all logits)."""

    def vectors(self, hidden: Hidden, rows: Sequence[int]) -> np.ndarray:
        """Final hidden states of some rows: float32 (rows, D). Raises OptionError where there are none."""

    def score(
        self, hidden: Hidden, rows: Sequence[int], targets: Sequence[int], size: int | None
    ) -> tuple[list[float], list[bool]]:
        """For each row the log-probability of its target, and whether it is the likeliest of the first `size` ids."""

    def pages(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Held by texts, kept for reuse, all; by group."""

    def check(self) -> None:
        """Raises AssertionError where what is held, kept and free does not add up."""


class Drafter(Protocol):
    """drafts.py: guesses how texts go on. Guesses never change an answer, only its speed."""

    def draft(self, sequences: Sequence[Generation], most: Sequence[int]) -> list[list[int]]:
        """For each sequence at most so many ids that may follow its `ids[:known]`; empty where none are worth it.

        Called once a step, with those that are about to be given their next token.
        """

    def judged(self, sequence: Generation, drafted: int, accepted: int) -> None:
        """How many of the ids that were run were right."""

    def forget(self, sequence: Generation) -> None:
        """It has ended."""
