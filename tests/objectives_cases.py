"""What objectives are looked at, and the answers that they are given."""

from __future__ import annotations

import numpy as np

from geode.tune.documents import Document, Judged, Paired
from geode.tune.recipe import Objective

LENGTH = 32
TRAINED = ["token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight", "output_norm.weight"]
BASELINE = np.float32(0.3)
OPTIONS = {
    "dpo": Objective("dpo"),
    "dpo, smoothed": Objective("dpo", beta=0.3, label_smoothing=0.1),
    "dpo, no reference": Objective("dpo", beta=0.01, reference=False),
    "ipo": Objective("ipo", beta=0.5),
    "orpo": Objective("orpo", beta=0.4),
    "simpo": Objective("simpo", beta=0.5, gamma=0.3),
    "reward": Objective("reward"),
    "kto": Objective("kto"),
    "kto, no reference": Objective("kto", beta=0.01, reference=False),
    "distil": Objective("distil", top=5, temperature=2.5),
}


def documents() -> list[Document]:
    """A few tokens of which those of the answer are learnt, with a gap in some."""
    random = np.random.default_rng(3)
    found = []
    for number in range(6):
        prompt, answer = random.integers(2, 6), random.integers(2, 7)
        loss = np.arange(prompt + answer) >= prompt
        loss[prompt + 1] = answer < 4
        loss[-1] = True
        ids = random.integers(4, 96, prompt + answer).astype(np.int32)
        found.append(Document(ids, loss, f"d:{number}"))
    return found


def pairs() -> list[Paired]:
    made = documents()
    return [Paired(a, b, a.source) for a, b in zip(made[::2], made[1::2], strict=True)]


def judged() -> list[Judged]:
    return [Judged(each, number % 3 > 0, each.source) for number, each in enumerate(documents())]


def reference_of(document: Document) -> float:
    """Any number will do that belongs to the document."""
    return -4.0 * document.learnt + float(document.ids[0] % 7)
