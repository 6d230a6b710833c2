"""The one loop of byte-pair encoding: join the best two neighbours until none can be joined.

What makes a pair better than another (a score, a rank) is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush


def merge(parts: Iterable[str], rank: Callable[[str, str], float | None]) -> list[str]:
    """The parts after all joins: lowest rank first, leftmost among equals; a pair without a rank stays apart."""
    pieces: list[str] = list(parts)
    after = list(range(1, len(pieces) + 1))
    before = list(range(-1, len(pieces) - 1))
    heap: list[tuple[float, int, str, str]] = []
    for i in range(len(pieces) - 1):
        if (value := rank(pieces[i], pieces[i + 1])) is not None:
            heap.append((value, i, pieces[i], pieces[i + 1]))
    heapify(heap)
    while heap:
        _, left, first, second = heappop(heap)
        right = after[left]
        if pieces[left] != first or right == len(pieces) or pieces[right] != second:
            continue  # one of the two was joined with another meanwhile
        pieces[left], pieces[right] = first + second, ""
        after[left] = end = after[right]
        if end < len(pieces):
            before[end] = left
            if (value := rank(pieces[left], pieces[end])) is not None:
                heappush(heap, (value, left, pieces[left], pieces[end]))
        if (start := before[left]) >= 0 and (value := rank(pieces[start], pieces[left])) is not None:
            heappush(heap, (value, start, pieces[start], pieces[left]))
    return [piece for piece in pieces if piece]
