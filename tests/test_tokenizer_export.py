"""Tokenizers written in every format: read back, and read by the formats' own libraries."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hard_text import HARD, random_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from packages import one, unpacked

from geode import tokenizer as tok
from geode.errors import ModelNotFound, OptionError, TokenizerError
from geode.io import gguf
from geode.strings import pack
from geode.tokenizer import Ranked, Roles, Scored, Vocabulary, cuts, protobuf
from geode.tokenizer.bytebpe import GPT2_ALPHABET
from geode.tokenizer.merges import by_rank, by_score, order_of, told_by_order
from geode.tokenizer.patterns import CL100K, CUTS, GPT2, O200K, QWEN2, TEKKEN, Cut
from geode.tokenizer.spm import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Größe, naïveté, café; e\u0301tude and façade: 1234 numbers 56 78.",
    "日本語のテキストと中文文本 and 한국어 텍스트 mixed 你好世界",
    "def function(argument):\n    return argument ** 2  # comment",
] * 20
TEXTS = HARD + CORPUS[:4] + random_texts(150)
CHAT = "<s>[INST] Hi  you[/INST] Yes</s>[INST] No[/INST]<s>a"
FORMS = ("gguf", "hf", "sentencepiece", "tiktoken", "llama2c")


# Vocabularies made here


@pytest.fixture(scope="module")
def spm(once: Callable[[str, Callable[[Path], None]], Path]) -> Callable[..., Scored]:
    """`spm(prefix, control, symbols)`: SentencePiece's own vocabulary with these tokens, as Llama numbers its first."""

    def make(folder: Path, prefix: bool, control: list[str], symbols: list[str]) -> None:
        import sentencepiece

        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_prefix=str(folder / "tokenizer"),
            model_type="bpe",
            vocab_size=500,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=prefix,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            character_coverage=0.98,
            user_defined_symbols=symbols,
            control_symbols=control,
            minloglevel=2,
        )

    def get(prefix: bool, control: tuple[str, ...] = (), symbols: tuple[str, ...] = ()) -> Scored:
        name = f"export-{prefix}-{len(control)}-{len(symbols)}"
        folder = once(name, lambda folder: make(folder, prefix, [*control], [*symbols]))
        found = tok.vocabulary(folder / "tokenizer.model")
        assert isinstance(found, Scored)
        return found

    return get


INST = ("[INST]", "[/INST]")
SYMBOLS = ("\n", "\n\n", "<table>", "▁▁▁")
KINDS = {
    "llama": (True, (), ()),
    "mistral": (True, INST, ()),
    "prefixed symbols": (True, INST, SYMBOLS),
    "gemma": (False, INST, SYMBOLS),
    "plain": (False, (), ()),
}


@pytest.fixture(params=KINDS)
def scored(request: pytest.FixtureRequest, spm: Callable[..., Scored]) -> Scored:
    return spm(*KINDS[request.param])


def ranked(cut: Cut = CUTS["llama-bpe"], **changes: Any) -> Ranked:
    """Bytes, some merges, control tokens and an added one, as Llama 3 has them at the end."""
    ranks = {each: i for i, each in enumerate(GPT2_ALPHABET)}
    for piece in ("th", "Ġth", "Ġthe", "in", "he", "ing", "ĠĠ", "ĠĠĠĠ", "22", "ell", "Hell", "Hello", "ä½ł", "Ċ" * 2):
        ranks[piece] = len(ranks)
    pieces = [*ranks, "<|begin|>", "<|im_end|>", "<tool>", "<|x|>"]
    types = np.array([NORMAL] * len(ranks) + [CONTROL, CONTROL, USER_DEFINED, CONTROL], np.int32)
    bos = len(ranks)
    merges = pack(" ".join(pair) for pair in by_rank(ranks))
    roles = Roles(bos=bos, eos=bos + 1, adds_bos=True)
    made = Ranked(pieces=pack(pieces), types=types, roles=roles, merges=merges, cut=cut)
    return replace(made, **changes)


def written(folder: Path, vocabulary: Vocabulary, **options: Any) -> Path:
    """The Hugging Face directory that a vocabulary becomes."""
    folder.mkdir(exist_ok=True)
    for name, data in tok.to_hf(vocabulary, **options).items():
        (folder / name).write_bytes(data)
    return folder


