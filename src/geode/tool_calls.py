"""Tool calls in what a model wrote, whole or as it comes.

Which model wrote it is not known here: each way of spelling is one row of a table.

    text ──> CallReader.push ──> texts, and for each call its Name, then its Arguments as they come
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

_JSON = json.JSONDecoder()


@dataclass(frozen=True)
class Spelling:
    """JSON between two texts: objects with a name and arguments, alone, in a row, or in a list.

    opens     what stands before; "" is the beginning of the text
    closes    any of these may stand after
    must      whether one of them, or the end of the text, must
    divides   stands between a bare name and its arguments, where calls may be written so too
    """

    name: str
    opens: str
    closes: tuple[str, ...] = ()
    must: bool = False
    divides: str = ""

    @property
    def before(self) -> re.Pattern[str]:
        return re.compile((re.escape(self.opens) or r"\A") + r"\s*")

    @property
    def after(self) -> re.Pattern[str]:
        closed = "|".join([*map(re.escape, self.closes), r"\Z"])
        return re.compile(rf"\s*({closed})" if self.must else rf"(\s*({closed}))?")


SPELLINGS = (
    Spelling("hermes", "<tool_call>", ("</tool_call>",), must=True),  # Hermes, Qwen
    Spelling("mistral", "[TOOL_CALLS]", divides="[ARGS]"),
    Spelling("phi", "<|tool_call|>", ("<|/tool_call|>",)),
    Spelling("llama", "<|python_tag|>", ("<|eom_id|>", "<|eot_id|>")),
    Spelling("bare", "", must=True),  # Llama 3.1 and 3.2, and what is left where control tokens are not shown
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
    opens, closes, at = spelling.before, spelling.after, 0
    while match := opens.search(text, at):
        calls, end = _calls(text, match.end())
        close = closes.match(text, end)
        at = max(match.end(), match.start() + 1)
        if calls and close:
            at = close.end()
            yield match.start(), at, calls
        if at > len(text) or not spelling.opens:
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


# Calls as they come


@dataclass(frozen=True)
class Name:
    """A call begins: its name."""

    name: str


@dataclass(frozen=True)
class Arguments:
    """More of the last call's arguments: a part of a JSON text."""

    text: str


Part = str | Name | Arguments
SPACE = re.compile(r"\s*")
BETWEEN = re.compile(r"[\s,;]*")


