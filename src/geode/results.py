"""What a model's answer is, near or far: a stream of pieces, the same gathered, and a score.

Where the pieces come from is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import OptionError
from .generate import Options, Piece, Usage


@dataclass(frozen=True)
class Result:
    """One whole answer. `tokens` are all that were generated, an end token included, of which `text` shows nothing.

    `logprobs` has one number a token and `top_logprobs` the alternatives (id, logprob); both None unless asked for.
    """

    text: str
    tokens: list[int]
    finish_reason: str | None
    usage: Usage
    logprobs: list[float] | None = None
    top_logprobs: list[tuple[tuple[int, float], ...]] | None = None


@dataclass(frozen=True)
class Score:
    """How likely a continuation is: natural logarithms, summed and token by token."""

    logprob: float
    is_greedy: bool  # every token was the likeliest
    token_logprobs: list[float]
    tokens: list[int]


class Stream(Iterator[Piece]):
    """Pieces as they come. `usage` counts along; `finish_reason` is there once the last piece is out."""

    def __init__(self, pieces: Iterator[Piece], usage: Usage):
        self.usage = usage
        self.finish_reason: str | None = None
        self._pieces = pieces

    def __next__(self) -> Piece:
        piece = next(self._pieces)
        self.finish_reason = piece.finish_reason
        return piece

    def close(self) -> None:
        """Ends early and lets go of the model's state; harmless twice."""
        self._pieces = iter(())

    def result(self) -> Result:
        """The pieces not yet taken, gathered into one."""
        return gather(self, self.usage)


def gather(pieces: Iterable[Piece], usage: Usage) -> Result:
    """The pieces of one answer as one `Result`."""
    every = list(pieces)
    logprobs = [piece.logprob for piece in every if piece.logprob is not None]
    return Result(
        text="".join(piece.text for piece in every),
        tokens=[piece.token for piece in every if piece.token is not None],
        finish_reason=every[-1].finish_reason if every else None,
        usage=usage,
        logprobs=logprobs or None,
        top_logprobs=[piece.top_logprobs for piece in every] if logprobs else None,
    )


def options_of(given: Mapping[str, Any]) -> Options:
    """Options by name. Raises OptionError for a name that is none."""
    names = [field.name for field in fields(Options)]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise OptionError(f"Unknown options: {', '.join(unknown)}. The options are {', '.join(sorted(names))}.")
    return Options(**given)
