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

    @property
    def given(self) -> list[Item]:
        """The items that led to the response."""
        return self.items[: len(self.items) - len(self.response["output"])]


@dataclass
class Store:
    """Responses by their ids, for those who asked for them; the oldest go first."""

    kept: OrderedDict[str, Kept] = field(default_factory=OrderedDict)
    homes: dict[str, str] = field(default_factory=dict)  # of items that were answered: their responses
    size: int = 0

    def items(self, name: str | None, client: str) -> list[Item]:
        return [] if name is None else self.find(name, client).items

    def item(self, name: str, client: str) -> Item:
        """An item that was answered. Raises HTTPException, as `find`."""
        items = self._held(self.homes.get(name, ""), name, client).items
        return next(item for item in reversed(items) if item.id == name)

    def find(self, name: str, client: str) -> Kept:
        """Raises HTTPException, which is the same for one that is another client's."""
        return self._held(name, name, client)

    def keep(self, response: dict[str, Any], items: list[Item], client: str) -> None:
        size = len(dumps(response)) + sum(len(item.model_dump_json()) for item in items)
        self.kept[response["id"]] = Kept(response, items, client, size)
        self.homes |= {item["id"]: response["id"] for item in response["output"]}
        self.size += size
        while len(self.kept) > KEPT or self.size > KEPT_BYTES:
            self.forget(next(iter(self.kept.values())))

    def forget(self, kept: Kept) -> None:
        if self.kept.pop(kept.response["id"], None) is not None:
            self.size -= kept.size
            for item in kept.response["output"]:
                del self.homes[item["id"]]

    def _held(self, home: str, asked: str, client: str) -> Kept:
        """The response `home`, by the name that the client knows."""
        found = self.kept.get(home)
        if found is None or found.client != client:
            current().error = "response_not_found"
            raise HTTPException(
                404, f"Nothing is kept as {asked[:100]!r}: it was not stored, it was another's, or it was forgotten."
            )
        self.kept.move_to_end(home)
        return found
