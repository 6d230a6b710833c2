"""Formats as masks: what they allow is what the formats say, whatever the tokenizer; limits; what cannot be enforced."""

from __future__ import annotations

import json
import random
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from random_schemas import random_schema
from test_chat import tokenizer

from geode.errors import OptionError
from geode.serve.ask import Ask, Format, Grammar, JsonObject, JsonSchema, Regex, Tool
from geode.tokenizer import Roles, Tokenizer
from geode.tokenizer.spm import SPM

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema_rs")

from geode.serve.exact import exact  # noqa: E402
from geode.serve.grammar import Constraint, constraint_for, guide, vocabulary  # noqa: E402
from geode.serve.patterns import MAX_REPEATS  # noqa: E402


def sentencepiece() -> SPM:
    """Bytes as a last resort, words with their spaces, pieces that reach over the marks of JSON."""
    words = [
        "▁",
        *' {}[]":,-.0123456789_@TZ',
        *"abcdefghijklmnopqrstuvwxyz",
        "▁a",
        '":',
        '{"',
        "name",
        "true",
        '",',
        "é",
    ]
    words += ['":▁"', "\n", "\n\n", "▁▁", "}}", "00", "null"]
    controls = ["<unk>", "<s>", "</s>", "<end_of_turn>"]
    pieces = [*controls, *(f"<0x{i:02X}>" for i in range(256)), *dict.fromkeys(words)]
    types = [2, 3, 3, 3, *[6] * 256, *[1] * (len(pieces) - 260)]
    return SPM(pieces, [-float(i) for i in range(len(pieces))], types, Roles(bos=1, eos=2, unk=0, adds_bos=True))


BYTES = tokenizer("<|end|>", "<tool_call>")
PIECES = sentencepiece()
WORDS = pytest.mark.parametrize("words", [BYTES, PIECES], ids=["bytes", "pieces"])
PADDED = 512  # rows of logits, more than there are tokens


def constraint(format: Format, words: Tokenizer = BYTES) -> Constraint:
    return guide(words, PADDED, words.ends, format)()


def allowed(found: Constraint) -> list[int]:
    mask = found.mask()
    assert mask is not None
    assert (mask.dtype, mask.shape) == (np.dtype(bool), (PADDED,))
    return [int(each) for each in np.flatnonzero(mask)]


def takes(format: Format, text: str) -> bool:
    """Whether the format holds for a text as a whole."""
    found = constraint(format)
    for token in BYTES.encode(text, bos=False):
        if not found.allows(token):
            return False
        found.accept(token)
    return all(found.allows(end) for end in BYTES.ends)


def ids_of(words: Tokenizer, text: str) -> list[int]:
    """Ids of a text that goes on after another."""
    return words.encode("\x02" + text, bos=False)[len(words.encode("\x02", bos=False)) :]


def shown(words: Tokenizer, ids: list[int]) -> str:
    stream = words.stream()
    return "".join([*map(stream.push, ids), stream.flush()])


def written(found: Constraint, words: Tokenizer, seed: int, most: int = 1500) -> str:
    """A random text that ends as soon as it may; now and then what is forced is taken."""
    draw, ids = random.Random(seed), list[int]()
    while len(ids) < most:
        forced = found.forced() if draw.random() < 0.5 else []
        choices = allowed(found)
        ends = [token for token in choices if token in words.ends]
        for token in forced or [ends[0] if ends else draw.choice(choices)]:
            assert found.allows(token)
            found.accept(token)
            if token in words.ends:
                return shown(words, ids)
            ids.append(token)
    raise AssertionError(f"no end: {shown(words, ids)!r}")


# Masks


