"""Brings JSON to its end before its tokens run out, so that it is whole though it is short.

What the JSON may say is the constraint's to know; nothing is allowed here that it forbids.

    { "value": 1, "below": [ { "value": 2, "below": [   ── few tokens are left ──>   ] } ] }
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from ..engine.request import Constraint

SPARE = 48  # tokens kept for what must still be said
EACH = 4  # and for each bracket that is open


class Marks:
    """Of a vocabulary: which tokens close brackets, which end a string, which go on to the next value."""

    def __init__(self, pieces: Sequence[bytes], size: int, ends: Collection[int]):
        self.pieces = pieces
        self.ends = _chosen(size, ends)
        self.brackets = _chosen(size, (i for i, piece in enumerate(pieces) if piece and not piece.strip(b"]}")))
        self.quotes = _chosen(size, (i for i, piece in enumerate(pieces) if piece[:1] == b'"'))
        self.commas = _chosen(size, (i for i, piece in enumerate(pieces) if piece[:1] in (b",", b":")))


class Closing:
    """A `Constraint` that, once few of its `room` tokens are left, prefers what closes among what is allowed."""

    def __init__(self, inner: Constraint, marks: Marks, room: int):
        self._inner, self._marks, self._left = inner, marks, room
        self._depth = 0
        self._in_string = self._escaped = False

    def mask(self) -> np.ndarray | None:
        """bool (V,)."""
        mask = self._inner.mask()
        if mask is None or not self._is_tight:
            return mask
        for wish in self._wishes():
            closing: np.ndarray = mask & wish
            if closing.any():
                return closing
        return mask

    def allows(self, token: int) -> bool:
        if not self._is_tight:
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

    @property
    def _is_tight(self) -> bool:
        return self._left <= SPARE + EACH * self._depth

    def _wishes(self) -> tuple[np.ndarray, ...]:
        if self._in_string:
            return () if self._escaped else (self._marks.quotes,)
        return self._marks.ends, self._marks.brackets, self._marks.commas

    def _read(self, byte: int) -> None:
        if self._escaped:
            self._escaped = False
        elif byte == ord('"'):
            self._in_string = not self._in_string
        elif self._in_string:
            self._escaped = byte == ord("\\")
        else:
            self._depth += (byte in b"{[") - (byte in b"}]")


def _chosen(size: int, ids: Iterable[int]) -> np.ndarray:
    found = np.zeros(size, bool)
    found[[i for i in ids if i < size]] = True
    return found
