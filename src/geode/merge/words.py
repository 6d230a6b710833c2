"""A vocabulary made longer or shorter: rows of embeddings and head, and the tokenizer in step with them.

How tokenizers are stored is not known here. New rows are the mean of all tokens' rows, so that a new token is at first
as likely as any: nlp.stanford.edu/~johnhew/vocab-expansion.html
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import OptionError, TokenizerError
from ..formats import Checkpoint
from ..formats.packing import packer
from ..quant import BLOCKS, DTYPES, QTensor, concatenate, row_bytes
from ..strings import pack
from ..tensors import Array, Entry
from ..tokenizer import Ranked, Scored, Vocabulary
from ..tokenizer.spm import BYTE, CONTROL, USER_DEFINED
from .computed import EMBEDDING, HEAD, Made, made, rows_of, steps

FORMAT = "merge"
"""The format of a checkpoint whose tokenizer is no longer that of the files it was made of."""


def vocabulary(
    base: Checkpoint,
    add: Sequence[str] = (),
    *,
    control: bool = True,
    keep: int | None = None,
    multiple: int = 1,
) -> Made:
    """The base with tokens added at the end, or its first `keep` rows only; rows become a multiple of `multiple`.

    Tokens added are control tokens, or with `control` off words that are found in any text. They take rows that only
    pad the embedding first. Rows that stay keep their bits. Raises TokenizerError where a token is there already, or
    one that goes is needed; OptionError for an impossible count.
    """
    if multiple < 1 or (keep is not None and not 1 <= keep <= base.config.vocab):
        raise OptionError(
            f"Rows kept are 1 to {base.config.vocab}, of a multiple of 1 or more; got {keep}, {multiple}."
        )
    words = base.vocabulary
    if add and words is None:
        raise TokenizerError(
            f"{base.path} brings no tokenizer, so it cannot learn new tokens. Put its files beside it."
        )
    old = len(words.pieces) if words is not None else base.config.vocab
    if words is not None and keep is not None and keep < old:
        words, old = _shortened(words, keep), keep
    if words is not None and add:
        words = _extended(words, add, CONTROL if control else USER_DEFINED)
    kept = min(base.config.vocab, old if add else keep or base.config.vocab)
    rows = max(old + len(add), keep or base.config.vocab) if add else kept
    return _resized(base, words, kept, min(old, kept), -(-rows // multiple) * multiple)


def _resized(base: Checkpoint, words: Vocabulary | None, kept: int, tokens: int, rows: int) -> Made:
    """The first `kept` rows stay, of which `tokens` are not padding; there will be `rows`."""
    known = dict(base.tensors.entries)
    for name in {EMBEDDING, HEAD} & known.keys():
        known[name] = _entry(known[name], kept, rows, tokens)
    told = f"The vocabulary has {rows} rows; it had {base.config.vocab}."
    if rows > kept:
        told += f" The last {rows - kept} are the mean of the first {tokens}."
    changes = {} if words is base.vocabulary else {"words": words, "format": FORMAT}
    return made([base], known, config=base.config.replace(vocab=rows), remarks=[told], **changes)


def _entry(known: Entry, kept: int, rows: int, tokens: int) -> Entry:
    """The first `kept` rows as they are, the others the mean of the first `tokens`."""
    shape = (rows, *known.shape[1:])
    width = row_bytes(known.type, shape) if known.type in BLOCKS else DTYPES[known.type].itemsize * math.prod(shape[1:])

    def load() -> Array:
        array = known.load()
        if isinstance(array, QTensor):
            new = packer()(_mean(array, tokens, rows - kept).astype(np.float32), known.type) if rows > kept else None
            top = array.rows(slice(0, kept))
            return top if new is None else concatenate([top, new])
        return np.concatenate([array[:kept], _mean(array, tokens, rows - kept).astype(array.dtype)])

    return Entry(shape, known.type, rows * width, load)


def _mean(array: Array, tokens: int, count: int) -> np.ndarray:
    """`count` rows, each the mean of the first `tokens`; float64."""
    total = np.zeros(array.shape[1])
    if count:
        for _, piece in steps((tokens, array.shape[1]), rows_of(array)):
            total += piece.sum(axis=0, dtype=np.float64)
    return np.broadcast_to(total / tokens, (count, array.shape[1]))


# The tokenizer's data


def _extended(words: Vocabulary, add: Sequence[str], kind: int) -> Vocabulary:
    pieces = list(words.pieces)
    there = set(pieces)
    for text in add:
        if not text or text in there:
            raise TokenizerError(
                f"The token {text!r} {'is there already' if text else 'is empty'}. Choose another text."
            )
        there.add(text)
    types = np.concatenate([words.types, np.full(len(add), kind, words.types.dtype)])
    changed = replace(words, pieces=pack([*pieces, *add]), types=types, originals={})
    if isinstance(changed, Scored):
        return replace(changed, scores=np.concatenate([changed.scores, np.zeros(len(add), changed.scores.dtype)]))
    return changed


def _shortened(words: Vocabulary, keep: int) -> Vocabulary:
    _refuse_needed(words, keep)
    named = {role: token for role, token in words.named.items() if token < keep}
    ends = tuple(token for token in words.roles.ends if token < keep)
    changed = replace(
        words,
        pieces=words.pieces.first(keep),
        types=words.types[:keep],
        named=named,
        roles=replace(words.roles, ends=ends),
        originals={},
    )
    if isinstance(changed, Scored):
        return replace(changed, scores=changed.scores[:keep])
    if isinstance(changed, Ranked):
        left = set(changed.pieces)
        return replace(changed, merges=pack(pair for pair in changed.merges if _possible(pair, left)))
    return changed


def _possible(merge: str, pieces: set[str]) -> bool:
    left, right = merge.split(" ", 1)
    return {left, right, left + right} <= pieces


def _refuse_needed(words: Vocabulary, keep: int) -> None:
    roles = (words.roles.bos, words.roles.eos, words.roles.pad, words.roles.unk)
    needed = [token for token in roles if token is not None and token >= keep]
    needed += [token for token in range(keep, len(words.pieces)) if _is_byte(words, token)]
    if needed:
        shown = ", ".join(repr(words.pieces[token]) for token in needed[:4])
        raise TokenizerError(
            f"{keep} rows leave out {len(needed)} tokens that every text needs ({shown}). "
            f"Keep {max(needed) + 1} or more."
        )


def _is_byte(words: Vocabulary, token: int) -> bool:
    if isinstance(words, Ranked):
        return words.types[token] not in (CONTROL, USER_DEFINED) and len(words.pieces[token]) == 1
    return bool(words.types[token] == BYTE)
