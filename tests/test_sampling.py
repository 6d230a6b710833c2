"""The filters against their definitions, spelled out slowly; the sampler against what each filter promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geode import sampling
from geode.errors import OptionError, TensorError
from geode.sampling import Params, Sampler

few_values = st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, 2.0000002])  # so that ties are common
scores = st.integers(1, 1500).flatmap(
    lambda n: arrays(np.float32, n, elements=st.one_of(few_values, st.floats(-50, 50, width=32)), fill=few_values)
)


def spread(size: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def drawn(logits: np.ndarray, count: int = 400, **params: object) -> set[int]:
    sampler = Sampler(Params(seed=1, **params))  # type: ignore[arg-type]
    return {sampler.pick(logits).token for _ in range(count)}


def ranked(values: np.ndarray) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


@given(scores, st.integers(1, 2000))
def test_top_k_is_the_head_of_the_ranking(values: np.ndarray, k: int) -> None:
    assert sampling.top_k(values, k).tolist() == ranked(values)[:k]


def test_top_k_among_forbidden_ones() -> None:
    values = np.full(1000, -np.inf, np.float32)
    values[[7, 900]] = 1, 2
    assert sampling.top_k(values, 3).tolist() == [900, 7, 0]


@given(scores, st.floats(0.01, 1, exclude_max=True))
def test_top_p_is_the_smallest_head_that_holds_p(values: np.ndarray, p: float) -> None:
    weights = np.exp(values - values.max())
    kept = sampling.top_p(weights, p).tolist()
    assert kept == ranked(weights)[: len(kept)]
    total = math.fsum(weights.astype(float))
    assert math.fsum(weights[kept].astype(float)) >= p * total * (1 - 1e-9)
    assert math.fsum(weights[kept[:-1]].astype(float)) < p * total * (1 + 1e-9)


def test_top_p_of_a_flat_vocabulary_grows_until_it_suffices() -> None:
    assert len(sampling.top_p(np.ones(20_000, np.float32), 0.9)) == 18_000
    assert len(sampling.top_p(np.ones(20_000, np.float32), 1e-9)) == 1


@given(scores, st.floats(0, 1, exclude_max=True))
def test_draw_is_where_the_running_sum_passes(values: np.ndarray, u: float) -> None:
    weights = np.exp(values - values.max())
    weights[values == -3] = 0
    weights[-1] += weights.sum() == 0
    position = sampling.draw(weights, u)
    total = weights.sum(dtype=np.float64)
    assert weights[position] > 0
    assert weights[:position].sum(dtype=np.float64) <= u * total + 1e-9 * total
    assert weights[: position + 1].sum(dtype=np.float64) >= u * total - 1e-9 * total


@pytest.mark.parametrize("u", [0.0, 0.5, np.nextafter(1, 0)])
def test_draw_never_lands_on_a_weight_of_zero(u: float) -> None:
    weights = np.zeros(2000, np.float32)
    weights[[600, 1100]] = 0.1
    assert sampling.draw(weights, u) in (600, 1100)


@given(arrays(np.float32, (3, 40), elements=st.floats(-1e4, 1e4, width=32)))
def test_log_softmax_is_stable(logits: np.ndarray) -> None:
    found = sampling.log_softmax(logits)
    exact = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)


def test_log_total_of_a_large_vocabulary_loses_nothing() -> None:
    assert sampling.log_total(np.full(262_144, 30, np.float32)) == pytest.approx(30 + math.log(262_144), abs=1e-6)


def test_greedy_takes_the_lowest_of_equals() -> None:
    assert Sampler(Params(temperature=0)).pick(np.array([1, 5, 5, 2], np.float32)).token == 1


@pytest.mark.parametrize("temperature", [1e-6, 1e-4, 0.01])
def test_cold_is_greedy_without_overflow(temperature: float) -> None:
    logits = spread(1000, scale=1e4)
    with np.errstate(all="raise", under="ignore"):
        assert Sampler(Params(temperature=temperature, seed=0)).pick(logits).token == logits.argmax()


def test_same_seed_same_tokens_and_another_seed_others() -> None:
    logits = spread(500, scale=1)

    def run(seed: int) -> list[int]:
        sampler = Sampler(Params(seed=seed))
        return [sampler.pick(logits).token for _ in range(20)]

    assert run(3) == run(3) != run(4)


def test_draws_follow_the_tempered_distribution() -> None:
    logits = np.array([0, 1, 2, 3], np.float32)
    sampler = Sampler(Params(temperature=2.0, seed=5))
    counts = np.bincount([sampler.pick(logits).token for _ in range(20_000)], minlength=4)
    np.testing.assert_allclose(counts / 20_000, np.exp(sampling.log_softmax(logits / 2)), atol=0.015)


def test_filters_keep_what_they_promise() -> None:
    logits = np.log(np.array([0.05, 0.4, 0.3, 0.2, 0.05], np.float32))
    assert drawn(logits) == {0, 1, 2, 3, 4}
    assert drawn(logits, top_k=2) == {1, 2}
    assert drawn(logits, top_p=0.65) == {1, 2}
    assert drawn(logits, top_p=0.75) == {1, 2, 3}
    assert drawn(logits, min_p=0.45) == {1, 2, 3}
    assert drawn(logits, min_p=1.0) == {1}
    assert drawn(logits, top_k=1) == {1}


def test_top_p_measures_what_top_k_left() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert drawn(logits, top_k=2, top_p=0.55) == {0}  # 0.4 / 0.7 suffices; of the whole it would not
    assert drawn(logits, top_p=0.55) == {0, 1}


def test_temperature_comes_before_top_p_and_min_p() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1], np.float32))
    assert drawn(logits, top_p=0.6, temperature=4.0) == {0, 1}
    assert drawn(logits, top_p=0.59, temperature=1.0) == {0}
    assert drawn(logits, min_p=0.5, temperature=4.0) == {0, 1, 2}


def test_min_p_applies_to_what_top_k_and_top_p_left() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    assert drawn(logits, top_k=3, top_p=0.99, min_p=0.5) == {0, 1}


def test_repetition_penalty_divides_and_multiplies_once_per_token() -> None:
    logits = np.array([2, -2, 2, -2], np.float32)
    sampling.penalise_repetition(logits, np.array([0, 1, 0, 1, 1]), 4.0)
    assert logits.tolist() == [0.5, -8, 2, -2]


def test_presence_counts_once_and_frequency_every_time() -> None:
    logits = np.zeros(4, np.float32)
    sampling.penalise_counts(logits, np.array([1, 2, 2, 2]), 0.5, 0.25)
    assert logits.tolist() == [0, -0.75, -1.25, 0]


def test_repetition_sees_the_prompt_and_the_others_do_not() -> None:
    logits = np.array([1.0, 0.9], np.float32)

    def choose(**params: float) -> int:
        return Sampler(Params(temperature=0, **params)).pick(logits, [0], given=1).token  # type: ignore[arg-type]

    assert choose(repetition_penalty=1.5) == 1
    assert choose(presence_penalty=2, frequency_penalty=2) == 0
    assert Sampler(Params(temperature=0, presence_penalty=1)).pick(logits, [0], given=0).token == 1


def test_penalties_pass_over_prompt_ids_that_are_padding_rows() -> None:
    sampler = Sampler(Params(temperature=0, repetition_penalty=2, frequency_penalty=1), size=3)
    assert sampler.pick(np.array([1, 3, 2, 9], np.float32), [3, 3, 1], given=2).token == 2


def test_bias_is_added_and_may_force_or_forbid() -> None:
    logits = spread(50)
    assert drawn(logits, count=50, logit_bias={13: 100}) == {13}
    best = int(logits.argmax())
    assert best not in drawn(logits, logit_bias={best: -100})
    assert best not in drawn(logits, logit_bias={best: -math.inf})
    with pytest.raises(OptionError, match=r"50.*0 to 49"):
        drawn(logits, logit_bias={50: 1})


def test_a_mask_allows_only_what_it_names() -> None:
    logits, mask = spread(50), np.zeros(50, bool)
    mask[[3, 8]] = True
    sampler = Sampler(Params(temperature=5.0, seed=0), size=45)
    assert {sampler.pick(logits, mask=mask).token for _ in range(100)} == {3, 8}
    with pytest.raises(OptionError, match="no token is left"):
        sampler.pick(logits, mask=np.zeros(50, bool))


def test_padding_rows_are_never_chosen_nor_reported() -> None:
    logits = np.zeros(64, np.float32)
    logits[60:] = 50
    for params in (Params(temperature=0, logprobs=64), Params(temperature=100, seed=0, logprobs=64), Params(top_k=64)):
        sampler = Sampler(params, size=60)
        for choice in (sampler.pick(logits) for _ in range(200)):
            assert choice.token < 60
            assert all(token < 60 for token, _ in choice.top)


def test_logprobs_are_the_models_own_whatever_the_filters() -> None:
    logits = spread(300)
    exact = sampling.log_softmax(logits)
    params = Params(seed=2, temperature=0.5, top_k=20, logit_bias={5: 3}, repetition_penalty=1.3, logprobs=3)
    choice = Sampler(params).pick(logits, [1, 2, 3], given=1)
    assert choice.logprob == pytest.approx(exact[choice.token], abs=1e-5)
    assert [token for token, _ in choice.top] == ranked(logits)[:3]
    assert [value for _, value in choice.top] == pytest.approx(exact[ranked(logits)[:3]].tolist(), abs=1e-5)


def test_logprobs_are_computed_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(logits: np.ndarray) -> np.ndarray:
        raise AssertionError("log_total was called")

    monkeypatch.setattr(sampling, "log_total", never)
    assert Sampler(Params(temperature=0)).pick(spread(10)).logprob is None
    with pytest.raises(AssertionError):
        Sampler(Params(temperature=0, logprobs=0)).pick(spread(10))


def test_logprobs_zero_reports_the_token_alone() -> None:
    choice = Sampler(Params(temperature=0, logprobs=0)).pick(np.zeros(4, np.float32))
    assert choice == (0, pytest.approx(-math.log(4)), ())


@settings(max_examples=50)
@given(st.data())
def test_the_callers_logits_stay_as_they_are(data: st.DataObject) -> None:
    logits = data.draw(scores)
    before = logits.copy()
    params = Params(repetition_penalty=2, presence_penalty=1, logit_bias={0: 4}, top_k=3, top_p=0.5, min_p=0.1, seed=0)
    Sampler(params).pick(logits, [0, 0], given=1)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_an_error_that_names_the_step(bad: float, temperature: float) -> None:
    logits = spread(20)
    logits[4] = bad
    with pytest.raises(TensorError, match=r"step 2 hold 1 values of 20"):
        Sampler(Params(temperature=temperature)).pick(logits, [1, 2, 3], given=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", None),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("seed", -1),
        ("seed", 0.5),
        ("logprobs", -1),
        ("logprobs", True),
        ("logit_bias", [1, 2]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", {3: math.nan}),
        ("logit_bias", {3: math.inf}),
        ("logit_bias", {10**30: 1}),
        ("temperature", 10**400),
    ],
)
def test_options_outside_their_range_are_named(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name) as caught:
        Params(**{name: value})  # type: ignore[arg-type]
    shown = next(iter(value)) if isinstance(value, dict) else value
    assert repr(shown) in str(caught.value) or "3]" in str(caught.value)


def test_everything_is_off_by_default() -> None:
    params = Params()
    assert not params.adjusts
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1.0, 0, 1.0, 0.0)
    hash(params)
