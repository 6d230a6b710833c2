"""What objectives should come to: the papers' formulas, as TRL has them, on transformers' networks in float64.

Documents go through the network one by one; gradients are autograd's through the whole logits.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
import transformers
from objectives_cases import BASELINE, OPTIONS, TRAINED, pairs, reference_of
from torch import Tensor
from torch.nn.functional import logsigmoid
from variants import build

from geode.tune.documents import Document
from geode.tune.recipe import Objective

THEIRS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
    "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
    "output_norm.weight": "model.norm.weight",
}


def make(folder: Path) -> None:
    """The student, its teacher, and "expected.npz": figures, a weight for each objective that makes their gradients
    alike in size, and the gradients of the weighted sum."""
    torch.set_num_threads(1)
    variant = tiny.variant("gemma2")
    variant = replace(variant, options=variant.options | {"num_hidden_layers": 1})
    for seed, name in enumerate(("student", "teacher")):
        model = build(variant, seed)
        with torch.no_grad():
            model.model.norm.weight.copy_(
                0.2 * model.model.norm.weight - 0.8
            )  # else every answer is all but impossible
        model.save_pretrained(folder / name)
        tiny.add_words(folder / name, tiny.scored())
    score = np.random.default_rng(1).normal(0, 0.1, (1, 48)).astype(np.float32)
    np.savez(folder / "expected.npz", score=score, **Expected(folder, score).all())


class Expected:
    """One network, and what objectives come to on it."""

    def __init__(self, folder: Path, score: np.ndarray):
        self.model, self.teacher = (self.loaded(folder / name) for name in ("student", "teacher"))
        self.score = torch.tensor(score.astype(np.float64), requires_grad=True)

    @staticmethod
    def loaded(path: Path) -> Any:
        kind = transformers.AutoModelForCausalLM
        return kind.from_pretrained(path, attn_implementation="eager", dtype=torch.float32).double()

    def all(self) -> dict[str, np.ndarray]:
        own = dict(self.model.named_parameters())
        trained = {name: own[THEIRS[name]] for name in TRAINED} | {"score.weight": self.score}
        found: dict[str, np.ndarray] = {}
        sums = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
        for name, options in OPTIONS.items():
            figures = {"kto": self.kto, "distil": self.distil}.get(options.name, self.compared)(options)
            found |= {f"{name}.{key}": value.detach().numpy() for key, value in figures.items()}
            gradients = torch.autograd.grad(figures["loss"], [*trained.values()], allow_unused=True)
            weight = 1 / gradients[1].abs().max()
            found[f"{name}.weight"] = weight.numpy()
            for sum_, gradient in zip(sums.values(), gradients, strict=True):
                sum_ += 0 if gradient is None else weight * gradient
        return found | {name: value.numpy() for name, value in sums.items()}

    # One document

    def logits(self, model: Any, document: Document) -> Tensor:
        """Where a token is learnt: (N, V)."""
        whole = model(torch.tensor(document.ids[None].astype(np.int64))).logits[0].double()
        return whole[np.flatnonzero(document.loss) - 1]

    def logp(self, document: Document) -> Tensor:
        targets = torch.tensor(document.ids[document.loss].astype(np.int64))
        return self.logits(self.model, document).log_softmax(-1).gather(1, targets[:, None]).sum()

    def value(self, document: Document) -> Tensor:
        out = self.model.model(torch.tensor(document.ids[None].astype(np.int64))).last_hidden_state
        return (out[0, -1].double() @ self.score.T)[0]

    # Objectives

    def compared(self, options: Objective) -> dict[str, Tensor]:
        rows = [self.pair(options, pair.chosen, pair.rejected) for pair in pairs()]
        loss, chosen, rejected = (torch.stack(every) for every in zip(*rows, strict=True))
        figures = {"loss": loss, "chosen": chosen, "rejected": rejected, "margin": chosen - rejected}
        figures["accuracy"] = (chosen > rejected).double()
        return {name: value.mean() for name, value in figures.items()}

    def pair(self, options: Objective, chosen: Document, rejected: Document) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and the two rewards, as trl's DPO, CPO, ORPO and reward trainers compute them."""
        if options.name == "reward":
            high, low = self.value(chosen), self.value(rejected)
            return -logsigmoid(high - low), high, low
        a, b = self.logp(chosen), self.logp(rejected)
        mean_a, mean_b = a / chosen.learnt, b / rejected.learnt
        ra, rb = (reference_of(one) if options.reference else 0.0 for one in (chosen, rejected))
        if options.name == "dpo":
            beta, eps = options.beta or 0.1, options.label_smoothing
            logits = beta * ((a - b) - (ra - rb))
            return -(1 - eps) * logsigmoid(logits) - eps * logsigmoid(-logits), beta * (a - ra), beta * (b - rb)
        if options.name == "ipo":
            high, low = (a - ra) / chosen.learnt, (b - rb) / rejected.learnt
            return (high - low - 1) ** 2, high, low  # 1 / 2β is 1
        if options.name == "orpo":
            odds = (mean_a - mean_b) - (torch.log1p(-mean_a.exp()) - torch.log1p(-mean_b.exp()))
            return -mean_a - 0.4 * logsigmoid(odds), mean_a, mean_b
        return -logsigmoid(0.5 * (mean_a - mean_b - 0.3)), 0.5 * mean_a, 0.5 * mean_b  # gamma is a share of beta

    def kto(self, options: Objective) -> dict[str, Tensor]:
        """Every chosen answer taken for a good one; a pair has the share of one answer, so sums are twice the means."""
        beta, z = options.beta or 0.1, float(BASELINE)
        rows: dict[str, list[Any]] = {key: [] for key in ("loss", "accuracy", "chosen", "rejected", "good", "drift")}
        for document, good in [each for pair in pairs() for each in ((pair.chosen, 1), (pair.rejected, 0))]:
            ratio = self.logp(document) - (reference_of(document) if options.reference else 0.0)
            rows["loss"].append(1 - torch.sigmoid(beta * (ratio - z if good else z - ratio)))
            rows["accuracy"].append(ratio > z if good else ratio < z)
            rows["chosen"].append(beta * ratio * good)
            rows["rejected"].append(beta * ratio * (1 - good))
            rows["good"].append(torch.tensor(good))
            rows["drift"].append(ratio)
        return {key: 2 * torch.stack([one.double() for one in every]).mean() for key, every in rows.items()}

    def distil(self, options: Objective) -> dict[str, Tensor]:
        every = [document for pair in pairs() for document in (pair.chosen, pair.rejected)]
        return {"loss": torch.stack([self.kl(one, options.top, options.temperature) for one in every]).sum()}

    def kl(self, document: Document, top: int, warm: float) -> Tensor:
        """Of the likeliest tokens and "all others"."""
        with torch.no_grad():
            p = (self.logits(self.teacher, document) / warm).softmax(-1)
        q = (self.logits(self.model, document) / warm).softmax(-1)
        order = p.argsort(-1, descending=True)
        first, others = order[:, :top], order[:, top:]
        p, q = (torch.cat([x.gather(1, first), x.gather(1, others).sum(1, keepdim=True)], 1) for x in (p, q))
        return warm**2 * (p * (p / q).log()).sum()


def by_peft(folder: Path, documents: list[Document]) -> np.ndarray:
    """Scores of the reward model in the folder, as anybody loads it."""
    import peft

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "student", num_labels=1, attn_implementation="eager", dtype=torch.float32
    )
    model = peft.PeftModel.from_pretrained(base, folder / "reward").eval()
    with torch.no_grad():
        return np.array([float(model(torch.tensor(one.ids[None].astype(np.int64))).logits) for one in documents])
