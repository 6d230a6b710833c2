"""Byte-level BPE whose ranks come as bytes: tiktoken files and Mistral's tekken.json.

Directories are not known here. A token's rank is its id, and joins happen by the rank of what they make.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TokenizerError
from ..strings import pack
from .base import Roles
from .bytebpe import GPT2_ALPHABET, LATIN1, ByteBPE
from .merges import by_rank
from .patterns import CL100K, QWEN2, Cut
from .spm import CONTROL, NORMAL, UNUSED
from .vocabulary import Ranked


def _numbered(start: int, texts: Iterable[str]) -> dict[str, int]:
    return {text: start + i for i, text in enumerate(texts)}


# llama-models, models/llama3/tokenizer.py, with the names that the Llama 3.1 release gives to reserved places
_LLAMA3 = (
    "<|begin_of_text|> <|end_of_text|> <|reserved_special_token_0|> <|reserved_special_token_1|> "
    "<|finetune_right_pad_id|> <|reserved_special_token_2|> <|start_header_id|> <|end_header_id|> <|eom_id|> "
    "<|eot_id|> <|python_tag|>"
).split() + [f"<|reserved_special_token_{i}|>" for i in range(3, 248)]
_QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]

KNOWN: dict[int, tuple[str, dict[str, int], str | None, str]] = {
    128_000: (CL100K, _numbered(128_000, _LLAMA3), "<|begin_of_text|>", "<|end_of_text|>"),
    151_643: (QWEN2, _numbered(151_643, _QWEN), None, "<|endoftext|>"),
}
"""By number of ranks: pattern, control tokens, BOS that is added, EOS. The file itself holds none of these."""

# mistral-common, tokens/tokenizers/tekken.py: files of before 2024-11 do not list their control tokens
_TEKKEN = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "[IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()


@dataclass(frozen=True)
class Ranks:
    """Bytes, as latin-1 characters, with their ids; the pattern that cuts words; control tokens by text."""

    vocab: dict[str, int]
    pattern: str
    control: dict[str, int]
    bos: str | None
    eos: str | None

    @property
    def size(self) -> int:
        return max([*self.vocab.values(), *self.control.values()]) + 1

    @property
    def cut(self) -> Cut:
        return Cut((self.pattern,), whole=True)

    @property
    def roles(self) -> Roles:
        bos, eos, pad, unk = (self.control.get(text or "") for text in (self.bos, self.eos, "<pad>", "<unk>"))
        return Roles(bos=bos, eos=eos, pad=pad, unk=unk, adds_bos=self.bos is not None)

    def tokenizer(self) -> ByteBPE:
        """Joins by the rank of what they make, as tiktoken does."""
        pieces = {token: piece for piece, token in self.vocab.items()}
        return ByteBPE(
            self.vocab.get,
            lambda token: pieces.get(token, ""),
            lambda left, right: self.vocab.get(left + right),
            self.cut,
            self.roles,
            size=self.size,
            alphabet=LATIN1,
            control=self.control,
        )

    def describe(self) -> Ranked:
        """The same as merges, in GPT-2's alphabet."""
        spelt = {piece.translate(GPT2_ALPHABET): token for piece, token in self.vocab.items()}
        pieces = [f"[PAD{i}]" for i in range(self.size)]
        types = np.full(self.size, UNUSED, np.int32)
        for found, kind in ((spelt, NORMAL), (self.control, CONTROL)):
            for text, token in found.items():
                pieces[token], types[token] = text, kind
        merges = pack(f"{left} {right}" for left, right in by_rank(spelt))
        return Ranked(pieces=pack(pieces), types=types, roles=self.roles, merges=merges, cut=self.cut)


def ranks(
    path: Path,
    pattern: str | None = None,
    control: Mapping[str, int] | None = None,
    bos: str | None = None,
    eos: str | None = None,
) -> Ranks:
    """What a tiktoken file holds; what is None is taken from what is known of a file with as many ranks."""
    vocab = _ranks(path)
    if pattern is None:
        if len(vocab) not in KNOWN:
            raise TokenizerError(
                f"{path} holds {len(vocab)} ranks; tiktoken files do not say how to cut words, which is known here "
                f"only for those with {', '.join(map(str, KNOWN))}. Give pattern= and control=, or use tokenizer.json."
            )
        pattern, known, bos, eos = KNOWN[len(vocab)]
        control = known if control is None else control
    return Ranks(vocab, pattern, dict(control or {}), bos, eos)


def tekken(path: Path) -> Ranks:
    """What Mistral's tekken.json holds."""
    try:
        data = json.loads(path.read_text("utf-8"))
        config = data["config"]
        specials = int(config["default_num_special_tokens"])
        kept = data["vocab"][: int(config["default_vocab_size"]) - specials]
        vocab = {_characters(each["token_bytes"]): specials + int(each["rank"]) for each in kept}
        names = [str(each["token_str"]) for each in data.get("special_tokens") or ()] or _TEKKEN
        pattern = str(config["pattern"])
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise TokenizerError(
            f"{path} is no tekken.json that can be read ({type(problem).__name__}: {problem}). Fetch it again."
        ) from None
    control = _numbered(0, [*names, *(f"<SPECIAL_{i}>" for i in range(len(names), specials))])
    return Ranks(vocab, pattern, control, "<s>", "</s>")


def lines(pieces: Iterable[bytes]) -> bytes:
    """A tiktoken file: each piece in base64 with its rank, which is its place."""
    return b"".join(b"%s %d\n" % (base64.b64encode(piece), rank) for rank, piece in enumerate(pieces))


def is_ranks(data: bytes) -> bool:
    """Whether a file begins as tiktoken's do: base64, a space, a number."""
    first = data.split(b"\n", 1)[0].split()
    return len(first) == 2 and first[1].isdigit() and _decoded(first[0]) is not None


def _ranks(path: Path) -> dict[str, int]:
    vocab: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        parts = line.split()
        piece = _decoded(parts[0]) if len(parts) == 2 and parts[1].isdigit() else None
        if not piece:
            raise TokenizerError(
                f"Line {number} of {path} should be a token in base64, a space and its rank; it is {line[:60]!r}. "
                "Fetch or copy the file again."
            )
        vocab[piece.decode("latin-1")] = int(parts[1])
    if sorted(vocab.values()) != list(range(len(vocab))) or not vocab:
        raise TokenizerError(
            f"The ranks of a tiktoken file count from 0 without a gap, each token once; those of {path} "
            f"({len(vocab)} tokens) do not. Fetch or copy the file again."
        )
    return vocab


def _decoded(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _characters(text: Any) -> str:
    return base64.b64decode(text, validate=True).decode("latin-1")
