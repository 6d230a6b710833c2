"""What a model is told about tools where its chat template has no place for them.

How a template renders messages is not known here: tools, calls and results become words in the turns that every
template has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from .ask import Message, Tool

INTRODUCTION = """You can call functions. To call one, write exactly this and then stop:
<tool_call>
{"name": "name of the function", "arguments": {"name of an argument": its value}}
</tool_call>
The result comes with the next message. Call a function only where it helps; otherwise answer in plain words.

Functions:"""
ONE = "Call at most one function in an answer."
MUST = "Call a function now."


def described(tools: Sequence[Tool], choice: str, parallel: bool) -> str:
    """The text for the system's turn."""
    wishes = [] if parallel else [ONE]
    if choice == "required":
        wishes.append(MUST)
    elif choice != "auto":
        wishes.append(f"Call the function {choice} now.")
    return "\n".join([INTRODUCTION, *(json.dumps(as_function(tool), ensure_ascii=False) for tool in tools), *wishes])


def as_function(tool: Tool) -> dict[str, Any]:
    """Name, description and parameters, as OpenAI's interface and the templates have them."""
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}


def with_system(messages: Sequence[Message], text: str) -> list[Message]:
    """The messages with a text before what the system says."""
    if messages and messages[0].get("role") in ("system", "developer"):
        first = {**messages[0], "content": _parted(text, messages[0].get("content"))}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def in_words(messages: Sequence[Message]) -> list[Message]:
    """Calls as what the assistant said, results as what the user said; turns of one role in a row as one."""
    talk: list[Message] = []
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    names = {call.get("id"): call.get("function", call).get("name") for call in calls}
    for message in messages:
        said = _in_words(message, names)
        changed = said is not message
        if talk and talk[-1]["role"] == said.get("role") == "user" and (changed or talk[-1].get("result")):
            before = talk.pop()
            said = {**said, "content": _parted(before["content"], said.get("content")), "result": True}
        talk.append(said)
    return [{key: value for key, value in message.items() if key != "result"} for message in talk]


def calls_as_text(calls: Sequence[Any]) -> str:
    """Calls as `INTRODUCTION` asks for them."""
    return "\n".join(f"<tool_call>\n{json.dumps(_call(call), ensure_ascii=False)}\n</tool_call>" for call in calls)


def _in_words(message: Message, names: Mapping[Any, Any]) -> Message:
    if message.get("role") == "tool":
        name = message.get("name") or names.get(message.get("tool_call_id"))
        heading = f'<tool_response name="{name}">' if name else "<tool_response>"
        return {
            "role": "user",
            "content": f"{heading}\n{_text(message.get('content'))}\n</tool_response>",
            "result": True,
        }
    if calls := message.get("tool_calls"):
        said = _text(message.get("content"))
        text = calls_as_text(calls)
        return {"role": "assistant", "content": f"{said}\n{text}" if said else text}
    return message


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError):  # a call that broke off is shown as it was
            arguments = json.loads(arguments or "{}")
    return {"name": function.get("name"), "arguments": arguments}


def _text(content: Any) -> str:
    """A content as one text: a text, parts, or nothing."""
    if isinstance(content, list):
        return "".join(part.get("text", "") if isinstance(part, Mapping) else str(part) for part in content)
    return content if isinstance(content, str) else ""


def _parted(first: Any, second: Any) -> str:
    return "\n\n".join(text for text in (_text(first), _text(second)) if text)
