"""JSON that is brought to its end before its tokens run out, whoever chooses them."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

jsonschema_rs = pytest.importorskip("jsonschema_rs")
pytest.importorskip("llguidance")

from test_serve_grammar import BYTES, PADDED, PIECES, served  # noqa: E402

from geode.engine.request import Constraint  # noqa: E402
from geode.serve.ask import Ask, JsonObject, JsonSchema, Tool  # noqa: E402
from geode.serve.grammar import constraint_for, guide  # noqa: E402
from geode.tool_calls import parse_tool_calls  # noqa: E402

TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "below": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["value", "below"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
TEXTS = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["name", "tags"],
}


def written(words: object, schema: object, room: int, seed: int, eager: str) -> str:
    format = JsonObject() if schema is None else JsonSchema(schema)  # type: ignore[arg-type]
    bound = guide(words, PADDED, words.ends, format, room)()  # type: ignore[attr-defined, arg-type]
    return str(words.decode(by_the_eager(words, bound, room, seed, eager)))  # type: ignore[attr-defined]


def by_the_eager(words: object, found: Constraint, room: int, seed: int, eager: str) -> list[int]:
    """An answer by someone who would rather write `eager` than end."""
    draw = random.Random(seed)
    tokens: list[int] = []
    while len(tokens) < room:
        mask = found.mask()
        assert mask is not None
        ids = np.flatnonzero(mask).tolist()
        liked = [i for i in ids if i not in words.ends and eager in words.decode([i])]  # type: ignore[attr-defined]
        token = draw.choice(liked or [i for i in ids if i not in words.ends] or ids)  # type: ignore[attr-defined]
        assert found.allows(token)
        found.accept(token)
        if token in words.ends:  # type: ignore[attr-defined]
            break
        tokens.append(token)
    return tokens


@pytest.mark.parametrize("eager", ["{", "7", "a", ""])
@pytest.mark.parametrize("schema", [TREE, TEXTS, None], ids=["tree", "texts", "any"])
@pytest.mark.parametrize("words", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_what_is_cut_short_is_whole(words: object, schema: object, eager: str) -> None:
    for seed in range(4):
        text = written(words, schema, 400, seed, eager)
        found = json.loads(text)
        if schema is not None:
            jsonschema_rs.validator_for(schema).validate(found)


@pytest.mark.parametrize("eager", ["0", "5", "9"])
@pytest.mark.parametrize("words", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_numbers_end(words: object, eager: str) -> None:
    """However long somebody goes on with digits, and beyond a bound in such a way that readers see it."""
    schema = {"type": "array", "items": {"type": "number", "exclusiveMaximum": -287.5}, "minItems": 3, "maxItems": 3}
    text = written(words, schema, 1000, 0, eager)
    found = json.loads(text)
    jsonschema_rs.validator_for(schema).validate(found)
    assert len(text) < 3 * 64


def test_room_is_kept_for_all_that_is_required() -> None:
    """Though the first string would take it all."""
    names = ["a", *(f"a property of a long name, {i}" for i in range(10))]
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    least = len(json.dumps(dict.fromkeys(names, "")))
    text = written(BYTES, schema, 2 * least, 0, "a")
    jsonschema_rs.validator_for(schema).validate(json.loads(text))


@pytest.mark.parametrize("eager", ["{", "7", "a", ""])
def test_calls_are_whole(eager: str) -> None:
    validator = jsonschema_rs.validator_for(TREE)
    for seed in range(4):
        ask = Ask(model="", tools=[Tool("now"), Tool("tree", parameters=TREE, strict=True)], tool_choice="required")
        bound = constraint_for(served(), ask, 300)
        assert bound is not None
        tokens = by_the_eager(BYTES, bound(), 300, seed, eager)
        said, calls = parse_tool_calls(b"".join(map(BYTES.piece, tokens)).decode())
        assert calls and not said
        for call in calls:
            assert call["name"] == "now" or not list(validator.iter_errors(call["arguments"]))


def test_a_short_answer_says_something() -> None:
    schema = {"type": "object", "properties": {"river": {"type": "string"}}, "required": ["river"]}
    free = guide(BYTES, PADDED, BYTES.ends, JsonSchema(schema))()
    bound = guide(BYTES, PADDED, BYTES.ends, JsonSchema(schema), 60)()
    for token in BYTES.encode('{"river":"the Danube', bos=False):
        assert np.array_equal(free.mask(), bound.mask())  # type: ignore[arg-type]
        free.accept(token)
        bound.accept(token)


def test_nothing_changes_while_there_is_room() -> None:
    free = guide(BYTES, PADDED, BYTES.ends, JsonSchema(TREE))()
    bound = guide(BYTES, PADDED, BYTES.ends, JsonSchema(TREE), 400)()
    for byte in b'{"value": 12, "below": [{"value": 3':
        (token,) = BYTES.encode(chr(byte), bos=False)
        assert np.array_equal(free.mask(), bound.mask())  # type: ignore[arg-type]
        free.accept(token)
        bound.accept(token)
    assert free.forced() == bound.forced()
