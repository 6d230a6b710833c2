"""The real Gemma and SmolLM2 on every framework and the native engine: golden ids, next-token logprobs, and text.

The numbers are transformers' in float32 on the dequantised files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from conftest import worker

pytestmark = pytest.mark.xdist_group("real")

GOLDEN = {
    "gemma3:270m": {
        "ids": [2, 818, 5279, 529, 7001, 563],
        "top": [(" the", -1.6540), (" a", -2.1979), (" Paris", -2.4768)],
        "text": " the capital of the country of France. It is the",
    },
    "smollm2:135m-instruct": {
        "ids": [504, 3575, 282, 4649, 314],
        "top": [(" Paris", -0.2581), (" the", -2.7407), (" London", -4.3844)],
        "text": " Paris",
    },
}


@pytest.fixture(scope="module")
def answers(real_model: Callable) -> Callable[[str, str], dict]:
    return cache(lambda name, on: worker("real_worker.py", str(real_model(name)), on))


@pytest.mark.parametrize("on", ["torch", "jax", "tensorflow", "native"])
@pytest.mark.parametrize("name", GOLDEN)
def test_reference(answers: Callable, name: str, on: str) -> None:
    found, golden = answers(name, on), GOLDEN[name]
    assert found["ids"] == golden["ids"]
    assert [text for text, _ in found["top"]] == [text for text, _ in golden["top"]]
    for (_, mine), (text, theirs) in zip(found["top"], golden["top"], strict=True):
        assert mine == pytest.approx(theirs, abs=0.002), text
    assert found["text"].startswith(golden["text"])
    assert found["streamed"] == found["text"] == found["batched"]
    assert found["other"] == found["other_alone"]
    assert found["first"] == pytest.approx(golden["top"][0][1], abs=0.002)
    assert found["score"] == pytest.approx(dict(golden["top"])[" Paris"], abs=0.002)
    assert found["sampled"][0] == found["sampled"][1]
