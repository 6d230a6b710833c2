"""Rows to examples: every shape that people have, which one is recognised, and what is refused and why."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pytest

from geode.errors import FormatError, OptionError
from geode.tune import shapes
from geode.tune.examples import Completion, Conversation, Labelled, Preference, Text
from geode.tune.readers import Row
from geode.tune.shapes import Misfit, Reading, recognise

DATA = Path(__file__).parents[2] / "shared" / "data"


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def answer(text: str) -> dict:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict:
    return {"role": "system", "content": text}


def spoken(*turns: str) -> list[dict]:
    """ShareGPT's turns from "human: Hi"."""
    return [dict(zip(("from", "value"), turn.split(": ", 1), strict=True)) for turn in turns]


def rows(*values: dict) -> list[Row]:
    return [Row(each, f"data.jsonl:{number}") for number, each in enumerate(values, 1)]


def read(values: dict, name: str = "auto", columns: dict | None = None) -> list:
    (row,) = rows(values)
    return recognise([row], name, columns).examples(row)


def one(values: dict, name: str = "auto", columns: dict | None = None):
    (example,) = read(values, name, columns)
    assert example.source == "data.jsonl:1"
    return example


def talk(values: dict, **options) -> list[dict]:
    example = one(values, **options)
    assert isinstance(example, Conversation)
    return example.messages


EXCHANGE = [user("2+2?"), answer("4")]
CALL = {"name": "add", "arguments": {"a": 2}}
TOOL = {"name": "add", "parameters": {"type": "object"}}
DESCRIBED = [{"type": "function", "function": TOOL}]
CALLED = [{"type": "function", "function": CALL}]

# --- shapes that are learnt as they stand ------------------------------------------------------------------------

