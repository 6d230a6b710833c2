"""The engine's runner for the frameworks: requests together in slots against each alone, drafts, and what is reused."""

from __future__ import annotations

import importlib.util

import pytest
from conftest import worker


@pytest.mark.parametrize(("on", "most"), [("torch", 12), ("jax", 3)])
def test_requests_in_slots_answer_as_they_do_alone(on: str, most: int) -> None:
    if not (importlib.util.find_spec(on) and importlib.util.find_spec("keras")):
        pytest.skip(f"{on} or keras is not installed")
    found = worker("slots_worker.py", on, str(most))
    assert found["plain"] == found["alone"]
    assert found["drafted"] == found["alone"]
    assert found["vector"] < 1e-4 and found["scores"] == 30
    # Said again all but its last token; up to where it parts; new; all but one behind a full ring; a ring turned over.
    assert found["reused"] == [0, 60, 0, 589, 0]
