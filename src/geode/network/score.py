"""A reward model: one number for an answer, read from the hidden state of its last token.

How pairs of answers came about is not known here, nor what is done with the number.

The head is transformers' `score` of AutoModelForSequenceClassification with one label: a matrix (1, D) without a bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from keras import ops

from . import backend
from .answers import Batch, Objective, states
from .backend import Tensor
from .decoder import Decoder
from .preferences import compared
from .storage import Part

NAME = "score.weight"


class Score(Part):
    """h (S, D) -> (S,), float32."""

    def __init__(self, weight_1D: np.ndarray):
        super().__init__()
        self.weight = self.variable(NAME, weight_1D, "float32")

    def call(self, h_SD: Tensor) -> Tensor:
        return backend.linear(backend.cast(h_SD, "float32"), self.weight.value)[:, 0]


def attach(decoder: Any, weight_1D: np.ndarray | None = None) -> dict[str, Any]:
    """Puts a head on a decoder, of zeros at first: no answer is better before the first step. Its variable, by name."""
    zeros = np.zeros((1, decoder.config.width), np.float32)
    decoder.score = Score(zeros if weight_1D is None else weight_1D.astype(np.float32))
    return {NAME: decoder.score.weight}


def reward() -> Objective:
    """-log σ(score₁ - score₂), after Bradley and Terry. arxiv.org/abs/2203.02155

    For a decoder that has a head.
    """

    def objective(decoder: Decoder, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return compared(scores(decoder, batch), batch, lambda chosen, rejected: -ops.log_sigmoid(chosen - rejected))

    return objective


def scores(decoder: Decoder, batch: Batch) -> Tensor:
    """The score of each sequence, at the token that is learnt last: float32 (S,)."""
    is_own_SM = batch["owners"][None] == ops.arange(batch["shares"].shape[0], dtype="int32")[:, None]
    last_S = ops.max(ops.where(is_own_SM, batch["at"][None], 0), axis=1) + 1  # `at` is the place before it
    return decoder.score(states(decoder, batch, last_S))  # type: ignore[no-any-return]


def scoring(decoder: Decoder) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """A function that gives the scores of a micro-batch's sequences: float32 (S,)."""
    run: Any = backend.measurement(lambda batch: {"scores": scores(decoder, batch)}, decoder.variables)
    return lambda arrays: backend.to_numpy(run(arrays)["scores"])
