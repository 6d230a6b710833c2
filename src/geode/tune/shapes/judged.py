"""Makers of what was judged: two answers of which one is better, or one answer and whether it is good.

Each takes the columns that were found, by our names, and the row's source. What a loss does with these examples is not
known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..examples import Labelled, Preference
from ..readers import said
from .chats import asked, turns_of
from .turns import ROLES, Messages, Misfit, first_speaker, speaker, talk, text

Found = Mapping[str, Any]

SPOKEN = re.compile(r"\n\n(Human|Assistant):")  # github.com/anthropics/hh-rlhf
LABELS = {"true": True, "1": True, "false": False, "0": False}


def preference(found: Found, source: str) -> list[Preference]:
    """Two ways to go on, after a prompt of their own or after what two whole conversations have in common."""
    chosen, rejected = _side(found["chosen"]), _side(found["rejected"])
    system = found.get("system")
    if is_whole(found["chosen"]):
        both = talk(chosen, system), talk(rejected, system)
        cuts = (_common(*both),) * 2
    else:
        before = _prompt(found)
        both = talk([*before, *chosen], system), talk([*before, *rejected], system)
        cuts = len(both[0]) - len(chosen), len(both[1]) - len(rejected)
    better, worse = both[0][cuts[0] :], both[1][cuts[1] :]
    if better == worse:
        raise Misfit("chosen and rejected are the same")
    for name, answer in (("chosen", better), ("rejected", worse)):
        if not answer or answer[0]["role"] != "assistant":
            raise Misfit("no two answers to one prompt", f"{name} parts from the other before an assistant's message")
    return [Preference(both[0][: cuts[0]], better, worse, source)]


def labelled(found: Found, source: str) -> list[Labelled]:
    """One answer with its label: the last message of a conversation, or a completion, or an output."""
    good = label(found["label"])
    if good is None:
        raise Misfit("a label that says neither", f"expected true or false; got {str(found['label'])[:40]!r}")
    if "messages" in found:
        messages = talk(found["messages"], found.get("system"))
        cut = len(messages) - 1
    else:
        answer = turns_of(found["completion"] if "completion" in found else found["output"], "assistant")
        messages = talk([*_prompt(found), *answer], found.get("system"))
        cut = len(messages) - len(answer)
    if messages[cut]["role"] != "assistant":
        raise Misfit("no answer of an assistant", f"the last message is the {messages[-1]['role']}'s")
    return [Labelled(messages[:cut], messages[cut:], good, source)]


def label(value: Any) -> bool | None:
    """What a label says, or None for what is none."""
    if isinstance(value, str | bool | int | float):
        return LABELS.get(str(value).strip().lower().removesuffix(".0"))
    return None


def is_side(value: Any) -> bool:
    """Whether this can be one of two answers: a text, a turn, or turns."""
    return isinstance(value, str) or speaker(value) is not None or is_turns(value)


def is_turns(value: Any) -> bool:
    """Whether this is a list of turns, by its first one."""
    return first_speaker(value) is not None


def is_whole(value: Any) -> bool:
    """Whether this is a conversation from its start, and not only the answer to a prompt."""
    if isinstance(value, str) and value.lstrip().startswith("Human:"):
        return SPOKEN.match("\n\n" + value.lstrip()) is not None
    first = first_speaker(value)
    return first is not None and ROLES.get(str(first).lower()) != "assistant"


def _prompt(found: Found) -> list[Any]:
    """The turns that an answer answers, from whichever columns hold them."""
    if "messages" in found:
        return turns_of(found["messages"], "user")
    if "instruction" in found:
        return asked(found)
    if isinstance(found["prompt"], str) and is_whole(found["prompt"]) and not is_turns(found["prompt"]):
        turns = _spoken(found["prompt"])
        return turns[:-1] if not turns[-1]["content"] else turns  # "\n\nAssistant:" is where the answer begins
    return turns_of(found["prompt"], "user")


def _side(value: Any) -> list[Any]:
    if isinstance(value, str) and is_whole(value) and not is_turns(value):
        return _spoken(value)
    if not is_side(value):
        raise Misfit("an answer that cannot be read", f"expected a text or turns; got {said(value)}")
    return turns_of(value, "assistant")


def _spoken(words: str) -> list[Any]:
    """The turns of a dialogue in one text, each behind a blank line and its speaker's name."""
    parts = SPOKEN.split("\n\n" + text(words, "a dialogue").lstrip())[1:]
    return [
        {"role": "user" if who == "Human" else "assistant", "content": said_here.strip()}
        for who, said_here in zip(parts[::2], parts[1::2], strict=True)
    ]


def _common(first: Messages, second: Messages) -> int:
    """How many messages two conversations begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(first), len(second)))