CONVERSATIONS = [
    ("messages", {"messages": EXCHANGE}, EXCHANGE),
    ("messages", {"conversations": EXCHANGE, "id": 7}, EXCHANGE),
    ("messages", {"messages": json.dumps(EXCHANGE)}, EXCHANGE),  # a cell of a table
    ("messages", {"messages": EXCHANGE, "prompt": "2+2?", "prompt_id": "x"}, EXCHANGE),
    ("messages", {"messages": EXCHANGE, "system": "Count."}, [system("Count."), *EXCHANGE]),
    ("messages", {"messages": [system(" "), *EXCHANGE], "system": None}, EXCHANGE),
    (
        "messages",
        {
            "messages": [
                user("a"),
                {"role": "assistant", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
            ]
        },
        [user("a"), answer("bc")],
    ),
    ("messages", {"messages": [{"role": "User", "content": "2+2?"}, {"role": "model", "content": "4"}]}, EXCHANGE),
    ("sharegpt", {"conversations": spoken("human: 2+2?", "gpt: 4")}, EXCHANGE),
    ("sharegpt", {"conversation": spoken("system: S", "human: 2+2?", "gpt: 4")}, [system("S"), *EXCHANGE]),
    ("sharegpt", {"conversations": spoken("human: 2+2?", "gpt: 4"), "system": ""}, EXCHANGE),
    ("alpaca", {"instruction": "2+2?", "input": "", "output": "4"}, EXCHANGE),
    ("alpaca", {"instruction": "Add.", "input": "2, 2", "output": "4"}, [user("Add.\n\n2, 2"), answer("4")]),
    ("alpaca", {"instruction": "Add.", "context": None, "response": "4", "category": "x"}, [user("Add."), answer("4")]),
    (
        "alpaca",
        {"instruction": "b", "input": "", "output": "4", "system": "S", "history": [["2+2?", "4"]]},
        [system("S"), *EXCHANGE, user("b"), answer("4")],
    ),
    ("question-answer", {"question": "2+2?", "answer": "4"}, EXCHANGE),
    ("question-answer", {"query": "2+2?", "response": "4"}, EXCHANGE),
    ("question-answer", {"prompt": "2+2?", "response": "4"}, EXCHANGE),
    ("question-answer", {"input": "2+2?", "output": "4"}, EXCHANGE),
    ("question-answer", {"prompt": "2+2?", "completion": "4", "system": "S"}, [system("S"), *EXCHANGE]),
    ("question-answer", {"system_prompt": "S", "question": "2+2?", "response": "4"}, [system("S"), *EXCHANGE]),
    ("prompt-completion", {"prompt": EXCHANGE[:1], "completion": EXCHANGE[1:]}, EXCHANGE),
]


@pytest.mark.parametrize(("name", "values", "messages"), CONVERSATIONS)
def test_conversations(name, values, messages):
    found = recognise(rows(values))
    assert found.name == name
    assert one(values) == Conversation(messages, None, "data.jsonl:1", None)
    assert one(values, name) == one(values)


def test_plain_texts():
    assert one({"text": "Once.", "title": "x"}) == Text("Once.", "data.jsonl:1")
    assert one({"content": "Once."}) == Text("Once.", "data.jsonl:1")
    assert one({"prompt": "2+2=", "completion": " 4"}) == Completion("2+2=", " 4", "data.jsonl:1")
    assert one({"prompt": "Sort.", "completion": "[1, 2]"}).completion == "[1, 2]"


def test_only_the_end_of_a_conversation_is_learnt_where_the_prompt_holds_answers():
    prompt = [system("S"), user("a"), answer("b"), user("c")]
    example = one({"prompt": prompt, "completion": [answer("d")]})
    assert example.messages == [*prompt, answer("d")] and example.learn == {4}
    assert one({"prompt": prompt, "completion": answer("d")}) == example


def test_answers_of_weight_0_are_not_learnt():
    talk = [user("a"), {**answer("b"), "weight": 0}, user("c"), {**answer("d"), "weight": 1}]
    assert one({"messages": talk}) == Conversation(
        [user("a"), answer("b"), user("c"), answer("d")], None, "data.jsonl:1", frozenset({3})
    )
    with pytest.raises(Misfit, match="nothing to learn: every answer has the weight 0"):
        one({"messages": talk[:2]})


def test_why_names_what_is_read_and_what_is_not():
    found = recognise(rows({"id": 1, "question": "a", "answer": "b"}))
    assert found.why == (
        "question-answer: one exchange of a conversation, from question (as prompt), answer (as completion); not read: id"
    )
    assert found.columns == {"prompt": "question", "completion": "answer"}


# --- tools -------------------------------------------------------------------------------------------------------

ASKED = [
    user("2+2?"),
    {"role": "assistant", "content": "", "tool_calls": CALLED},
    {"role": "tool", "content": "4"},
    answer("It is 4."),
]


@pytest.mark.parametrize(
    "values",
    [
        {
            "conversations": spoken(
                "human: 2+2?", f"function_call: {json.dumps(CALL)}", "observation: 4", "gpt: It is 4."
            ),
            "tools": json.dumps([TOOL]),
        },
        {"messages": ASKED, "tools": DESCRIBED},
        {
            "messages": [
                ASKED[0],
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}],
                },
                {"role": "tool", "content": 4},
                ASKED[3],
            ],
            "tools": [TOOL],
        },
        {
            "messages": [
                ASKED[0],
                {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 2}'}},
                {"role": "function", "content": "4"},
                ASKED[3],
            ],
            "functions": [TOOL],
        },
    ],
)
def test_tool_calls_of_every_spelling(values):
    assert one(values) == Conversation(ASKED, DESCRIBED, "data.jsonl:1", None)


def test_several_calls_keep_their_names():
    calls = [{"id": f"c{i}", "type": "function", "function": {"name": "add", "arguments": {"a": i}}} for i in range(2)]
    results = [{"role": "tool", "content": f"{i}", "tool_call_id": f"c{i}"} for i in range(2)]
    messages = [user("x"), {"role": "assistant", "content": "Both:", "tool_calls": calls}, *results, answer("done")]
    assert talk({"messages": messages}) == messages


def test_a_conversation_may_end_with_a_call():
    assert talk({"messages": ASKED[:2]}) == ASKED[:2]


