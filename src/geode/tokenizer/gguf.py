"""The tokenizer that a GGUF file's metadata holds.

How a GGUF file is read is not known here: its metadata comes as a mapping. Keys and their defaults are those of
llama-vocab.cpp in github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import TokenizerError
from ..strings import Index, StringArray, pack, without_first
from .base import Roles, Tokenizer
from .patterns import CUTS
from .spm import CONTROL, NORMAL, UNKNOWN
from .vocabulary import Ranked, Scored, Vocabulary

PREFIX = "tokenizer.ggml."
NAMED = ("eot", "eom", "seperator", "cls", "mask", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")
"""Further ids with a role (sic: "seperator", as llama.cpp spells it)."""
FALCON_END = 11  # llama.cpp's default bos and eos of byte-level BPE, right for Falcon's vocabulary only


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a file's metadata (`tokenizer.ggml.model` "llama" or "gpt2").

    Arrays may be lists, numpy arrays or lazy sequences. Raises TokenizerError for a kind that is not understood, and
    for arrays that are missing, of unequal length or at odds with each other.
    """
    return describe(metadata).tokenizer()


def describe(metadata: Mapping[str, Any]) -> Vocabulary:
    """What the tokenizer of a file's metadata consists of. Raises TokenizerError as `from_gguf` does."""
    fields = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    kind = fields.get("model")
    makers: dict[Any, Callable[[Mapping[str, Any]], Vocabulary]] = {"llama": _scored, "gpt2": _ranked}
    if kind not in makers:
        raise TokenizerError(
            f"tokenizer.ggml.model should be one of {', '.join(makers)}; this file says {kind!r}. "
            "Use the model's tokenizer.json, or a conversion with one of these."
        )
    return makers[kind](fields)


def _scored(fields: Mapping[str, Any]) -> Scored:
    pieces = _tokens(fields)
    scores = _array(fields, "scores", len(pieces))
    types = _array(fields, "token_type", len(pieces), NORMAL)
    size = _real(pieces)
    return Scored(
        pieces=pieces.first(size),
        scores=scores[:size],
        types=types[:size],
        roles=_roles(fields, size, bos=1, eos=2, unk=0, adds_bos=True),
        named=_named(fields, size),
        prefix=bool(fields.get("add_space_prefix", True)),
    )


def _ranked(fields: Mapping[str, Any]) -> Ranked:
    pieces = _tokens(fields)
    size = _real(pieces)
    types = _array(fields, "token_type", len(pieces), NORMAL)[:size]
    cut = CUTS.get(pre := str(fields.get("pre", "")))
    if cut is None:
        raise TokenizerError(
            f"tokenizer.ggml.pre says {pre!r}, a way to cut words that is not known here; known are "
            f"{', '.join(name for name in CUTS if name)}. Use the model's tokenizer.json instead."
        )
    pieces = pieces.first(size)
    falcon = size > FALCON_END and types[FALCON_END] in (CONTROL, UNKNOWN)
    ends = FALCON_END if falcon else None
    found = Ranked(
        pieces=pieces,
        types=types,
        roles=_roles(fields, size, bos=ends, eos=ends, unk=None, adds_bos=cut.adds_bos),
        named=_named(fields, size),
        merges=_merges(fields),
        cut=cut,
        pre=pre,
    )
    _check_merges(found.merges, found.index)
    return found


def _merges(fields: Mapping[str, Any]) -> StringArray:
    """Merges as the file spells them, "left right", in the order of their ranks."""
    merges = fields.get("merges")
    if merges is None:
        raise TokenizerError("Byte-level BPE needs tokenizer.ggml.merges, which this file lacks. Convert it again.")
    return pack(merges)


def _check_merges(merges: StringArray, tokens: Index) -> None:
    made, split = without_first(merges, " ")
    wrong = np.flatnonzero(~(split & tokens.may_hold(made)))
    if len(wrong):
        raise TokenizerError(
            f"Every merge joins two tokens into a third, and {merges[int(wrong[0])]!r} in tokenizer.ggml.merges makes "
            "none that tokenizer.ggml.tokens has. The file is damaged: fetch or convert it again."
        )


def _tokens(fields: Mapping[str, Any]) -> StringArray:
    tokens = fields.get("tokens")
    if tokens is None or not len(tokens):
        raise TokenizerError("This file names a tokenizer and holds no tokenizer.ggml.tokens. Convert it again.")
    return pack(tokens)


def _array(fields: Mapping[str, Any], name: str, length: int, default: int | None = None) -> np.ndarray:
    """An array with one number for each token."""
    values = fields.get(name)
    if values is None and default is not None:
        return np.full(length, default, np.int32)
    if values is None or len(values) != length:
        came = "is missing" if values is None else f"has {len(values)} entries"
        raise TokenizerError(
            f"tokenizer.ggml.{name} should have one entry for each of the {length} tokens; it {came}. "
            "The file is damaged: fetch or convert it again."
        )
    return np.asarray(values)


def _real(pieces: Sequence[str]) -> int:
    """How many tokens there are before the rows that only pad the embedding."""
    size = len(pieces)
    while size and re.fullmatch(r"\[PAD\d+\]", pieces[size - 1]):
        size -= 1
    return size


def _named(fields: Mapping[str, Any], size: int) -> dict[str, int]:
    """Ids of the roles that `Roles` does not hold, by their names here."""
    found = {name: fields.get(f"{name}_token_id") for name in NAMED}
    return {name: int(token) for name, token in found.items() if token is not None and 0 <= int(token) < size}


def _roles(
    fields: Mapping[str, Any], size: int, *, bos: int | None, eos: int | None, unk: int | None, adds_bos: bool
) -> Roles:
    def role(name: str, default: int | None = None) -> int | None:
        token = int(fields.get(f"{name}_token_id", -1 if default is None else default))
        return token if 0 <= token < size else None

    return Roles(
        bos=role("bos", bos),
        eos=role("eos", eos),
        pad=role("padding"),
        unk=role("unknown", unk),
        adds_bos=bool(fields.get("add_bos_token", adds_bos)),
        adds_eos=bool(fields.get("add_eos_token", False)),
        ends=tuple(token for name in ("eot", "eom") if (token := role(name)) is not None),
    )