def read(folder: Path) -> Vocabulary:
    found = tok.vocabulary(folder)
    assert found is not None
    return found


def assert_same(ours: tok.Tokenizer, theirs: tok.Tokenizer, texts: list[str] = TEXTS) -> None:
    assert theirs.size == ours.size
    for text in texts:
        assert theirs.encode(text) == ours.encode(text), text
        ids = ours.encode(text, special=True)
        assert theirs.encode(text, special=True) == ids, text
        assert theirs.decode(ids) == ours.decode(ids), text


def arrays(vocabulary: Vocabulary, rows: int | None = None) -> dict[str, Any]:
    metadata, types = tok.to_gguf(vocabulary, rows)
    assert metadata.keys() == types.keys()
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in metadata.items()}


# SentencePiece's kind


def test_scored_to_hf_tokenises_alike(scored: Scored, tmp_path: Path) -> None:
    folder = written(tmp_path, scored)
    ours, theirs = scored.tokenizer(), tok.load(folder)
    assert theirs is not None
    alone = set(scored.of_types(USER_DEFINED)) if scored.prefix else set()
    assert bool(tok.losses(scored, "hf")) == bool(alone)
    plain = [text for text in TEXTS if text not in alone]
    # A symbol that is all there is between two control tokens is a whole text too; after <unk> a text begins anew.
    apart = [text for text in plain if not (alone and "</s>" in text) and "<unk>" not in text]
    assert_same(ours, theirs, apart)
    assert [theirs.encode(text) for text in plain] == [ours.encode(text) for text in plain]
    assert theirs.encode(CHAT, special=True, bos=False) == ours.encode(CHAT, special=True, bos=False)
    marked = CHAT.replace("</s>", "<\ufdd0/s>")
    assert theirs.encode(marked, special=True, mark="\ufdd0") == ours.encode(marked, special=True, mark="\ufdd0")


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_scored_round_trip_keeps_every_array(kind: str, spm: Callable[..., Scored], tmp_path: Path) -> None:
    scored = spm(*KINDS[kind])
    listed = np.isin(scored.types, (CONTROL, USER_DEFINED))
    scored = replace(scored, scores=np.where(listed, np.float32(-1000), scored.scores))  # as llama.cpp's converter
    rows = len(scored.pieces) + 3
    expected = arrays(scored, rows)
    assert arrays(read(written(tmp_path, scored)), rows) == expected
    assert expected["tokenizer.ggml.tokens"][-1] == f"[PAD{rows - 1}]"
    assert expected["tokenizer.ggml.scores"][-1] == -10000
    assert expected["tokenizer.ggml.token_type"][-3:] == [UNUSED] * 3
    assert arrays(read_gguf(expected), rows) == expected


def read_gguf(metadata: dict[str, Any]) -> Vocabulary:
    found = tok.vocabulary(metadata)
    assert found is not None
    return found


def test_scores_that_merges_imply_tokenise_alike(scored: Scored, tmp_path: Path) -> None:
    folder = written(tmp_path, scored)
    (folder / "tokenizer.model").unlink()
    found = read(folder)
    assert found.beyond == ()
    for text in TEXTS:
        assert found.tokenizer().encode(text) == scored.tokenizer().encode(text), text


def test_merges_that_scores_cannot_say_are_a_loss(spm: Callable[..., Scored], tmp_path: Path) -> None:
    folder = written(tmp_path, spm(True))
    (folder / "tokenizer.model").unlink()
    data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    del data["model"]["merges"][10]
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]  # as they were spelled before 2024
    (folder / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    assert "scores cannot" in tok.losses(read(folder), "gguf")[0]


def test_sentencepiece_reads_what_is_written(scored: Scored) -> None:
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_proto=tok.to_sentencepiece(scored))
    ours = scored.tokenizer()
    assert (theirs.bos_id(), theirs.eos_id(), theirs.unk_id(), theirs.pad_id()) == (1, 2, 0, -1)
    for text in TEXTS:
        ids = ours.encode(text, bos=False)
        assert theirs.encode(text) == ids, text
        assert theirs.decode(ids) == ours.decode(ids), text
    assert tok.losses(scored, "sentencepiece") == []


