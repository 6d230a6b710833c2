"""`geode verify`: equal is told from rounded, and rounded from wrong, with the place where two models part."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import random_networks

from geode import checkpoint, verify
from geode.cli.app import main as geode
from geode.config import Config
from geode.tensors import Array


def save(path: Path, change: dict[str, Array] | None = None, config: Config = random_networks.SMALL) -> Path:
    """A Llama as a GGUF file, some of its tensors changed."""
    return random_networks.save_gguf(path, {**random_networks.arrays(config), **(change or {})}, config)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return save(tmp_path / "first.gguf")


def compare(a: Path, b: Path) -> verify.Report:
    return verify.compare(checkpoint.open(a), checkpoint.open(b))


def test_a_model_is_itself(first: Path) -> None:
    report = compare(first, first)
    assert report.ok and report.equal
    assert report.logits is not None and report.logits.first == ""
    assert not any(report.logits.layers)
    assert report.summary()["tensors_equal"] == len(report.tensors)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("token_embd.weight", "the embedding"),
        ("blk.0.attn_k.weight", "block 0"),
        ("blk.1.ffn_down.weight", "block 1"),
        ("output.weight", "the head"),
    ],
)
def test_the_place_of_the_first_difference(first: Path, tmp_path: Path, name: str, place: str) -> None:
    array = np.asarray(random_networks.arrays(random_networks.SMALL)[name]).copy()
    second = save(tmp_path / "second.gguf", {name: array[::-1].copy()})
    report = compare(first, second)
    assert not report.ok
    assert [one.name for one in report.wrong] == [name]
    assert report.logits is not None and report.logits.first == place


def test_rounding_is_not_an_error(first: Path, tmp_path: Path) -> None:
    from geode.conversion import convert

    for kind in ("q8_0", "q4_0", "q2_k"):
        convert(first, tmp_path / f"{kind}.gguf", quant=kind, quiet=True, check=False)
        report = compare(first, tmp_path / f"{kind}.gguf")
        assert report.ok and not report.equal, kind


def test_a_norm_that_is_off_by_one_is_wrong(first: Path, tmp_path: Path) -> None:
    norm = np.asarray(random_networks.arrays(random_networks.SMALL)["blk.0.attn_norm.weight"]) + np.float32(1)
    report = compare(first, save(tmp_path / "second.gguf", {"blk.0.attn_norm.weight": norm}))
    assert [one.name for one in report.wrong] == ["blk.0.attn_norm.weight"]


def test_another_network_is_told_field_by_field(first: Path, tmp_path: Path) -> None:
    other = random_networks.SMALL.replace(ffn=64, context=512)
    report = compare(first, save(tmp_path / "second.gguf", config=other))
    assert not report.ok and not report.tensors and report.logits is None
    assert any(text.startswith("ffn is 96") for text in report.config)
    assert any(text.startswith("context is 256") for text in report.config)
    assert any("different tensors" in note for note in report.notes)


def test_not_finite_is_not_ok(first: Path, tmp_path: Path) -> None:
    name = "blk.0.ffn_up.weight"
    array = np.asarray(random_networks.arrays(random_networks.SMALL)[name]).copy()
    array[0, 0] = np.inf
    assert not compare(first, save(tmp_path / "second.gguf", {name: array})).ok


def test_the_command(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert geode(["verify", str(first), str(first), "--layers", "--tensors"]) == 0
    said = capsys.readouterr().out
    assert "to the last bit of every number" in said and "after block 1: 0" in said
    array = np.asarray(random_networks.arrays(random_networks.SMALL)["blk.1.attn_q.weight"]) * np.float32(2)
    second = save(tmp_path / "second.gguf", {"blk.1.attn_q.weight": array})
    assert geode(["verify", str(first), str(second)]) == 1
    said = capsys.readouterr().out
    assert "Not the same model" in said and "blk.1.attn_q.weight" in said and "arises in block 1" in said
    assert geode(["verify", str(first), str(second), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False and len(found["layers"]) == 3
    assert geode(["verify", str(first), str(tmp_path / "none")]) == 2