@WORDS
def test_a_mask_is_what_the_format_says(words: Tokenizer) -> None:
    found = constraint(Regex("(ab|a1)c?"), words)
    assert {words.piece(token) for token in allowed(found)} == {b"a"}
    found.accept(ids_of(words, "a")[0])
    assert {words.piece(token) for token in allowed(found)} == {b"b", b"1"}
    found.accept(next(token for token in allowed(found) if words.piece(token) == b"b"))
    assert set(allowed(found)) - {token for token in allowed(found) if words.piece(token) == b"c"} == words.ends
    found.accept(min(words.ends))


@WORDS
def test_one_token_is_allowed_where_the_mask_has_it(words: Tokenizer) -> None:
    found = constraint(JsonSchema({"type": "array", "items": {"type": "integer"}, "minItems": 1}), words)
    for text in ("", "[", "1", "2", ",", " ", "3", "]"):
        for token in ids_of(words, text):
            found.accept(token)
        mask = found.mask()
        assert mask is not None
        assert [found.allows(token) for token in range(PADDED)] == mask.tolist()
    assert allowed(found) == sorted(words.ends)
    assert found.forced() == [min(words.ends)]


@WORDS
def test_control_tokens_and_padding_are_never_allowed(words: Tokenizer) -> None:
    found = constraint(Regex("(.|\n)*"), words)
    control = set(words.control.values()) - words.ends
    tokens = set(allowed(found))
    assert not tokens & control
    assert max(tokens) < words.size
    assert words.ends <= tokens
    texts = {words.piece(token) for token in range(words.size) if token not in words.control.values()}
    assert {words.piece(token) for token in tokens - words.ends} >= {text for text in texts if text.isascii()}


def test_what_was_not_allowed_is_refused() -> None:
    found = constraint(Regex("ab"))
    with pytest.raises(OptionError, match="does not fit"):
        found.accept(ord("z"))


def test_forced_tokens_need_no_choice() -> None:
    schema = {"type": "object", "properties": {"temperature": {"const": 5}}, "required": ["temperature"]}
    found = constraint(JsonSchema({**schema, "additionalProperties": False}))
    for token in b'{"':
        found.accept(token)
    assert bytes(found.forced()).startswith(b"temperature")


def test_answers_do_not_share_where_they_are() -> None:
    make = guide(BYTES, PADDED, BYTES.ends, Regex("ab"))
    first, second = make(), make()
    first.accept(ord("a"))
    assert (allowed(first), allowed(second)) == ([ord("b")], [ord("a")])


def test_what_was_made_is_kept() -> None:
    words = vocabulary(BYTES, PADDED, BYTES.ends)
    assert vocabulary(BYTES, PADDED, BYTES.ends) is words
    assert vocabulary(BYTES, 300, BYTES.ends) is not words
    assert words.compiled('start: "kept"') is words.compiled('start: "kept"')


def test_a_model_without_ends() -> None:
    with pytest.raises(OptionError, match="end token"):
        guide(BYTES, PADDED, [], JsonObject())


# Formats


@WORDS
def test_random_schemas(words: Tokenizer) -> None:
    for seed in range(60):
        schema = random_schema(seed)
        check = jsonschema.Draft202012Validator(schema, validate_formats=True)
        answer = written(constraint(JsonSchema(schema), words), words, seed)
        check.validate(json.loads(answer))


@pytest.mark.parametrize("name", ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "uuid", "uri"])
def test_formats_hold_to_the_letter(name: str) -> None:
    found = guide(BYTES, PADDED, BYTES.ends, JsonSchema({"type": "string", "format": name}))
    for seed in range(25):
        answer = json.loads(written(found(), BYTES, seed))
        assert jsonschema.is_valid({"format": name}, answer, validate_formats=True), answer


@WORDS
def test_any_object(words: Tokenizer) -> None:
    for seed in range(5):
        assert isinstance(json.loads(written(constraint(JsonObject(), words), words, seed)), dict)
    assert takes(JsonObject(), '{"a": [1, {"b": null}], "é": "\\n"}')
    assert not takes(JsonObject(), "[1]")


