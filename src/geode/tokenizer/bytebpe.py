"""Byte-level BPE: words of UTF-8 bytes, joined by rank.

Files and the names of cutting rules are not known here.

    "Hé llo" → added tokens cut out → NFC → words "Hé", " llo" → bytes, each as one character → joined by rank → ids

A byte is written as a character of an alphabet of 256, so that pieces are plain strings: GPT-2's, which GGUF and
tokenizer.json use, or latin-1, for ranks that come as bytes.
The truth is encoder.py in github.com/openai/gpt-2 and src/lib.rs in github.com/openai/tiktoken.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache
from typing import Any

from .base import Matcher, Roles, Tokenizer
from .merge import merge
from .patterns import Cut
from .spm import LONGEST_KEPT, WORDS_KEPT


def _gpt2_alphabet() -> str:
    """The character of each byte: itself where it can be printed, else the next one from U+0100 on."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    spare = iter(range(256, 512))
    return "".join(chr(byte if byte in shown else next(spare)) for byte in range(256))


GPT2_ALPHABET = _gpt2_alphabet()
LATIN1 = bytes(range(256)).decode("latin-1")


class ByteBPE(Tokenizer):
    """A vocabulary of byte strings. `rank` says which neighbours join first, None for never.

    `find` gives the id of what joins may make, None for what they may not, and `spelt` the piece of an id; `added` are
    the texts that are found before any word is cut.
    """

    def __init__(
        self,
        find: Callable[[str], int | None],
        spelt: Callable[[int], str],
        rank: Callable[[str, str], float | None],
        cut: Cut,
        roles: Roles,
        *,
        size: int,
        alphabet: str = GPT2_ALPHABET,
        control: Mapping[str, int] | None = None,
        added: Mapping[str, int] | None = None,
    ):
        super().__init__(size, control or {}, roles)
        self._find = find
        self._spelt = spelt
        self._rank = rank
        self._cut = cut
        self._alphabet = alphabet
        self._added_tokens = dict(added or {})
        self._remembered = lru_cache(WORDS_KEPT)(self._word)

    def _plain(self, text: str, after: int | None = None) -> list[int]:
        ids: list[int] = []
        for part in self._added.split(text):
            if isinstance(part, int):
                ids.append(part)
                continue
            for word in self._words(unicodedata.normalize("NFC", part) if self._cut.nfc else part):
                ids += self._remembered(word) if len(word) <= LONGEST_KEPT else self._word(word)
        return ids

    def _words(self, text: str) -> list[str]:
        words = [text]
        for pattern in self._patterns:
            words = [piece for word in words for piece in isolate(pattern, word)]
        return words

    def _word(self, word: str) -> list[int]:
        spelt = word.encode().decode("latin-1").translate(self._alphabet)
        if self._cut.whole and (token := self._find(spelt)) is not None:
            return [token]
        ids: list[int] = []
        for piece in merge(spelt, self._rank):
            token = self._find(piece)
            # A vocabulary without some byte says nothing of it, as the reference does.
            found = [token] if token is not None else map(self._find, piece)
            ids += [each for each in found if each is not None]
        return ids

    @cached_property
    def _added(self) -> Matcher:
        return Matcher(self._added_tokens)

    @cached_property
    def _patterns(self) -> list[Any]:
        import regex

        return [regex.compile(pattern) for pattern in self._cut.patterns]

    @cached_property
    def _texts(self) -> dict[int, bytes]:
        """Bytes of the tokens that no bytes spell: control and added ones."""
        return {i: text.encode("utf-8", "surrogateescape") for text, i in (self.control | self._added_tokens).items()}

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        return {character: byte for byte, character in enumerate(self._alphabet)}

    def _piece(self, token: int) -> bytes:
        if (text := self._texts.get(token)) is not None:
            return text
        return spelt_bytes(self._spelt(token), self._byte_of)


def spelt_bytes(text: str, byte_of: Mapping[str, int]) -> bytes:
    """The bytes that a piece spells; a character outside the alphabet stands for itself."""
    return b"".join(bytes([byte_of[c]]) if c in byte_of else c.encode("utf-8", "surrogateescape") for c in text)


def isolate(pattern: Any, text: str) -> Iterable[str]:
    """The matches and what lies between them."""
    done = 0
    for match in pattern.finditer(text):
        start, end = match.span()
        if done < start:
            yield text[done:start]
        if start < end:
            yield text[start:end]
        done = end
    if done < len(text):
        yield text[done:]
