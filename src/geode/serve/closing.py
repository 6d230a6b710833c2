"""Brings JSON to its end before its tokens run out, so that it is whole though it is short; ends numbers, too.

What the JSON may say is the constraint's to know; nothing is allowed here that it forbids.

    { "value": 1, "below": [ { "value": 2, "below": [   ── few tokens are left ──>   ] } ] }
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from ..engine.request import Constraint

SPARE = 48  # tokens kept for what has been begun, a quarter of a short answer's at most
EACH = 4  # and for each bracket that is open
OPENS = re.compile(rb"^\s|[{\[]")  # what begins with white space, or opens a bracket
SHUTS = re.compile(rb'"[]}]*')
MOST = 255  # bytes of a token, as far as they count
LONGEST = 512  # tokens of an answer that is looked at for its length
FRACTION = 12  # digits behind a point: with more, numbers on both sides of a bound may be read as the same
WHOLE = 24  # and before it


class Marks:
    """What the tokens of a vocabulary do to JSON: bool (V,) each; `lengths` in bytes, `MOST` where there are none.

    ends      end the answer                      others    do not go on with a number
    brackets  close some, and do nothing else     counting  begin with a digit that is not 0
    quotes    end a string                        plain     open no brackets
    shut      end a string, begin no other
    commas    go on to the next value
    """

    def __init__(self, pieces: Sequence[bytes], size: int, ends: Collection[int]):
        self.pieces = pieces
        self.ends = _chosen(size, ends)
        self.brackets = _chosen(size, (i for i, piece in enumerate(pieces) if piece and not piece.strip(b"]}")))
        self.quotes = _chosen(size, _beginning(pieces, b'"'))
        self.shut = _chosen(size, (i for i, piece in enumerate(pieces) if SHUTS.fullmatch(piece)))
        self.commas = _chosen(size, _beginning(pieces, b",:"))
        self.plain = _chosen(size, (i for i, piece in enumerate(pieces) if piece.strip() and not OPENS.search(piece)))
        self.others = ~_chosen(size, _beginning(pieces, b"0123456789"))
        self.counting = _chosen(size, _beginning(pieces, b"123456789"))
        self.lengths = np.full(size, MOST, np.int16)
        self.lengths[: len(pieces)] = [min(len(piece) or MOST, MOST) for piece in pieces[:size]]


class Closing:
    """A `Constraint` that, once few of its `room` tokens are left, prefers what closes among what is allowed.

    `least`: tokens that an answer may need in any case. Numbers that go on for ever are ended at any time.
    """

    def __init__(self, inner: Constraint, marks: Marks, room: int, least: int = 0):
        self._inner, self._marks, self._left = inner, marks, room
        self._spare = min(SPARE, room // 4) + least
        self._depth = 0
        self._in_string = self._escaped = False
        self._digits, self._behind_point = 0, False

    def mask(self) -> np.ndarray | None:
        """bool (V,)."""
        mask = self._inner.mask()
        if mask is None:
            return None
        for wish in self._wishes():
            wanted: np.ndarray = mask & wish
            if wanted.any():
                return wanted
        return mask

    def allows(self, token: int) -> bool:
        if not self._wishes():
            return self._inner.allows(token)
        mask = self.mask()
        return mask is None or bool(mask[token])

    def accept(self, token: int) -> None:
        self._inner.accept(token)
        self._left -= 1
        if token < len(self._marks.pieces) and not self._marks.ends[token]:
            for byte in self._marks.pieces[token]:
                self._read(byte)

    def forced(self) -> list[int]:
        return self._inner.forced()

    def _wishes(self) -> tuple[np.ndarray, ...]:
        """What is to be preferred now: the first that can be had."""
        marks = self._marks
        is_tight = self._left <= self._spare + EACH * self._depth
        if self._in_string:
            return (marks.shut, marks.quotes) if is_tight and not self._escaped else ()
        closing = (marks.ends, marks.brackets, marks.commas) if is_tight else ()
        is_long = self._digits >= (FRACTION if self._behind_point else WHOLE)
        ending = (marks.others, marks.counting) if is_long else ()
        return (*closing, *ending, marks.plain) if is_tight else ending

    def _read(self, byte: int) -> None:
        if self._escaped:
            self._escaped = False
        elif byte == ord('"'):
            self._in_string = not self._in_string
        elif self._in_string:
            self._escaped = byte == ord("\\")
        else:
            self._depth += (byte in b"{[") - (byte in b"}]")
            self._count(byte)

    def _count(self, byte: int) -> None:
        if byte in b"0123456789":
            self._digits += 1
        else:
            self._digits, self._behind_point = 0, byte == ord(".")


def shortest(inner: Constraint, marks: Marks) -> int:
    """How many tokens an answer has that closes whatever it can: `LONGEST` at most. `inner` is used up."""
    closing, count = Closing(inner, marks, 0), 0
    while count < LONGEST:
        mask = closing.mask()
        token = 0 if mask is None else int(np.where(mask, marks.lengths, MOST + 1).argmin())
        if mask is None or marks.ends[token]:
            break
        closing.accept(token)
        count += 1
    return count


def _beginning(pieces: Sequence[bytes], letters: bytes) -> list[int]:
    """Tokens that begin with one of some bytes."""
    return [i for i, piece in enumerate(pieces) if piece and piece[0] in letters]


def _chosen(size: int, ids: Iterable[int]) -> np.ndarray:
    found = np.zeros(size, bool)
    found[[i for i in ids if i < size]] = True
    return found
