"""GGUF files that we write, read by llama.cpp itself: every family's logits, and the real models there and back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import worker
from variants import VARIANTS, WINDOW, Variant, build, text_ids

from geode import checkpoint, formats
from geode.conversion import convert
from geode.formats import Target

pytest.importorskip("xllamacpp", reason="llama.cpp as a Python module: pip install xllamacpp")

LOGPROB = 0.03
"""llama.cpp's GELU is a table in half precision, and the tanh formula where transformers has the exact one; the rest
agrees to 1e-4."""
GELU = ("FalconConfig", "GPTNeoXConfig", "Gemma")
CAPITAL = [2, 818, 5279, 529, 7001, 563]  # "The capital of France is", Gemma 3
FRANCE = [504, 3575, 282, 4649, 314]  # the same, SmolLM2


def llama_cpp(folder: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (folder / "request.json").write_text(json.dumps(requests))
    found: list[dict[str, Any]] = worker("llama_cpp_worker.py", str(folder / "request.json"))
    return found


@pytest.fixture(scope="module")
def answers(once: Callable[[str, Callable[[Path], None]], Path]) -> dict[str, Any]:
    """llama.cpp's and transformers' log-probabilities after the text, of every variant that GGUF can say."""

    def make(folder: Path) -> None:
        import torch

        requests, truth = [], {}
        for one in VARIANTS:
            model, ids = build(one), text_ids(one)[:200]
            if "Mistral" in one.name:  # llama.cpp runs Mistral 7B v0.1 without its window, all others with theirs
                ids = ids[:WINDOW]
            model.save_pretrained(folder / one.slug)
            tiny.add_words(folder / one.slug, tiny.ranked())
            if formats.by_name("gguf").refuses(checkpoint.open(folder / one.slug), Target()) is None:
                path = folder / f"{one.slug}.gguf"
                convert(folder / one.slug, path, quiet=True, check=False)
                requests.append({"path": str(path), "ids": ids, "words": 2, "top": 96})
                with torch.no_grad():
                    truth[one.slug] = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).tolist()
        found = dict(zip(truth, llama_cpp(folder, requests), strict=True))
        (folder / "answers.json").write_text(json.dumps({"llama.cpp": found, "truth": truth}))

    found: dict[str, Any] = json.loads((once("llama-cpp", make) / "answers.json").read_text())
    return found


@pytest.mark.parametrize("one", [pytest.param(one, id=one.slug) for one in VARIANTS])
def test_llama_cpp_computes_what_transformers_does(one: Variant, answers: dict[str, Any]) -> None:
    if one.slug not in answers["truth"]:
        pytest.skip("GGUF has no words for this network")
    truth, found = np.array(answers["truth"][one.slug]), answers["llama.cpp"][one.slug]["top"]
    assert len(found) == len(truth)
    worst = max(abs(truth[int(token)] - logprob) for token, logprob in found.items())
    assert worst < (LOGPROB if one.config_class.startswith(GELU) else 1e-3)


@pytest.mark.parametrize(
    ("name", "mix", "ids"),
    [("smollm2:135m-instruct", "q4_1", FRANCE), ("gemma3:270m", "q4_k_m", CAPITAL)],
)
def test_a_real_model_there_and_back(
    name: str, mix: str, ids: list[int], real_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """GGUF, Hugging Face, GGUF of the same types: the same text and log-probabilities, to the last bit."""
    if name.startswith("gemma") and not os.environ.get("GEODE_SLOW"):
        pytest.skip("writes 2 GB: GEODE_SLOW=1")
    first = real_model(name)
    convert(first, tmp_path / "hf", quiet=True, check=False)
    convert(tmp_path / "hf", tmp_path / "back.gguf", quant=mix, quiet=True, check=False)
    asked = {"ids": ids, "words": 24, "top": 10, "threads": 2}
    path = next(iter(first.glob("*.gguf"))) if first.is_dir() else first
    one, two = llama_cpp(tmp_path, [{"path": str(p), **asked} for p in (path, tmp_path / "back.gguf")])
    assert one == two
