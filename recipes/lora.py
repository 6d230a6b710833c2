"""LoRA on conversations, for a first try: `geode tune recipes/lora.py --data talks.jsonl --out OUT`."""

from __future__ import annotations

from pathlib import Path

from geode.tune import Batch, Data, Lora, Optim, Recipe, Run


def recipe(data: Path) -> Recipe:
    return Recipe(
        model="gemma3:270m",
        data=Data(train=(str(data),), template="gemma", length=512),
        method=Lora(rank=16),
        optim=Optim(lr=2e-4),
        batch=Batch(rows=4),
        run=Run(epochs=2),
    )
