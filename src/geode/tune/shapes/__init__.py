"""Rows to examples: which of the shapes that people have these rows are, and what each row says.

How files are read is not known here, nor tokens and templates.

    kinds.py   the table of shapes            chats.py   what is learnt as it stands
    turns.py   messages of any spelling       judged.py  preferences and labels
    trees.py   Open-Assistant's trees
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from os import PathLike

from ...errors import FormatError, OptionError
from .. import sources
from ..examples import Example
from ..readers import Row, said
from .kinds import KINDS, NAMES, Column, Kind
from .turns import Misfit

__all__ = ["NAMES", "Misfit", "Reading", "Refused", "Shape", "recognise"]

LOOK = 16  # rows by which a file is recognised
FLAT = {"message_id", "parent_id", "role", "text"}  # Open-Assistant's trees, as a table of messages


@dataclass(frozen=True)
class Shape:
    """What rows are. `columns`: our names of those that are read -> the data's own. `why` says it in one sentence."""

    name: str
    columns: Mapping[str, str]
    why: str
    _kind: Kind = field(repr=False)
    _needs: frozenset[str] = field(repr=False)

    def examples(self, row: Row) -> list[Example]:
        """What a row says; a tree says several things. Raises Misfit, which tells why the row gives no example."""
        found = {ours: row.values.get(theirs) for ours, theirs in self.columns.items()}
        for ours in sorted(self._needs):
            if found[ours] is None:
                raise Misfit("a column is missing", f"there is nothing in {_named(ours, self.columns[ours])}")
        return list(self._kind.make(found, row.source))


@dataclass(frozen=True)
class Refused:
    """A row that gave no example."""

    source: str
    reason: str
    detail: str = ""

    @property
    def words(self) -> str:
        """The reason, and what is so in this row."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Reading:
    """The examples of places, in order, each file by its own shape: iterate, then look at what was counted.

    `shape` is a name of NAMES or "auto"; `columns` maps our names of columns to the data's own, or to "0", "1" … where
    tables have no header. `rows`, `shapes` (file -> Shape) and `refused` tell of the last pass. While it is read,
    everything that `sources` raises is raised; OptionError where rows are not of the shape that was asked for;
    FormatError where they are of none, or no row at all gives an example.
    """

    def __init__(
        self, *places: str | PathLike[str], shape: str = "auto", columns: Mapping[str, str] | None = None
    ) -> None:
        self.files = sources.files(*places)
        self.columns = dict(columns or {})
        self.wanted = shape
        self.shapes: dict[str, Shape] = {}
        self.refused: list[Refused] = []
        self.rows = 0

    def __iter__(self) -> Iterator[Example]:
        self.shapes, self.refused, self.rows = {}, [], 0
        for file in self.files:
            rows = file.rows(numbered=any(theirs.isdigit() for theirs in self.columns.values()))
            first = list(islice(rows, LOOK))
            self.shapes[file.name] = shape = recognise(first, self.wanted, self.columns)
            yield from self._examples(shape, chain(first, rows))
        if len(self.refused) == self.rows:
            raise FormatError(f"No row gives an example to learn from. {self.summary()}")

    def _examples(self, shape: Shape, rows: Iterable[Row]) -> Iterator[Example]:
        for row in rows:
            self.rows += 1
            try:
                made = shape.examples(row)
            except Misfit as problem:
                self.refused.append(Refused(row.source, problem.reason, problem.detail))
            else:
                yield from made

    def summary(self) -> str:
        """Why rows were refused: each reason with its count and its first row; "" where none was."""
        reasons: dict[str, list[Refused]] = {}
        for each in self.refused:
            reasons.setdefault(each.reason, []).append(each)
        told = [f"{len(rows)} × {rows[0].words} (first {rows[0].source})" for rows in reasons.values()]
        return f"{len(self.refused)} of {self.rows} rows were refused: {'; '.join(told)}." if told else ""


def recognise(rows: Sequence[Row], name: str = "auto", columns: Mapping[str, str] | None = None) -> Shape:
    """The shape of a file by its first rows, or the one that is asked for.

    Raises OptionError where the rows are not what was asked for, FormatError where they are of no shape or of several.
    """
    columns = columns or {}
    kinds = _candidates(name, columns)
    there = {key for row in rows for key in row.values}
    if missing := sorted({*columns.values()} - there):
        raise OptionError(
            f"There is no column {', '.join(missing)} in {rows[0].source}, though data.columns names it. "
            f"The columns are {_columns(rows[0])}."
        )
    matches = [(row, found) for row in rows if (found := _match(kinds, row, columns, name == "auto"))]
    if not matches or (name == "auto" and there >= FLAT):
        raise _unfit(rows[0], kinds, name)
    (row, shape), *_ = matches
    for other, another in matches:
        if another.name != shape.name:
            raise FormatError(
                f"The rows are of several shapes: {row.source} is {shape.name}, {other.source} is {another.name}. "
                "Put each into a file of its own, or say by data.shape which one to read."
            )
    return shape


def _candidates(name: str, columns: Mapping[str, str]) -> list[Kind]:
    """The kinds that may be meant: that of the name, or all that read the columns which were mapped."""
    if name != "auto" and name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise OptionError(f"There is no shape '{name}'.{meant} There are auto, {', '.join(NAMES)}.")
    kinds = [kind for kind in KINDS if kind.name == name or (name == "auto" and kind.auto)]
    reading = [kind for kind in kinds if kind.reads >= {*columns}]
    if not reading:
        known = sorted({column for kind in kinds for column in kind.reads})
        which = f"The shape {name} reads" if name != "auto" else "No shape has all of them; there are"
        raise OptionError(f"data.columns names {', '.join(columns)}. {which} {', '.join(known)}.")
    return reading


def _match(kinds: Sequence[Kind], row: Row, columns: Mapping[str, str], auto: bool) -> Shape | None:
    for kind in kinds:
        if auto and any(bar in row.values for bar in kind.bars):
            continue
        for needed in kind.needs:
            found = {column.name: _find(column, row, columns) for column in needed}
            own = {ours: theirs for ours, theirs in found.items() if theirs is not None}
            if len(own) == len(needed) and any(row.values[theirs] is not None for theirs in own.values()):
                more = {column.name: _find(column, row, columns) for column in kind.may}
                whole = {**{ours: theirs for ours, theirs in more.items() if theirs is not None}, **own}
                if {*columns} <= {*whole}:
                    return Shape(kind.name, whole, _why(kind, whole, row), kind, frozenset(own))
    return None


def _find(column: Column, row: Row, columns: Mapping[str, str]) -> str | None:
    """The data's name of a column, where the row has it and what stands there may."""
    names = [columns[column.name]] if column.name in columns else [column.name, *column.others]
    taken = {theirs for ours, theirs in columns.items() if ours != column.name}
    for name in names:
        if name in row.values and name not in taken and (row.values[name] is None or column.test(row.values[name])):
            return name
    return None


