"""Tokenizers against the originals, on vocabularies trained here; what is refused; streams of ids."""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hard_text import HARD, random_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from geode import strings
from geode.errors import ModelNotFound, TokenizerError
from geode.tokenizer import Tokenizer, from_gguf, from_sentencepiece, from_tiktoken, load
from geode.tokenizer.base import Matcher
from geode.tokenizer.bytebpe import GPT2_ALPHABET
from geode.tokenizer.merge import merge
from geode.tokenizer.patterns import CL100K, CUTS, GPT2

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Größe, naïveté, café; e\u0301tude and façade: 1234 numbers 56 78.",
    "日本語のテキストと中文文本 and 한국어 텍스트 mixed 你好世界",
    "def function(argument):\n    return argument ** 2  # comment",
    "emoji 👍 👩‍👩‍👧 and I'm you're we'll don't      spaces",
] * 20
PADDED = "[PAD%d]"


# Vocabularies made here


@pytest.fixture(scope="module")
def spm_file(once: Callable[[str, Callable[[Path], None]], Path]) -> Callable[[bool], Path]:
    """A SentencePiece BPE model, with or without the dummy prefix."""

    def make(folder: Path, prefix: bool) -> None:
        import sentencepiece

        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_prefix=str(folder / "tokenizer"),
            model_type="bpe",
            vocab_size=600,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=prefix,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            character_coverage=0.98,
            user_defined_symbols=["\n", "\n\n", "<table>", "<x>", "▁▁▁"],
            control_symbols=["<start_of_turn>", "<end_of_turn>"],
            minloglevel=2,
        )

    return lambda prefix: once(f"spm-{prefix}", lambda folder: make(folder, prefix)) / "tokenizer.model"