def test_no_tools():
    for none in (None, "", "[]", []):
        assert one({"conversations": spoken("human: a", "gpt: b"), "tools": none}).tools is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"messages": [user("a"), {**answer(""), "tool_calls": [{"name": "x"}]}]},
            "a tool call that cannot be read: turn 2",
        ),
        (
            {"conversations": spoken("human: a", "function_call: add(2)", "gpt: b")},
            "a tool call that cannot be read: turn 2",
        ),
        (
            {"messages": [*ASKED[:2], answer("4")]},
            "message 3 is the assistant's and comes after the assistant's that calls a tool",
        ),
        (
            {"messages": [*ASKED[:2], user("and?")]},
            "message 3 is the user's and comes after the assistant's that calls a tool",
        ),
        (
            {"messages": [user("a"), answer("b"), ASKED[2], answer("c")]},
            "message 3 is the tool's and comes after the assistant's",
        ),
        ({"messages": EXCHANGE, "tools": "add"}, "tools that cannot be read"),
        ({"messages": EXCHANGE, "tools": [{"about": "x"}]}, "tools that cannot be read"),
    ],
)
def test_tools_that_cannot_be_read(values, said):
    with pytest.raises(Misfit, match=said):
        one(values)


# --- preferences and labels --------------------------------------------------------------------------------------

PAIR = Preference([user("2+2?")], [answer("4")], [answer("5")], "data.jsonl:1")
HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: 2+2?\n\nAssistant: {}"


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {"question": "2+2?", "chosen": "4", "rejected": "5", "system": ""},
        {"prompt": [user("2+2?")], "chosen": [answer("4")], "rejected": [answer("5")]},
        {"chosen": EXCHANGE, "rejected": [EXCHANGE[0], answer("5")]},
        {
            "prompt": "2+2?",
            "chosen": EXCHANGE,
            "rejected": [EXCHANGE[0], answer("5")],
            "messages": EXCHANGE,
            "score_chosen": 9.0,
        },
        {"conversations": spoken("human: 2+2?"), "chosen": spoken("gpt: 4")[0], "rejected": spoken("gpt: 5")[0]},
        {"instruction": "2+2?", "input": "", "output": "4", "rejected": "5", "chosen": "4"},
        {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
        {"prompt": "\n\nHuman: 2+2?\n\nAssistant:", "chosen": "4", "rejected": "5"},
    ],
)
def test_preferences_of_every_spelling(values):
    assert recognise(rows(values)).name == "preference"
    assert one(values) == PAIR


def test_dialogues_share_what_they_begin_with():
    before = [user("Hi"), answer("Hello."), user("2+2?")]
    assert one({"chosen": HH.format("4"), "rejected": HH.format("5")}) == Preference(
        before, [answer("4")], [answer("5")], "data.jsonl:1"
    )
    longer = one({"chosen": HH.format("4\n\nHuman: Why?\n\nAssistant: So."), "rejected": HH.format("5")})
    assert longer.chosen == [answer("4"), user("Why?"), answer("So.")] and longer.rejected == [answer("5")]


def test_a_system_text_is_part_of_the_prompt():
    example = one({"system": "S", "prompt": "2+2?", "chosen": "4", "rejected": "5"})
    assert example == Preference([system("S"), user("2+2?")], [answer("4")], [answer("5")], "data.jsonl:1")
    assert one({"system": "S", "instruction": "2+2?", "output": "4", "label": 1}).prompt == example.prompt


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "an empty message: message 2"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "a column is missing: there is nothing in rejected"),
        (
            {"chosen": EXCHANGE, "rejected": [user("3+3?"), answer("6")]},
            "chosen parts from the other before an assistant's",
        ),
        ({"chosen": EXCHANGE, "rejected": [*EXCHANGE, user("b"), answer("c")]}, "no two answers to one prompt: chosen"),
        ({"chosen": HH.format("4"), "rejected": HH.format("5\n\nAssistant: 6")}, "roles out of order: message 5"),
        ({"prompt": "a", "completion": "b", "label": None}, "a column is missing: there is nothing in label"),
        (
            {"messages": [*EXCHANGE, user("b")], "label": True},
            "no answer of an assistant: the last message is the user's",
        ),
    ],
)
def test_preferences_and_labels_that_are_none(values, said):
    with pytest.raises(Misfit, match=said):
        one(values)