def test_white_space_has_bounds() -> None:
    assert takes(JsonObject(), '{\n    "a": {\n        "b" : 1\n    }\n}')
    assert takes(JsonObject(), '{"a":1}')
    for space in ("\n\n", "  ", "\n" + " " * 25, "\t\t"):
        assert not takes(JsonObject(), '{"a":' + space + "1}")
    assert not takes(JsonObject(), "\n{}")
    assert not takes(JsonObject(), "{}\n")


def test_regular_expressions_hold_as_a_whole() -> None:
    assert takes(Regex("^[a-f]+$"), "abc")
    assert takes(Regex(r"\d{2}/\w"), "12/x")
    assert not takes(Regex(r"\d"), "٣")
    assert not takes(Regex("[a-f]"), "abc")
    assert not takes(Regex("a"), "xa")
    assert takes(Regex('"/\\\\'), '"/\\')


def test_grammars() -> None:
    sums = Grammar('start: NUMBER ("+" NUMBER)*\nNUMBER: /[0-9]{1,3}/')
    assert takes(sums, "1+22+333")
    assert not takes(sums, "1+")


def test_schemas_that_refer_to_themselves() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    assert takes(JsonSchema(node), '{"next": {"next": {}}}')
    assert not takes(JsonSchema(node), '{"next": 1}')


# What cannot be enforced


@pytest.mark.parametrize(
    "keyword", ["not", "if", "uniqueItems", "contains", "unevaluatedItems", "x-guidance", "made-up"]
)
def test_keywords_that_would_be_ignored_are_named(keyword: str) -> None:
    exact({"type": "object", "properties": {keyword: {"type": "string"}}, "enum": [{keyword: 1}]})
    with pytest.raises(OptionError, match=rf"{keyword!r} at /properties/a/items/anyOf/1"):
        exact({"properties": {"a": {"items": {"anyOf": [{}, {keyword: 1}]}}}})


