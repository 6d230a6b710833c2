"""The table of shapes: which columns each has, what else people call these, and who makes examples of them.

How rows are looked at and counted is not known here. The spellings are those of TRL (huggingface.co/docs/trl/
dataset_formats), axolotl, LLaMA-Factory (data/README.md), OpenAI, Open-Assistant and Anthropic's hh-rlhf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..examples import Example
from . import chats, judged, trees
from .turns import listed


@dataclass(frozen=True)
class Column:
    """A column by our name, what may stand in it, and other names that data give it."""

    name: str
    words: str  # what may stand in it
    test: Callable[[Any], bool]
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A shape of rows. `needs`: sets of columns, any one of which will do. `bars`: columns it must not have to be
    recognised, because it would not read them. What is not `auto` must be asked for by name."""

    name: str
    about: str
    needs: tuple[tuple[Column, ...], ...]
    make: Callable[[Mapping[str, Any], str], Sequence[Example]]
    may: tuple[Column, ...] = ()
    bars: tuple[str, ...] = ()
    auto: bool = True

    @property
    def reads(self) -> set[str]:
        """Our names of all its columns."""
        return {column.name for columns in (*self.needs, self.may) for column in columns}


def _text(name: str, *others: str) -> Column:
    return Column(name, "a text", lambda value: isinstance(value, str), others)


def _turns(words: str, *keys: str) -> Column:
    def test(value: Any) -> bool:
        found = listed(value)
        first = found[0] if found else None
        return isinstance(first, dict) and all(first.get(key) is not None for key in keys)

    return Column("messages", f"a list of {words}", test, TALKS)


def _any(name: str, words: str, *others: str) -> Column:
    return Column(name, words, lambda value: True, others)


def _side(name: str, test: Callable[[Any], bool] = judged.is_side) -> Column:
    return Column(name, "a text, a turn or a list of turns", test)


TALKS = ("conversations", "conversation", "dialogue", "dialog", "turns")
MESSAGES = _turns('{"role", "content"}', "role")
SPOKEN = _turns('{"from", "value"}', "from")
TURNS = Column("messages", "a list of turns", judged.is_turns, TALKS)
PROMPT = _side("prompt")
QUESTION = Column("prompt", "a text or a list of turns", judged.is_side, ("question", "query"))
ASKED = _text("prompt", "question", "query", "input")
ANSWER = _text("completion", "answer", "response", "output", "reply")
INSTRUCTION = _text("instruction")
OUTPUT = _text("output", "response", "completion", "answer")
COMPLETION = _side("completion")
CHOSEN, REJECTED = _side("chosen"), _side("rejected")
WHOLE = (_side("chosen", judged.is_whole), _side("rejected", judged.is_whole))
LABEL = Column("label", "true or false", lambda value: judged.label(value) is not None, ("kto_tag",))
TREE = Column("prompt", "a message with its replies", trees.is_tree)
STATE = _any("tree_state", "a text")
SYSTEM = _any("system", "a text", "system_prompt")
TOOLS = _any("tools", "a list of tools", "functions")
INPUT, HISTORY = _any("input", "a text", "context"), _any("history", "pairs of texts")

OASST = Kind("oasst", "trees of messages, all reviewed answers", ((TREE,),), trees.every, (STATE,))
KINDS = (  # in the order in which they are tried: what has more columns comes first
    OASST,
    Kind("oasst-best", "trees of messages, the best answers", OASST.needs, trees.best, OASST.may, auto=False),
    Kind(
        "preference",
        "two answers, the first one better",
        (WHOLE, (CHOSEN, REJECTED, TURNS), (CHOSEN, REJECTED, INSTRUCTION), (CHOSEN, REJECTED, QUESTION)),
        judged.preference,
        (SYSTEM, INPUT, HISTORY),
    ),
    Kind(
        "kto",
        "an answer and whether it is good",
        ((LABEL, TURNS), (LABEL, INSTRUCTION, OUTPUT), (LABEL, QUESTION, COMPLETION)),
        judged.labelled,
        (SYSTEM, INPUT, HISTORY),
    ),
    Kind("messages", "turns of a conversation", ((MESSAGES,),), chats.chat, (SYSTEM, TOOLS)),
    Kind("sharegpt", "turns of a conversation", ((SPOKEN,),), chats.chat, (SYSTEM, TOOLS)),
    Kind(
        "alpaca",
        "an instruction and what it gives",
        ((INSTRUCTION, OUTPUT),),
        chats.instruction,
        (INPUT, SYSTEM, HISTORY),
    ),
    Kind(
        "prompt-completion",
        "plain text and how it goes on, written as it stands; or turns",
        ((PROMPT, COMPLETION),),
        chats.completion,
        (TOOLS,),
        bars=("system",),
    ),
    Kind("question-answer", "one exchange of a conversation", ((ASKED, ANSWER),), chats.question, (SYSTEM,)),
    Kind("text", "plain text, all of it learnt", ((_text("text", "content"),),), chats.plain),
)
NAMES = tuple(kind.name for kind in KINDS)
