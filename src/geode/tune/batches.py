"""Documents to steps: which rows a step holds, and the arrays that a network is given.

What a network does with them is not known here, nor how documents came about.

    epoch   a new order of the documents, and rows packed from it
    stream  the rows of epoch 0, 1, 2 …, each in an order of its own
    step    the next `rows` × `accumulate` × `processes` rows of the stream, be they of one epoch or of two
    micro   `rows` rows of a step, for one process: one forward and backward

A step is a function of the documents, the options and its number, so a run goes on from any of them. How many rows an
epoch has depends on the lengths of the documents alone, so that every epoch has as many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import OptionError
from .documents import Document, Documents, Item, Judged, Paired, sequences
from .packing import pack
from .recipe import Recipe

__all__ = ["Micro", "Steps", "each_once", "steps"]

Row = Sequence[Item]
ROUND = 32  # what the length of rows of one document, and the number of learnt places, are padded to a multiple of


@dataclass(frozen=True)
class Micro:
    """What one forward and backward takes. B rows of T tokens, M places that are learnt, S sequences.

    tokens_BT     int32, 0 as padding
    positions_BT  int32, from 0 in each sequence, -1 as padding
    segments_BT   int32, 1, 2 … for the sequences of a row, 0 as padding
    at_M          int32, places in B·T whose hidden state predicts
    targets_M     int32, the token that each is to predict
    weights_M     float32, 0 as padding. Of single documents those of a whole step, all its micros and processes, sum
                  to 1, each learnt token weighing the same; of pairs and labelled answers each is 1
    owners_M      int32, the sequence of each; of pair p the chosen one is 2p, the rejected one 2p + 1
    labels_S      int8, 1 for a chosen or good sequence, 0 for the others, -1 as padding; empty for single documents
    shares_S      float32, 1 / the pairs or labelled answers of a whole step, all its micros and processes; 0 as padding
    sources       where each sequence came from
    tokens        how many there are, without padding
    learnt        how many targets there are

    Where shapes are fixed M is padded to few different sizes, as a compiler wants it; else to a multiple of ROUND.
    """

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    segments_BT: np.ndarray
    at_M: np.ndarray
    targets_M: np.ndarray
    weights_M: np.ndarray
    owners_M: np.ndarray
    labels_S: np.ndarray
    shares_S: np.ndarray
    sources: tuple[str, ...]
    tokens: int
    learnt: int

    def arrays(self) -> dict[str, np.ndarray]:
        """What objectives take, by names without shape letters; `labels` and `shares` are not of single documents."""
        every = {name.rpartition("_")[0]: getattr(self, name) for name in self.__dataclass_fields__ if "_" in name}
        return {name: array for name, array in every.items() if array.size}


KINDS = {Document: "single documents", Paired: "pairs of answers", Judged: "answers with a label"}
LEARNS: dict[str, type[Item]] = {
    "sft": Document,
    "distil": Document,
    "dpo": Paired,
    "ipo": Paired,
    "orpo": Paired,
    "simpo": Paired,
    "reward": Paired,
    "kto": Judged,
}
"""What each objective learns from."""


def steps(documents: Documents, recipe: Recipe, *, processes: int = 1, fixed: bool = False) -> Steps:
    """The steps of a recipe. Raises OptionError where its objective does not learn from such documents."""
    check_kind(documents, recipe.objective.name)
    return Steps(
        documents.items,
        length=recipe.data.length,
        rows=recipe.batch.rows,
        accumulate=recipe.batch.accumulate,
        processes=processes,
        packed=recipe.data.pack,
        seed=recipe.run.seed,
        epochs=recipe.run.epochs,
        count=recipe.run.steps,
        fixed=fixed,
    )


def check_kind(documents: Documents, objective: str) -> None:
    """Raises OptionError where the objective does not learn from such documents."""
    wanted, found = LEARNS[objective], type(documents.items[0])
    if wanted is not found:
        fitting = [name for name, kind in LEARNS.items() if kind is found]
        raise OptionError(
            f"objective.name {objective} learns from {KINDS[wanted]}; these data are {KINDS[found]}. "
            f"Give other data, or choose {' or '.join(fitting)}."
        )


class Steps:
    """The steps of a run over items of one kind, each of at most `length` tokens.

    A row of pairs is two of tokens: the chosen sequences in one, the rejected ones in the next. When all data are less
    than one step, a step is all of them. `fixed`: every micro has the same shape but for M and S.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        length: int,
        rows: int = 4,
        accumulate: int = 1,
        processes: int = 1,
        packed: bool = True,
        seed: int = 0,
        epochs: float = 1.0,
        count: int | None = None,
        fixed: bool = False,
    ):
        _check(items, rows=rows, accumulate=accumulate, processes=processes, epochs=epochs, steps=count, seed=seed)
        self.items, self.length, self.rows, self.processes = items, length, rows, processes
        self.packed, self.seed = packed, seed
        self._form = _Form(type(items[0]), length, rows, packed, fixed or processes > 1)
        self._lengths = np.array([_length(item) for item in items])
        self._epochs: dict[int, list[list[int]]] = {}
        self.rows_per_epoch = len(self._epoch(0))
        self.wanted = rows * accumulate * processes
        self.rows_per_step = min(self.wanted, self.rows_per_epoch)
        self.count = count or max(1, math.ceil(epochs * self.rows_per_epoch / self.rows_per_step - 1e-9))

    @property
    def note(self) -> str:
        """What is to be said of the steps before a run; empty where all is as asked."""
        if self.rows_per_step == self.wanted:
            return ""
        return (
            f"All data are {self.rows_per_step} rows, so a step has these and not {self.wanted}. "
            "Smaller batch.rows or batch.accumulate give more steps an epoch."
        )

    def epoch(self, step: int) -> float:
        """How many times the data have been gone through before this step."""
        return step * self.rows_per_step / self.rows_per_epoch

    def at(self, step: int, process: int = 0) -> tuple[Micro, ...]:
        """What one process computes in a step, 0 … count - 1. Raises IndexError for another step or process."""
        if not (0 <= step < self.count and 0 <= process < self.processes):
            raise IndexError(f"step {step} of {self.count}, process {process} of {self.processes}")
        rows = self._step(step)
        weight = _weight(item for row in rows for item in row)
        wide = self.rows * self.processes
        parts = (rows[first : first + wide] for first in range(0, len(rows), wide))
        mine = (part[process * self.rows : (process + 1) * self.rows] for part in parts)
        return tuple(self._form.micro(part, weight) for part in mine)

    # Order

    def _step(self, step: int) -> list[Row]:
        first = step * self.rows_per_step
        places = (divmod(i, self.rows_per_epoch) for i in range(first, first + self.rows_per_step))
        return [[self.items[place] for place in self._epoch(epoch)[row]] for epoch, row in places]

    def _epoch(self, epoch: int) -> list[list[int]]:
        """The rows of an epoch, as places of items. The last two are kept: a step may lie across them."""
        if epoch not in self._epochs:
            self._epochs = {number: rows for number, rows in self._epochs.items() if abs(number - epoch) == 1}
            self._epochs[epoch] = self._ordered(epoch)
        return self._epochs[epoch]

    def _ordered(self, epoch: int) -> list[list[int]]:
        items, rows = _orders(self.seed, epoch, len(self.items))
        if not self.packed:
            return [[place] for place in items]
        found = pack(self._lengths[items].tolist(), self.length)
        return [[items[place] for place in found[row]] for row in rows if row < len(found)]


