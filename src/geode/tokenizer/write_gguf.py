"""A `Vocabulary` as the metadata of a GGUF file.

The file itself is io/gguf.py's business. Keys, their order and what pads them are those of llama.cpp's own converter
(conversion/base.py and gguf-py/gguf/vocab.py in github.com/ggml-org/llama.cpp).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import TokenizerError
from ..strings import pack
from . import cuts
from .base import ENDS
from .files import PADDED
from .gguf import PREFIX
from .spm import UNUSED
from .vocabulary import Ranked, Scored, Vocabulary

TYPES = {str: "string", bool: "bool", int: "u32"}


def to_gguf(vocabulary: Vocabulary, rows: int | None = None) -> tuple[dict[str, object], dict[str, str]]:
    """Metadata of a tokenizer, and the type of each key in the file.

    `rows` is how many the embedding has: those beyond the vocabulary become unused tokens [PAD{i}]. Raises
    TokenizerError for a way of cutting words that GGUF has no name for, and for fewer rows than tokens.
    """
    padded = _padded(vocabulary, len(vocabulary.pieces) if rows is None else rows)
    fields = _scored(padded) if isinstance(padded, Scored) else _ranked(padded)
    fields |= _roles(vocabulary)
    types = {name: TYPES[type(value)] for name, value in fields.items() if type(value) in TYPES}
    types |= {"tokens": "array[string]", "token_type": "array[i32]"}
    types |= {"scores": "array[f32]"} if isinstance(padded, Scored) else {"merges": "array[string]"}
    return {PREFIX + name: value for name, value in fields.items()}, {
        PREFIX + name: kind for name, kind in types.items()
    }


def _padded(vocabulary: Vocabulary, rows: int) -> Vocabulary:
    size = len(vocabulary.pieces)
    if rows < size:
        raise TokenizerError(
            f"The embedding has {rows} rows and the vocabulary {size} tokens, so that some have no row. "
            "Take the tokenizer of this very model, or cut its vocabulary first."
        )
    if rows == size:
        return vocabulary
    more = range(size, rows)
    padded = replace(
        vocabulary,
        pieces=pack([*vocabulary.pieces, *(f"[PAD{i}]" for i in more)]),
        types=np.append(vocabulary.types, np.full(len(more), UNUSED)),
    )
    if isinstance(padded, Scored):
        return replace(padded, scores=np.append(padded.scores, np.full(len(more), PADDED)))
    return padded


def _scored(vocabulary: Scored) -> dict[str, object]:
    return {
        "model": "llama",
        "pre": "default",
        "tokens": vocabulary.pieces,
        "scores": np.asarray(vocabulary.scores, np.float32),
        "token_type": np.asarray(vocabulary.types, np.int32),
        "add_space_prefix": vocabulary.prefix,
    }


def _ranked(vocabulary: Vocabulary) -> dict[str, object]:
    assert isinstance(vocabulary, Ranked)
    return {
        "model": "gpt2",
        "pre": pre_of(vocabulary),
        "tokens": vocabulary.pieces,
        "token_type": np.asarray(vocabulary.types, np.int32),
        "merges": vocabulary.merges,
    }


def pre_of(vocabulary: Ranked) -> str:
    """GGUF's name for how words are cut. Raises TokenizerError where there is none."""
    if vocabulary.pre:
        return vocabulary.pre
    name = cuts.nearest_name(vocabulary.cut) if vocabulary.cut else None
    if name is None:
        raise cuts.unnamed(vocabulary.cut)
    return name


def _roles(vocabulary: Vocabulary) -> dict[str, object]:
    roles = vocabulary.roles
    ids = {"bos": roles.bos, "eos": roles.eos, "unknown": roles.unk, "padding": roles.pad}
    found: dict[str, object] = {
        f"{name}_token_id": token for name, token in (ids | ends_of(vocabulary)).items() if token is not None
    }
    return found | {"add_bos_token": roles.adds_bos, "add_eos_token": roles.adds_eos}


def ends_of(vocabulary: Vocabulary) -> dict[str, int]:
    """Further roles by name; an end of turn that no reader would know by its text is "eot", a second one "eom"."""
    named = dict(vocabulary.named)
    for token in unknown_ends(vocabulary):
        free = [name for name in ("eot", "eom") if named.get(name, token) == token]
        if free:
            named[free[0]] = token
    return named


def unknown_ends(vocabulary: Vocabulary) -> list[int]:
    """Ids that end a turn, and are neither EOS nor known by their text."""
    ends = [token for token in vocabulary.roles.ends if 0 <= token < len(vocabulary.pieces)]
    return [token for token in ends if token != vocabulary.roles.eos and vocabulary.pieces[token] not in ENDS]
