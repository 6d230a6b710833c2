"""Random JSON schemas, of what applications ask for: objects, arrays, strings, numbers, choices, references."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

NAMES = ["name", "age", "city", "tags", "items", "price", "date", "id", "is_new", "note", "größe", 'a"b', "x y"]
PATTERNS = [
    "[a-z]{2,8}",
    "^[A-Z]{3}-[0-9]{1,4}$",
    "^(red|green|blue)$",
    "^\\d{4}$",
    "^[^@ ]{1,9}@[a-z]{1,9}\\.(com|org)$",
]
FORMATS = ["date", "date-time", "time", "uuid", "ipv4", "email"]


def random_schema(seed: int) -> dict[str, Any]:
    """A schema with an answer of some hundred characters at most, whatever is chosen; the same for the same seed."""
    return _Maker(random.Random(seed)).whole()


class _Maker:
    def __init__(self, draw: random.Random):
        self.draw = draw

    def whole(self) -> dict[str, Any]:
        if self.draw.random() < 0.1:
            return self.tree()
        schema = self.object(3)
        if self.draw.random() < 0.2:
            schema |= {"$defs": {"part": self.value(1)}}
            schema["properties"]["part"] = {"$ref": "#/$defs/part"}
            schema["required"].append("part")
        return schema

    def value(self, depth: int) -> dict[str, Any]:
        kinds: list[Callable[[], dict[str, Any]]] = [self.string, self.number, self.choice, self.flag]
        if depth > 0:
            kinds += [lambda: self.object(depth - 1), lambda: self.array(depth - 1), lambda: self.either(depth - 1)]
        return self.draw.choice(kinds)()

    def object(self, depth: int) -> dict[str, Any]:
        names = self.draw.sample(NAMES, self.draw.randint(1, 4))
        required = [name for name in names if self.draw.random() < 0.7]
        properties = {name: self.value(depth) for name in names}
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def array(self, depth: int) -> dict[str, Any]:
        least = self.draw.randint(0, 2)
        schema = {"type": "array", "items": self.value(depth), "minItems": least, "maxItems": least + 2}
        if self.draw.random() < 0.2:
            schema["prefixItems"] = [self.string(), self.number()]
            schema["maxItems"] = least + 3
        return schema

    def string(self) -> dict[str, Any]:
        kind = self.draw.randrange(4)
        if kind == 0:
            return {"type": "string", "pattern": self.draw.choice(PATTERNS)} | ({"maxLength": 20})
        if kind == 1:
            return {"type": "string", "format": self.draw.choice(FORMATS), "maxLength": 40}
        least = self.draw.randint(0, 3)
        return {"type": "string", "minLength": least, "maxLength": least + self.draw.randint(1, 20)}

    def number(self) -> dict[str, Any]:
        low = self.draw.randint(-1000, 1000)
        high = low + self.draw.randint(1, 5000)
        kind = self.draw.randrange(4)
        if kind == 0:
            return {"type": "number", "minimum": low, "exclusiveMaximum": high + 0.5}
        if kind == 1:
            return {"type": "integer", "multipleOf": self.draw.randint(2, 9), "minimum": 0, "maximum": 10_000}
        return {"type": "integer", "minimum": low, "maximum": high}

    def choice(self) -> dict[str, Any]:
        values = [
            self.draw.choice([None, True, 1, -2.5, "a", 'q"uote', "é", "long text", {"a": 1}, [1, 2]]) for _ in "123"
        ]
        return {"const": values[0]} if self.draw.random() < 0.2 else {"enum": values}

    def flag(self) -> dict[str, Any]:
        return {"type": self.draw.choice(["boolean", "null", ["boolean", "null"], ["boolean", "integer"]])} | {
            "maximum": 9,
            "minimum": -9,
        }

    def either(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.value(depth), self.value(depth)]}

    def tree(self) -> dict[str, Any]:
        """A schema that refers to itself."""
        node = {
            "type": "object",
            "properties": {
                "value": self.number(),
                "below": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 1},
            },
            "required": ["value"],
            "additionalProperties": False,
        }
        return {"$ref": "#/$defs/n", "$defs": {"n": node}}