def test_annotations_are_no_constraints() -> None:
    exact({"title": "T", "description": "d", "default": 1, "x-order": 3, "$comment": "c", "$schema": "s"})


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string", "format": "made-up"}, "'made-up' is unknown"),
        ({"$ref": "#/nowhere"}, "/nowhere"),
        ({"$ref": "https://example.org/schema"}, "example.org"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "refers to itself"),
        ({"type": "whatever"}, "whatever"),
        ({"enum": []}, "nsatisfiable"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "anyOf"),
        ({"type": "string", "pattern": "a(?=b)"}, "look-around"),
        ({"const": float("nan")}, "no JSON"),
        ({"const": object()}, "no JSON"),
        ([], "is an object"),
        (False, "is an object"),
    ],
)
def test_bad_schemas(schema: Any, words: str) -> None:
    with pytest.raises(OptionError, match=re.escape(words)) as problem:
        constraint(JsonSchema(schema))
    assert "\n" not in str(problem.value)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("format", "words"),
    [
        (JsonSchema(nested(5000)), "deeper than"),
        (JsonSchema({"enum": [f"value {i}" for i in range(20_000)]}), "bytes"),
        (JsonSchema({"type": "string", "pattern": "(a{1000}){1000}"}), "1000000 times"),
        (JsonSchema({"type": "object", "patternProperties": {"^(a{99}){99}$": {}}}), "9803 times"),
        (Regex("((x{99}y){99}z?){99,}"), "times"),
        (Regex("[ab]{3,999999999999999999999}"), "times"),
        (Regex("a" * 20_000), "bytes"),
        (Regex("("), "unclosed"),
        (Grammar("start: A{1000}\nA: /a{1000}/"), "1000000 times"),
        (Grammar('start: "a"~9..9999'), "times"),
        (Grammar("start: nothing"), "nothing"),
        (Grammar("start: start"), "refers to itself"),
        (Grammar(""), "Empty"),
    ],
    ids=range(13),
)
def test_what_would_explode_is_refused(format: Format, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        constraint(format)


def test_counts_add_up_in_a_row_and_multiply_when_nested() -> None:
    for pattern in (r"\d{4}-\d{2}-\d{2}T[^)]{1,99}\({3}", "(ab){1000}", r"[^\]]{999}" * 4, "(?:a|b{9}){99}"):
        guide(BYTES, PADDED, BYTES.ends, Regex(pattern))
    for pattern in ("(ab){3000}", "a{2501}b{2501}", "(?:a|b{99}){99}"):
        with pytest.raises(OptionError, match=f"at most {MAX_REPEATS}"):
            guide(BYTES, PADDED, BYTES.ends, Regex(pattern))


def test_a_format_that_grows_too_complex_ends_with_an_error() -> None:
    found = constraint(Grammar("start: " + "(a|b)* " * 400 + '\na: "x"\nb: "x"'))

    def go_on() -> None:
        for _ in range(400):
            found.accept(ord("x"))

    with pytest.raises(OptionError, match="followed further"):
        go_on()


# Schemas of other hands


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, '{"\\u0061":"x"}'),
        ({"type": "string", "format": "date"}, '"2023-02-29"'),
        ({"type": "string", "format": "date-time"}, '"1900-02-29T00:00:00Z"'),
        ({"type": "string", "format": "date", "pattern": "2"}, '"2023-02-29"'),
        ({"type": "string", "format": "hostname"}, '"xn--X"'),
        ({"items": [{"type": "integer"}], "allOf": [{}], "additionalItems": False}, "[1, 2]"),
        ({"type": "string", "pattern": "^.$"}, '"\\r"'),
        ({"type": "string", "pattern": "^\\s$"}, '"\x85"'),
        ({"type": "string", "pattern": "^a(\\x01|z)?b$", "minLength": 3}, '"ab"'),
        ({"type": "integer", "maximum": (1 << 63) - 1}, "9223372036854775808"),
        ({"propertyNames": {"pattern": "^a"}, "additionalProperties": {"type": "integer"}}, '{"b": 1}'),
        ({"type": "array", "items": {"enum": [1, 1.0, "a"]}, "uniqueItems": True}, '["a", "a"]'),
    ],
)
def test_what_validators_refuse_is_never_allowed(schema: Any, wrong: str) -> None:
    assert not takes(JsonSchema(schema), wrong)


def test_control_characters_and_large_numbers_are_refused_by_name() -> None:
    for value in ("nul\x00", ["\x7f"], {"a": 2**53 + 1}, 10**400):
        with pytest.raises(OptionError, match="'const' at its top"):
            exact({"const": value})
    with pytest.raises(OptionError, match=r"'minProperties'.*could come twice"):
        exact({"additionalProperties": True, "minProperties": 2})


TAGGED = {
    "a": {"type": "object", "properties": {"k": {"const": "a"}, "x": {"type": "integer"}}, "required": ["k"]},
    "b": {"type": "object", "properties": {"k": {"enum": ["b", "c"]}, "x": {"type": "string"}}, "required": ["k"]},
    "c": {"type": "object", "properties": {"k": {"const": "d"}}},
    "d": {"type": "object", "properties": {"k": {"const": "e"}}},
}


def one_of(*schemas: Any, **more: Any) -> JsonSchema:
    return JsonSchema({"oneOf": list(schemas), "$defs": TAGGED, **more})


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


def test_one_of_is_taken_where_no_two_allow_the_same() -> None:
    tagged = one_of(ref("a"), ref("b"), ref("c"))
    assert takes(tagged, '{"k": "a", "x": 1}')
    assert takes(tagged, '{"k": "c", "x": "y"}')
    assert not takes(tagged, '{"k": "c", "x": 1}')
    assert takes(one_of(*({"const": i} for i in range(400))), "399")
    numbers = one_of({"type": "integer", "maximum": 3}, {"type": "number", "exclusiveMinimum": 3}, {"type": "null"})
    assert takes(numbers, "3.5")
    with pytest.raises(OptionError, match="'oneOf' at its top, whose schemas 0 and 1 may allow the same"):
        constraint(one_of(ref("c"), ref("d")))