def each_once(
    items: Sequence[Item], *, length: int, rows: int = 4, packed: bool = True, fixed: bool = False
) -> Iterator[Micro]:
    """Every item once, in an order that never changes, for an evaluation. The weights of all micros sum to 1."""
    lengths = [_length(item) for item in items]
    found = pack(lengths, length) if packed else [[place] for place in range(len(items))]
    weight = _weight(items)
    form = _Form(type(items[0]), length, rows, packed, fixed)
    for first in range(0, len(found), rows):
        yield form.micro([[items[place] for place in row] for row in found[first : first + rows]], weight)


def _check(items: Sequence[Item], *, epochs: float, seed: int, **counts: int | None) -> None:
    if not items:
        raise OptionError("There are no documents, so there are no steps. Look at the data that were named.")
    for name, value in counts.items():
        if value is not None and value < 1:
            raise OptionError(f"{name} should be 1 or more; got {value}.")
    if not 0 < epochs < math.inf:
        raise OptionError(f"run.epochs should be a number above 0; got {epochs}.")
    if not 0 <= seed < 1 << 64:
        raise OptionError(f"run.seed should be from 0 to 2**64 - 1; got {seed}.")


def _orders(seed: int, epoch: int, count: int) -> tuple[list[int], list[int]]:
    """Two orders of 0 … count - 1. Raw bits of Philox stay the same from release to release, unlike `permutation`."""
    bits = np.random.Philox(key=epoch << 64 | seed)
    first, second = (np.argsort(bits.random_raw(count), kind="stable").tolist() for _ in range(2))
    return first, second


