"""The screened head: its logits, what it finds without reading them all, and that samplers choose as from all logits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geode import sampling
from geode.config import Config
from geode.generate import Options, Row, stream
from geode.native import extension
from geode.quant import QTensor, to_float32
from geode.sampling import Candidates, Need, Params, Sampler

if not extension.is_there():
    pytest.skip("the native engine was not built: pip install -e .", allow_module_level=True)

NATIVE = extension.module()
ISAS = NATIVE.isas()
HEAD = "token_embd.weight"
NOTHING = np.empty(0, np.int32)


def model(data: np.ndarray, isa: str = ISAS[0], cap: float = 0.0, screened: bool = True, threads: int = 2) -> Any:
    """A network without layers, whose tied head has rows of Q8_0 `data`, uint8 (V, 34 · blocks)."""
    width = data.shape[1] // 34 * 32
    config = Config(len(data), width=width, depth=1, heads=1, kv_heads=1, head_dim=32, ffn=1, context=8)
    spec = {name: getattr(config, name) for name in ("vocab", "width", "heads", "kv_heads", "head_dim", "ffn", "block")}
    spec |= {name: getattr(config, name) for name in ("qk_norm", "activation", "gated", "scale")}
    spec |= {
        "tied": True,
        "depth": 0,
        "attn_softcap": 0.0,
        "clip_qkv": 0.0,
        "norm": "rms",
        "eps": 1e-6,
        "embedding_scale": 0.0,
    }
    made = NATIVE.Model(spec | {"final_softcap": cap, "screen_head": screened}, [], [], [], isa, threads)
    made.load_matrix(HEAD, "Q8_0", data, width, False)
    return made


def rows(vocab: int, width: int, seed: int = 0, scale: float = 0.01) -> np.ndarray:
    random = np.random.default_rng(seed)
    data = np.empty((vocab, width // 32, 34), np.uint8)
    data[..., 2:] = random.integers(0, 256, (vocab, width // 32, 32))
    data[..., :2] = (random.random((vocab, width // 32, 1)) * scale).astype(np.float16).view(np.uint8)
    return data.reshape(vocab, -1)


def states(count: int, width: int, seed: int = 1, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, width)) * scale).astype(np.float32)


def logits(head: Any, hidden: np.ndarray, vocab: int) -> np.ndarray:
    return head.head(np.ascontiguousarray(hidden))[:, :vocab]


def find(head: Any, hidden: np.ndarray, needs: Sequence[Need]) -> list[Candidates]:
    ks, gaps, ids, sizes = zip(*needs, strict=True)
    found = head.candidates(
        hidden, np.asarray(ks, np.int32), np.asarray(gaps, np.float32), list(ids), np.asarray(sizes, np.int32)
    )
    return [Candidates(*some, size) for some, size in zip(found, sizes, strict=True)]  # type: ignore[call-arg]


def needed(full: np.ndarray, need: Need) -> np.ndarray:
    """By looking at all logits: every id that `need` speaks of."""
    rivals = full[: need.size].astype(np.float64)
    rivals[need.ids] = -np.inf
    floor = np.partition(rivals, -need.k)[-need.k] if need.k else -np.inf
    floor = max(floor, rivals.max() - need.gap)
    return np.union1d(np.flatnonzero((rivals >= floor) & (rivals > -np.inf)), need.ids)


def check(found: Candidates, full: np.ndarray, need: Need) -> None:
    assert (np.diff(found.ids) > 0).all() and (found.ids < need.size).all()
    np.testing.assert_array_equal(found.logits, full[found.ids])
    assert np.isin(needed(full, need), found.ids).all()


SHAPES = [(1, 32), (15, 32), (16, 160), (333, 64), (1000, 96), (777, 576)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("vocab", "width"), SHAPES)
def test_rows_come_back_and_logits_are_the_matrix_product(vocab: int, width: int, isa: str) -> None:
    data, hidden = rows(vocab, width), states(33, width)
    head = model(data, isa)
    assert head.screens and head.nbytes <= 1.01 * -(-vocab // 16) * 16 * data.shape[1]
    for row in range(vocab):
        np.testing.assert_array_equal(head.unpack(HEAD, row, data.shape[1])[0], data[row])
    exact = hidden.astype(np.float64) @ to_float32(QTensor("Q8_0", (vocab, width), data)).astype(np.float64).T
    full = logits(head, hidden, vocab)
    step = np.abs(hidden).max() / 127 * np.sqrt(width) * 0.01 * 128  # activations are rounded to a 127th
    assert np.abs(full - exact).max() < step
    plain = logits(model(data, isa, screened=False), hidden, vocab)
    np.testing.assert_allclose(full, plain, atol=2e-6 * float(np.abs(plain).max() + 1) * np.sqrt(width))
    for count in (1, 5):
        np.testing.assert_array_equal(logits(head, hidden[:count], vocab), full[:count])


@pytest.mark.parametrize("isa", ISAS)
def test_score_is_that_of_plain_panels(isa: str) -> None:
    data, hidden = rows(500, 160), states(20, 160)
    targets = np.arange(20, dtype=np.int32) * 25
    scores = [model(data, isa, 3.0, screened).score(hidden, targets, 490) for screened in (True, False)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cap", [0.0, 2.0, 30.0])
@pytest.mark.parametrize(("vocab", "width"), SHAPES[2:])
def test_candidates_are_all_that_is_needed(vocab: int, width: int, cap: float, isa: str) -> None:
    head = model(rows(vocab, width), isa, cap)
    size = vocab - 3
    ids = np.asarray([1, 4, size - 1], np.int32)
    kinds = [(1, math.inf), (3, math.inf), (size, math.inf), (0, 0.0), (0, 0.7), (0, 50.0), (9, 0.7), (2 * vocab, 1.0)]
    needs = [Need(k, gap, some, size) for k, gap in kinds for some in (NOTHING, ids)]
    hidden = states(len(needs), width, scale=2.0)
    full = logits(head, hidden, vocab)
    for found, row, need in zip(find(head, hidden, needs), full, needs, strict=True):
        check(found, row, Need(min(need.k, size - len(need.ids)), *need[1:]))
    for i, need in enumerate(needs[:4]):  # alone as together
        for mine, theirs in zip(find(head, hidden[i : i + 1], [need])[0], find(head, hidden, needs)[i], strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_change_no_logit(threads: int) -> None:
    data, hidden = rows(1000, 96), states(1, 96)
    head, need = model(data, threads=threads), Need(5, math.inf, NOTHING, 1000)
    full = logits(model(data), hidden, 1000)
    np.testing.assert_array_equal(logits(head, hidden, 1000), full)
    check(find(head, hidden, [need])[0], full[0], need)


def hostile() -> dict[str, np.ndarray]:
    """Heads whose rows tie, vanish, or lie a last bit apart."""
    same = np.repeat(rows(1, 96), 200, axis=0)
    pairs = np.repeat(rows(100, 96), 2, axis=0)[np.random.default_rng(3).permutation(200)]
    zero = rows(200, 96)
    zero.reshape(200, 3, 34)[::2, :, :2] = 0
    near = same.copy()
    near[:, 5] = np.arange(200)
    tiny, huge = rows(200, 96, scale=1e-6), rows(200, 96, scale=60000)
    return {"same": same, "pairs": pairs, "zero": zero, "near": near, "tiny": tiny, "huge": huge}


@pytest.mark.parametrize("name", hostile())
@pytest.mark.parametrize("cap", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1e-41, 1e-30, 1.0, 1e20, 1e37])
def test_ties_and_extremes(name: str, cap: float, scale: float) -> None:
    data = hostile()[name]
    head = model(data, cap=cap)
    hidden = states(4, 96) * np.float32(scale)
    needs = [Need(k, gap, NOTHING, 199) for k, gap in ((1, math.inf), (7, math.inf), (0, 0.01), (7, 0.01))]
    full = logits(head, hidden, 200)
    for found, row, need in zip(find(head, hidden, needs), full, needs, strict=True):
        if np.isfinite(row).all():
            check(found, row, need)
        else:
            assert len(found.ids) == 199
            np.testing.assert_array_equal(found.logits, row[:199])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_states_that_are_no_numbers_bring_all_logits(bad: float) -> None:
    head, hidden = model(rows(100, 64)), states(2, 64)
    hidden[0, 40] = bad
    needs = [Need(1, math.inf, NOTHING, 90)] * 2
    full = logits(head, hidden, 100)
    for found, row in zip(find(head, hidden, needs), full, strict=True):
        np.testing.assert_array_equal(found.ids, np.arange(90))
        np.testing.assert_array_equal(found.logits, row[:90])


@pytest.mark.parametrize("bad", [-0.01, np.inf, np.nan])
def test_a_scale_that_proves_nothing_is_multiplied_plainly(bad: float) -> None:
    data = rows(100, 64)
    data.reshape(100, 2, 34)[57, 1, :2] = np.asarray([bad], np.float16).view(np.uint8)
    head, hidden = model(data), states(2, 64)
    assert not head.screens
    np.testing.assert_array_equal(head.unpack(HEAD, 57, 68)[0], data[57])
    np.testing.assert_array_equal(logits(head, hidden, 100), logits(model(data, screened=False), hidden, 100))
    with pytest.raises(ValueError, match="cannot be screened"):
        find(head, hidden, [Need(1, math.inf, NOTHING, 100)] * 2)


def test_another_matrix_may_take_the_heads_place() -> None:
    data, hidden = rows(100, 64), states(1, 64)
    head = model(data)
    head.load_matrix(HEAD, "F32", np.ones((100, 256), np.uint8), 64, False)
    assert not head.screens
    head.load_matrix(HEAD, "Q8_0", data, 64, False)
    assert head.screens
    np.testing.assert_array_equal(logits(head, hidden, 100), logits(model(data), hidden, 100))


def test_what_is_asked_wrongly() -> None:
    head, hidden = model(rows(100, 64)), states(1, 64)
    for need in (
        Need(-1, 1.0, NOTHING, 100),
        Need(1, -1.0, NOTHING, 100),
        Need(1, math.nan, NOTHING, 100),
        Need(1, 1.0, NOTHING, 101),
        Need(1, 1.0, NOTHING, 0),
        Need(1, 1.0, np.asarray([100], np.int32), 100),
        Need(1, 1.0, np.asarray([-1], np.int32), 100),
    ):
        with pytest.raises(ValueError, match=r"out of range|no such token"):
            find(head, hidden, [need])
    with pytest.raises(ValueError, match="one need for each"):
        find(head, states(2, 64), [Need(1, 1.0, NOTHING, 100)])


def test_most_of_the_low_bits_are_left_alone() -> None:
    data, hidden = rows(20_000, 320), states(4, 320)
    head = model(data)
    assert head.head_bytes_read == head.nbytes
    find(head, hidden[:1], [Need(1, math.inf, NOTHING, 20_000)])
    assert 18 / 34 < head.head_bytes_read / head.nbytes < 0.6
    head.head(hidden)
    assert head.head_bytes_read == head.nbytes


# With samplers

FILTERS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8, "top_k": 1},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 1.5, "top_k": 50, "top_p": 0.9},
    {"temperature": 0.7, "min_p": 0.05},
    {"temperature": 3.0, "min_p": 1.0},
    {"temperature": 0.01, "min_p": 1e-6},
    {"temperature": 2.0, "top_k": 30, "min_p": 0.3},
    {"temperature": 1.0, "top_k": 30, "top_p": 0.8, "min_p": 0.1},
]
PENALTIES: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"repetition_penalty": 0.8, "frequency_penalty": -1.0, "logit_bias": {7: 3.0, 12: -math.inf, 13: 1e9}},
]


def texts(head: Any, params: Params, size: int, vocab: int, hidden: np.ndarray) -> None:
    """Two samplers choose a text, one by what it needs and one by all logits."""
    few, every = Sampler(params, size), Sampler(params, size)
    context = [vocab - 1, 3, 3, 90]  # the first is padding where there is any
    for row in hidden:
        full = logits(head, row[None], vocab)[0]
        need = few.need(vocab, context, 2)
        assert need is not None
        choice = every.pick(full, context, 2)
        assert few.pick(find(head, row[None], [need])[0], context, 2) == choice
        context.append(choice.token)


@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("cap", [0.0, 4.0])
@pytest.mark.parametrize("size", [3990, 4000])
def test_samplers_choose_as_from_all_logits(
    filters: dict[str, Any], penalties: dict[str, Any], cap: float, size: int
) -> None:
    head = model(rows(4000, 64, scale=0.003), cap=cap)
    texts(head, Params(seed=5, **filters, **penalties), size, 4000, states(12, 64))


def test_samplers_choose_as_from_all_logits_among_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "FEW", 1)
    for data, filters in itertools.product(hostile().values(), [*FILTERS, {"temperature": 5.0, "top_k": 198}]):
        texts(model(data), Params(seed=6, **filters), 199, 200, states(5, 96))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_sampler_chooses_as_from_all_logits(data: st.DataObject) -> None:
    """The candidates here are the very least: what sorting says is needed."""
    size = data.draw(st.integers(1, 60))
    full = data.draw(st.lists(st.integers(-20, 20), min_size=size + 2, max_size=size + 2))
    row = np.asarray(full, np.float32) * np.float32(data.draw(st.sampled_from([0.1, 0.3, 1.0, 1e3])))
    params = Params(
        temperature=data.draw(st.sampled_from([0, 1e-4, 0.3, 1, 5])),
        top_k=data.draw(st.integers(0, 70)),
        top_p=data.draw(st.sampled_from([0.3, 0.9, 1])),
        min_p=data.draw(st.sampled_from([0, 1e-40, 1e-4, 0.1, 0.9, 1])),
        repetition_penalty=data.draw(st.sampled_from([0.5, 1, 1.5])),
        frequency_penalty=data.draw(st.sampled_from([-1, 0, 0.5])),
        logit_bias=data.draw(
            st.dictionaries(st.integers(0, size - 1), st.sampled_from([-math.inf, -3, 2]), max_size=3)
        ),
        seed=data.draw(st.integers(0, 5)),
    )
    context = data.draw(st.lists(st.integers(0, size - 1), max_size=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "FEW", 1)
        need = Sampler(params, size).need(size + 2, context, 1)
    if need is None or len(need.ids) == size:
        return
    ids = needed(row, Need(min(need.k, size - len(need.ids)), *need[1:])).astype(np.int32)
    few, every = Sampler(params, size), Sampler(params, size)
    for _ in range(3):
        assert few.pick(Candidates(ids, row[ids], size), context, 1) == every.pick(row, context, 1)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"top_p": 0.9},
        {"top_p": 0.9, "min_p": 0.1},
        {"min_p": 1e-31},
        {"top_k": 63},
        {"top_k": 4000},
        {"temperature": 0, "logprobs": 0},
        {"temperature": 0, "logit_bias": {4000: 1.0}},
        {"temperature": 0, "logit_bias": dict.fromkeys(range(63), 1.0)},
    ],
)
def test_choices_that_need_all_logits(params: dict[str, Any]) -> None:
    assert Sampler(Params(**params), 4000).need(4100, [1, 2], 1) is None


def test_what_a_choice_needs() -> None:
    need = Sampler(Params(top_k=5, min_p=0.5, temperature=2.0, repetition_penalty=2, logit_bias={9: 1})).need(
        4000, [3, 3999, 3, 4001], 4
    )
    assert need is not None and (need.k, need.ids.tolist(), need.size) == (5, [3, 9, 3999], 4000)
    assert 2 * math.log(2) < need.gap < 2 * math.log(2) + 0.001
    need = Sampler(Params(temperature=0, min_p=0.5, presence_penalty=1), 3000).need(4000, [7, 1, 2, 1], 1)
    assert need is not None and (need.k, need.gap, need.ids.tolist(), need.size) == (1, math.inf, [1, 2], 3000)


# With real models


class Watched:
    """An executor whose rows are compared with all logits before they are handed on; counts what was read."""

    def __init__(self, executor: Any):
        self.inner, self.config = executor, executor.config
        self.rows, self.shares = 0, []  # type: ignore[var-annotated]
        self._needed = executor.needed
        executor.needed = self.needed

    def prefill(self, *arguments: Any) -> Any:
        return self.inner.prefill(*arguments)

    def step(self, *arguments: Any) -> Any:
        return self.inner.step(*arguments)

    def needed(self, hidden: np.ndarray, needs: Sequence[Need]) -> Any:
        found = self._needed(hidden, needs)
        self.shares.append(self.inner.model.head_bytes_read / self.inner.model.matrix_bytes(HEAD))
        for some, full, need in zip(found, self.inner._logits(hidden), needs, strict=True):
            check(some, full, need)
            self.rows += 1
        return found


def run(executor: Any, tokenizer: Any, steps: int, **options: Any) -> list[list[int]]:
    """Continues some words, one after the other."""
    prompts = ["The history of the", "def main():\n    ", "Once upon a time", "1, 2, 3, 4,"]
    out = []
    for prompt in prompts:
        row = Row(
            tokenizer.encode(prompt), Options(max_tokens=steps, **options), executor.config.context, (), tokenizer
        )  # type: ignore[arg-type]
        out.append([piece.token for _, piece in stream(executor, [row])])
    return out


REAL: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8, "min_p": 0.05, "seed": 1},
    {"temperature": 0.8, "top_k": 40, "seed": 2},
    {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 3},
]


def compare(path: Path, steps: int) -> Watched:
    import geode

    lm = geode.load(path, on="native", threads=1)  # two would wait for each other beside other tests
    assert lm.executor.model.screens
    watched = Watched(lm.executor)
    for options in REAL:
        few = run(watched, lm.tokenizer, steps, **options)
        lm.executor.needed = lambda hidden, needs: lm.executor._logits(hidden)
        assert run(lm.executor, lm.tokenizer, steps, **options) == few
        lm.executor.needed = watched.needed
    assert watched.rows == len(REAL) * 4 * steps
    return watched


@pytest.mark.parametrize(("name", "share"), [("gemma3:270m", 0.62), ("smollm2:135m-instruct", 0.75)])
def test_real_texts(real_model: Callable[[str], Path], name: str, share: float) -> None:
    watched = compare(real_model(name), steps=15)
    assert 18 / 34 < float(np.mean(watched.shares)) < share


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3:270m", "smollm2:135m-instruct"])
def test_thousands_of_real_steps(real_model: Callable[[str], Path], name: str) -> None:
    compare(real_model(name), steps=300)
