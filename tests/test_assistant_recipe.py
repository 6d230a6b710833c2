"""The assistant's data: what is filtered, what is held out, and that nothing held out or public is learnt."""

from __future__ import annotations

import gzip
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from geode.errors import FormatError
from geode.tune.recipe import check

RECIPES = Path(__file__).parents[1] / "recipes"
PUBLIC = "A farmer sells seven baskets of ripe plums at the market for three coins each"


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("assistant_data")


def pack(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def turn(text: str, role: str, rank: int | None = None, replies: list[Any] | None = None) -> dict[str, Any]:
    return {"text": text, "role": role, "lang": "en", "deleted": False, "rank": rank, "replies": replies or []}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Small made-up raw files, with a fault of each kind among good rows."""
    raw = tmp_path / "raw"
    short = [
        {"instruction": f"Name a thing that begins like '{word}'.", "input": "", "output": f"{word}le."}
        for word in ("app", "tab", "cand", "bott", "need", "samp", "simp", "trip", "doub", "peop")
    ]
    pack(raw / "sft/llms_from_scratch.json", json.dumps(short))
    alpaca = [
        {"instruction": f"Describe harbour number {i}.", "input": "<noinput>", "output": f"Boats lie in dock {i}."}
        for i in range(60)
    ]
    alpaca += [
        {"instruction": "Say who you work for.", "input": "", "output": "As an AI language model I work for OpenAI."},
        {"instruction": "Tell the price of gold.", "input": "", "output": "I'm sorry, but I cannot look that up."},
        {"instruction": "Print the numbers.", "input": "", "output": "```python\nprint(1)\n```"},
        {"instruction": "Write much about tea.", "input": "", "output": "Tea is good. " * 200},
        {"instruction": f"Solve: {PUBLIC}?", "input": "", "output": "Twenty-one coins."},
        {"instruction": "Tell me the capital of Italy, please.", "input": "", "output": "It is Rome."},
        {"instruction": "Summarise the given text.", "input": "", "output": "The text is short."},
        {"instruction": "Describe harbour number 1!", "input": "", "output": "Said twice."},
    ]
    pack(raw / "sft/alpaca_en_demo.json.gz", json.dumps(alpaca))
    best = turn("Paris has many.", "assistant", 0, [turn("Who are you?", "prompter")])
    tree = turn("Where are museums?", "prompter", None, [turn("Somewhere.", "assistant", 1), best])
    pack(raw / "sft/oasst_en_100_tree.jsonl.gz", json.dumps({"prompt": tree}) + "\n")
    pack(raw / "eval/gsm8k_test.jsonl.gz", json.dumps({"question": f"{PUBLIC}. What does he earn?"}) + "\n")
    for name, line in FLAN.items():
        pack(raw / f"sft/flan_cot_{name}.tsv.gz", "".join(line.format(i=i) for i in range(200)))
    return raw


FLAN = {
    "creak": 'Is the following statement true?\\n"River {i} flows uphill"\tno\tWater always flows down to the sea.\n'
    'Is the following statement true?\\n"Bird {i} lays eggs"\tyes\tI think all birds do that.\n',
    "strategyqa": "Would lamp {i} light a room?\tyes\tLamps give light to the room around.\n"
    "Would stone {i} swim?\tno\tStones sink because they are heavy things.\n",
    "ecqa": "Where is cup {i}?\\nOptions:\\n- shelf\\n- moon\\n- sun\tshelf\tCups stand on shelves.\n",
    "qasc": "What warms planet {i}?\\nOptions:\\n- (A) a star\\n- (B) a spoon\t(A)\tStars warm the planets nearby.\n"
    "What cools planet {i}?\\nOptions:\\n- (A) night\\n- (B) night\t(A)\tNights are cold.\n",
    "sensemaking": 'Pick one.\\nOptions:\\n- Sentence A: "He ate soup {i}"\\n- Sentence B: "Soup {i} ate him"\\n'
    "\tSentence B\tSoup cannot eat anybody at all.\n",
    "gsm8k": "Ann has {i} nuts and finds one. How many are there?\t5\tShe adds one nut to those she has.\n",
}


@pytest.fixture
def small(recipes: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(recipes, "SHORT", {"creak": 20, "strategyqa": 10, "ecqa": 10, "qasc": 10})
    return recipes


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_build_keeps_what_is_held_out_apart_from_what_is_learnt(small: Any, raw: Path, tmp_path: Path) -> None:
    counts = small.build(raw, tmp_path / "out")
    train, valid, short, shots = (
        read(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "valid", "short", "shots")
    )
    learnt = {row["messages"][0]["content"] for row in train}
    held = {row["messages"][0]["content"] for row in valid}
    assert counts == json.loads((tmp_path / "out/counts.json").read_text())
    assert {row["source"] for row in valid} >= {"alpaca", "creak", "qasc", "gsm8k"}
    assert not learnt & held
    assert not any(row["asked"] in prompt for row in short for prompt in learnt | held)
    assert not {shot["asked"] for shot in shots} & {row["asked"] for row in short}
    assert all(row["answer"] in row["options"] for row in short)
    assert all(
        [m["role"] for m in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2) for row in train
    )


def test_build_is_the_same_whatever_the_order_of_rows(small: Any, raw: Path, tmp_path: Path) -> None:
    small.build(raw, tmp_path / "one")
    path = raw / "sft/alpaca_en_demo.json.gz"
    rows = json.loads(gzip.decompress(path.read_bytes()))
    last = rows.pop()  # asked a second time in other words: the first stays
    pack(path, json.dumps([*rows[::-1], last]))
    small.build(raw, tmp_path / "two")
    one, two = (sorted(map(str, read(tmp_path / name / "valid.jsonl"))) for name in ("one", "two"))
    assert one == two


def test_build_drops_faults_and_counts_them(small: Any, raw: Path, tmp_path: Path) -> None:
    counts = small.build(raw, tmp_path / "out")["left out"]
    every = (tmp_path / "out/train.jsonl").read_text() + (tmp_path / "out/valid.jsonl").read_text()
    for name in ("identity", "refusal", "code", "long", "input missing", "asked twice"):
        assert counts[f"alpaca: {name}"] == 1, name
    assert counts["overlap with gsm8k_test (train)"] + counts.get("overlap with gsm8k_test (held out)", 0) == 1
    assert counts["overlap with our own questions (alpaca)"] == 1
    for text in ("OpenAI", "cannot look that up", "print(1)", "ripe plums", "Rome", "noinput", "Said twice"):
        assert text not in every
    assert "What cools planet" not in every  # two options alike have no right one


def test_a_tree_gives_its_best_way_as_far_as_it_is_good(recipes: Any, raw: Path) -> None:
    (talk,) = recipes.trees(recipes._lines(raw / "sft/oasst_en_100_tree.jsonl.gz"))
    assert [message["content"] for message in talk.messages] == ["Where are museums?", "Paris has many."]


def test_a_long_answer_gives_way_to_a_short_one(recipes: Any) -> None:
    tree = turn("Why?", "prompter", None, [turn("Because. " * 400, "assistant", 0), turn("So it is.", "assistant", 1)])
    (talk,) = recipes.trees([{"prompt": tree}])
    assert talk.answers == ["So it is."]


def test_overlap_is_a_run_of_words_or_the_whole_of_a_shorter_text(recipes: Any) -> None:
    seen = recipes.Seen(["one two three four five six seven eight nine", "What is a lake?"], 8)
    assert seen.meets(["And: TWO, three; four five six seven eight nine ten."])
    assert not seen.meets(["one two three four five six seven and eight nine"])
    assert seen.meets(["what is a lake"]) and not seen.meets(["what is a lake made of"])
    assert not recipes.Seen(["Yes."], 8).meets(["Yes."])


def test_words_about_one_thing_are_held_out_together(recipes: Any) -> None:
    assert recipes._kin("What is a synonym of 'soft'?") == recipes._kin('Give the opposite of "soft."')
    assert recipes._kin("It's what the dog's owner said") == "it s what the dog s owner said"


def test_our_own_rows_are_good_and_end_with_an_answer(recipes: Any) -> None:
    own = list(recipes._own())
    assert 100 <= len(own) <= 150
    assert len({json.dumps(talk.messages) for talk in own}) == len(own)
    for row, talk in zip(read(RECIPES / "assistant_own.jsonl"), own, strict=True):
        assert list(talk.messages) == row["messages"] and len(talk.messages) % 2 == 0
        assert all(message["content"] == message["content"].strip() != "" for message in talk.messages)


def test_the_recipe_names_the_files_or_says_how_to_make_them(recipes: Any, tmp_path: Path) -> None:
    assistant = importlib.import_module("assistant")
    with pytest.raises(FormatError, match=r"assistant_data\.py"):
        assistant.recipe(tmp_path)
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").touch()
    found = assistant.recipe(tmp_path)
    check(found)
    assert found.data.train == (str(tmp_path / "train.jsonl"),)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("assistant_eval")


def test_the_option_named_first_is_chosen(judge: Any) -> None:
    assert judge.chosen(" No, it is not. Yes?", ["yes", "no"]) == "no"
    assert judge.chosen("Nobody knows", ["yes", "no"]) is None
    assert judge.chosen("Family room.", ["family", "family room", "room"]) == "family room"


@pytest.mark.parametrize(
    ("row", "good", "bad"),
    [
        ({"pattern": r"\brome\b"}, "It is Rome.", "Romeo"),
        ({"pattern": r"\bgreen\b", "words": 1}, " Green.\n", "It is green."),
        ({"lines": 3}, "a\n\nb\nc", "a, b, c"),
        ({"sentences": 1, "lines": 1}, "Version 1.5 is out.", "One. Two."),
        ({"json": ["name", "age"]}, '```json\n{"name": "A", "age": 3}\n```', '{"name": "A"}'),
        ({"pattern": r"(?-i:\bHELLO\b)"}, "HELLO", "hello"),
    ],
)
def test_what_an_answer_must_be(judge: Any, row: dict[str, Any], good: str, bad: str) -> None:
    assert judge.passes(row, good) and not judge.passes(row, bad)


def test_repetition_is_seen(judge: Any) -> None:
    assert judge.repeats("this is a sentence of just eight words. " * 3)
    assert not judge.repeats("this is a sentence of just eight words. " * 2)


def test_every_question_can_be_asked(judge: Any) -> None:
    questions = read(judge.QUESTIONS)
    assert sum(map(judge.is_checked, questions)) == 40
    assert sum(bool(row.get("sample")) for row in questions) == 20
    assert not any(judge.passes(row, "") for row in questions if judge.is_checked(row))


def test_measuring_a_scripted_model(
    judge: Any, monkeypatch: pytest.MonkeyPatch, small: Any, raw: Path, tmp_path: Path
) -> None:
    """Every figure of both ways, on a model that always says yes and ends."""
    from geode.lm import Fake

    small.build(raw, tmp_path)
    fake = Fake(["Yes"])
    fake.template.training = lambda talk: ([256, *b"hello"], [0, 0, 0, 1, 1, 1])
    monkeypatch.setattr(judge.geode, "load", lambda *_, **__: fake)
    assert judge.measure("any", tmp_path).samples == []
    figures = judge.measure("any", tmp_path, samples=True)
    for way in ("chat", "plain"):
        assert 0 < figures.short[way]["creak"] < 1
        assert figures.short[way]["ecqa"] == 0
        assert figures.ends[way] == 1 and figures.repeats[way] == 0
    assert figures.loss["chat"] > 0
    assert [one["answer"] for one in figures.samples] == ["Yes"] * 20
    text = judge.report({"base": figures, "tuned": figures}, tmp_path)
    assert "| creak | 20 | 50.0 % |" in text and text.count("> Yes") == 20
