"""Tool calls in what a model wrote.

Which model wrote it is not known here: each way of spelling is one row of a table, tried in order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_JSON = json.JSONDecoder()


@dataclass(frozen=True)
class Spelling:
    """JSON between two patterns: objects with a name and arguments, alone, in a row, or in a list."""

    name: str
    opens: str
    closes: str = ""


SPELLINGS = (
    Spelling("hermes", r"<tool_call>\s*", r"\s*(</tool_call>|\Z)"),  # Hermes, Qwen
    Spelling("mistral", r"\[TOOL_CALLS\]\s*"),
    Spelling("llama", r"<\|python_tag\|>\s*", r"(\s*(<\|eom_id\|>|<\|eot_id\|>))?"),
    Spelling("bare", r"\A\s*", r"\s*\Z"),  # Llama 3.1 and 3.2, and what is left where control tokens are not shown
)


def parse_tool_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """What the text says beside its calls, and the calls: each {"name": str, "arguments": dict}.

    What looks like a call and is no whole JSON stays in the text.
    """
    for spelling in SPELLINGS:
        found = list(_spelt(text, spelling))
        if found:
            rest, done = [], 0
            for start, end, _ in found:
                rest.append(text[done:start])
                done = end
            return "".join([*rest, text[done:]]).strip(), [call for *_, calls in found for call in calls]
    return text, []


def _spelt(text: str, spelling: Spelling) -> Iterator[tuple[int, int, list[dict[str, Any]]]]:
    """Start, end and calls of each place where one spelling holds."""
    opens, closes, at = re.compile(spelling.opens), re.compile(spelling.closes), 0
    while match := opens.search(text, at):
        calls, end = _calls(text, match.end())
        close = closes.match(text, end)
        at = max(match.end(), match.start() + 1)
        if calls and close:
            at = close.end()
            yield match.start(), at, calls
        if at > len(text) or spelling.opens.startswith(r"\A"):
            return


def _calls(text: str, at: int) -> tuple[list[dict[str, Any]], int]:
    """The calls in the JSON values that stand in a row here, and where they end; none when one is no call."""
    calls: list[dict[str, Any]] = []
    end = at
    while text[at : at + 1] in ("{", "["):
        try:
            value, at = _JSON.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        found = [_call(each) for each in (value if isinstance(value, list) else [value])]
        if None in found:
            break
        calls += [call for call in found if call]
        end = at
        while text[at : at + 1] in (" ", "\n", ";", ","):
            at += 1
    return calls, end


def _call(value: Any) -> dict[str, Any] | None:
    """Name and arguments, from {"name", "arguments" or "parameters"} or OpenAI's {"function": {…}}."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    return {"name": value["name"], "arguments": arguments} if isinstance(arguments, dict) else None
