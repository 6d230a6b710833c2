"""A recipe's data brought together: files read, rows recognised, examples set aside, documents made.

What a step holds of them is not known here.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, TokenizerError
from ..formats import Checkpoint
from . import shapes
from .card import DataFile
from .documents import Documents, prepare
from .examples import Example
from .recipe import Data, Recipe

if TYPE_CHECKING:
    from ..chat import Template
    from ..tokenizer import Tokenizer

PIECE = 1 << 22


@dataclass(frozen=True)
class Corpus:
    """Documents to learn from and to be measured on, and where all came from. `why`: what the files were taken for."""

    train: Documents
    valid: Documents | None
    files: Sequence[DataFile]
    why: str
    counts: Mapping[str, Any]

    def text(self) -> str:
        """What was found, in a few lines."""
        lines = [self.why, f"Training: {self.train.report.text()}"]
        if self.valid is not None:
            lines.append(f"Validation: {self.valid.report.text()}")
        return "\n".join(lines)


def words(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Template | None, Tokenizer]:
    """The chat template of a run (the recipe's, the checkpoint's own, or its family's), and the tokenizer.

    Raises OptionError, ChatError, TokenizerError.
    """
    from .. import chat

    name, tokenizer = recipe.data.template, checkpoint.tokenizer
    if tokenizer is None:
        raise TokenizerError(f"{checkpoint.path} came without a tokenizer, so text cannot be learnt. Add its files.")
    if name is None:
        source = checkpoint.template or (chat.builtin(str(checkpoint.chat)) if checkpoint.chat else None)
    elif name in chat.builtins():
        source = chat.builtin(name)
    elif Path(name).is_file():
        source = Path(name).read_text(encoding="utf-8")
    else:
        raise OptionError(
            f"data.template should be a Jinja file or one of {', '.join(chat.builtins())}; there is no {name!r}."
        )
    return None if source is None else chat.Template(source, tokenizer), tokenizer


def gather(recipe: Recipe, tokenizer: Tokenizer, template: Template | None) -> Corpus:
    """Reads a recipe's data whole. Raises what reading, recognising and rendering raise."""
    data = recipe.data
    reading = shapes.Reading(*data.train, shape=data.shape, columns=data.columns)
    examples = list(islice(reading, data.limit))
    valid: list[Example] = []
    readings = [reading]
    if data.valid:
        readings.append(shapes.Reading(*data.valid, shape=data.shape, columns=data.columns))
        valid = list(readings[1])
    elif data.holdout:
        examples, valid = _parted(examples, data.holdout, recipe.run.seed)
    made = _documents(data, examples, tokenizer, template)
    measured = _documents(data, valid, tokenizer, template) if valid else None
    told = Counter(example.source.rpartition(":")[0] for example in (*examples, *valid))
    files = [
        DataFile(file.name, _digest(file.path), told[file.name], use)
        for use, one in zip(("training", "validation"), readings, strict=False)
        for file in one.files
    ]
    counts = {"training": made.report.as_dict()} | ({"validation": measured.report.as_dict()} if measured else {})
    return Corpus(made, measured, files, _told(readings), counts)


def _told(readings: Sequence[shapes.Reading]) -> str:
    """What each file was taken for, and which rows were refused."""
    lines = [f"{name} is {shape.why}." for one in readings for name, shape in one.shapes.items()]
    return "\n".join([*lines, *(text for one in readings if (text := one.summary()))])


def _parted(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Examples to learn from and examples set aside, by their source: those of one row stay together, and what is set
    aside does not change when rows are added."""
    most = int(share * 2**32)
    aside = {id(one) for one in examples if zlib.crc32(f"{seed}:{one.source}".encode()) < most}
    if len(aside) == len(examples):
        return examples, []
    return [one for one in examples if id(one) not in aside], [one for one in examples if id(one) in aside]


def _documents(data: Data, examples: Sequence[Example], tokenizer: Tokenizer, template: Template | None) -> Documents:
    return prepare(
        examples,
        tokenizer,
        template,
        length=data.length,
        long=data.long,
        learn=data.learn,
        system=data.system,
    )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()
