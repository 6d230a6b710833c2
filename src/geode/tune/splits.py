"""Which of many files are the data, and which of these belong to a split, by their names alone.

Where the files lie is not known here: directories and repositories of the hub go through the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import ModelNotFound
from . import readers

# Names by which files tell their split: huggingface.co/docs/datasets/repository_structure
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
NO_DATA = re.compile(
    r"(dataset_infos?|state|dataset_dict)\.json|(README|LICEN[SC]E|NOTICE|CHANGELOG|CITATION)\b.*", re.I
)


def choose(names: Iterable[str], split: str | None, place: str) -> list[str]:
    """The files of a split; without one those of "train", else those that name no split. Raises ModelNotFound."""
    names = list(names)
    data = data_files(names)
    if not data:
        raise ModelNotFound(
            f"{place} has no file of data. Expected names that end in {', '.join(readers.ENDINGS)}; "
            f"it has: {some(names) or 'nothing'}."
        )
    wanted = split or "train"
    chosen = [name for name in data if wanted in _words(name, r"[^A-Za-z0-9_]+")]
    chosen = chosen or [name for name in data if split_of(name) == _canonical(wanted)]
    if not chosen and split is None:
        chosen = [name for name in data if split_of(name) is None]
    if not chosen:
        there = sorted({found for name in data if (found := split_of(name))})
        told = f"It has the splits {', '.join(there)}" if there else "No name of a file tells a split"
        raise ModelNotFound(
            f"{place} has no split '{wanted}'. {told}; its files are {some(data)}. "
            f"Name a split that is there after a colon, as in {_bare(place, split)}:{there[0] if there else 'train'}, "
            "or name one file."
        )
    return chosen


def data_files(names: Iterable[str]) -> list[str]:
    """The files that hold rows; text files only where there is no other, because they tend to tell about the data."""
    known = [name for name in sorted(names) if not _hidden(name) and readers.readable(name)]
    rows = [name for name in known if readers.kind(name) != "text"]
    return rows or known


def split_of(name: str) -> str | None:
    """The split that a file's name or folder tells."""
    words = _words(name, r"[^A-Za-z0-9]+")
    return next((split for split, spelt in WORDS.items() if words & {*spelt}), None)


def some(names: Iterable[str]) -> str:
    """Names for a message: the first twenty, and how many more."""
    names = sorted(names)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _words(name: str, between: str) -> set[str]:
    return {word.lower() for word in re.split(between, name)}


def _canonical(split: str) -> str | None:
    return next((name for name, spelt in WORDS.items() if split.lower() in spelt), None)


def _hidden(name: str) -> bool:
    parts = name.split("/")
    return any(part.startswith((".", "_")) or not part for part in parts) or bool(NO_DATA.fullmatch(parts[-1]))


def _bare(place: str, split: str | None) -> str:
    return place.removesuffix(f":{split}")
