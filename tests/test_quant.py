"""Block formats against one-number-at-a-time readings of the same bytes, and against ggml's own code and package."""

from __future__ import annotations

import hashlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geode import lattice, quant
from geode.errors import OptionError, TensorError
from geode.quant import BLOCKS, QTensor

HALVES = {  # bytes where each format keeps its half-precision numbers
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def random_blocks(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """Random bytes, (count, nbytes), with finite scales of either sign and of every size."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, BLOCKS[kind].nbytes), dtype=np.uint8)
    for at in HALVES[kind]:
        bits = rng.integers(0, 0x7C00, count).astype("<u2") | rng.integers(0, 2, count).astype("<u2") << 15
        blocks[:, at : at + 2] = bits.view(np.uint8).reshape(-1, 2)
    return blocks


def tensor(kind: str, rows: int, blocks_per_row: int, seed: int = 0) -> QTensor:
    data = random_blocks(kind, rows * blocks_per_row, seed).reshape(rows, -1)
    return QTensor(kind, (rows, blocks_per_row * BLOCKS[kind].elements), data)


def f16(block: bytes, at: int) -> np.float32:
    return np.float32(np.frombuffer(block, "<f2", 1, at)[0])


def i8(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def scale_and_min(block: bytes, i: int) -> tuple[int, int]:
    """The 6-bit scale and minimum of group i of Q4_K and Q5_K (`get_scale_min_k4` in ggml-quants.c)."""
    q = block[4:16]
    if i < 4:
        return q[i] & 63, q[i + 4] & 63
    return q[i + 4] & 15 | q[i - 4] >> 6 << 4, q[i + 4] >> 4 | q[i] >> 6 << 4


def element(kind: str, b: bytes, i: int) -> np.float32:
    """Element i of one block, with every bit fetched by hand. The order of float32 operations is ggml's."""
    f = np.float32
    half, low = i // 16, i % 16  # of a block of 32
    if kind == "Q8_0":
        return f16(b, 0) * f(i8(b[2 + i]))
    if kind == "Q4_0":
        return f16(b, 0) * f((b[2 + low] >> 4 * half & 15) - 8)
    if kind == "Q4_1":
        return f16(b, 0) * f(b[4 + low] >> 4 * half & 15) + f16(b, 2)
    if kind in ("Q5_0", "Q5_1"):
        at = 2 if kind == "Q5_0" else 4
        high = int.from_bytes(b[at : at + 4], "little") >> i & 1
        q = b[at + 4 + low] >> 4 * half & 15 | high << 4
        return f16(b, 0) * f(q - 16) if kind == "Q5_0" else f16(b, 0) * f(q) + f16(b, 2)
    if kind == "Q2_K":
        q = b[16 + i // 128 * 32 + i % 32] >> i % 128 // 32 * 2 & 3
        pair = b[i // 16]
        return f16(b, 80) * f(pair & 15) * f(q) - f16(b, 82) * f(pair >> 4)
    if kind == "Q3_K":
        group = i // 16
        s = b[96 + group % 8] >> group // 8 * 4 & 15 | (b[104 + group % 4] >> group // 4 * 2 & 3) << 4
        q = b[32 + i // 128 * 32 + i % 32] >> i % 128 // 32 * 2 & 3
        q -= 0 if b[i % 32] >> i // 32 & 1 else 4
        return f16(b, 108) * f(s - 32) * f(q)
    if kind == "Q4_K":
        s, m = scale_and_min(b, i // 32)
        q = b[16 + i // 64 * 32 + i % 32] >> i % 64 // 32 * 4 & 15
        return f16(b, 0) * f(s) * f(q) - f16(b, 2) * f(m)
    if kind == "Q5_K":
        s, m = scale_and_min(b, i // 32)
        q = b[48 + i // 64 * 32 + i % 32] >> i % 64 // 32 * 4 & 15 | (b[16 + i % 32] >> i // 32 & 1) << 4
        return f16(b, 0) * f(s) * f(q) - f16(b, 2) * f(m)
    assert kind == "Q6_K"
    part, within = i // 128, i % 128
    q = b[part * 64 + within % 64] >> within // 64 * 4 & 15
    q |= (b[128 + part * 32 + i % 32] >> within // 32 * 2 & 3) << 4
    return f16(b, 208) * f(i8(b[192 + i // 16])) * f(q - 32)


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_bit_is_where_the_format_puts_it(kind: str) -> None:
    packed = tensor(kind, 3, 2)
    raw = packed.data.reshape(-1, BLOCKS[kind].nbytes)
    expected = [element(kind, block.tobytes(), i) for block in raw for i in range(BLOCKS[kind].elements)]
    assert packed.dequantize().reshape(-1).tobytes() == np.array(expected, np.float32).tobytes()


@pytest.mark.parametrize("kind", BLOCKS)
def test_values_equal_the_gguf_package(kind: str) -> None:
    peer = pytest.importorskip("gguf")
    packed = tensor(kind, 40, 16, seed=1)
    expected = peer.quants.dequantize(packed.data, getattr(peer.GGMLQuantizationType, kind))
    assert packed.dequantize().tobytes() == expected.astype(np.float32).tobytes()


@pytest.mark.parametrize("kind", BLOCKS)
def test_sizes_equal_the_gguf_package(kind: str) -> None:
    peer = pytest.importorskip("gguf")
    assert (BLOCKS[kind].elements, BLOCKS[kind].nbytes) == peer.GGML_QUANT_SIZES[
        getattr(peer.GGMLQuantizationType, kind)
    ]


def test_pieces_join_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tensor("Q6_K", 7, 3)
    whole = packed.dequantize()
    monkeypatch.setattr(quant, "PIECE", 512)
    assert max(piece.size for piece in quant.pieces(packed)) == 512
    np.testing.assert_array_equal(packed.dequantize(), whole)


def test_rows_are_chosen_without_unpacking() -> None:
    packed = tensor("Q4_K", 6, 2)
    whole = packed.dequantize()
    order = np.array([5, 0, 3, 3])
    np.testing.assert_array_equal(packed.rows(order).dequantize(), whole[order])
    np.testing.assert_array_equal(packed.rows(slice(1, 6, 2)).dequantize(), whole[1::2])
    assert np.shares_memory(packed.rows(slice(2, 4)).data, packed.data)


def test_rows_count_over_all_leading_axes() -> None:
    flat = tensor("Q8_0", 6, 1)
    cube = QTensor("Q8_0", (2, 3, 32), flat.data)
    assert cube.rows(slice(2, 5)).shape == (3, 32)
    np.testing.assert_array_equal(cube.dequantize().reshape(6, 32), flat.dequantize())


def test_concatenate_undoes_a_split() -> None:
    packed = tensor("Q5_1", 6, 2)
    joined = quant.concatenate([packed.rows(slice(0, 2)), packed.rows(slice(2, 6))])
    assert joined.shape == packed.shape
    assert joined.nbytes == packed.nbytes
    np.testing.assert_array_equal(joined.data, packed.data)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [tensor("Q8_0", 2, 1), tensor("Q4_0", 2, 1)],
        [tensor("Q8_0", 2, 1), tensor("Q8_0", 2, 2)],
        [QTensor("Q8_0", (32,), tensor("Q8_0", 1, 1).data)],
    ],
)
def test_concatenate_refuses_what_does_not_join(parts: list[QTensor]) -> None:
    with pytest.raises(TensorError, match="whole rows"):
        quant.concatenate(parts)


@pytest.mark.parametrize(
    ("kind", "shape", "data", "message"),
    [
        ("Q4_K", (2, 128), np.zeros((2, 72), np.uint8), "blocks of 256"),
        ("Q4_K", (), np.zeros((1, 144), np.uint8), "blocks of 256"),
        ("Q4_K", (2, 256), np.zeros((1, 144), np.uint8), r"uint8 \(2, 144\)"),
        ("Q4_K", (1, 256), np.zeros((1, 144), np.int8), "int8"),
        ("IQ2_S", (1, 256), np.zeros((1, 82), np.uint8), "no block type"),
    ],
)
def test_a_tensor_whose_parts_disagree_is_refused(
    kind: str, shape: tuple[int, ...], data: np.ndarray, message: str
) -> None:
    with pytest.raises(TensorError, match=message):
        QTensor(kind, shape, data)


def test_tensors_without_rows_or_columns_unpack_to_nothing() -> None:
    assert QTensor("Q4_0", (0, 32), np.zeros((0, 18), np.uint8)).dequantize().shape == (0, 32)
    assert QTensor("Q4_0", (3, 0), np.zeros((3, 0), np.uint8)).dequantize().shape == (3, 0)


def test_to_float32_keeps_values_and_copies_no_float32() -> None:
    plain = np.arange(4, dtype=np.float32)
    assert quant.to_float32(plain) is plain
    assert quant.to_float32(plain.astype(ml_dtypes.bfloat16)).tobytes() == plain.tobytes()
    packed = tensor("Q2_K", 1, 1)
    assert quant.to_float32(packed).dtype == np.float32


def test_type_names_lead_back_to_their_dtypes() -> None:
    assert {quant.TYPE_NAMES[dtype.name] for dtype in quant.DTYPES.values()} == set(quant.DTYPES)
    assert quant.float_type("BF16") == ml_dtypes.bfloat16
    with pytest.raises(OptionError, match="I32"):
        quant.float_type("I32")


def test_find_nonfinite_names_the_bad_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quant, "PIECE", 1024)
    bad = tensor("Q4_K", 4, 8)
    bad.data[3, -144:-142] = (0, 0x7C)  # infinity as the scale of the very last block
    late = np.zeros((3, 1000), ml_dtypes.bfloat16)
    late[2, 999] = np.nan
    tensors = {
        "good": tensor("Q4_K", 4, 8),
        "bad": bad,
        "late": late,
        "fine": np.ones(3, np.float16),
        "ids": np.arange(3),
        "eight": np.array([1, np.inf], ml_dtypes.float8_e5m2),
    }
    assert quant.find_nonfinite(tensors) == ["bad", "late", "eight"]


# Packing

GGML = {  # the first half of the SHA-256 of what ggml's own quantize_row_*_ref makes of `product()`; error / size
    "Q8_0": ("346a2f4b98f8c295", 0.0066),
    "Q4_0": ("91caecbf86919264", 0.1006),
    "Q4_1": ("04847c784e314c36", 0.0928),
    "Q5_0": ("7f428cfeeae33fe2", 0.0515),
    "Q5_1": ("8f2e2a9b0c051c12", 0.0447),
    "Q2_K": ("fae7c5885e983e42", 0.3532),
    "Q3_K": ("6401828ce2473004", 0.1676),
    "Q4_K": ("b7608ffd93542fc6", 0.0851),
    "Q5_K": ("cd0c7233580313b5", 0.0432),
    "Q6_K": ("3ac0d04d562dbe54", 0.0215),
}
SIMPLE = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def product(seed: int = 7) -> np.ndarray:
    """Float32 (8, 1024), many small and few large; the same on every machine."""
    parts = np.random.default_rng(seed).integers(-(1 << 20), 1 << 20, (3, 8, 1024)).astype(np.float64) / (1 << 20)
    return (parts[0] * parts[1] * parts[2]).astype(np.float32)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x, dtype=np.float64).mean()))


@pytest.mark.parametrize("kind", BLOCKS)
def test_bytes_equal_ggmls(kind: str) -> None:
    x = product()
    packed = quant.quantize(x, kind)
    digest, error = GGML[kind]
    assert rms(packed.dequantize() - x) / rms(x) == pytest.approx(error, abs=1e-4)
    assert hashlib.sha256(packed.data.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("spread", ["normal", "above zero", "below zero", "bfloat16", "sparse", "constant", "zero"])
@pytest.mark.parametrize("kind", SIMPLE)
def test_bytes_equal_the_gguf_package(kind: str, spread: str) -> None:
    peer = pytest.importorskip("gguf")
    rng = np.random.default_rng(3)
    x = rng.standard_normal((16, 1024)).astype(np.float32)
    x = {
        "normal": x,
        "above zero": abs(x) + 1,
        "below zero": -abs(x) - 1,
        "bfloat16": x.astype(ml_dtypes.bfloat16).astype(np.float32),
        "sparse": np.where(abs(x) > 2, x, np.float32(0)),
        "constant": np.full_like(x, -3.25),
        "zero": np.zeros_like(x),
    }[spread]
    expected = peer.quants.quantize(x, getattr(peer.GGMLQuantizationType, kind))
    np.testing.assert_array_equal(quant.quantize(x, kind).data, expected)


@pytest.mark.parametrize("kind", BLOCKS)
def test_what_a_block_can_hold_comes_back(kind: str) -> None:
    from_zero = kind in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")
    top = 2 ** (int(kind[1]) - (not from_zero)) - 1
    low = 0 if from_zero else -top if kind == "Q8_0" else -top - 1
    q = np.random.default_rng(1).integers(low, top + 1, (3, 512)).astype(np.float32)
    q[:, ::16], q[:, 1::16] = low, top
    found = quant.quantize(q / 4, kind).dequantize()
    np.testing.assert_allclose(found, q / 4, atol=top / 4 / 1000)  # scales have eleven bits


@pytest.mark.parametrize("kind", BLOCKS)
def test_packing_again_changes_little(kind: str) -> None:
    once = quant.quantize(product(), kind).dequantize()
    twice = quant.quantize(once, kind).dequantize()
    assert rms(twice - once) < 0.5 * rms(once - product())


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_does_not_know_its_neighbours(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = product()
    whole = quant.quantize(x, kind).data
    size, nbytes = BLOCKS[kind].elements, BLOCKS[kind].nbytes
    alone = [quant.quantize(block, kind).data for block in x.reshape(-1, size)[:6]]
    np.testing.assert_array_equal(np.concatenate(alone), whole.reshape(-1, nbytes)[:6])
    monkeypatch.setattr(quant, "PIECE", 768)
    np.testing.assert_array_equal(quant.quantize(x, kind).data, whole)


def test_any_float_type_and_shape_is_packed() -> None:
    x = product().astype(ml_dtypes.bfloat16)
    packed = quant.quantize(x.reshape(2, 4, 1024), "Q4_K")
    assert packed.shape == (2, 4, 1024)
    np.testing.assert_array_equal(packed.data, quant.quantize(x.astype(np.float32), "Q4_K").data)
    tall = x.reshape(256, 32).T
    np.testing.assert_array_equal(quant.quantize(tall, "Q4_K").data, quant.quantize(tall.copy(), "Q4_K").data)
    assert quant.quantize(np.zeros((0, 256), np.float32), "Q6_K").data.shape == (0, 210)


@pytest.mark.parametrize("kind", BLOCKS)
@settings(max_examples=25, deadline=None)
@given(
    numbers=arrays(np.float32, 32, elements=st.floats(-60000, 60000, width=32)),
    scale=st.sampled_from([1.0, 1e-3, 2.0**-20, 1e-20, 1e-40]),
    outlier=st.floats(-60000, 60000, width=32),
)
def test_errors_stay_within_a_step(kind: str, numbers: np.ndarray, scale: float, outlier: float) -> None:
    x = np.tile((numbers * scale).astype(np.float32), (1, 8))
    x[0, 77] = outlier
    packed = quant.quantize(x, kind)
    levels = 2 ** int(kind[1]) - 1
    widest = max(abs(x).max(), np.ptp(x)) * 2 / levels  # of a block whose scales are its own largest
    assert abs(packed.dequantize() - x).max() <= widest * 1.1 + 2.5e-4


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_not_packed(kind: str, bad: float) -> None:
    x = product()
    x[5, 1000] = bad
    with pytest.raises(TensorError, match="finite"):
        quant.quantize(x, kind)


@pytest.mark.parametrize("kind", BLOCKS)
def test_what_the_scales_cannot_hold_is_not_packed(kind: str) -> None:
    x = product() * np.float32(3e38)
    with pytest.raises(TensorError, match="half precision"):
        quant.quantize(x, kind)


def test_rows_of_broken_blocks_are_not_packed() -> None:
    with pytest.raises(TensorError, match="blocks of 256"):
        quant.quantize(np.zeros((2, 128), np.float32), "Q4_K")
    with pytest.raises(TensorError, match="no block type"):
        quant.quantize(np.zeros((2, 128), np.float32), "F16")


# With an importance matrix

GGML_WEIGHTED = {  # what ggml's quantize_q4_0 … make of `product()` and `importance()`; weighted error / size, and without
    "Q8_0": ("346a2f4b98f8c295", 0.0064, 0.0064),
    "Q4_0": ("6981cbed704c8397", 0.0841, 0.0999),
    "Q4_1": ("b45096ece4422b6c", 0.0644, 0.0916),
    "Q5_0": ("9fec1e2834cb1aba", 0.0433, 0.0504),
    "Q5_1": ("5a2db24f1f73d222", 0.0320, 0.0436),
    "Q2_K": ("2617ee124879a041", 0.2086, 0.3507),
    "Q3_K": ("24e1a71082e31292", 0.1327, 0.1647),
    "Q4_K": ("8507fd04bdf0377c", 0.0659, 0.0837),
    "Q5_K": ("78e00d37c4eada1d", 0.0363, 0.0427),
    "Q6_K": ("7671a55519b752bb", 0.0182, 0.0214),
}


def importance() -> np.ndarray:
    """Float32 (1024,) from 1e-4 to 60; the same on every machine."""
    return np.square(product(11)[0] * 8 + np.float32(0.01)).astype(np.float32)


@pytest.mark.parametrize("kind", BLOCKS)
def test_bytes_equal_ggmls_with_an_importance_matrix(kind: str) -> None:
    x, weights = product(), importance()
    digest, *errors = GGML_WEIGHTED[kind]
    packed = quant.quantize(x, kind, weights)
    assert hashlib.sha256(packed.data.tobytes()).hexdigest()[:16] == digest
    weighted = np.sqrt(weights)
    found = [rms((p.dequantize() - x) * weighted) / rms(x * weighted) for p in (packed, quant.quantize(x, kind))]
    assert found == pytest.approx(errors, abs=1e-4)


@pytest.mark.parametrize("kind", BLOCKS)
def test_rows_are_weighed_apart(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights = product(), importance()
    whole = quant.quantize(x.reshape(2, 4, 1024), kind, weights)
    assert whole.shape == (2, 4, 1024)
    np.testing.assert_array_equal(quant.quantize(x[5:6], kind, weights).data, whole.data[5:6])
    monkeypatch.setattr(quant, "PIECE", 768)
    np.testing.assert_array_equal(quant.quantize(x, kind, weights).data, whole.data)


@pytest.mark.parametrize("kind", BLOCKS)
def test_columns_that_never_count_are_no_numbers_to_trip_over(kind: str) -> None:
    x, weights = product(), importance()
    weights[128:400] = 0
    x[3, 500:900] = 0
    found = quant.quantize(x, kind, weights).dequantize()
    counting = np.r_[0:128, 512:1024]
    size = rms(x[:, counting])
    assert rms((found - x)[:, counting]) < 0.6 * size


@pytest.mark.parametrize("bad", [np.ones(5), np.full(1024, -1.0), np.full(1024, np.nan), np.ones((1, 1024))])
def test_weights_that_do_not_fit_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(TensorError, match="1024 columns"):
        quant.quantize(product(), "Q4_0", bad)


# The searches


def test_affine_finds_the_line() -> None:
    q = np.random.default_rng(2).integers(0, 16, (32, 5)).astype(np.float32)
    q[0], q[1] = 0, 15
    scale, low, found = lattice.affine(q / 2 - 3, np.ones_like(q), 15, lattice.tries(-1, 0.1, 21))
    np.testing.assert_allclose(scale, 0.5, rtol=1e-5)
    np.testing.assert_allclose(low, 3, rtol=1e-5)
    np.testing.assert_array_equal(found, q)


def test_affine_reaches_from_zero() -> None:
    x = np.linspace(3, 7, 32, dtype=np.float32)[:, None]
    scale, low, q = lattice.affine(x, np.ones_like(x), 15, lattice.tries(-1, 0.1, 21))
    assert low >= 0
    assert abs(lattice.nearest((x + low) / scale, 0, 15) * scale - low - x).max() <= scale / 2 * 1.01
    assert abs(q * scale - low - x).max() <= scale / 2 * 1.1


def test_from_zero_finds_the_scale_and_moves_what_counts_little() -> None:
    q = np.random.default_rng(2).integers(0, 64, (8, 5)).astype(np.float32)
    q[0] = 63
    scale, found = lattice.from_zero(q * np.float32(0.25), np.ones_like(q), 63)
    np.testing.assert_allclose(scale, 0.25, rtol=1e-6)
    np.testing.assert_array_equal(found, q)
    with np.errstate(all="ignore"):
        zeros, none = lattice.from_zero(np.zeros((8, 5), np.float32), np.ones((8, 5), np.float32), 15)
    assert not zeros.any() and not none.any()


@pytest.mark.parametrize("search", [lambda *of: lattice.symmetric(*of)[0], lattice.descent])
def test_weights_decide_whose_error_counts(search: object) -> None:
    x = np.array([[1.0, 1.0], *[[0.1, 0.1]] * 7, *[[-0.37, -0.37]] * 8], np.float32)
    weights = np.ones_like(x)
    weights[8:, 1] = 1e4
    scale = search(x, weights, 4)
    nearest = lattice.nearest(x / scale, -4, 3) * scale
    errors = abs(nearest - x)[8]
    assert errors[1] < errors[0]
