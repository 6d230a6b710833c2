"""A `Vocabulary` as the bytes of a SentencePiece .model, of tiktoken's ranks, or of llama2.c's tokenizer.bin.

How each file is laid out is known to protobuf.py, tiktoken.py and llama2c.py.
"""

from __future__ import annotations

import numpy as np

from ..errors import TokenizerError
from . import llama2c, protobuf, tiktoken
from .bytebpe import GPT2_ALPHABET
from .spm import BYTE, NORMAL, SPACE, UNKNOWN, USER_DEFINED
from .vocabulary import Ranked, Scored, Vocabulary

_NAMES: dict[type, str] = {Scored: "SentencePiece BPE", Ranked: "byte-level BPE"}


def to_sentencepiece(vocabulary: Vocabulary) -> bytes:
    """A .model. Raises TokenizerError for byte-level BPE, and for a vocabulary that SentencePiece would not load."""
    vocabulary = _scored(vocabulary, "A SentencePiece .model")
    original = vocabulary.originals.get("tokenizer.model")
    if original and len(protobuf.parse(original.read_bytes()).pieces) == len(vocabulary.pieces):
        return original.read_bytes()
    if problem := unfit_for_sentencepiece(vocabulary):
        raise TokenizerError(f"SentencePiece would not load this vocabulary: {problem}.")
    roles, types = vocabulary.roles, vocabulary.types.tolist()
    assert roles.unk is not None
    types[roles.unk] = UNKNOWN
    spelt = zip(vocabulary.pieces, types, strict=True)
    bos, eos, pad = (
        -1 if token is None or token == roles.unk else token for token in (roles.bos, roles.eos, roles.pad)
    )
    model = protobuf.Model(
        pieces=[text.replace(" ", SPACE) if kind == USER_DEFINED else text for text, kind in spelt],
        scores=np.asarray(vocabulary.scores).tolist(),
        types=types,
        model_type=protobuf.BPE,
        unk_id=roles.unk,
        bos_id=bos,
        eos_id=eos,
        pad_id=pad,
        add_dummy_prefix=vocabulary.prefix,
        remove_extra_whitespaces=False,
    )
    return protobuf.serialise(model)


def unfit_for_sentencepiece(vocabulary: Scored) -> str | None:
    """Why the library would refuse a vocabulary (InitializePieces in model_interface.cc); None where it would not."""
    spelt = [text.replace(" ", SPACE) for text in vocabulary.pieces]
    types = np.asarray(vocabulary.types)
    unknown = {*np.flatnonzero(types == UNKNOWN).tolist(), vocabulary.roles.unk}
    if vocabulary.roles.unk is None or len(unknown) > 1:
        return f"it needs one unknown token, and here are {len(unknown - {None})}"
    if len(set(spelt)) < len(spelt):
        return f"{len(spelt) - len(set(spelt))} tokens share their text with another"
    if "" in spelt:
        return f"token {spelt.index('')} is empty"
    if (count := int((types == BYTE).sum())) not in (0, 256):
        return f"it needs all 256 bytes or none, and {count} are there"
    if any(map(_broken, spelt)):
        return "some tokens hold bytes that are no UTF-8"
    return None


def _broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def to_tiktoken(vocabulary: Vocabulary) -> bytes:
    """Ranks, one "base64 rank" a line. Raises TokenizerError where ranks do not say what the merges do."""
    if not isinstance(vocabulary, Ranked):
        raise _unlike(vocabulary, "A tiktoken file", Ranked)
    count = int((vocabulary.types == NORMAL).sum())
    pieces = vocabulary.pieces[:count]
    if problem := _unranked(vocabulary, pieces):
        raise TokenizerError(
            f"A tiktoken file numbers tokens by the order in which they join, and this vocabulary does not: {problem}."
        )
    byte_of = {character: byte for byte, character in enumerate(GPT2_ALPHABET)}
    return tiktoken.lines([bytes(byte_of[each] for each in text) for text in pieces])


def _unranked(vocabulary: Ranked, pieces: list[str]) -> str | None:
    """Why the ids of tokens are no ranks; None where they are."""
    if not (vocabulary.types[: len(pieces)] == NORMAL).all():
        return "control or added tokens stand before or among the others"
    ids = {text: i for i, text in enumerate(pieces)}
    alphabet = set(GPT2_ALPHABET)
    if not alphabet <= ids.keys() or not all(alphabet.issuperset(text) for text in pieces):
        return "not every byte is a token, or a token is not made of bytes"
    made = [ids.get(each.replace(" ", "", 1), -1) for each in vocabulary.merges]
    if -1 in made or made != sorted(made):
        return "its merges are not in the order of what they make"
    if not (vocabulary.cut and vocabulary.cut.whole) and len({*made}) < len(pieces) - 256:
        return "no merges make some of its tokens, and tiktoken would make them"
    return None


def to_llama2c(vocabulary: Vocabulary) -> bytes:
    """llama2.c's tokenizer.bin. Raises TokenizerError for byte-level BPE, and where run.c would misread it."""
    return llama2c.write(_scored(vocabulary, "llama2.c's tokenizer.bin"))


def _scored(vocabulary: Vocabulary, what: str) -> Scored:
    if not isinstance(vocabulary, Scored):
        raise _unlike(vocabulary, what, Scored)
    return vocabulary


def _unlike(vocabulary: Vocabulary, what: str, wanted: type) -> TokenizerError:
    return TokenizerError(
        f"{what} holds {_NAMES[wanted]}, and this vocabulary is {_NAMES[type(vocabulary)]}: the one cannot be written "
        "as the other. A tokenizer.json or a GGUF file holds both kinds."
    )
