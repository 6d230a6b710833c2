"""A JSON schema as an equal or narrower one that llguidance holds to; what cannot be held to is refused by name.

How answers are bound to it is not known here.

    any dialect ── references, old words, formats, oneOf ──> the words of 2020-12 that llguidance enforces

llguidance passes over keywords that it does not know, and takes some words more widely than validators do
(github.com/guidance-ai/llguidance docs/json_schema.md). What is made here never allows more than was asked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NoReturn
from urllib.parse import unquote, urldefrag, urljoin

from ..errors import OptionError
from .disjoint import Disjoint, equal
from .patterns import CONTROL, FORMATS, FREE, RANGES, check_pattern, check_size, ecma, name_pattern

MAX_TEXT = 128 << 10  # bytes of a schema
MAX_DEPTH = 100  # levels of a schema; llguidance reads no more than 127
MAX_WHOLE = (1 << 63) - 1024  # the largest float below what llguidance counts to
MAX_CHOICES = 24  # of oneOf that are told apart by what they lack
MAX_SET = 6  # values of which all subsets are written out, for uniqueItems

ONE_SCHEMA = {"additionalProperties", "items", "additionalItems", "propertyNames", "unevaluatedProperties"}
MANY_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions", "anyOf", "allOf", "oneOf", "prefixItems"}
MANY_SCHEMAS |= {"dependentSchemas", "dependencies"}
APART = {"const", "enum", "anyOf", "allOf", "oneOf", "$ref"}  # llguidance takes the others together
PLAIN = {"type", "required", "minLength", "maxLength", "minItems", "maxItems", "maxProperties", "multipleOf"}
IGNORED = {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"}
IGNORED |= {"$comment", "discriminator", "contentMediaType", "contentEncoding", "contentSchema", "markdownDescription"}
IGNORED |= {"$schema", "$id", "id", "$anchor", "$defs", "definitions", "additionalItems", "enumNames", "externalDocs"}
NEUTRAL = {"uniqueItems": False, "nullable": False, "unevaluatedProperties": True, "unevaluatedItems": True}
HINTS = {"nullable": ' Write {"type": [..., "null"]} instead.'}


def exact(schema: Any) -> dict[str, Any] | bool:
    """What llguidance is to be given for a schema. Raises OptionError for one that is none, is too large or too deep,
    or holds what cannot be enforced: the message names the keyword and its place."""
    if not isinstance(schema, Mapping) and schema is not True:
        raise OptionError(f"A JSON schema is an object; {str(schema)[:100]} was given.")
    _check_depth(schema)
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise OptionError(f"The JSON schema is no JSON: {problem}. Give an object as json.loads returns it.") from None
    check_size(text, "JSON schema", MAX_TEXT)
    return _Exact(schema).whole() if isinstance(schema, Mapping) else True


class _Node:
    """One schema on its way: words that llguidance takes together, words that it applies one by one, and what else
    must hold."""

    def __init__(self, schema: Mapping[str, Any], where: str):
        self.schema, self.where = schema, where
        self.plain: dict[str, Any] = {}
        self.applied: dict[str, Any] = {}
        self.also: list[Any] = []

    def apply(self, keyword: str, value: Any) -> None:
        if keyword in self.applied:
            self.also.append({keyword: value})
        else:
            self.applied[keyword] = value

    def made(self) -> dict[str, Any]:
        """Properties keep their order: those beside come before or after those that are referred to, as written."""
        if self.also:
            self.applied["allOf"] = [*self.applied.get("allOf", []), *self.also]
        words = [word for word in self.schema if word in APART or word == "properties"]
        first, last = self.plain, self.applied
        if words and words[0] != "properties":
            first, last = last, first
        return {**first, **last}

    def refuse(self, keyword: str, why: str = "which cannot be enforced here") -> NoReturn:
        raise OptionError(
            f"The JSON schema uses the keyword {keyword!r} at {self.where or 'its top'}, {why}. "
            f"Leave it out, and check the answer for it yourself.{HINTS.get(keyword, '')}"
        )

    def wrong(self, keyword: str, what: str) -> NoReturn:
        raise OptionError(f"In the JSON schema {keyword!r} at {self.where or 'its top'} must be {what}.")


class _Exact:
    """One whole schema. References are found here and lead to `$defs` of what is made."""

    def __init__(self, root: Mapping[str, Any]):
        self._root = root
        self._old = "draft-0" in str(root.get("$schema", ""))
        self._bases: dict[int, str] = {}
        self._named: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        self._pending: list[tuple[str, Any, str]] = []
        self._collect(root, "", top=True)
        self._disjoint = Disjoint(self._target, alone=self._old)

    def whole(self) -> dict[str, Any]:
        made: dict[str, Any] = self.node(self._root, "")
        defs = {}
        while self._pending:
            name, target, where = self._pending.pop()
            defs[name] = self.node(target, where)
        if defs:
            made = {**made, "$defs": defs}
        return made

    def node(self, schema: Any, where: str) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise OptionError(f"A JSON schema is an object, true or false; at {where} is {str(schema)[:100]}.")
        node = _Node(schema, where)
        for keyword, value in schema.items():
            if keyword in NEUTRAL and value is NEUTRAL[keyword]:
                continue
            if keyword in PLAIN:
                whole = isinstance(value, float) and value.is_integer()
                node.plain[keyword] = int(value) if whole else value
            elif keyword in _HANDLERS:
                _HANDLERS[keyword](self, node, keyword, value)
            elif keyword not in IGNORED and (keyword == "x-guidance" or not keyword.startswith("x-")):
                node.refuse(keyword)
        for finish in (_finish_names, _finish_counts):
            finish(self, node)
        return node.made()

    # Words

    def pattern(self, node: _Node, keyword: str, value: Any) -> None:
        if not isinstance(value, str):
            node.wrong(keyword, "a regular expression")
        check_pattern(value)
        node.plain[keyword] = ecma(value)

    def format(self, node: _Node, keyword: str, value: Any) -> None:
        if not isinstance(value, str):
            node.wrong(keyword, "a text")
        if value in RANGES:
            low, high = RANGES[value]
            if node.schema.get("type") in ("integer", "number"):
                node.also.append({"type": node.schema["type"], "minimum": low, "maximum": high})
        elif value in FORMATS:
            known, *patterns = FORMATS[value]
            if known:
                node.plain["format"] = known
            kind = {"type": "string"} if node.schema.get("type") == "string" else {}
            node.also += [{**kind, "pattern": pattern} for pattern in patterns]
        elif value not in FREE:
            node.refuse(keyword, f"whose value {value[:60]!r} is unknown")

    def bound(self, node: _Node, keyword: str, value: Any) -> None:
        node.plain[keyword] = _inward(keyword, value)

    def values(self, node: _Node, keyword: str, value: Any) -> None:
        for each in _leaves(value):
            if isinstance(each, int) and (abs(each) >= MAX_WHOLE or int(float(each)) != each):
                node.refuse(keyword, "with a whole number so large that it cannot be told from its neighbours here")
            if isinstance(each, str) and CONTROL.search(each):
                node.refuse(keyword, "with a control character, which cannot be written here")
        node.apply(keyword, value)

    def one(self, node: _Node, keyword: str, value: Any) -> None:
        node.plain[keyword] = self.node(value, f"{node.where}/{keyword}")

    def items(self, node: _Node, keyword: str, value: Any) -> None:
        if not isinstance(value, list):
            if self._old and "prefixItems" in node.schema:
                node.refuse("prefixItems", "which its dialect does not know")
            return self.one(node, keyword, value)
        self.listed(node, "prefixItems", value)
        if "additionalItems" in node.schema:
            node.plain["items"] = self.node(node.schema["additionalItems"], f"{node.where}/additionalItems")

    def named(self, node: _Node, keyword: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            node.wrong(keyword, "an object of schemas")
        patterns = keyword == "patternProperties"
        for name in value if patterns else ():
            check_pattern(name)
        node.plain[keyword] = {
            ecma(name) if patterns else name: self.node(each, f"{node.where}/{keyword}/{name}")
            for name, each in value.items()
        }
        if len(node.plain[keyword]) < len(value):
            node.refuse(keyword, "with the same pattern twice")

    def listed(self, node: _Node, keyword: str, value: Any) -> None:
        made = self._each(node, keyword, value)
        if keyword == "prefixItems":
            node.plain[keyword] = made
        else:
            node.apply(keyword, made)

    def one_of(self, node: _Node, keyword: str, value: Any) -> None:
        made = self._each(node, keyword, value)
        if clash := self._clash(value):
            tag = node.schema.get("discriminator")
            tag = tag.get("propertyName") if isinstance(tag, Mapping) else None
            bound = [{"type": "object", "required": [tag], "allOf": [each]} for each in value]
            if isinstance(tag, str) and not self._clash(bound):
                made = [{"type": "object", "required": [tag], "allOf": [each]} for each in made]
            elif missing := self._missing(value):
                made = [{"allOf": [each, *lacks]} for each, lacks in zip(made, missing, strict=True)]
            else:
                node.refuse(keyword, f"whose schemas {clash[0]} and {clash[1]} may allow the same; anyOf may do that")
        node.apply("anyOf", made)

    def ref(self, node: _Node, keyword: str, value: Any) -> None:
        if not isinstance(value, str):
            node.wrong(keyword, "a text")
        target = self._target(value, node.schema)
        if target is self._root:
            return node.apply(keyword, "#")
        if id(target) not in self._names:
            name = f"{re.sub(r'[^A-Za-z0-9_]', '_', str(value).rpartition('/')[2])[:40]}.{len(self._names)}"
            self._names[id(target)] = name
            self._pending.append((name, target, str(value)))
        node.apply(keyword, f"#/$defs/{self._names[id(target)]}")

    def dependent(self, node: _Node, keyword: str, value: Any) -> None:
        """Who has a property has others too, or keeps to a schema: it is missing, or they are there."""
        if not isinstance(value, Mapping):
            node.wrong(keyword, "an object")
        for name, needs in value.items():
            if isinstance(needs, list):
                then: Any = {"required": [name, *needs]}
            else:
                then = {"required": [name], "allOf": [self.node(needs, f"{node.where}/{keyword}/{name}")]}
            node.also.append({"anyOf": [{"properties": {name: False}}, then]})

    def unevaluated(self, node: _Node, keyword: str, value: Any) -> None:
        if any(word in node.schema for word in (APART - {"const", "enum"}) | {"dependentSchemas", "dependencies"}):
            node.refuse(keyword, "beside a reference or a choice, where it cannot be enforced")
        if "additionalProperties" not in node.schema:
            self.one(node, "additionalProperties", value)

    def unique(self, node: _Node, keyword: str, value: Any) -> None:
        """Subsets of a few values, in their order; nothing is to be done where there is one item at most."""
        most = node.schema.get("maxItems")
        if isinstance(most, int) and most < 2:
            return
        items = self._meant(node.schema.get("items"))
        values = items.get("enum") if isinstance(items, Mapping) else None
        if not isinstance(values, list) or len(values) > MAX_SET or "prefixItems" in node.schema:
            node.refuse(keyword, f"which can be enforced only for items of an enum with at most {MAX_SET} values")
        values = list({equal(value): value for value in values}.values())
        sets = [each for count in range(len(values) + 1) for each in combinations(values, count)]
        node.also.append({"anyOf": [_tuple([{"const": value} for value in each]) for each in sets]})
        if node.schema.get("type") != "array":
            node.also.append({"type": "array"})

    def later(self, node: _Node, keyword: str, value: Any) -> None:
        """Words that others decide about: `_finish_...`."""

    # Choices

    def _each(self, node: _Node, keyword: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            node.wrong(keyword, "a list of schemas")
        return [self.node(each, f"{node.where}/{keyword}/{i}") for i, each in enumerate(value)]

    def _clash(self, schemas: Sequence[Any]) -> tuple[int, int] | None:
        """Two of the schemas that may allow the same."""
        values = [self._disjoint.values(each) for each in schemas]
        listed = [value for each in values if each is not None for value in each]
        if None not in values and len(set(listed)) == len(listed):
            return None  # as most are: no need to go through all pairs
        for (i, one), (j, other) in combinations(enumerate(schemas), 2):
            if not self._disjoint(one, other):
                return i, j
        return None

    def _missing(self, schemas: Sequence[Any]) -> list[list[Any]] | None:
        """For each schema what keeps it from the others: that a property is missing which those require."""
        if len(schemas) > MAX_CHOICES:
            return None
        lacks: list[list[Any]] = [[] for _ in schemas]
        required = [self._disjoint.required(each) for each in schemas]
        for i, j in combinations(range(len(schemas)), 2):
            if self._disjoint(schemas[i], schemas[j]):
                continue
            for here, there in ((i, j), (j, i)):
                names = [name for name in required[there] if name not in required[here]]
                if not names:
                    return None
                choices = [{"type": "object", "properties": {name: False}} for name in names]
                lacks[here].append({"anyOf": choices})
        return lacks

    # References

    def _collect(self, schema: Any, base: str, top: bool = False) -> None:
        """Finds what schemas call themselves."""
        if not isinstance(schema, Mapping):
            return
        old = "draft-04" in str(self._root.get("$schema"))
        own = _join(base, schema.get("$id", schema.get("id") if old else None))
        if own is not None and not (self._old and "$ref" in schema):
            self._named[own] = schema
            base = urldefrag(own).url
            self._named.setdefault(base, schema)
        if top:
            self._named.setdefault(base, schema)
        if isinstance(anchor := schema.get("$anchor"), str):
            self._named[f"{base}#{anchor}"] = schema
        self._bases[id(schema)] = base
        for keyword, value in schema.items():
            for inner in _below(keyword, value):
                self._collect(inner, base)

    def _meant(self, schema: Any) -> Any:
        """A schema, or the one that it refers to and says nothing else."""
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, Mapping) or set(schema) - IGNORED != {"$ref"}:
                return schema
            schema = self._target(schema["$ref"], schema)
        return schema

    def _target(self, reference: Any, schema: Mapping[str, Any]) -> Any:
        """The schema that is meant. Raises OptionError."""
        url = _join(self._bases.get(id(schema), ""), reference) if isinstance(reference, str) else None
        if url in self._named:
            return self._named[url]
        if url is None:
            return self._nowhere(reference)
        base, fragment = urldefrag(url)
        found = self._named.get(base)
        if found is not None and (not fragment or fragment.startswith("/")):
            try:
                for step in unquote(fragment).split("/")[1:]:
                    name = step.replace("~1", "/").replace("~0", "~")
                    found = found[int(name)] if isinstance(found, list) else found[name]
            except (KeyError, IndexError, ValueError, TypeError):
                found = None
            if isinstance(found, Mapping | bool):
                if isinstance(found, Mapping):
                    self._bases.setdefault(id(found), base)
                return found
        return self._nowhere(reference)

    def _nowhere(self, reference: Any) -> NoReturn:
        raise OptionError(
            f"The JSON schema refers to {str(reference)[:200]!r}, which is not in it. Nothing is fetched from "
            "elsewhere: write what is meant below $defs."
        )


def _finish_names(exact: _Exact, node: _Node) -> None:
    """Names of properties: an enum lists them, what limits their text is a pattern."""
    if "propertyNames" not in node.schema:
        return
    rule = exact._meant(node.schema["propertyNames"])
    if rule is True or (isinstance(rule, Mapping) and not set(rule) - IGNORED - {"type"} and _is_text(rule)):
        return
    others = node.plain.pop("additionalProperties", True)
    values = [rule["const"]] if isinstance(rule, Mapping) and "const" in rule else None
    values = rule.get("enum", values) if isinstance(rule, Mapping) else values
    own = node.plain.setdefault("properties", {})
    if isinstance(values, list) and "patternProperties" not in node.plain:
        names = [value for value in values if isinstance(value, str)]
        node.plain["properties"] = {name: own.get(name, others) for name in names}
    elif not own and "patternProperties" not in node.plain and (pattern := name_pattern(rule)):
        node.plain["patternProperties"] = {pattern: others}
    else:
        node.refuse("propertyNames", "in a form that cannot be enforced")
    node.plain["additionalProperties"] = False


def _finish_counts(exact: _Exact, node: _Node) -> None:
    """llguidance counts a property again that comes again."""
    least = node.schema.get("minProperties")
    if least is None:
        return
    required = node.schema.get("required", [])
    closed = node.plain.get("additionalProperties") is False and not node.plain.get("patternProperties")
    if (
        isinstance(least, int)
        and isinstance(required, list)
        and least > len(set(map(str, required))) + 1
        and not closed
    ):
        node.refuse("minProperties", "with more than one beyond those required, where the same could come twice")
    node.plain["minProperties"] = least


_HANDLERS: dict[str, Callable[[_Exact, _Node, str, Any], None]] = {
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _Exact.bound),
    **dict.fromkeys(("const", "enum"), _Exact.values),
    **dict.fromkeys(("properties", "patternProperties"), _Exact.named),
    **dict.fromkeys(("anyOf", "allOf", "prefixItems"), _Exact.listed),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "dependencies"), _Exact.dependent),
    **dict.fromkeys(("propertyNames", "minProperties"), _Exact.later),
    "additionalProperties": _Exact.one,
    "items": _Exact.items,
    "oneOf": _Exact.one_of,
    "$ref": _Exact.ref,
    "pattern": _Exact.pattern,
    "format": _Exact.format,
    "uniqueItems": _Exact.unique,
    "unevaluatedProperties": _Exact.unevaluated,
}


def _is_text(rule: Mapping[str, Any]) -> bool:
    """Whether a schema allows texts, by its type."""
    types = rule.get("type", "string")
    return types == "string" or (isinstance(types, list) and "string" in types)


def _tuple(items: list[Any]) -> dict[str, Any]:
    return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}


def _inward(keyword: str, value: Any) -> Any:
    """A bound that a float can hold, on the side that allows less: llguidance reads numbers as floats."""
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    upper = "aximum" in keyword
    value = min(value, MAX_WHOLE) if upper else max(value, -MAX_WHOLE)
    if abs(value) > MAX_WHOLE:
        return value
    near = float(value)
    if (near > value) if upper else (near < value):
        near = math.nextafter(near, -math.inf if upper else math.inf)
    return int(near)


def _join(base: str, reference: Any) -> str | None:
    """Where a reference leads; None for what is none."""
    try:
        return urljoin(base, reference).removesuffix("#") if isinstance(reference, str) else None
    except ValueError:
        return None


def _leaves(value: Any) -> Iterator[Any]:
    """What a value holds that holds nothing itself."""
    if not isinstance(value, Mapping | list):
        yield value
    for inner in _inner(value):
        yield from _leaves(inner)


def _check_depth(schema: Any) -> None:
    level = [schema]
    for _ in range(MAX_DEPTH):
        level = [inner for each in level for inner in _inner(each)]
        if not level:
            return
    raise OptionError(f"The JSON schema is nested deeper than {MAX_DEPTH} levels. Use $ref for what repeats.")


def _inner(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else list(value) if isinstance(value, list) else []


def _below(keyword: str, value: Any) -> list[Any]:
    """The schemas in a keyword's value."""
    if keyword in MANY_SCHEMAS:
        return _inner(value)
    return [] if keyword not in ONE_SCHEMA else value if isinstance(value, list) else [value]
