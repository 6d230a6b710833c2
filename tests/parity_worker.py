"""Runs the variants saved in a folder on one framework and prints, as JSON, how far each is from the reference.

python parity_worker.py FOLDER FRAMEWORK [VARIANT ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from variants import VARIANTS, Variant

import geode


def measure(lm: Any, reference: np.ndarray, ids: list[int]) -> dict[str, float]:
    """Largest distances: from the reference; of cached decoding and of a batch of unequal prompts from the full forward."""
    full = lm.logits(ids)
    start = max(len(ids) - 30, 3)
    return {
        "reference": float(np.abs(full - reference).max()),
        "cached": stepwise(lm, ids, [start], full),
        "batched": stepwise(lm, ids, [start, start // 2, 1], full),
        "spread": float(reference.std()),
    }


def stepwise(lm: Any, ids: list[int], starts: list[int], full: np.ndarray) -> float:
    """Prefills prefixes of the text together, feeds the rest token by token; the largest distance from `full`."""
    state, logits = lm.executor.prefill([ids[:start] for start in starts], room=len(ids) - min(starts))
    worst = 0.0
    for step in range(len(ids) - max(starts)):
        at = [start + step for start in starts]
        worst = max(worst, *(float(np.abs(logits[row] - full[i - 1]).max()) for row, i in enumerate(at)))
        state, logits = lm.executor.step(state, [ids[i] for i in at])
    return worst


def run(folder: Path, on: str, variant: Variant) -> dict[str, float]:
    saved = np.load(folder / f"{variant.slug}.npz")
    lm = geode.load(folder / variant.slug, on=on, dtype="float32")
    return measure(lm, saved["logits"], saved["ids"].tolist())


if __name__ == "__main__":
    folder, on = Path(sys.argv[1]), sys.argv[2]
    only = sys.argv[3:]
    chosen = [v for v in VARIANTS if (folder / f"{v.slug}.npz").exists() and (not only or v.name in only)]
    print(json.dumps({variant.name: run(folder, on, variant) for variant in chosen}))
