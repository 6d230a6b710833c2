"""Many strings in one buffer: told apart whatever their lengths, found whatever their number."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geode import strings
from geode.strings import Index, StringArray, characters_before, pack, places, without_first

MANY = [f"{'▁' * (i % 3)}piece{i}" for i in range(5000)]
TRICKY = ["", "a", "\0", "\0" * 9, "x" * 8, "x" * 9, "y" * 255, "y" * 256, "z" * 70_000, "é▁", "\udcff", "", "a"]


def raw_of(texts: list[str]) -> bytes:
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    return b"".join(struct.pack("<Q", len(each)) + each for each in encoded)


def told_apart(raw: bytes, count: int) -> tuple[list[int], int]:
    """`places` by the plain loop."""
    at, found = 0, []
    while len(found) < count and at + 8 <= len(raw):
        found.append(at)
        at += 8 + struct.unpack_from("<Q", raw, at)[0]
    return found, at


def check_places(raw: bytes, count: int) -> None:
    found, end = places(np.frombuffer(raw, np.uint8), count)
    assert (found.tolist(), end) == told_apart(raw, count)


@pytest.mark.parametrize("texts", [[], TRICKY, MANY, MANY + TRICKY + MANY, [""] * 9000, ["\0" * 7] * 9000])
def test_strings_are_told_apart(texts: list[str]) -> None:
    raw = raw_of(texts)
    for count in {0, len(texts) // 2, len(texts), len(texts) + 1}:
        check_places(raw + b"rest of the file", count)
        check_places(raw, count)
    found, end = places(np.frombuffer(raw, np.uint8), len(texts))
    kept = StringArray(raw, np.append(found, end))
    assert list(kept) == texts
    assert [kept[i] for i in range(-len(texts), len(texts))] == texts * 2
    assert kept == pack(texts) == texts


@given(st.lists(st.text("\0a▁é", max_size=9), max_size=40), st.data())
@settings(max_examples=200, deadline=None)
def test_damage_is_told_as_by_the_plain_loop(texts: list[str], data: st.DataObject) -> None:
    raw = bytearray(raw_of(texts) * 30)
    for _ in range(data.draw(st.integers(0, 3)) if raw else 0):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    check_places(bytes(raw), len(texts) * 30)


def test_a_string_beyond_the_end_is_told_by_its_end() -> None:
    found, end = places(np.frombuffer(struct.pack("<QQ", 0, 2**64 - 1), np.uint8), 2)
    assert (found.tolist(), end) == ([0, 8], 16 + 2**64 - 1)


@pytest.mark.parametrize("texts", [TRICKY, MANY])
def test_each_text_is_found_at_its_last_place(texts: list[str]) -> None:
    known = {text: place for place, text in enumerate(texts)}
    index = Index(pack(texts))
    for text in [*texts, *reversed(texts), "none", "piece", "x" * 10, "z" * 69_999]:  # by hash first, then by dict
        assert index.find(text) == known.get(text)
    few = Index(pack(texts))
    assert few.find(texts[-1]) == len(texts) - 1
    assert few.find == few._search
    assert index.find != index._search


def test_equal_hashes_are_told_apart_by_the_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strings, "_hash", lambda text: 5 << 60)
    monkeypatch.setattr(strings, "_hashes", lambda many: np.full(len(many), 5 << 60, np.uint64))
    index = Index(pack(MANY[:100] + MANY[:50]))
    assert [index.find(text) for text in ("none", *MANY[40:60:5])] == [None, 140, 145, 50, 55]


@given(st.lists(st.text("ab▁", max_size=80), max_size=30))
@settings(max_examples=100, deadline=None)
def test_one_hash_and_many_are_the_same(texts: list[str]) -> None:
    known = pack(texts)
    assert strings._hashes(known).tolist() == [strings._hash(known.encoded(i)) for i in range(len(known))]


def test_strings_are_looked_for_together() -> None:
    index = Index(pack(MANY))
    assert index.may_hold(pack(["none", MANY[7], "", MANY[0], MANY[7]])).tolist() == [False, True, False, True, True]
    assert index.may_hold(pack([])).tolist() == []
    assert Index(pack([])).may_hold(pack(["a"])).tolist() == [False]
    assert Index(pack([])).find("a") is None


def test_the_first_of_a_character_is_left_out() -> None:
    texts = ["a b", " a", "b ", " ", "", "ab", "a b c", "Ġ Ġ", " " + "x" * 255, "x" * 32, "x" * 33 + " "]
    shorter, had = without_first(pack(texts), " ")
    assert shorter == pack([text.replace(" ", "", 1) for text in texts])
    assert had.tolist() == [" " in text for text in texts]
    assert without_first(pack([]), " ")[0] == []


def test_characters_before_a_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["▁a", "▁▁", "b▁", "é▁👍▁c", "\0▁", "\n▁x", "\u2580", "\udcff▁", "d", "▁"]
    for block in (1, 5, 1 << 16):
        monkeypatch.setattr(strings, "BLOCK", block)
        assert characters_before(pack(texts), "▁") == set("▁bé👍\0\n\udcff")
    assert characters_before(pack([]), "▁") == set()


def test_the_first_strings_are_strings_of_their_own() -> None:
    known = pack(MANY)
    assert known.first(7) == pack(MANY[:7])
    assert known.first(0) == []
    assert known.first(len(MANY)) is known
    assert Index(known.first(7)).find(MANY[7]) is None
