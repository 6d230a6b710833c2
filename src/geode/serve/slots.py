"""The places of a server's models: what stands in each, by which names it is asked for, and who uses it now.

How a model is loaded, and whether there is room for it, is not known here. Whoever holds `lock` has it as it is;
nothing here takes long.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from ..config import Config
from ..errors import ModelNotFound, OptionError
from . import loading
from .loading import Facts, Served
from .settings import Settings, Source

LOOK = 1.0  # seconds between two looks at whether a model's files were replaced
log = logging.getLogger("geode.serve")

Read = Callable[[Source, Mapping[str, Any]], Facts]


@dataclass(frozen=True)
class Card:
    """What may be told of a model whether or not it is loaded. `base` is set for an adapter. Bytes, seconds, tokens."""

    name: str
    created: int
    size: int
    context: int
    loaded: bool
    config: Config
    family: str = ""
    format: str = ""
    base: str | None = None
    aliases: tuple[str, ...] = ()
    path: str = ""


@dataclass(eq=False)
class Slot:
    """The place of one source, and what stands there now."""

    source: Source
    facts: Facts | None = None
    root: Root | None = None
    idle: float | None = None
    coming: Future[None] | None = None
    looked: float = 0.0
    bad: loading.Stamp | None = None  # files that could not be loaded in the place of what is served


@dataclass(eq=False)
class Root:
    """An engine and its weights, the requests that use it, and when the last of them left."""

    served: Served
    used: float
    users: int = 0
    views: dict[str, Served] = field(default_factory=dict)


class Lease:
    """A model that stays loaded until `release`, which is harmless twice."""

    def __init__(self, slots: Slots, root: Root, served: Served):
        self.served = served
        self._slots, self._root = slots, root
        self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._slots.let_go(self._root)


class Slots:
    """All places. `read` tells of a source what `loading.facts` does; `bury` closes a model that nobody uses, later."""

    def __init__(self, settings: Settings, read: Read, bury: Callable[[Served], object], clock: Callable[[], float]):
        self.lock = threading.RLock()
        self.every = [Slot(source, idle=settings.idle) for source in settings.models]
        self._retired: list[Root] = []
        self._read, self._loading = read, settings.loading
        self._bury, self._clock = bury, clock

    # Names

    def names(self) -> list[str]:
        """Models and adapters, without their aliases."""
        return [name for slot in self.every for name in (slot.source.name, *slot.source.adapters)]

    def find(self, name: str) -> tuple[Slot, str | None]:
        """Where the model of a name stands, and the name again where it is an adapter's. Raises ModelNotFound."""
        for slot in self.every:
            if name == slot.source.name or name in slot.source.aliases:
                return slot, None
            if name in slot.source.adapters:
                return slot, name
        raise ModelNotFound(
            f"There is no model {name[:200]!r} on this server. There are: {', '.join(self.names())}. "
            "GET /v1/models lists them."
        )

    def check_free(self, name: str) -> None:
        """Raises OptionError where something has that name."""
        if any(name in slot.source.names for slot in self.every):
            raise OptionError(f"The name {name} is taken. Unload that adapter first, or choose another name.")

    def facts(self, slot: Slot) -> Facts:
        """What headers tell, read when it is first asked for."""
        if slot.facts is None:
            slot.facts = self._read(slot.source, self._loading)
        return slot.facts

    def cards(self, slot: Slot) -> list[Card]:
        """Of a model and its adapters."""
        source, known, root = slot.source, self.facts(slot), slot.root
        card = Card(
            source.name,
            known.created,
            known.size,
            root.served.context if root else known.config.context,
            root is not None,
            known.config,
            known.family,
            known.format,
            aliases=source.aliases,
            path=source.path,
        )
        return [
            card,
            *(replace(card, name=n, base=source.name, aliases=(), path=p) for n, p in source.adapters.items()),
        ]

    # Use

    def taken(self, slot: Slot, adapter: str | None) -> Lease | None:
        """A lease, where the model is there and its files are those it was read from."""
        root = self.working(slot)
        if root is None or not self._is_current(slot, root):
            return None
        if adapter is not None and adapter not in slot.source.adapters:
            raise ModelNotFound(f"The adapter {adapter} was unloaded.")
        root.users += 1
        try:
            return Lease(self, root, _view(slot, root, adapter))
        except BaseException:
            root.users -= 1
            raise

    def let_go(self, root: Root) -> None:
        """One of its users has left."""
        with self.lock:
            root.users -= 1
            root.used = self._clock()
            if not root.users and root in self._retired:
                self._retired.remove(root)
                self._bury(root.served)

    def working(self, slot: Slot) -> Root | None:
        """What stands in a slot. One whose engine has failed goes, and is loaded anew for whoever asks next."""
        if slot.root and slot.root.served.engine.failed is not None:
            log.warning("unloaded %s, whose engine failed", slot.source.name)
            self.retire(slot)
        return slot.root

    def fill(self, slot: Slot, served: Served) -> None:
        """Puts a model in the place of what stood there."""
        with self.lock:
            self.retire(slot)
            slot.root, slot.looked, slot.bad = Root(served, self._clock()), self._clock(), None

    def retire(self, slot: Slot) -> None:
        """Takes what stands in a slot out of it; it is closed when the last request has left."""
        root, slot.root = slot.root, None
        if root is None:
            return
        if root.users:
            self._retired.append(root)
        else:
            self._bury(root.served)

    def roots(self) -> list[Root]:
        """All that is in memory: what stands in slots, and what is out of one and still used."""
        with self.lock:
            return [*(slot.root for slot in self.every if slot.root), *self._retired]

    def idle_longest(self) -> Served | None:
        """The model that was unused longest, taken out of its slot. None where all are busy, or none is there."""
        with self.lock:
            idle = [(slot.root.used, i) for i, slot in enumerate(self.every) if slot.root and not slot.root.users]
            if not idle:
                return None
            slot = self.every[min(idle)[1]]
            root, slot.root = slot.root, None
        assert root is not None
        return root.served

    def close(self) -> None:
        """Takes everything out of its slot, and closes also what is used."""
        with self.lock:
            for slot in self.every:
                self.retire(slot)
            left, self._retired = self._retired, []
        for root in left:
            self._bury(root.served)

    def _is_current(self, slot: Slot, root: Root) -> bool:
        now = self._clock()
        if now - slot.looked < LOOK:
            return True
        slot.looked = now
        marks = loading.fresh(root.served.stamp)
        return marks in (root.served.stamp, slot.bad)


def _view(slot: Slot, root: Root, adapter: str | None) -> Served:
    if adapter is None:
        return root.served
    if adapter not in root.views:
        root.views[adapter] = loading.as_adapter(root.served, adapter, slot.source.adapters[adapter])
    return root.views[adapter]


def shut(served: Served) -> None:
    """Closes a model, whatever comes of it: whoever asked is gone, and the next one must still come."""
    try:
        served.close()
    except Exception:
        log.exception("closing %s failed", served.name)
