"""The assistant beside its base: loss on held-out answers, short answers counted, turns that end, and sample answers.

How the data were made is not known here, nor how anything was trained.

    python recipes/assistant_eval.py DATA TUNED [--base gemma3:270m] [--out TUNED]

Writes results.json and RESULTS.md. Everything is greedy, so that a second run gives the same. The base is asked twice:
in the chat format, which it never learnt, and in plain text after three examples, which is the best we found for it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import geode
from geode.lm import Local
from geode.results import Result

HERE = Path(__file__).parent
QUESTIONS = HERE / "assistant_questions.jsonl"
SHOTS = (  # what an answer looks like, for our own questions in plain text
    ("What is the capital of Sweden?", "Stockholm"),
    ("Name two drinks, one on each line.", "Water\nTea"),
    ("Answer with one word: what is the opposite of old?", "Young"),
)
NEXT = "\nQuestion:"  # where a plain answer has ended and the next question begins
SHORT, MIDDLE, LONG = 12, 96, 200  # tokens that an answer may take: one option, an own question's, an open one's
OPEN = 30  # held-out prompts that are answered at length
RUN = 8  # words in a row that must not come three times

Row = Mapping[str, Any]
Ask = Callable[[Sequence[Row], int], list[Result]]


@dataclass
class Figures:
    """Everything measured of one model. Losses are nats a token; accuracies and rates are shares of 1."""

    loss: dict[str, float] = field(default_factory=dict)
    short: dict[str, dict[str, float]] = field(default_factory=dict)  # way of asking -> set -> accuracy
    own: dict[str, dict[str, float]] = field(default_factory=dict)  # way of asking -> facts, forms -> share passed
    ends: dict[str, float] = field(default_factory=dict)
    repeats: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)  # to our own questions, and whether each passed


def measure(model: str, data: Path, samples: bool = False) -> Figures:
    """All figures of one model, a name or a directory as `geode.load` takes them, and sample answers if wanted."""
    lm = geode.load(model, on="native")
    lm.batch = 32
    valid, short, shots = (list(rows(data / f"{name}.jsonl")) for name in ("valid", "short", "shots"))
    mine = list(rows(QUESTIONS))
    checked = [row for row in mine if is_checked(row)]
    long = [{"prompt": row["messages"][0]["content"]} for row in openings(valid)]
    figures = Figures(loss=losses(lm, valid))
    for way, ask in {"chat": chat(lm), "plain": plain(lm, shots)}.items():
        figures.short[way] = accuracies(short, ask(short, SHORT))
        answers = ask(checked, MIDDLE)
        figures.own[way] = passed(checked, answers)
        figures.answers += [
            {"way": way, "prompt": row["prompt"], "answer": answer.text, "passed": passes(row, answer.text)}
            for row, answer in zip(checked, answers, strict=True)
        ]
        every = ask(long, LONG)
        figures.ends[way] = mean(answer.finish_reason == "stop" for answer in every)
        figures.repeats[way] = mean(repeats(answer.text) for answer in every)
    if samples:
        told = [row for row in mine if row.get("sample")]
        said = chat(lm)(told, LONG)
        figures.samples = [{"prompt": row["prompt"], "answer": one.text} for row, one in zip(told, said, strict=True)]
    lm.close()
    return figures


def openings(valid: Sequence[Row]) -> Iterator[Row]:
    """Held-out prompts that want more than a choice, of the chat sets in turn."""
    sets = [[row for row in valid if row["source"] == name] for name in ("alpaca", "oasst", "llms_from_scratch")]
    rest = [row for name in sets for row in name[10:]]
    return islice(chain(*(name[:10] for name in sets), rest), OPEN)


# Ways of asking


def chat(lm: Local) -> Ask:
    """As a user's turn in the model's chat format; the answer ends with the model's turn."""

    def ask(questions: Sequence[Row], tokens: int) -> list[Result]:
        talks = [[{"role": "user", "content": row["prompt"]}] for row in questions]
        return generate(lm, talks, max_tokens=tokens)

    return ask


def plain(lm: Local, shots: Sequence[Row]) -> Ask:
    """As text that goes on after three examples; the answer ends where the next question begins."""

    def ask(questions: Sequence[Row], tokens: int) -> list[Result]:
        return generate(lm, [shown(row, shots) for row in questions], max_tokens=tokens, stop=NEXT)

    return ask


def shown(row: Row, shots: Sequence[Row]) -> str:
    """The question after three answered ones: of its own set, or the general ones."""
    mine = [(shot["asked"], shot["answer"]) for shot in shots if shot["source"] == row.get("source")]
    told = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in mine or SHOTS)
    return f"{told}Question: {row.get('asked', row['prompt'])}\nAnswer:"


