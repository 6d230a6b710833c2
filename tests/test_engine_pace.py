"""How much of prompts goes into a step while others wait."""

from __future__ import annotations

import pytest

from geode.engine.pace import BETWEEN, LEAST, Pace


@pytest.mark.parametrize("cost", [1e-5, 1e-4, 1e-3])
def test_chunks_fit_the_time_between_two_tokens(cost: float) -> None:
    """A step costs something by itself and something for each token; chunks settle where it takes BETWEEN."""
    pace, fixed = Pace(), 0.01
    for _ in range(200):
        pace.ran(pace.most, fixed + cost * pace.most)
    taken = fixed + cost * pace.most
    assert pace.most == LEAST or taken == pytest.approx(BETWEEN, rel=0.1)


def test_small_steps_say_nothing_and_something_always_goes() -> None:
    pace = Pace()
    before = pace.most
    pace.ran(1, 100.0)
    assert pace.most == before
    for _ in range(50):
        pace.ran(LEAST, 100.0)
    assert pace.most == LEAST == pace.beside(3)
    fresh = Pace()
    assert fresh.beside(10) == fresh.most - 10
