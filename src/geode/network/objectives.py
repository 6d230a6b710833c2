"""What is minimised, by the names that recipes have.

How log-probabilities are computed is `loss`'s to know, what answers are compared by `preferences`'; where batches come
from is not known here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from keras import ops

from .answers import Batch, Objective, hidden
from .backend import Tensor
from .decoder import Decoder
from .distillation import distil
from .preferences import dpo, ipo, kto, orpo, simpo
from .score import reward

__all__ = ["Batch", "Objective", "objective", "sft"]


def sft(z_loss: float = 0.0) -> Objective:
    """-Σ weight · log p(target), and `z_loss` · Σ weight · log² Z. arxiv.org/abs/2204.02311"""

    def objective(decoder: Decoder, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logp, normaliser = decoder.logprobs(hidden(decoder, batch), batch["targets"])
        plain = -ops.sum(batch["weights"] * logp)
        loss = plain + z_loss * ops.sum(batch["weights"] * ops.square(normaliser)) if z_loss else plain
        return loss, {"loss": plain}

    return objective


BUILDERS: dict[str, Callable[..., Objective]] = {
    "sft": sft,
    "dpo": dpo,
    "ipo": ipo,
    "kto": kto,
    "orpo": orpo,
    "simpo": simpo,
    "reward": reward,
    "distil": distil,
}


def objective(options: Any) -> Objective:
    """The objective of a recipe's `Objective`: `name` chooses it, fields with the names of its options are these.
    None is an option's usual value."""
    build = BUILDERS[options.name]
    known = inspect.signature(build).parameters
    return build(**{name: value for name, value in vars(options).items() if name in known and value is not None})
