"""How one model calls tools: what it is told of them, how its calls are read, what makes it call.

Which tools there are, and what comes of a call, is not known here. A template that has a place for tools is given
them, and its own spelling is found by rendering a call with it; for any other, tools and calls are put into words.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..chat import Template, needed
from ..errors import ChatError, OptionError
from ..tokenizer import StreamDecoder
from ..tool_calls import SPELLINGS, CallReader, Name, Part, Spelling
from . import tool_prompts as words
from .ask import Ask, CallBegins, CallGoesOn, Event, Format, Grammar, JsonObject, JsonSchema, Message, Text, Tool
from .grammar import json_rule, source_of

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer
    from .loading import Served


@dataclass(frozen=True)
class Way:
    """How a template writes calls: `opens` {"name": …, "`key`": {…}} `closes`; where `listed`, all of them in one list.

    Where `divides` is given: `opens` name `divides` {…} instead.
    """

    opens: str
    closes: str = ""
    space: str = ""  # after `opens` and before `closes`
    between: str = "\n"
    key: str = "arguments"
    listed: bool = False
    divides: str = ""


OURS = Way("<tool_call>", "</tool_call>", "\n")  # as tool_prompts asks for


def tools_for(served: Served) -> Tools:
    """The tools of a served model, found out once."""
    made: Tools | None = served.kept.get("tools")
    if made is None:
        made = served.kept["tools"] = Tools(served.local.template, served.local.tokenizer)
    return made


class Tools:
    """A template's own way to call tools, or ours.

    native  whether the template has a place for tools
    marks   control tokens that calls are spelt with, which the parser must see
    """

    def __init__(self, template: Template | None, tokenizer: Tokenizer | None):
        self._template = template
        self._tokenizer = tokenizer
        control: Mapping[str, int] = getattr(tokenizer, "control", {})
        texts = {text for each in SPELLINGS for text in (each.opens, each.divides, *each.closes)} | {"[CALL_ID]"}
        self._marks = {text: token for text, token in control.items() if text in texts}
        self.marks = frozenset(self._marks.values())
        found = None if template is None else found_way(template)
        self.native = found is not None
        self.way = found or OURS

    def prompt(self, ask: Ask) -> list[int]:
        """The prompt's ids: the conversation, and the tools unless the choice is "none". Raises ChatError."""
        template = needed(self._template)
        tools = () if ask.tool_choice == "none" else ask.tools
        messages, functions = self.conversation(ask.messages or (), tools, ask.tool_choice, ask.parallel_calls)
        return list(template.tokens(messages, tools=functions, **ask.template_options))

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool], choice: str = "auto", parallel: bool = True
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """The messages as the template takes them, and the tools for it where it takes any."""
        if self.native:
            functions = [{"type": "function", "function": words.as_function(tool)} for tool in tools]
            talk = _short_ids(messages) if self.way.opens == "[TOOL_CALLS]" else list(messages)
            return talk, functions or None
        talk = words.in_words(messages)
        return (words.with_system(talk, words.described(tools, choice, parallel)) if tools else talk), None

    def decoder(self) -> StreamDecoder:
        """Ids to the text that a parser reads: with the control tokens that spell calls, and no others."""
        tokenizer = self._tokenizer
        assert tokenizer is not None
        silent = frozenset(tokenizer.control.values()) - self.marks
        return StreamDecoder(lambda token: b"" if token in silent else tokenizer.piece(token))

    def parser(self, tools: Iterable[Tool], choice: str = "auto") -> Parser:
        """Reads the calls of these tools in one answer."""
        return Parser((tool.name for tool in tools), must=choice != "auto")

    def format(
        self, tools: Sequence[Tool], choice: str = "auto", parallel: bool = True, answer: Format | None = None
    ) -> Format | None:
        """What an answer must look like: with a call where one is required or named; else strict tools' calls follow
        their schemas, there is no second call unless `parallel`, and `answer` is the format of an answer without any.
        None where any text will do.

        Raises OptionError for a choice that is no tool, and for a strict tool whose schema cannot be enforced.
        """
        if choice == "none":
            return answer
        chosen = _chosen(tools, choice)
        if choice == "auto" and answer is None and parallel and not any(tool.strict for tool in chosen):
            return None
        rules = _Rules(self.way, self._marks, chosen, parallel)
        return Grammar(rules.free(answer)) if choice == "auto" else Grammar(rules.required(), json=True)


