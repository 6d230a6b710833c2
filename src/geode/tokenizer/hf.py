"""What the tokenizer.json of a Hugging Face directory consists of.

Which files a directory holds is files.py's business; how the library `tokenizers` reads this one is rust.py's.

    model BPE with ByteLevel          Ranked: its merges, its cut
    model BPE that spells spaces ▁    Scored: scores of a .model beside it, or such as give the same merges
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TokenizerError
from ..strings import pack
from . import cuts, protobuf
from .base import Roles
from .files import LISTED, MEANT_CONTROL, PADDED, configuration, content_of, is_sentencepiece
from .merges import order_of, told_by_order
from .rust import Rust
from .spm import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED
from .vocabulary import Ranked, Scored, Vocabulary

FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json tokenizer.model vocab.json "
    "merges.txt chat_template.jinja chat_template.json"
).split()


def describe(directory: Path, rust: Rust) -> Vocabulary:
    """The vocabulary of a directory whose tokenizer.json `rust` has read.

    Raises TokenizerError for a model other than BPE. What BPE has besides is kept as sentences in `beyond`.
    """
    data = json.loads((directory / "tokenizer.json").read_bytes())
    model = data["model"]
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("merges"), list):
        raise TokenizerError(
            f"{directory / 'tokenizer.json'} holds a {model.get('type')} model, and only BPE can be written in other "
            "formats. Keep this tokenizer as it is."
        )
    spelling = [*cuts.steps(data.get("pre_tokenizer"), "pretokenizers"), *cuts.steps(data.get("decoder"), "decoders")]
    bytewise = any(step.get("type") == "ByteLevel" for step in spelling)
    found: Vocabulary = _ranked(data, rust) if bytewise else _scored(data, rust, directory)
    beyond = (*found.beyond, *_swallowing(rust), *_odd(model))
    return completed(replace(found, beyond=beyond, named=_named(rust, configuration(directory))), directory)


def completed(found: Vocabulary, directory: Path) -> Vocabulary:
    """With the roles that only config.json names, and with the files themselves."""
    return replace(
        found,
        roles=_roles(found.roles, directory, len(found.pieces)),
        originals={name: directory / name for name in FILES if (directory / name).is_file()},
    )


def _numbered(rust: Rust, model: Mapping[str, Any]) -> tuple[list[str], np.ndarray]:
    """Text and type of every id, as llama.cpp's converter types them; ids that nothing has are unused."""
    pieces = [f"[PAD{i}]" for i in range(rust.size)]
    types = np.full(rust.size, UNUSED, np.int32)
    for text, token in model["vocab"].items():
        pieces[token] = text
        types[token] = UNUSED if re.fullmatch(r"\[PAD\d+\]", text) else NORMAL
    if (unknown := model["vocab"].get(model.get("unk_token"))) is not None:
        types[unknown] = UNKNOWN
    for token, each in rust.added.items():
        pieces[token] = each.content
        types[token] = CONTROL if each.special or MEANT_CONTROL.fullmatch(each.content) else USER_DEFINED
    return pieces, types


# Byte-level BPE


def _ranked(data: Mapping[str, Any], rust: Rust) -> Ranked:
    model = data["model"]
    pieces, types = _numbered(rust, model)
    cut, beyond = cuts.read(data.get("pre_tokenizer"), data.get("normalizer"), bool(model.get("ignore_merges")))
    merges = pack(each if isinstance(each, str) else " ".join(map(_unspaced, each)) for each in model["merges"])
    return Ranked(pieces=pack(pieces), types=types, roles=rust.roles, merges=merges, cut=cut, beyond=beyond)


def _unspaced(part: str) -> str:
    return part.replace(" ", "Ġ")


# SentencePiece's


def _scored(data: Mapping[str, Any], rust: Rust, directory: Path) -> Scored:
    model = data["model"]
    pieces, types = _numbered(rust, model)
    if model.get("byte_fallback"):
        types[[i for i, text in enumerate(pieces) if re.fullmatch("<0x[0-9A-F]{2}>", text)]] = BYTE
    for token in np.flatnonzero(types == USER_DEFINED).tolist():
        pieces[token] = pieces[token].replace(SPACE, " ")
    listed = _listed(directory, len(pieces))
    scores = np.where(types == UNUSED, PADDED, np.where(np.isin(types, (CONTROL, USER_DEFINED)), LISTED, 0.0))
    beside = _model_beside(directory, pieces, listed)
    beyond = _score_by_merges(scores, pieces, types, model["merges"]) if beside is None else ()
    if beside is not None:
        _score_by_model(scores, types, beside, listed)
    prefix, more = _prefix(data, any(SPACE in text[1:] for text in pieces))
    return Scored(
        pieces=pack(pieces),
        types=types,
        roles=rust.roles,
        scores=scores.astype(np.float32),
        prefix=prefix,
        beyond=(*beyond, *more),
    )