def test_a_model_that_calls_its_unknown_token_control(spm: Callable[..., Scored], tmp_path: Path) -> None:
    types = spm(False).types.copy()
    types[0] = CONTROL  # so does Gemma's GGUF
    vocabulary = replace(spm(False), types=types)
    model = protobuf.parse(tok.to_sentencepiece(vocabulary))
    assert model.types[0] == UNKNOWN
    assert read(written(tmp_path, vocabulary)).types[0] == CONTROL


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"roles": Roles()}, "one unknown token"),
        ({"pieces": "double"}, "share their text"),
        ({"types": "fewer bytes"}, "256 bytes"),
        ({"pieces": "broken"}, "no UTF-8"),
    ],
)
def test_what_sentencepiece_would_not_load(spm: Callable[..., Scored], changes: dict[str, Any], match: str) -> None:
    vocabulary = spm(True)
    if changes.get("pieces"):
        last = vocabulary.pieces[300] if changes["pieces"] == "double" else "\udcff"
        changes = {"pieces": pack([*vocabulary.pieces[:-1], last])}
    if "types" in changes:
        changes = {"types": np.where(np.arange(500) == 5, NORMAL, vocabulary.types)}
    if "roles" in changes:
        changes["types"] = np.where(vocabulary.types == UNKNOWN, CONTROL, vocabulary.types)
    broken = replace(vocabulary, **changes)
    with pytest.raises(TokenizerError, match=match):
        tok.to_sentencepiece(broken)
    assert any(match in each for each in tok.losses(broken, "hf"))


def test_pieces_in_an_unusual_layout_are_read_alike() -> None:
    text, score, kind = b"\x0a\x02ab", b"\x15\x00\x00\x80\xbf", b"\x18\x04"
    for fields in (text + score + kind, kind + score + text, score + text, text + kind):
        data = b"\x0a" + bytes([len(fields)]) + fields
        model = protobuf.parse(data)
        assert model.pieces == ["ab"]
        assert model.types == [4 if kind in fields else 1]
        assert model.scores == [-1.0 if score in fields else 0.0]


@given(st.integers(-1, 1 << 20), st.lists(st.tuples(st.text(max_size=200), st.integers(1, 6)), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_models_are_read_as_they_were_written(unk: int, pieces: list[tuple[str, int]]) -> None:
    texts, types = zip(*pieces, strict=True)
    model = protobuf.Model([*texts], [-float(i) for i in range(len(texts))], [*types], protobuf.BPE, 0, -1, -1, -1)
    model.add_dummy_prefix = unk % 2 == 0
    assert protobuf.parse(protobuf.serialise(model)) == model


# llama2.c


def test_llama2c_is_read_and_written(spm: Callable[..., Scored], tmp_path: Path) -> None:
    vocabulary = spm(True)
    data = tok.to_llama2c(vocabulary)
    (tmp_path / "tok.bin").write_bytes(data)
    found = tok.vocabulary(tmp_path / "tok.bin")
    assert isinstance(found, Scored)
    assert tok.losses(vocabulary, "llama2c") == []
    assert_same(vocabulary.tokenizer(), found.tokenizer())
    assert arrays(found) == arrays(vocabulary)
    assert tok.to_llama2c(found) == data
    assert data[4 : 4 + 8 + 5] == b"\0\0\0\0\5\0\0\0<unk>"


def test_llama2c_refuses_what_it_would_misread(spm: Callable[..., Scored], tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="3 to 258"):
        tok.to_llama2c(spm(True, INST))
    with pytest.raises(TokenizerError, match="BOS should be token 1"):
        tok.to_llama2c(replace(spm(True), roles=Roles(bos=2, eos=1, unk=0)))
    assert len(tok.losses(spm(False), "llama2c")) == 1
    (tmp_path / "tok.bin").write_bytes(tok.to_llama2c(spm(True))[:-2])
    with pytest.raises(TokenizerError, match="no whole"):
        tok.vocabulary(tmp_path / "tok.bin")


# Byte-level BPE


@pytest.mark.parametrize("name", CUTS)
def test_ranked_to_hf_and_back(name: str, tmp_path: Path) -> None:
    vocabulary = ranked(CUTS[name])
    folder = written(tmp_path, vocabulary)
    theirs = tok.load(folder)
    assert theirs is not None
    assert_same(vocabulary.tokenizer(), theirs, HARD)
    found = read(folder)
    assert isinstance(found, Ranked)
    assert tok.losses(found, "gguf") == tok.losses(found, "hf") == []
    again = arrays(found)
    assert again | {"tokenizer.ggml.pre": name} == arrays(replace(vocabulary, pre=name)) | {"tokenizer.ggml.pre": name}
    told = CUTS[str(again["tokenizer.ggml.pre"])]
    assert (told.patterns, told.nfc, told.whole) == (CUTS[name].patterns, CUTS[name].nfc, CUTS[name].whole)


def test_ranked_written_again_takes_the_name_it_came_with() -> None:
    metadata = arrays(ranked(CUTS["refact"], pre="refact"))
    assert arrays(read_gguf(metadata)) == metadata
    assert metadata["tokenizer.ggml.pre"] == "refact"


SPELLINGS = {
    # as Falcon's, SmolLM's, OLMo 2's and cl100k's own files say it
    "falcon": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Punctuation", "behavior": "Contiguous"},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False},
        ],
    },
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
    "dbrx": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": CL100K}, "behavior": "Removed", "invert": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    },
    "gpt-2": {"type": "ByteLevel", "add_prefix_space": False},
}
POSSESSIVE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize("name", SPELLINGS)
def test_cuts_are_told_however_a_file_spells_them(name: str) -> None:
    cut, beyond = cuts.read(SPELLINGS[name], None, False)
    assert cut is not None
    assert cuts.name_of(cut) == name
    assert beyond == ()


