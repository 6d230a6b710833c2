"""tokenizer.json, by the library that defines it: `tokenizers`.

Directories and other files are not known here, nor how the library works; what its decoder means is.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import TokenizerError
from .base import Roles, Tokenizer
from .bytebpe import GPT2_ALPHABET, spelt_bytes
from .spm import SPACE

DECODERS = {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"}
_BYTE_OF = {character: byte for byte, character in enumerate(GPT2_ALPHABET)}


class Rust(Tokenizer):
    """A tokenizer.json. `names` gives the texts of bos, eos, pad and unk; `ends` more ids that end a turn.

    BOS and EOS are added as the file's post-processor does. transformers 5 reads it so too: with a tokenizer.json
    there, it passes over `add_bos_token` and `add_eos_token` of tokenizer_config.json (tokenization_utils_base.py).
    """

    def __init__(
        self,
        path: Path,
        names: Mapping[str, str] | None = None,
        ends: Sequence[int] = (),
        added: Sequence[tuple[int, str, bool]] = (),
    ):
        self._file = _read(path)
        self._lock = threading.Lock()
        self._anew: dict[int, bool] = {}
        names = names or {}
        _complete(self._file, names, added)
        found = self._file.get_added_tokens_decoder()
        self.added = found
        """The library's AddedToken of each id that has one."""
        self._kinds, trims = self._decoder()
        spaces = SPACE if self._kinds & {"Replace", "Metaspace"} else " "
        self._added = {token: str(each.content).replace(spaces, " ").encode() for token, each in found.items()}
        control = {each.content: token for token, each in found.items() if each.special}
        size = max([self._file.get_vocab_size(with_added_tokens=False), *(token + 1 for token in found)])
        super().__init__(size, control, self._read_roles(names, tuple(ends)), trims)

    def _decoder(self) -> tuple[set[str], bool]:
        """The kinds of decoders the file chains, and whether they drop the first space of a text."""
        if self._file.decoder is None:
            return set(), True  # tokens are words, with spaces between
        steps = list(_typed(json.loads(self._file.decoder.__getstate__())))
        kinds = {step["type"] for step in steps} - {"Sequence"}
        if unknown := kinds - DECODERS:
            raise TokenizerError(
                f"This file decodes by {', '.join(sorted(unknown))}; known are {', '.join(sorted(DECODERS))}. "
                "It is probably not a language model's."
            )
        return kinds, any(_drops_space(step) for step in steps)

    def _read_roles(self, names: Mapping[str, str], ends: tuple[int, ...]) -> Roles:
        id_of = {role: self._file.token_to_id(text) for role, text in names.items()}
        plain, whole = (self._file.encode("a", add_special_tokens=flag).ids for flag in (False, True))
        before = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        first, last = whole[:before], whole[before + len(plain) :]
        return Roles(
            bos=first[0] if first else id_of.get("bos_token"),
            eos=last[0] if last else id_of.get("eos_token"),
            pad=id_of.get("pad_token"),
            unk=id_of.get("unk_token"),
            adds_bos=bool(first),
            adds_eos=bool(last),
            ends=ends,
        )

    def _ids(self, text: str, special: bool) -> list[int]:
        with self._lock:  # the setting belongs to the file's object, not to a call
            self._file.encode_special_tokens = not special
            ids: list[int] = self._file.encode(text, add_special_tokens=False).ids
        return ids

    def _parts(self, text: str, mark: str) -> Iterator[tuple[int, int | None, list[int]]]:
        return super()._parts(text, mark) if mark and mark in text else iter([(0, None, self._ids(text, True))])

    def _plain(self, text: str, after: int | None = None) -> list[int]:
        if after is None or self._begins_anew(after):
            return self._ids(text, False)
        before = self._ids("a\n", False)  # what follows a newline gets no space of its own
        ids = self._ids("a\n" + text, False)
        return ids[len(before) :] if ids[: len(before)] == before else self._ids(text, False)

    def _begins_anew(self, after: int) -> bool:
        """Whether text after this token is read as at the start of a text, where some put a space before it."""
        if after not in self._anew:
            ids = self._ids(str(self.added[after].content) + "a", True)
            self._anew[after] = ids == [after, *self._ids("a", False)]
        return self._anew[after]

    def _piece(self, token: int) -> bytes:
        if (text := self._added.get(token)) is not None:
            return text
        spelt: str = self._file.id_to_token(token) or ""
        if "ByteLevel" in self._kinds:
            return spelt_bytes(spelt, _BYTE_OF)
        if not self._kinds:
            return b" " + spelt.encode()
        if len(spelt) == 6 and spelt.startswith("<0x"):
            return bytes.fromhex(spelt[3:5])
        return spelt.replace(SPACE, " ").encode()


def _read(path: Path) -> Any:
    from tokenizers import Tokenizer as File

    try:
        return File.from_file(str(path))
    except Exception as problem:  # the library raises nothing more precise
        raise TokenizerError(
            f"{path} is no tokenizer.json that can be read: {problem}. Fetch or copy the file again."
        ) from None


def _complete(file: Any, names: Mapping[str, str], added: Sequence[tuple[int, str, bool]]) -> None:
    """Adds the tokens that tokenizer_config.json knows and tokenizer.json does not, as transformers does."""
    from tokenizers import AddedToken

    known = {each.content for each in file.get_added_tokens_decoder().values()}
    wanted = [(text, special) for _, text, special in sorted(added)]
    wanted += [(text, True) for text in names.values() if file.token_to_id(text) is not None]
    for text, special in wanted:
        if text not in known:
            known.add(text)
            token = AddedToken(text, special=special, normalized=not special)
            (file.add_special_tokens if special else file.add_tokens)([token])
    for number, text, _ in added:
        if file.token_to_id(text) != number:
            raise TokenizerError(
                f"tokenizer_config.json gives {text!r} the id {number}, and tokenizer.json {file.token_to_id(text)}. "
                "The two are not of the same model: fetch both again."
            )


def _typed(state: Any) -> Iterator[dict[str, Any]]:
    """Every part of a component's description that has a type, nested ones included."""
    if isinstance(state, list):
        for each in state:
            yield from _typed(each)
    elif isinstance(state, dict):
        if "type" in state:
            yield state
        for each in state.values():
            yield from _typed(each)


def _drops_space(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return bool(step.get("prepend_scheme", "always") != "never")
    return bool(step["type"] == "Strip" and step.get("content") == " " and step.get("start", 0) > 0)
