"""The models of one server: loaded when they are asked for, let go of when nobody does, within a budget of memory.

What a model answers is not known here, nor who asks. Loading and letting go happen on one thread of their own, one
after the other; everything else only looks at tables, under a lock that is never held for long.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from .. import memory
from ..config import Config
from ..errors import CapacityError, GeodeError, ModelNotFound, OptionError
from ..lm import Local
from . import loading
from .loading import Facts, Served
from .plan import share
from .settings import NAME, Settings, Source

__all__ = ["Card", "Lease", "Models", "Served", "fixed"]

LOOK = 1.0  # seconds between two looks at whether a model's files were replaced
RETRY = 5.0  # seconds that whoever finds no room is asked to wait
log = logging.getLogger("geode.serve")

T = TypeVar("T")
Load = Callable[[Source, Settings, Facts, int | None], Served]
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
class _Slot:
    """The place of one source, and what stands there now."""

    source: Source
    facts: Facts | None = None
    root: _Root | None = None
    idle: float | None = None
    coming: Future[None] | None = None
    looked: float = 0.0
    bad: loading.Stamp | None = None  # files that could not be loaded in the place of what is served


@dataclass(eq=False)
class _Root:
    """An engine and its weights, the requests that use it, and when the last of them left."""

    served: Served
    used: float
    users: int = 0
    retired: bool = False  # out of its slot: closed when the last request leaves
    views: dict[str, Served] = field(default_factory=dict)


class Lease:
    """A model that stays loaded until `release`, which is harmless twice."""

    def __init__(self, models: Models, root: _Root, served: Served):
        self.served = served
        self._models, self._root = models, root
        self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._models._let_go(self._root)


class Models:
    """All models that the settings name. `load` and `read` are `loading.load` and `loading.facts`.

    `ready` once they are loaded that are to be at the start.
    """

    def __init__(
        self,
        settings: Settings,
        load: Load = loading.load,
        read: Read = loading.facts,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.settings = settings
        self._load, self._read, self._clock = load, read, clock
        self._lock = threading.RLock()
        self._worker = ThreadPoolExecutor(1, "geode-models")
        self._slots = [_Slot(source, idle=settings.idle) for source in settings.models]
        self._retired: list[_Root] = []
        self._closed = False
        self.ready = False

    # Names

    @property
    def default(self) -> str:
        """The model of a request that names none."""
        return self._slots[0].source.name

    def names(self) -> list[str]:
        """Models and adapters, without their aliases."""
        return [name for slot in self._slots for name in (slot.source.name, *slot.source.adapters)]

    def cards(self) -> list[Card]:
        """All models and adapters, loaded or not; reads headers of those that were not looked at yet."""
        return [card for slot in list(self._slots) for card in self._cards(slot)]

    def card(self, name: str) -> Card:
        """One of them, by name or alias. Raises ModelNotFound."""
        slot, adapter = self._find(name)
        wanted = adapter or slot.source.name
        return next(card for card in self._cards(slot) if card.name == wanted)

    def loaded(self) -> list[Served]:
        """What is in memory now, adapters not counted."""
        with self._lock:
            return [slot.root.served for slot in self._slots if slot.root]

    # Use

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[Served]:
        """The model of a name, loaded, and kept so while the block runs.

        Raises ModelNotFound; CapacityError, with `retry_after`, where others that are busy take all memory; and what
        loading raises.
        """
        lease = await self.acquire(name)
        try:
            yield lease.served
        finally:
            lease.release()

    async def acquire(self, name: str | None = None) -> Lease:
        """The same, to be released by hand."""
        slot, adapter = self._find(name or self.default)
        while True:
            with self._lock:
                lease = self._taken(slot, adapter)
                coming = None if lease else self._come(slot)
            if lease:
                return lease
            assert coming is not None
            await asyncio.shield(asyncio.wrap_future(coming))  # others may wait for the same

    def find(self, name: str) -> None:
        """Raises ModelNotFound where there is no model or adapter of that name."""
        self._find(name)

    def keep(self, name: str, seconds: float | None) -> None:
        """How long one model stays when nobody asks for it; None: for good."""
        with self._lock:
            self._find(name)[0].idle = seconds

    # Adapters

    async def load_adapter(self, name: str, path: str, model: str | None = None) -> None:
        """Serves an adapter under a name from now on. Raises OptionError where the name is taken."""
        if not NAME.fullmatch(name) or ".." in name:
            raise OptionError(f"{name!r} is no name for an adapter: take letters, digits and . _ - : / @ +.")
        slot, adapter = self._find(model or self.default)
        if adapter is not None:
            raise OptionError(f"{model} is an adapter itself. Name the model that {name} is for.")
        self._check_free(name)
        place = await asyncio.to_thread(loading.place, path)
        while True:
            async with self.use(slot.source.name):
                if await asyncio.wrap_future(self._submit(self._add, slot, name, path, place)):
                    return

    async def unload_adapter(self, name: str) -> None:
        """Forgets an adapter; answers that use it are finished with it. Raises ModelNotFound."""
        slot, adapter = self._find(name)
        if adapter is None:
            raise OptionError(f"{name} is a model, not an adapter, and stays.")
        await asyncio.wrap_future(self._submit(self._remove, slot, name))

    # Operation

    async def preload(self) -> None:
        """Loads the first model, and the others as far as there is room for all at once."""
        for i, slot in enumerate(self._slots if self.settings.preload else self._slots[:1]):
            with self._lock:
                if slot.root or (i and not self._fits(slot)):
                    continue
                coming = self._come(slot)
            await asyncio.shield(asyncio.wrap_future(coming))
        self.ready = True

    async def watch(self) -> None:
        """Lets go of idle models, for as long as it runs."""
        while True:
            await asyncio.sleep(LOOK)
            self.sweep()

    def sweep(self) -> None:
        """Lets go of the models that nobody has asked for long enough, and of those whose engine has failed."""
        with self._lock:
            now = self._clock()
            for slot in self._slots:
                root = self._working(slot)
                if root and not root.users and slot.idle is not None and now - root.used >= slot.idle:
                    log.info("unloaded %s, which was idle", slot.source.name)
                    self._retire(slot)

    def close(self) -> None:
        """Lets go of everything at once."""
        with self._lock:
            self._closed = True
            for slot in self._slots:
                self._retire(slot)
            left, self._retired = self._retired, []
        for root in left:
            self._worker.submit(_close, root.served)
        self._worker.shutdown(wait=True)

    # Tables, under the lock

    def _find(self, name: str) -> tuple[_Slot, str | None]:
        for slot in self._slots:
            if name == slot.source.name or name in slot.source.aliases:
                return slot, None
            if name in slot.source.adapters:
                return slot, name
        raise ModelNotFound(
            f"There is no model {name[:200]!r} on this server. There are: {', '.join(self.names())}. "
            "GET /v1/models lists them."
        )

    def _cards(self, slot: _Slot) -> list[Card]:
        source = slot.source
        known = slot.facts or self._facts(slot)
        loaded = slot.root is not None
        context = slot.root.served.context if slot.root else known.config.context
        card = Card(
            source.name,
            known.created,
            known.size,
            context,
            loaded,
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

    def _facts(self, slot: _Slot) -> Facts:
        slot.facts = self._read(slot.source, self.settings.loading)
        return slot.facts

    def _taken(self, slot: _Slot, adapter: str | None) -> Lease | None:
        """A lease, where the model is there and its files are those it was read from."""
        root = self._working(slot)
        if root is None or not self._is_current(slot, root):
            return None
        if adapter is not None and adapter not in slot.source.adapters:
            raise ModelNotFound(f"The adapter {adapter} was unloaded.")
        root.users += 1
        try:
            return Lease(self, root, self._view(slot, root, adapter))
        except BaseException:
            root.users -= 1
            raise

    def _working(self, slot: _Slot) -> _Root | None:
        """What stands in a slot. One whose engine has failed goes, and is loaded anew for whoever asks next."""
        if slot.root and slot.root.served.engine.failed is not None:
            log.warning("unloaded %s, whose engine failed", slot.source.name)
            self._retire(slot)
        return slot.root

    def _view(self, slot: _Slot, root: _Root, adapter: str | None) -> Served:
        if adapter is None:
            return root.served
        if adapter not in root.views:
            root.views[adapter] = loading.as_adapter(root.served, adapter, slot.source.adapters[adapter])
        return root.views[adapter]

    def _is_current(self, slot: _Slot, root: _Root) -> bool:
        now = self._clock()
        if now - slot.looked < LOOK:
            return True
        slot.looked = now
        marks = loading.fresh(root.served.stamp)
        return marks in (root.served.stamp, slot.bad)

    def _let_go(self, root: _Root) -> None:
        with self._lock:
            root.users -= 1
            root.used = self._clock()
            if root.retired and not root.users:
                self._retired.remove(root)
                if not self._closed:
                    self._worker.submit(_close, root.served)

    def _retire(self, slot: _Slot) -> None:
        """Takes what stands in a slot out of it; it is closed when the last request has left."""
        root, slot.root = slot.root, None
        if root is None:
            return
        root.retired = True
        if root.users:
            self._retired.append(root)
        else:
            self._worker.submit(_close, root.served)

    def _check_free(self, name: str) -> None:
        if any(name in slot.source.names for slot in self._slots):
            raise OptionError(f"The name {name} is taken. Unload that adapter first, or choose another name.")

    # Loading, on the worker's thread

    def _submit(self, work: Callable[..., T], *of: Any) -> Future[T]:
        with self._lock:
            if self._closed:
                raise CapacityError("The server is shutting down and loads nothing more.")
            return self._worker.submit(work, *of)

    def _come(self, slot: _Slot) -> Future[None]:
        """The load of a slot that is under way, or begins now."""
        if slot.coming is None:
            slot.coming = self._submit(self._bring, slot)
        return slot.coming

    def _add(self, slot: _Slot, name: str, path: str, place: Path) -> bool:
        """Loads an adapter; False where its model was just let go of."""
        self._check_free(name)
        root = slot.root
        if root is None:
            return False
        root.served.engine.adapters.load(name, place)
        with self._lock:
            slot.source = replace(slot.source, adapters={**slot.source.adapters, name: path})
        return True

    def _remove(self, slot: _Slot, name: str) -> None:
        with self._lock:
            self._find(name)
            left = {key: path for key, path in slot.source.adapters.items() if key != name}
            slot.source, root = replace(slot.source, adapters=left), slot.root
            if root:
                root.views.pop(name, None)
        if root:
            root.served.engine.adapters.unload(name)

    def _bring(self, slot: _Slot) -> None:
        """Loads a slot's model, or loads it anew; what served before goes on serving where that fails."""
        begun = self._clock()
        try:
            slot.facts = None
            root = self._loaded(slot, self._facts(slot))
        except GeodeError as problem:
            self._keep_old(slot, problem)
        except Exception as problem:
            log.exception("loading %s failed", slot.source.name)
            self._keep_old(slot, GeodeError(f"Loading {slot.source.name} failed: {type(problem).__name__}."))
        else:
            log.info("loaded %s in %.2f s", slot.source.name, self._clock() - begun)
            with self._lock:
                self._retire(slot)
                slot.root, slot.looked, slot.bad = root, self._clock(), None
        finally:
            with self._lock:
                slot.coming = None

    def _keep_old(self, slot: _Slot, problem: GeodeError) -> None:
        with self._lock:
            root = slot.root
            if root is None:
                raise problem
            log.warning("the new files of %s are not served: %s", slot.source.name, problem)
            slot.bad = loading.fresh(root.served.stamp)

    def _loaded(self, slot: _Slot, facts: Facts) -> _Root:
        kv = self._kv_memory(facts)
        self._make_room(slot, facts.size + (kv or 0))
        while True:
            try:
                return _Root(self._load(slot.source, self.settings, facts, kv), self._clock())
            except CapacityError:  # the machine has less than the budget says
                if not self._evict():
                    raise

    def _budget(self) -> int | None:
        """Bytes for all models. One model alone may have what the machine gives."""
        if self.settings.memory is not None or len(self._slots) == 1:
            return self.settings.memory
        free = self._free()
        return None if free is None else int(free * 0.9)

    def _free(self) -> int | None:
        """Bytes that are free, or would be without the models that are here."""
        free, served = memory.available(), [root.served for root in self._roots()]
        return None if free is None else free + sum(one.size + one.engine.stats().kv_used for one in served)

    def _kv_memory(self, facts: Facts) -> int | None:
        """Bytes for one model's keys and values."""
        return share(self.settings, facts, sum(map(self._size, self._slots)), self._free())

    def _size(self, slot: _Slot) -> int:
        """Of its weights; 0 where nobody can tell."""
        try:
            return (slot.facts or self._facts(slot)).size
        except GeodeError:
            return 0

    def _fits(self, slot: _Slot) -> bool:
        facts, budget = slot.facts or self._facts(slot), self._budget()
        return budget is None or self._in_use() + facts.size + (self._kv_memory(facts) or 0) <= budget

    def _in_use(self) -> int:
        return sum(root.served.reserved for root in self._roots())

    def _roots(self) -> list[_Root]:
        with self._lock:
            return [*(slot.root for slot in self._slots if slot.root), *self._retired]

    def _make_room(self, slot: _Slot, need: int) -> None:
        """Lets go of idle models, the longest unused first, until so many bytes are free of the budget."""
        budget = self._budget()
        if budget is None:
            return
        if need > budget:
            raise CapacityError(
                f"{slot.source.name} needs {need / 2**20:.0f} MiB and all models together may take "
                f"{budget / 2**20:.0f} MiB. Give the server more memory, or serve a smaller model."
            )
        while self._in_use() + need > budget:
            if not self._evict():
                raise _full(slot.source.name)

    def _evict(self) -> bool:
        """Closes the idle model that was unused longest. False where all are busy, or none is there."""
        with self._lock:
            idle = [slot for slot in self._slots if slot.root and not slot.root.users]
            if not idle:
                return False
            slot = min(idle, key=_last_used)
            root, slot.root = slot.root, None
        assert root is not None
        root.retired = True
        log.info("unloaded %s to make room", slot.source.name)
        _close(root.served)
        return True


def _last_used(slot: _Slot) -> float:
    return slot.root.used if slot.root else 0.0


def _full(name: str) -> CapacityError:
    return CapacityError(
        f"{name} is not loaded, and the memory for models is taken by others that are answering. Try again in a "
        "moment.",
        RETRY,
    )


def _close(served: Served) -> None:
    try:
        served.close()
    except Exception:  # whoever asked is gone; the next model must still come
        log.exception("closing %s failed", served.name)


def fixed(locals: Mapping[str, Local], settings: Settings | None = None) -> Models:
    """Models that are in memory already, by name: for tests, and for whoever builds an app around a model of theirs."""
    settings = replace(
        settings or Settings(models=(Source("x", "x"),)), models=tuple(Source(name, name) for name in locals)
    )

    def read(source: Source, _: Mapping[str, Any]) -> Facts:
        return Facts(0, locals[source.name].config, (), int(time.time()))

    def load(source: Source, settings: Settings, facts: Facts, kv_memory: int | None) -> Served:
        return loading.served(source, locals[source.name], settings, facts, kv_memory)

    return Models(settings, load, read)
