"""Real vocabularies against their own tokenizers, and llama.cpp's golden cases. Slow: they are fetched first."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hard_text import HARD, random_texts
from packages import one, unpacked

from geode.io import gguf
from geode.tokenizer import Tokenizer, from_gguf, from_sentencepiece, from_tiktoken, load
from geode.tokenizer.files import LOOKS_CONTROL
from geode.tokenizer.patterns import CL100K

pytestmark = pytest.mark.slow

TEXTS = HARD + random_texts(400)
HELLO = "Hello, Gemma! 1234 你好"
GEMMA3 = [9259, 236764, 147224, 236888, 236743, 236770, 236778, 236800, 236812, 43758, 237389]
GEMMA1 = [4521, 235269, 137061, 235341, 235248, 235274, 235284, 235304, 235310, 30485, 235607]


def assert_equal(ours: Tokenizer, theirs: Callable[[str], list[int]], texts: list[str] = TEXTS) -> None:
    for text in texts:
        ids = ours.encode(text, bos=False)
        assert ids == theirs(text), text
        stream = ours.stream(start=True)
        assert "".join(map(stream.push, ids)) + stream.flush() == ours.decode(ids)


# llama.cpp's own cases

VOCABULARIES = (
    "command-r deepseek-coder falcon gpt-2 llama-bpe llama-spm mpt phi-3 qwen2 qwen35 refact starcoder".split()
)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_llama_cpp_cases(name: str) -> None:
    path = one(unpacked("llama_cpp"), f"models/ggml-vocab-{name}.gguf")
    ours = from_gguf(gguf.read(path).metadata)
    texts = Path(f"{path}.inp").read_bytes().decode()
    expected = Path(f"{path}.out").read_text("utf-8").split("\n")
    cases = list(zip(texts.split("\n__ggml_vocab_test__\n"), expected, strict=False))
    assert len(cases) > 40
    for text, ids in cases:
        assert ours.encode(text, bos=False) == [int(each) for each in ids.split()], text


# SentencePiece models

MODELS = {
    "tokenizer.gemma": "maxtext",
    "tokenizer.gemma3": "maxtext",
    "tokenizer.llama2": "maxtext",
    "tokenizer.mistral-v1": "maxtext",
    "tokenizer.mistral-v3": "maxtext",
    "tokenizer.model.v1": "mistral",
    "mistral_instruct_tokenizer_240216.model.v2": "mistral",
    "mistral_instruct_tokenizer_240323.model.v3": "mistral",
    "mistral_instruct_tokenizer_241114.model.v7": "mistral",
}


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_sentencepiece(name: str) -> None:
    import sentencepiece

    path = one(unpacked(MODELS[name]), name)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = from_sentencepiece(path)
    # Gemma's control tokens are user-defined symbols to sentencepiece; to us a user's text never holds one.
    spells = re.compile("|".join(re.escape(text) for text in ours.control if LOOKS_CONTROL.fullmatch(text)) or "(?!)")
    gemma = "gemma" in name
    assert_equal(ours, theirs.encode, [text for text in TEXTS if not (gemma and spells.search(text))])
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.decode(ids, special=gemma) == theirs.decode(ids)
    assert ours.encode("Hi")[0] == theirs.bos_id()


def test_gemma_ids_of_the_facts() -> None:
    folder = unpacked("maxtext")
    gemma1, gemma3 = (from_sentencepiece(one(folder, name)) for name in ("tokenizer.gemma", "tokenizer.gemma3"))
    assert gemma1.encode(HELLO) == [2, *GEMMA1]
    assert gemma3.encode(HELLO) == [2, *GEMMA3]
    assert gemma1.ends == {1, 107}
    assert gemma3.ends == {1, 106}
    assert gemma1.encode("<start_of_turn>", special=True, bos=False) == [106]
    assert 106 not in gemma1.encode("<start_of_turn>")


def test_mistral_v3_puts_no_space_of_its_own_after_a_control_token() -> None:
    import sentencepiece

    path = one(unpacked("mistral"), "mistral_instruct_tokenizer_240323.model.v3")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = from_sentencepiece(path).encode("<s>[INST] Hi you[/INST] Yes</s>[INST] No[/INST]", special=True)
    assert ids == [1, 3, *theirs.encode("Hi you"), 4, *theirs.encode("Yes"), 2, 3, *theirs.encode("No"), 4]


# Ranks


def test_llama_3_equals_tiktoken() -> None:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    path = one(unpacked("maxtext"), "tokenizer_llama3.tiktoken")
    ours = from_tiktoken(path)
    theirs = tiktoken.Encoding(
        "llama3", pat_str=CL100K, mergeable_ranks=load_tiktoken_bpe(str(path)), special_tokens=ours.control
    )
    assert_equal(ours, lambda text: theirs.encode(text, disallowed_special=()))
    for text in TEXTS:
        assert ours.encode(text, special=True, bos=False) == theirs.encode(text, allowed_special="all")
    assert ours.size == 128_256
    assert ours.ends == {128_001, 128_008, 128_009}
    assert ours.encode("")[0] == 128_000


@pytest.mark.parametrize("name", ["tekken_240718.json", "tekken_240911.json"])
def test_tekken_equals_tiktoken(name: str, tmp_path: Path) -> None:
    import tiktoken

    shutil.copy(one(unpacked("mistral"), name), tmp_path / "tekken.json")
    data = json.loads((tmp_path / "tekken.json").read_text("utf-8"))
    first = data["config"]["default_num_special_tokens"]
    kept = data["vocab"][: data["config"]["default_vocab_size"] - first]
    ranks = {base64.b64decode(each["token_bytes"]): each["rank"] for each in kept}
    theirs = tiktoken.Encoding("tekken", pat_str=data["config"]["pattern"], mergeable_ranks=ranks, special_tokens={})
    ours = load(tmp_path)
    assert ours is not None
    assert_equal(ours, lambda text: [first + rank for rank in theirs.encode(text, disallowed_special=())])
    assert (ours.bos, ours.size, ours.ends) == (1, 131_072, {2})


# tokenizer.json

FILES = {
    "qwen3": ("maxtext", "qwen3-tokenizer/tokenizer.json"),
    "olmo1": ("olmo", "allenai_gpt-neox-olmo-dolma-v1_5.json"),
    "neox": ("olmo", "allenai_eleuther-ai-gpt-neox-20b-pii-special.json"),
    "olmo2": ("olmo", "allenai_dolma2.json"),
    "mistral": ("lenml", "models/tokenizer.json"),
}


@pytest.fixture(params=FILES)
def json_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    package, name = FILES[request.param]
    path = one(unpacked(package), name)
    shutil.copy(path, tmp_path / "tokenizer.json")
    if (beside := path.parent / "tokenizer_config.json").exists():
        shutil.copy(beside, tmp_path)
    return tmp_path


def test_equal_to_transformers(json_folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(json_folder)
    plain = PreTrainedTokenizerFast.from_pretrained(json_folder, split_special_tokens=True)
    ours = load(json_folder)
    assert ours is not None
    for text in TEXTS:
        assert ours.encode(text) == plain(text).input_ids, text
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, special=True, bos=False) == ids, text
        if "\ufffd" not in (read := theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)):
            assert ours.decode(ids) == read, text
    assert ours.size == len(theirs)


# Real models


def test_gemma_gguf(real_model: Callable[[str], Path]) -> None:
    import sentencepiece

    ours = from_gguf(gguf.read(_gguf(real_model("gemma3:270m"))).metadata)
    assert ours.encode("The capital of France is") == [2, 818, 5279, 529, 7001, 563]
    assert ours.encode(HELLO, bos=False) == GEMMA3
    assert ours.ends == {1, 106}
    assert ours.encode("<start_of_turn>user\n", special=True, bos=False) == [105, 2364, 107]
    assert 105 not in ours.encode("<start_of_turn>user\n")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(one(unpacked("maxtext"), "tokenizer.gemma3")))
    spells = re.compile(r"<unused|<(start|end)_of_turn>|<(pad|mask|unk)>")
    assert_equal(ours, theirs.encode, [text for text in TEXTS if not spells.search(text)])


def test_smollm_gguf(real_model: Callable[[str], Path]) -> None:
    ours = from_gguf(gguf.read(_gguf(real_model("smollm2:135m-instruct"))).metadata)
    assert ours.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert ours.ends == {0, 2}
    assert not ours.adds_bos


def _gguf(path: Path) -> Path:
    return path if path.is_file() else one(path, "*.gguf")