def test_a_discriminator_is_always_written_where_schemas_differ_only_by_it() -> None:
    tagged = one_of(ref("c"), ref("d"), discriminator={"propertyName": "k"})
    assert takes(tagged, '{"k": "e"}')
    assert not takes(tagged, "{}")


def test_one_of_several_properties() -> None:
    either = one_of({"required": ["a"]}, {"required": ["b"]}, properties={"a": {}, "b": {}}, type="object")
    assert takes(either, '{"a": 1}')
    assert takes(either, '{"b": 1}')
    assert not takes(either, '{"a": 1, "b": 1}')
    assert not takes(either, "{}")


def test_words_that_llguidance_does_not_know() -> None:
    needs = JsonSchema({"properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}, "type": "object"})
    assert [takes(needs, text) for text in ("{}", '{"a":1}', '{"b":1}', '{"a":1,"b":1}')] == [True, False, True, True]
    names = {"type": "object", "additionalProperties": {"type": "integer"}, "propertyNames": {"enum": ["x", "y"]}}
    assert takes(JsonSchema(names), '{"y": 1}')
    assert not takes(JsonSchema(names), '{"z": 1}')
    closed = JsonSchema({"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False})
    assert takes(closed, '{"a": 1}')
    assert not takes(closed, '{"b": 1}')
    assert takes(JsonSchema({"type": "string", "format": "password", "contentSchema": {}, "nullable": False}), '"p"')


def test_references_lead_where_validators_go() -> None:
    number, text = {"type": "integer"}, {"type": "string"}
    part = {"$id": "part", "$defs": {"n": number}, "properties": {"v": {"$ref": "#/$defs/n"}}, "type": "object"}
    schema = {"$id": "https://example.org/", "$ref": "part", "$defs": {"p": part, "n": text}}
    assert takes(JsonSchema(schema), '{"v": 1}')
    assert not takes(JsonSchema(schema), '{"v": "1"}')
    assert takes(
        JsonSchema({"$ref": "#x", "$defs": {"a/b": {"$anchor": "x", "$ref": "#/$defs/c~1d"}, "c/d": number}}), "1"
    )
    with pytest.raises(OptionError, match="'not' at #/x-parts/a"):
        exact({"$ref": "#/x-parts/a", "x-parts": {"a": {"not": {}}}})


@pytest.mark.parametrize(
    "keyword", ["properties", "oneOf", "$ref", "format", "pattern", "items", "propertyNames", "type"]
)
def test_values_of_a_wrong_type_are_refused(keyword: str) -> None:
    for value in (5, [5], {"a": 5}, None):
        with pytest.raises(OptionError):
            constraint(JsonSchema({keyword: value}))


# Asks


def served(words: Any = BYTES) -> Any:
    local = SimpleNamespace(
        tokenizer=words,
        template=None,
        ends=words.ends,
        config=SimpleNamespace(vocab=PADDED),
        tokenizer_to=lambda _: words,
    )
    return SimpleNamespace(local=local, kept={})


def test_an_ask_is_bound_by_its_format_and_its_tools() -> None:
    tool = Tool("now")
    assert constraint_for(served(), Ask(model=""), 64) is None
    assert constraint_for(served(), Ask(model="", tools=[tool]), 64) is None
    bound = constraint_for(served(), Ask(model="", format=Regex("ab"), tools=[tool], tool_choice="none"), 64)
    called = constraint_for(served(), Ask(model="", tools=[tool], tool_choice="required"), 64)
    assert bound is not None
    assert called is not None
    assert allowed(bound()) == [ord("a")]
    assert allowed(called()) == [BYTES.control["<tool_call>"]]
