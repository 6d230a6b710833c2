"""The native kernels of every instruction set that this CPU has, against numpy and the definitions in blocks.py.

Instruction sets that this CPU lacks: test_isa_neon.py and test_isa_amx.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from geode import quant
from geode.blocks import BLOCKS
from geode.errors import OptionError, TensorError
from geode.native import extension, weights
from geode.quant import QTensor

if not extension.is_there():
    pytest.skip("the native engine was not built: pip install -e .", allow_module_level=True)

NATIVE = extension.module()
FLOATS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
TYPES = [*FLOATS, *BLOCKS]
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}
HALVES |= {"Q4_K": (0, 2), "Q5_K": (0, 2)}  # where a block keeps half-precision numbers; the others at 0
BATCHES = (1, 2, 3, 5, 16, 17, 33)

isas = pytest.mark.parametrize("isa", NATIVE.isas())
types = pytest.mark.parametrize("kind", TYPES)
quantizers = pytest.mark.parametrize("isa", [isa for isa in NATIVE.isas() if isa in ("avx512", "avx2", "portable")])


def packed(kind: str, rows: int, columns: int, scale: float = 0.01, seed: int = 0) -> np.ndarray:
    """Rows of a file with any bits that mean finite numbers: uint8 (rows, row bytes)."""
    rng = np.random.default_rng([rows, columns, seed])
    if kind in FLOATS:
        return rng.standard_normal((rows, columns)).astype(FLOATS[kind]).view(np.uint8)
    block = BLOCKS[kind]
    data = rng.integers(0, 256, (rows * columns // block.elements, block.nbytes), dtype=np.uint8)
    for at in HALVES.get(kind, (0,)):
        data[:, at : at + 2] = (scale * rng.standard_normal((len(data), 1))).astype("<f2").view(np.uint8)
    return data.reshape(rows, -1)


def numbers(kind: str, data: np.ndarray) -> np.ndarray:
    if kind in FLOATS:
        return data.view(FLOATS[kind]).astype(np.float32)
    block = BLOCKS[kind]
    return block.unpack(data.reshape(-1, block.nbytes)).reshape(len(data), -1)


def quantised(x: np.ndarray) -> np.ndarray:
    """Activations (m, columns) by blocks of 32: scale · q, the largest q 127, rounded half to even. In float64."""
    blocks = x.reshape(len(x), -1, 32)
    most = np.abs(blocks).max(axis=2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.rint(np.where(most > 0, blocks * (np.float32(127) / most), 0))
    return ((most / np.float32(127)).astype(np.float64) * q).reshape(x.shape)


def seen(isa: str, kind: str, x: np.ndarray) -> np.ndarray:
    """The activations as the kernels of a type read them."""
    tiles = isa == "amx" and len(x) >= 16
    if kind in BLOCKS and not tiles:
        return quantised(x)
    if (kind == "BF16" and isa in ("avx512", "amx")) or (tiles and kind in BLOCKS):
        return x.astype(ml_dtypes.bfloat16).astype(np.float64)
    return x.astype(np.float64)


def tolerance(isa: str, kind: str, m: int) -> float:
    """Relative to the sum of the terms' sizes. AMX rounds unpacked weights to bfloat16."""
    return 2.0**-7 if isa == "amx" and kind in BLOCKS and m >= 16 else 1e-5


def product(isa: str, kind: str, data: np.ndarray, columns: int, x: np.ndarray) -> np.ndarray:
    return np.asarray(NATIVE.matmul(isa, kind, data, columns, x))[:, : len(data)]


def check_product(isa: str, kind: str, data: np.ndarray, x: np.ndarray) -> None:
    weights, acts = numbers(kind, data).astype(np.float64), seen(isa, kind, x)
    slack = tolerance(isa, kind, len(x)) * (np.abs(acts) @ np.abs(weights).T) + 1e-30
    found = product(isa, kind, data, x.shape[1], x)
    assert (np.abs(found - acts @ weights.T) <= slack).all()


def columns_of(kind: str) -> Sequence[int]:
    if kind in FLOATS:
        return (1, 33, 256, 515)
    elements = BLOCKS[kind].elements
    return (elements, 3 * elements, 1280 + elements)  # the last is more than is unpacked at a time


