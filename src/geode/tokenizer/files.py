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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelNotFound, TokenizerError
from . import protobuf, tiktoken
from .base import Roles, Tokenizer
from .spm import CONTROL, SPM, UNUSED, USER_DEFINED

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")

# Gemma's .model calls its control tokens user-defined, and sentencepiece would find them in what a user types.
# The list is that of `does_token_look_special` in llama.cpp's converter and of Gemma's turns and images.
LOOKS_CONTROL = re.compile(
    r"<\|.*\|>|<｜.*｜>|<unused\d+>|<(pad|mask|2mass)>|\[@BOS@\]|<(start|end)_of_(turn|image)>|<\|?turn\|?>"
)


def load(directory: str | os.PathLike[str]) -> Tokenizer | None:
    """The tokenizer of a checkpoint's directory, or None when it holds none.

    tokenizer.json comes first, then tokenizer.model, *.tiktoken and tekken.json. Raises TokenizerError for a file that
    is damaged or of a kind that is not understood.
    """
    directory = Path(directory)
    config = _config(directory)
    if (path := directory / "tokenizer.json").is_file():
        from .rust import Rust

        return Rust(path, _names(config), _generation_ends(directory), _added(directory, config))
    for path in _models(directory):
        if tiktoken.is_ranks(_head(path)):
            return from_tiktoken(path)
        return _sentencepiece(path, config, _added(directory, config), _generation_ends(directory))
    for path in sorted(directory.glob("*.tiktoken")):
        return from_tiktoken(path)
    if (path := directory / "tekken.json").is_file():
        return tiktoken.tekken(path)
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        raise TokenizerError(
            f"{directory} holds vocab.json and merges.txt, which do not say how to cut words. Write a tokenizer.json "
            "beside them: AutoTokenizer.from_pretrained(directory).save_pretrained(directory) of transformers does."
        )
    return None


def from_sentencepiece(path: str | os.PathLike[str], *, bos: bool = True, eos: bool = False) -> Tokenizer:
    """The tokenizer of a SentencePiece .model of the kind BPE. The file does not say whether BOS and EOS are added.

    Raises TokenizerError for a unigram model, and for one that normalises text: their tokenizer.json does it exactly.
    """
    return _sentencepiece(Path(path), {"add_bos_token": bos, "add_eos_token": eos}, [], ())


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
    return tiktoken.ranks_tokenizer(_there(Path(path)), pattern, control, bos, eos)


def _sentencepiece(
    path: Path, config: Mapping[str, Any], added: list[tuple[int, str, bool]], ends: tuple[int, ...]
) -> Tokenizer:
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
    return SPM(model.pieces, model.scores, types, roles, model.add_dummy_prefix)


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
        model.scores.append(0.0)
        model.types.append(UNUSED)
    if model.types[token] in (CONTROL, kind) and model.pieces[token] == text:
        return
    model.pieces[token], model.types[token] = text, kind


# The small JSON files beside


def _config(directory: Path) -> dict[str, Any]:
    return {**_json(directory / "special_tokens_map.json"), **_json(directory / "tokenizer_config.json")}


def _names(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the tokens with a role; a token is a string or an object with its content."""
    found = {role: _content(config.get(role)) for role in ROLES}
    return {role: text for role, text in found.items() if text}


def _added(directory: Path, config: Mapping[str, Any]) -> list[tuple[int, str, bool]]:
    """Id, text and whether it is control, of every token that the configuration adds."""
    found = {text: (int(token), text, False) for text, token in _json(directory / "added_tokens.json").items()}
    for token, each in dict(config.get("added_tokens_decoder") or {}).items():
        if (text := _content(each)) and str(token).isdigit():
            found[text] = (int(token), text, isinstance(each, Mapping) and bool(each.get("special")))
    return list(found.values())


def _content(token: Any) -> str:
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


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise ModelNotFound(f"There is no file {path}. Give the path of a tokenizer's file.")
    return path
