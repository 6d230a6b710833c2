"""Many strings in one buffer, told apart by where they begin; found by place or by text.

What the strings are (tokens, merges, tags), and which file they lay in, is not known here. A vocabulary has some
262,144 of them and a short prompt asks for a hundred, so no Python object is made for one that nobody asks for.

    length u64 | bytes | length u64 | bytes | …      as GGUF has them: each begins where the one before ends
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import overload

import numpy as np

HEAD = 8  # bytes of the length before each string
BLOCK = 1 << 16  # bytes looked at together: they, and what is made of them, fit a core's own cache
_LENGTH = struct.Struct("<Q")


class StringArray(Sequence[str]):
    """Strings decoded when they are asked for. `starts`, (count + 1,), are where in `raw` they begin, and its end.

    Bytes that are no UTF-8 become lone surrogates (surrogateescape), so that tokens which differ in such bytes stay
    different, and a file read and written again keeps every byte.
    """

    def __init__(self, raw: bytes, starts: np.ndarray):
        self.raw = raw
        self.starts = starts.astype(np.int32 if len(raw) < 1 << 30 else np.int64, copy=False)

    @property
    def data(self) -> np.ndarray:
        """The buffer as uint8, read-only."""
        return np.frombuffer(self.raw, np.uint8)

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each string, without their length."""
        return np.diff(self.starts) - HEAD

    def encoded(self, place: int) -> bytes:
        """The bytes of one string."""
        return self.raw[self.starts.item(place) + HEAD : self.starts.item(place + 1)]

    def first(self, count: int) -> StringArray:
        """The first `count` strings."""
        starts = self.starts[: count + 1]
        return self if count == len(self) else StringArray(self.raw[: starts.item(count)], starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[str]:
        raw, start = self.raw, 0
        for end in self.starts[1:].tolist():
            yield raw[start + HEAD : end].decode("utf-8", "surrogateescape")
            start = end

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self.encoded(range(len(self))[index]).decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StringArray):
            return self.raw == other.raw
        return list(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} strings>"


def pack(strings: Iterable[str]) -> StringArray:
    """Strings as a `StringArray`; one that is one already stays itself."""
    if isinstance(strings, StringArray):
        return strings
    encoded = [text.encode("utf-8", "surrogateescape") for text in strings]
    starts = np.cumsum([0, *(HEAD + len(each) for each in encoded)])
    return StringArray(b"".join(_LENGTH.pack(len(each)) + each for each in encoded), starts)


def without_first(strings: StringArray, character: str) -> tuple[StringArray, np.ndarray]:
    """Each string without the first such ASCII character, and whether it had one: bool (count,)."""
    found = np.append(np.flatnonzero(strings.data == ord(character)), len(strings.raw))
    at = found[np.searchsorted(found, strings.starts[:-1] + HEAD)]
    had: np.ndarray = at < strings.starts[1:]
    starts = strings.starts - np.append(0, np.cumsum(had))
    data = np.delete(strings.data, at[had])
    np.ndarray(max(len(data) - 7, 0), "<u8", data, strides=(1,))[starts[:-1]] = np.diff(starts) - HEAD
    return StringArray(data.tobytes(), starts), had


def characters_before(strings: StringArray, mark: str) -> set[str]:
    """The characters that stand right before `mark` inside any of the strings."""
    before: set[bytes] = set()
    for at in range(0, len(strings.raw), BLOCK):
        before |= _bytes_before(strings, mark.encode(), at)
    return {each.decode("utf-8", "surrogateescape")[-1] for each in before}


def _bytes_before(strings: StringArray, mark: bytes, start: int) -> set[bytes]:
    """The bytes, four at most, before each mark that begins in the block from `start` on, unless it begins a string."""
    block = strings.data[start : start + BLOCK + len(mark) - 1]
    found = np.ones(max(len(block) - len(mark) + 1, 0), bool)
    for shift, byte in enumerate(mark):
        found &= block[shift : shift + len(found)] == byte
    first, last = np.searchsorted(strings.starts, (start - HEAD, start - HEAD + len(found)))
    found[strings.starts[first:last] + (HEAD - start)] = False
    at: np.ndarray = np.flatnonzero(found) + start
    place = np.searchsorted(strings.starts, at, "right") - 1
    begins: np.ndarray = strings.starts[place] + HEAD
    inside = (begins < at) & (at + len(mark) <= strings.starts[place + 1])
    spans = zip(begins[inside].tolist(), at[inside].tolist(), strict=True)
    return {strings.raw[max(begin, end - 4) : end] for begin, end in spans}


# Telling strings apart

FEW = 256  # strings of a block that are worth looking at it
STEPS = 4096  # strings stepped over one by one where a block tells fewer


