"""What is minimised: scalars made of the log-probabilities of a micro-batch.

How log-probabilities are computed is `loss`'s to know; where batches come from is not known here.

A batch is a mapping of the arrays of `tune.batches.Micro`: tokens, positions, segments (B, T); at, targets, weights,
owners (M,). An objective gives its loss, summed with the batch's weights so that micro-batches of a step add up, and
figures to show, sums as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from keras import ops

from . import backend
from .backend import Tensor
from .decoder import Decoder

Batch = Mapping[str, Tensor]
Objective = Callable[[Decoder, Batch], tuple[Tensor, dict[str, Tensor]]]


def hidden(decoder: Decoder, batch: Batch) -> Tensor:
    """The hidden states of the positions that are learnt: (M, D)."""
    h_BTD, _ = decoder.hidden(batch["tokens"], batch["positions"], batch["segments"])
    return ops.take(ops.reshape(h_BTD, (-1, h_BTD.shape[-1])), batch["at"], axis=0)


def sft(z_loss: float = 0.0) -> Objective:
    """-Σ weight · log p(target), and `z_loss` · Σ weight · log² Z. arxiv.org/abs/2204.02311"""

    def objective(decoder: Decoder, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logp, normaliser = decoder.logprobs(hidden(decoder, batch), batch["targets"])
        plain = -ops.sum(batch["weights"] * logp)
        loss = plain + z_loss * ops.sum(batch["weights"] * ops.square(normaliser)) if z_loss else plain
        return loss, {"loss": plain}

    return objective


def sequences(logp_M: Tensor, batch: Batch, count: int) -> Tensor:
    """Log-probabilities of `count` whole answers: weighted sums over the positions that each owns."""
    return backend.cast(ops.segment_sum(batch["weights"] * logp_M, batch["owners"], num_segments=count), "float32")
