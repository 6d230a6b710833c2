"""All weights of a model: `geode tune recipes/full.py --data talks.jsonl --out OUT`.

Weights and their gradients are float32, and with 8-bit moments a number takes 10 bytes: 2.7 GB for Gemma 3 270M.
"""

from __future__ import annotations

from pathlib import Path

from geode.tune import Batch, Data, Full, Optim, Recipe, Run


def recipe(data: Path) -> Recipe:
    return Recipe(
        model="gemma3:270m",
        data=Data(train=(str(data),), template="gemma", length=512),
        method=Full(),
        optim=Optim(name="adam8bit", lr=2e-5),
        batch=Batch(rows=2, accumulate=2),
        run=Run(epochs=1, remat="block"),
    )
