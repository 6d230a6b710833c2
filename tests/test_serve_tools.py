"""Calls as they come, however the text is cut; each template's own way to call, and ours; grammars of calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packages import unpacked
from test_chat import CHATML as CHATML_TOKENS
from test_chat import tokenizer

from geode.chat import Template, builtin, builtins
from geode.errors import ChatError, OptionError
from geode.serve.ask import Ask, CallBegins, CallGoesOn, Grammar, JsonSchema, Message, Regex, Text, Tool
from geode.serve.tools import CALL, FUNCTION, PROBE, TALK, Parser, Tools, Way, found_way
from geode.tool_calls import Arguments, CallReader, Name, Part, parse_tool_calls

CITY = {"type": "object", "properties": {"city": {"enum": ["Köln", "Rome"]}}, "required": ["city"]}
CITY |= {"additionalProperties": False}
WEATHER = Tool("weather", "Looks out of the window", CITY)
TIME = Tool("time", "Looks at the clock", {"type": "object", "properties": {}, "additionalProperties": False})
NAMES = {"weather", "time", "a"}


def read(*texts: str, names: set[str] = NAMES) -> list[Part]:
    reader = CallReader(names)
    parts = [part for text in texts for part in reader.push(text)] + reader.finish()
    joined: list[Part] = []
    for part in parts:
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += part
        elif joined and isinstance(part, Arguments) and isinstance(joined[-1], Arguments):
            joined[-1] = Arguments(joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined


KOELN = [Name("weather"), Arguments('{"city": "Köln"}')]
CASES: list[tuple[str, list[Part]]] = [
    ('<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>', KOELN),
    ('Look: \n<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>\n', ["Look:", *KOELN]),
    ('<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Köln\\"}"}</tool_call>', KOELN),
    ('<tool_call>{"arguments": {"city": "Köln"}, "name": "weather"}</tool_call> ok', [*KOELN, "ok"]),
    ('<tool_call>{"name":"a","arguments":{}}</tool_call>\n<tool_call>{"name":"time","arguments":{}}',
     [Name("a"), Arguments("{}"), Name("time"), Arguments("{}")]),
    ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Köln"}, "id": "abc"}]', KOELN),
    ('[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Köln"}}, {"name": "a", "arguments": {}}]',
     [*KOELN, Name("a"), Arguments("{}")]),
    ('[TOOL_CALLS]weather[ARGS]{"city": "Köln"}[TOOL_CALLS]a[CALL_ID]x1[ARGS]{}', [*KOELN, Name("a"), Arguments("{}")]),
    ('{"name": "weather", "parameters": {"city": "Köln"}}', KOELN),
    ('\n{"type": "function", "name": "weather", "parameters": {"city": "Köln"}}', KOELN),
    ('{"type": "function", "function": {"name": "weather", "parameters": {"city": "Köln"}}}', KOELN),
    ('<|python_tag|>{"name": "weather", "parameters": {"city": "Köln"}}<|eom_id|>', KOELN),
    ('{"name":"a","parameters":{}}; {"name":"time","parameters":{}}',
     [Name("a"), Arguments("{}"), Name("time"), Arguments("{}")]),
    ('<tool_call>{"name": "a", "arguments": {"x": "}{\\"<tool_call>", "y": [{}]}}</tool_call>',
     [Name("a"), Arguments('{"x": "}{\\"<tool_call>", "y": [{}]}')]),
    # broken off, or broken
    ('<tool_call>{"name": "weather", "arguments": {"city": "K', [Name("weather"), Arguments('{"city": "K')]),
    ('<tool_call>{"name": "a", "arguments": {"x": 1]} more', [Name("a"), Arguments('{"x": 1'), "]} more"]),
    # no calls
    ("It is warm. ", ["It is warm. "]),
    (" \n", [" \n"]),
    ('{"name": "Bob"}', ['{"name": "Bob"}']),
    ('{"name": "Bob", "parameters": {}} is JSON', ['{"name": "Bob", "parameters": {}} is JSON']),
    ('<tool_call>{"name": </tool_call>', ['<tool_call>{"name": </tool_call>']),
    ('<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
     ['<tool_call>{"name": "unknown", "arguments": {}}</tool_call>']),
    ('a <tool_call> b [TOOL_CALLS] c <tool_ca', ["a <tool_call> b [TOOL_CALLS] c <tool_ca"]),
    ('<tool_call><tool_call>{"name": "a", "arguments": {}}</tool_call>', ["<tool_call>", Name("a"), Arguments("{}")]),
    ("[" * 5000, ["[" * 5000]),
    ('{"a":' * 3000, ['{"a":' * 3000]),
    ("[1, 2]", ["[1, 2]"]),
    ("", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "parts"), CASES)
def test_calls_in_one_piece_and_by_characters(text: str, parts: list[Part]) -> None:
    assert read(text) == parts
    assert read(*text) == parts


CALLED: list[tuple[str, list[Part]]] = [
    ('Hi <tool_call>\n{"na', ["Hi"]),
    ('Hi <tool_call>\n{"name": "weather", "argu', ["Hi"]),
    ("Hi <tool_ca", ["Hi"]),
    ("[TOOL_CALLS]weath", []),
    ('<tool_call>{"name": "a", "arguments": {}}\n</tool', [Name("a"), Arguments("{}")]),
    ('<tool_call>{"name": "weather", "arguments": {"city": "K', [Name("weather"), Arguments('{"city": "K')]),
    ('<tool_call>{"name": "unknown", "arguments": {"', ['<tool_call>{"name": "unknown", "arguments": {"']),
    ("a < b <", ["a < b <"]),
    ('{"name": "we', ['{"name": "we']),
]


@pytest.mark.parametrize(("text", "parts"), CALLED)
def test_a_call_that_is_cut_leaves_nothing_of_its_spelling(text: str, parts: list[Part]) -> None:
    for texts in ([text], [*text]):
        reader = CallReader(NAMES)
        found = [part for one in texts for part in reader.push(one)] + reader.finish(cut=True)
        assert "".join(p for p in found if isinstance(p, str)) == "".join(p for p in parts if isinstance(p, str))
        assert [p for p in found if isinstance(p, Name)] == [p for p in parts if isinstance(p, Name)]


@pytest.mark.parametrize("text", [text for text, parts in CASES if parts[:2] == KOELN])
def test_calls_that_must_be_are_never_text(text: str) -> None:
    for end in range(len(text)):
        reader = CallReader(NAMES)
        parts = reader.push(text[:end]) + reader.finish(cut=True, must=True)
        assert "".join(part for part in parts if isinstance(part, str)).strip() in ("", "o", "ok"), text[:end]


PIECES = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", '{"name": "a", "arguments": ']
PIECES += ["{}", '{"x": [1, "}"]}', "}", "]", "[", "\n", " ", ",", ";", "a", "weather", '"', "\\", ":", "<tool", "Hi"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text('{}[]":,\\a<tol_c>', max_size=40)


@given(TEXTS, st.lists(st.integers(0, 120), max_size=6))
@settings(max_examples=600, deadline=None)
def test_any_cut_gives_the_same(text: str, places: list[int]) -> None:
    cuts = [0, *sorted({min(place, len(text)) for place in places}), len(text)]
    whole = read(text)
    assert read(*(text[a:b] for a, b in pairwise(cuts))) == whole
    if not any(isinstance(part, Name) for part in whole):
        assert "".join(part for part in whole if isinstance(part, str)) == text


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_what_is_found_whole_is_found_as_it_comes(text: str) -> None:
    """The other reader waits for the end, so it knows more of what breaks off, but where it finds calls they agree."""
    content, calls = parse_tool_calls(text)
    parts = read(text)
    if (
        len(calls) == 1
        and calls[0]["name"] in NAMES
        and "".join(filter(str.isalpha, content)) == ""
        and "\\" not in text
    ):
        found = [json.loads(part.text) for part in parts if isinstance(part, Arguments) and part.text.endswith("}")]
        assert calls[0]["arguments"] in found


def test_arguments_and_answers_in_json_come_at_once() -> None:
    reader = CallReader(NAMES)
    assert reader.push('<tool_call>{"name": "a", "arguments": {') == [Name("a"), Arguments("{")]
    assert reader.push('"x": "lo') == [Arguments('"x": "lo')]
    reader = CallReader(NAMES)
    assert reader.push('{"temperature":') == ['{"temperature":']  # an answer in JSON is not kept waiting


def test_events_have_ids_of_their_own() -> None:
    parser = Parser(NAMES)
    events = parser.push('Hi <tool_call>{"name": "a", "arguments": {}}</tool_call>') + parser.finish()
    events += parser.push('<tool_call>{"name": "time", "arguments": {}}</tool_call>') + parser.finish()
    text, first, more, second, _ = events
    assert (text, more) == (Text(0, "Hi"), CallGoesOn(0, 0, "{}"))
    assert isinstance(first, CallBegins) and isinstance(second, CallBegins)
    assert (first.call, first.name, second.call, second.name) == (0, "a", 1, "time")
    assert first.id.startswith("call_") and first.id != second.id


# Templates

HERMES = """{%- for m in messages -%}
{%- if loop.first and tools %}<|im_start|>system
{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>
{% endif -%}
<|im_start|>{{ m.role }}
{{ m.content or "" }}
{%- for c in m.tool_calls or [] -%}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>
{%- endfor -%}<|im_end|>
{% endfor -%}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""
LLAMA = HERMES.replace("<tool_call>\n", "").replace("\n</tool_call>", "").replace('"arguments"', '"parameters"')
MISTRAL = """{{ bos_token }}{% if tools %}[TOOLS]{{ tools | tojson }}{% endif %}{% for m in messages %}
{%- if m.role == "user" %}[INST]{{ m.content }}[/INST]
{%- elif m.role == "tool" %}{% if m.tool_call_id | length != 9 %}{{ raise_exception("nine") }}{% endif %}
{{- "[TOOL_RESULTS]" ~ m.content ~ "[/TOOL_RESULTS]" }}
{%- elif m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception("nine") }}
{%- endif %}{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}
{%- endfor %}]{{ eos_token }}{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"""
TEKKEN = MISTRAL.replace("[{% for c in m.tool_calls %}", "{% for c in m.tool_calls %}").replace(
    "{%- endfor %}]", "{%- endfor %}"
)
TEKKEN = TEKKEN.replace('{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}',
                        "{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}")  # fmt: skip
STRANGE = HERMES.replace('{"name": "{{ c.function.name }}", "arguments": ', "{{ c.function.name }} with ")
MARKED = tokenizer("[TOOL_CALLS]", "[ARGS]", "[INST]", "[/INST]")
WAYS = {
    "hermes": (HERMES, CHATML_TOKENS, Way("<tool_call>", "</tool_call>", "\n")),
    "llama": (LLAMA, CHATML_TOKENS, Way("", between="; ", key="parameters")),
    "mistral": (MISTRAL, MARKED, Way("[TOOL_CALLS]", between="; ", listed=True)),
    "tekken": (TEKKEN, MARKED, Way("[TOOL_CALLS]", between="", divides="[ARGS]")),
    "ours": (builtin("chatml"), CHATML_TOKENS, None),
    "strange": (STRANGE, CHATML_TOKENS, None),
}


def tools_of(name: str) -> Tools:
    source, words, _ = WAYS[name]
    return Tools(Template(source, words), words)


@pytest.mark.parametrize("name", WAYS)
def test_the_way_is_found_by_rendering(name: str) -> None:
    source, words, way = WAYS[name]
    assert found_way(Template(source, words)) == way
    assert tools_of(name).native == (way is not None)


TALKED: list[Message] = [
    {"role": "system", "content": "Be nice."},
    {"role": "user", "content": "Weather and time?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}},
        {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees"},
    {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "noon"}]},
    {"role": "user", "content": "And Rome?"},
]  # fmt: skip


@pytest.mark.parametrize("name", builtins())
def test_every_template_renders_tools_calls_and_results(name: str) -> None:
    words = tokenizer("<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>")
    template = Template(builtin(name), words)
    tools = Tools(template, words)
    messages, functions = tools.conversation(TALKED, [WEATHER, TIME])
    text = template.render(messages, tools=functions)
    for expected in ("Be nice.", "Looks at the clock", '{"name": "weather", "arguments": {"city": "Köln"}}',
                     "22 degrees", "noon", "And Rome?", '<tool_response name="time">'):  # fmt: skip
        assert expected in text
    assert text.index("noon") < text.index("And Rome?")
    assert "Call the function time now." in template.render(tools.conversation(TALKED, [TIME], "time", False)[0])
    ids = tools.prompt(Ask(model="", messages=TALKED, tools=[WEATHER]))
    assert ids != tools.prompt(Ask(model="", messages=TALKED, tools=[WEATHER], tool_choice="none"))


@pytest.mark.parametrize("name", ["mistral", "tekken"])
def test_mistral_gets_ids_of_nine(name: str) -> None:
    tools = tools_of(name)
    talk = [message for message in TALKED if message["role"] != "system"]
    assert MARKED.control["[TOOL_CALLS]"] in tools.prompt(Ask(model="", messages=talk, tools=[WEATHER]))


def test_a_model_without_a_template_is_told_so() -> None:
    with pytest.raises(ChatError, match="no chat template"):
        Tools(None, CHATML_TOKENS).prompt(Ask(model="", messages=TALKED, tools=[WEATHER]))


def test_only_the_marks_of_calls_are_shown() -> None:
    tools = tools_of("mistral")
    decoder = tools.decoder()
    ids = [MARKED.control["[INST]"], MARKED.control["[TOOL_CALLS]"], *b"[]", MARKED.control["</s>"]]
    assert "".join(map(decoder.push, ids)) == "[TOOL_CALLS][]"


# Grammars


def written(tools: Tools, format: Any, seed: int, wish: str = "", most: int = 400) -> str | None:
    """A text of the format: what is wished for as far as it is allowed, and then random; None where it does not end."""
    pytest.importorskip("llguidance")
    from geode.serve.grammar import guide

    words = tools._tokenizer
    assert words is not None
    constraint = guide(words, words.size, words.ends, format)()
    random, ids, waiting = np.random.default_rng(seed), [], words.encode(wish, special=True, bos=False)
    for _ in range(most):
        token = waiting.pop(0) if waiting and constraint.allows(waiting[0]) else None
        if token is None:
            waiting = []
            allowed = np.flatnonzero(constraint.mask())
            ends = [each for each in allowed if each in words.ends]
            token = int(ends[0] if ends else random.choice(allowed))
        constraint.accept(token)
        if token in words.ends:
            return "".join(map(tools.decoder().push, ids))
        ids.append(token)
    return None


def calls_in(tools: Tools, text: str) -> list[tuple[str, Any]]:
    reader = CallReader({"weather", "time"})
    found: list[list[str]] = []
    for part in [*reader.push(text), *reader.finish()]:
        if isinstance(part, Name):
            found.append([part.name, ""])
        elif isinstance(part, Arguments):
            found[-1][1] += part.text
        else:
            assert not part.strip(), text
    return [(name, json.loads(arguments)) for name, arguments in found]


def assert_good(calls: Sequence[tuple[str, Any]]) -> None:
    for name, arguments in calls:
        assert arguments == {} if name == "time" else arguments["city"] in ("Köln", "Rome")


@pytest.mark.parametrize("name", WAYS)
def test_a_required_call_is_made_and_read_back(name: str) -> None:
    tools = tools_of(name)
    for seed in range(4):
        text = written(tools, tools.format([WEATHER, TIME], "required", parallel=False), seed)
        assert text is not None
        calls = calls_in(tools, text)
        assert len(calls) == 1
        assert_good(calls)
    text = written(tools, tools.format([WEATHER, TIME], "weather", parallel=False), 1)
    assert text is not None
    assert [call for call, _ in calls_in(tools, text)] == ["weather"]


@pytest.mark.parametrize("name", WAYS)
def test_parallel_calls_are_made_and_read_back(name: str) -> None:
    tools = tools_of(name)
    format = tools.format([TIME], "required")
    one = written(tools, tools.format([TIME], "required", parallel=False), 0)
    assert one is not None
    two = one + tools.way.between + one
    if tools.way.listed:
        two = one[:-1] + ", " + one[one.index("{") :]
    text = written(tools, format, 0, two)
    assert text == two
    assert calls_in(tools, text) == [("time", {}), ("time", {})]


@pytest.mark.parametrize("name", WAYS)
def test_strict_tools_bind_only_what_becomes_a_call(name: str) -> None:
    tools = tools_of(name)
    strict = Tool("weather", "", CITY, strict=True)
    assert tools.format([WEATHER, TIME], "auto") is None
    format = tools.format([strict], "auto")
    assert written(tools, format, 0, "It is warm.") == "It is warm."
    text = written(tools, format, 0, tools.way.opens or "{")
    assert text is not None
    assert_good(calls_in(tools, text))
    assert len(calls_in(tools, text)) == 1


@pytest.mark.parametrize("name", WAYS)
def test_no_second_call_where_only_one_is_wanted(name: str) -> None:
    tools = tools_of(name)
    one = written(tools, tools.format([TIME], "required", parallel=False), 0)
    format = tools.format([TIME], "auto", parallel=False)
    text = written(tools, format, 0, f"{one}{tools.way.between}{one}")
    assert text is not None and calls_in(tools, text) == [("time", {})]
    assert written(tools, format, 0, "It is warm.") == "It is warm."


def test_an_answer_of_a_format_or_a_call() -> None:
    tools = tools_of("hermes")
    answer = JsonSchema(
        {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"], "additionalProperties": False}
    )
    format = tools.format([WEATHER], "auto", answer=answer)
    text = written(tools, format, 0, '{"x": 1}')
    assert text == '{"x": 1}'
    text = written(tools, format, 0, "<tool_call>")
    assert text is not None
    assert_good(calls_in(tools, text))
    assert written(tools, tools.format([WEATHER], "auto", answer=Regex("a{3}")), 0, "aaaa") == "aaa"
    assert tools.format([WEATHER], "none", answer=answer) == answer
    with pytest.raises(OptionError, match="grammar and tools"):
        tools.format([WEATHER], "auto", answer=Grammar('start: "a"'))


def test_schemas_of_tools_that_cannot_be_enforced() -> None:
    tools = tools_of("hermes")
    odd = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(OptionError, match=r"'odd'.*'uniqueItems' at /properties/x"):
        tools.format([Tool("odd", "", odd, strict=True)], "auto")
    format = tools.format([Tool("weather", "", odd)], "required", parallel=False)
    text = written(tools, format, 0, '<tool_call>\n{"name": "weather", "arguments": {"any": 1}}')
    assert text is not None
    assert calls_in(tools, text) == [("weather", {"any": 1})]
    with pytest.raises(OptionError, match="'rain'; the tools are: weather"):
        tools.format([WEATHER], "rain")


@pytest.mark.slow
def test_published_templates() -> None:
    """Each way that is found reads back what the template itself writes; the others get ours."""
    paths = sorted(unpacked("llama_cpp").rglob("vendor/llama.cpp/models/templates/*.jinja"))
    native = 0
    for path in paths:
        words = tokenizer("<start_of_turn>", "<end_of_turn>")
        template = Template(path.read_text("utf-8"), words)
        tools = Tools(template, words)
        if tools.native:
            native += 1
            before = template.render(TALK[:1], tools=[FUNCTION])
            text = template.render(TALK[:2], tools=[FUNCTION], add_generation_prompt=False)
            said = (
                text[text.rindex(tools.way.opens or '{"name"') :]
                if not text.startswith(before)
                else text[len(before) :]
            )
            parts = read(said, names={PROBE})
            assert [part for part in parts if not isinstance(part, str)] == [
                Name(PROBE),
                Arguments(json.dumps(CALL["function"]["arguments"], ensure_ascii="\\u" in said)),  # type: ignore[index]
            ], path.name
    assert native > 15
