"""Responses that were kept, within bounds, for the clients that asked for them. How one is made is not known here."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException

from .http import dumps
from .record import current
from .responses_schema import Item

KEPT = 1000  # responses
KEPT_BYTES = 64 << 20


@dataclass
class Kept:
    """A response, the items that led to it and are in it, whose it is, and its size in bytes."""

    response: dict[str, Any]
    items: list[Item]
    client: str
    size: int


@dataclass
class Store:
    """Responses by their ids, for those who asked for them; the oldest go first."""

    kept: OrderedDict[str, Kept] = field(default_factory=OrderedDict)
    size: int = 0

    def items(self, name: str | None, client: str) -> list[Item]:
        return [] if name is None else self.find(name, client).items

    def find(self, name: str, client: str) -> Kept:
        """Raises HTTPException, which is the same for one that is another client's."""
        found = self.kept.get(name)
        if found is None or found.client != client:
            current().error = "response_not_found"
            raise HTTPException(
                404, f"There is no response {name[:100]!r}: it was not stored, it was another's, or it was forgotten."
            )
        self.kept.move_to_end(name)
        return found

    def keep(self, response: dict[str, Any], items: list[Item], client: str) -> None:
        size = len(dumps(response)) + sum(len(item.model_dump_json()) for item in items)
        self.kept[response["id"]] = Kept(response, items, client, size)
        self.size += size
        while len(self.kept) > KEPT or self.size > KEPT_BYTES:
            self.forget(next(iter(self.kept.values())))

    def forget(self, kept: Kept) -> None:
        if self.kept.pop(kept.response["id"], None) is not None:
            self.size -= kept.size
