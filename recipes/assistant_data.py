"""The assistant's data: from public raw files to chat rows that teach, chat rows held out, and questions to be asked.

Models, tokens and templates are not known here, nor how anything is trained.

    python recipes/assistant_data.py RAW OUT

    RAW/sft, RAW/eval ── read ──> talks ── filter, once each ──┬─ by a hash of the prompt ─> valid.jsonl, short.jsonl
                                                               └─ what overlaps none of these ─> train.jsonl
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OWN = HERE / "assistant_own.jsonl"
QUESTIONS = HERE / "assistant_questions.jsonl"

NGRAM_PUBLIC = 8  # words in a row shared with a public evaluation set: left out
NGRAM_HELD = 13  # shared with our held-out rows: longer, because instructions repeat each other's wording
ANSWER = 1200  # characters of an answer at most, about 250 tokens
TALK = 2000  # characters of a conversation at most
CLAIM = "Is this true? "

TAKE = {  # rows of each FLAN set in training; chat sets are taken whole
    "creak": 2000,
    "ecqa": 2000,
    "qasc": 1000,
    "strategyqa": 1200,
    "sensemaking": 600,
    "gsm8k": 150,
}
TIMES = {"llms_from_scratch": 2, "alpaca": 2, "oasst": 2, "own": 4}  # how often a row is said in one pass; others once
SHORT = {"creak": 100, "strategyqa": 80, "ecqa": 120, "qasc": 100}  # questions of each that are asked
VALID = {"creak": 12, "ecqa": 12, "qasc": 8, "strategyqa": 8, "sensemaking": 6, "gsm8k": 4}
HELD = {"llms_from_scratch": 0.05, "alpaca": 0.07, "oasst": 0.15}  # shares of the chat sets that are held out


@dataclass(frozen=True)
class Talk:
    """One conversation. `core` is what it is about, without our own wording: what overlap is measured by."""

    messages: tuple[dict[str, str], ...]
    source: str
    core: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        return self.messages[0]["content"]

    @property
    def answers(self) -> list[str]:
        return [message["content"] for message in self.messages if message["role"] == "assistant"]

    def row(self) -> dict[str, Any]:
        return {"messages": list(self.messages), "source": self.source}


@dataclass(frozen=True)
class Question:
    """One question of a FLAN set with its one right answer; `options` is empty for yes and no."""

    text: str
    answer: str
    options: tuple[str, ...]
    reason: str
    source: str

    @property
    def asked(self) -> str:
        """In plain words, with the options, and without a word about how to answer."""
        listed = "".join(f"\n- {option}" for option in self.options)
        return f"{self.text}\nOptions:{listed}" if listed else self.text

    @property
    def prompt(self) -> str:
        """As it is asked in a chat."""
        return f"{self.asked}\nAnswer with {'one of the options' if self.options else 'yes or no'}."

    def row(self) -> dict[str, Any]:
        choices = self.options or ("yes", "no")
        return {
            "prompt": self.prompt,
            "asked": self.asked,
            "answer": self.answer,
            "options": choices,
            "source": self.source,
        }


def build(raw: Path, out: Path) -> dict[str, Any]:
    """Writes train, valid, short and shots.jsonl and counts.json into `out`; returns the counts.

    Raises FileNotFoundError for a raw directory without the files that README.md lists.
    """
    dropped: Counter[str] = Counter()
    chats = [talk for read in CHATS.values() for talk in _clean(read(raw), dropped)]
    asked = {name: _questions(raw, name, dropped) for name in TAKE}
    short = [question for name, count in SHORT.items() for question in asked[name][:count]]
    held = [talk for talk in chats if _is_held(talk)]
    held += [_spoken(question) for name in TAKE for question in _part(asked, name, VALID)]
    learnt = [talk for talk in chats if not _is_held(talk)] + list(_own())
    learnt += [_spoken(question) for name in TAKE for question in _part(asked, name, TAKE)]
    public = _public(raw)
    valid = list(_without_public(held, public, dropped, "held out"))
    train = list(_apart(_without_public(learnt, public, dropped, "train"), held, short, dropped))
    train = [talk for talk in train for _ in range(TIMES.get(talk.source, 1))]
    shots = [question for name in SHORT for question in _shots(_part(asked, name, TAKE))]
    counts: dict[str, Any] = {"train": _by_source(train), "valid": _by_source(valid), "short": _by_source(short)}
    counts["left out"] = dict(dropped.most_common())
    out.mkdir(parents=True, exist_ok=True)
    files: dict[str, Sequence[Talk | Question]] = {"train": train, "valid": valid, "short": short, "shots": shots}
    for name, rows in files.items():
        _write(out / f"{name}.jsonl", [row.row() for row in rows])
    (out / "counts.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    return counts


def _is_held(talk: Talk) -> bool:
    return _share(_kin(talk.prompt)) < HELD[talk.source]


def _part(asked: dict[str, list[Question]], name: str, sizes: dict[str, int]) -> list[Question]:
    """Of a set in its order: first the questions that are asked, then those held out, then those that teach."""
    start = SHORT.get(name, 0) + (0 if sizes is VALID else VALID[name])
    return asked[name][start : start + sizes[name]]


def _shots(questions: Sequence[Question]) -> list[Question]:
    """Three that teach, to show a model without tuning how answers look; of yes and no both."""
    first = questions[:2]
    return [
        *first,
        next(q for q in questions[2:] if q.options or {q.answer, *(f.answer for f in first)} == {"yes", "no"}),
    ]


# Sources


def instructions(rows: Iterable[dict[str, Any]], source: str) -> Iterator[Talk]:
    """Talks from rows of instruction, input and output."""
    for row in rows:
        given = "" if NO_INPUT.search(row["input"]) else row["input"].strip()
        said = row["instruction"].strip()
        prompt = said if not given or given.strip("'\" .").lower() in said.lower() else f"{said}\n\n{given}"
        yield _talk([prompt, _capital(row["output"].strip())], source)


def trees(rows: Iterable[dict[str, Any]]) -> Iterator[Talk]:
    """Talks from Open-Assistant's trees: the best ranked way down each whose answers are short, while it is good."""
    for row in rows:
        said, message = [], row["prompt"]
        while message:
            said.append(message["text"].strip())
            good = [reply for reply in message["replies"] if reply["lang"] == "en" and not reply["deleted"]]
            message = min(good, key=_preference, default=None)
        if row["prompt"]["lang"] == "en" and len(said) > 1:
            yield _good_part(said)


