"""What objectives are made of: hidden states where something is learnt, and log-probabilities of whole answers.

What is minimised is `objectives`' to know; where batches come from is not known here.

A batch is a mapping of the arrays of `tune.batches.Micro`: tokens, positions, segments (B, T); at, targets, weights,
owners (M,); labels, shares (S,). An objective gives its loss, summed with the batch's weights so that micro-batches of
a step add up, and figures to show, sums as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from keras import ops

from . import backend
from .backend import Tensor
from .decoder import Decoder

Batch = Mapping[str, Tensor]
Objective = Callable[[Decoder, Batch], tuple[Tensor, dict[str, Tensor]]]


def hidden(decoder: Decoder, batch: Batch) -> Tensor:
    """The hidden states of the positions that are learnt: (M, D)."""
    return states(decoder, batch, batch["at"])


def states(decoder: Decoder, batch: Batch, places_N: Tensor) -> Tensor:
    """The hidden states at places in B·T: (N, D)."""
    h_BTD, _ = decoder.hidden(batch["tokens"], batch["positions"], batch["segments"])
    return ops.take(ops.reshape(h_BTD, (-1, h_BTD.shape[-1])), places_N, axis=0)


def answers(decoder: Decoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities of whole answers, and how many tokens of each are learnt: float32 (S,); padding has one."""
    logp_M, _ = decoder.logprobs(hidden(decoder, batch), batch["targets"])
    return _each(batch["weights"] * logp_M, batch), ops.maximum(_each(batch["weights"], batch), 1.0)


def _each(values_M: Tensor, batch: Batch) -> Tensor:
    """The sum over the positions that each sequence owns."""
    count = batch["shares"].shape[0]
    return backend.cast(ops.segment_sum(values_M, batch["owners"], num_segments=count), "float32")


def likelihoods(decoder: Decoder) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """A function that gives the log-probabilities of a micro-batch's answers as the network is now: float32 (S,)."""
    run: Any = backend.measurement(lambda batch: {"logp": answers(decoder, batch)[0]}, decoder.variables)
    return lambda arrays: backend.to_numpy(run(arrays)["logp"])