def generate(lm: Local, prompts: Sequence[Any], **options: Any) -> list[Result]:
    """Answers in the order of the prompts; those of like length run together."""
    order = sorted(range(len(prompts)), key=lambda i: len(str(prompts[i])))
    found = lm.generate([prompts[i] for i in order], temperature=0, **options)
    assert isinstance(found, list)
    return [result for _, result in sorted(zip(order, found, strict=True))]


# Loss


def losses(lm: Local, valid: Iterable[Row]) -> dict[str, float]:
    """Mean loss of the answers' tokens: in the chat format with and without the ends of turns, and in plain text."""
    words: list[float] = []
    ends: list[float] = []
    bare: list[float] = []
    for row in valid:
        said, closing = chat_losses(lm, row["messages"])
        words += said
        ends += closing
        bare += plain_losses(lm, row["messages"])
    return {
        "chat": mean(words + ends),
        "chat, without the ends of turns": mean(words),
        "ends of turns": mean(ends),
        "plain, without the ends of turns": mean(bare),
    }


def chat_losses(lm: Local, messages: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Losses of the words that the assistant says, and of the tokens that end its turns."""
    assert lm.template is not None
    ids, mask = lm.template.training(messages)
    first = mask.index(1)
    scored = lm.score(ids[:first], ids[first:]).token_logprobs
    learnt = [i for i in range(first, len(ids)) if mask[i]]
    last = {i for i in learnt if i + 1 == len(ids) or not mask[i + 1]}
    return [-scored[i - first] for i in learnt if i not in last], [-scored[i - first] for i in sorted(last)]


def plain_losses(lm: Local, messages: Sequence[Row]) -> list[float]:
    """Losses of the same answers as text, after three examples and the turns before."""
    before = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in SHOTS)
    found = []
    for asked, answer in zip(messages[::2], messages[1::2], strict=True):
        before += f"Question: {asked['content']}\nAnswer:"
        found += [-logprob for logprob in lm.score(before, f" {answer['content']}").token_logprobs]
        before += f" {answer['content']}\n\n"
    return found


# Counting


def accuracies(questions: Sequence[Row], answers: Sequence[Result]) -> dict[str, float]:
    """Of each set, and of all its questions together, the share whose first option named is the right one."""
    right = [
        chosen(answer.text, row["options"]) == row["answer"] for row, answer in zip(questions, answers, strict=True)
    ]
    found = {"all": mean(right)}
    for source in dict.fromkeys(row["source"] for row in questions):
        found[source] = mean(hit for hit, row in zip(right, questions, strict=True) if row["source"] == source)
    return found


def chosen(text: str, options: Sequence[str]) -> str | None:
    """The option that a text names first, the longest of those that begin at one place; None when it names none."""
    said = f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "
    places = {}
    for option in options:
        words = " ".join(re.findall(r"[a-z0-9]+", option.lower()))
        place = said.find(f" {words} ")
        if place >= 0:
            places[option] = (place, -len(words))
    return min(places, key=lambda option: places[option], default=None)


def is_checked(row: Row) -> bool:
    return any(name in row for name in ("pattern", "lines", "json"))


def is_form(row: Row) -> bool:
    """It asks for a form as well as for a fact."""
    return any(name in row for name in ("words", "lines", "sentences", "json")) or "capital letters" in row["prompt"]


def passed(questions: Sequence[Row], answers: Sequence[Result]) -> dict[str, float]:
    good = [(is_form(row), passes(row, answer.text)) for row, answer in zip(questions, answers, strict=True)]
    return {
        "all": mean(right for _, right in good),
        "facts": mean(right for form, right in good if not form),
        "forms": mean(right for form, right in good if form),
    }


def passes(row: Row, text: str) -> bool:
    """Whether an answer is what the question's row demands: a pattern, and counts of words, lines and sentences."""
    text = text.strip()
    lines = [line for line in text.split("\n") if line.strip()]
    demands: dict[str, Callable[[Any], bool]] = {
        "pattern": lambda wanted: re.search(wanted, text, re.I | re.M) is not None,
        "words": lambda wanted: len(re.findall(r"\w+", text)) == wanted,
        "lines": lambda wanted: len(lines) == wanted,
        "sentences": lambda wanted: len(re.findall(r"[.!?](?=\s|$)", text)) == wanted,
        "json": lambda wanted: keys(text) == wanted,
    }
    return all(meets(row[name]) for name, meets in demands.items() if name in row)


def keys(text: str) -> list[str] | None:
    """The keys of the JSON object that a text is, or None."""
    try:
        found = json.loads(re.sub(r"^```(?:json)?\s*|\s*```$", "", text))
    except json.JSONDecodeError:
        return None
    return list(found) if isinstance(found, dict) else None


def repeats(text: str) -> bool:
    """Some eight words in a row come three times or more."""
    words = re.findall(r"\w+", text.lower())
    seen: dict[tuple[str, ...], int] = {}
    for i in range(len(words) - RUN + 1):
        gram = tuple(words[i : i + RUN])
        seen[gram] = seen.get(gram, 0) + 1
    return max(seen.values(), default=0) >= 3


def mean(values: Iterable[float]) -> float:
    every = list(values)
    return math.fsum(every) / len(every) if every else math.nan


# What is written


def report(models: Mapping[str, Figures], data: Path) -> str:
    """Both models side by side, as Markdown."""
    short = list(rows(data / "short.jsonl"))
    counts = {name: sum(row["source"] == name for row in short) for name in next(iter(models.values())).short["chat"]}
    counts["all"] = len(short)
    chance = {name: mean(1 / len(row["options"]) for row in short if name in ("all", row["source"])) for name in counts}
    parts = [
        "## Measured",
        table(["Loss on held-out answers (nats a token; less is better)", *models], loss_lines(models)),
        table(["Short answers right", "questions", "by chance", *ways(models)], short_lines(models, counts, chance)),
        table(["Own questions passed", *ways(models)], own_lines(models)),
        table([f"{OPEN} open answers of up to {LONG} tokens", *ways(models)], rate_lines(models)),
        REMARK,
        "## Sample answers",
        "Greedy, at most 200 tokens, first tries, unedited.",
        *(f"**{one['prompt']}**\n\n{quoted(one['answer'])}" for one in list(models.values())[-1].samples),
    ]
    return "\n\n".join(parts) + "\n"


REMARK = """\
“Chat” is Gemma's turn format; “plain” is text that goes on after three answered examples (a set's own for the sets,
general ones else), where an answer ends when the next question begins. An answer counts as right when the first option
that it names is the right one. The sets' questions are rows that training never saw, of the same sets that it saw; our
own questions and all held-out rows share no long run of words with what was learnt (recipes/README.md has the counts).
A model repeats itself when some eight words in a row come three times."""


def loss_lines(models: Mapping[str, Figures]) -> Iterator[list[str]]:
    for name in next(iter(models.values())).loss:
        yield [name, *(f"{figures.loss[name]:.3f}" for figures in models.values())]


def short_lines(
    models: Mapping[str, Figures], counts: Mapping[str, int], chance: Mapping[str, float]
) -> Iterator[list[str]]:
    for name, count in sorted(counts.items(), key=lambda item: item[0] == "all"):
        found = (figures.short[way][name] for figures in models.values() for way in figures.short)
        yield [name, str(count), percent(chance[name]), *(percent(value) for value in found)]


def own_lines(models: Mapping[str, Figures]) -> Iterator[list[str]]:
    for name in ("facts", "forms", "all"):
        yield [name, *(percent(figures.own[way][name]) for figures in models.values() for way in figures.own)]


def rate_lines(models: Mapping[str, Figures]) -> Iterator[list[str]]:
    for title, name in {"end by themselves": "ends", "repeat themselves": "repeats"}.items():
        yield [title, *(percent(value) for figures in models.values() for value in getattr(figures, name).values())]


def ways(models: Mapping[str, Figures]) -> list[str]:
    return [f"{name}, {way}" for name, figures in models.items() for way in figures.short]


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *lines])


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def quoted(text: str) -> str:
    """A text as a Markdown quotation that shows it line by line as it is."""
    return "\n".join(f"> {line}".rstrip() + "  " for line in (text.strip() or "(nothing)").split("\n"))


def rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="directory that assistant_data.py wrote")
    parser.add_argument("tuned", help="the tuned model: what geode.load takes")
    parser.add_argument("--base", default="gemma3:270m", help="the model it was tuned from")
    parser.add_argument("--out", type=Path, help="where results.json and RESULTS.md go; else into the tuned directory")
    given = parser.parse_args(arguments)
    out = given.out or Path(given.tuned)
    out.mkdir(parents=True, exist_ok=True)
    models = {}
    for name, model in {"base": given.base, "tuned": given.tuned}.items():
        start = perf_counter()
        models[name] = measure(model, given.data, samples=name == "tuned")
        print(f"{name}: {perf_counter() - start:.0f} s", file=sys.stderr)
    found = {name: asdict(figures) for name, figures in models.items()}
    (out / "results.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = report(models, given.data)
    (out / "RESULTS.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