def activations(m: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng([m, columns, seed]).standard_normal((m, columns), np.float32)


@isas
@types
def test_products_are_those_of_the_definition(isa: str, kind: str) -> None:
    for columns in columns_of(kind):
        data = packed(kind, 37, columns)
        for m in BATCHES:
            check_product(isa, kind, data, activations(m, columns))


@isas
@types
@pytest.mark.parametrize("rows", [1, 15, 16, 48, 81])
def test_any_number_of_rows(isa: str, kind: str, rows: int) -> None:
    columns = columns_of(kind)[1]
    check_product(isa, kind, packed(kind, rows, columns), activations(18, columns))


@isas
@types
def test_a_row_is_the_same_in_every_batch(isa: str, kind: str) -> None:
    columns = columns_of(kind)[-1]
    data, x = packed(kind, 37, columns), activations(33, columns)
    alone = np.concatenate([product(isa, kind, data, columns, x[i : i + 1]) for i in range(len(x))])
    for m in BATCHES:
        together = product(isa, kind, data, columns, x[:m])
        if isa == "amx" and m >= 16 and kind not in ("F32", "F16"):
            np.testing.assert_allclose(together, alone[:m], atol=0.05 * np.abs(alone).max())
        else:
            np.testing.assert_array_equal(together.view(np.uint32), alone[:m].view(np.uint32))


@isas
@types
def test_zeros_and_extreme_sizes(isa: str, kind: str) -> None:
    columns = columns_of(kind)[1]
    data, x = packed(kind, 17, columns), activations(6, columns)
    x[0] = 0
    x[1, : columns // 2] = 0
    x[2] *= np.float32(1e-30)
    x[3] *= np.float32(1e30)
    x[4, ::7] *= np.float32(1e6)
    check_product(isa, kind, data, x)
    assert (product(isa, kind, data, columns, x)[0] == 0).all()


@isas
@pytest.mark.parametrize("kind", list(BLOCKS))
@pytest.mark.parametrize("scale", [0.0, 6e-8, 100.0])
def test_extreme_scales_of_weights(isa: str, kind: str, scale: float) -> None:
    columns = columns_of(kind)[0]
    check_product(isa, kind, packed(kind, 17, columns, scale), activations(3, columns))


@isas
@pytest.mark.parametrize("kind", list(BLOCKS))
def test_the_largest_integers_do_not_overflow(isa: str, kind: str) -> None:
    columns = columns_of(kind)[1]
    data = packed(kind, 16, columns)
    block = BLOCKS[kind]
    halves = [i for at in HALVES.get(kind, (0,)) for i in (at, at + 1)]
    rest = [i for i in range(block.nbytes) if i not in halves]
    for byte in (0x00, 0x7F, 0x80, 0xFF):
        filled = data.reshape(-1, block.nbytes).copy()
        filled[:, rest] = byte
        for sign in (1, -1):
            check_product(isa, kind, filled.reshape(16, -1), np.full((4, columns), sign, np.float32))


@types
def test_numbers_and_panels_keep_the_bytes(kind: str) -> None:
    for columns in columns_of(kind):
        data = packed(kind, 37, columns)
        np.testing.assert_array_equal(NATIVE.roundtrip(kind, data, columns), data)
        found = np.asarray(NATIVE.dequantize(kind, data, columns))
        np.testing.assert_array_equal(found.view(np.uint32), numbers(kind, data).view(np.uint32))


PACKED_SHAPES = [(1, 256), (7, 1024), (33, 512)]
"""Rows and columns: fewer blocks than are packed together, and no whole number of such."""


def numbers_to_pack(rows: int, columns: int, dtype: Any) -> np.ndarray:
    """Normal numbers, in some rows larger ones, and a stretch of zeros."""
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, columns)) * rng.choice([0.02, 0.5], (rows, 1))
    x[rows // 2, :300] = 0
    return x.astype(dtype)


@quantizers
@pytest.mark.parametrize("kind", BLOCKS)
def test_packing_gives_the_bits_of_the_definition(isa: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEODE_ISA", isa)
    for (rows, columns), dtype in zip(PACKED_SHAPES, FLOATS.values(), strict=True):
        x = numbers_to_pack(rows, columns, dtype)
        importance = np.random.default_rng(1).standard_normal(columns).astype(np.float32) ** 2
        importance[10:90] = 0
        for counts in (None, importance):
            found = weights.quantize(x, kind, threads=2, weights=counts)
            np.testing.assert_array_equal(found.data, quant.quantize(x, kind, counts).data)


@quantizers
@pytest.mark.parametrize("kind", BLOCKS)
def test_unpacking_rounds_as_numpy_does(isa: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEODE_ISA", isa)
    for scale in (1e-7, 1e-3, 1e3):  # below, in and beyond the range of half precision
        tensor = QTensor(kind, (37, 512), packed(kind, 37, 512, scale))
        for name, dtype in FLOATS.items():
            with np.errstate(over="ignore"):
                expected = tensor.dequantize().astype(dtype)
            assert weights.dequantize(tensor, name, threads=3).tobytes() == expected.tobytes()


def test_every_half_is_read_as_numpy_reads_it() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    found = np.asarray(NATIVE.dequantize("F16", halves.view(np.uint8).reshape(1, -1), 1 << 16))
    expected = halves.view(np.float16).astype(np.float32)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(found[0][numbers].view(np.uint32), expected[numbers].view(np.uint32))
    assert np.isnan(found[0][~numbers]).all()


def test_packing_fills_a_part_of_what_is_there(tmp_path: Path) -> None:
    x = numbers_to_pack(40, 512, np.float32)
    x.astype(np.float16).tofile(tmp_path / "x")
    source = np.memmap(tmp_path / "x", np.float16, "r", shape=(40, 512))
    whole = quant.quantize(source, "Q4_K").data
    out = np.memmap(tmp_path / "q", np.uint8, "w+", shape=whole.shape)
    for at in range(0, 40, 13):
        weights.quantize(source[at : at + 13], "Q4_K", out=out[at : at + 13])
    np.testing.assert_array_equal(out, whole)
    back = np.zeros((40, 512), np.float16)
    assert weights.dequantize(QTensor("Q4_K", (40, 512), out), "F16", out=back) is back
    np.testing.assert_array_equal(back, QTensor("Q4_K", (40, 512), whole).dequantize().astype(np.float16))


def test_other_floats_and_shapes_are_packed_by_way_of_float32() -> None:
    x = numbers_to_pack(8, 512, np.float64)
    expected = quant.quantize(x, "Q6_K").data
    np.testing.assert_array_equal(weights.quantize(x, "Q6_K").data, expected)
    np.testing.assert_array_equal(weights.quantize(x.reshape(2, 4, 512), "Q6_K").data, expected)
    tall = x.astype(np.float32).reshape(512, 8).T
    np.testing.assert_array_equal(weights.quantize(tall, "Q6_K").data, quant.quantize(tall, "Q6_K").data)
    assert weights.quantize(np.zeros((0, 512), np.float32), "Q4_0").data.shape == (0, 288)


def test_what_does_not_fit_is_refused() -> None:
    x = numbers_to_pack(3, 512, np.float32)
    with pytest.raises(OptionError, match=r"uint8 \(3, 288\)"):
        weights.quantize(x, "Q4_0", out=np.empty((3, 289), np.uint8))
    with pytest.raises(TensorError, match="512 columns"):
        weights.quantize(x, "Q4_0", weights=np.ones(3))
    with pytest.raises(OptionError, match="'F64'"):
        weights.dequantize(quant.quantize(x, "Q4_0"), "F64")
    with pytest.raises(OptionError, match="float16"):
        weights.dequantize(quant.quantize(x, "Q4_0"), "F16", out=np.empty((3, 512), np.float32))
    for bad in (np.nan, 3e38):
        x[1, 7] = bad
        with pytest.raises(TensorError, match="cannot be packed"):
            weights.quantize(x, "Q4_0")


def test_an_instruction_set_that_is_not_here_is_named_with_those_that_are() -> None:
    data = packed("F32", 1, 4)
    with pytest.raises(ValueError, match=r"one of .*portable.*got 'sse9'"):
        NATIVE.matmul("sse9", "F32", data, 4, activations(1, 4))
    assert NATIVE.isas()[-1] == "portable"


# ---- functions of single rows ----

erf = np.vectorize(math.erf)
WIDE = np.concatenate([np.linspace(-40, 40, 4001), np.linspace(-1e-3, 1e-3, 301), [0.0, 1e4, -1e4, 1e-30]])
WIDE = WIDE.astype(np.float32)


def apply(isa: str, name: str, x: np.ndarray, *more: np.ndarray | Sequence[float]) -> np.ndarray:
    rows = [np.asarray(row, np.float32).tolist() for row in more]
    return np.asarray(NATIVE.elementwise(isa, name, x.tolist(), rows), np.float64)


def close(found: np.ndarray, expected: np.ndarray, relative: float = 1e-6, absolute: float = 1e-30) -> None:
    np.testing.assert_allclose(found, expected, rtol=relative, atol=absolute)


@isas
def test_activations_of_a_wide_range(isa: str) -> None:
    x = WIDE.astype(np.float64)
    with np.errstate(over="ignore"):
        close(apply(isa, "silu", WIDE), x / (1 + np.exp(-x)), absolute=1e-30)
    close(apply(isa, "gelu", WIDE), x / 2 * (1 + erf(x / math.sqrt(2))), absolute=2e-6)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    close(apply(isa, "gelu_tanh", WIDE), x / 2 * (1 + np.tanh(inner)), absolute=1e-5)
    up = np.flip(WIDE)
    gated = apply(isa, "gelu", WIDE, up)
    close(gated, apply(isa, "gelu", WIDE) * up.astype(np.float64), absolute=1e-30)


@isas
def test_soft_caps_are_tanh(isa: str) -> None:
    x = WIDE.astype(np.float64)
    close(apply(isa, "scale_and_cap", WIDE, (1.0, 1.0)), np.tanh(x))
    close(apply(isa, "scale_and_cap", WIDE, (0.5, 50.0)), 50 * np.tanh(x / 100))
    close(apply(isa, "scale_and_cap", WIDE, (0.5, 0.0)), x / 2)


@isas
def test_a_softmax_with_what_is_masked(isa: str) -> None:
    x = np.random.default_rng(0).uniform(-90, 88, 4096).astype(np.float32)
    x[::5] = -np.inf
    x[1] = 88
    assert apply(isa, "largest", x)[0] == 88
    found = apply(isa, "exponentials", x, (88.0,))
    away = (x - np.float32(88)).astype(np.float64)
    expected = np.where(away < -87, 0, np.exp(away))
    close(found[:-1], expected)
    close(found[-1:], expected.sum(keepdims=True), 1e-5)
    assert (found[:-1][::5] == 0).all()
    assert apply(isa, "largest", np.full(7, -np.inf, np.float32))[0] == -np.inf


@isas
@pytest.mark.parametrize("n", [1, 16, 37, 640])
def test_norms(isa: str, n: int) -> None:
    x, w, b = (row.astype(np.float64) for row in activations(3, n))
    rms = x / np.sqrt((x * x).mean() + np.float32(1e-6))
    close(apply(isa, "rms_norm", x, (1e-6,)), rms, 1e-5, 1e-6)
    close(apply(isa, "rms_norm", x, (1e-6,), w, b), rms * w + b, 1e-5, 1e-6)
    layer = (x - x.mean()) / np.sqrt(x.var() + np.float32(1e-5))
    close(apply(isa, "layer_norm", x, (1e-5,), w, b), layer * w + b, 1e-4, 1e-5)


@isas
@pytest.mark.parametrize("pairs", [1, 16, 40, 128])
def test_rotation(isa: str, pairs: int) -> None:
    x = activations(1, 2 * pairs)[0]
    angle = np.zeros(2 * pairs)
    angle[:pairs] = np.random.default_rng(pairs).uniform(-3, 3, pairs)
    c, s = np.cos(angle)[:pairs].astype(np.float32), np.sin(angle)[:pairs].astype(np.float32)
    fill = np.zeros(pairs, np.float32)
    found = apply(isa, "rotate", x, np.concatenate([c, fill]), np.concatenate([s, fill]))
    first, second = x[:pairs].astype(np.float64), x[pairs:].astype(np.float64)
    close(found, np.concatenate([first * c - second * s, second * c + first * s]), 1e-5, 1e-6)


@isas
def test_sums_of_rows(isa: str) -> None:
    x, y = activations(2, 37)
    np.testing.assert_array_equal(apply(isa, "add", x, y), x + y)
    close(apply(isa, "blend", x, y, (0.25, 2.0)), 2.0 * x + 0.25 * y, 1e-6, 1e-6)
