"""JSON to rows: one object a line, or one document that holds them.

What the objects' names mean is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ...errors import FormatError
from .lines import Input, Row, filled, joined, lines, said

# Lists that are part of one row, and not the rows of a file
OF_ONE_ROW = ("messages", "conversations", "conversation", "history", "tools", "prompt", "chosen", "rejected")


def json_lines(file: Input) -> Iterator[Row]:
    """One object a line; a list of objects that is called .jsonl is read as the document that it is."""
    found = filled(lines(file))
    first = next(found, (0, ""))
    if first[1].lstrip().startswith("["):
        yield from _document(file)
        return
    for number, text in chain([first] if first[0] else [], found):
        yield _row(_parsed(text.rstrip("\r\n"), file.name, number), f"{file.name}:{number}")


def json_document(file: Input) -> Iterator[Row]:
    """A list of objects, an object with one such list, or JSON lines that are called .json."""
    found = filled(lines(file))
    first, second = next(found, None), next(found, None)
    if first is None:
        return
    if second is not None and _is_object(first[1]):
        yield from json_lines(file)
    else:
        yield from _document(file)


def _document(file: Input) -> Iterator[Row]:
    value = _parsed(joined(file), file.name)
    if isinstance(value, dict):
        value = _only_list(value, file)
    if not isinstance(value, list):
        raise FormatError(f"{file.name} holds {said(value)}; expected a list of objects, one for each row.")
    for number, each in enumerate(value, 1):
        yield _row(each, f"{file.name}:{number}")


def _only_list(value: dict[str, Any], file: Input) -> list[Any]:
    """The rows in {"data": [...]}; an object without a list of objects is itself the only row."""
    lists = [key for key, each in value.items() if _is_rows(each) and key not in OF_ONE_ROW]
    if len(lists) > 1:
        raise FormatError(
            f"{file.name} is an object with several lists: {', '.join(lists)}. Expected a list of objects, or an "
            "object with one such list. Put the list that is meant into a file of its own."
        )
    return list(value[lists[0]]) if lists else [value]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(text: str, name: str, number: int | None = None) -> Any:
    """The value of a JSON text; `number` is its line, where it is one line of several."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = number or getattr(error, "lineno", 1)
        place = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        what = getattr(error, "msg", None) or str(error)
        advice = (
            "Each line should be one whole object; a document over several lines should be called .json."
            if number
            else "Mend or write the file again; expected a list of objects."
        )
        raise FormatError(f"{name}:{line} is not JSON{place}: {what}. {advice}") from None


def _row(value: Any, source: str) -> Row:
    if not isinstance(value, dict):
        raise FormatError(
            f"{source} is {said(value)}; expected an object whose names say what it holds, "
            'as in {"prompt": "…", "completion": "…"}.'
        )
    return Row(value, source)
