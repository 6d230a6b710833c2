"""keras_hub's tokenizers: a vocabulary <-> the class that tokenizer.json names and the files among a preset's assets.

Networks are not known here. Each class finds its first and last token by fixed texts and cuts words in one way, so not
every vocabulary has one: `lacking` says why.

The truth is keras_hub/src/tokenizers and keras_hub/src/models/*/*_tokenizer.py in github.com/keras-team/keras-hub.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex

from ..errors import FormatError, TokenizerError
from ..strings import Index, pack
from ..tokenizer import Ranked, Roles, Scored, Vocabulary, cuts, to_sentencepiece
from ..tokenizer.files import LOOKS_CONTROL, describe_model
from ..tokenizer.patterns import CUTS, Cut
from ..tokenizer.spm import CONTROL, NORMAL, UNUSED, USER_DEFINED
from ..tokenizer.write_files import unfit_for_sentencepiece
from .base import read_json, read_text

ASSETS = Path("assets", "tokenizer")


@dataclass(frozen=True)
class Words:
    """One tokenizer class of keras_hub. The class finds its tokens with a role by these texts and no others.

    `cut` is the name in `tokenizer.patterns` of how the family's models cut words, "" for SentencePiece.
    """

    name: str
    module: str
    start: str | None
    end: str
    pad: str | None = None
    cut: str = ""
    needs: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    remark: str = ""


LLAMA3, TEKKEN = "Llama3Tokenizer", "MistralTekkenTokenizer"
_CUT = "KerasHub cuts byte-level texts as Llama 3 does (byte_pair_tokenizer.py), so that {} get other ids from it."
_UNPLACED = "What it generates differs: its cached keys rotate as if each stood first (gpt_neo_x_attention.py)."
WORDS = {
    "Gemma": (Words("GemmaTokenizer", "gemma", "<bos>", "<eos>", "<pad>"),),
    "Gemma3": (Words("Gemma3Tokenizer", "gemma3", "<bos>", "<eos>", "<pad>", arguments={"has_vision_tokens": False}),),
    "Llama": (Words("LlamaTokenizer", "llama", "<s>", "</s>"),),
    "Llama3": (
        Words(
            LLAMA3,
            "llama3",
            "<|begin_of_text|>",
            "<|end_of_text|>",
            cut="llama-bpe",
            needs=("<|start_header_id|>", "<|end_header_id|>"),
        ),
    ),
    "Mistral": (
        Words("MistralTokenizer", "mistral", "<s>", "</s>"),
        Words(TEKKEN, "mistral", "<s>", "</s>", cut="tekken"),
    ),
    "GPTNeoX": (
        Words(
            *("GPTNeoXTokenizer", "gpt_neo_x", "<|endoftext|>", "<|endoftext|>"),
            cut="olmo",
            remark=f"{_CUT.format('numbers, contractions and line ends')} {_UNPLACED}",
        ),
    ),
    "Qwen": (Words("QwenTokenizer", "qwen", None, "<|endoftext|>", cut="qwen2", remark=_CUT.format("numbers")),),
    "Qwen3": (
        Words(
            *("Qwen3Tokenizer", "qwen3", None, "<|im_end|>", "<|endoftext|>"),
            cut="qwen2",
            remark=_CUT.format("numbers"),
        ),
    ),
}
"""By the stem of the backbone."""


def words_for(stem: str, vocabulary: Vocabulary) -> Words | None:
    """The tokenizer class that a backbone has for this kind of vocabulary; None where it has none."""
    ranked = isinstance(vocabulary, Ranked)
    return next((words for words in WORDS[stem] if bool(words.cut) == ranked), None)


def lacking(words: Words | None, vocabulary: Vocabulary) -> str:
    """Why a class of keras_hub cannot hold a vocabulary; "" where it can."""
    if words is None:
        return "this backbone of KerasHub has no tokenizer of its kind."
    known = Index(vocabulary.pieces)
    wanted = [text for text in (*_first_and_last(words, vocabulary), words.pad, *words.needs) if text]
    if absent := [text for text in wanted if known.find(text) is None]:
        return f"KerasHub's {words.name} needs the tokens {', '.join(absent)}, which it has not."
    if isinstance(vocabulary, Ranked) and not _cuts_alike(words, vocabulary.cut):
        return f"KerasHub's {words.name} cuts words in another way."
    if isinstance(vocabulary, Scored) and (problem := unfit_for_sentencepiece(vocabulary)):
        return f"SentencePiece would not load it: {problem}."
    return ""


def remarks(words: Words, vocabulary: Vocabulary) -> list[str]:
    """What KerasHub's class does to texts that the model's own tokenizer does not, and the other way round."""
    found = [*vocabulary.beyond, *filter(None, [words.remark])]
    first, _ = _first_and_last(words, vocabulary)
    if first and not vocabulary.roles.adds_bos:
        found.append(f"KerasHub's generate puts {first} before every text, and this tokenizer does not.")
    return found


def _cuts_alike(words: Words, cut: Cut | None) -> bool:
    if words.name == TEKKEN:  # which is told how
        return cut is not None and len(cut.patterns) == 1
    return cut is not None and cuts.nearest_name(cut) == cuts.nearest_name(CUTS[words.cut])


def _first_and_last(words: Words, vocabulary: Vocabulary) -> tuple[str | None, str]:
    """The texts of the first and the last token. Llama 3's class can be told them; the others have their own."""
    if words.name != LLAMA3:
        return words.start, words.end
    roles = vocabulary.roles
    return vocabulary.text(roles.bos) or words.start, vocabulary.text(roles.eos) or words.end


