"""Numbers that came out of blocks go back into blocks that hold the very same numbers; others do not."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quant import HALVES, random_blocks

from geode.errors import TensorError
from geode.quant import BLOCKS, QTensor, quantize
from geode.recover import SIGNED, recover, recover_or_pack, signs

SYMMETRIC = ("Q8_0", "Q4_0", "Q5_0", "Q3_K", "Q6_K")
every_type = pytest.mark.parametrize("kind", BLOCKS)


def unpacked(kind: str, blocks: np.ndarray) -> np.ndarray:
    return QTensor(kind, (len(blocks), BLOCKS[kind].elements), blocks).dequantize()


def assert_recovered(numbers: np.ndarray, kind: str) -> None:
    packed = recover(numbers, kind)
    assert packed is not None
    assert (packed.type, packed.shape) == (kind, numbers.shape)
    np.testing.assert_array_equal(packed.dequantize(), numbers)


def with_halves(kind: str, blocks: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """The blocks with their half-precision numbers (places, n) replaced."""
    for at, values in zip(HALVES[kind], halves, strict=False):
        blocks[:, at : at + 2] = values.astype("<f2").view(np.uint8).reshape(-1, 2)
    return blocks


def weights(name: str, shape: tuple[int, int] = (8, 1024)) -> np.ndarray:
    rng = np.random.default_rng(5)
    normal = rng.normal(0, 0.02, shape)
    made = {
        "normal": normal,
        "heavy": rng.standard_t(3, shape) * 0.02,
        "shifted": normal + 0.05,
        "outliers": np.where(rng.random(shape) < 0.002, 50, normal),  # beyond 1: float32 has rounded some
        "positive": np.abs(normal),
        "sparse": normal * (rng.random(shape) < 0.02),
        "zeros": np.zeros(shape),
        "ones": np.ones(shape),
        "minus": np.full(shape, -0.3),
        "rows of all sizes": normal * np.exp(rng.normal(0, 3, shape[0]))[:, None],
        "tiny": normal * 1e-5,  # scales that are subnormal in half precision
    }
    return made[name].astype(np.float32)


NAMES = ("normal", "heavy", "shifted", "outliers", "positive", "sparse", "zeros", "ones", "minus", "tiny")


@every_type
@pytest.mark.parametrize("name", [*NAMES, "rows of all sizes"])
def test_what_was_packed_is_recovered(kind: str, name: str) -> None:
    assert_recovered(quantize(weights(name), kind).dequantize(), kind)


@pytest.mark.parametrize("kind", SYMMETRIC)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_bits_of_a_type_without_minima_are_recovered(kind: str, seed: int) -> None:
    assert_recovered(unpacked(kind, random_blocks(kind, 20, seed)), kind)


@pytest.mark.parametrize("kind", sorted(set(BLOCKS) - set(SYMMETRIC)))
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_bits_of_a_type_with_minima_are_recovered_below_one(kind: str, seed: int) -> None:
    """Either sign of both scales, subnormal ones too; above 1 float32 may have rounded the lattice away."""
    rng = np.random.default_rng(seed)
    largest = 1 / {"Q4_1": 16, "Q5_1": 32, "Q2_K": 60, "Q4_K": 1008, "Q5_K": 2016}[kind]
    halves = np.exp2(rng.uniform(-24, np.log2(largest), (2, 10))) * rng.choice([-1, 1], (2, 10))
    assert_recovered(unpacked(kind, with_halves(kind, random_blocks(kind, 10, seed), halves)), kind)


@every_type
def test_runs_of_one_number_are_recovered_beside_others(kind: str) -> None:
    halves = np.array([[2.0**-10 * 1.25] * 40, [2.0**-9 * 1.125] * 40])
    numbers = unpacked(kind, with_halves(kind, random_blocks(kind, 40), halves)).reshape(40, -1, 16)
    numbers[1:, 1] = numbers[1:, 1, :1]
    numbers[::2, 0] = 0
    packed = quantize(numbers.reshape(40, -1), kind)
    assert_recovered(packed.dequantize(), kind)


@every_type
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_ordinary_weights_are_refused(kind: str, dtype: type) -> None:
    assert recover(weights("normal").astype(dtype), kind) is None


@every_type
def test_one_changed_number_is_noticed(kind: str) -> None:
    numbers = quantize(weights("normal", (64, 1024)), kind).dequantize()
    numbers[37, 519] = np.nextafter(numbers[37, 519], np.float32(1))
    assert recover(numbers, kind) is None


@every_type
def test_numbers_rounded_to_bfloat16_are_refused(kind: str) -> None:
    assert recover(quantize(weights("normal"), kind).dequantize().astype(ml_dtypes.bfloat16), kind) is None


@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16])
def test_other_float_types_that_hold_the_numbers_will_do(dtype: type) -> None:
    numbers = (np.arange(-8, 8).repeat(16) * 2.0**-6).reshape(1, 256).astype(dtype)
    assert_recovered(numbers, "Q4_0")
    assert_recovered(numbers, "Q6_K")


def test_float64_beyond_float32_is_refused() -> None:
    numbers = quantize(weights("normal"), "Q8_0").dequantize().astype(np.float64)
    assert recover(numbers, "Q8_0") is not None
    assert recover(numbers * (1 + 2.0**-40), "Q8_0") is None


@every_type
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_no_block_can_hold_is_refused(kind: str, bad: float) -> None:
    numbers = quantize(weights("normal"), kind).dequantize()
    numbers[0, 0] = bad
    assert recover(numbers, kind) is None


@every_type
def test_the_rest_is_packed(kind: str) -> None:
    """Blocks that are exact stay so; the others come out as the packer has them, and the shift is told."""
    lattice, other = quantize(weights("heavy"), kind).dequantize(), weights("normal")
    mixed = np.concatenate([lattice, other])
    packed, largest = recover_or_pack(mixed, kind)
    expected = quantize(other, kind)
    np.testing.assert_array_equal(packed.rows(slice(0, 8)).dequantize(), lattice)
    np.testing.assert_array_equal(packed.rows(slice(8, 16)).data, expected.data)
    assert largest == np.abs(expected.dequantize() - other).max() > 0


def test_the_packer_is_asked_only_for_the_rest() -> None:
    asked = []

    def pack(array: np.ndarray, kind: str) -> QTensor:
        asked.append((array.dtype, array.shape))
        return quantize(array, kind)

    numbers = quantize(weights("normal"), "Q4_K").dequantize()
    assert recover_or_pack(numbers, "Q4_K", pack)[1] == 0 and not asked
    numbers[3, 300] += 1e-3
    assert recover_or_pack(numbers, "Q4_K", pack)[1] > 0 and asked == [(np.dtype(np.float32), (1, 256))]


def test_what_cannot_be_packed_is_said() -> None:
    numbers = weights("normal")
    numbers[1, 2] = np.nan
    with pytest.raises(TensorError, match="infinities or NaNs"):
        recover_or_pack(numbers, "Q6_K")
    with pytest.raises(TensorError, match="whole number of blocks"):
        recover(np.zeros((2, 40), np.float32), "Q8_0")


def test_shapes_stay() -> None:
    numbers = quantize(weights("normal").reshape(2, 4, 1024), "Q5_K").dequantize()
    assert_recovered(numbers, "Q5_K")
    assert_recovered(numbers[:0], "Q5_K")
    assert_recovered(numbers.transpose(1, 0, 2), "Q5_K")


@pytest.mark.parametrize("kind", SIGNED)
def test_signs_give_the_very_bits_back(kind: str) -> None:
    """The numbers alone leave the sign of a run open; with the signs every byte is as it was."""
    rng = np.random.default_rng(3)
    packed = quantize(rng.standard_normal((24, 1024)).astype(np.float32), kind)
    numbers, kept = packed.dequantize(), signs(packed)
    found = recover(numbers, kind, kept)
    assert found is not None and kept is not None
    np.testing.assert_array_equal(found.data, packed.data)
    for other in (np.zeros_like(kept), kept[:-1]):  # signs of something else change nothing but the spelling
        found = recover(numbers, kind, other)
        assert found is not None
        np.testing.assert_array_equal(found.dequantize(), numbers)


@pytest.mark.parametrize("kind", [kind for kind in BLOCKS if kind not in SIGNED])
def test_the_other_types_need_none(kind: str) -> None:
    """Bytes come back as packers wrote them, but for the few blocks whose steps have a common divisor."""
    rng = np.random.default_rng(4)
    packed = quantize(rng.standard_normal((16, 1024)).astype(np.float32), kind)
    assert signs(packed) is None
    found = recover(packed.dequantize(), kind)
    assert found is not None
    assert (found.data == packed.data).mean() > 0.99
