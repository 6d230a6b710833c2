"""Pages that texts share: who holds which, which are kept though nobody does, and what they hold, by content.

What lies in a page is not known here, nor who runs when.

    free ── take ──> held by 1 text ── hold ──> by 2 ... ── give ──> by nobody: kept if it has a name, else free
     ^                                                                  │
     └────────────── the longest kept goes first, when none is free ────┘

A page's name is a digest of all ids up to its end (and of the adapter and the salt), so equal names mean equal
contents. Only whole pages have names, and so nobody ever writes to a page that others read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np

from ..errors import CapacityError
from ..native import pages as native
from ..native.pages import PAGE, Group


class Store(native.Pages):
    """The pages of every group of layers."""

    def __init__(self, counts: Sequence[int], groups: tuple[Group, ...], chunk: int):
        super().__init__(counts)
        self.groups = groups
        self.chunk = chunk  # tokens that a text grows by at once, at most
        self.texts: dict[Text, None] = {}  # those that are open
        self.coming: dict[bytes, Text] = {}  # names of pages that a text is about to fill
        self._users = [[0] * count for count in counts]
        self._kept: list[dict[int, None]] = [{} for _ in counts]  # the longest kept first
        self._named: list[dict[bytes, int]] = [{} for _ in counts]
        self._names: list[dict[int, bytes]] = [{} for _ in counts]

    def take(self, group: int) -> int:
        """A page for one text. Raises CapacityError when all are held."""
        if not self._free[group] and self._kept[group]:
            page = next(iter(self._kept[group]))
            del self._kept[group][page]
            self._unname(group, page)
            self._free[group].append(page)
        page = super().take(group)
        self._users[group][page] = 1
        return page

    def hold(self, group: int, page: int) -> None:
        """One text more holds a page."""
        self._kept[group].pop(page, None)
        self._users[group][page] += 1

    def give(self, group: int, page: int, keep: bool = True) -> None:
        """One text less holds it."""
        self._users[group][page] -= 1
        if self._users[group][page]:
            return
        if keep and page in self._names[group]:
            self._kept[group][page] = None
            return
        self._unname(group, page)
        super().give(group, page)

    def name(self, group: int, page: int, name: bytes) -> None:
        """Says what a page holds. The second page of the same content stays without a name."""
        if name not in self._named[group]:
            self._named[group][name] = page
            self._names[group][page] = name

    def found(self, group: int, names: Sequence[bytes]) -> list[int]:
        """The pages of these names, which must be there."""
        return [self._named[group][name] for name in names]

    def longest(self, names: Sequence[bytes]) -> int:
        """How many of a text's pages can be taken from here: in each group all that its next token sees are there."""
        runs = [self._run_lengths(group, names) for group in range(len(self.groups))]
        for count in range(len(names), 0, -1):
            if all(run[count - 1] >= count - seen_from(g, count) for run, g in zip(runs, self.groups, strict=True)):
                return count
        return 0

    def drop(self, names: Sequence[bytes]) -> None:
        """Frees the pages of these names that nobody holds."""
        for group, kept in enumerate(self._kept):
            for page in [page for name in names if (page := self._named[group].get(name)) in kept]:
                del kept[page]
                self._unname(group, page)
                self._free[group].append(page)

    def spare(self, group: int) -> int:
        """Pages that are free beyond half of all."""
        return max(0, len(self._free[group]) - self.counts[group] // 2)

    def adopt(self, group: int, name: bytes) -> int | None:
        """A free page becomes a kept one of that name; None where there is none, or the name is there."""
        if name in self._named[group] or not self._free[group]:
            return None
        page = self._free[group].pop()
        self.name(group, page, name)
        self._kept[group][page] = None
        return page

    def kept(self) -> Iterator[tuple[int, int, bytes]]:
        """(group, page, name) of the pages that nobody holds, the longest kept first."""
        for group, pages in enumerate(self._kept):
            yield from ((group, page, self._names[group][page]) for page in pages)

    def counted(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Held, kept, all."""
        kept = tuple(map(len, self._kept))
        free = map(len, self._free)
        return tuple(n - k - f for n, k, f in zip(self.counts, kept, free, strict=True)), kept, self.counts

    def room(self, group: int) -> int:
        """Pages that may be taken, less those that open texts will need for what they are about to run."""
        return len(self._free[group]) + len(self._kept[group]) - sum(text.owed(group) for text in self.texts)

    def asleep(self, group: int, pages: Sequence[int]) -> int:
        """How many of some pages nobody holds."""
        return sum(page in self._kept[group] for page in pages)

    def check(self) -> None:
        """Raises AssertionError where the books do not agree."""
        for group, count in enumerate(self.counts):
            users = [0] * count
            for text in self.texts:
                for page in text.tables[group]:
                    if page >= 0:
                        users[page] += 1
            assert users == self._users[group], f"group {group}: pages are held by others than said"
            free, kept = self._free[group], self._kept[group]
            held = {page for page in range(count) if users[page]}
            assert len(set(free)) == len(free), f"group {group}: a page is free twice"
            assert len(free) + len(kept) + len(held) == count, f"group {group}: pages are lost"
            assert set(free) | set(kept) | held == set(range(count)), f"group {group}: a page is in two places"
            names = {page: name for name, page in self._named[group].items()}
            assert names == self._names[group], f"group {group}: names disagree"
            assert set(kept) <= set(names) and not set(free) & set(names), f"group {group}: kept without a name"

    def _run_lengths(self, group: int, names: Sequence[bytes]) -> list[int]:
        """For each name how many pages are there in a row up to its own."""
        found, lengths, run = self._named[group], [], 0
        for name in names:
            run = run + 1 if name in found else 0
            lengths.append(run)
        return lengths

    def _unname(self, group: int, page: int) -> None:
        if (name := self._names[group].pop(page, None)) is not None:
            del self._named[group][name]


class Text(native.Text):
    """One text on shared pages; see `runner.Text`. `root` tells apart what is not to be shared."""

    def __init__(self, store: Store, ids: np.ndarray, root: bytes):
        super().__init__(store, store.groups)
        self.cached = 0
        self._store = store
        self._ids = ids
        self._chain = [root]  # and the names of the pages, as far as they were asked for
        self._goal = 0  # tokens that it was opened for

    def waits(self, shared: int) -> bool:
        """Whether somebody is about to fill the first page that is not there yet."""
        if not self._store.coming:
            return False
        names = self._names_of(shared // PAGE)
        there = self._store.longest(names)
        return there < len(names) and names[there] in self._store.coming

    def open(self, known: int, shared: int) -> bool:
        """Enters with the pages that are there."""
        names = self._names_of(shared // PAGE)
        there = self._store.longest(names)
        if not self._fits(known, names[:there]):
            return False
        self.length = self.cached = there * PAGE
        self._goal = known
        for number, group in enumerate(self._groups):
            behind = seen_from(group, there)
            pages = self._store.found(number, names[behind:there])
            for page in pages:
                self._store.hold(number, page)
            self.tables[number] = [-1] * behind + pages
            self._behind[number] = behind
        self._store.texts[self] = None
        self._store.coming.update((name, self) for name in names[there:] if name not in self._store.coming)
        return True

    def grow(self, tokens: int) -> bool:
        try:
            self.extend(tokens)
        except CapacityError:
            return False
        return True

    def advance(self, tokens: int) -> None:
        """Names the pages that are whole now, before any is given back."""
        whole = range(self.length // PAGE, (self.length + tokens) // PAGE)
        if whole:
            names = self._names_of(whole.stop)
            for i in whole:
                self._name(i, names[i])
        super().advance(tokens)

    def release(self, keep: bool = True) -> None:
        """The end goes first: a beginning is worth more, and nothing without its beginning is worth anything."""
        for number, table in enumerate(self.tables):
            for i in range(len(table) - 1, self._behind[number] - 1, -1):
                self._store.give(number, table[i], keep)
        if not keep:
            self._store.drop(self._chain[1 : self.length // PAGE + 1])
        self.tables = [[] for _ in self._groups]
        self._behind = [0] * len(self._groups)
        for name in self._chain[1:]:
            self._arrived(name)
        self._store.texts.pop(self, None)
        self.length = self._goal = 0

    def owed(self, group: int) -> int:
        """Pages that it still needs for what it was opened for."""
        if self.length >= self._goal - 1:
            return 0
        most = self._groups[group].pages(self._goal, self._store.chunk)
        return max(0, most - (len(self.tables[group]) - self._behind[group]))

    def _fits(self, known: int, names: Sequence[bytes]) -> bool:
        """Whether there is room for `known` tokens besides these pages, and a page more for each open text to grow."""
        store = self._store
        for number, group in enumerate(self._groups):
            pages = store.found(number, names[seen_from(group, len(names)) :])
            need = max(0, group.pages(known, store.chunk) - len(pages))
            if need + store.asleep(number, pages) + len(store.texts) > store.room(number):
                return False
        return True

    def _name(self, index: int, name: bytes) -> None:
        for number, table in enumerate(self.tables):
            if table[index] >= 0:
                self._store.name(number, table[index], name)
        self._arrived(name)

    def _arrived(self, name: bytes) -> None:
        if self._store.coming.get(name) is self:
            del self._store.coming[name]

    def _names_of(self, count: int) -> list[bytes]:
        """Names of the first pages, which must be full of known ids."""
        chain = self._chain
        while len(chain) <= count:
            start = (len(chain) - 1) * PAGE
            chain.append(blake2b(chain[-1] + self._ids[start : start + PAGE].tobytes(), digest_size=32).digest())
        return chain[1 : count + 1]


def root(key: bytes, salt: str) -> bytes:
    """What the names of all pages begin from: texts with different weights or salts share nothing."""
    return blake2b(
        len(key).to_bytes(8, "little") + key + salt.encode("utf-8", "surrogatepass"), digest_size=32
    ).digest()


def seen_from(group: Group, pages: int) -> int:
    """The first of `pages` whole pages that the token behind them sees."""
    return 0 if group.window is None else min(pages, max(0, pages * PAGE + 1 - group.window) // PAGE)