def places(data: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Where in `data`, uint8, each of `count` strings begins, int64 (count,), and where the last one ends.

    Fewer where the data end before another begins; the last may end beyond them.
    """
    found = np.empty(count, np.int64)
    known = at = 0
    while known < count and at + HEAD <= len(data):
        wanted = count - known
        begins, end = _together(data[at : at + BLOCK], wanted)
        if len(begins) < min(FEW, wanted):
            begins, end = _one_by_one(data[at:], min(STEPS, wanted))
        found[known : known + len(begins)] = begins + at
        known, at = known + len(begins), at + end
    return found[:known], at


def _together(block: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Where strings begin, and the last of them ends, as long as every length is one byte and seven zeros.

    Wherever such bytes stand a string may begin. One does, if the one before it ends there.
    """
    zero = block == 0
    for reach in (1, 2, 3):  # now two zeros from each place on, now four, now seven
        zero = zero[:-reach] & zero[reach:]
    begins = np.flatnonzero(zero[1:])[:count]
    ends = begins + HEAD + block[begins]
    expected = np.append(0, ends[:-1])[: len(begins)]
    broken = np.flatnonzero(begins != expected)
    known = int(broken[0]) if len(broken) else len(begins)
    return begins[:known], int(ends[known - 1]) if known else 0


def _one_by_one(data: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """The same for lengths of any size."""
    begins: list[int] = []
    buffer, size, at = data.data, len(data), 0
    while len(begins) < count and at + HEAD <= size:
        begins.append(at)
        at += HEAD + int(_LENGTH.unpack_from(buffer, at)[0])
    return np.array(begins, np.int64), at


# Finding strings

HASHED = 64  # bytes of a string that its hash sees
SHARE = 32  # a dict is made once as many strings as the 32nd part of all were searched for
TOGETHER = 1 << 14  # strings hashed together: few enough for a core's own cache
_FACTOR = 0x9E3779B97F4A7C15  # 2**64 by the golden ratio: every bit of a word reaches the product's upper bits
_ONES = (1 << 64) - 1
_FIRST_BYTES = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)


class Index:
    """The places of strings by their text.

    First lookups search a sorted array of hashes, which is made in milliseconds. Once they have cost about what a dict
    of all strings costs, that is made and takes over.
    """

    def __init__(self, strings: StringArray):
        self.find: Callable[[str], int | None] = self._search
        """The place of a text, the last one where there are several; None where it is not among the strings."""
        self._strings = strings
        self._found: dict[str, int | None] = {}
        self._bits = len(strings).bit_length()

    def may_hold(self, strings: StringArray) -> np.ndarray:
        """Whether each of other strings is here, bool (count,), by its hash: a wrong yes is possible, and rare.

        Of 262,144 strings, one in a hundred million that are not there gets one. A wrong no is impossible.
        """
        bits = np.uint64(self._bits)
        ours, theirs = np.asarray(self._keys) >> bits, _hashes(strings) >> bits
        order = np.argsort(theirs)  # neighbours are searched for near each other
        nearest = np.minimum(np.searchsorted(ours, theirs[order]), max(len(ours) - 1, 0))
        held = np.zeros(len(theirs), bool)
        if len(ours):
            held[order] = ours[nearest] == theirs[order]
        return held

    def _search(self, text: str) -> int | None:
        found = self._found  # another thread may put a fresh one in its place
        if text in found:
            return found[text]
        if len(found) * SHARE > len(self._strings):
            self._found = {}
            self.find = {text: place for place, text in enumerate(self._strings)}.get
            return self.find(text)
        place = found[text] = self._place(text.encode("utf-8", "surrogateescape"))
        return place

    def _place(self, wanted: bytes) -> int | None:
        bits, keys = self._bits, self._keys
        prefix = _hash(wanted) >> bits
        at = bisect_left(keys, prefix + 1 << bits)
        while at and (key := keys[at - 1]) >> bits == prefix:
            at -= 1
            place = key & (1 << bits) - 1
            if self._strings.encoded(place) == wanted:
                return place
        return None

    @cached_property
    def _keys(self) -> memoryview[int]:
        """Sorted: the upper bits of each string's hash over the bits of its place."""
        keys = _hashes(self._strings)
        keys >>= np.uint64(self._bits)
        keys <<= np.uint64(self._bits)
        keys |= np.arange(len(keys), dtype=np.uint64)
        keys.sort()
        return keys.data


def _hash(text: bytes) -> int:
    found = len(text) * _FACTOR & _ONES
    for at in range(0, min(len(text), HASHED), 8):
        found = (found ^ int.from_bytes(text[at : at + 8], "little")) * _FACTOR & _ONES
    return found


def _hashes(strings: StringArray) -> np.ndarray:
    """`_hash` of every string: uint64 (count,)."""
    found = np.empty(len(strings), np.uint64)
    for at in range(0, len(found), TOGETHER):
        starts = strings.starts[at : at + TOGETHER + 1]
        found[at : at + TOGETHER] = _some_hashes(strings.raw, starts[:-1] + HEAD, np.diff(starts) - HEAD)
    return found


def _some_hashes(raw: bytes, begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    words = np.ndarray(len(raw) - 7, "<u8", raw, strides=(1,))  # one from each byte on
    found = lengths.astype(np.uint64) * np.uint64(_FACTOR)
    rows = np.arange(len(found))
    for at in range(0, HASHED, 8):
        longer = lengths > at
        rows, begins, lengths = rows[longer], begins[longer], lengths[longer]
        place = np.minimum(begins + at, len(words) - 1)
        part = words[place] >> ((begins + at - place) * 8).astype(np.uint64)  # the buffer's last words are shorter
        part &= _FIRST_BYTES[np.minimum(lengths - at, 8)]
        found[rows] = (found[rows] ^ part) * np.uint64(_FACTOR)
    return found