# Writing


def write_assets(words: Words, vocabulary: Vocabulary, folder: Path) -> dict[str, Any]:
    """Files of the vocabulary; returns the arguments of the tokenizer's class."""
    folder.mkdir(parents=True)
    arguments = {"config_file": "tokenizer.json", "sequence_length": None, **words.arguments}
    if isinstance(vocabulary, Ranked):
        return arguments | {"add_prefix_space": False} | _write_ranked(words, vocabulary, folder)
    assert isinstance(vocabulary, Scored)
    (folder / "vocabulary.spm").write_bytes(to_sentencepiece(_findable(vocabulary)))
    return arguments | {"proto": None, "add_bos": False, "add_eos": False}


def _findable(vocabulary: Scored) -> Scored:
    """Turns' and images' tokens as Gemma's own .model has them: SentencePiece finds user-defined ones in a text."""
    roles = vocabulary.roles
    types = vocabulary.types.copy()
    kept = {roles.bos, roles.eos, roles.pad, roles.unk}
    control = vocabulary.of_types(CONTROL).items()
    types[[i for text, i in control if i not in kept and LOOKS_CONTROL.fullmatch(text)]] = USER_DEFINED
    return dataclasses.replace(vocabulary, types=types)


def _write_ranked(words: Words, vocabulary: Ranked, folder: Path) -> dict[str, Any]:
    unused = set(vocabulary.of_types(UNUSED).values())
    ids = {text: i for i, text in enumerate(vocabulary.pieces) if i not in unused}
    (folder / "vocabulary.json").write_text(json.dumps(ids), encoding="utf-8")
    lines = "".join(f"{merge}\n" for merge in vocabulary.merges)
    (folder / "merges.txt").write_text(lines, encoding="utf-8", newline="\n")
    if words.name == TEKKEN:  # whose class lists its unsplittable tokens itself
        return {"split_pattern": vocabulary.cut.patterns[0] if vocabulary.cut else None}
    start, end = _first_and_last(words, vocabulary)
    told = {"bos_token": start, "eos_token": end} if words.name == LLAMA3 else {}
    return {"unsplittable_tokens": list(vocabulary.of_types(CONTROL, USER_DEFINED)), **told}


# Reading


def read_vocabulary(folder: Path, stem: str) -> Vocabulary | None:
    """The vocabulary among a preset's assets, `stem` being its backbone's; None where there is none.

    Raises TokenizerError, FormatError.
    """
    assets = folder / ASSETS
    scored = (assets / "vocabulary.spm").is_file()
    if not scored and not (assets / "vocabulary.json").is_file():
        return None
    values = read_json(folder / "tokenizer.json")
    arguments = object_in(values, "config")
    words = _words_named(str(values.get("registered_name")), stem, scored, folder)
    before = object_in(read_json(folder / "preprocessor.json"), "config")
    adds_bos = before.get("add_start_token", True) is True
    if scored:
        found: Vocabulary = describe_model(assets / "vocabulary.spm", {"add_bos_token": adds_bos})
    else:
        found = _read_ranked(words, arguments, assets)
    return dataclasses.replace(found, roles=_roles(words, arguments, found, adds_bos))


