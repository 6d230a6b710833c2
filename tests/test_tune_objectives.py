"""Objectives: the papers' values and gradients on every framework, references, mismatched answers, the reward model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import worker
from hypothesis import given
from hypothesis import strategies as st
from objectives_cases import LENGTH, documents, judged, pairs

from geode.errors import FormatError, OptionError
from geode.tune import references, teacher
from geode.tune.batches import Steps, each_once
from geode.tune.documents import Document, Judged

NEEDED = ("keras", "torch", "transformers", "peft")


@pytest.fixture(scope="session")
def on_torch(once: Callable[[str, Callable[[Path], None]], Path]) -> tuple[Path, dict[str, Any]]:
    """The folder that the torch worker fills, and what it found."""
    import json

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")

    def make(folder: Path) -> None:
        (folder / "found.json").write_text(json.dumps(worker("objectives_worker.py", "torch", str(folder))))

    folder = once("objectives", make)
    return folder, json.loads((folder / "found.json").read_text())


# Formulas


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_values_and_gradients_are_those_of_the_papers(framework: str, on_torch: Any) -> None:
    folder, found = on_torch
    if find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    if framework != "torch":
        found = worker("objectives_worker.py", framework, str(folder))
    assert len(found["packed"]["figures"]) > 40
    assert max(found["packed"]["figures"].values()) < 1e-4
    assert max(found["packed"]["gradients"].values()) < 1e-4
    p = np.exp(np.minimum([0.0, -1e-4, -0.01, -0.5, -3.0, -40.0], -1e-6))
    np.testing.assert_allclose(found["odds"], np.log(p) - np.log1p(-p), rtol=1e-4)


def test_answers_alone_are_answers_packed(on_torch: Any) -> None:
    found = on_torch[1]["alone"]
    assert max(found["figures"].values()) < 1e-4
    assert max(found["gradients"].values()) < 1e-4


@pytest.mark.parametrize("name", ["dpo", "dpo, no reference", "kto", "kto, no reference", "reward"])
def test_steps_lower_the_loss_however_they_are_cut(name: str, on_torch: Any) -> None:
    found = on_torch[1]["runs"][name]
    losses = [one["loss"] for one in found["whole"]]
    assert all(later < earlier - 1e-4 for earlier, later in pairwise(losses))
    np.testing.assert_allclose(found["parts"], losses, atol=2e-6)


def test_before_the_first_step_nothing_is_better(on_torch: Any) -> None:
    runs = on_torch[1]["runs"]
    for name, loss in {"dpo": np.log(2), "reward": np.log(2), "kto": 0.5}.items():
        assert runs[name]["whole"][0]["loss"] == pytest.approx(loss, abs=1e-6)
    assert runs["dpo"]["whole"][-1]["accuracy"] == runs["reward"]["whole"][-1]["accuracy"] == 1
    assert runs["reward"]["whole"][-1]["margin"] > 0.1


# References


def test_references_stay_those_of_the_untuned_network(on_torch: Any) -> None:
    found = on_torch[1]["kept"]
    assert found["same"]
    assert found["still"] == 0
    assert found["moved"] > 1e-4


def test_a_sequence_is_known_wherever_it_stands(tmp_path: Path) -> None:
    packed = [key for micro in each_once(pairs(), length=LENGTH, rows=2) for key in references.keys(micro)]
    alone = [key for micro in each_once(pairs(), length=LENGTH, rows=1, packed=False) for key in references.keys(micro)]
    assert len(set(alone)) == 6
    assert set(packed) == set(alone)
    other = dataclasses.replace(documents()[0], loss=documents()[1].loss[: len(documents()[0])].copy())
    assert references.keys(next(each_once([other], length=LENGTH)))[0] not in alone
    found = {key: -1 / (3 + place) for place, key in enumerate(alone)}
    references.save(tmp_path, found)
    assert [*tmp_path.iterdir()] == [tmp_path / references.NAME]
    again = references.load(tmp_path)
    assert again == {key: float(np.float32(value)) for key, value in found.items()}
    micro = next(each_once(pairs(), length=LENGTH, rows=2))
    expected = [np.float32(found[key]) for key in references.keys(micro)]
    np.testing.assert_array_equal(references.reference(micro, again), [*expected, 0, 0])


def test_references_of_other_data_or_damaged_are_refused(tmp_path: Path) -> None:
    assert references.load(tmp_path) is None
    micro = next(each_once(pairs(), length=LENGTH))
    with pytest.raises(FormatError, match=r"do not have d:\d.*start the run anew"):
        references.reference(micro, {})
    references.save(tmp_path, {bytes(16): 1.0})
    data = (tmp_path / references.NAME).read_bytes()
    for wrong in (data[: len(data) // 2], b"no archive", b""):
        (tmp_path / references.NAME).write_bytes(wrong)
        with pytest.raises(FormatError, match="is damaged"):
            references.load(tmp_path)


# KTO


def answer(prompt: list[int], words: list[int]) -> Judged:
    ids = np.array(prompt + words, np.int32)
    return Judged(Document(ids, np.arange(len(ids)) >= len(prompt), f"{prompt}"), True, f"{prompt}")


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), min_size=1, max_size=12))
def test_mismatched_answers_follow_other_prompts(given: list[tuple[int, int]]) -> None:
    items = [answer([prompt] * prompt, [100 + place] * size) for place, (prompt, size) in enumerate(given)]
    found = references.mismatched(items, 8)
    several = len({prompt for prompt, _ in given}) > 1
    for place, (item, made) in enumerate(zip(items, found, strict=True)):
        document, prompt = made.document, given[place][0]
        assert len(document) <= 8
        assert document.loss.tolist() == [False] * prompt + [True] * (len(document) - prompt)
        assert document.ids[:prompt].tolist() == item.document.ids[:prompt].tolist()
        origin = int(document.ids[-1]) - 100
        assert len(document) - prompt == min(given[origin][1], 8 - prompt)
        assert not several or given[origin][0] != prompt


def test_shares_of_a_step_add_up_to_one() -> None:
    for items, owners in ((pairs(), 2), (judged(), 1)):
        steps = Steps(items, length=LENGTH, rows=1, accumulate=2, packed=False, processes=1)
        micros = steps.at(0)
        assert len(micros) == 2
        assert sum(micro.shares_S.sum() for micro in micros) == owners
        assert all((micro.shares_S[micro.labels_S < 0] == 0).all() for micro in micros)
        assert all((micro.weights_M[: micro.learnt] == 1).all() for micro in micros)
    single = next(each_once(documents(), length=LENGTH)).arrays()
    assert "shares" not in single
    assert single["weights"].sum() == pytest.approx(1)


# The reward model


def test_a_reward_model_is_read_by_peft_and_by_us(on_torch: Any) -> None:
    found = on_torch[1]["reward"]
    assert found["apart"] < 1e-5 < found["spread"]
    assert found["score"]
    assert found["left_out"] == ["The adapter has the head of a reward model, which a language model has not."]
    assert "reward model" in found["gguf"]
    assert found["talks"] == pytest.approx(found["alone"], abs=1e-6)
    assert found["talks"][0] != found["talks"][1]
    assert all("the last of which is the assistant's" in words for words in found["refusals"][:3])
    assert "has no score" in found["refusals"][3]


# Distillation


def words(*pieces: str) -> Any:
    tokenizer = SimpleNamespace(size=len(pieces), piece=lambda token: pieces[token].encode())
    return SimpleNamespace(tokenizer=tokenizer, path=Path("model"))


def test_a_teacher_shares_the_vocabulary() -> None:
    teacher.check_vocabulary(words("a", "b"), words("a", "b"))
    for other, told in ((words("a"), "it has 1 tokens, the student 2"), (words("a", "c"), "token 1 is b'c' there")):
        with pytest.raises(OptionError, match=told):
            teacher.check_vocabulary(other, words("a", "b"))
    with pytest.raises(OptionError, match="the teacher came without a tokenizer"):
        teacher.check_vocabulary(SimpleNamespace(tokenizer=None, path=Path("model")), words("a"))  # type: ignore[arg-type]
