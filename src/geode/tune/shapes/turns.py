"""Turns of a conversation, as data write them, to checked messages as chat templates take them.

Which column they came from, and what is learnt from them, is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from ...errors import FormatError
from ...tool_calls import parse_tool_calls
from ..examples import Conversation
from ..readers import said

Messages = list[dict[str, Any]]

CALL = "call"  # not a role of ours: an assistant's turn that is nothing but tool calls
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "ai", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "function-call", "tool_call"), CALL),
    "system": "system",
    "developer": "developer",
}
SYSTEM = ("system", "developer")
FOLLOWS = {
    "": (*SYSTEM, "user"),
    "system": (*SYSTEM, "user"),
    "developer": (*SYSTEM, "user"),
    "user": ("assistant",),
    "assistant": (*SYSTEM, "user"),
    CALL: ("tool",),
    "tool": ("tool", "assistant"),
}
KEPT = ("name", "tool_call_id", "reasoning_content", "thinking", "weight")  # what templates and tuning also read


class Misfit(FormatError):
    """A row that gives no example. `reason` is what rows are counted by, `detail` what is so in this one."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def talk(turns: Any, system: Any = None) -> Messages:
    """The messages of a list of turns, with `system` said first where it says anything and no other system text is.

    A system message that says nothing is left out. Raises Misfit for unknown roles, roles out of order, messages that
    say nothing, and what is neither text nor a readable tool call.
    """
    found = listed(turns)
    if not found:
        raise Misfit("no turns", f"expected a list of turns; got {said(turns)}")
    messages = [_message(turn, place) for place, turn in enumerate(found, 1)]
    messages = [message for message in messages if message["role"] not in SYSTEM or message["content"].strip()]
    if system is not None and (first := text(system, "the system text")).strip():
        messages = _with_system(messages, first)
    if not messages:
        raise Misfit("no turns", "only a system text that says nothing")
    _check(messages)
    return messages


def conversation(messages: Messages, tools: Any, source: str, first: int = 0) -> Conversation:
    """The example of a talk whose answers from message `first` on are learnt, but for those of weight 0.

    Raises Misfit where nothing is to be learnt.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise Misfit("no answer of an assistant")
    muted = {i for i, message in enumerate(messages) if message.pop("weight", None) == 0}
    learn = frozenset(i for i in answers if i >= first and i not in muted)
    if not learn:
        raise Misfit("nothing to learn", "every answer has the weight 0")
    return Conversation(messages, described(tools), source, None if len(learn) == len(answers) else learn)


def described(tools: Any) -> list[dict[str, Any]] | None:
    """Tools as OpenAI's interface describes them, from a list or its JSON text; None where there are none."""
    if tools is None or (isinstance(tools, str) and not tools.strip()):
        return None
    found = listed(tools)
    if found is None or not all(isinstance(tool, Mapping) and ("function" in tool or "name" in tool) for tool in found):
        raise Misfit("tools that cannot be read", f"expected a list of objects with a name; got {str(tools)[:60]}")
    return [
        dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)} for tool in found
    ] or None


def text(value: Any, what: str) -> str:
    """The value, where it is a text that can be written down."""
    if not isinstance(value, str):
        raise Misfit("no text where one should be", f"{what} is {said(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Misfit("half a character", f"{what} holds a lone surrogate, which is part of a broken escape") from None
    return value


def listed(value: Any) -> list[Any] | None:
    """A list, also one that a table's cell spells in JSON; None for what is none."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def speaker(turn: Any) -> Any:
    """The name of who speaks: of "role", else of "from"; None for what is no turn."""
    if not isinstance(turn, Mapping):
        return None
    return turn["role"] if turn.get("role") is not None else turn.get("from")


def first_speaker(value: Any) -> Any:
    """Who speaks first in a list of turns; None for what is no such list."""
    found = listed(value)
    return speaker(found[0]) if found else None


# One message


def _message(turn: Any, place: int) -> dict[str, Any]:
    spoken = speaker(turn)
    role = ROLES.get(spoken.lower()) if isinstance(spoken, str) else None
    if role is None:
        what = f"turn {place} has the role {spoken!r}" if spoken is not None else f"turn {place} names none"
        raise Misfit("an unknown role", f"{what}; known are {', '.join(ROLES)}")
    said_here = next((turn[key] for key in ("content", "value") if turn.get(key) is not None), None)
    if role == CALL:
        return {"role": "assistant", "content": "", "tool_calls": _calls(said_here, place)}
    message: dict[str, Any] = {"role": role, "content": _content(said_here, role, place)}
    message |= {key: turn[key] for key in KEPT if turn.get(key) is not None}
    calls = turn.get("tool_calls") or turn.get("function_call")
    if role == "assistant" and calls:
        message["tool_calls"] = _calls(calls, place)
    return message


def _content(value: Any, role: str, place: int) -> str:
    if value is None:
        return ""
    if role == "tool" and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "".join(_part(part, place) for part in value)
    return text(value, f"turn {place}")


def _part(part: Any, place: int) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else said(part)
    if kind != "text":
        raise Misfit("content that is no text", f"turn {place} has a part of the type {kind!r}")
    return text(part.get("text"), f"a part of turn {place}")


def _calls(value: Any, place: int) -> list[dict[str, Any]]:
    """Tool calls as OpenAI's interface writes them, with arguments as objects."""
    rest, found = parse_tool_calls(value if isinstance(value, str) else json.dumps(value))
    if rest or not found:
        raise Misfit("a tool call that cannot be read", f"turn {place} has {str(value)[:60]!r}")
    made: list[dict[str, Any]] = [{"type": "function", "function": call} for call in found]
    names = [each.get("id") for each in value] if isinstance(value, list) else []
    return [call | ({"id": name} if name is not None else {}) for call, name in zip_longest(made, names[: len(made)])]


# All of them


def _with_system(messages: Messages, system: str) -> Messages:
    other = next((message["content"] for message in messages if message["role"] in SYSTEM), None)
    if other is None:
        return [{"role": "system", "content": system}, *messages]
    if other != system:
        raise Misfit("two system texts", "one in a column of its own, another among the turns")
    return messages


def _check(messages: Messages) -> None:
    before = ""
    for place, message in enumerate(messages, 1):
        role = message["role"]
        if role not in FOLLOWS[before]:
            after = f"after the {'assistant' if before == CALL else before}'s" if before else "first"
            why = " that calls a tool" if before == CALL else ""
            raise Misfit("roles out of order", f"message {place} is the {role}'s and comes {after}{why}")
        if role in ("user", "assistant") and not (message["content"].strip() or message.get("tool_calls")):
            raise Misfit("an empty message", f"message {place}, the {role}'s, says nothing")
        before = CALL if message.get("tool_calls") else role