def _score_by_merges(scores: np.ndarray, pieces: list[str], types: np.ndarray, merges: list[Any]) -> tuple[str, ...]:
    """Scores by which pieces join as by the merges: 0, -1, -2 … in the order in which merges first make them."""
    known = {text: i for i, (text, kind) in enumerate(zip(pieces, types.tolist(), strict=True)) if kind == NORMAL}
    halves = (each.split(" ", 1) if isinstance(each, str) else each for each in merges)
    pairs = [(left, right) for left, right in halves]
    apt = [pair for pair in pairs if pair[0] in known and pair[1] in known and pair[0] + pair[1] in known]
    made = dict.fromkeys([*order_of(apt), *known])
    scores[[known[text] for text in made]] = -np.arange(len(made))
    if told_by_order(apt, known):
        return ()
    return ("Its merges follow no order of the pieces that they make, so that scores cannot say the same.",)


def _score_by_model(scores: np.ndarray, types: np.ndarray, model: protobuf.Model, listed: list[int]) -> None:
    """The scores of a .model, and its types where a configuration does not list the token."""
    count = len(model.pieces)
    scores[:count] = model.scores
    scores[listed] = LISTED
    own = np.array(model.types, np.int32)
    silent = np.isin(own, (UNKNOWN, UNUSED, BYTE))
    silent[[token for token in listed if token < count]] = False
    types[:count][silent] = own[silent]


def _listed(directory: Path, size: int) -> list[int]:
    """The ids of the tokens in `added_tokens_decoder`."""
    found = dict(configuration(directory).get("added_tokens_decoder") or {})
    return [int(token) for token in found if str(token).isdigit() and int(token) < size]


def _model_beside(directory: Path, pieces: list[str], listed: list[int]) -> protobuf.Model | None:
    """The tokenizer.model, where it has the same pieces but for those that a configuration replaces."""
    path = directory / "tokenizer.model"
    if not path.is_file() or not is_sentencepiece(path):
        return None
    model = protobuf.parse(path.read_bytes())
    pairs = zip(pieces, model.pieces, strict=False)
    other = {i for i, (ours, own) in enumerate(pairs) if ours != own and ours.replace(" ", SPACE) != own}
    fits = model.model_type == protobuf.BPE and len(model.pieces) <= len(pieces) and other.issubset(listed)
    return model if fits else None


def _prefix(data: Mapping[str, Any], inside: bool) -> tuple[bool, tuple[str, ...]]:
    """Whether a space is put before texts; and what else the file does. `inside`: pieces hold spaces within."""
    prefix = False
    others: list[str] = []
    parts = [
        *cuts.steps(data.get("normalizer"), "normalizers"),
        *cuts.steps(data.get("pre_tokenizer"), "pretokenizers"),
    ]
    for step in parts:
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                prefix = True
            case {"type": "Replace", "pattern": {"Regex": str(pattern)}, "content": "▁"} if pattern.startswith(r"\A"):
                prefix = True  # write_hf.py's own
            case {"type": "Metaspace"}:
                scheme = step.get("prepend_scheme", "always")
                prefix |= scheme != "never" and bool(step.get("add_prefix_space", True))
                others += ["Metaspace, which splits at spaces"] if inside and step.get("split", True) else []
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                continue
            case {"type": "Split", "pattern": {"String": " "}}:
                continue  # Gemma's, which finds no space once they are ▁
            case _:
                others.append(str(step.get("type")))
    return prefix, tuple(f"It treats texts by {each}, which only tokenizer.json says." for each in others)


# Roles, and what has no place


def _roles(roles: Roles, directory: Path, size: int) -> Roles:
    """With the ids of config.json for roles that the tokenizer's own files do not name, as llama.cpp's converter."""
    path = directory / "config.json"
    config = json.loads(path.read_bytes()) if path.is_file() else {}

    def role(name: str, known: int | None) -> int | None:
        token = config.get(f"{name}_token_id")
        return token if known is None and isinstance(token, int) and 0 <= token < size else known

    return replace(roles, bos=role("bos", roles.bos), eos=role("eos", roles.eos), pad=role("pad", roles.pad))


def _named(rust: Rust, config: Mapping[str, Any]) -> dict[str, int]:
    tokens = {each.content: token for token, each in rust.added.items()}
    names = {"mask": "mask_token", "cls": "cls_token", "seperator": "sep_token"}
    found = {name: tokens.get(content_of(config.get(key))) for name, key in names.items()}
    return {name: token for name, token in found.items() if token is not None}


def _swallowing(rust: Rust) -> list[str]:
    greedy = [each.content for each in rust.added.values() if each.lstrip or each.rstrip or each.single_word]
    if not greedy:
        return []
    return [
        f"{len(greedy)} added tokens, {greedy[0]!r} among them, take the spaces beside them or stand as whole words "
        "only (lstrip, rstrip, single_word), which only tokenizer.json says."
    ]


def _odd(model: Mapping[str, Any]) -> list[str]:
    keys = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    return [f"Its model has {', '.join(keys)}, which only tokenizer.json says."] if keys else []
