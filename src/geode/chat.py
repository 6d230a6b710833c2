"""A conversation to the text and the ids that a model was tuned on.

Models and weights are not known here, nor the text of any format: those are the checkpoint's own Jinja template or a
file in templates/. What a message says is never read as control tokens: where it spells one, the spelling is broken
by a character that Unicode sets aside for such use, and mended when the pieces are encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .errors import ChatError
from .tokenizer import Tokenizer
from .tokenizer.base import Matcher, common
from .tool_calls import parse_tool_calls

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from .sandbox import Program

__all__ = ["ROLES", "Message", "Template", "builtin", "builtins", "needed", "parse_tool_calls"]

Message = Mapping[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
NONCHARACTERS = [chr(point) for point in range(0xFDD0, 0xFDF0)]  # unicode.org/faq/private_use.html#nonchar1


@dataclass(frozen=True)
class _Marks:
    """Three characters that occur nowhere in a conversation: within a broken token, before and after an answer."""

    broken: str
    start: str
    end: str

    def without(self, text: str) -> str:
        return text.translate({ord(mark): None for mark in (self.broken, self.start, self.end)})


class Template:
    """A chat template with the tokenizer it was made for. Raises ChatError when the source is no Jinja template.

    Messages have a role (system, developer, user, assistant, tool) and a content, a text or a list of
    {"type": "text", "text": …}; an assistant's may have tool_calls. Further keywords go to the template.
    Every method raises ChatError for messages of another shape, and where the template refuses them, in its own words.
    Without `check` a template is compiled when it is first used: our own are good, and many a run needs none.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, check: bool = True):
        self.source = source
        self.tokenizer = tokenizer
        if check:
            _ = self._program

    @cached_property
    def _program(self) -> Program:
        from .sandbox import Program

        return Program(self.source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The text. To get ids use `tokens`: encoding this would read control tokens in what a message says."""
        talk, marks, variables = self._prepared(messages, tools, extra)
        return marks.without(self._text(talk, marks, add_generation_prompt, variables))

    def tokens(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> list[int]:
        """The ids, with one BOS where the template or the tokenizer has one."""
        talk, marks, variables = self._prepared(messages, tools, extra)
        text, _ = _spans(self._text(talk, marks, add_generation_prompt, variables), marks)
        return self._ids(text, marks)

    def training(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        answers: Collection[int] | None = None,
        **extra: Any,
    ) -> tuple[list[int], list[int]]:
        """The ids, and for each 1 where the assistant wrote it, its end token included, else 0.

        What the assistant wrote is what the template's {% generation %} blocks hold; without them, what follows the
        prompt that each answer would have been given. `answers`: the places of the assistant's messages that count;
        None is all of them.
        """
        talk, marks, variables = self._prepared(messages, tools, extra)
        text, spans = _spans(self._text(talk, marks, False, variables), marks)
        own = [i for i, message in enumerate(talk) if message["role"] == "assistant"]
        wanted = own if answers is None else sorted(set(answers))
        if strange := set(wanted) - {*own}:
            raise ChatError(f"Message {min(strange)} is to be learnt and is not the assistant's; its are {own}.")
        told = bool(spans)
        if not told:
            spans = [self._answer(talk, i, text, marks, variables) for i in wanted]
        elif wanted != own:
            spans = self._chosen(spans, wanted, talk, text, marks, variables)
        both = [place for span in spans for place in span]
        ids, places = self.tokenizer.located(text, both, bos=self.tokenizer.adds_bos, mark=marks.broken)
        mask = [0] * len(ids)
        for first, place in zip(places[::2], places[1::2], strict=True):
            last = self._to_end(ids, first, place, told)
            mask[first:last] = [1] * (last - first)
        return ids, mask

    # Text

    def _prepared(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, extra: Mapping[str, Any]
    ) -> tuple[list[dict[str, Any]], _Marks, dict[str, Any]]:
        """Messages and variables as plain data with every control token broken, and the marks that break them."""
        talk = [self._message(message, i) for i, message in enumerate(_listed(messages))]
        variables = {"tools": list(tools) if tools is not None else None, "documents": None, **extra}
        variables = _plain(variables, "a variable of the template")
        marks = _unused(_strings([talk, variables]))
        talk = [self._broken(message, marks.broken) for message in talk]
        return talk, marks, {**self.tokenizer.special_texts, **self._broken(variables, marks.broken)}

    def _message(self, message: Message, place: int) -> dict[str, Any]:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise ChatError(
                f"Message {place} should be an object with a role, one of {', '.join(ROLES)}, and a content; "
                f"got {str(message)[:100]}."
            )
        found: dict[str, Any] = _plain(dict(message), f"message {place}")
        if role == "developer" and "developer" not in self.source:
            found["role"] = "system"
        found["content"] = _content(found, place)
        if found.get("tool_calls"):
            found["tool_calls"] = [_tool_call(call) for call in found["tool_calls"]]
        return found

    def _text(self, talk: Sequence[dict[str, Any]], marks: _Marks, prompt: bool, variables: Mapping[str, Any]) -> str:
        """The template's text; where it has no place for system messages, they go before the next user's."""

        def run(talk: Sequence[dict[str, Any]]) -> str:
            given = {**variables, "messages": list(talk), "add_generation_prompt": prompt}
            return self._program.render(given, (marks.start, marks.end))

        systems = [i for i, message in enumerate(talk) if message["role"] == "system"]
        if not systems:
            return run(talk)
        try:
            text = run(talk)
        except ChatError:
            return run(_merged(talk))
        lost = [i for i in systems if (talk[i]["content"] or "").strip() not in text]
        if any(_same(run, text, _with(talk, i, content=marks.broken)) for i in lost):
            return run(_merged(talk))
        return text

    def _broken(self, value: Any, mark: str) -> Any:
        """The value with a mark between the characters of every control token that its strings spell."""
        if isinstance(value, str):
            parts = self._control.split(value)
            return "".join(part if isinstance(part, str) else mark.join(self._control_texts[part]) for part in parts)
        if isinstance(value, dict):
            return {self._broken(key, mark): self._broken(each, mark) for key, each in value.items()}
        return [self._broken(each, mark) for each in value] if isinstance(value, list) else value

    @cached_property
    def _control(self) -> Matcher:
        return Matcher({text: token for text, token in self.tokenizer.control.items() if len(text) > 1})

    @cached_property
    def _control_texts(self) -> dict[int, str]:
        return {token: text for text, token in self.tokenizer.control.items()}

    # Ids

    def _ids(self, text: str, marks: _Marks) -> list[int]:
        return self.tokenizer.encode(text, special=True, bos=self.tokenizer.adds_bos, mark=marks.broken)

    def _answer(
        self, talk: list[dict[str, Any]], place: int, text: str, marks: _Marks, variables: Mapping[str, Any]
    ) -> tuple[int, int]:
        """Where one answer starts and ends in the text of the whole conversation."""

        def length(talk: list[dict[str, Any]], prompt: bool) -> int | None:
            """Characters that a shorter conversation takes, if the whole begins with them."""
            try:
                found = _spans(self._text(talk, marks, prompt, variables), marks)[0] if talk else ""
            except ChatError:
                return None
            return len(found) if found and text.startswith(found) else None

        start, end = length(talk[:place], True), length(talk[: place + 1], False)
        if start is not None and end is not None:
            return start, end
        # The template writes history otherwise than a prompt: what changes with the answer is the answer.
        other = _with(talk, place, content=marks.broken, tool_calls=None)
        other_text = _spans(self._text(other, marks, False, variables), marks)[0]
        first = common(text, other_text)
        return first, len(text) - common(text[first:][::-1], other_text[first:][::-1])

    def _chosen(
        self,
        spans: list[tuple[int, int]],
        wanted: Sequence[int],
        talk: list[dict[str, Any]],
        text: str,
        marks: _Marks,
        variables: Mapping[str, Any],
    ) -> list[tuple[int, int]]:
        """The spans of some answers, of those that a template has marked."""
        own = [i for i, message in enumerate(talk) if message["role"] == "assistant"]
        if len(spans) == len(own):
            return [span for i, span in zip(own, spans, strict=True) if i in wanted]
        found = [self._answer(talk, i, text, marks, variables) for i in wanted]
        return [span for span in spans if any(start <= span[0] < end for start, end in found)]

    def _to_end(self, ids: list[int], first: int, last: int, told: bool) -> int:
        """The end of an answer's ids: after its end token. One that follows, with only spaces between, is its own."""
        ends = self.tokenizer.ends
        inside = next((i + 1 for i in range(last - 1, first - 1, -1) if ids[i] in ends), None)
        if inside is not None:
            return last if told else inside
        after = last
        while after < len(ids) and ids[after] not in ends and not self.tokenizer.piece(ids[after]).strip():
            after += 1
        return after + 1 if after < len(ids) and ids[after] in ends else last


# Formats of families


def needed(template: Template | None) -> Template:
    """A model's template. Raises ChatError where it has none."""
    if template is None:
        raise ChatError(
            "A conversation was given, and this model has no chat template: it was probably not tuned to chat. "
            "Give the prompt as one text, or load an instruction-tuned model."
        )
    return template


def builtin(name: str) -> str:
    """The source of a format in templates/. Raises ChatError for a name that is not there."""
    if name not in builtins():
        raise ChatError(f"There is no chat format {name!r}; there are {', '.join(builtins())}.")
    source = (_folder() / f"{name}.jinja").read_text("utf-8")
    return re.sub(r'{% include "(\w+)" %}\n?', lambda match: builtin(match[1]), source)


def builtins() -> list[str]:
    """The names of the formats in templates/."""
    return sorted(file.name.removesuffix(".jinja") for file in _folder().iterdir() if file.name.endswith(".jinja"))


def _folder() -> Traversable:
    from importlib.resources import files

    return files(__package__) / "templates"


# Messages


def _listed(messages: Any) -> Sequence[Any]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ChatError(
            "A conversation is a list of at least one message, each with a role and a content; "
            f"got {str(messages)[:100] or 'an empty text'}."
        )
    return messages


def _content(message: dict[str, Any], place: int) -> str | None:
    """The text of a message; None only where tool calls stand for it."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(_part(part, place) for part in content)
    if content is None and message["role"] == "assistant" and message.get("tool_calls"):
        return None
    if not isinstance(content, str):
        raise ChatError(
            f"The content of message {place} should be a text or a list of text parts; got {str(content)[:100]}."
        )
    return content


def _part(part: Any, place: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise ChatError(
            f"Message {place} has a content part of the type {kind!r}; only {{'type': 'text', 'text': …}} can be read. "
            "Leave the part out, or use a model that reads it."
        )
    text: str = part["text"]
    return text


def _tool_call(call: Any) -> Any:
    """A call whose arguments are an object, as templates expect; OpenAI's interface sends them as JSON in a string."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _tool_call(call["function"])}
    if isinstance(arguments := call.get("arguments"), str):
        try:
            return {**call, "arguments": json.loads(arguments)}
        except ValueError:
            return call
    return call


def _merged(talk: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each system text before that of the next user turn, with a blank line between."""
    merged: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in talk:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif message["role"] == "user" and waiting:
            merged.append({**message, "content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            merged.append(message)
    if waiting:
        raise ChatError(
            "This chat template has no system role, so its text goes before the next user's; here none follows. "
            "Add a user message, or leave the system message out."
        )
    return merged


def _with(talk: Sequence[dict[str, Any]], place: int, **changes: Any) -> list[dict[str, Any]]:
    """The conversation with one message changed; a change to None leaves the key out."""
    changed = {key: value for key, value in {**talk[place], **changes}.items() if value is not None}
    return [*talk[:place], changed, *talk[place + 1 :]]


def _same(run: Any, text: str, talk: list[dict[str, Any]]) -> bool:
    try:
        return bool(run(talk) == text)
    except ChatError:
        return False


def _plain(value: Any, where: str) -> Any:
    """The value rebuilt of plain JSON types, so that a template gets no object with methods of its own."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each, where) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, where) for each in value]
    raise ChatError(
        f"Chat templates are given texts, numbers, lists and objects; {where} holds a {type(value).__name__}. "
        "Turn it into one of these."
    )


# Marks


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings([*value, *value.values()])
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _unused(texts: Iterable[str]) -> _Marks:
    used = {character for text in texts for character in NONCHARACTERS if character in text}
    free = [character for character in NONCHARACTERS if character not in used][:3]
    if len(free) < 3:
        raise ChatError(
            "The messages use all of the characters U+FDD0 to U+FDEF, which are no characters. Remove some."
        )
    return _Marks(*free)


def _spans(text: str, marks: _Marks) -> tuple[str, list[tuple[int, int]]]:
    """The text without the marks of answers, and where these stood."""
    parts, spans, length, start = [], [], 0, 0
    for part in re.split(f"([{marks.start}{marks.end}])", text):
        if part == marks.start:
            start = length
        elif part == marks.end:
            spans.append((start, length))
        else:
            parts.append(part)
            length += len(part)
    return "".join(parts), spans
