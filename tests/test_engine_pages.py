"""Shared pages: random comings and goings keep the books right, and what is found is what was written."""

from __future__ import annotations

import random

import numpy as np
import pytest

from geode.config import Attn, Config
from geode.engine.pages import Store, Text, root, seen_from
from geode.native.pages import PAGE, Group, groups

WINDOWS = Config(
    96, width=8, depth=3, heads=1, kv_heads=1, head_dim=8, ffn=8, context=4096, pattern=(Attn(100), Attn(8), Attn())
)
CHUNK = 96


def store(*counts: int, config: Config = WINDOWS) -> Store:
    return Store(counts, groups(config), CHUNK)


def ids(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 96, length)


def text(shared: Store, tokens: np.ndarray, salt: str = "", key: bytes = b"") -> Text:
    return Text(shared, tokens, root(key, salt))


def fill(one: Text, until: int) -> None:
    while one.length < until:
        step = min(CHUNK, until - one.length)
        assert one.grow(step)
        one.advance(step)


def test_a_prefix_is_found_by_content() -> None:
    shared = store(40, 40, 40)
    first = text(shared, ids(500))
    assert first.open(400, 399) and first.cached == 0
    fill(first, 400)
    first.release()
    shared.check()
    again = text(shared, np.concatenate([ids(500)[:200], ids(300, seed=1)]))
    assert again.open(400, 399)
    assert again.length == again.cached == 192  # the whole pages of the 200 common ids
    shared.check()
    assert seen_from(groups(WINDOWS)[0], 3) == 1  # 192 + 1 - 100 = 93, in the second page
    assert [page for page in again.tables[0] if page >= 0] == again.tables[0][1:]
    assert again.tables[1][:2] == [-1, -1] and again.tables[1][2] >= 0


def test_the_last_id_is_always_run() -> None:
    shared = store(20, 20, 20)
    first = text(shared, ids(128))
    assert first.open(128, 127)
    fill(first, 128)
    first.release()
    again = text(shared, ids(128))
    assert again.open(128, 127) and again.length == 64


@pytest.mark.parametrize("other", [{"salt": "x"}, {"key": b"x"}])
def test_other_salts_and_weights_share_nothing(other: dict[str, str | bytes]) -> None:
    shared = store(20, 20, 20)
    first = text(shared, ids(200))
    assert first.open(200, 199)
    fill(first, 200)
    second = text(shared, ids(200), **other)  # type: ignore[arg-type]
    assert second.open(200, 199) and second.cached == 0


def test_salt_and_key_cannot_be_confused() -> None:
    assert root(b"ab", "c") != root(b"a", "bc") != root(b"", "abc")


def test_a_prefix_counts_only_where_every_window_is_whole() -> None:
    """The pages before the end of a long text are gone from the windows' groups, and so are shorter prefixes."""
    shared = store(5, 5, 40)  # of the windowed groups only the last are kept
    first = text(shared, ids(1000))
    assert first.open(960, 959)
    fill(first, 960)
    other = text(shared, ids(320, seed=5))
    first.release()
    assert other.open(300, 299)
    fill(other, 300)
    other.release()  # takes the windowed pages that the first left
    shared.check()
    again = text(shared, ids(1000))
    assert again.open(300, 299)
    assert again.cached == 0  # all 960 are there in the group that sees everything
    again.release()
    shared.check()


def test_who_waits_and_for_whom() -> None:
    shared = store(40, 40, 40)
    first, second = text(shared, ids(400)), text(shared, np.concatenate([ids(400)[:256], ids(100, seed=2)]))
    assert not second.waits(355)
    assert first.open(400, 399)
    assert second.waits(355)
    fill(first, 192)
    assert second.waits(355)
    fill(first, 256)
    assert not second.waits(355)
    assert second.open(356, 355) and second.cached == 256
    third = text(shared, ids(400))
    assert third.waits(399)
    first.release()  # cancelled: nobody will fill the rest
    assert not third.waits(399)


