"""The one face of all tokenizers, and what they share: beginnings, ends, control tokens, decoding.

How text becomes pieces is not known here; each engine says so in `_plain` and `_piece`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

from ..errors import TokenizerError
from .stream import StreamDecoder

ENDS = frozenset(
    {
        "</s>",
        "<eos>",
        "<end_of_turn>",
        "<turn|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|END_OF_TURN_TOKEN|>",
        "<｜end▁of▁sentence｜>",
        "<EOT>",
        "<end_of_utterance>",
        "<|return|>",
        "<|call|>",
    }
)
"""Control tokens that end a turn or a text, whatever else a file says (after `special_eog_ids` in llama-vocab.cpp)."""


@dataclass(frozen=True)
class Roles:
    """The ids with a role, and whether the reference puts BOS before and EOS after a text; `ends` adds to the eos."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unk: int | None = None
    adds_bos: bool = False
    adds_eos: bool = False
    ends: tuple[int, ...] = ()


class Tokenizer(ABC):
    """A vocabulary with its rules.

    size           ids 0 … size-1 are tokens; embedding rows beyond are padding and must never be sampled
    bos            id of the beginning-of-text token, or None
    adds_bos       whether the reference puts it before a text
    ends           every id that ends a turn or a text
    control        control tokens by their text
    special_texts  the texts of bos_token, eos_token, pad_token, unk_token, those that are there, for chat templates
    """

    def __init__(self, size: int, control: Mapping[str, int], roles: Roles, trims: bool = False):
        self.size = size
        self.control = dict(control)
        self.roles = roles
        self.bos = roles.bos
        self.adds_bos = roles.adds_bos and roles.bos is not None
        named = {token for text, token in self.control.items() if text in ENDS}
        eos = {roles.eos} if roles.eos is not None else set()
        self.ends = frozenset({token for token in {*named, *eos, *roles.ends} if 0 <= token < size})
        self._trims = trims
        self._silent = frozenset(self.control.values())

    # Text to ids

    def encode(self, text: str, *, bos: bool | None = None, special: bool = False, mark: str = "") -> list[int]:
        """Ids of a text.

        `bos` None is what the reference does, EOS included where it adds one; True insists on one BOS, False leaves it
        out. Control tokens are recognised with `special` only, there without `mark` inside them; the marks are dropped.
        Lone surrogates become U+FFFD. Raises TokenizerError where a BOS is asked for and there is none.
        """
        if bos and self.bos is None:
            raise TokenizerError("A BOS token was asked for, and this vocabulary has none. Leave out bos=True.")
        text = _sound(text)
        ids = self._marked(text, mark) if special else self._plain(text)
        wanted = self.adds_bos if bos is None else bos
        if wanted and self.bos is not None and not (special and ids[:1] == [self.bos]):
            ids = [self.bos, *ids]
        if bos is None and self.roles.adds_eos and self.roles.eos is not None:
            ids = [*ids, self.roles.eos]
        return ids

    def located(
        self, text: str, places: Sequence[int], *, bos: bool = False, mark: str = ""
    ) -> tuple[list[int], list[int]]:
        """Ids as `encode` gives them with `special`, and how many of them stand before each of the places in the text.

        A token that reaches over a place stands after it. Only what lies between two control tokens is encoded twice.
        """
        if (sound := _sound(text)) != text:
            text, places = sound, [len(_sound(text[:place])) for place in places]
        ids: list[int] = []
        parts: list[tuple[int, int, int | None, list[int]]] = []
        for start, after, part in self._parts(text, mark):
            parts.append((start, len(ids), after, part))
            ids += part
        parts.append((len(text), len(ids), None, []))
        counts = []
        for place in places:
            start, count, after, part = parts[bisect_right(parts, place, key=itemgetter(0)) - 1]
            counts.append(count + common(part, self._again(text[start:place], after, mark)))
        if bos and self.bos is not None and ids[:1] != [self.bos]:
            return [self.bos, *ids], [count + 1 for count in counts]
        return ids, counts

    def _again(self, text: str, after: int | None, mark: str) -> list[int]:
        """Ids of the beginning of a part."""
        if after is None:
            return self._marked(text, mark)
        return self._plain(text.replace(mark, "") if mark else text, after)

    def _marked(self, text: str, mark: str) -> list[int]:
        """Ids with control tokens recognised, but for those that a mark breaks."""
        return [token for _, _, part in self._parts(text, mark) for token in part]

    def _parts(self, text: str, mark: str) -> Iterator[tuple[int, int | None, list[int]]]:
        """Control tokens and what lies between: where each begins in the text, the control token before it, its ids."""
        start, after = 0, None
        for part in self._controls.split(text):
            if isinstance(part, int):
                yield start, after, [part]
                start += len(self._control_texts[part])
                after = part
            else:
                yield start, after, self._plain(part.replace(mark, "") if mark else part, after)
                start += len(part)

    @cached_property
    def _controls(self) -> Matcher:
        return Matcher(self.control)

    @cached_property
    def _control_texts(self) -> dict[int, str]:
        return {token: text for text, token in self.control.items()}

    @abstractmethod
    def _plain(self, text: str, after: int | None = None) -> list[int]:
        """Ids of text in which no control token is looked for. `after`: the one before it, None where a text begins."""

    # Ids to text

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ids, without control tokens unless `special`. Raises TokenizerError for an id out of range."""
        stream = self.stream(start=True, special=special)
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self, *, start: bool = False, special: bool = False) -> StreamDecoder:
        """A decoder of ids that come one by one. Without `start` they continue a text and keep their first space."""
        return StreamDecoder(self.piece if special else self._shown, trim=start and self._trims)

    def piece(self, token: int) -> bytes:
        """The bytes of one id. Raises TokenizerError when it is out of range."""
        if not 0 <= token < self.size:
            raise TokenizerError(f"Token ids of this vocabulary are 0 to {self.size - 1}; {token} is none of them.")
        return self._piece(int(token))

    def _shown(self, token: int) -> bytes:
        return b"" if token in self._silent else self.piece(token)

    @abstractmethod
    def _piece(self, token: int) -> bytes:
        """The bytes of an id that is in range."""

    @cached_property
    def special_texts(self) -> dict[str, str]:
        roles = {"bos_token": self.bos, "eos_token": self.roles.eos}
        roles |= {"pad_token": self.roles.pad, "unk_token": self.roles.unk}
        return {
            name: self.piece(token).decode("utf-8", "replace") for name, token in roles.items() if token is not None
        }


class Matcher:
    """Finds given texts in a text, from left to right, the longest first where several begin."""

    def __init__(self, tokens: Mapping[str, int]):
        self._tokens = {text: token for text, token in tokens.items() if text}
        lengths: dict[str, set[int]] = {}
        seconds: dict[str, set[str]] = {}
        for text in self._tokens:
            lengths.setdefault(text[0], set()).add(len(text))
            seconds.setdefault(text[0], set()).add(text[1:2])
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._begins = re.compile("|".join(map(_beginning, seconds, seconds.values()))) if seconds else None

    def split(self, text: str) -> Iterator[str | int]:
        """The text in order: an id for each one found, a str for what lies between."""
        done = at = 0
        while self._begins and (match := self._begins.search(text, at)):
            at = match.start()
            found = self._at(text, at)
            if found is None:
                at += 1
                continue
            if done < at:
                yield text[done:at]
            yield self._tokens[found]
            done = at = at + len(found)
        if done < len(text):
            yield text[done:]

    def _at(self, text: str, at: int) -> str | None:
        for length in self._lengths[text[at]]:
            if (found := text[at : at + length]) in self._tokens:
                return found
        return None


def _beginning(first: str, seconds: set[str]) -> str:
    """A pattern of where texts that begin with these two characters may stand; "" is the second of a single one."""
    return re.escape(first) + ("" if "" in seconds else f"(?=[{re.escape(''.join(sorted(seconds)))}])")


def common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many elements two sequences begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _sound(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates, which no UTF-8 holds, replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
