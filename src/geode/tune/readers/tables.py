"""CSV and TSV to rows: a line of names, then cells, all of them texts.

What the names mean is not known here.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from typing import Literal

from ...errors import FormatError
from .lines import Input, Row, filled, lines

NAME_LENGTH = 80  # characters; what is longer is no name of a column but the first row of a table without a header
Quoting = Literal[0, 3]  # csv's QUOTE_MINIMAL and QUOTE_NONE
CELL_LIMIT = 2**31 - 1  # characters; csv's own limit of 131072 is less than a book


def comma_separated(file: Input) -> Iterator[Row]:
    """Cells between commas, semicolons or tabs, in quotation marks where they need them (RFC 4180)."""
    head = next((text for _, text in filled(lines(file))), "")
    delimiter = max(",;\t", key=head.count)  # the first of equals: spreadsheets of half of Europe write semicolons
    return _table(file, delimiter, csv.QUOTE_MINIMAL)


def tab_separated(file: Input) -> Iterator[Row]:
    """Spreadsheets quote tab-separated cells and iana.org/assignments/media-types does not: the file itself decides."""
    return _table(file, "\t", csv.QUOTE_MINIMAL if _quoted(file) else csv.QUOTE_NONE)


def _quoted(file: Input) -> bool:
    """Whether every quotation mark of a table reads as one that encloses a cell."""
    try:
        return len({len(cells) for _, cells in _cells(file, "\t", csv.QUOTE_MINIMAL)}) <= 1
    except FormatError:
        return False


def _table(file: Input, delimiter: str, quoting: Quoting) -> Iterator[Row]:
    rows = _cells(file, delimiter, quoting)
    first = next(rows, None)
    if first is None:
        return
    number, cells = first
    numbers = [str(i) for i in range(len(cells))]
    names = numbers if file.numbered else _header(cells, f"{file.name}:{number}")
    for number, cells in chain([first] if names != first[1] else [], rows):
        if len(cells) != len(names):
            raise FormatError(
                f"{file.name}:{number} has {len(cells)} cells where the first line has {len(names)}. "
                "Put cells that hold a separator or a line break in quotation marks."
            )
        yield Row(dict(zip(names, cells, strict=True)), f"{file.name}:{number}")


def _cells(file: Input, delimiter: str, quoting: Quoting) -> Iterator[tuple[int, list[str]]]:
    """The line on which a row starts, and its cells."""
    csv.field_size_limit(CELL_LIMIT)
    texts = (text for _, text in lines(file))
    reader = csv.reader(texts, delimiter=delimiter, quoting=quoting, strict=quoting != csv.QUOTE_NONE)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise FormatError(
            f"{file.name}:{start} is no row of a table: {error}. In a cell in quotation marks, write each "
            "quotation mark twice."
        ) from None


def _header(cells: list[str], where: str) -> list[str]:
    """The names of columns; one may be empty, as that of the numbers which pandas writes before its rows."""
    if len(set(cells)) == len(cells) and all(len(name) <= NAME_LENGTH for name in cells):
        return cells
    wrong = "two columns of one name" if len(set(cells)) < len(cells) else "a text where a column's name should be"
    raise FormatError(
        f"{where} should be the header of a table and has {wrong}: {', '.join(name[:30] for name in cells)}. "
        "Add a first line with the columns' names, or name columns by their numbers from 0 on, "
        'as in columns = {"prompt": "0", "completion": "1"}.'
    )