@pytest.mark.parametrize(
    ("values", "good"),
    [
        ({"prompt": "2+2?", "completion": "4", "label": True}, True),
        ({"prompt": "2+2?", "completion": "4", "label": "False"}, False),
        ({"prompt": [user("2+2?")], "completion": [answer("4")], "label": 0}, False),
        ({"messages": EXCHANGE, "label": True}, True),
        ({"conversations": spoken("human: 2+2?", "gpt: 4"), "kto_tag": False}, False),
        ({"instruction": "2+2?", "input": "", "output": "4", "kto_tag": 1.0}, True),
    ],
)
def test_labels_of_every_spelling(values, good):
    assert recognise(rows(values)).name == "kto"
    assert one(values) == Labelled([user("2+2?")], [answer("4")], good, "data.jsonl:1")


def test_a_label_that_is_none_is_seen_after_the_first_rows():
    shape = recognise(rows({"prompt": "a", "completion": "b", "label": True}))
    with pytest.raises(Misfit, match="a label that says neither: expected true or false; got 'maybe'"):
        shape.examples(Row({"prompt": "a", "completion": "b", "label": "maybe"}, "data.jsonl:40"))


def test_a_label_of_many_values_is_not_read_as_good_or_bad():
    found = recognise(rows({"prompt": "a", "completion": "b", "label": "sports"}))
    assert found.name == "prompt-completion" and "not read: label" in found.why


# --- trees -------------------------------------------------------------------------------------------------------


def node(text: str, *replies: dict, **more) -> dict:
    role = "prompter" if text.islower() else "assistant"
    return {
        "message_id": text,
        "text": text,
        "role": role,
        "replies": list(replies),
        "deleted": False,
        "review_result": True,
        **more,
    }


TREE = {
    "message_tree_id": "x",
    "tree_state": "ready_for_export",
    "prompt": node(
        "p",
        node("A", node("q", node("B", rank=1), node("C", rank=0)), node("r"), rank=1),
        node("D", rank=0),
        node("E", deleted=True, rank=2),
        node("F", node("s", node("G")), review_result=False, rank=3),
        node("H", node("t", node("I", node("u", node("J")))), rank=4),
    ),
}


def ways(examples: list) -> list[tuple[str, set[int] | None]]:
    return [("".join(m["content"] for m in each.messages), each.learn and set(each.learn)) for each in examples]


def test_each_answer_of_a_tree_is_learnt_once():
    found = read(TREE)
    assert ways(found) == [("pAqB", None), ("pAqC", {3}), ("pD", None), ("pHtIuJ", None)]
    learnt = Counter(
        each.messages[i]["content"]
        for each in found
        for i, message in enumerate(each.messages)
        if message["role"] == "assistant" and (each.learn is None or i in each.learn)
    )
    assert learnt == Counter("ABCDHIJ")
    assert recognise(rows(TREE)).name == "oasst"


def test_the_best_answers_of_a_tree():
    assert ways(read(TREE, "oasst-best")) == [("pD", None)]
    unranked = {"prompt": node("p", node("A", node("q", node("B", rank=1), node("C", rank=0))), node("D"))}
    assert ways(read(unranked, "oasst-best")) == [("pAqC", None)]
    deleted = {"prompt": node("p", node("A", rank=0, deleted=True), node("B", rank=1))}
    assert ways(read(deleted, "oasst-best")) == [("pB", None)]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({**TREE, "tree_state": "aborted_low_grade"}, "a tree that is not finished: its state is 'aborted_low_grade'"),
        ({"prompt": node("p", node("q"))}, "no answer of an assistant"),
        ({"prompt": node("p", node("A"), deleted=True)}, "no answer of an assistant"),
        ({"prompt": node("p", node("A", node("B")))}, "roles out of order: message 3"),
        ({"prompt": node("p", {**node("A"), "text": None})}, "an empty message: message 2"),
    ],
)
def test_trees_that_teach_nothing(values, said):
    with pytest.raises(Misfit, match=said):
        read(values)


def test_the_flat_table_of_messages_names_the_trees():
    with pytest.raises(FormatError, match=r"one message of Open-Assistant's table.*trees\.jsonl\.gz"):
        recognise(rows({"message_id": "a", "parent_id": None, "text": "Hi", "role": "prompter", "lang": "en"}))


