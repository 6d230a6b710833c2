"""The extension's passes for training against float64 NumPy, and PyTorch's gradients with them and without."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conftest import worker

from geode.native import extension, training

Array = Any
pytestmark = pytest.mark.skipif(not extension.is_there(), reason="the extension was not built")

ERF = np.vectorize(math.erf)
SIZES = [(1, 1), (3, 17), (5, 640), (130, 257), (2, 40_000)]


def bits(x: Array) -> Array:
    """bfloat16 as uint16, rounded to nearest even."""
    wide = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype(np.uint16)


def wide(x: Array) -> Array:
    return x.astype(np.float64) if x.dtype == np.float32 else (x.astype(np.uint32) << 16).view(np.float32).astype(float)


class Kind:
    """One number type: arrays of it, the passes for it, and how near a result must be."""

    def __init__(self, name: str):
        self.is_bfloat16 = name == "bfloat16"
        self.passes = training.passes(2, self.is_bfloat16)

    def random(self, *shape: int, seed: int, spread: float = 1.0) -> Array:
        x = (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)
        return bits(x) if self.is_bfloat16 else x

    def assert_near(self, found: Array, expected: Array, scale: float = 1.0) -> None:
        """Within half a unit of bfloat16 and a little, or 2e-6, of the value; near zero of what it was made of."""
        rtol = 2**-8 * 1.01 if self.is_bfloat16 else 2e-6
        np.testing.assert_allclose(wide(found), expected, rtol=rtol, atol=1e-6 * scale)


@pytest.fixture(params=["float32", "bfloat16"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return Kind(request.param)


def at(x: Array) -> int:
    return int(x.ctypes.data)


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("shape", SIZES)
def test_softmax_in_slices(kind: Kind, shape: tuple[int, int], cap: float | None) -> None:
    rows, columns = shape
    most, total, shrink = np.full(rows, -1e30, np.float32), np.zeros(rows, np.float32), np.zeros(rows, np.float32)
    gone, sums = np.zeros((rows, 0)), []
    for seed in range(3):
        z = kind.random(rows, columns, seed=seed, spread=4.0 * (seed + 1))
        own = wide(z) if cap is None else np.tanh(wide(z) / cap) * cap
        before = np.exp(gone - gone.max(1, keepdims=True)).sum(1) if seed else np.zeros(rows)
        sums.append((before, gone.max(1) if seed else None))
        gone = np.concatenate([gone, own], axis=1)
        highest = gone.max(1)
        kind.passes.softmax(at(z), rows, columns, cap or 0.0, at(most), at(total), at(shrink))
        expected = np.exp(own - highest[:, None]) * (1 if cap is None else 1 - (own / cap) ** 2)
        kind.assert_near(z, expected, 2)
        np.testing.assert_allclose(most, highest, rtol=1e-6)
        np.testing.assert_allclose(total, np.exp(gone - highest[:, None]).sum(1), rtol=6e-6)
        if seed:
            np.testing.assert_allclose(shrink, np.exp(sums[-1][1] - highest), rtol=6e-6)


def test_a_logit_that_is_no_number_is_not_lost(kind: Kind) -> None:
    for bad in (np.nan, np.inf):
        z = np.array([[1.0, bad, 2.0], [1.0, 2.0, 3.0]], np.float32)
        z = (z.view(np.uint32) >> 16).astype(np.uint16) if kind.is_bfloat16 else z
        most, total, shrink = np.full(2, -1e30, np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32)
        kind.passes.softmax(at(z), 2, 3, 0.0, at(most), at(total), at(shrink))
        assert np.isnan(total[0]) and np.isfinite(total[1])


@pytest.mark.parametrize("shape", SIZES)
def test_blend(kind: Kind, shape: tuple[int, int]) -> None:
    rows, columns = shape
    x, to = kind.random(*shape, seed=1), np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    keep = np.linspace(0, 1, rows, dtype=np.float32)
    expected = to.astype(float) * keep[:, None] + wide(x)
    kind.passes.blend(at(x), rows, columns, at(keep), at(to))
    np.testing.assert_allclose(to, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cast_first", [False, True])
@pytest.mark.parametrize("shape", SIZES)
def test_rms_norm_and_its_gradients(kind: Kind, shape: tuple[int, int], cast_first: bool) -> None:
    rows, columns = shape
    x, dy = kind.random(*shape, seed=1, spread=3.0), kind.random(*shape, seed=2)
    weight = np.random.default_rng(3).standard_normal(columns).astype(np.float32)
    y, dx, scale = np.empty_like(x), np.empty_like(x), np.empty(rows, np.float32)
    kind.passes.rms_norm(at(x), rows, columns, at(weight), 1e-6, cast_first, at(y), at(scale))
    unit = wide(x) / np.sqrt((wide(x) ** 2).mean(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(scale, 1 / np.sqrt((wide(x) ** 2).mean(1) + 1e-6), rtol=2e-6)
    if cast_first and kind.is_bfloat16:
        np.testing.assert_allclose(wide(y), wide(bits(unit)) * wide(bits(weight)), rtol=2**-7)
    else:
        kind.assert_near(y, unit * weight)
    d_weight = np.ones(columns, np.float32)
    kind.passes.rms_norm_back(at(x), at(dy), rows, columns, at(weight), at(scale), at(dx), at(d_weight))
    rise = wide(dy) * weight
    expected = (rise - unit * (rise * unit).mean(1, keepdims=True)) * scale[:, None]
    kind.assert_near(dx, expected, scale=10 * float(scale.max()))
    np.testing.assert_allclose(d_weight, 1 + (wide(dy) * unit).sum(0), rtol=1e-5, atol=1e-4)
    again = np.empty_like(dx)
    kind.passes.rms_norm_back(at(x), at(dy), rows, columns, at(weight), at(scale), at(again), 0)
    assert (again == dx).all()


def act(name: str, x: Array) -> tuple[Array, Array]:
    """The function and its slope, in float64."""
    if name == "silu":
        share = 1 / (1 + np.exp(-x))
        return x * share, share * (1 + x * (1 - share))
    if name == "gelu":
        share = (1 + ERF(x / math.sqrt(2))) / 2
        return x * share, share + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    k = math.sqrt(2 / math.pi)
    bent = np.tanh(k * (x + 0.044715 * x**3))
    return x * (1 + bent) / 2, (1 + bent) / 2 + x / 2 * (1 - bent**2) * k * (1 + 3 * 0.044715 * x**2)


@pytest.mark.parametrize("name", training.ACTIVATIONS)
@pytest.mark.parametrize("count", [1, 15, 16, 33, 70_001])
def test_gated_activation_and_its_gradients(kind: Kind, name: str, count: int) -> None:
    gate, up, dy = (kind.random(count, seed=i, spread=2.0) for i in range(3))
    y, d_gate, d_up = (np.empty_like(gate) for _ in range(3))
    number = training.ACTIVATIONS[name]
    kind.passes.gate(number, at(gate), at(up), count, at(y))
    kind.passes.gate_back(number, at(gate), at(up), at(dy), count, at(d_gate), at(d_up))
    bent, slope = act(name, wide(gate))
    kind.assert_near(y, bent * wide(up), 20)
    kind.assert_near(d_gate, wide(dy) * wide(up) * slope, 20)
    kind.assert_near(d_up, wide(dy) * bent, 20)


@pytest.mark.parametrize(("heads", "size", "pairs"), [(1, 2, 1), (3, 16, 8), (2, 80, 17), (4, 256, 128)])
def test_rotation_and_the_way_back(kind: Kind, heads: int, size: int, pairs: int) -> None:
    rows = 37
    x, y = kind.random(rows, heads, size, seed=1), kind.random(rows, heads, size, seed=2)
    angles = np.random.default_rng(3).uniform(0, 7, (rows, pairs))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    for back in (False, True):
        kind.passes.turn(at(x), rows, heads, size, pairs, at(cos), at(sin), back, at(y))
        turn = np.exp(1j * np.where(back, -angles, angles))[:, None]
        both = (wide(x)[..., :pairs] + 1j * wide(x)[..., pairs : 2 * pairs]) * turn
        kind.assert_near(y, np.concatenate([both.real, both.imag, wide(x)[..., 2 * pairs :]], axis=-1))


def test_weights_gradient_does_not_depend_on_threads() -> None:
    rows, columns = 999, 130
    x, dy = (np.random.default_rng(i).standard_normal((rows, columns)).astype(np.float32) for i in range(2))
    weight, scale, dx = np.ones(columns, np.float32), np.ones(rows, np.float32), np.empty_like(x)
    found = []
    for threads in (1, 2, 3):
        sums = np.zeros(columns, np.float32)
        passes = training.passes(threads, False)
        passes.rms_norm_back(at(x), at(dy), rows, columns, at(weight), at(scale), at(dx), at(sums))
        found.append(sums.tobytes())
    assert len(set(found)) == 1


@pytest.fixture(scope="module")
def differences() -> dict[str, Any]:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    return dict(worker("training_kernels_worker.py"))


def test_gradients_with_and_without_the_passes(differences: dict[str, Any]) -> None:
    """Of Rms, Gated, Turned and a whole network; relative to the largest gradient of each."""
    assert differences["uses passes"]
    for name, most in differences["float32"].items():
        assert most < 2e-5, name
    for name, most in differences["bfloat16"].items():
        assert most < 0.04, name


def test_attention_over_spans_is_attention(differences: dict[str, Any]) -> None:
    assert len(differences["spans"]) >= 3
    for name, most in differences["spans"].items():
        assert most < 1e-5, name
