"""llama2.c's files: the story that its own test expects, networks there and back, damaged files."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from foreign import converted, named, same, saved

import geode
import geode.checkpoint
from geode import families
from geode.errors import FormatError, ModelNotFound, TokenizerError
from geode.formats import Target, by_name, claiming
from geode.formats.base import Checkpoint
from geode.tensors import Tensors, from_arrays, shapes

DATA = Path(__file__).parents[2] / "shared" / "data" / "models"
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\" "
    "Lily was sad and didn't know what to do. She said, \"I want to play with your ball, but I can't find it.\"\nLily "
    "was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\nLily didn't want to "
    "help her mom, so she"
)
"""What test_all.py of github.com/karpathy/llama2.c expects of 200 steps at temperature 0."""


@pytest.fixture
def stories() -> Path:
    path = DATA / "stories260K.bin"
    if not path.is_file():
        pytest.skip("stories260K.bin is not here: it lies in shared/data/models beside the checkout")
    return path


def told(model: geode.Model) -> str:
    return model.detokenize(model.generate("", max_tokens=200, temperature=0).tokens)  # type: ignore[union-attr]


def test_the_story(stories: Path) -> None:
    model = geode.load(str(stories))
    assert model.tokenize("Once upon a time") == [1, 403, 407, 261, 378]
    assert told(model) == STORY


def test_the_story_again_after_a_round_trip(stories: Path, tmp_path: Path) -> None:
    source = geode.checkpoint.open(stories)
    again = converted(source, "llama2c", tmp_path / "again", manifest=False)
    assert again.config == source.config
    same(again.tensors, source.tensors)
    assert told(geode.load(str(tmp_path / "again"))) == STORY
    written = (tmp_path / "again" / "model.bin").read_bytes()
    original = stories.read_bytes()
    kept = len(original) - 4 * 2 * 512 * 4  # before the tables of rotations, the last thing where the head is tied
    assert written[:kept] == original[:kept]
    tables = (np.frombuffer(data[kept:], np.float32) for data in (written, original))
    np.testing.assert_allclose(*tables, atol=2e-5)
    tokens = (tmp_path / "again" / "tokenizer.bin").read_bytes(), (stories.parent / "tok512.bin").read_bytes()
    assert tokens[0] == tokens[1]


def network(tied: bool = False, **changes: object) -> Checkpoint:
    """A tiny Llama of random numbers in memory."""

    class Made(Checkpoint):
        def _tensors(self) -> Tensors:
            return self.stored

        def _vocabulary(self) -> None:
            return None

        def _tokenizer(self) -> None:
            return None

    values = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    values |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    config = families.LLAMA.config_from_hf(values | {"rms_norm_eps": 1e-5, "tie_word_embeddings": tied} | changes)
    random = np.random.default_rng(0)
    made = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes(config).items()}
    return Made(Path("nowhere"), "hf", families.LLAMA, config, from_arrays(made), {})


@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back(tied: bool, tmp_path: Path) -> None:
    source = network(tied)
    found = converted(source, "llama2c", tmp_path / "out", manifest=False)
    assert found.config == source.config
    same(found.tensors, source.tensors)
    raw = (tmp_path / "out" / "model.bin").read_bytes()
    assert struct.unpack("<7i", raw[:28]) == (16, 24, 3, 4, 2, 40 if tied else -40, 32)
    first = np.frombuffer(raw[28 : 28 + 40 * 16 * 4], np.float32).reshape(40, 16)
    np.testing.assert_array_equal(first, source.tensors["token_embd.weight"])
    wq = 28 + 4 * (40 * 16 + 3 * 16)  # rows of the first head: pairs side by side
    rows = np.frombuffer(raw[wq : wq + 4 * 4 * 16], np.float32).reshape(4, 16)
    np.testing.assert_array_equal(rows, np.asarray(source.tensors["blk.0.attn_q.weight"])[[0, 2, 1, 3]])
    assert os.listdir(tmp_path / "out") == ["model.bin"]


def test_a_llama_of_transformers_and_what_is_refused(tmp_path: Path) -> None:
    source = saved(named("Llama 2"), tmp_path / "hf")[1]
    usual = Checkpoint(source.path, "hf", source.family, source.config, source.stored, {})
    one = by_name("llama2c")
    for changes in ({}, {"rope_theta": 5e5}, {"rms_norm_eps": 1e-6}, {"attention_bias": True}, {"head_dim": 8}):
        problem = one.refuses(network(False, **changes), Target())
        assert (problem is None) == (not changes), changes
    assert "epsilon of 1e-05" in str(one.refuses(usual, Target()))


def test_losses_and_tokenizers(stories: Path, tmp_path: Path) -> None:
    one = by_name("llama2c")
    assert one.losses(geode.checkpoint.open(stories), Target()) == []
    (tmp_path / "model.bin").write_bytes(stories.read_bytes())
    assert geode.checkpoint.open(tmp_path).tokenizer is None
    (tmp_path / "tokenizer.bin").write_bytes((stories.parent / "tok512.bin").read_bytes()[:-12])
    with pytest.raises(TokenizerError):
        _ = geode.checkpoint.open(tmp_path).tokenizer
    short = (stories.parent / "tok512.bin").read_bytes()
    (tmp_path / "tokenizer.bin").write_bytes(short + struct.pack("<fi", 0.0, 1) + b"x")
    with pytest.raises(TokenizerError, match="513 tokens"):
        _ = geode.checkpoint.open(tmp_path).tokenizer


def test_damaged_files(tmp_path: Path) -> None:
    converted(network(), "llama2c", tmp_path / "out", manifest=False)
    path = tmp_path / "out" / "model.bin"
    raw = path.read_bytes()
    for size in (0, 3, 27, 28, 100, len(raw) - 1):
        path.write_bytes(raw[:size])
        assert claiming(path) is not by_name("llama2c")
        with pytest.raises(FormatError):
            by_name("llama2c").open(path)
    for sizes in ((0,) * 7, (-16, 24, 3, 4, 2, 40, 32), (16, 24, 1 << 30, 4, 2, 40, 32), (16, 24, 3, 3, 2, 40, 32)):
        path.write_bytes(struct.pack("<7i", *sizes) + raw[28:])
        with pytest.raises(FormatError, match="no sizes of a network"):
            by_name("llama2c").open(path)
    path.write_bytes(struct.pack("<I", 0x616B3432) + raw[4:])
    with pytest.raises(FormatError, match="version 1 or 2"):
        geode.checkpoint.open(path)
    path.write_bytes(raw)
    (tmp_path / "out" / "other.bin").write_bytes(raw)
    with pytest.raises(ModelNotFound, match="2 models"):
        geode.checkpoint.open(tmp_path / "out")
