"""The tokenizer that a directory or a file holds.

How each engine works is not known here, only which files name which one.

    tokenizer.json                       rust.py
    tokenizer.model, *.model, *.model.v3 spm.py, or ranks (Llama 3 names a tiktoken file so)
    *.tiktoken, tekken.json              bytebpe.py
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelNotFound, TokenizerError
from ..strings import pack
from . import protobuf, tiktoken
from .base import Roles, Tokenizer
from .spm import CONTROL, SPACE, UNUSED, USER_DEFINED
from .vocabulary import Scored

if TYPE_CHECKING:
    from .rust import Rust

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")

LISTED, PADDED = -1000.0, -10000.0
"""Scores that llama.cpp's converter gives to tokens that a configuration lists, and to rows that hold none."""

# Gemma's .model calls its control tokens user-defined, and sentencepiece would find them in what a user types.
# The lists are those of `does_token_look_special` in llama.cpp's converter and of Gemma's turns and images.
MEANT_CONTROL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<(pad|mask|2mass)>|\[@BOS@\]")
LOOKS_CONTROL = re.compile(MEANT_CONTROL.pattern + r"|<(start|end)_of_(turn|image)>|<\|?turn\|?>")


def load(directory: str | os.PathLike[str]) -> Tokenizer | None:
    """The tokenizer of a checkpoint's directory, or None when it holds none.

    tokenizer.json comes first, then tokenizer.model, *.tiktoken and tekken.json. Raises TokenizerError for a file that
    is damaged or of a kind that is not understood.
    """
    directory = Path(directory)
    path = chosen(directory)
    if path is None:
        return None
    if path.name == "tokenizer.json":
        return of_json(directory)
    if path.name == "tekken.json":
        return tiktoken.tekken(path).tokenizer()
    return describe_directory(path).tokenizer() if is_sentencepiece(path) else from_tiktoken(path)


def chosen(directory: Path) -> Path | None:
    """The file that says how a directory's model tokenises, None where there is none."""
    names = [directory / "tokenizer.json", *_models(directory), *sorted(directory.glob("*.tiktoken"))]
    for path in (*names, directory / "tekken.json"):
        if path.is_file():
            return path
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        raise TokenizerError(
            f"{directory} holds vocab.json and merges.txt, which do not say how to cut words. Write a tokenizer.json "
            "beside them: AutoTokenizer.from_pretrained(directory).save_pretrained(directory) of transformers does."
        )
    return None


def of_json(directory: Path) -> Rust:
    """The engine of a directory's tokenizer.json."""
    from .rust import Rust

    config = configuration(directory)
    path = directory / "tokenizer.json"
    return Rust(path, _names(config), _generation_ends(directory), _added(directory, config))


def is_sentencepiece(path: Path) -> bool:
    """Whether a *.model or *.tiktoken is SentencePiece's, and not ranks."""
    with path.open("rb") as file:
        return path.suffix != ".tiktoken" and not tiktoken.is_ranks(file.read(512))


def from_sentencepiece(path: str | os.PathLike[str], *, bos: bool = True, eos: bool = False) -> Tokenizer:
    """The tokenizer of a SentencePiece .model of the kind BPE. The file does not say whether BOS and EOS are added.

    Raises TokenizerError for a unigram model, and for one that normalises text: their tokenizer.json does it exactly.
    """
    return describe_model(Path(path), {"add_bos_token": bos, "add_eos_token": eos}).tokenizer()


def from_tiktoken(
    path: str | os.PathLike[str],
    *,
    pattern: str | None = None,
    control: Mapping[str, int] | None = None,
    bos: str | None = None,
    eos: str | None = None,
) -> Tokenizer:
    """The tokenizer of tiktoken ranks, one "base64 rank" a line.

    `pattern` cuts words, `control` are the control tokens; `bos`, the text of one of them, is added before texts. The
    file holds none of these: left out, they are those of Llama 3 or Qwen, told by the number of ranks.
    """
    return tiktoken.ranks(_there(Path(path)), pattern, control, bos, eos).tokenizer()


def describe_directory(path: Path) -> Scored:
    """What the tokenizer of a .model consists of, with what the files beside it say."""
    config = configuration(path.parent)
    return describe_model(path, config, _added(path.parent, config), _generation_ends(path.parent))