@pytest.fixture(scope="module")
def bpe_folder(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A byte-level BPE tokenizer.json with control and added tokens, and a BOS from its post-processor."""

    def make(folder: Path) -> None:
        from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
        from tokenizers import Tokenizer as File

        file = File(models.BPE())
        file.normalizer = normalizers.NFC()
        file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        file.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        file.train_from_iterator(CORPUS, trainer)
        file.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "<|im_start|>", "<|im_end|>")])
        file.add_tokens([AddedToken(text, normalized=False) for text in ("<tool_call>", "   ")])
        bos = file.token_to_id("<s>")
        file.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
        )
        file.save(str(folder / "tokenizer.json"))
        config = {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}, "add_bos_token": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))

    return once("bpe", make)


def bpe_metadata(folder: Path) -> dict[str, Any]:
    """The same vocabulary as GGUF spells it."""
    data = json.loads((folder / "tokenizer.json").read_text())
    pieces = {token: text for text, token in data["model"]["vocab"].items()}
    types = dict.fromkeys(pieces, 1)
    for each in data["added_tokens"]:
        pieces[each["id"]], types[each["id"]] = each["content"], 3 if each["special"] else 4
    size = len(pieces)
    merges = [each if isinstance(each, str) else " ".join(each) for each in data["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "olmo",  # GPT-2's words, NFC
        "tokenizer.ggml.tokens": [*(pieces[i] for i in range(size)), *(PADDED % i for i in range(size, size + 5))],
        "tokenizer.ggml.token_type": np.array([*(types[i] for i in range(size)), *[4] * 5], np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": data["post_processor"]["special_tokens"]["<s>"]["ids"][0],
        "tokenizer.ggml.eos_token_id": next(t for t, text in pieces.items() if text == "<|im_end|>"),
        "tokenizer.ggml.add_bos_token": True,
    }


def spm_metadata(path: Path, prefix: bool) -> dict[str, Any]:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    return {
        "tokenizer.ggml.model": "llama",
        # llama.cpp's converter writes user-defined symbols with plain spaces
        "tokenizer.ggml.tokens": [
            each.piece.replace("▁", " ") if each.type == 4 else each.piece for each in model.pieces
        ],
        "tokenizer.ggml.scores": np.array([each.score for each in model.pieces], np.float32),
        "tokenizer.ggml.token_type": [each.type for each in model.pieces],
        "tokenizer.ggml.add_space_prefix": prefix,
    }


# Ids equal the originals'


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("source", ["model", "gguf"])
def test_spm_equals_sentencepiece(spm_file: Callable[[bool], Path], prefix: bool, source: str) -> None:
    import sentencepiece

    path = spm_file(prefix)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = from_sentencepiece(path) if source == "model" else from_gguf(spm_metadata(path, prefix))
    for text in HARD + CORPUS[:5] + random_texts(300):
        ids = theirs.encode(text)
        assert ours.encode(text, bos=False) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text


@given(text=st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_spm_equals_sentencepiece_on_any_text(spm_file: Callable[[bool], Path], text: str) -> None:
    import sentencepiece

    path = spm_file(True)
    theirs = _remembered(path, lambda: sentencepiece.SentencePieceProcessor(model_file=str(path)))
    ours = _remembered((path, "ours"), lambda: from_sentencepiece(path))
    assert ours.encode(text, bos=False) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == text.replace("\u2581", " ")  # the mark for a space is all that it keeps


def test_spm_without_byte_fallback_says_unknown_once(tmp_path: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["low lower lowest newer wider"] * 20),
        model_prefix=str(tmp_path / "tiny"),
        model_type="bpe",
        vocab_size=25,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tiny.model"))
    ours = from_sentencepiece(tmp_path / "tiny.model")
    for text in ("low zz 你好 lower", "zzz", "z low"):
        assert ours.encode(text, bos=False) == theirs.encode(text)


def test_words_split_only_where_no_piece_spans_them() -> None:
    pieces = ["<unk>", ">", "▁", "<", "a", "▁a", ">▁", ">▁<", "▁▁"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [0, -9, -9, -9, -9, -3, -2, -1, -4],
        "tokenizer.ggml.token_type": [2, 1, 1, 1, 1, 1, 1, 1, 1],
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.bos_token_id": 99,
    }
    ours = from_gguf(metadata)
    spelt = [pieces[token] for token in ours.encode("> <a a> a")]
    assert spelt == [">▁<", "a", "▁a", ">▁", "a"]


def test_a_newline_and_the_space_after_it_may_be_one_piece() -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "a", "\n", "▁", "\n▁", "▁a"],
        "tokenizer.ggml.scores": [0, -9, -9, -9, -1, -2],
        "tokenizer.ggml.token_type": [2, 1, 1, 1, 1, 1],
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.bos_token_id": 99,
    }
    assert from_gguf(metadata).encode("a\n a a") == [1, 4, 1, 5]


def test_pieces_are_found_by_hash_as_by_dict(
    spm_file: Callable[[bool], Path], bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for metadata in (spm_metadata(spm_file(True), True), bpe_metadata(bpe_folder)):
        found = []
        for share in (0, 10**6):  # never a dict, a dict at once
            monkeypatch.setattr(strings, "SHARE", share)
            ours = from_gguf(metadata)
            found.append([ours.encode(text) for text in HARD + CORPUS[:5] + random_texts(100)])
        assert found[0] == found[1]


@pytest.mark.parametrize("source", ["json", "gguf"])
def test_byte_bpe_equals_tokenizers(bpe_folder: Path, source: str) -> None:
    from tokenizers import Tokenizer as File

    theirs = File.from_file(str(bpe_folder / "tokenizer.json"))
    ours = load(bpe_folder) if source == "json" else from_gguf(bpe_metadata(bpe_folder))
    assert ours is not None
    for special in (False, True):
        theirs.encode_special_tokens = not special
        for text in HARD + CORPUS[:5] + random_texts(300):
            ids = theirs.encode(text, add_special_tokens=False).ids
            assert ours.encode(text, bos=False, special=special) == ids, text
            assert ours.decode(ids, special=True) == theirs.decode(ids, skip_special_tokens=False), text
            assert ours.decode(ids) == theirs.decode(ids), text


@given(text=st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_byte_bpe_equals_tokenizers_on_any_text(bpe_folder: Path, text: str) -> None:
    theirs = _remembered("json", lambda: load(bpe_folder))
    ours = _remembered("gguf", lambda: from_gguf(bpe_metadata(bpe_folder)))
    assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("pattern", [GPT2, CL100K, CUTS["tekken"].patterns[0], CUTS["gpt-4o"].patterns[0]])
def test_tiktoken_equals_tiktoken(tmp_path: Path, bpe_folder: Path, pattern: str) -> None:
    import tiktoken

    vocab = json.loads((bpe_folder / "tokenizer.json").read_text())["model"]["vocab"]
    ranks = {bytes(GPT2_ALPHABET.index(each) for each in text): rank for text, rank in vocab.items()}
    lines = [base64.b64encode(piece) + b" %d\n" % rank for piece, rank in ranks.items()]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(lines))
    control = {"<|end|>": len(ranks), "<s>": len(ranks) + 1}
    ours = from_tiktoken(path, pattern=pattern, control=control, bos="<s>")
    theirs = tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=ranks, special_tokens=control)
    for text in HARD + random_texts(200):
        ids = theirs.encode(text, disallowed_special=())
        assert ours.encode(text, bos=False) == ids, text
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.encode(text) == [control["<s>"], *ids]
        assert ours.encode(text, special=True, bos=False) == theirs.encode(text, allowed_special="all")
    assert ours.ends == {control["<|end|>"]}
    assert ours.size == len(ranks) + 2


def test_cut_patterns_all_compile_and_lose_nothing() -> None:
    vocab = {each: i for i, each in enumerate(GPT2_ALPHABET)}
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [*vocab], "tokenizer.ggml.merges": []}
    for name in CUTS:
        ours = from_gguf({**metadata, "tokenizer.ggml.pre": name})
        for text in HARD:
            kept = unicodedata.normalize("NFC", text) if CUTS[name].nfc else text
            assert ours.decode(ours.encode(text)) == kept


def test_merge_takes_the_lowest_rank_and_the_leftmost_of_equals() -> None:
    ranks = {("a", "a"): 1, ("aa", "a"): 2, ("b", "c"): 0}
    assert merge("aaabc", lambda left, right: ranks.get((left, right))) == ["aaa", "bc"]
    assert merge("aaaa", lambda left, right: {("a", "a"): 1}.get((left, right))) == ["aa", "aa"]
    assert merge("", lambda left, right: 0) == []


@given(text=st.text("ab", max_size=12))
@settings(max_examples=100, deadline=None)
def test_merge_equals_the_plain_loop(text: str) -> None:
    ranks = {"ab": 3, "aa": 5, "ba": 4, "aab": 1, "abab": 2, "bb": 6}
    parts = list(text)
    while pairs := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    assert merge(text, lambda left, right: ranks.get(left + right)) == parts


def test_matcher_prefers_the_longest_at_each_place() -> None:
    matcher = Matcher({"\n": 1, "\n\n": 2, "<a>": 3, "": 4})
    assert list(matcher.split("\n\n\nx<<a>")) == [2, 1, "x<", 3]
    assert list(Matcher({}).split("abc")) == ["abc"]


@given(text=st.text("ab<\n", max_size=12), tokens=st.sets(st.text("ab<\n", min_size=1, max_size=3), max_size=6))
@settings(max_examples=200, deadline=None)
def test_matcher_equals_the_plain_search(text: str, tokens: set[str]) -> None:
    named = {token: number for number, token in enumerate(sorted(tokens))}
    found: list[str | int] = []
    at = between = 0
    while at < len(text):
        token = max((each for each in tokens if text.startswith(each, at)), key=len, default=None)
        if token is None:
            at += 1
            continue
        found += [text[between:at]] * (between < at) + [named[token]]
        at = between = at + len(token)
    assert list(Matcher(named).split(text)) == found + [text[between:]] * (between < at)


# BOS, control tokens, ends


def test_bos_stands_once_and_only_where_the_reference_adds_it(bpe_folder: Path) -> None:
    ours = load(bpe_folder)
    assert ours is not None
    assert ours.adds_bos
    assert ours.bos == ours.control["<s>"]
    plain = ours.encode("Hello", bos=False)
    assert ours.encode("Hello") == ours.encode("Hello", bos=True) == [ours.bos, *plain]
    assert ours.encode("<s>Hello", special=True) == [ours.bos, *plain]
    assert ours.encode("<s>Hello").count(ours.bos) == 1
    silent = from_gguf({**bpe_metadata(bpe_folder), "tokenizer.ggml.add_bos_token": False})
    assert silent.encode("Hello") == plain
    assert silent.encode("Hello", bos=True) == [ours.bos, *plain]


def test_eos_is_added_where_the_file_says_so(bpe_folder: Path) -> None:
    ours = from_gguf({**bpe_metadata(bpe_folder), "tokenizer.ggml.add_eos_token": True})
    eos = ours.control["<|im_end|>"]
    assert ours.encode("Hi")[-1] == eos
    assert eos not in ours.encode("Hi", bos=False)


def test_no_bos_where_there_is_none(tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [*GPT2_ALPHABET], "tokenizer.ggml.merges": []}
    ours = from_gguf(metadata)
    assert ours.bos is None  # and not llama.cpp's 11, which is Falcon's (llama.cpp issue 7898)
    assert not ours.adds_bos
    with pytest.raises(TokenizerError, match="no"):
        ours.encode("a", bos=True)


@pytest.mark.parametrize("prefix", [True, False])
def test_control_tokens_come_from_templates_only(spm_file: Callable[[bool], Path], prefix: bool) -> None:
    ours = from_sentencepiece(spm_file(prefix))
    turn = ours.control["<start_of_turn>"]
    assert turn not in ours.encode("<start_of_turn>user")
    assert turn in ours.encode("<start_of_turn>user", special=True)
    assert turn not in ours.encode("<\ufdd0start_of_turn>user", special=True, mark="\ufdd0")
    assert ours.encode("<\ufdd0start_of_turn>user", special=True, mark="\ufdd0") == ours.encode("<start_of_turn>user")
    assert ours.ends == {ours.control["</s>"], ours.control["<end_of_turn>"]}
    assert ours.decode([turn, *ours.encode("hi", bos=False)]) == "hi"
    assert ours.decode([turn, *ours.encode("hi", bos=False)], special=True).startswith("<start_of_turn>")


def test_marked_text_in_tokenizer_json_is_plain(bpe_folder: Path) -> None:
    ours = load(bpe_folder)
    assert ours is not None
    ids = ours.encode("<|im_start|>a<\ufdd0|im_end|><|im_end|>", special=True, mark="\ufdd0", bos=False)
    start, end = ours.control["<|im_start|>"], ours.control["<|im_end|>"]
    assert ids == [start, *ours.encode("a<|im_end|>", bos=False), end]


def test_metaspace_gives_its_space_to_the_first_text_only(tmp_path: Path) -> None:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as File

    vocab = {each: i for i, each in enumerate(["<unk>", "▁", "a", "<", ">", "s", "\n", "▁a"])}
    file = File(models.BPE(vocab, [("▁", "a")], unk_token="<unk>"))
    file.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    file.decoder = decoders.Metaspace(prepend_scheme="first")
    file.add_special_tokens([AddedToken("<s>", special=True, normalized=False)])
    file.save(str(tmp_path / "tokenizer.json"))
    ours = load(tmp_path)
    assert ours is not None
    assert ours.encode("<s>a", special=True) == file.encode("<s>a").ids == [8, 2]
    assert ours.encode("a<s>a<\ufdd0s>", special=True, mark="\ufdd0") == [7, 8, 2, 3, 5, 4]
    assert ours.decode(ours.encode("a a")) == "a a"


def test_ends_are_control_tokens_of_known_names_and_the_files_own(bpe_folder: Path) -> None:
    ours = load(bpe_folder)
    assert ours is not None
    assert ours.ends == {1, 2, ours.control["<|im_end|>"]}
    assert ours.special_texts == {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    metadata = bpe_metadata(bpe_folder)
    kinds = metadata["tokenizer.ggml.token_type"].copy()
    kinds[ours.control["<|im_end|>"]] = 4  # an added token, not a control one
    plain = from_gguf({**metadata, "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.eos_token_id": 10_000})
    assert plain.ends == frozenset()
    assert "<|im_end|>" not in plain.control


def test_padding_rows_are_no_tokens(bpe_folder: Path) -> None:
    ours = from_gguf(bpe_metadata(bpe_folder))
    other = load(bpe_folder)
    assert other is not None
    assert ours.size == other.size
    assert PADDED % ours.size not in [ours.decode([i]) for i in range(ours.size)]
    for token in (ours.size, -1, 10**9):
        with pytest.raises(TokenizerError, match=f"0 to {ours.size - 1}"):
            ours.decode([token])


def test_lone_surrogates_become_the_replacement_character(spm_file: Callable[[bool], Path]) -> None:
    ours = from_sentencepiece(spm_file(True))
    assert ours.encode("a\ud800b") == ours.encode("a\ufffdb")
    assert ours.encode("\ud83d\udc4d") == ours.encode("👍")


# Ids to text


def _engines(spm_file: Callable[[bool], Path], bpe_folder: Path) -> dict[str, Tokenizer]:
    return _remembered(
        "engines",
        lambda: {
            "spm": from_sentencepiece(spm_file(True)),
            "bare": from_sentencepiece(spm_file(False)),
            "bytes": from_gguf(bpe_metadata(bpe_folder)),
            "json": load(bpe_folder),
        },
    )


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_stream_equals_decode(spm_file: Callable[[bool], Path], bpe_folder: Path, data: st.DataObject) -> None:
    engine = data.draw(st.sampled_from(["spm", "bare", "bytes", "json"]))
    ours = _engines(spm_file, bpe_folder)[engine]
    ids = data.draw(st.lists(st.integers(0, ours.size - 1), max_size=30))
    stream = ours.stream(start=True)
    pushed = [stream.push(token) for token in ids]
    assert "".join(pushed) + stream.flush() == ours.decode(ids)
    shown = b"".join(ours.piece(token) for token in ids if token not in ours.control.values())
    whole = shown.removeprefix(b" ") if engine == "spm" else shown
    assert ours.decode(ids) == whole.decode("utf-8", "replace")


def test_stream_waits_for_whole_characters_and_keeps_the_first_space(spm_file: Callable[[bool], Path]) -> None:
    ours = from_sentencepiece(spm_file(True))
    first = next(i for i in range(ours.size) if ours.piece(i) == b"\x00")
    stream = ours.stream()
    assert [stream.push(first + byte) for byte in "👍".encode()] == ["", "", "", "👍"]
    assert stream.push(first + 0xE2) == ""
    assert stream.flush() == "\ufffd"
    word = ours.encode("the", bos=False)
    assert ours.decode(word) == "the"
    again = ours.stream()
    assert "".join(map(again.push, word)) == " the"


# What is refused


def _spoilt(metadata: dict[str, Any], **changes: Any) -> dict[str, Any]:
    spoilt = {**metadata, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}
    return {key: value for key, value in spoilt.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "bert"}, "llama, gpt2"),
        ({"model": None}, "llama, gpt2"),
        ({"pre": "klingon"}, "known are .*qwen2"),
        ({"tokens": None}, "no tokenizer.ggml.tokens"),
        ({"merges": None}, "needs tokenizer.ggml.merges"),
        ({"merges": ["zz qq"]}, "'zz qq'"),
        ({"merges": ["Ġt"]}, "'Ġt'"),
        ({"token_type": [1, 1]}, "has 2 entries"),
    ],
)
def test_gguf_byte_bpe_refuses(bpe_folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TokenizerError, match=words):
        from_gguf(_spoilt(bpe_metadata(bpe_folder), **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"scores": None}, "is missing"), ({"scores": [0.0]}, "has 1 entries"), ({"tokens": []}, "no")],
)
def test_gguf_spm_refuses(spm_file: Callable[[bool], Path], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TokenizerError, match=words):
        from_gguf(_spoilt(spm_metadata(spm_file(True), True), **changes))


def test_unigram_and_normalising_models_are_refused(tmp_path: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["low lower lowest newer wider"] * 20),
        model_prefix=str(tmp_path / "u"),
        vocab_size=18,
        minloglevel=2,
    )
    with pytest.raises(TokenizerError, match=r"unigram.*table of its own.*tokenizer.json"):
        from_sentencepiece(tmp_path / "u.model")


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_models_are_refused_or_read(spm_file: Callable[[bool], Path], tmp_path_factory: Any, data: Any) -> None:
    whole = spm_file(True).read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    place, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.model"
    for damaged in (whole[:cut], whole[:place] + bytes([byte]) + whole[place + 1 :], data.draw(st.binary(max_size=40))):
        path.write_bytes(damaged)
        with suppress(TokenizerError):
            from_sentencepiece(path).encode("Hello 你好")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    assert load(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(TokenizerError, match=r"no tokenizer.json that can be read"):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(TokenizerError, match="JSON object"):
        load(tmp_path)
    with pytest.raises(ModelNotFound):
        from_sentencepiece(tmp_path / "nothing.model")


@pytest.mark.parametrize(
    "lines", [b"IQ== 0\nIg== two\n", b"IQ== 0\n!!! 1\n", b"IQ== 0\nIg== 2\n", b"IQ== 0\nIQ== 1\n", b"\n"]
)
def test_damaged_ranks_are_refused(tmp_path: Path, lines: bytes) -> None:
    (tmp_path / "x.tiktoken").write_bytes(lines)
    with pytest.raises(TokenizerError):
        from_tiktoken(tmp_path / "x.tiktoken", pattern=GPT2)


def test_unknown_ranks_need_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "x.tiktoken").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(TokenizerError, match="2 ranks"):
        load(tmp_path)


def test_tekken_puts_control_tokens_first(tmp_path: Path) -> None:
    vocab = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)]
    vocab += [{"rank": 256, "token_bytes": base64.b64encode(b"hi").decode(), "token_str": "hi"}]
    vocab += [{"rank": 257, "token_bytes": base64.b64encode(b"beyond").decode(), "token_str": "beyond"}]
    config = {"pattern": GPT2, "default_vocab_size": 30 + 257, "default_num_special_tokens": 30}
    (tmp_path / "tekken.json").write_text(json.dumps({"config": config, "vocab": vocab}))
    ours = load(tmp_path)
    assert ours is not None
    assert ours.encode("hi!") == [1, 286, 30 + ord("!")]
    assert ours.encode("[INST]hi", special=True, bos=False) == [3, 286]
    assert ours.size == 287
    assert ours.decode([29], special=True) == "<SPECIAL_29>"
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(TokenizerError, match="tekken"):
        load(tmp_path)


def test_vocab_and_merges_alone_are_explained(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(TokenizerError, match="save_pretrained"):
        load(tmp_path)


def test_configuration_beside_a_model_is_obeyed(spm_file: Callable[[bool], Path], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm_file(True).read_bytes())
    plain = load(tmp_path)
    assert plain is not None
    assert plain.adds_bos
    added = {"content": "<|im_end|>", "special": True}
    config = {"add_bos_token": False, "added_tokens_decoder": {str(plain.size + 1): added}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load(tmp_path)
    assert ours is not None
    assert not ours.adds_bos
    assert ours.encode("a<|im_end|>", special=True)[-1] == plain.size + 1
    assert plain.size + 1 in ours.ends
    config["added_tokens_decoder"] = {"99999999": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="far from"):
        load(tmp_path)


def test_tokens_that_only_the_configuration_knows_are_added(bpe_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((bpe_folder / "tokenizer.json").read_bytes())
    base = load(tmp_path)
    assert base is not None
    more = {str(base.size): {"content": "<|new|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": more}))
    ours = load(tmp_path)
    assert ours is not None
    assert ours.encode("<|new|>", special=True, bos=False) == [base.size]
    wrong = {str(base.size + 7): {"content": "<|new|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": wrong}))
    with pytest.raises(TokenizerError, match="not of the same model"):
        load(tmp_path)


_KEPT: dict[Any, Any] = {}


def _remembered(key: Any, make: Callable[[], Any]) -> Any:
    """Made once in this process: hypothesis calls a test many times with the same fixtures."""
    if key not in _KEPT:
        _KEPT[key] = make()
    return _KEPT[key]