class Parser:
    """Turns what a model writes into events of answer 0, however its text is cut. `must`: it writes calls only."""

    def __init__(self, names: Iterable[str], must: bool = False):
        self._reader = CallReader(frozenset(names))
        self._must = must
        self._calls = 0

    def push(self, text: str) -> list[Event]:
        """What is certain now."""
        return [self._event(part) for part in self._reader.push(text)]

    def finish(self, cut: bool = False) -> list[Event]:
        """The rest: no more text will come. `cut`: it broke off, and what only began to be a call is left out."""
        return [self._event(part) for part in self._reader.finish(cut, self._must)]

    def _event(self, part: Part) -> Event:
        if isinstance(part, str):
            return Text(0, part)
        if isinstance(part, Name):
            self._calls += 1
            return CallBegins(0, self._calls - 1, new_id(), part.name)
        return CallGoesOn(0, self._calls - 1, part.text)


def new_id() -> str:
    """A fresh name for a call."""
    return f"call_{secrets.token_hex(12)}"


# How a template writes calls

PROBE = "look_up_probe"
CALL = {"type": "function", "id": "probecall", "function": {"name": PROBE, "arguments": {"city": "Köln"}}}
TALK: list[Message] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "probecall", "name": PROBE, "content": "22"},
]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"type": "function", "function": words.as_function(Tool(PROBE, "Looks up", CITY))}


def found_way(template: Template) -> Way | None:
    """The way of a template that shows tools, calls and results; None where it shows none, or in a way not known."""
    if not re.search(r"\btools\b", getattr(template, "source", "")):
        return None
    try:
        told = template.render(TALK[:1], tools=[FUNCTION])
        text = template.render(TALK, tools=[FUNCTION])
        plain = template.render([TALK[0], {"role": "assistant", "content": PROBE}], tools=[FUNCTION])
    except ChatError:
        return None
    if PROBE not in told or "22" not in text:
        return None
    return _way(text, before=plain[: plain.rfind(PROBE)].rstrip())


def _way(said: str, before: str) -> Way | None:
    """The way in which a text holds the probe's call; `before`: what stands before an answer."""
    for spelling in SPELLINGS:
        if spelling.divides and re.search(
            rf"{re.escape(spelling.opens)}{PROBE}.{{0,40}}{re.escape(spelling.divides)}", said
        ):
            return Way(spelling.opens, between="", divides=spelling.divides)
    said = said[said.find(before) + len(before) :] if before in said else said
    call = re.search(
        rf'(\s*)(\[?)\s*\{{("type": ?"function", )?"name": ?"{PROBE}", ?"(arguments|parameters)": ?\{{', said
    )
    if call is None:
        return None
    spelling = _spelling_before(said[: call.start()])
    if not spelling.opens and said[: call.start()].strip():
        return None
    close = spelling.closes[0] if spelling.must and spelling.closes else ""
    return Way(
        spelling.opens,
        close,
        call[1] if spelling.opens else "",
        between="\n" if close else "; ",
        key=call[4],
        listed=bool(call[2]),
    )


def _spelling_before(text: str) -> Spelling:
    """What opened the call that stands after this text; the last row, the bare call, where nothing known did."""
    return next((each for each in SPELLINGS if each.opens and text.endswith(each.opens)), SPELLINGS[-1])


def _short_ids(messages: Sequence[Message]) -> list[Message]:
    """Mistral's templates refuse ids that are not of nine letters and digits."""

    def short(given: Any) -> str:
        text = str(given)
        return text if re.fullmatch(r"[a-zA-Z0-9]{9}", text) else hashlib.sha256(text.encode()).hexdigest()[:9]

    talk: list[Message] = []
    for message in messages:
        changed = dict(message)
        if changed.get("tool_call_id"):
            changed["tool_call_id"] = short(changed["tool_call_id"])
        if changed.get("tool_calls"):
            changed["tool_calls"] = [{**call, "id": short(call.get("id"))} for call in changed["tool_calls"]]
        talk.append(changed)
    return talk


# What makes a model call