def describe_model(
    path: Path,
    config: Mapping[str, Any],
    added: Sequence[tuple[int, str, bool]] = (),
    ends: tuple[int, ...] = (),
) -> Scored:
    """What the tokenizer of a .model consists of, with the tokens (id, text, whether control) that other files add."""
    try:
        model = protobuf.parse(_there(path).read_bytes())
        _check(model)
    except TokenizerError as problem:
        raise TokenizerError(f"{path}: {problem}") from None
    for token, text, special in sorted(added):
        _put(model, token, text, CONTROL if special else USER_DEFINED)
    kinds = zip(model.types, model.pieces, strict=True)
    types = [CONTROL if kind == USER_DEFINED and LOOKS_CONTROL.fullmatch(piece) else kind for kind, piece in kinds]
    bos, eos, pad, unk = (
        token if token >= 0 else None for token in (model.bos_id, model.eos_id, model.pad_id, model.unk_id)
    )
    roles = Roles(
        bos=bos,
        eos=eos,
        pad=pad,
        unk=unk,
        adds_bos=bool(config.get("add_bos_token", True)),
        adds_eos=bool(config.get("add_eos_token", False)),
        ends=ends,
    )
    spelt = zip(model.pieces, types, strict=True)
    return Scored(
        pieces=pack(piece.replace(SPACE, " ") if kind == USER_DEFINED else piece for piece, kind in spelt),
        scores=np.array(model.scores, np.float32),
        types=np.array(types, np.int32),
        roles=roles,
        prefix=model.add_dummy_prefix,
    )


def _check(model: protobuf.Model) -> None:
    reasons = {
        "it is a unigram, word or character model, and BPE is read here": model.model_type != protobuf.BPE,
        "it normalises text by a table of its own": bool(model.charsmap),
        "it drops repeated spaces": model.remove_extra_whitespaces,
        "it does not write spaces as ▁": not model.escape_whitespaces,
        "it puts spaces at the ends of words": model.suffix_space,
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise TokenizerError(
            f"This SentencePiece model cannot be followed exactly: {'; '.join(found)}. Use the model's tokenizer.json."
        )


def _put(model: protobuf.Model, token: int, text: str, kind: int) -> None:
    """A token that another file adds, at its id; ids between are unused."""
    if not 0 <= token < len(model.pieces) + (1 << 16):
        raise TokenizerError(
            f"The added token {text!r} has the id {token}, far from the {len(model.pieces)} pieces of the model. "
            "The files are not of the same model: fetch them again."
        )
    while len(model.pieces) <= token:
        model.pieces.append(f"[PAD{len(model.pieces)}]")
        model.scores.append(PADDED)
        model.types.append(UNUSED)
    model.scores[token] = LISTED
    if model.types[token] in (CONTROL, kind) and model.pieces[token] == text:
        return
    model.pieces[token], model.types[token] = text, kind


# The small JSON files beside


def configuration(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json; empty where there is neither."""
    return {**_json(directory / "special_tokens_map.json"), **_json(directory / "tokenizer_config.json")}


def _names(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the tokens with a role; a token is a string or an object with its content."""
    found = {role: content_of(config.get(role)) for role in ROLES}
    return {role: text for role, text in found.items() if text}


def _added(directory: Path, config: Mapping[str, Any]) -> list[tuple[int, str, bool]]:
    """Id, text and whether it is control, of every token that the configuration adds."""
    found = {text: (int(token), text, False) for text, token in _json(directory / "added_tokens.json").items()}
    for token, each in dict(config.get("added_tokens_decoder") or {}).items():
        if (text := content_of(each)) and str(token).isdigit():
            found[text] = (int(token), text, isinstance(each, Mapping) and bool(each.get("special")))
    return list(found.values())


def content_of(token: Any) -> str:
    """The text of a token as a configuration gives it: itself, or an object with its content; "" for none."""
    return str(token.get("content") or "") if isinstance(token, Mapping) else token if isinstance(token, str) else ""


def _generation_ends(directory: Path) -> tuple[int, ...]:
    ends = _json(directory / "generation_config.json").get("eos_token_id")
    return tuple(int(end) for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as problem:
        raise TokenizerError(f"{path} is no JSON that can be read: {problem}. Fetch or copy it again.") from None
    if not isinstance(found, dict):
        raise TokenizerError(f"{path} should hold a JSON object, and holds a {type(found).__name__}. Fetch it again.")
    return found


def _models(directory: Path) -> list[Path]:
    found = [directory / "tokenizer.model", *sorted(directory.glob("*.model")), *sorted(directory.glob("*.model.v*"))]
    return [path for path in found if path.is_file()]


def _there(path: Path) -> Path:
    if not path.is_file():
        raise ModelNotFound(f"There is no file {path}. Give the path of a tokenizer's file.")
    return path
