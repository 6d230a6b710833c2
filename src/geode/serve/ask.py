"""What any API's request means, and what any API's answer is made of. JSON and HTTP are not known here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import OptionError
from ..generate import Options

Message = Mapping[str, Any]


@dataclass(frozen=True)
class JsonObject:
    """Any JSON object."""


@dataclass(frozen=True)
class JsonSchema:
    """JSON that this schema allows."""

    schema: Mapping[str, Any]
    name: str = ""


@dataclass(frozen=True)
class Regex:
    """Text that this pattern matches as a whole."""

    pattern: str


@dataclass(frozen=True)
class Grammar:
    """Text that this EBNF (Lark's notation) derives. `json`: what it has of quotes and brackets is JSON's."""

    source: str
    json: bool = False


Format = JsonObject | JsonSchema | Regex | Grammar


@dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False


def choice_of(names: Sequence[str], word: str | None, name: str | None = None) -> str:
    """`Ask.tool_choice` for tools of these names, by a word or by the name of one of them; None and None: "auto".

    Raises OptionError for two tools of one name, and for a choice that cannot be followed.
    """
    if len(set(names)) < len(names):
        raise OptionError("tools must be named differently; two have the same name.")
    if not names and (name or word or "none") not in ("none", "auto"):
        raise OptionError("tool_choice must be left out where there are no tools.")
    if name is not None and name not in names:
        raise OptionError(f"tool_choice must be one of the tools; {name!r} is none.")
    return name or word or "auto"


def allowed(tools: Sequence[Tool], names: Sequence[str]) -> list[Tool]:
    """Those of some tools that have one of these names. Raises OptionError for a name that none has."""
    for name in names:
        if all(name != tool.name for tool in tools):
            raise OptionError(f"tool_choice must be of the tools; {name!r} is none.")
    return [tool for tool in tools if tool.name in names]


def as_call(id: str | None, name: str, arguments: str) -> dict[str, Any]:
    """A call as messages for chat templates hold it, and OpenAI's interface; `arguments` is a JSON text."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request. Exactly one of messages, text and ids is given.

    tool_choice  "auto", "none", "required", or the name of one of the tools
    truncate     tokens of the prompt's end to keep when it is too long; None refuses a prompt that is
    continue_last  the last message is the assistant's and is to be continued
    """

    model: str
    messages: Sequence[Message] | None = None
    text: str | None = None
    ids: Sequence[int] | None = None
    options: Options = field(default_factory=Options)
    n: int = 1
    tools: Sequence[Tool] = ()
    tool_choice: str = "auto"
    parallel_calls: bool = True
    format: Format | None = None
    truncate: int | None = None
    continue_last: bool = False
    template_options: Mapping[str, Any] = field(default_factory=dict)
    client: str = ""
    priority: int = 0
    salt: str = ""


@dataclass(frozen=True)
class Logprob:
    """One token, its log-probability, and the likeliest in its place (id, logprob)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Text:
    """More of answer `index`; `tokens` are what it was made of (perhaps none), `logprobs` where asked for."""

    index: int
    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class CallBegins:
    """The answer calls a tool; `call` counts from 0 within the answer."""

    index: int
    call: int
    id: str
    name: str


@dataclass(frozen=True)
class CallGoesOn:
    """More of a call's arguments: a part of a JSON text."""

    index: int
    call: int
    arguments: str


@dataclass(frozen=True)
class Ends:
    """Answer `index` is whole: "stop", "length", "tool_calls". `stop` is the stop string that ended it, if one did."""

    index: int
    finish_reason: str
    stop: str | None = None


@dataclass(frozen=True)
class Spent:
    """The last event: tokens and seconds of all answers together; `truncated` counts tokens of the prompt left out."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    accepted_tokens: int = 0
    drafted_tokens: int = 0
    truncated: int = 0
    queued_seconds: float = 0.0
    prompt_seconds: float = 0.0
    completion_seconds: float = 0.0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


Event = Text | CallBegins | CallGoesOn | Ends | Spent
