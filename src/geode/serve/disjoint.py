"""Whether two JSON schemas allow nothing in common, so far as that can be seen from types, values, bounds and names.

False says nothing: there may be something in common, or it was too hard to tell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_STEPS = 20_000  # pairs of schemas looked at for one schema
MAX_LEVELS = 12

TYPES = {"null", "boolean", "number", "string", "array", "object"}
LENGTHS = {"string": ("minLength", "maxLength"), "array": ("minItems", "maxItems")}


class Disjoint:
    """Of the schemas in one document. `target`: what a reference in a schema leads to; `alone`: in the dialect, what
    stands beside a reference says nothing."""

    def __init__(self, target: Callable[[Any, Mapping[str, Any]], Any], alone: bool = False):
        self._target, self._alone = target, alone
        self._steps = 0

    def __call__(self, one: Any, other: Any, level: int = 0) -> bool:
        self._steps += 1
        if level > MAX_LEVELS or self._steps > MAX_STEPS:
            return False
        left, right = self._parts(one), self._parts(other)
        if left is None or right is None:
            return True
        types = _types(left) & _types(right)
        values = [_values(parts) for parts in (left, right)]
        if values[0] is not None and values[1] is not None:
            return not values[0].keys() & values[1].keys()
        if any(found is not None and not set(found.values()) & types for found in values):
            return True
        return (
            self._choices(left, other, level)
            or self._choices(right, one, level)
            or all(self._differ(kind, left, right, level) for kind in types)
        )

    def values(self, schema: Any) -> dict[str, str] | None:
        """The values that a schema lists, as texts that are the same for equal ones; None where it lists none."""
        return _values(self._parts(schema) or [])

    def required(self, schema: Any) -> list[str]:
        """The properties that every object of a schema has."""
        return list(dict.fromkeys(name for part in self._parts(schema) or [] for name in _required(part)))

    def _parts(self, schema: Any) -> list[Mapping[str, Any]] | None:
        """Schemas that all hold where this one does; None where nothing does."""
        found: list[Mapping[str, Any]] = []
        waiting, seen = [schema], set[int]()
        while waiting:
            each = waiting.pop()
            if each is False:
                return None
            if not isinstance(each, Mapping) or id(each) in seen:
                continue
            seen.add(id(each))
            if "$ref" in each:
                waiting.append(self._target(each["$ref"], each))
                if self._alone:
                    continue
            found.append(each)
            self._steps += 1
            if isinstance(more := each.get("allOf"), list):
                waiting += more
        return found

    def _choices(self, parts: list[Mapping[str, Any]], other: Any, level: int) -> bool:
        """Whether all that can be chosen in one of the parts has nothing in common with the other."""
        choices = [part[word] for part in parts for word in ("anyOf", "oneOf") if isinstance(part.get(word), list)]
        return any(all(self(each, other, level + 1) for each in choice) for choice in choices)

    def _differ(self, kind: str, left: list[Mapping[str, Any]], right: list[Mapping[str, Any]], level: int) -> bool:
        if kind == "object":
            names = dict.fromkeys(name for part in [*left, *right] for name in _required(part))
            return any(self._apart_in(name, left, right, level) for name in names)
        if kind == "number":
            return _below(left, right) or _below(right, left)
        if kind in LENGTHS:
            least, most = LENGTHS[kind]
            return any(_highest(ones, least) > _lowest(others, most) for ones, others in ((left, right), (right, left)))
        return False

    def _apart_in(self, name: str, left: list[Mapping[str, Any]], right: list[Mapping[str, Any]], level: int) -> bool:
        others = list(_property(name, right))
        return any(self(one, other, level + 1) for one in _property(name, left) for other in others)


def _types(parts: list[Mapping[str, Any]]) -> set[str]:
    """The types that values can have; whole numbers are numbers."""
    types = set(TYPES)
    for part in parts:
        given = part.get("type", list(TYPES))
        given = given if isinstance(given, list) else [given]
        types &= {"number" if each == "integer" else str(each) for each in given}
    return types


def _values(parts: list[Mapping[str, Any]]) -> dict[str, str] | None:
    """The values to choose from, as text that is the same for what is equal, with the type of each."""
    for part in parts:
        values = [part["const"]] if "const" in part else part.get("enum")
        if isinstance(values, list):
            return {equal(value): _type(value) for value in values}
    return None


def equal(value: Any) -> str:
    """A text that is the same for values that JSON schemas take for equal."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _type(value: Any) -> str:
    names = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def _required(part: Mapping[str, Any]) -> list[str]:
    names = part.get("required")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _property(name: str, parts: list[Mapping[str, Any]]) -> Iterator[Any]:
    """What the parts say of a property; of patterns nothing is known."""
    yield True
    for part in parts:
        own = part.get("properties")
        if isinstance(own, Mapping) and name in own:
            yield own[name]
        elif not part.get("patternProperties") and "additionalProperties" in part:
            yield part["additionalProperties"]


def _below(left: list[Mapping[str, Any]], right: list[Mapping[str, Any]]) -> bool:
    """Whether every number of the one is less than every number of the other."""
    top, bottom = _lowest(left, "maximum"), _highest(right, "minimum")
    over, under = _lowest(left, "exclusiveMaximum"), _highest(right, "exclusiveMinimum")
    return top < bottom or over <= max(bottom, under) or top <= under


def _lowest(parts: list[Mapping[str, Any]], word: str) -> float:
    return min((value for value in _bounds(parts, word)), default=float("inf"))


def _highest(parts: list[Mapping[str, Any]], word: str) -> float:
    return max((value for value in _bounds(parts, word)), default=float("-inf"))


def _bounds(parts: list[Mapping[str, Any]], word: str) -> Iterator[float]:
    return (part[word] for part in parts if isinstance(part.get(word), int | float) and part[word] is not True)
