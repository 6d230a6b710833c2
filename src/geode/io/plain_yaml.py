"""A small part of YAML: what NeMo writes its configurations in. Nested names, lists, texts, numbers; nothing else.

What the names mean is not known here. No tags, anchors or documents: a line that is more than this is an error.

    name: text          numbers:            nested:             flow: [1, 2.5, null]
    quoted: "a: b"      - 1                   inner: true       # a comment
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from ..errors import FormatError

_NULLS = {"", "~", "null", "Null", "NULL"}
_TRUTHS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_ENTRY = re.compile(
    r"""(?P<key>"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s'"#&*!|>@`{\[?-][^#:]*?)\s*:(?:\s+(?P<value>.*))?"""
)
_PLAIN = re.compile(r"[A-Za-z_./][\w./-]*")
MAX_BRACKETS = 32  # in each other
MAX_TEXT = 10_000_000  # characters


def loads(text: str, what: str) -> dict[str, Any]:
    """The names of a text. Raises FormatError, with the line, for what is not of this part of YAML."""
    reader = _Reader(text, what)
    try:
        found = reader.block(0)
    except RecursionError:
        raise FormatError(f"{what} is nested deeper than any configuration.") from None
    if not isinstance(found, dict) or reader.lines:
        reader.fail("is not a list of names with values")
    return found


def dumps(value: Mapping[str, Any]) -> str:
    """The text of nested names, lists, texts and numbers."""
    return "".join(_written(value, ""))