def _preference(reply: dict[str, Any]) -> tuple[bool, int]:
    rank = reply.get("rank")
    return len(reply["text"]) > ANSWER, 99 if rank is None else rank


def _good_part(said: Sequence[str]) -> Talk:
    """The longest beginning that has no fault; the first turn, fault or not, when there is none."""
    ends = range(len(said) // 2 * 2, 0, -2)
    parts = [_talk(said[:end], "oasst") for end in ends]
    return next((part for part in parts if fault(part) is None), parts[-1])


def questions(lines: Iterable[str], name: str) -> Iterator[Question]:
    """Questions from a FLAN table: question, answer and reason, a tab between and line ends spelled \\n."""
    for line in lines:
        cells = line.rstrip("\n").replace("\\n", "\n").split("\t")
        if len(cells) == 3 and (found := PARSERS[name](*(cell.strip() for cell in cells))):
            yield replace(found, reason=_sentences(found.reason))


def _yes_no(text: str, answer: str, reason: str) -> Question | None:
    """creak and strategyqa: a claim between quotation marks, or a plain question."""
    claim = re.search(r'"(.+)"', text, re.S)
    said = f"{CLAIM}{_stopped(claim[1])}" if claim else text
    return Question(said, answer, (), reason, "") if answer in ("yes", "no") else None


def _listed(text: str, answer: str, reason: str) -> Question | None:
    """ecqa: options in a list, and the answer is one of them."""
    asked, _, rest = text.partition("\nOptions:\n")
    options = tuple(line.removeprefix("- ").strip() for line in rest.split("\n"))
    return Question(asked, answer, options, reason, "") if answer in options else None


def _lettered(text: str, answer: str, reason: str) -> Question | None:
    """qasc: the same with letters, of which we take only the words."""
    asked, _, rest = text.partition("\nOptions:\n")
    options = {line[2:5]: line[5:].strip(" .") for line in rest.split("\n")}
    same = Counter(option.lower() for option in options.values())
    if answer not in options or max(same.values()) > 1:
        return None
    return Question(asked, options[answer], tuple(options.values()), reason, "")


def _nonsense(text: str, answer: str, reason: str) -> Question | None:
    """sensemaking: which of two sentences is against common sense."""
    found = re.findall(r'- Sentence [AB]: "(.*)"', text)
    if len(found) != 2 or answer not in ("Sentence A", "Sentence B"):
        return None
    right = found[answer == "Sentence B"].strip()
    options = tuple(sentence.strip() for sentence in found)
    return Question("Which of these two sentences makes no sense?", right, options, reason, "")


def _worked(text: str, answer: str, reason: str) -> Question | None:
    """gsm8k: short ones only; the working is the answer."""
    short = len(text) < 220 and len(reason) < 220 and answer.isdecimal()
    return Question(text, answer, (), reason, "") if short else None


PARSERS: dict[str, Callable[[str, str, str], Question | None]] = {
    "creak": _yes_no,
    "strategyqa": _yes_no,
    "ecqa": _listed,
    "qasc": _lettered,
    "sensemaking": _nonsense,
    "gsm8k": _worked,
}
CHATS: dict[str, Callable[[Path], Iterator[Talk]]] = {
    "llms_from_scratch": lambda raw: instructions(_json(raw / "sft/llms_from_scratch.json"), "llms_from_scratch"),
    "alpaca": lambda raw: instructions(_json(raw / "sft/alpaca_en_demo.json.gz"), "alpaca"),
    "oasst": lambda raw: trees(_lines(raw / "sft/oasst_en_100_tree.jsonl.gz")),
}


def _questions(raw: Path, name: str, dropped: Counter[str]) -> list[Question]:
    """The good questions of a set, each once, in the order of their hashes."""
    path = raw / f"sft/flan_cot_{name}.tsv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        every = [replace(question, source=name) for question in questions(lines, name)]
    once = {_plain(question.asked): question for question in every}
    dropped[f"{name}: asked twice"] += len(every) - len(once)
    good = [question for question in once.values() if not OFFENSIVE.search(question.asked + question.reason)]
    dropped[f"{name}: offensive"] += len(once) - len(good)
    return sorted(good, key=lambda question: _hash(question.asked))


def _spoken(question: Question) -> Talk:
    """A question as a talk; one wording in six, by its hash, where several teach more than one."""
    ways = WAYS[question.source]
    said = ways[int(_share(question.asked + "way") * len(ways))](question)
    core = question.options if question.source == "sensemaking" else (question.text.removeprefix(CLAIM),)
    return replace(_talk(said, question.source), core=core)


def _asked_short(question: Question) -> list[str]:
    return [question.prompt, _capital(question.answer)]


def _asked_bare(question: Question) -> list[str]:
    """Nothing is said about the answer's form: yes and no come with their reason, an option alone."""
    reason = "" if question.options else question.reason
    return [question.asked, f"{_stopped(question.answer)} {reason}".strip()]


def _asked_why(question: Question) -> list[str]:
    if not question.reason:
        return _asked_short(question)
    return [f"{question.asked}\nGive a short reason.", f"{_stopped(question.answer)} {question.reason}"]


def _asked_letters(question: Question) -> list[str]:
    lines = [f"{letter}. {option}" for letter, option in zip("ABCDEFGH", question.options, strict=False)]
    letter = "ABCDEFGH"[question.options.index(question.answer)]
    return ["\n".join([question.text, *lines]), f"{letter}. {question.answer}"]


def _asked_claim(question: Question) -> list[str]:
    """True or false, of a claim."""
    claim = question.text.removeprefix(CLAIM)
    if claim == question.text:
        return _asked_short(question)
    return [f"True or false: {claim}", "True" if question.answer == "yes" else "False"]


def _asked_worked(question: Question) -> list[str]:
    return [question.text, f"{question.reason}\nThe answer is {question.answer}."]


WAYS: dict[str, list[Callable[[Question], list[str]]]] = {
    "creak": [_asked_short, _asked_short, _asked_short, _asked_bare, _asked_why, _asked_claim],
    "strategyqa": [_asked_short, _asked_short, _asked_short, _asked_bare, _asked_why],
    "ecqa": [_asked_short, _asked_short, _asked_short, _asked_bare, _asked_letters],
    "qasc": [_asked_short, _asked_short, _asked_short, _asked_bare, _asked_why, _asked_letters],
    "sensemaking": [_asked_short, _asked_why],
    "gsm8k": [_asked_worked],
}


def _own() -> Iterator[Talk]:
    """Our own rows: {"messages": …}."""
    for row in _lines(OWN):
        yield _talk([message["content"] for message in row["messages"]], "own")


# Filters

IDENTITY = re.compile(
    r"\bas an ai\b|\bi(?:'m| am) an (?:ai|open)|language model|openai|chat ?gpt|\bgpt\b|gpt-|open[ -]?assistant|laion"
    r"|llama|anthropic|claude|\bbard\b|\{\{|\bai (?:assistant|model|tool)|who (?:are|made) you|are you (?:a|an) ",
    re.I,
)
REFUSAL = re.compile(
    r"\bi(?:'m| am) (?:sorry|afraid|unable|not able)|\bi (?:cannot|can't|can not|do not have|don't have) "
    r"|unfortunately, (?:i|you|there)|^sorry\b|real-time|(?:did not|didn't|haven't|not) provided?\b|please provide",
    re.I,
)
CODE = re.compile(r"```|<[a-z/!][^>]*>|\bdef \w+\(|\bimport \w+|\bSELECT\b|\bfunction ?\w*\(|\{\s*\n|;\s*\n|#include")
WANTS_CODE = re.compile(
    r"\b(?:python|java|javascript|c\+\+|rust|html|css|sql|regex|code|script|program(?:me)?)\b", re.I
)
OFFENSIVE = re.compile(
    r"\b(?:fuck\w*|shit\w*|bitch\w*|nud(?:e|ity)|naked|sex\w*|porn\w*|rap(?:e|ed|ist)|genocide|suicid\w*|nazis?|hitler"
    r"|terroris\w*|kill (?:him|her|your|them)\w*|prostitut\w*|penis\w*|vagina\w*|slur|racis[mt]|condoms?|molest\w*"
    r"|masturbat\w*|whores?|sluts?|retard\w*|murder\w*|cocaine|heroin|meth|addict\w*)\b",
    re.I,
)
PERSONAL = re.compile(
    r"\b(?:your (?:own|house|name|favou?rite|life|experience|opinion)|tell me about yourself|imagine you\b"
    r"|(?:time|situation|experience|moment) (?:when|where|in which) you|would you (?:do|feel|be))",
    re.I,
)
NO_INPUT = re.compile(r"^\W*(?:no ?input|none|n/a)\W*$", re.I)
WEB = re.compile(r"https?:|www\.|\.com\b", re.I)
BLANK = re.compile(r"\[(?:your|insert|name|date|company|recipient)[^\]]*\]", re.I)
MISSING = re.compile(
    r"\b(?:the following|this|the given|these|the (?:text|passage|paragraph|sentence|article))\b", re.I
)
WRONG = (  # rows of llms_from_scratch whose answers are not right
    "Change the given verb to its present perfect form",
    "Change the given verb to its past continuous form",
    'Change the sentence "This should not have happened"',
    "Convert the sentence to use an indefinite pronoun",
    "Create a palindrome using",
    "Edit the sentence below to remove any redundant",
    "Make the second sentence a dependent clause",
    "Rewrite the following phrase in the present tense",
    "Scramble the given phrase",
)


def fault(talk: Talk) -> str | None:
    """Why a conversation is no good example, or None."""
    whole = "\n".join(message["content"] for message in talk.messages)
    said = "\n".join(talk.answers)
    faults = {
        "empty": not all(message["content"].strip() for message in talk.messages) or not talk.answers,
        "long": any(len(answer) > ANSWER for answer in talk.answers) or len(whole) > TALK,
        "identity": bool(IDENTITY.search(whole)),
        "refusal": bool(REFUSAL.search(said)),
        "code": bool(CODE.search(whole) or WANTS_CODE.search(talk.prompt)),
        "offensive": bool(OFFENSIVE.search(whole)),
        "personal": bool(PERSONAL.search(talk.prompt)),
        "web or blanks": bool(WEB.search(whole) or BLANK.search(said)),
        "foreign": _foreign(whole) and not talk.prompt.lower().startswith("translate"),
        "input missing": _lacks_input(talk.prompt),
        "unfinished": talk.source in ("alpaca", "oasst") and not re.search(r"[.!?)\]\"'”*:|\w]$", said),
        "wrong": talk.prompt.startswith(WRONG),
    }
    return next((name for name, found in faults.items() if found), None)


def _foreign(text: str) -> bool:
    """More than a sprinkle of letters that English does not have."""
    letters = [letter for letter in text if letter.isalpha()]
    return sum(letter > "\x7f" for letter in letters) > 0.03 * len(letters)


def _lacks_input(prompt: str) -> bool:
    """It speaks of a text that is not there."""
    alone = "\n" not in prompt and not re.search(r"[:\"“'‘?]|___", prompt)
    return alone and bool(re.search(r"\b(?:following|given|below)\b", prompt, re.I)) and bool(MISSING.search(prompt))


def _clean(talks: Iterable[Talk], dropped: Counter[str]) -> list[Talk]:
    """The good ones, each prompt once."""
    good: dict[str, Talk] = {}
    for talk in talks:
        if reason := fault(talk):
            dropped[f"{talk.source}: {reason}"] += 1
        elif _plain(talk.prompt) in good:
            dropped[f"{talk.source}: asked twice"] += 1
        else:
            good[_plain(talk.prompt)] = talk
    return list(good.values())


# Overlap


class Seen:
    """Texts that must not be met again: their runs of n words, and the whole of those that are shorter."""

    def __init__(self, texts: Iterable[str], n: int):
        self.n = n
        self.grams = {gram for text in texts for gram in self._grams(text)}

    def meets(self, texts: Iterable[str]) -> bool:
        return any(gram in self.grams for text in texts for gram in self._grams(text))

    def _grams(self, text: str) -> Iterator[tuple[str, ...]]:
        words = _words(text)
        if len(words) >= 4:  # "Yes." is no overlap
            yield from (tuple(words[i : i + self.n]) for i in range(max(len(words) - self.n, 0) + 1))


def _public(raw: Path) -> dict[str, Seen]:
    """Every text of five words or more in the public evaluation sets."""
    return {
        path.name.split(".")[0]: Seen(
            (text for row in _lines(path) for text in _strings(row) if len(_words(text)) >= 5), NGRAM_PUBLIC
        )
        for path in sorted((raw / "eval").iterdir())
    }


def _without_public(
    talks: Iterable[Talk], public: dict[str, Seen], dropped: Counter[str], where: str
) -> Iterator[Talk]:
    for talk in talks:
        met = [name for name, texts in public.items() if texts.meets(talk.core)]
        dropped.update(f"overlap with {name} ({where})" for name in met)
        if not met:
            yield talk


def _apart(
    talks: Iterable[Talk], held: Sequence[Talk], short: Sequence[Question], dropped: Counter[str]
) -> Iterator[Talk]:
    """Those that share nothing with held-out rows, with the questions that are asked, or with our own questions."""
    mine = list(_lines(QUESTIONS))
    held_out = Seen(chain(*(talk.core for talk in held), *(_spoken(question).core for question in short)), NGRAM_HELD)
    asked = Seen((row["prompt"] for row in mine), NGRAM_PUBLIC)
    abouts = [f" {_plain(row['about'])} " for row in mine if "about" in row]
    for talk in talks:
        flat = f" {_plain(' '.join(talk.core))} "
        if held_out.meets(talk.core):
            dropped[f"overlap with held-out rows ({talk.source})"] += 1
        elif asked.meets(talk.core) or any(about in flat for about in abouts):
            dropped[f"overlap with our own questions ({talk.source})"] += 1
        else:
            yield talk


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _kin(prompt: str) -> str:
    """What a prompt is about: what it quotes, so that "a synonym for 'soft'" and "the opposite of 'soft'" are kin."""
    quoted = re.findall(r"(?<!\w)['\"‘“](.+?)[.,]?['\"’”](?!\w)", prompt)
    return _plain(" ".join(quoted)) or _plain(prompt)


# Small things


def _talk(said: Sequence[str], source: str) -> Talk:
    roles = ("user", "assistant")
    messages = tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(said))
    return Talk(messages, source, tuple(said))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _plain(text: str) -> str:
    return " ".join(_words(text))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(_plain(text).encode()).digest()[:8], "big")


def _share(text: str) -> float:
    """A number from 0 to 1 that only the text's words decide."""
    return _hash(text) / 2**64


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _stopped(text: str) -> str:
    """A sentence with its full stop."""
    text = _capital(text.strip())
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _sentences(reason: str) -> str:
    """A reason as proper sentences, or "" for one that is no reason or says where it was looked up."""
    bad = re.search(
        r"\b(?:i|my|me|google\w*|wikipedia|internet|obvious\w*|common sense|search\w*|claim|statement)\b", reason, re.I
    )
    good = 5 <= len(_words(reason)) <= 60 and not bad and reason.endswith(".")
    mended = re.sub(r"[,;:]\.", ".", re.sub(r"\.(['\"]?)\.", r".\1", reason))
    return _stopped(mended) if good else ""


def _by_source(rows: Iterable[Any]) -> dict[str, int]:
    return dict(Counter(row.source for row in rows))


def _json(path: Path) -> Any:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        return json.load(file)


def _lines(path: Path) -> Iterator[Any]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("raw", type=Path, help="directory of raw files, with sft/ and eval/ (README.md)")
    parser.add_argument("out", type=Path, help="directory that the rows are written to")
    given = parser.parse_args(arguments)
    json.dump(build(given.raw, given.out), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
