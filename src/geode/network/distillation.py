"""Learning from a larger network: its likeliest tokens at each position, and how likely it finds them.

Which network that is, and whether both have one vocabulary, is not known here.

Shape letters: M positions, K of the teacher's tokens, V tokens that both know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

from . import backend
from .answers import Batch, Objective, hidden
from .backend import Tensor
from .decoder import Decoder
from .loss import logprobs

LEAST = 1e-6  # what remains of a probability when float32 has subtracted most of it
ROWS = 256  # positions whose logits are there at a time


def distil(temperature: float = 1.0) -> Objective:
    """temperature² · Σ weight · KL(teacher ‖ student). arxiv.org/abs/1503.02531

    A batch has `teacher_ids` and `teacher_logprobs` (M, K) beside. All other tokens count as one more, so that the
    student learns how much is left for them: the true KL of the coarser distribution, never above that of the whole.
    """

    def objective(decoder: Decoder, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        taught = batch["teacher_logprobs"]
        learnt = _logprobs(decoder, hidden(decoder, batch), batch["teacher_ids"], temperature)
        apart = ops.sum(ops.exp(taught) * (taught - learnt), axis=-1)
        rest, own = _rest(taught), _rest(learnt)
        kl_M = apart + rest * (ops.log(rest) - ops.log(own))
        loss = temperature**2 * ops.sum(batch["weights"] * kl_M)
        return loss, {"loss": loss}

    return objective


def _logprobs(decoder: Decoder, h_MD: Tensor, ids_MK: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) at these tokens. The head is linear, so its input is divided, and a soft-cap
    with it: (c / t) · tanh((z / t) / (c / t)) = c · tanh(z / c) / t."""
    head, cap = decoder.unembed or decoder.token_embd, decoder.config.final_softcap
    return logprobs(head.weight, h_MD / temperature, ids_MK, None if cap is None else cap / temperature)[0]


def _rest(logp_MK: Tensor) -> Tensor:
    """The probability of all other tokens (M,)."""
    return ops.maximum(1 - ops.sum(ops.exp(logp_MK), axis=-1), LEAST)


class Teacher:
    """A network that is asked and never changed. `vocab`: how many tokens, from the first on, its student knows."""

    def __init__(self, decoder: Decoder, vocab: int, top: int = 32, temperature: float = 1.0):
        vocab = min(vocab, decoder.config.vocab)
        top = min(top, vocab)

        def likeliest(batch: Batch) -> dict[str, Tensor]:
            logits = decoder.head(batch["h"])[:, :vocab] / temperature
            best, ids = ops.top_k(logits, top)
            return {"ids": ids, "logprobs": best - ops.logsumexp(logits, axis=-1, keepdims=True)}

        self._hidden: Any = backend.measurement(lambda batch: {"h": hidden(decoder, batch)}, decoder.variables)
        self._likeliest: Any = backend.measurement(likeliest, decoder.variables)

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `distil` takes beside a micro-batch: ids int32 and log-probabilities float32, (M, K)."""
        h_MD = self._hidden(arrays)["h"]
        parts = [self._likeliest({"h": h_MD[i : i + ROWS]}) for i in range(0, h_MD.shape[0], ROWS)]
        found = {name: np.concatenate([backend.to_numpy(part[name]) for part in parts]) for name in parts[0]}
        return {"teacher_ids": found["ids"].astype(np.int32), "teacher_logprobs": found["logprobs"]}
