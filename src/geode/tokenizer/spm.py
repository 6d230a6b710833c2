"""SentencePiece BPE: characters are joined by the score of what they make, unknown ones fall back to bytes.

Files are not known here: pieces, scores and types come as arrays.

    "Héllo  wörld" → "▁Héllo▁▁wörld" → user-defined symbols cut out → words → characters → joined by score → ids

The truth is bpe_model.cc, normalizer.cc and sentencepiece_processor.cc in github.com/google/sentencepiece.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike

from ..errors import TokenizerError
from ..strings import Index, characters_before, pack
from .base import Matcher, Roles, Tokenizer
from .merge import merge

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of a piece, in a .model file and in GGUF alike."""

WORDS_KEPT = 1 << 16
LONGEST_KEPT = 32  # characters; longer words are worked out again each time


class SPM(Tokenizer):
    """Pieces with scores. `prefix`: a text is read as if a space stood before it (Llama's "dummy prefix")."""

    def __init__(self, pieces: Sequence[str], scores: ArrayLike, types: ArrayLike, roles: Roles, prefix: bool = True):
        self._pieces = pack(pieces)
        self._types = np.asarray(types, np.int32)
        self._scores = np.asarray(scores, np.float32).data
        lengths = {"pieces": len(self._pieces), "scores": len(self._scores), "types": len(self._types)}
        if len(set(lengths.values())) > 1 or not self._pieces:
            raise TokenizerError(
                f"A SentencePiece vocabulary has one score and one type for each piece; here are {lengths}. "
                "The file is damaged or incomplete: fetch or convert it again."
            )
        super().__init__(len(self._pieces), self._of_type(CONTROL, UNKNOWN), roles, trims=prefix)
        self._prefix = prefix
        self._unk = roles.unk
        self._index = Index(self._pieces)
        # Joins make neither control tokens nor bytes, whose names may stand in any text.
        self._joins = (~np.isin(self._types, (CONTROL, UNKNOWN, UNUSED, BYTE))).tobytes()
        self._remembered = lru_cache(WORDS_KEPT)(self._word)

    def _of_type(self, *types: int) -> dict[str, int]:
        return {self._pieces[i]: i for i in np.flatnonzero(np.isin(self._types, types)).tolist()}

    @cached_property
    def _user(self) -> Matcher:
        # llama.cpp's converter writes the runs of spaces among them with plain spaces.
        return Matcher({text.replace(" ", SPACE): token for text, token in self._of_type(USER_DEFINED).items()})

    @cached_property
    def _bytes(self) -> list[int]:
        """The id of each of the 256 bytes, or nothing when the vocabulary has no such fallback."""
        named = self._of_type(BYTE)
        found = [named.get(f"<0x{byte:02X}>") for byte in range(256)]
        return [] if None in found else [token for token in found if token is not None]

    @cached_property
    def _between_words(self) -> re.Pattern[str]:
        """Where a text splits without a change: before spaces, unless a piece spans that character and the space."""
        inside = characters_before(self._pieces, SPACE) - {SPACE}
        return re.compile(f"(?<=[^{SPACE}{re.escape(''.join(sorted(inside)))}])(?={SPACE})")

    def _plain(self, text: str, after: int | None = None) -> list[int]:
        # Each text that BOS or EOS sets apart begins anew; after a token like [INST], text goes on (mistral-common v3).
        if self._prefix and text and after in (None, self.roles.bos, self.roles.eos):
            text = " " + text
        ids: list[int] = []
        for part in self._user.split(text.replace(" ", SPACE)):
            if isinstance(part, int):
                ids.append(part)
                continue
            for word in self._between_words.split(part):
                ids += self._remembered(word) if len(word) <= LONGEST_KEPT else self._word(word)
        return ids if self._bytes else self._once_unknown(ids)

    def _word(self, word: str) -> list[int]:
        ids: list[int] = []
        for piece in merge(word, self._rank):
            token = self._id(piece)
            ids += self._fallback(piece) if token is None else [token]
        return ids

    def _id(self, piece: str) -> int | None:
        token = self._index.find(piece)
        return token if token is not None and self._joins[token] else None

    def _rank(self, left: str, right: str) -> float | None:
        token = self._index.find(left + right)
        return -self._scores[token] if token is not None and self._joins[token] else None

    def _fallback(self, character: str) -> list[int]:
        if self._bytes:
            return [self._bytes[byte] for byte in character.encode()]
        if self._unk is None:
            raise TokenizerError(
                f"{character!r} is not in this vocabulary, which has neither bytes nor an unknown token for it. "
                "Leave the character out, or use a complete copy of the model."
            )
        return [self._unk]

    def _once_unknown(self, ids: list[int]) -> list[int]:
        """A run of unknown characters is one unknown token."""
        return [token for i, token in enumerate(ids) if token != self._unk or i == 0 or ids[i - 1] != token]

    def _piece(self, token: int) -> bytes:
        text = self._pieces[token]
        if self._types[token] == BYTE and (byte := re.fullmatch("<0x([0-9A-F]{2})>", text)):
            return bytes.fromhex(byte[1])
        return text.replace(SPACE, " ").encode("utf-8", "surrogateescape")