class _Reader:
    """The lines that are left, as (number, indent, content)."""

    def __init__(self, text: str, what: str):
        if len(text) > MAX_TEXT:
            raise FormatError(f"{what} has {len(text)} characters, more than any configuration.")
        self.what = what
        self.number = 0
        self.lines = [found for i, line in enumerate(text.splitlines(), 1) if (found := self._line(i, line))][::-1]

    def fail(self, problem: str) -> NoReturn:
        raise FormatError(
            f"{self.what}, line {self.number}, {problem}. Of YAML, nested names, lists, texts and numbers are read "
            "here; write the value plainly."
        )

    def _line(self, number: int, line: str) -> tuple[int, int, str] | None:
        self.number = number
        if "\t" in line[: len(line) - len(line.lstrip())]:
            self.fail("is indented by a tab")
        content = line.strip()
        if not content or content[0] == "#" or content in ("---", "..."):
            return None
        return number, len(line) - len(line.lstrip()), content

    def block(self, indent: int) -> Any:
        """The names or the list that begin here, indented by `indent` or more."""
        if not self.lines:
            return {}
        self.number, depth, content = self.lines[-1]
        if depth < indent:
            return None
        return self._list(depth) if content == "-" or content.startswith("- ") else self._names(depth)

    def _names(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.lines and self.lines[-1][1] == depth:
            self.number, _, content = self.lines[-1]
            if content == "-" or content.startswith("- "):
                break
            entry = _ENTRY.fullmatch(content)
            if entry is None:
                self.fail(f"is {content!r:.60}, and a name with a value was expected")
            self.lines.pop()
            key = str(self._scalar(entry["key"]))
            if key in found:
                self.fail(f"gives {key!r:.60} a second time")
            found[key] = self._value(_without_comment(entry["value"] or ""), depth)
        if self.lines and self.lines[-1][1] > depth:
            self.number = self.lines[-1][0]
            self.fail("is indented deeper than its neighbours")
        return found

    def _value(self, text: str, depth: int) -> Any:
        """What stands behind a name: on its line, or indented below it; a list may begin right below the name."""
        if text:
            return self._scalar(self._continued(text, depth))
        if self.lines and self.lines[-1][1] == depth and (self.lines[-1][2] + " ").startswith("- "):
            return self._list(depth)
        return self.block(depth + 1) if self.lines and self.lines[-1][1] > depth else None

    def _continued(self, text: str, depth: int) -> str:
        while self.lines and self.lines[-1][1] > depth:
            text += " " + _without_comment(self.lines.pop()[2])
        return text

    def _list(self, depth: int) -> list[Any]:
        found = []
        while self.lines and self.lines[-1][1] == depth and (self.lines[-1][2] + " ").startswith("- "):
            self.number, _, content = self.lines.pop()
            rest = content[1:].strip()
            if _ENTRY.fullmatch(rest) or rest.startswith("- "):
                inner = depth + len(content) - len(rest)
                self.lines.append((self.number, inner, rest))
                found.append(self.block(inner))
            else:
                found.append(self._value(_without_comment(rest), depth))
        return found

    def _scalar(self, text: str) -> Any:
        if text[:1] in ("&", "*", "!", "|", ">", "%", "@", "`"):
            self.fail(f"has the value {text!r:.60}, which is more than a text or a number")
        if text[:1] in ("[", "{"):
            return self._flow(text)
        if text[:1] == '"':
            return self._json(text)
        if text[:1] == "'":
            if len(text) < 2 or text[-1] != "'":
                self.fail("has a text without its closing quote")
            return text[1:-1].replace("''", "'")
        return _plain(text)

    def _json(self, text: str) -> Any:
        try:
            return json.loads(re.sub(r"(?<!\\)((?:\\\\)*)\\x([0-9a-fA-F]{2})", r"\1\\u00\2", text))
        except (ValueError, RecursionError):
            self.fail(f"has the text {text!r:.60}, which cannot be read")

    def _flow(self, text: str) -> Any:
        if text[-1] != {"[": "]", "{": "}"}[text[0]]:
            self.fail(f"has {text!r:.60} without its closing bracket")
        parts = _parts(text[1:-1])
        if parts is None:
            self.fail("has brackets in brackets, deeper than any configuration")
        if text[0] == "[":
            return [self._scalar(part) for part in parts]
        entries = [_ENTRY.fullmatch(part) for part in parts]
        if None in entries:
            self.fail(f"has {text!r:.60}, and names with values were expected")
        return {str(self._scalar(one["key"])): self._scalar((one["value"] or "").strip()) for one in entries if one}


def _without_comment(text: str) -> str:
    quote, before = "", " "
    for i, letter in enumerate(text):
        if letter == "#" and not quote and before == " ":
            return text[:i].strip()
        doubled = letter == before == "'"  # an apostrophe in single quotes
        if letter in "'\"" and (letter == quote or (not quote and (doubled or before in " ,[{"))) and before != "\\":
            quote = "" if quote else letter
        before = letter
    return text.strip()


def _plain(text: str) -> Any:
    if text in _NULLS:
        return None
    if text in _TRUTHS:
        return _TRUTHS[text]
    if _INTEGER.fullmatch(text) and len(text) < 40:
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _parts(text: str) -> list[str] | None:
    """What commas outside of brackets and quotes separate; None for what is nested without end."""
    found, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        depth += (letter in "[{") - (letter in "]}") if not quote else 0
        if depth > MAX_BRACKETS:
            return None
        if letter == "," and not depth and not quote:
            found.append("")
        else:
            found[-1] += letter
    parts = [part.strip() for part in found]
    return parts if parts != [""] else []


def _written(value: Any, indent: str) -> list[str]:
    if isinstance(value, Mapping):
        return [line for key, inner in value.items() for line in _entry(f"{indent}{_text(str(key))}:", inner, indent)]
    return [line for inner in value for line in _entry(f"{indent}-", inner, indent)]


def _entry(head: str, value: Any, indent: str) -> list[str]:
    if isinstance(value, Mapping | list | tuple) and value:
        if head.endswith("-"):
            raise TypeError("Lists of lists or of names are not written; no configuration here has them.")
        return [f"{head}\n", *_written(value, indent + "  " * isinstance(value, Mapping))]
    return [f"{head} {_scalar(value)}\n"]


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text or "n" in text else text.replace("e", ".0e")  # YAML 1.1 takes 1e-05 for a text
    if isinstance(value, Mapping | list | tuple):
        return "{}" if isinstance(value, Mapping) else "[]"
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(value: str) -> str:
    """As it is where no reader could take it for anything else, else quoted."""
    return value if _PLAIN.fullmatch(value) and _plain(value) == value else json.dumps(value)