def _length(item: Item) -> int:
    return max(map(len, sequences(item)))


def _weight(items: Iterable[Item]) -> float:
    """What each learnt token of a step weighs, or each of its pairs or labelled answers."""
    return 1 / sum(item.learnt if isinstance(item, Document) else 1 for item in items)


# Arrays


@dataclass(frozen=True)
class _Form:
    """How rows of items become arrays."""

    kind: type[Item]
    length: int
    rows: int
    packed: bool
    fixed: bool

    def micro(self, rows: Sequence[Row], weight: float) -> Micro:
        """The arrays of a micro-batch, each learnt token (each pair, each labelled answer) with this weight."""
        shape = self._shape(rows)
        tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        positions = np.full(shape, -1, np.int32)
        at, owners, found = [], [], []
        for owner, (line, start, segment, document) in enumerate(self._placed(rows)):
            where = slice(start, start + len(document))
            tokens[line, where], segments[line, where] = document.ids, segment
            positions[line, where] = np.arange(len(document))
            learnt = np.flatnonzero(document.loss) + line * shape[1] + start
            at.append(learnt - 1)
            owners.append(np.full(len(learnt), owner))
            found.append(document)
        places = np.concatenate([*at, np.zeros(0, int)])
        count, room = len(places), self._room(len(places), tokens.size)
        labels = self._labels(rows)
        return Micro(
            tokens,
            positions,
            segments,
            _padded(places, room),
            _padded(tokens.reshape(-1)[places + 1], room),
            _padded(np.full(count, weight if self.kind is Document else 1), room, np.float32),
            _padded(np.concatenate([*owners, np.zeros(0, int)]), room),
            labels,
            np.where(labels < 0, 0, weight).astype(np.float32),
            tuple(document.source for document in found),
            sum(map(len, found)),
            count,
        )

    def _shape(self, rows: Sequence[Row]) -> tuple[int, int]:
        lines = (self.rows if self.fixed else len(rows)) * (2 if self.kind is Paired else 1)
        if self.packed or self.fixed:
            return lines, self.length
        longest = max(_length(item) for row in rows for item in row)
        return lines, min(-(-longest // ROUND) * ROUND, self.length)

    def _room(self, count: int, size: int) -> int:
        """An eighth, a quarter, half or all of B·T: the least that holds so many."""
        if not self.fixed:
            return max(1, -(-count // ROUND)) * ROUND
        return next(room for part in (8, 4, 2, 1) if (room := -(-size // part)) >= count)

    def _placed(self, rows: Sequence[Row]) -> Iterator[tuple[int, int, int, Document]]:
        """Each sequence with its line of tokens, where it starts there, and its number in it."""
        wide = 2 if self.kind is Paired else 1
        for number, row in enumerate(rows):
            starts = [0] * wide
            for segment, item in enumerate(row, 1):
                for i, document in enumerate(sequences(item)):
                    yield number * wide + i, starts[i], segment, document
                    starts[i] += len(document)

    def _labels(self, rows: Sequence[Row]) -> np.ndarray:
        labels: list[int] = []
        for item in (item for row in rows for item in row):
            labels += [1, 0] if isinstance(item, Paired) else [int(item.good)] if isinstance(item, Judged) else []
        if self.kind is Document:
            return np.zeros(0, np.int8)
        room = 1 << max(1, (len(labels) - 1).bit_length())
        return np.array(labels + [-1] * (room - len(labels)), np.int8)


def _padded(values: np.ndarray, room: int, dtype: type = np.int32) -> np.ndarray:
    padded: np.ndarray = np.zeros(room, dtype)
    padded[: len(values)] = values
    return padded