class CallReader:
    """Finds the calls in a text that comes in pieces. However it is cut, the parts joined are the same.

    A call is told of as soon as its name is known and its arguments begin; so what breaks off after that is a call
    whose arguments are not whole. Until then nothing is lost: what turns out to be no call, or calls none of `names`,
    is text. White space around calls is dropped.
    """

    def __init__(self, names: Collection[str]):
        self._names = frozenset(names)
        self._held = ""  # not yet decided
        self._space = ""  # white space that is dropped where a call follows
        self._spelling: Spelling | None = None  # of the block that we are in, None in text
        self._block = _Block()
        self._said = self._called = False

    def push(self, text: str) -> list[Part]:
        """What is certain now."""
        self._held += text
        return list(self._joined(self._read(last=False)))

    def finish(self, cut: bool = False, must: bool = False) -> list[Part]:
        """The rest: no more text will come.

        `cut`: the text broke off, so what had begun to be a call, and has no name yet, is not told of. What only looks
        like a bare call may be an answer in JSON and stays, unless the text `must` be calls; so does a lone "<".
        """
        if cut and self._is_begun(must):
            self._held, self._space, self._spelling, self._block = "", "", None, _Block()
        parts = [*self._read(last=True), *self._text(self._held)]
        if self._space and not self._called:
            parts.append(self._space)
        self._held = self._space = ""
        return list(self._joined(iter(parts)))

    def _is_begun(self, must: bool) -> bool:
        """Whether what is held is a part of calls, and nothing else."""
        spelling = self._spelling
        if spelling is not None:
            return must or bool(spelling.opens) or self._called
        return must or self._begun(self._held) > 1

    @staticmethod
    def _joined(parts: Iterator[Part]) -> Iterator[Part]:
        """Parts of one kind in a row as one."""
        waiting: Part | None = None
        for part in parts:
            if isinstance(waiting, str) and isinstance(part, str):
                waiting += part
            elif isinstance(waiting, Arguments) and isinstance(part, Arguments):
                waiting = Arguments(waiting.text + part.text)
            else:
                if waiting is not None:
                    yield waiting
                waiting = part
        if waiting is not None:
            yield waiting

    def _read(self, last: bool) -> Iterator[Part]:
        """Goes on until more text is needed: nothing of what is held can be told then."""
        while True:
            before = (self._spelling, len(self._held), self._block.stage)
            yield from self._in_text(last) if self._spelling is None else self._in_block(self._spelling, last)
            if before == (self._spelling, len(self._held), self._block.stage):
                return

    # Text

    def _in_text(self, last: bool) -> Iterator[Part]:
        """Text up to where a block opens, or where one may."""
        if not self._said and not self._called:
            start = SPACE.match(self._held).end()  # type: ignore[union-attr]
            if (
                start < len(self._held)
                and self._held[start] in "{["
                and not self._opens(rest := self._held[start:])
                and not self._may_open(rest)
            ):
                yield from self._open(SPELLINGS[-1], start, start)
                return
        found = [(at, each) for each in SPELLINGS if each.opens and (at := self._held.find(each.opens)) >= 0]
        if found:
            at, spelling = min(found, key=lambda pair: pair[0])
            yield from self._open(spelling, at, at + len(spelling.opens))
            return
        cut = len(self._held) if last else len(self._held) - self._begun(self._held)
        shown, self._held = self._held[:cut], self._held[cut:]
        yield from self._text(shown)

    @staticmethod
    def _opens(text: str) -> bool:
        """Whether a text begins with what opens a block."""
        return any(each.opens and text.startswith(each.opens) for each in SPELLINGS)

    @staticmethod
    def _may_open(text: str) -> bool:
        """Whether more must come before it is known what the text begins with."""
        return any(each.opens.startswith(text) and text != each.opens for each in SPELLINGS)

    @staticmethod
    def _begun(text: str) -> int:
        """Length of the longest end of the text with which something that opens a block begins."""
        longest = max(len(each.opens) for each in SPELLINGS) - 1
        ends = range(min(longest, len(text)), 0, -1)
        return next((n for n in ends if any(each.opens.startswith(text[-n:]) for each in SPELLINGS)), 0)

    def _open(self, spelling: Spelling, start: int, end: int) -> Iterator[Part]:
        yield from self._text(self._held[:start])
        self._spelling = spelling
        self._block = _Block(raw=self._held[start:end])
        self._held = self._held[end:]

    def _text(self, text: str) -> Iterator[Part]:
        """Text to be shown, but for the white space at its end, and at the beginning where calls came first."""
        if self._called and not self._said:
            text = text.lstrip()
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._said = True
            yield shown

    # Blocks

    def _in_block(self, spelling: Spelling, last: bool) -> Iterator[Part]:
        if self._block.stage == "between":
            yield from self._between(spelling, last)
        elif self._block.stage == "name":
            yield from self._named(spelling, last)
        else:
            yield from self._in_object(spelling, last)

    def _between(self, spelling: Spelling, last: bool) -> Iterator[Part]:
        """Before a call of a block, or after the last."""
        block = self._block
        start = (BETWEEN if block.calls else SPACE).match(self._held).end()  # type: ignore[union-attr]
        rest = self._held[start:]
        if not last and (not rest or self._may_open(rest)):
            return
        if rest[:1] == "[" and not block.listed and not block.calls and not self._opens(rest):
            block.listed = True
            self._skip(start + 1)
        elif rest[:1] == "{":
            self._skip(start)
            block.stage, block.scan = "object", _Scan()
        elif rest[:1] == "]" and block.listed:
            block.listed = False
            self._skip(start + 1)
        elif block.calls:
            yield from self._close(spelling, rest, last)
        elif spelling.divides and re.match(r"[\w.-]", rest):
            self._skip(start)
            block.stage = "name"
        else:
            yield from self._give_up()

    def _skip(self, count: int) -> None:
        self._block.raw += self._held[:count]
        self._held = self._held[count:]

    def _close(self, spelling: Spelling, rest: str, last: bool) -> Iterator[Part]:
        """After the calls of a block: what closes it is dropped, anything else is text."""
        for close in spelling.closes:
            if rest.startswith(close):
                self._held, self._spelling = rest[len(close) :], None
                return
            if close.startswith(rest) and not last:
                return
        self._spelling = None
        self._held = self._held if rest else ""
        yield from ()

    def _named(self, spelling: Spelling, last: bool) -> Iterator[Part]:
        """A bare name, what divides it from its arguments, and these."""
        at = self._held.find(spelling.divides)
        name = self._held[: at if at >= 0 else None].split("[CALL_ID]")[0].strip()
        rest = self._held[at + len(spelling.divides) :].lstrip() if at >= 0 else ""
        if at >= 0 and name in self._names and rest.startswith("{"):
            yield self._begin(name)
            self._block.stage, self._block.scan = "object", _Scan(arguments=True)
            self._held = rest
        elif last or rest or len(self._held) > 256:
            yield from self._give_up()

    def _in_object(self, spelling: Spelling, last: bool) -> Iterator[Part]:
        """An object that is a call, or whose beginning may become one."""
        scan, block = self._block.scan, self._block
        scan.text += self._held
        self._held = ""
        while (found := scan.next()) is not None:
            if found == "key" and not spelling.opens and not scan.named and scan.key not in KEYS:
                yield from self._give_up()
            elif found == "arguments" and not scan.told and (name := scan.head()) is not None:
                if name in self._names:
                    scan.told, scan.given = True, scan.at - 1
                    yield self._begin(name)
                else:
                    yield from self._give_up()
            elif found == "end":
                yield from self._whole()
            elif found == "bad":
                yield from self._broken() if scan.told else self._give_up()
            if block.stage != "object" or self._spelling is None:
                return
        yield from self._given()
        if last:
            yield from () if scan.told else self._give_up()

    def _begin(self, name: str) -> Name:
        self._space = ""
        self._called = True
        self._block.calls += 1
        return Name(name)

    def _given(self) -> Iterator[Part]:
        """The arguments that have come since the last time."""
        scan = self._block.scan
        if scan.told:
            end = scan.closed or scan.at
            if end > scan.given:
                yield Arguments(scan.text[scan.given : end])
                scan.given = end

    def _whole(self) -> Iterator[Part]:
        """After an object: a call that is told of by now, or one whose name comes last, or none."""
        scan, block = self._block.scan, self._block
        yield from self._given()
        if not scan.told:
            call = scan.call()
            if call is None or call["name"] not in self._names:
                yield from self._give_up()
                return
            yield self._begin(call["name"])
            yield Arguments(json.dumps(call["arguments"], ensure_ascii=False))
        block.raw = ""
        block.stage, self._held = "between", scan.text[scan.at :]

    def _broken(self) -> Iterator[Part]:
        """What is no JSON after a call has begun: the call stays as it is, the rest is text."""
        scan = self._block.scan
        scan.at -= 1
        yield from self._given()
        self._spelling, self._held = None, scan.text[scan.at :]

    def _give_up(self) -> Iterator[Part]:
        """No call: what opened the block is text, and what follows is looked at again."""
        block = self._block
        again = block.raw + (block.scan.text if block.stage == "object" else "") + self._held
        opened = self._spelling.opens if self._spelling and again.startswith(self._spelling.opens) else ""
        count = len(opened) or 1
        self._spelling, self._block = None, _Block()
        self._said = True
        self._held = again[count:]
        yield from self._text(again[:count])