def test_cuts_are_told_by_what_they_do() -> None:
    assert cuts.name_of(Cut((POSSESSIVE,), whole=True)) == "llama-bpe"
    different = {each.patterns for each in CUTS.values()}
    assert len({cuts._words(patterns) for patterns in different}) == len(different)
    assert len({cuts._words((each,)) for each in (GPT2, CL100K, QWEN2, TEKKEN, O200K)}) == 5


@pytest.mark.parametrize("pattern", [r"\S+|\s+", "(", r"\p{Lu}+"])
def test_a_cut_without_a_name_is_refused(pattern: str) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.pre"):
        tok.to_gguf(ranked(Cut((pattern,))))
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.pre"):
        tok.to_gguf(replace(ranked(), cut=None))


def test_a_cut_that_gguf_has_otherwise_is_a_loss() -> None:
    vocabulary = ranked(Cut((TEKKEN,), nfc=True, whole=True))
    assert tok.to_gguf(vocabulary)[0]["tokenizer.ggml.pre"] == "tekken"
    assert tok.losses(vocabulary, "gguf") == [
        "GGUF has this way to cut words as 'tekken' only, which does not make texts NFC first."
    ]
    assert "takes words" not in str(tok.losses(ranked(Cut((GPT2,), whole=True)), "gguf"))
    assert "does not take words that are tokens whole" in str(tok.losses(ranked(Cut((GPT2,), whole=True)), "gguf"))


