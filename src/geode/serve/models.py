"""The models of one server: loaded when they are asked for, let go of when nobody does, within a budget of memory.

What a model answers is not known here, nor who asks. Loading and letting go happen on one thread of their own, one
after the other; everything else only looks at slots, under a lock that is never held for long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CapacityError, GeodeError, OptionError
from ..lm import Local
from . import loading
from .loading import Facts, Served
from .room import Room
from .settings import NAME, Settings, Source
from .slots import LOOK, Card, Lease, Read, Slot, Slots, shut

log = logging.getLogger("geode.serve")

T = TypeVar("T")
Load = Callable[[Source, Settings, Facts, int | None], Served]


class Models:
    """All models that the settings name. `load` and `read` are `loading.load` and `loading.facts`.

    `slots` is where they stand; `ready` once they are loaded that are to be at the start.
    """

    def __init__(
        self,
        settings: Settings,
        load: Load = loading.load,
        read: Read = loading.facts,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.settings = settings
        self._load, self._clock = load, clock
        self._worker = ThreadPoolExecutor(1, "geode-models")
        self.slots = Slots(settings, read, lambda served: self._worker.submit(shut, served), clock)
        self._room = Room(settings, self.slots)
        self._closed = False
        self.ready = False

    # Names

    @property
    def default(self) -> str:
        """The model of a request that names none."""
        return self.slots.every[0].source.name

    def names(self) -> list[str]:
        """Models and adapters, without their aliases."""
        return self.slots.names()

    def cards(self) -> list[Card]:
        """All models and adapters, loaded or not; reads headers of those that were not looked at yet."""
        return [card for slot in list(self.slots.every) for card in self.slots.cards(slot)]

    def card(self, name: str) -> Card:
        """One of them, by name or alias. Raises ModelNotFound."""
        slot, adapter = self.slots.find(name)
        wanted = adapter or slot.source.name
        return next(card for card in self.slots.cards(slot) if card.name == wanted)

    def loaded(self) -> list[Served]:
        """What is in memory now, adapters not counted."""
        with self.slots.lock:
            return [slot.root.served for slot in self.slots.every if slot.root]

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
        slot, adapter = self.slots.find(name or self.default)
        while True:
            with self.slots.lock:
                lease = self.slots.taken(slot, adapter)
                coming = None if lease else self._come(slot)
            if lease:
                return lease
            assert coming is not None
            await asyncio.shield(asyncio.wrap_future(coming))  # others may wait for the same

    def find(self, name: str) -> None:
        """Raises ModelNotFound where there is no model or adapter of that name."""
        self.slots.find(name)

    def keep(self, name: str, seconds: float | None) -> None:
        """How long one model stays when nobody asks for it; None: for good."""
        with self.slots.lock:
            self.slots.find(name)[0].idle = seconds

    # Adapters

    async def load_adapter(self, name: str, path: str, model: str | None = None) -> None:
        """Serves an adapter under a name from now on. Raises OptionError where the name is taken."""
        if not NAME.fullmatch(name) or ".." in name:
            raise OptionError(f"{name!r} is no name for an adapter: take letters, digits and . _ - : / @ +.")
        slot, adapter = self.slots.find(model or self.default)
        if adapter is not None:
            raise OptionError(f"{model} is an adapter itself. Name the model that {name} is for.")
        self.slots.check_free(name)
        place = await asyncio.to_thread(loading.place, path)
        while True:
            async with self.use(slot.source.name):
                if await asyncio.wrap_future(self._submit(self._add, slot, name, path, place)):
                    return

    async def unload_adapter(self, name: str) -> None:
        """Forgets an adapter; answers that use it are finished with it. Raises ModelNotFound."""
        slot, adapter = self.slots.find(name)
        if adapter is None:
            raise OptionError(f"{name} is a model, not an adapter, and stays.")
        await asyncio.wrap_future(self._submit(self._remove, slot, name))

    # Operation

    async def preload(self) -> None:
        """Loads the first model, and the others as far as there is room for all at once."""
        for i, slot in enumerate(self.slots.every if self.settings.preload else self.slots.every[:1]):
            with self.slots.lock:
                if slot.root or (i and not self._room.fits(slot)):
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
        with self.slots.lock:
            now = self._clock()
            for slot in self.slots.every:
                root = self.slots.working(slot)
                if root and not root.users and slot.idle is not None and now - root.used >= slot.idle:
                    log.info("unloaded %s, which was idle", slot.source.name)
                    self.slots.retire(slot)

    def close(self) -> None:
        """Lets go of everything at once."""
        with self.slots.lock:
            self._closed = True
            self.slots.close()
        self._worker.shutdown(wait=True)

    # Loading, on the worker's thread

    def _submit(self, work: Callable[..., T], *of: Any) -> Future[T]:
        with self.slots.lock:
            if self._closed:
                raise CapacityError("The server is shutting down and loads nothing more.")
            return self._worker.submit(work, *of)

    def _come(self, slot: Slot) -> Future[None]:
        """The load of a slot that is under way, or begins now."""
        if slot.coming is None:
            slot.coming = self._submit(self._bring, slot)
        return slot.coming

    def _add(self, slot: Slot, name: str, path: str, place: Path) -> bool:
        """Loads an adapter; False where its model was just let go of."""
        self.slots.check_free(name)
        root = slot.root
        if root is None:
            return False
        root.served.engine.adapters.load(name, place)
        with self.slots.lock:
            slot.source = replace(slot.source, adapters={**slot.source.adapters, name: path})
        return True

    def _remove(self, slot: Slot, name: str) -> None:
        with self.slots.lock:
            self.slots.find(name)
            left = {key: path for key, path in slot.source.adapters.items() if key != name}
            slot.source, root = replace(slot.source, adapters=left), slot.root
            if root:
                root.views.pop(name, None)
        if root:
            root.served.engine.adapters.unload(name)

    def _bring(self, slot: Slot) -> None:
        """Loads a slot's model, or loads it anew; what served before goes on serving where that fails."""
        begun = self._clock()
        try:
            slot.facts = None
            served = self._loaded(slot, self.slots.facts(slot))
        except GeodeError as problem:
            self._keep_old(slot, problem)
        except Exception as problem:
            log.exception("loading %s failed", slot.source.name)
            self._keep_old(slot, GeodeError(f"Loading {slot.source.name} failed: {type(problem).__name__}."))
        else:
            log.info("loaded %s in %.2f s", slot.source.name, self._clock() - begun)
            self.slots.fill(slot, served)
        finally:
            with self.slots.lock:
                slot.coming = None

    def _keep_old(self, slot: Slot, problem: GeodeError) -> None:
        with self.slots.lock:
            root = slot.root
            if root is None:
                raise problem
            log.warning("the new files of %s are not served: %s", slot.source.name, problem)
            slot.bad = loading.fresh(root.served.stamp)

    def _loaded(self, slot: Slot, facts: Facts) -> Served:
        kv = self._room.kv_memory(facts)
        self._room.make(slot.source.name, facts.size + (kv or 0))
        while True:
            try:
                return self._load(slot.source, self.settings, facts, kv)
            except CapacityError:  # the machine has less than the budget says
                if not self._room.evict():
                    raise


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