# Words


def _why(kind: Kind, columns: Mapping[str, str], row: Row) -> str:
    read = ", ".join(_named(ours, theirs) for ours, theirs in columns.items())
    left = [name for name in row.values if name not in columns.values() and name]
    return f"{kind.name}: {kind.about}, from {read}" + (f"; not read: {', '.join(left)}" if left else "")


def _named(ours: str, theirs: str) -> str:
    return ours if ours == theirs else f"{theirs} (as {ours})"


def _columns(row: Row) -> str:
    return ", ".join(f"{name[:40]} ({said(value)})" for name, value in row.values.items() if name) or "none"


def _needs(kind: Kind) -> str:
    sets = (" and ".join(f"{column.name} ({column.words})" for column in needed) for needed in kind.needs)
    return ", or ".join(sets)


def _unfit(row: Row, kinds: Sequence[Kind], name: str) -> FormatError | OptionError:
    if {*row.values} >= FLAT:
        return FormatError(
            f"{row.source} is one message of Open-Assistant's table of messages; Geode reads its trees. Name the file "
            "whose name ends in trees.jsonl.gz, as in hf:OpenAssistant/oasst1/2023-04-12_oasst_ready.trees.jsonl.gz."
        )
    if name != "auto":
        return OptionError(
            f"{row.source} is not of the shape {name}, which has {_needs(kinds[0])}. Its columns are {_columns(row)}. "
            f'Say by data.columns which is which, as in {{"{next(iter(kinds[0].needs[0])).name}": "…"}}, or leave '
            "data.shape at auto."
        )
    known = "; ".join(f"{kind.name}: {', '.join(column.name for column in kind.needs[-1])}" for kind in kinds)
    return FormatError(
        f"{row.source} is of no shape that Geode knows. Its columns are {_columns(row)}. Known are {known}. Say by "
        'data.columns which is which, as in {"prompt": "…", "completion": "…"}; a table without a header has columns '
        '"0", "1" and so on.'
    )
