"""What a tokenizer consists of, apart from any file: the neutral form between all formats.

Files and their keys are not known here. Readers (sources.py) make these, writers (write_*.py) take them.

    Scored   SentencePiece BPE: pieces with scores, joined by the score of what they make
    Ranked   byte-level BPE: pieces in GPT-2's alphabet, joined by a list of merges after a text is cut into words
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import TokenizerError
from ..strings import Index, StringArray
from .base import Roles, Tokenizer
from .bytebpe import ByteBPE
from .patterns import Cut
from .spm import CONTROL, SPM, UNKNOWN, USER_DEFINED


@dataclass(frozen=True, eq=False, kw_only=True)
class Vocabulary(ABC):
    """Pieces by id, each with a type (NORMAL … BYTE of spm.py), and the ids with a role.

    pieces     texts; user-defined ones hold plain spaces, as in GGUF; rows that only pad an embedding are left out
    types      int32 (pieces,)
    roles      bos, eos, pad, unk; whether BOS and EOS are put around a text
    named      ids of further roles, by GGUF's names: "mask", "eot", "fim_pre" …
    beyond     what the source says and this form does not hold: a sentence each
    originals  the source's own files by name, of a Hugging Face directory
    """

    pieces: StringArray
    types: np.ndarray
    roles: Roles
    named: Mapping[str, int] = field(default_factory=dict)
    beyond: tuple[str, ...] = ()
    originals: Mapping[str, Path] = field(default_factory=dict)

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that this describes. Raises TokenizerError where the description is not enough for one."""

    def of_types(self, *kinds: int) -> dict[str, int]:
        """Pieces of these types by text."""
        return {self.pieces[i]: i for i in np.flatnonzero(np.isin(self.types, kinds)).tolist()}

    def text(self, token: int | None) -> str | None:
        """The piece of an id; None for none."""
        return None if token is None else self.pieces[token]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored(Vocabulary):
    """`scores`, float32 (pieces,): the highest joins first. `prefix`: a text is read as if a space stood before it."""

    scores: np.ndarray
    prefix: bool

    def tokenizer(self) -> Tokenizer:
        return SPM(self.pieces, self.scores, self.types, self.roles, self.prefix)


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranked(Vocabulary):
    """`merges`: "left right" in the order of their ranks. `cut`: how words are cut, None for a way not known here.

    `pre` is the name that a GGUF file gave the cut, empty where none did.
    """

    merges: StringArray
    cut: Cut | None
    pre: str = ""

    @cached_property
    def index(self) -> Index:
        """The pieces by their text."""
        return Index(self.pieces)

    def tokenizer(self) -> Tokenizer:
        if self.cut is None:
            raise TokenizerError(f"How this tokenizer cuts words is not known here. {' '.join(self.beyond)}".strip())
        control, added = self.of_types(CONTROL, UNKNOWN), self.of_types(USER_DEFINED)
        tokens, ranks = self.index, Index(self.merges)
        apart = control.keys() | added.keys()

        def find(piece: str) -> int | None:
            return None if piece in apart else tokens.find(piece)

        return ByteBPE(
            find,
            self.pieces.__getitem__,
            lambda left, right: ranks.find(f"{left} {right}"),
            self.cut,
            self.roles,
            size=len(self.pieces),
            control=control,
            added=added,
        )
