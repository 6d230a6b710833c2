"""Merges from an order of pieces, and an order of pieces from merges.

SentencePiece and tiktoken join by what two pieces make; GPT-2's merges name the two. What the order stems from (scores,
ranks) and how either is stored is not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from itertools import groupby


def splits_of(piece: str, known: Container[str]) -> Iterator[tuple[str, str]]:
    """Every way to cut a piece into two known ones, the longest left part first."""
    for at in range(len(piece) - 1, 0, -1):
        if (left := piece[:at]) in known and (right := piece[at:]) in known:
            yield left, right


def by_score(pieces: Iterable[str], known: Container[str]) -> list[tuple[str, str]]:
    """Merges that join as the scores of pieces do, given best first. Equal to what transformers makes of a .model."""
    return [pair for piece in pieces for pair in splits_of(piece, known)]


def by_rank(ranks: Mapping[str, int]) -> list[tuple[str, str]]:
    """Merges that join as tiktoken does: by the rank of what two pieces make. In the order of Llama 3's own file."""

    def ordered(piece: str) -> list[tuple[str, str]]:
        return sorted(splits_of(piece, ranks), key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))

    return [pair for piece in sorted(ranks, key=ranks.__getitem__) for pair in ordered(piece)]


def order_of(merges: Iterable[tuple[str, str]]) -> list[str]:
    """What the merges make, each once, best first."""
    return list(dict.fromkeys(left + right for left, right in merges))


def told_by_order(merges: list[tuple[str, str]], known: Collection[str]) -> bool:
    """Whether the order of what they make says all of these merges: every split of every piece, side by side."""
    made = [piece for piece, _ in groupby(left + right for left, right in merges)]
    if len(set(made)) != len(made) or len(set(merges)) != len(merges):
        return False
    return len(merges) == sum(1 for piece in known for _ in splits_of(piece, known))
