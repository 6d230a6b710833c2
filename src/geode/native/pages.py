"""Which pages of keys and values belong to which text.

What lies in a page is the extension's business. Layers that see equally far form a group with pages of its own; pages
that lie wholly behind a group's window are given back at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import Config
from ..errors import CapacityError

PAGE = 64  # positions in a page; csrc/cache.h has the same number


@dataclass(frozen=True)
class Group:
    """Layers of one window (None: they see everything), by number."""

    window: int | None
    layers: tuple[int, ...]

    def pages(self, tokens: int, chunk: int) -> int:
        """How many one text of `tokens` holds at most while chunks of at most `chunk` tokens are added to it."""
        whole = -(-tokens // PAGE)
        return whole if self.window is None else min(whole, -(-(self.window + chunk) // PAGE) + 1)


def groups(config: Config) -> tuple[Group, ...]:
    """The network's layers by what they see."""
    windows = dict.fromkeys(layer.window for layer in config.layers)
    return tuple(
        Group(window, tuple(i for i, layer in enumerate(config.layers) if layer.window == window)) for window in windows
    )


def page_bytes(config: Config, group: Group, kv_type: str) -> int:
    """Memory of one page of a group, about."""
    itemsize = {"F32": 4, "F16": 2, "BF16": 2, "Q8_0": 1.125}[kv_type]
    return int(len(group.layers) * 2 * config.kv_width * itemsize * PAGE)


class Pages:
    """The free pages of every group. `short`: there are fewer than were asked for, because memory has no more."""

    def __init__(self, counts: Sequence[int], short: bool = False):
        self.counts = tuple(counts)
        self.short = short
        self._free = [list(range(count - 1, -1, -1)) for count in counts]

    def take(self, group: int) -> int:
        """A page of a group. Raises CapacityError when none is left."""
        if not self._free[group]:
            raise CapacityError(self._none_left(group))
        return self._free[group].pop()

    def _none_left(self, group: int) -> str:
        full = f"All {self.counts[group]} pages of {PAGE} positions for keys and values are in use"
        if self.short:
            return (
                f"{full}; memory had no room for more when the texts began. End the text here, run fewer together, "
                "or choose a narrower --kv-type (q8_0 takes half)."
            )
        return f"{full}, which is all the room that was promised to prefill. Ask prefill for room for more tokens."

    def give(self, group: int, page: int) -> None:
        self._free[group].append(page)


class Text:
    """One text's tokens in the cache: how many, and on which pages. A table has -1 where a page was given back."""

    def __init__(self, pages: Pages, groups: tuple[Group, ...]):
        self.length = 0
        self.tables: list[list[int]] = [[] for _ in groups]
        self._pages = pages
        self._groups = groups
        self._behind = [0] * len(groups)  # pages given back, from the first on

    def extend(self, tokens: int) -> None:
        """Makes room for so many more tokens. Raises CapacityError."""
        for number, table in enumerate(self.tables):
            while len(table) * PAGE < self.length + tokens:
                table.append(self._pages.take(number))

    def advance(self, tokens: int) -> None:
        """So many tokens were added; pages that no later token sees are given back."""
        self.length += tokens
        for number, group in enumerate(self._groups):
            if group.window is not None:
                self._give_back(number, max(0, self.length + 1 - group.window) // PAGE)

    def release(self) -> None:
        """Gives all pages back."""
        for number, table in enumerate(self.tables):
            self._give_back(number, len(table))

    def _give_back(self, group: int, until: int) -> None:
        table = self.tables[group]
        for i in range(self._behind[group], until):
            self._pages.give(group, table[i])
            table[i] = -1
        self._behind[group] = max(until, self._behind[group])


def table(texts: Sequence[Text], group: int) -> np.ndarray:
    """The page tables of a group side by side: int32 (texts, pages of the longest), filled up with -1."""
    rows = [text.tables[group] for text in texts]
    array = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for row, numbers in zip(array, rows, strict=True):
        row[: len(numbers)] = numbers
    return array
