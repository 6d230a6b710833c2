"""The network's own promises on each framework: packing, growth, few compilations, bfloat16, one framework a process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from conftest import worker
from variants import VARIANTS, save

pytest.importorskip("transformers")
pytestmark = pytest.mark.xdist_group("network")
FRAMEWORKS = ("torch", "jax", "tensorflow")


@pytest.fixture(scope="module")
def found(once: Callable[..., Path]) -> Callable[[str], dict]:
    variant = next(v for v in VARIANTS if v.name == "Gemma 3 270M, 1B")
    folder = once("network", lambda folder: save(variant, folder) is None) / variant.slug
    return cache(lambda on: worker("network_worker.py", str(folder), on))


@pytest.mark.parametrize("on", FRAMEWORKS)
def test_packed_texts_do_not_see_each_other(found: Callable, on: str) -> None:
    assert found(on)["packed"] < 1e-4


@pytest.mark.parametrize("on", FRAMEWORKS)
def test_a_cache_that_grows_loses_nothing(found: Callable, on: str) -> None:
    assert found(on)["grown"] < 1e-4


@pytest.mark.parametrize("on", FRAMEWORKS)
def test_a_full_row_does_not_hold_up_the_others(found: Callable, on: str) -> None:
    assert found(on)["overtaken"] < 1e-4
    assert found(on)["room"] == 1, "the cache never grows beyond the context"


@pytest.mark.parametrize("on", ["jax", "tensorflow"])
def test_no_compilation_for_each_prompt_length(found: Callable, on: str) -> None:
    assert found(on)["traces"] == 2, "one for the bucket of the prompts, one for the step"


def test_torch_runs_what_it_is_given(found: Callable) -> None:
    assert found("torch")["traces"] == found("torch")["calls"]


@pytest.mark.parametrize("on", FRAMEWORKS)
def test_bfloat16_is_near(found: Callable, on: str) -> None:
    assert 1e-4 < found(on)["bfloat16"] < 0.35, "in standard deviations of the logits"
    assert found(on)["bfloat16_batch"] < 0.1


@pytest.mark.parametrize("on", FRAMEWORKS)
def test_a_second_framework_is_refused(found: Callable, on: str) -> None:
    assert found(on)["second"].startswith("BackendError: ")
    assert on in found(on)["second"]
