"""int8 and int4: numpy's definition, and what the frameworks make of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import worker
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import BLOCKY, SMALL, network, write_gguf

from geode import integers
from geode.errors import OptionError, TensorError
from geode.quant import quantize, to_float32
from geode.tensors import shapes

pytestmark = pytest.mark.xdist_group("integers")
FRAMEWORKS = ("jax", "torch", "tensorflow")

matrices = st.builds(
    lambda seed, rows, columns, spread: (
        np.random.default_rng(seed).standard_normal((rows, columns)) * 10.0**spread
    ).astype(np.float32),
    st.integers(0, 999), st.integers(1, 5), st.integers(1, 100), st.integers(-3, 3),
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(matrices)
def test_int8_is_within_half_a_scale(array: np.ndarray) -> None:
    q, scale = integers.to_int8(array)
    assert (q.dtype, q.shape, scale.dtype, scale.shape) == (np.int8, array.shape, np.float32, array.shape[:1])
    assert (np.abs(q.astype(int)).max(axis=1) == 127).all(), "the largest number of a row has the largest integer"
    off = np.abs(integers.from_int8(q, scale) - array)
    assert (off <= scale[:, None] * 0.50001).all()


@settings(max_examples=50, deadline=None)
@given(matrices)
def test_int4_is_q4_0_taken_apart(array: np.ndarray) -> None:
    padded = np.pad(array, ((0, 0), (0, -array.shape[1] % 32)))
    packed = quantize(padded, "Q4_0")
    q, scale = integers.to_int4(array)
    assert (q.dtype, q.shape) == (np.uint8, (len(array), padded.shape[1] // 2))
    assert (scale.dtype, scale.shape) == (np.float16, (len(array), padded.shape[1] // 32))
    numbers = integers.from_int4(q, scale, array.shape[1])
    np.testing.assert_array_equal(numbers, packed.dequantize()[:, : array.shape[1]])
    step = np.repeat(np.abs(scale.astype(np.float32)), 32, axis=1)[:, : array.shape[1]]
    assert (np.abs(numbers - array) <= 1.01 * step + 1e-6).all()
    for whole, again in zip((q, scale), integers.to_int4(packed), strict=True):
        np.testing.assert_array_equal(whole, again)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_K", "Q6_K"])
def test_packed_and_half_tensors_are_taken_by_their_numbers(kind: str) -> None:
    array = network(BLOCKY, kind)["blk.0.ffn_down.weight"]
    for way in (integers.to_int8, integers.to_int4):
        for found, expected in zip(way(array), way(to_float32(array)), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).standard_normal((37, 40)).astype(np.float32)
    whole = [*integers.to_int8(array), *integers.to_int4(array)]
    monkeypatch.setattr(integers, "PIECE", 100)
    for found, expected in zip([*integers.to_int8(array), *integers.to_int4(array)], whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_rows_of_zeros_stay_zeros() -> None:
    zeros = np.zeros((3, 40), np.float32)
    assert not integers.from_int8(*integers.to_int8(zeros)).any()
    assert not integers.from_int4(*integers.to_int4(zeros), 40).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("way", [integers.to_int8, integers.to_int4])
def test_what_is_not_finite_is_refused(way: Callable, bad: float) -> None:
    array = np.ones((4, 32), np.float32)
    array[2, 5] = bad
    with pytest.raises(TensorError, match="Only finite numbers"):
        way(array)


def test_plan_has_all_matrices() -> None:
    found = integers.plan(SMALL, "int4")
    assert found["token_embd.weight"] == found["output.weight"] == "int8"
    assert {kind for name, kind in found.items() if name.startswith("blk.")} == {"int4"}
    assert set(found) == {name for name, shape in shapes(SMALL).items() if len(shape) == 2}
    with pytest.raises(OptionError, match="int8, int4"):
        integers.plan(SMALL, "int3")


@pytest.fixture(scope="module")
def found(once: Callable[..., Path]) -> Callable[[str], dict]:
    pytest.importorskip("keras")
    folder = once("integers", lambda folder: write_gguf(folder / "q4_0.gguf", "Q4_0") is None)

    @cache
    def run(on: str) -> dict:
        pytest.importorskip(on)
        return worker("integers_worker.py", str(folder / "q4_0.gguf"), on)  # type: ignore[no-any-return]

    return run


@pytest.mark.parametrize("on", FRAMEWORKS)
@pytest.mark.parametrize("kind", integers.KINDS)
def test_a_framework_computes_with_the_definitions_numbers(found: Callable, on: str, kind: str) -> None:
    result = found(on)["kinds"][kind]
    assert result["definition"] < 1e-4, "distance from the same numbers as floats"
    assert result["cached"] < 1e-4, "cached decoding in a batch, distance from the full forward"


@pytest.mark.parametrize("on", FRAMEWORKS)
@pytest.mark.parametrize(("kind", "least", "most"), [("int8", 0.002, 0.08), ("int4", 0.02, 0.6)])
def test_rounding_costs_little(found: Callable, on: str, kind: str, least: float, most: float) -> None:
    result = found(on)["kinds"][kind]
    assert least < result["rounding"] < most, "in standard deviations of the logits"
    assert 1e-4 < result["bfloat16"] < 0.1


@pytest.mark.parametrize("kind", integers.KINDS)
def test_frameworks_agree(found: Callable, kind: str) -> None:
    logits = [np.asarray(found(on)["kinds"][kind]["logits"]) for on in FRAMEWORKS]
    assert max(float(np.abs(other - logits[0]).max()) for other in logits[1:]) < 1e-4


@pytest.mark.parametrize("on", FRAMEWORKS)
def test_memory_falls(found: Callable, on: str) -> None:
    held = found(on)["bytes"]
    for kind in integers.KINDS:
        assert held[kind] == integers.weight_bytes(BLOCKY, kind, 4), "what is there is what was reckoned"
    assert held["int8"] < 0.27 * held["None"]
    assert held["int4"] < 0.17 * held["None"]


@pytest.mark.parametrize("case", ["int4 1", "int8 24"])
def test_floats_of_all_matrices_are_never_there_at_once(found: Callable, case: str) -> None:
    largest = 4 * BLOCKY.ffn * BLOCKY.width
    assert found("jax")["temporary"][case] < 4 * largest, "XLA would make floats of all 40 matrices first if it could"


@pytest.mark.parametrize("on", FRAMEWORKS)
@pytest.mark.parametrize("case", [f"{kind} {rows}" for kind in integers.KINDS for rows in (1, 40)])
def test_gradients_flow_through_x(found: Callable, on: str, case: str) -> None:
    assert found(on)["gradient"][case] < 1e-4


@pytest.mark.parametrize("on", FRAMEWORKS)
def test_a_q4_0_file_is_kept_as_it_is(found: Callable, on: str) -> None:
    assert found(on)["gguf"] < 1e-4