def test_what_tokenizer_json_says_beyond(tmp_path: Path) -> None:
    folder = written(tmp_path, ranked())
    data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    data["added_tokens"][0]["rstrip"] = True
    data["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    data["pre_tokenizer"]["pretokenizers"][-1]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    told = " ".join(tok.losses(read(folder), "gguf"))
    for part in ("rstrip", "Lowercase", "space before each text"):
        assert part in told
    assert tok.losses(read(folder), "hf") == []
    assert tok.to_hf(read(folder))["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()
    data["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    odd = read(folder)
    assert "Whitespace" in " ".join(odd.beyond)
    with pytest.raises(TokenizerError, match="Whitespace"):
        odd.tokenizer()


def test_tiktoken_reads_what_is_written(tmp_path: Path) -> None:
    import tiktoken

    vocabulary = ranked(Cut((CL100K,), whole=True))
    data = tok.to_tiktoken(vocabulary)
    ranks = {base64.b64decode(text): int(rank) for text, rank in map(bytes.split, data.splitlines())}
    theirs = tiktoken.Encoding("t", pat_str=CL100K, mergeable_ranks=ranks, special_tokens={})
    plain = replace(vocabulary, types=np.where(vocabulary.types == USER_DEFINED, CONTROL, vocabulary.types))
    for text in TEXTS:
        assert plain.tokenizer().encode(text, bos=False) == theirs.encode(text, disallowed_special=()), text
    (tmp_path / "t.tiktoken").write_bytes(data)
    ours = tok.from_tiktoken(tmp_path / "t.tiktoken", pattern=CL100K)
    assert ours.encode("Hello 你the") == theirs.encode("Hello 你the")
    assert len(tok.losses(vocabulary, "tiktoken")) == 2


def test_tiktoken_is_read_as_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.tiktoken").write_bytes(tok.to_tiktoken(ranked()))
    count = 256 + 14
    monkeypatch.setitem(tok.tiktoken.KNOWN, count, (CL100K, {"<s>": count, "<x>": count + 2}, "<s>", "<x>"))
    found = tok.vocabulary(tmp_path)
    assert isinstance(found, Ranked)
    assert_same(tok.from_tiktoken(tmp_path / "t.tiktoken"), found.tokenizer())
    assert arrays(found)["tokenizer.ggml.pre"] == "llama-bpe"
    assert found.types[count:].tolist() == [CONTROL, UNUSED, CONTROL]
    assert tok.losses(found, "tiktoken") == []
    assert tok.to_tiktoken(found) == tok.to_tiktoken(ranked())


def test_tekken_is_read_as_merges(tmp_path: Path) -> None:
    lines = tok.to_tiktoken(ranked()).splitlines()
    vocab = [{"rank": i, "token_bytes": line.split()[0].decode(), "token_str": None} for i, line in enumerate(lines)]
    config = {"pattern": TEKKEN, "default_num_special_tokens": 4, "default_vocab_size": 4 + len(vocab)}
    names = [{"token_str": text} for text in ("<unk>", "<s>", "</s>")]
    data = {"config": config, "vocab": vocab, "special_tokens": names}
    (tmp_path / "tekken.json").write_text(json.dumps(data))
    found, engine = read(tmp_path), tok.load(tmp_path)
    assert engine is not None
    assert_same(engine, found.tokenizer())
    assert arrays(found)["tokenizer.ggml.pre"] == "tekken"
    theirs = tok.load(written(tmp_path / "hf", found))
    assert theirs is not None
    assert_same(engine, theirs)
    with pytest.raises(TokenizerError, match="before or among"):
        tok.to_tiktoken(found)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"pieces": pack(["xx", *ranked().pieces[1:]])}, "not every byte"),
        ({"merges": pack([*reversed(ranked().merges)])}, "order"),
        ({"merges": pack(ranked().merges[:4]), "cut": CUTS["gpt-2"]}, "no merges make"),
    ],
)
def test_ranks_that_do_not_follow_from_merges_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(TokenizerError, match=match):
        tok.to_tiktoken(ranked(**changes))


# Roles and ends


def test_roles_survive_each_way(tmp_path: Path) -> None:
    vocabulary = ranked()
    end = vocabulary.of_types(CONTROL)["<|x|>"]
    roles = replace(vocabulary.roles, pad=end, adds_eos=True, ends=(end,))
    vocabulary = replace(vocabulary, roles=roles, named={"mask": end})
    metadata = arrays(vocabulary)
    assert metadata["tokenizer.ggml.eot_token_id"] == metadata["tokenizer.ggml.mask_token_id"] == end
    assert read_gguf(metadata).roles == roles
    folder = written(tmp_path, vocabulary, context=123, template="{{ x }}")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [roles.eos, end]}))
    found = read(folder)
    assert replace(found.roles, ends=(end,)) == roles
    assert found.named == {"mask": end}
    assert arrays(found)["tokenizer.ggml.eot_token_id"] == end
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["model_max_length"], config["bos_token"]) == (123, "<|begin|>")
    assert (folder / "chat_template.jinja").read_text() == "{{ x }}"


def test_ends_that_gguf_cannot_name_are_a_loss() -> None:
    vocabulary = replace(ranked(), roles=Roles(eos=1, ends=(2, 3, 4)))
    assert arrays(vocabulary)["tokenizer.ggml.eom_token_id"] == 3
    assert vocabulary.pieces[4] in tok.losses(vocabulary, "gguf")[0]


