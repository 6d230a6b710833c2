"""Learning rates against transformers' schedules, and by hand where it has none."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from geode.errors import OptionError
from geode.tune.recipe import Optim
from geode.tune.schedule import rate, warmup_steps

OPTIM = Optim(lr=2e-4, final=0.0)


def course(optim: Optim, steps: int) -> list[float]:
    return [rate(optim, step, steps) for step in range(steps)]


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_is_transformers_own(schedule: Any, warmup: float, steps: int) -> None:
    pytest.importorskip("torch")
    optimization = pytest.importorskip("transformers.optimization")
    optim = replace(OPTIM, schedule=schedule, warmup=warmup)
    assert course(optim, steps) == pytest.approx(theirs(optimization, optim, steps), rel=1e-12, abs=1e-20)


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_final_is_transformers_min_lr_rate(final: float) -> None:
    pytest.importorskip("torch")
    optimization = pytest.importorskip("transformers.optimization")
    optim = replace(OPTIM, final=final, warmup=0.1)
    assert course(optim, 50) == pytest.approx(theirs(optimization, optim, 50, min_lr_rate=final), rel=1e-12)


def theirs(optimization: Any, optim: Optim, steps: int, **options: float) -> list[float]:
    import torch

    kind = "cosine_with_min_lr" if options else optim.schedule
    name = "constant_with_warmup" if kind == "constant" else kind
    held = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=optim.lr)
    made = optimization.get_scheduler(
        name, held, num_warmup_steps=warmup_steps(optim, steps), num_training_steps=steps,
        scheduler_specific_kwargs=options or None,
    )  # fmt: skip
    found = []
    for _ in range(steps):
        found.append(made.get_last_lr()[0])
        held.step(), made.step()
    return found


def test_ends_and_turning_point() -> None:
    for schedule in ("cosine", "linear"):
        optim = replace(OPTIM, schedule=schedule, final=0.1, warmup=0.05)
        assert warmup_steps(optim, 100) == 5
        assert rate(optim, 0, 100) == 0.0
        assert rate(optim, 5, 100) == 2e-4
        assert rate(optim, 100, 100) == rate(optim, 1000, 100) == pytest.approx(2e-5)
        falling = course(optim, 100)[5:]
        assert all(a > b for a, b in itertools.pairwise(falling))


def test_linear_final_by_hand() -> None:
    optim = replace(OPTIM, schedule="linear", final=0.5, warmup=0.0)
    assert course(optim, 4) == pytest.approx([2e-4, 1.75e-4, 1.5e-4, 1.25e-4])


def test_refuses_a_recipe_without_a_rate() -> None:
    with pytest.raises(OptionError, match=r"set optim\.lr"):
        rate(replace(OPTIM, lr=None), 0, 10)
