"""What is learnt, for people to look at: text with the learnt tokens marked.

Files and terminals are not known here: texts are returned, and whoever prints them knows what a terminal shows.

In colour what is learnt stands on green and the rest is grey, shades alternate from token to token, and control tokens
are bold; without colour what is learnt stands between ⟦ and ⟧.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np

from ..tokenizer import Tokenizer
from .batches import Micro
from .documents import Document, Item, Judged, Paired

__all__ = ["of_documents", "of_rows"]

OPEN, CLOSE = "⟦", "⟧"
LEARNT = ("\x1b[30;48;5;157m", "\x1b[30;48;5;114m")
REST = ("\x1b[38;5;250m", "\x1b[38;5;244m")
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


def of_documents(items: Sequence[Item], tokenizer: Tokenizer, count: int = 3, *, colour: bool = False) -> str:
    """The first `count` documents, each under its source and its counts."""
    parts = []
    for item in items[:count]:
        for label, document in _named(item):
            head = _line(f"{label}{document.source}: {len(document):,} tokens, {document.learnt:,} learnt")
            parts.append(f"{head}\n{_shown(document.ids, document.loss, tokenizer, colour)}")
    return "\n\n".join(parts)


def of_rows(micro: Micro, tokenizer: Tokenizer, count: int = 1, *, colour: bool = False) -> str:
    """The first `count` rows of a micro-batch, with the borders of the sequences that share a row."""
    loss_BT = np.zeros(micro.tokens_BT.shape, bool)
    loss_BT.reshape(-1)[micro.at_M[: micro.learnt] + 1] = True
    lines = zip(micro.tokens_BT, micro.segments_BT, loss_BT, strict=True)
    return "\n\n".join(
        _row(number, *line, tokenizer, colour) for number, line in enumerate(lines, 1) if number <= count
    )


def _row(
    number: int, ids: np.ndarray, segments: np.ndarray, loss: np.ndarray, tokenizer: Tokenizer, colour: bool
) -> str:
    last, learnt = int(segments.max(initial=0)), np.count_nonzero(loss)
    padding = np.count_nonzero(segments == 0)
    parts = [_line(f"row {number}: {len(ids):,} tokens, {last} sequences, {learnt:,} learnt, {padding:,} padding")]
    for segment in range(1, last + 1):
        own = segments == segment
        parts.append(f"┄┄ {segment}\n{_shown(ids[own], loss[own], tokenizer, colour)}")
    return "\n".join(parts)


def _named(item: Item) -> list[tuple[str, Document]]:
    match item:
        case Paired():
            return [("chosen, ", item.chosen), ("rejected, ", item.rejected)]
        case Judged():
            return [("good, " if item.good else "not good, ", item.document)]
        case _:
            return [("", item)]


def _line(text: str) -> str:
    return f"── {text} ──"


# Tokens


def _shown(ids: Iterable[int], loss: Iterable[bool], tokenizer: Tokenizer, colour: bool) -> str:
    tokens = _texts(ids, loss, tokenizer)
    if colour:
        return "".join(_coloured(place, *token) for place, token in enumerate(tokens))
    runs = (("".join(text for text, _, _ in run), learnt) for learnt, run in groupby(tokens, lambda token: token[1]))
    return "".join(f"{OPEN}{text}{CLOSE}" if learnt else text for text, learnt in runs)


def _coloured(place: int, text: str, learnt: bool, control: bool) -> str:
    """One token; colours end before a line does, so that they do not run to the terminal's edge."""
    begin = (LEARNT if learnt else REST)[place % 2] + BOLD * control
    return "\n".join(f"{begin}{line}{PLAIN}" if line else "" for line in text.split("\n"))


def _texts(ids: Iterable[int], loss: Iterable[bool], tokenizer: Tokenizer) -> Iterator[tuple[str, bool, bool]]:
    """Of each token its text, whether it is learnt, and whether it is a control token.

    A character that several tokens share stands with the last of them.
    """
    controls = frozenset(tokenizer.control.values())
    stream = tokenizer.stream(special=True)
    learnt = control = False
    for token, learnt in zip(ids, loss, strict=True):
        control = int(token) in controls
        yield _visible(stream.push(int(token))), bool(learnt), control
    if rest := stream.flush():
        yield rest, bool(learnt), control


def _visible(text: str) -> str:
    """The text with newlines shown, and with pictures of the characters that would steer a terminal."""
    return "".join(_picture(character) for character in text)


def _picture(character: str) -> str:
    point = ord(character)
    if character == "\n":
        return "↵\n"
    if point < 0x20:
        return chr(0x2400 + point)
    return "␡" if point == 0x7F else "\ufffd" if 0x80 <= point < 0xA0 else character