def _chosen(tools: Sequence[Tool], choice: str) -> list[Tool]:
    chosen = [tool for tool in tools if choice in ("auto", "required", tool.name)]
    if not chosen:
        names = ", ".join(tool.name for tool in tools) or "none"
        raise OptionError(f"tool_choice asks for a call of {choice!r}; the tools are: {names}. Name one of them.")
    return chosen


CLOSED = "}"


class _Rules:
    """A grammar of calls, in Lark's notation with llguidance's additions."""

    def __init__(self, way: Way, marks: Mapping[str, int], tools: Sequence[Tool], parallel: bool):
        self._way, self._marks, self._tools, self._parallel = way, marks, tools, parallel

    def required(self) -> str:
        """One call or, where parallel, several; and nothing else."""
        if not self._parallel or self._way.listed:
            return self._with_calls("start: open block")
        return self._with_calls(f"start: open block ({_text(self._way.between)} open block)*")

    def free(self, answer: Format | None) -> str:
        """Any text, or one of a format; but what opens a call must go on as one."""
        again = "*" if self._parallel else "?"
        if answer is not None:
            calls = self.required().replace("start:", "calls:", 1)
            return f"start: calls | answer\n{_answer(answer)}\n{calls}"
        if not self._way.opens:
            calls = self.required().replace("start:", "calls:", 1)
            return f"start: calls | TEXT\nTEXT: /(\\s*[^\\s{{\\[](.|\\n)*)?/\n{calls}"
        if self._way.opens in self._marks:
            return self._with_calls(f"start: TEXT (open block TEXT){again}\nTEXT: /(.|\\n)*/")
        lead = f"lead[lazy]: TEXT {_text(self._way.opens)}"
        end = "TEXT" if self._parallel else "lead block | TEXT"
        start = f"(lead block)* {end}" if self._parallel else end
        return self._with_calls(f"start: {start}\n{lead}\nTEXT: /(.|\\n)*/")

    def _with_calls(self, start: str) -> str:
        """The rules `open` and `block` and all below them."""
        way = self._way
        many = f" ({_text(', ')} call)*" if self._parallel and way.listed else ""
        before, after = (f"{way.space}[", "]") if way.listed else (way.space, "")
        block = [
            _text(before),
            f"call{many}",
            _text(after),
            _text(way.space if way.closes else ""),
            self._mark(way.closes),
        ]
        rules = [
            start,
            f"open: {self._mark(way.opens) or _text('', empty=True)}",
            f"block: {' '.join(filter(None, block))}",
        ]
        rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(self._tools))))
        for i, tool in enumerate(self._tools):
            rules += [f"call_{i}: {self._call(tool, i)}", f"arguments_{i}: {_arguments(tool)}"]
        return "\n".join(rules)

    def _call(self, tool: Tool, number: int) -> str:
        if self._way.divides:
            return f"{_text(tool.name)} {self._mark(self._way.divides)} arguments_{number}"
        name = json.dumps(tool.name, ensure_ascii=False)
        head = f'{{"name": {name}, "{self._way.key}": '
        return f"{_text(head)} arguments_{number} {_text(CLOSED)}"

    def _mark(self, text: str) -> str:
        """A control token, or a text."""
        return f"<[{self._marks[text]}]>" if text in self._marks else _text(text)


def _arguments(tool: Tool) -> str:
    """A strict tool's schema; another's where it can be enforced, else any object."""
    try:
        return json_rule({"type": "object", **tool.parameters})
    except OptionError as problem:
        if tool.strict:
            raise OptionError(f"The parameters of the tool {tool.name!r} cannot be enforced. {problem}") from None
        return json_rule({"type": "object"})


def _answer(format: Format) -> str:
    """The rule of an answer without calls."""
    if isinstance(format, Grammar):
        raise OptionError(
            "A grammar and tools cannot be asked for together. Leave one of them out, or give the format as a JSON "
            "schema or a regular expression."
        )
    if isinstance(format, JsonObject | JsonSchema):
        return f"answer: {json_rule({'type': 'object'} if isinstance(format, JsonObject) else format.schema)}"
    return source_of(format).replace("start:", "answer:", 1)


def _text(text: str, empty: bool = False) -> str:
    """A text as Lark writes it; nothing for an empty one, unless it must stand."""
    return json.dumps(text, ensure_ascii=False) if text or empty else ""