# --- conversations that are none ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "reason", "detail"),
    [
        ([answer("a")], "roles out of order", "message 1 is the assistant's and comes first"),
        (
            [user("a"), user("b"), answer("c")],
            "roles out of order",
            "message 2 is the user's and comes after the user's",
        ),
        (
            [*EXCHANGE, answer("5")],
            "roles out of order",
            "message 3 is the assistant's and comes after the assistant's",
        ),
        (
            [user("a"), system("S"), answer("b")],
            "roles out of order",
            "message 2 is the system's and comes after the user's",
        ),
        ([user("a")], "no answer of an assistant", ""),
        ([system("a")], "no answer of an assistant", ""),
        ([system("")], "no turns", "only a system text that says nothing"),
        ([user("a"), answer(" \n")], "an empty message", "message 2, the assistant's, says nothing"),
        ([user(""), answer("b")], "an empty message", "message 1, the user's, says nothing"),
        ([user("a"), {"role": "assistant"}], "an empty message", "message 2"),
        (
            [user("a"), {"role": "narrator", "content": "b"}],
            "an unknown role",
            "turn 2 has the role 'narrator'; known are user, human",
        ),
        ([user("a"), {"content": "b"}], "an unknown role", "turn 2 names none"),
        ([user("a"), "b"], "an unknown role", "turn 2 names none"),
        ([user("a"), {"role": "assistant", "content": 4}], "no text where one should be", "turn 2 is a number"),
        (
            [user("a"), {"role": "assistant", "content": [{"type": "image_url"}]}],
            "content that is no text",
            "'image_url'",
        ),
        ([user("a \ud83d"), answer("b")], "half a character", "turn 1"),
    ],
)
def test_conversations_that_are_refused(messages, reason, detail):
    with pytest.raises(Misfit) as caught:
        read({"messages": messages})
    assert caught.value.reason == reason and detail in caught.value.detail


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"instruction": " ", "input": "", "output": "b"}, "an empty message: message 1"),
        ({"instruction": "a", "output": ""}, "an empty message: message 2"),
        ({"instruction": "a", "output": "b", "history": ["c"]}, "a history that cannot be read"),
        ({"question": "a", "answer": None}, "a column is missing: there is nothing in answer .as completion."),
        ({"prompt": "a", "completion": "\n"}, "an empty text: the completion says nothing"),
        ({"prompt": "", "completion": "b"}, "an empty text: the prompt says nothing"),
        ({"text": " "}, "an empty text"),
        ({"text": "\udc00"}, "half a character: the text"),
        ({"messages": [system("A"), *EXCHANGE], "system": "B"}, "two system texts"),
        ({"messages": EXCHANGE, "system": 4}, "no text where one should be: the system text is a number"),
    ],
)
def test_other_rows_that_are_refused(values, said):
    with pytest.raises(Misfit, match=said):
        read(values)


# --- recognising -------------------------------------------------------------------------------------------------


def test_columns_say_which_is_which():
    values = {"id": 1, "frage": "2+2?", "antwort": "4", "note": "x"}
    assert one(values, columns={"prompt": "frage", "completion": "antwort"}) == Completion("2+2?", "4", "data.jsonl:1")
    columns = {"instruction": "frage", "output": "antwort", "input": "note"}
    assert talk(values, columns=columns) == [user("2+2?\n\nx"), answer("4")]
    assert talk(values, name="question-answer", columns={"prompt": "frage", "completion": "antwort"}) == EXCHANGE
    assert talk({"messages": [], "chat": EXCHANGE}, columns={"messages": "chat"}) == EXCHANGE
    assert one({"text": "a", "body": "b"}, columns={"text": "body"}).text == "b"


def test_a_column_that_is_mapped_is_not_taken_for_another():
    columns = {"instruction": "output", "output": "instruction"}
    assert talk({"instruction": "4", "output": "2+2?"}, columns=columns) == EXCHANGE