def object_in(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _words_named(named: str, stem: str, scored: bool, folder: Path) -> Words:
    """The class that tokenizer.json names; without the file, the backbone's usual one."""
    every = [words for each in WORDS.values() for words in each]
    name = named.rpartition(">")[2]
    usual = [words for words in WORDS.get(stem, ()) if bool(words.cut) != scored]
    found = [words for words in every if words.name == name] or (usual if named == "None" else [])
    if not found or bool(found[0].cut) == scored:
        raise TokenizerError(
            f"{folder / 'tokenizer.json'} names the class {named[:100]!r}, and the vocabulary in {ASSETS.as_posix()} "
            f"is none of its kind. Known are {', '.join(words.name for words in every)}."
        )
    return found[0]


def _roles(words: Words, arguments: Mapping[str, Any], vocabulary: Vocabulary, adds_bos: bool) -> Roles:
    known = Index(vocabulary.pieces)

    def find(text: Any) -> int | None:
        return known.find(text) if isinstance(text, str) and text.isprintable() else None

    bos = find(arguments.get("bos_token", words.start))
    eos, pad = find(arguments.get("eos_token", words.end)), find(words.pad)
    old = vocabulary.roles
    return Roles(
        bos=bos,
        eos=eos,
        pad=old.pad if pad is None else pad,
        unk=old.unk,
        adds_bos=adds_bos and bos is not None,
    )


def _read_ranked(words: Words, arguments: Mapping[str, Any], assets: Path) -> Ranked:
    ids = _checked_ids(read_json(assets / "vocabulary.json"), assets / "vocabulary.json")
    size = 1 + max(ids.values(), default=-1)
    pieces, types = [f"[PAD{i}]" for i in range(size)], np.full(size, UNUSED, np.int32)
    for text, token in ids.items():
        pieces[token], types[token] = text, NORMAL
    for text, kind in _apart(words, arguments, ids).items():
        types[ids[text]] = kind
    lines = (read_text(assets / "merges.txt") or "").split("\n")
    merges = [line.rstrip() for line in lines if line.rstrip() and not line.startswith("#version")]
    if wrong := next((line for line in merges if line.count(" ") != 1), None):
        raise TokenizerError(f"{assets / 'merges.txt'} has the line {wrong[:80]!r}; two pieces were expected.")
    cut = _cut(words, arguments)
    try:
        return Ranked(pieces=pack(pieces), types=types, roles=Roles(), merges=pack(merges), cut=cut)
    except UnicodeEncodeError:
        raise TokenizerError(f"{assets / 'vocabulary.json'} holds a token that is no Unicode text.") from None


def _checked_ids(values: dict[str, Any], path: Path) -> dict[str, int]:
    most = len(values) + (1 << 16)
    wrong = next((text for text, i in values.items() if type(i) is not int or not 0 <= i < most), None)
    if wrong is not None:
        raise FormatError(f"{path} gives the token {wrong[:80]!r} the id {values[wrong]!r:.40}; expected 0 to {most}.")
    if len(set(values.values())) != len(values):
        raise FormatError(f"{path} gives one id to several tokens. Get the file again from its source.")
    return values


def _apart(words: Words, arguments: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, int]:
    """Tokens that no word is built from, with their types: those with a role, those that look so, and those listed."""
    listed = arguments.get("unsplittable_tokens")
    listed = [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []
    named = (words.start, words.end, words.pad, *words.needs, arguments.get("bos_token"), arguments.get("eos_token"))
    found = dict.fromkeys((text for text in listed if text in ids), USER_DEFINED)
    found |= dict.fromkeys((text for text in named if isinstance(text, str) and text in ids), CONTROL)
    return found | dict.fromkeys((text for text in ids if LOOKS_CONTROL.fullmatch(text)), CONTROL)


def _cut(words: Words, arguments: Mapping[str, Any]) -> Cut:
    """How the model's own tokenizer cuts words: that of its family, or the pattern that Tekken's class is told."""
    pattern = arguments.get("split_pattern")
    usual = CUTS[words.cut]
    if not isinstance(pattern, str) or words.name != TEKKEN:
        return usual
    try:
        regex.compile(pattern)
    except regex.error as problem:
        raise TokenizerError(f"tokenizer.json has a split_pattern that is no regular expression: {problem}.") from None
    return dataclasses.replace(usual, patterns=(pattern,))