def test_config_json_names_roles_that_the_tokenizer_does_not(tmp_path: Path) -> None:
    folder = written(tmp_path, replace(ranked(), roles=Roles()))
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 3, "eos_token_id": [4], "pad_token_id": 10**6}))
    metadata = arrays(read(folder))
    assert metadata["tokenizer.ggml.bos_token_id"] == 3
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert "tokenizer.ggml.eos_token_id" not in metadata
    assert "tokenizer.ggml.padding_token_id" not in metadata


def test_original_files_are_kept_but_for_code_and_template(tmp_path: Path) -> None:
    folder = written(tmp_path, ranked())
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"auto_map": {}, "chat_template": "old"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"auto_map": {"AutoTokenizer": ["x.X", None]}}))
    files = tok.to_hf(read(folder), template="new")
    kept = json.loads(files["tokenizer_config.json"])
    assert not kept.keys() & {"auto_map", "chat_template"}
    assert files["chat_template.jinja"] == b"new"
    assert files["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()
    assert "chat_template" in json.loads(tok.to_hf(read(folder))["tokenizer_config.json"])


# Any and none


def test_sources_that_hold_no_tokenizer(tmp_path: Path) -> None:
    assert tok.vocabulary(tmp_path) is None
    assert tok.vocabulary({"general.architecture": "llama"}) is None
    with pytest.raises(ModelNotFound):
        tok.vocabulary(tmp_path / "none")
    (tmp_path / "x.txt").touch()
    with pytest.raises(TokenizerError, match="no name"):
        tok.vocabulary(tmp_path / "x.txt")


def test_a_unigram_model_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="only BPE"):
        tok.vocabulary(tmp_path)


def test_a_vocabulary_of_the_other_kind_is_refused(spm: Callable[..., Scored]) -> None:
    for write in (tok.to_sentencepiece, tok.to_llama2c):
        with pytest.raises(TokenizerError, match="byte-level BPE"):
            write(ranked())
    with pytest.raises(TokenizerError, match="SentencePiece BPE"):
        tok.to_tiktoken(spm(True))
    for form in FORMS:
        assert isinstance(tok.losses(ranked(), form) + tok.losses(spm(True), form), list)
    with pytest.raises(OptionError, match="gguf, hf"):
        tok.losses(ranked(), "onnx")
    with pytest.raises(TokenizerError, match="rows"):
        tok.to_gguf(ranked(), rows=5)


def test_pieces_that_share_a_score_or_a_text_are_a_loss(spm: Callable[..., Scored]) -> None:
    vocabulary = spm(True)
    made = [i for i in np.flatnonzero(vocabulary.types == NORMAL) if len(set(vocabulary.pieces[i])) > 1]
    scores = vocabulary.scores.copy()
    scores[made[0]] = scores[made[1]]
    assert "score of another" in tok.losses(replace(vocabulary, scores=scores), "hf")[0]
    pieces = [*vocabulary.pieces]
    pieces[made[0]] = pieces[made[1]]
    assert "share their text" in tok.losses(replace(vocabulary, pieces=pack(pieces)), "hf")[0]


# Merges


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=12, unique=True))
@settings(max_examples=100, deadline=None)
def test_merges_and_orders_follow_from_each_other(pieces: list[str]) -> None:
    known = {*pieces, "a", "b"}
    merges = by_score(pieces, known)
    order = order_of(merges)
    assert order == [piece for piece in pieces if any(piece == left + right for left, right in merges)]
    assert by_score(order, known) == merges
    assert told_by_order(merges, known)
    assert not told_by_order([*merges, *merges[:1]], known) or not merges


def test_merges_by_rank_stand_as_in_llama_3s_file() -> None:
    ranks = {"Ġ": 0, "ĠĠ": 1, "ĠĠĠ": 2, "ĠĠĠĠ": 3}
    last = [("Ġ", "ĠĠĠ"), ("ĠĠ", "ĠĠ"), ("ĠĠĠ", "Ġ")]
    assert by_rank(ranks) == [("Ġ", "Ġ"), ("Ġ", "ĠĠ"), ("ĠĠ", "Ġ"), *last]


# transformers, and real vocabularies


