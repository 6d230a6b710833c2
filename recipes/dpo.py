"""Direct preference optimisation of the assistant: `geode tune recipes/dpo.py --data pairs.jsonl --out OUT`.

Rows have a prompt, a chosen and a rejected answer, in any of the spellings that docs/tune-data.md lists.
"""

from __future__ import annotations

from pathlib import Path

from geode.tune import Batch, Data, Lora, Objective, Optim, Recipe, Run


def recipe(data: Path) -> Recipe:
    return Recipe(
        model="assistant",
        data=Data(train=(str(data),), length=512),
        method=Lora(rank=8),
        objective=Objective(name="dpo", beta=0.1),
        optim=Optim(lr=2e-5),
        batch=Batch(rows=2, accumulate=2),
        run=Run(epochs=1),
    )
