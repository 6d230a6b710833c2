"""Objectives that compare answers: DPO, IPO, ORPO and SimPO of pairs, KTO of answers that were found good or not.

Which data these are, and how a reference's log-probabilities were found, is not known here. Beside the arrays of a
micro-batch a batch has `reference` (S,), what the untuned network gives each answer, where one is asked for; KTO's also
a scalar `baseline`, how far the network has moved.

Figures are weighted sums that add up to means over a step: the loss, how often the better answer has the higher reward
(`accuracy`), the rewards of both kinds and what lies between them (`margin`).
"""

from __future__ import annotations

from collections.abc import Callable

from keras import ops

from . import backend
from .answers import Batch, Objective, answers
from .backend import Tensor
from .decoder import Decoder

CERTAIN = -1e-6  # a log-probability: beyond it odds are no number


def dpo(beta: float = 0.1, label_smoothing: float = 0.0, reference: bool = True) -> Objective:
    """-log σ(r₁ - r₂), r = β · log p / p_reference. arxiv.org/abs/2305.18290

    label_smoothing: how likely a label is to be wrong; below 1/2. ericmitchell.ai/cdpo.pdf
    """

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        margin = chosen - rejected
        right, wrong = ops.log_sigmoid(margin), ops.log_sigmoid(-margin)
        return -(1 - label_smoothing) * right - label_smoothing * wrong

    return _compared(lambda logp, length, batch: beta * _ratio(logp, batch, reference), loss)


def ipo(beta: float = 0.1, reference: bool = True) -> Objective:
    """(r₁ - r₂ - 1 / 2β)², r = log p / p_reference for each token. arxiv.org/abs/2310.12036

    Per token, as its authors have it and TRL after them: huggingface.co/blog/pref-tuning.
    """
    return _compared(
        lambda logp, length, batch: _ratio(logp, batch, reference) / length,
        lambda chosen, rejected: ops.square(chosen - rejected - 1 / (2 * beta)),
    )


def orpo(beta: float = 0.1) -> Objective:
    """-log p₁ - β · log σ(log odds₁ - log odds₂), log p for each token of an answer. arxiv.org/abs/2403.07691"""

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return -chosen - beta * ops.log_sigmoid(_log_odds(chosen) - _log_odds(rejected))

    return _compared(lambda logp, length, batch: logp / length, loss)


def simpo(beta: float = 2.0, gamma: float = 0.5) -> Objective:
    """-log σ(r₁ - r₂ - gamma · β), r = β · log p for each token. arxiv.org/abs/2405.14734"""
    return _compared(
        lambda logp, length, batch: beta * logp / length,
        lambda chosen, rejected: -ops.log_sigmoid(chosen - rejected - gamma * beta),
    )


def kto(beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0, reference: bool = True) -> Objective:
    """1 - σ(±β · (log p / p_reference - baseline)), + for good answers. arxiv.org/abs/2402.01306

    desirable, undesirable: what a good and another answer weigh. `drift` among the figures is the mean of
    log p / p_reference: of mismatched answers, that is what `baseline` is made of. `good` is the share of good answers;
    `chosen` and `rejected` are 0 for those of the other kind.
    """

    def objective(decoder: Decoder, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logp, _ = answers(decoder, batch)
        ratio, share = _ratio(logp, batch, reference), batch["shares"]
        good = backend.cast(batch["labels"] == 1, "float32")
        ahead = (2 * good - 1) * (ratio - batch["baseline"])
        weight = share * (desirable * good + undesirable * (1 - good))
        loss = ops.sum(weight * (1 - ops.sigmoid(beta * ahead)))
        figures = {"accuracy": backend.cast(ahead > 0, "float32"), "chosen": beta * good * ratio}
        figures |= {"rejected": beta * (1 - good) * ratio, "good": good, "drift": ratio}
        return loss, {"loss": loss} | {name: ops.sum(share * value) for name, value in figures.items()}

    return objective


Rewards = Callable[[Tensor, Tensor, Batch], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def compared(rewards_S: Tensor, batch: Batch, loss: Loss) -> tuple[Tensor, dict[str, Tensor]]:
    """What a loss (P,) of the rewards of chosen and rejected answers comes to, and its figures."""
    pairs, shares = ops.reshape(rewards_S, (-1, 2)), ops.reshape(batch["shares"], (-1, 2))
    chosen, rejected, share = pairs[:, 0], pairs[:, 1], shares[:, 0]
    figures = {
        "loss": loss(chosen, rejected),
        "accuracy": backend.cast(chosen > rejected, "float32"),
        "margin": chosen - rejected,
        "chosen": chosen,
        "rejected": rejected,
    }
    sums = {name: ops.sum(share * value) for name, value in figures.items()}
    return sums["loss"], sums


def _compared(rewards: Rewards, loss: Loss) -> Objective:
    def objective(decoder: Decoder, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logp, length = answers(decoder, batch)
        return compared(rewards(logp, length, batch), batch, loss)

    return objective


def _ratio(logp_S: Tensor, batch: Batch, reference: bool) -> Tensor:
    """log p / p_reference; without a reference log p, as if all answers were equally likely before."""
    return logp_S - batch["reference"] if reference else logp_S


def _log_odds(logp: Tensor) -> Tensor:
    """log p / (1 - p)"""
    logp = ops.minimum(logp, CERTAIN)
    return logp - ops.log(-ops.expm1(logp))