def test_transformers_reads_what_is_written(spm: Callable[..., Scored], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    made: dict[str, Vocabulary] = {name: spm(*KINDS[name]) for name in ("llama", "prefixed symbols", "gemma")}
    made |= {"llama 3": ranked(), "qwen": replace(ranked(CUTS["qwen2"]), roles=Roles(eos=1))}
    for name, vocabulary in made.items():
        folder = written(tmp_path / name.replace(" ", "_"), vocabulary, context=99)
        plain = transformers.AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        ours = vocabulary.tokenizer()
        alone = set(vocabulary.of_types(USER_DEFINED))
        for text in HARD:
            if text not in alone and "<unk>" not in text:
                assert plain(text).input_ids == ours.encode(text), (name, text)
                assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text, bos=False, special=True)
        assert theirs(CHAT, add_special_tokens=False).input_ids == ours.encode(CHAT, bos=False, special=True)
        assert (len(theirs), theirs.model_max_length) == (ours.size, 99)
        assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos, ours.roles.eos)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3:270m", "smollm2:135m-instruct"])
def test_real_gguf_to_hf_and_back(name: str, real_model: Callable[[str], Path], tmp_path: Path) -> None:
    path = real_model(name)
    metadata = gguf.read(path if path.is_file() else one(path, "*.gguf")).metadata
    vocabulary = tok.vocabulary(metadata)
    assert vocabulary is not None
    assert tok.losses(vocabulary, "hf") == tok.losses(vocabulary, "gguf") == []
    folder = written(tmp_path, vocabulary)
    again, _ = tok.to_gguf(read(folder), len(vocabulary.pieces))
    for key in ("model", "pre", "tokens", "scores", "token_type", "merges", "bos_token_id", "eos_token_id"):
        ours, theirs = again.get(f"tokenizer.ggml.{key}"), metadata.get(f"tokenizer.ggml.{key}")
        assert np.array_equal(ours, theirs) if isinstance(theirs, np.ndarray) else ours == theirs, key
    engine = tok.load(folder)
    assert engine is not None
    assert_same(vocabulary.tokenizer(), engine)


NAMES = "command-r falcon gpt-2 llama-bpe llama-spm mpt phi-3 qwen2 qwen35 refact starcoder".split()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_cases_after_a_round_trip(name: str, tmp_path: Path) -> None:
    path = one(unpacked("llama_cpp"), f"models/ggml-vocab-{name}.gguf")
    vocabulary = tok.vocabulary(gguf.read(path).metadata)
    assert vocabulary is not None
    again = tok.from_gguf(tok.to_gguf(read(written(tmp_path, vocabulary)))[0])
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    for text, ids in zip(texts, Path(f"{path}.out").read_text("utf-8").split("\n"), strict=False):
        assert again.encode(text, bos=False) == [int(each) for each in ids.split()], text


FILES = {
    "maxtext": ["tokenizer.gemma3", "tokenizer.llama2", "tokenizer.mistral-v3", "tokenizer_llama3.tiktoken"],
    "mistral": ["mistral_instruct_tokenizer_241114.model.v7", "tekken_240911.json"],
    "olmo": ["allenai_gpt-neox-olmo-dolma-v1_5.json", "allenai_dolma2.json"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in FILES.items() for name in names])
def test_real_files_by_way_of_hf_and_gguf(package: str, name: str, tmp_path: Path) -> None:
    kinds = {".tiktoken": "t.tiktoken", ".json": "tekken.json" if "tekken" in name else "tokenizer.json"}
    source = tmp_path / "source"
    source.mkdir()
    path = source / kinds.get(Path(name).suffix, "tokenizer.model")
    shutil.copy(one(unpacked(package), name), path)
    vocabulary = replace(read(source), originals={})
    ours, theirs = tok.load(source), tok.load(written(tmp_path / "hf", vocabulary))
    assert ours is not None
    assert theirs is not None
    texts = [text for text in TEXTS if "<unk>" not in text]
    assert_same(ours, theirs, texts)
    assert_same(ours, tok.from_gguf(tok.to_gguf(vocabulary)[0]), texts)
    if name.endswith(".tiktoken"):
        assert tok.to_tiktoken(vocabulary).split() == path.read_bytes().split()
    assert BYTE not in vocabulary.types or isinstance(vocabulary, Scored)