def test_a_text_that_went_wrong_leaves_nothing() -> None:
    shared = store(20, 20, 20)
    first = text(shared, ids(300))
    assert first.open(300, 299)
    fill(first, 300)
    first.release(keep=False)
    assert shared.counted()[1] == (0, 0, 0)
    shared.check()
    again = text(shared, ids(300))
    assert again.open(300, 299) and again.cached == 0


def test_the_longest_kept_goes_first_and_ends_before_beginnings() -> None:
    shared = Store((6,), (Group(None, (0,)),), CHUNK)
    first = text(shared, ids(192))
    assert first.open(192, 191)
    fill(first, 192)
    first.release()
    second = text(shared, ids(256, seed=1))
    assert second.open(256, 255)  # three are free and one must go: the end of the first
    fill(second, 256)
    second.release()
    shared.check()
    again = text(shared, ids(192))
    assert again.open(192, 191) and again.cached == 128


def test_no_room_is_said_before_anything_is_taken() -> None:
    shared = Store((6,), (Group(None, (0,)),), CHUNK)
    first, second = text(shared, ids(256)), text(shared, ids(256, seed=1))
    assert first.open(256, 255)  # nothing is filled yet, but promised
    assert not second.open(256, 255)
    fill(first, 256)
    assert not second.open(256, 255)
    assert second.open(64, 63)
    shared.check()


class Model:
    """What lies in each page of a pretended cache: the ids up to the page's end, of whoever wrote it."""

    def __init__(self, shared: Store):
        self.content: list[dict[int, bytes]] = [{} for _ in shared.counts]

    def write(self, one: Text, start: int, tokens: int) -> None:
        for i in range(start // PAGE, (start + tokens - 1) // PAGE + 1):
            for group, table in enumerate(one.tables):
                if table[i] >= 0:
                    self.content[group][table[i]] = (
                        one._chain[0] + one._ids[: min((i + 1) * PAGE, start + tokens)].tobytes()
                    )

    def check(self, one: Text) -> None:
        """Everything that the next token of a text sees is its own."""
        for group, table in enumerate(one.tables):
            window = one._groups[group].window or one.length + 1
            for i in range(max(0, one.length + 1 - window) // PAGE, one.length // PAGE):
                assert self.content[group][table[i]] == one._chain[0] + one._ids[: (i + 1) * PAGE].tobytes()


@pytest.mark.parametrize("seed", range(6))
def test_random_schedules(seed: int) -> None:
    """Texts with common beginnings come, grow by confirmed parts of what was run, and go, in too little memory."""
    rng = random.Random(seed)
    shared = store(*[(14, 12, 40), (60, 60, 200), (9, 6, 22)][seed % 3])
    model, running, stems = Model(shared), [], [ids(900, seed=i) for i in range(3)]
    for step in range(400):
        if rng.random() < 0.3:
            stem, cut, length = rng.choice(stems), rng.randrange(0, 700), rng.randrange(2, 200)
            tokens = np.concatenate([stem[:cut], ids(length, seed=step), np.zeros(200, np.int64)])
            one = text(shared, tokens, salt=rng.choice(["", "", "s"]))
            known = cut + length
            if not one.waits(known - 1) and one.open(known, known - 1):
                model.check(one)
                running.append((one, known + 200))
        for one, most in running:
            tokens_now = min(rng.randrange(1, CHUNK + 1), most - one.length)
            if tokens_now <= 0 or not one.grow(tokens_now):
                continue
            model.write(one, one.length, tokens_now)
            one.advance(rng.randrange(0 if rng.random() < 0.3 else tokens_now, tokens_now + 1))
            model.check(one)
        for entry in [entry for entry in running if rng.random() < 0.15 or entry[0].length >= entry[1]]:
            running.remove(entry)
            entry[0].release(keep=rng.random() < 0.9)
        shared.check()
    for one, _ in running:
        one.release()
    shared.check()
    assert shared.counted()[0] == (0, 0, 0) and not shared.coming and not shared.texts
