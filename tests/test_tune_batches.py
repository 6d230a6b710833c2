"""Rows and steps: the packer's promises, the order, the arrays, and that a step is the same however it is cut."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geode.errors import OptionError
from geode.tune.batches import Micro, Steps, _orders, each_once, steps
from geode.tune.documents import Document, Documents, Item, Judged, Paired, Report
from geode.tune.packing import pack
from geode.tune.recipe import Batch, Data, Objective, Recipe, Run

LENGTH = 16
sizes = st.lists(st.integers(2, LENGTH), min_size=1, max_size=40)


def document(number: int, size: int) -> Document:
    """Tokens that no other document has; something is learnt, never the first."""
    ids = np.arange(size, dtype=np.int32) + 100 * (number + 1)
    loss = np.random.default_rng(number).random(size) < 0.6
    loss[0], loss[-1] = False, True
    return Document(ids, loss, f"d:{number}")


def documents(lengths: list[int]) -> list[Document]:
    return [document(number, size) for number, size in enumerate(lengths)]


def pairs(lengths: list[int]) -> list[Paired]:
    found = documents([size for size in lengths for _ in range(2)])
    shorter = [replace(each, ids=each.ids[-2:], loss=each.loss[-2:] & [False, True]) for each in found[1::2]]
    return [Paired(*both, both[0].source) for both in zip(found[::2], shorter, strict=True)]


# Packing


def first_fit(lengths: list[int], room: int) -> int:
    rows: list[int] = []
    for length in lengths:
        place = next((i for i, used in enumerate(rows) if used + length <= room), None)
        if place is None:
            rows.append(length)
        else:
            rows[place] += length
    return len(rows)


@given(data=st.data(), room=st.integers(1, 80))
@settings(max_examples=300, deadline=None)
def test_every_length_is_in_one_row_and_rows_are_full(data: st.DataObject, room: int) -> None:
    lengths = data.draw(st.lists(st.integers(1, room), max_size=60))
    rows = pack(lengths, room)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    filled = [sum(lengths[place] for place in row) for row in rows]
    assert all(used <= room for used in filled)
    assert sum(sorted(filled)[:2]) > room or len(rows) < 2  # no two rows would fit in one
    assert 9 * len(rows) <= 11 * first_fit(lengths, room) + 6  # doi.org/10.1007/978-3-540-74450-4_1, the tight bound
    assert pack(lengths, room) == rows
    order = data.draw(st.permutations(lengths))
    again = [sum(order[place] for place in row) for row in pack(order, room)]
    assert again == filled  # rows are the same whatever the order


def test_packing_is_no_worse_than_first_fit_on_lengths_as_data_have_them() -> None:
    rng = np.random.default_rng(0)
    for room in (128, 512, 2048):
        lengths = np.clip(rng.lognormal(4.5, 0.8, 3000), 8, room).astype(int).tolist()
        assert len(pack(lengths, room)) <= first_fit(lengths, room)
        assert len(pack(lengths, room)) <= 1.02 * sum(lengths) / room + 1


@pytest.mark.parametrize("lengths", [[3, 0], [3, 9]])
def test_lengths_that_fit_no_row(lengths: list[int]) -> None:
    with pytest.raises(OptionError, match=f"number 1 has {lengths[1]}"):
        pack(lengths, 8)


# What a step holds


def unpacked(micro: Micro) -> list[Document]:
    """The sequences of a micro-batch, rebuilt from its arrays alone, by owner."""
    width = micro.tokens_BT.shape[1]
    real = micro.weights_M > 0
    targets = {int(at) + 1: int(token) for at, token in zip(micro.at_M[real], micro.targets_M[real], strict=True)}
    assert np.count_nonzero(real) == micro.learnt
    found: dict[int, Document] = {}
    for line, segments in enumerate(micro.segments_BT):
        for segment in range(1, int(segments.max()) + 1):
            (columns,) = np.nonzero(segments == segment)
            assert columns.tolist() == list(range(columns[0], columns[-1] + 1))
            assert micro.positions_BT[line, columns].tolist() == list(range(len(columns)))
            ids = micro.tokens_BT[line, columns]
            loss = np.array([int(line * width + column) in targets for column in columns])
            for column in columns[loss]:
                assert targets[int(line * width + column)] == micro.tokens_BT[line, column]
            own = (micro.at_M >= line * width + columns[0]) & (micro.at_M <= line * width + columns[-1]) & real
            owner = int(micro.owners_M[own][0])
            assert set(micro.owners_M[own].tolist()) == {owner}
            found[owner] = Document(ids, loss, micro.sources[owner])
    empty = micro.segments_BT == 0
    assert (micro.positions_BT[empty] == -1).all()
    assert (micro.tokens_BT[empty] == 0).all()
    assert micro.tokens == np.count_nonzero(~empty)
    assert not any(each[~real].any() for each in (micro.at_M, micro.targets_M, micro.owners_M, micro.weights_M))
    return [found[owner] for owner in sorted(found)]


def key(found: Document) -> tuple[Any, ...]:
    return found.source, found.ids.tobytes(), found.loss.tobytes()


def held(micros: tuple[Micro, ...]) -> Counter[Any]:
    return Counter(key(each) for micro in micros for each in unpacked(micro))


@given(lengths=sizes, rows=st.integers(1, 4), accumulate=st.integers(1, 3), packed=st.booleans(), fixed=st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_epoch_has_every_document_once(
    lengths: list[int], rows: int, accumulate: int, packed: bool, fixed: bool
) -> None:
    items = documents(lengths)
    found = Steps(
        items, length=LENGTH, rows=rows, accumulate=accumulate, packed=packed, fixed=fixed, epochs=3, seed=len(lengths)
    )
    assert (found.count - 1) * found.rows_per_step < 3 * found.rows_per_epoch <= found.count * found.rows_per_step
    stream: Counter[Any] = Counter()
    for step in range(found.count):
        micros = found.at(step)
        assert len(micros) == -(-found.rows_per_step // rows)
        assert sum(float(micro.weights_M.sum()) for micro in micros) == pytest.approx(1, abs=1e-5)
        assert len({weight for micro in micros for weight in micro.weights_M[: micro.learnt].tolist()}) == 1
        stream += held(micros)
    whole = Counter(map(key, items))
    assert all(stream[each] >= 3 for each in whole)
    assert set(stream) == set(whole)
    if found.count * found.rows_per_step == 3 * found.rows_per_epoch:
        assert stream == Counter(dict.fromkeys(whole, 3))


@given(lengths=sizes, packed=st.booleans(), seed=st.integers(0, (1 << 64) - 1))
@settings(max_examples=60, deadline=None)
def test_a_step_is_the_same_however_it_is_cut(lengths: list[int], packed: bool, seed: int) -> None:
    options: dict[str, Any] = {"length": LENGTH, "packed": packed, "seed": seed, "epochs": 2.0}
    items = documents(lengths)
    whole = Steps(items, rows=8, **options)
    parts = Steps(items, rows=4, accumulate=2, **options)
    shared = Steps(items, rows=2, accumulate=2, processes=2, **options)
    assert whole.count == parts.count == shared.count
    for step in range(whole.count):
        wanted = held(whole.at(step))
        assert held(parts.at(step)) == wanted
        mine, others = shared.at(step, 0), shared.at(step, 1)
        assert held(mine) + held(others) == wanted
        assert len(mine) == len(others)
        weights = [float(micro.weights_M.max()) for micro in (*mine, *others) if micro.learnt]
        assert set(weights) == {float(whole.at(step)[0].weights_M.max())}


def test_rows_come_in_the_same_order_in_many_micros_as_in_one() -> None:
    items = documents([LENGTH] * 32)
    (one,) = Steps(items, length=LENGTH, rows=8).at(1)
    four = Steps(items, length=LENGTH, rows=2, accumulate=4).at(1)
    assert np.array_equal(one.tokens_BT, np.concatenate([micro.tokens_BT for micro in four]))


def test_a_step_depends_on_nothing_but_its_number() -> None:
    items = documents([3, 9, 16, 4, 4, 7, 12, 5, 8])
    options: dict[str, Any] = {"length": LENGTH, "rows": 2, "epochs": 5}
    through = Steps(items, **options)
    there = [through.at(step) for step in range(through.count)]
    for step in reversed(range(through.count)):
        for again in (through.at(step), Steps(items, **options).at(step)):
            for one, other in zip(there[step], again, strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def test_orders_differ_by_seed_and_epoch_and_never_change() -> None:
    assert _orders(0, 0, 6) == ([0, 2, 1, 5, 4, 3], [5, 3, 2, 4, 0, 1])
    items = documents([LENGTH] * 30)

    def order(seed: int, first: int) -> list[str]:
        found = Steps(items, length=LENGTH, rows=30, seed=seed, epochs=3).at(first)
        return [source for micro in found for source in micro.sources]

    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_a_step_over_the_end_of_an_epoch_is_full() -> None:
    found = Steps(documents([LENGTH] * 5), length=LENGTH, rows=2, epochs=1)
    assert (found.rows_per_epoch, found.count) == (5, 3)
    assert [len(micro.sources) for step in range(3) for micro in found.at(step)] == [2, 2, 2]
    assert found.epoch(2) == 0.8
    assert Steps(documents([LENGTH] * 5), length=LENGTH, rows=2, epochs=0.4).count == 1
    assert Steps(documents([LENGTH] * 5), length=LENGTH, rows=2, count=77).count == 77


def test_less_data_than_a_step() -> None:
    found = Steps(documents([LENGTH] * 3), length=LENGTH, rows=2, accumulate=4, epochs=2)
    assert (found.rows_per_step, found.count) == (3, 2)
    assert "All data are 3 rows, so a step has these and not 8" in found.note
    assert [micro.tokens_BT.shape for micro in found.at(0)] == [(2, LENGTH), (1, LENGTH)]
    shared = Steps(documents([LENGTH] * 3), length=LENGTH, rows=2, processes=4)
    shapes = {micro.tokens_BT.shape for process in range(4) for micro in shared.at(0, process)}
    assert shapes == {(2, LENGTH)}
    assert shared.at(0, 3)[0].learnt == shared.at(0, 3)[0].tokens == 0
    assert Steps(documents([LENGTH] * 8), length=LENGTH, rows=2, accumulate=4).note == ""


def test_shapes() -> None:
    items = [document(i, size) for i, size in enumerate([40, 70, 3])]
    (loose,) = Steps(items, length=512, rows=4, packed=False).at(0)
    assert loose.tokens_BT.shape == (3, 96)
    (fixed,) = Steps(items, length=512, rows=4, packed=False, fixed=True).at(0)
    assert fixed.tokens_BT.shape == (4, 512)
    (odd,) = Steps(items, length=70, rows=4, packed=False).at(0)
    assert odd.tokens_BT.shape == (3, 70)
    rooms = set()
    for seed in range(40):
        (micro,) = Steps(
            documents([2 + seed % 15] * (1 + seed % 4)), length=LENGTH, rows=4, packed=False, fixed=True
        ).at(0)
        assert len(micro.at_M) >= micro.learnt
        rooms.add(len(micro.at_M))
    assert rooms <= {8, 16, 32, 64}
    dtypes = {name: value.dtype for name, value in vars(fixed).items() if isinstance(value, np.ndarray)}
    assert {dtypes.pop("weights_M"), dtypes.pop("shares_S")} == {np.dtype(np.float32)}
    assert dtypes.pop("labels_S") == np.int8
    assert set(dtypes.values()) == {np.dtype(np.int32)}


# Pairs and labels


@given(lengths=sizes, rows=st.integers(1, 3), packed=st.booleans(), fixed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_both_of_a_pair_are_in_one_micro(lengths: list[int], rows: int, packed: bool, fixed: bool) -> None:
    items = pairs(lengths)
    found = Steps(items, length=LENGTH, rows=rows, accumulate=2, packed=packed, fixed=fixed)
    wanted = {item.source: item for item in items}
    seen: Counter[str] = Counter()
    for step in range(found.count):
        for micro in found.at(step):
            assert len(micro.tokens_BT) % 2 == 0
            both = unpacked(micro)
            for chosen, rejected in zip(both[::2], both[1::2], strict=True):
                item = wanted[chosen.source]
                assert key(chosen) == key(item.chosen)
                assert rejected.ids.tolist() == item.rejected.ids.tolist()
                seen[item.source] += 1
            assert set(micro.weights_M[: micro.learnt].tolist()) <= {1.0}
            assert micro.labels_S[: len(both)].tolist() == [1, 0] * (len(both) // 2)
            assert set(micro.labels_S[len(both) :].tolist()) <= {-1}
            assert len(micro.labels_S).bit_count() == 1
    assert set(seen) == set(wanted)


@pytest.mark.parametrize("kind", ["pairs", "labels"])
def test_shares_of_a_step_are_one_over_its_pairs_or_answers(kind: str) -> None:
    plain = documents([5, 3, 9, 16, 2, 7, 8, 4])
    items: list[Item] = [*pairs([5, 3, 9, 16, 2, 7])] if kind == "pairs" else [Judged(d, True, d.source) for d in plain]
    found = Steps(items, length=LENGTH, rows=1, accumulate=2, processes=2)
    for step in range(found.count):
        micros = [micro for process in range(2) for micro in found.at(step, process)]
        each = 2 if kind == "pairs" else 1
        count = sum(len(micro.sources) for micro in micros) // each
        for micro in micros:
            real = len(micro.sources)
            assert micro.shares_S[:real].tolist() == [np.float32(1 / count)] * real
            assert len(micro.shares_S) == len(micro.labels_S)
            assert not micro.shares_S[real:].any()


def test_labels_of_answers() -> None:
    items = [Judged(each, number % 3 == 0, each.source) for number, each in enumerate(documents([4] * 7))]
    (micro,) = Steps(items, length=LENGTH, rows=2).at(0)
    wanted = {item.source: int(item.good) for item in items}
    assert micro.labels_S.tolist() == [*(wanted[source] for source in micro.sources), -1]
    assert set(micro.weights_M[: micro.learnt].tolist()) == {1.0}


# A whole recipe, and evaluations


def gathered(items: list[Any]) -> Documents:
    return Documents(items, Report(LENGTH))


def test_the_steps_of_a_recipe() -> None:
    recipe = Recipe(data=Data(length=LENGTH, pack=False), batch=Batch(rows=2, accumulate=2), run=Run(epochs=2, seed=3))
    found = steps(gathered(documents([5] * 8)), recipe)
    assert (found.count, found.rows_per_step, found.seed) == (4, 4, 3)
    assert steps(gathered(documents([5] * 8)), recipe, processes=2).rows_per_step == 8
    assert steps(gathered(documents([5] * 8)), replace(recipe, run=Run(steps=9))).count == 9


@pytest.mark.parametrize(
    ("objective", "items", "words"),
    [
        ("dpo", documents([5]), "learns from pairs of answers; these data are single documents.*sft or distil"),
        ("sft", pairs([5]), "these data are pairs of answers.*dpo or ipo or orpo or simpo or reward"),
        ("kto", pairs([5]), "learns from answers with a label"),
    ],
)
def test_an_objective_with_other_data(objective: Any, items: list[Item], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        steps(gathered(items), Recipe(objective=Objective(name=objective)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": 0}, "rows should be 1 or more; got 0"),
        ({"accumulate": -1}, "accumulate should be"),
        ({"count": 0}, "steps should be"),
        ({"epochs": 0.0}, "epochs should be a number above 0"),
        ({"epochs": float("nan")}, "epochs should be"),
        ({"seed": -1}, "seed should be from 0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Steps(documents([5]), length=LENGTH, **options)
    with pytest.raises(OptionError, match="no documents"):
        Steps([], length=LENGTH)
    with pytest.raises(IndexError):
        Steps(documents([5]), length=LENGTH).at(1)


@given(lengths=sizes, rows=st.integers(1, 4), packed=st.booleans(), fixed=st.booleans())
@settings(max_examples=50, deadline=None)
def test_an_evaluation_has_every_document_once(lengths: list[int], rows: int, packed: bool, fixed: bool) -> None:
    items = documents(lengths)
    micros = tuple(each_once(items, length=LENGTH, rows=rows, packed=packed, fixed=fixed))
    assert held(micros) == Counter(map(key, items))
    assert sum(float(micro.weights_M.sum()) for micro in micros) == pytest.approx(1, abs=1e-5)
    assert not fixed or len({micro.tokens_BT.shape for micro in micros}) == 1
