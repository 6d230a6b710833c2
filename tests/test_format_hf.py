"""Hugging Face directories that we write, opened by transformers: the same logits, tokens and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from variants import VARIANTS, Variant, build, text_ids

from geode import checkpoint, formats
from geode.conversion import convert
from geode.errors import FormatError, GeodeError
from geode.formats import Target


def logits(folder: Path, ids: list[int]) -> np.ndarray:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([ids])).logits[0].float().numpy()
    return found


@pytest.mark.parametrize("one", [pytest.param(one, id=one.slug) for one in VARIANTS])
def test_transformers_computes_the_same(one: Variant, tmp_path: Path) -> None:
    """By way of GGUF where it has words for the network, so that every key and tensor is ours and not a copy."""
    build(one).save_pretrained(tmp_path / "theirs")
    source = tmp_path / "theirs"
    if formats.by_name("gguf").refuses(checkpoint.open(source), Target()) is None:
        source = convert(source, tmp_path / "between.gguf", check=False, quiet=True).path
    convert(source, tmp_path / "ours", check=False, quiet=True)
    ids = text_ids(one)
    np.testing.assert_array_equal(logits(tmp_path / "ours", ids), logits(tmp_path / "theirs", ids))


@pytest.mark.parametrize("family", ["gemma3", "qwen2"])
def test_everything_beside_the_weights(family: str, tmp_path: Path) -> None:
    import transformers

    tiny.save(family, tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "between.gguf", quiet=True)
    convert(tmp_path / "between.gguf", tmp_path / "ours", quiet=True)
    one, two = (transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("theirs", "ours"))
    for text in ("the cat in the hat", "Then, 42 on it!", "over and out"):
        assert one(text)["input_ids"] == two(text)["input_ids"]
        assert one.decode(one(text)["input_ids"]) == two.decode(two(text)["input_ids"])
    talk: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    rendered = two.apply_chat_template(talk, tokenize=False)
    assert rendered == one.apply_chat_template(talk, tokenize=False) == "user: hi\n"
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    assert settings.eos_token_id == 2
    assert settings.bos_token_id == (1 if family == "gemma3" else settings.bos_token_id)


def test_shards_and_types(tmp_path: Path) -> None:
    tiny.save("gemma2", tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", dtype="bfloat16", max_shard_size="60KB", quiet=True)
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("damage", ["{", "[]", '{"model_type": "llama", "torch_dtype": 3}', '{"model_type": 5}'])
def test_damaged_settings(damage: str, tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_text(damage)
    with pytest.raises(GeodeError):
        convert(tmp_path / "theirs", tmp_path / "ours", quiet=True)
    assert not (tmp_path / "ours").exists()


def test_damaged_weights(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "theirs")
    weights = tmp_path / "theirs" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"safetensors"):
        convert(tmp_path / "theirs", tmp_path / "ours", quiet=True)