@pytest.mark.parametrize(
    ("values", "name", "columns", "said"),
    [
        (
            {"a": "x", "b": 1},
            "auto",
            {},
            r"data\.jsonl:1 is of no shape.*columns are a \(a text\), b \(a number\).*data\.columns",
        ),
        ({"prompt": "x"}, "auto", {}, "of no shape"),
        ({"chosen": "x", "rejected": "y"}, "auto", {}, "of no shape"),
        ({"messages": []}, "auto", {}, "of no shape"),
        ({"messages": None, "text": 4}, "auto", {}, "of no shape"),
        (
            {"text": "x"},
            "messages",
            {},
            r"not of the shape messages, which has messages \(a list of \{\"role\", \"content\"\}\).*text \(a text\)",
        ),
        ({"messages": "Hello"}, "messages", {}, r"Its columns are messages \(a text\)"),
        ({"conversations": spoken("human: a", "gpt: b")}, "messages", {}, "not of the shape messages"),
        ({"a": "x"}, "preference", {}, "chosen .* and rejected .* and prompt"),
        ({"text": "x"}, "txt", {}, r"no shape 'txt'\. Did you mean text\? There are auto, oasst"),
        ({"text": "x"}, "auto", {"text": "body"}, r"no column body in data\.jsonl:1.*The columns are text \(a text\)"),
        (
            {"text": "x"},
            "auto",
            {"txet": "text"},
            r"data\.columns names txet\. No shape has all of them; there are chosen",
        ),
        ({"text": "x"}, "text", {"prompt": "text"}, r"The shape text reads text"),
    ],
)
def test_rows_that_are_of_no_shape(values, name, columns, said):
    with pytest.raises((FormatError, OptionError), match=said):
        recognise(rows(values), name, columns)


def test_rows_of_several_shapes():
    mixed = rows({"text": "a"}, {"messages": EXCHANGE})
    with pytest.raises(FormatError, match=r"several shapes: data\.jsonl:1 is text, data\.jsonl:2 is messages"):
        recognise(mixed)
    shape = recognise(mixed, "messages")
    with pytest.raises(Misfit, match="a column is missing: there is nothing in messages"):
        shape.examples(mixed[0])


def test_rows_without_a_shape_do_not_hide_that_of_the_others():
    assert recognise(rows({"messages": None}, {"messages": []}, {"messages": EXCHANGE})).name == "messages"


def test_names():
    wanted = "messages sharegpt alpaca prompt-completion text oasst preference kto question-answer oasst-best".split()
    assert sorted(shapes.NAMES) == sorted(wanted)


# --- files -------------------------------------------------------------------------------------------------------


def lines(path: Path, *values: dict) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in values))
    return str(path)


def test_a_reading_counts_what_it_refuses(tmp_path):
    good = {"messages": EXCHANGE}
    place = lines(
        tmp_path / "a.jsonl",
        good,
        {"messages": [user("x")]},
        good,
        {"messages": [answer("x")]},
        {"messages": [user("y")]},
    )
    reading = Reading(place)
    assert [each.source for each in reading] == ["a.jsonl:1", "a.jsonl:3"]
    assert reading.rows == 5 and reading.shapes["a.jsonl"].name == "messages"
    assert [(each.source, each.reason) for each in reading.refused] == [
        ("a.jsonl:2", "no answer of an assistant"),
        ("a.jsonl:4", "roles out of order"),
        ("a.jsonl:5", "no answer of an assistant"),
    ]
    assert reading.summary() == (
        "3 of 5 rows were refused: 2 × no answer of an assistant (first a.jsonl:2); "
        "1 × roles out of order: message 1 is the assistant's and comes first (first a.jsonl:4)."
    )
    assert len(list(reading)) == 2 and len(reading.refused) == 3  # a second pass counts anew


def test_a_reading_of_nothing_good_is_an_error(tmp_path):
    with pytest.raises(
        FormatError, match=r"No row gives an example.*2 of 2 rows were refused: 2 × an empty text \(first a"
    ):
        list(Reading(lines(tmp_path / "a.jsonl", {"text": ""}, {"text": " "})))
    with pytest.raises(FormatError, match=r"a\.jsonl has no rows"):
        list(Reading(lines(tmp_path / "a.jsonl")))