KEYS = frozenset({"id", "type", "function", "name", "arguments", "parameters"})
"""What an object that calls may begin with, where nothing but its beginning tells that it does."""
STRUCTURE = re.compile(r'["{}\[\]:,]|[^\s\w+.\-"{}\[\]:,]')
IN_STRING = re.compile(r'["\\]')
PAIRS = {"}": "{", "]": "["}


class _Scan:
    """A JSON object that comes in pieces: its keys, its brackets, and where the arguments of a call begin and end.

    Only a character that JSON has nowhere is taken for an error.
    """

    def __init__(self, arguments: bool = False):
        self.text = ""
        self.at = 0  # all before is read
        self.key = ""  # of the outermost object, the last
        self.told = arguments  # whether the call was told of; its arguments are the whole object, or in it
        self.given = 0  # arguments before are given out
        self.closed = 0  # where the arguments end
        self.named = False
        self._bare = arguments
        self._stack: list[str] = []
        self._string = -1  # where a string begins
        self._last = ""

    def next(self) -> str | None:
        """Reads on to the next "key", the beginning of "arguments", an "end" or something "bad"; None: needs more."""
        while self.at < len(self.text):
            if self._string >= 0:
                if not self._in_string():
                    return None
                continue
            match = STRUCTURE.search(self.text, self.at)
            if match is None:
                self.at = len(self.text)
                return None
            self.at = match.end()
            found = self._structure(match[0])
            if found:
                return found
        return None

    def head(self) -> str | None:
        """The name, where it stands before the arguments that begin here."""
        try:
            name = json.loads(self.text[: self.at - 1] + "0}").get("name")
        except (ValueError, RecursionError):
            return None
        return name if isinstance(name, str) else None

    def call(self) -> dict[str, Any] | None:
        """The call that the whole object is."""
        try:
            return _call(json.loads(self.text[: self.at]))
        except (ValueError, RecursionError):
            return None

    def _in_string(self) -> bool:
        """Reads on in a string; whether there is more."""
        match = IN_STRING.search(self.text, self.at)
        if match is None:
            self.at = len(self.text)
        elif match[0] == "\\":
            if match.end() == len(self.text):
                self.at = match.start()
                return False
            self.at = match.end() + 1
        else:
            self.at = match.end()
            if len(self._stack) == 1:
                self._last = self.text[self._string : self.at]
            self._string = -1
        return match is not None

    def _structure(self, mark: str) -> str | None:
        depth = len(self._stack)
        if mark == '"':
            self._string = self.at - 1
        elif mark in "{[":
            self._stack.append(mark)
            begins = depth == 1 and mark == "{" and self.key in ("arguments", "parameters") and not self._bare
            return "arguments" if begins else None
        elif mark in PAIRS:
            return self._shut(mark)
        elif mark == ":" and depth == 1:
            self.key = self._last.strip('"')
            self.named |= self.key == "name"
            return "key"
        elif mark not in ":,":
            return "bad"
        return None

    def _shut(self, mark: str) -> str | None:
        if self._stack.pop() != PAIRS[mark]:
            return "bad"
        if len(self._stack) == (0 if self._bare else 1) and self.told and not self.closed:
            self.closed = self.at
        return None if self._stack else "end"


@dataclass
class _Block:
    """Where we are among the calls between what opens and what closes them."""

    raw: str = ""  # what was read since the last call, to be text where no call comes
    stage: str = "between"  # or "name", or "object"
    calls: int = 0
    listed: bool = False

    def __post_init__(self) -> None:
        self.scan = _Scan()
