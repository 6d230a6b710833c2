"""The model that a smaller one learns from, opened on the same framework.

What the student makes of its answers is not known here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import checkpoint
from ..errors import OptionError
from ..formats import Checkpoint
from ..io import hub
from .recipe import Objective

if TYPE_CHECKING:
    from ..network.distillation import Teacher
    from ..tokenizer import Tokenizer


def open(options: Objective, student: Checkpoint, dtype: str) -> Teacher:
    """The teacher that a recipe's objective names. `dtype` is what its weights are held in.

    Raises OptionError where it has not the student's vocabulary, what opening a model raises.
    """
    from ..network.decoder import Decoder
    from ..network.distillation import Teacher

    found = checkpoint.open(hub.resolve(str(options.teacher)), exact=True)
    check_vocabulary(found, student)
    decoder = Decoder(found.config, found.tensors.__getitem__, dtype)
    return Teacher(decoder, student.config.vocab, options.top, options.temperature)


def check_vocabulary(teacher: Checkpoint, student: Checkpoint) -> None:
    """Raises OptionError where one token means different texts. Rows of padding behind the tokens are of no matter."""
    theirs, ours = teacher.tokenizer, student.tokenizer
    told = _difference(theirs, ours)
    if told:
        raise OptionError(
            f"objective.teacher: {teacher.path} has not the vocabulary of {student.path}: {told}. What it says of its "
            "tokens means nothing for those of the student; choose a larger model of the same family."
        )


def _difference(theirs: Tokenizer | None, ours: Tokenizer | None) -> str:
    if theirs is None or ours is None:
        return f"the {'teacher' if theirs is None else 'student'} came without a tokenizer"
    if theirs.size != ours.size:
        return f"it has {theirs.size:,} tokens, the student {ours.size:,}"
    other = next((token for token in range(ours.size) if theirs.piece(token) != ours.piece(token)), None)
    if other is None:
        return ""
    return f"token {other} is {theirs.piece(other)!r} there and {ours.piece(other)!r} here"