def test_files_of_several_shapes_and_what_stands_beyond_the_first_rows(tmp_path):
    one = lines(tmp_path / "a.jsonl", *[{"text": f"{i}"} for i in range(40)], {"txt": "x"})
    two = lines(tmp_path / "b.json", {"prompt": "a", "completion": "b"})
    reading = Reading(one, two)
    assert len(list(reading)) == 41
    assert {name: shape.name for name, shape in reading.shapes.items()} == {
        "a.jsonl": "text",
        "b.json": "prompt-completion",
    }
    assert [each.source for each in reading.refused] == ["a.jsonl:41"]


def test_a_table_without_a_header(tmp_path):
    (tmp_path / "a.tsv").write_text('"Is" it?\tyes\tbecause\nOr "not\tno\tso\n')
    columns = {"instruction": "0", "output": "1"}
    assert [each.messages for each in Reading(tmp_path / "a.tsv", columns=columns)] == [
        [user('"Is" it?'), answer("yes")],
        [user('Or "not'), answer("no")],
    ]


def test_every_shape_survives_a_table_of_texts(tmp_path):
    """CSV has only texts: lists are spelt in JSON, and what is absent is empty."""
    for name, values, messages in CONVERSATIONS:
        cells = {
            key: each if isinstance(each, str) else "" if each is None else json.dumps(each)
            for key, each in values.items()
        }
        out = io.StringIO()
        csv.writer(out).writerows([list(cells), list(cells.values())])
        (tmp_path / "a.csv").write_text(out.getvalue(), newline="")
        reading = Reading(tmp_path / "a.csv")
        assert [each.messages for each in reading] == [messages]
        assert reading.shapes["a.csv"].name == name


def test_every_shape_survives_parquet(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, values, messages in [*CONVERSATIONS, ("oasst", TREE, None)]:
        if any(
            "content" in part and isinstance(part["content"], list)
            for part in values.get("messages") or []
            if isinstance(part, dict)
        ):
            continue  # a column of Arrow has one type, and this one has two
        parquet.write_table(arrow.Table.from_pylist([values, values]), tmp_path / "a.parquet")
        reading = Reading(tmp_path / "a.parquet")
        found = list(reading)
        assert reading.shapes["a.parquet"].name == name
        assert messages is None or [each.messages for each in found] == [messages] * 2
        assert messages is not None or ways(found[:4]) == ways(read(TREE))


# --- real data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "examples", "refused"),
    [
        ("sft/alpaca_en_demo.json.gz", "alpaca", 999, {}),
        ("sft/gsm8k_train.jsonl.gz", "question-answer", 7473, {}),
        ("sft/glaive_toolcall_en_demo.json.gz", "sharegpt", 300, {}),
        ("sft/oasst_en_100_tree.jsonl.gz", "oasst", 546, {}),
        ("preference/dpo_en_demo.json.gz", "preference", 300, {}),
        ("preference/kto_en_demo.json.gz", "kto", 300, {}),
        ("preference/llms_from_scratch_preference.json", "preference", 1094, {"chosen and rejected are the same": 6}),
        ("preference/hh_harmless_test.jsonl.gz", "preference", 2299, {"an empty message": 4, "roles out of order": 9}),
        ("text/tinyshakespeare.txt", "text", 1, {}),
    ],
)
def test_public_data(name, shape, examples, refused):
    place = DATA / name
    if not place.exists():
        pytest.skip(f"{name} is not here: it lies in shared/data beside the checkout")
    reading = Reading(place)
    found = list(reading)
    assert reading.shapes[place.name].name == shape
    assert len(found) == examples and Counter(each.reason for each in reading.refused) == refused
    if shape == "oasst":
        assert sum(_learnt(each) for each in found) == 687  # every assistant's message in the file, once
    if "glaive" in name:
        calls = sum(len(message.get("tool_calls", ())) for each in found for message in each.messages)
        assert calls == 211 and sum(each.tools is not None for each in found) > 100


def _learnt(example: Conversation) -> int:
    if example.learn is not None:
        return len(example.learn)
    return sum(message["role"] == "assistant" for message in example.messages)


def test_public_tables_without_a_header():
    files = sorted((DATA / "sft").glob("flan_cot_*.tsv.gz"))
    if not files:
        pytest.skip("the FLAN tables are not here: they lie in shared/data/sft beside the checkout")
    reading = Reading(*files, columns={"instruction": "0", "output": "2"})
    assert sum(1 for _ in reading) + len(reading.refused) == 33443
