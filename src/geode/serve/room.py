"""The memory that all models of a server may take, and who must go where it is spent.

How a model is loaded is not known here. Called on the thread that loads.
"""

from __future__ import annotations

import logging

from .. import memory
from ..errors import CapacityError, GeodeError
from .loading import Facts
from .plan import share
from .settings import Settings
from .slots import Slot, Slots, shut

RETRY = 5.0  # seconds that whoever finds no room is asked to wait
log = logging.getLogger("geode.serve")


class Room:
    """How much is there for the models of some slots. Bytes."""

    def __init__(self, settings: Settings, slots: Slots):
        self._settings, self._slots = settings, slots

    def kv_memory(self, facts: Facts) -> int | None:
        """For one model's keys and values."""
        return share(self._settings, facts, sum(map(self._size, self._slots.every)), self._free())

    def fits(self, slot: Slot) -> bool:
        """Whether a model could come without another's going."""
        facts, budget = self._slots.facts(slot), self._budget()
        return budget is None or self._in_use() + facts.size + (self.kv_memory(facts) or 0) <= budget

    def make(self, name: str, need: int) -> None:
        """Lets go of idle models, the longest unused first, until so many bytes are free of the budget.

        Raises CapacityError: with `retry_after` where others are busy.
        """
        budget = self._budget()
        if budget is None:
            return
        if need > budget:
            raise CapacityError(
                f"{name} needs {need / 2**20:.0f} MiB and all models together may take "
                f"{budget / 2**20:.0f} MiB. Give the server more memory, or serve a smaller model."
            )
        while self._in_use() + need > budget:
            if not self.evict():
                raise _full(name)

    def evict(self) -> bool:
        """Closes the idle model that was unused longest. False where all are busy, or none is there."""
        served = self._slots.idle_longest()
        if served is None:
            return False
        log.info("unloaded %s to make room", served.name)
        shut(served)
        return True

    def _budget(self) -> int | None:
        """For all models. One model alone may have what the machine gives."""
        if self._settings.memory is not None or len(self._slots.every) == 1:
            return self._settings.memory
        free = self._free()
        return None if free is None else int(free * 0.9)

    def _free(self) -> int | None:
        """What is free, or would be without the models that are here."""
        free, served = memory.available(), [root.served for root in self._slots.roots()]
        return None if free is None else free + sum(one.size + one.engine.stats().kv_used for one in served)

    def _in_use(self) -> int:
        return sum(root.served.reserved for root in self._slots.roots())

    def _size(self, slot: Slot) -> int:
        """Of its weights; 0 where nobody can tell."""
        try:
            return self._slots.facts(slot).size
        except GeodeError:
            return 0


def _full(name: str) -> CapacityError:
    return CapacityError(
        f"{name} is not loaded, and the memory for models is taken by others that are answering. Try again in a "
        "moment.",
        RETRY,
    )
