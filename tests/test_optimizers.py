"""Optimizers on three frameworks against PyTorch's and transformers' own, and what a run needs of them besides."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import worker

from geode.errors import OptionError
from geode.tune.recipe import Optim

FRAMEWORKS = ("torch", "jax", "tensorflow")
STATEFUL = ("adamw", "adafactor", "muon", "adam8bit")
NAMES = (*STATEFUL, "adamw, other values", "sgd")


@functools.cache
def found(on: str) -> Any:
    for module in ("keras", on):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    return worker("optimizers_worker.py", on)


def distance(one: Any, other: Any) -> float:
    return max(float(np.abs(np.subtract(one[name], other[name])).max()) for name in other)


@pytest.mark.xdist_group("optimizers")
@pytest.mark.parametrize("on", FRAMEWORKS)
class TestOptimizers:
    @pytest.mark.parametrize("name", [name for name in NAMES if name != "adam8bit"])
    def test_weights_are_theirs(self, on: str, name: str) -> None:
        """torch.optim.AdamW, Muon (in float32) and SGD, transformers' Adafactor: weights of size 1 that move by 0.1."""
        ours, theirs = found(on)["courses"][name], found("torch")["theirs"][name]
        assert distance(ours["weights"], theirs["weights"]) < 5e-6
        np.testing.assert_allclose(ours["norms"], theirs["norms"], rtol=2e-6)

    def test_codes_of_eight_bits_are_the_same_everywhere(self, on: str) -> None:
        """But for those that stood between two codes when the last bit of a float decided."""
        ours, torchs = (found(each)["courses"]["adam8bit"]["weights"] for each in (on, "torch"))
        for name, weights in torchs.items():
            assert np.abs(np.subtract(ours[name], weights)).mean() < 1e-5

    @pytest.mark.parametrize("name", STATEFUL)
    def test_resumes_bit_by_bit(self, on: str, name: str) -> None:
        assert found(on)["courses"][name]["resumes"]

    @pytest.mark.parametrize("name", STATEFUL)
    def test_a_gradient_that_is_no_number_changes_nothing(self, on: str, name: str) -> None:
        assert found(on)["courses"][name]["survives"]

    @pytest.mark.parametrize("name", NAMES)
    def test_running_means(self, on: str, name: str) -> None:
        assert found(on)["courses"][name]["means"] < 1e-6

    def test_scale_and_no_gradient(self, on: str) -> None:
        assert found(on)["scaled"] < 1e-6

    def test_eight_bits_are_eight_bits(self, on: str) -> None:
        """A byte a moment, and four bytes each 256 of them."""
        assert found(on)["bytes"] == (1 + 4 / 256) / 4


def test_eight_bits_learn_as_much() -> None:
    losses = found("torch")["losses"]
    assert losses["adamw"] < 0.2 * losses["before"]
    assert losses["adam8bit"] == pytest.approx(losses["adamw"], rel=5e-3)


def test_kernel_is_the_definition() -> None:
    assert found("torch")["kernel"] < 1e-6


def test_refuses_an_optimizer_that_is_not_here() -> None:
    optimizers = pytest.importorskip("geode.network.optimizers")
    with pytest.raises(OptionError, match="'lion' is no optimizer here; expected one of adamw, adam8bit"):
        optimizers.make(replace(Optim(), name="lion"), [])


def test_refuses_variables_of_one_name() -> None:
    optimizers = pytest.importorskip("geode.network.optimizers")

    class Named:
        name, shape = "twice", (2, 2)

    with pytest.raises(OptionError, match="'twice'"):
        optimizers.make(Optim(), [Named(), Named()])
