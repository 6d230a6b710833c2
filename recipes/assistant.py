"""The assistant: Gemma 3 270M, pretrained, tuned to answer in turns.

python recipes/assistant_data.py RAW DATA                       raw files -> rows
geode tune recipes/assistant.py --data DATA --out OUT           rows -> adapter
python recipes/assistant_eval.py DATA OUT                       both models, side by side
"""

from __future__ import annotations

from pathlib import Path

from geode.errors import FormatError
from geode.tune.recipe import Batch, Data, Lora, Optim, Recipe, Run

SAMPLES = (
    "Who are you?",
    "What is the capital of Hungary?",
    "Name three farm animals, one on each line.",
    "Why do leaves fall in autumn?",
)


def recipe(data: Path) -> Recipe:
    """The run on the rows in `data`. Raises FormatError where assistant_data.py has not written them."""
    data = Path(data)
    files = {name: data / f"{name}.jsonl" for name in ("train", "valid")}
    if missing := [path.name for path in files.values() if not path.is_file()]:
        raise FormatError(
            f"{data} should hold train.jsonl and valid.jsonl; {' and '.join(missing)} is not there. "
            f"Write them with `python recipes/assistant_data.py RAW {data}`, where RAW holds the raw files "
            "that recipes/README.md lists."
        )
    return Recipe(
        model="gemma3:270m",
        data=Data(
            train=(str(files["train"]),), valid=(str(files["valid"]),), shape="messages", template="gemma", length=512
        ),
        method=Lora(rank=16, alpha=32, targets=("blk.*",)),
        optim=Optim(lr=6e-4, warmup=0.05, weight_decay=0.0, clip=1.0),
        batch=Batch(rows=4),
        run=Run(epochs=1, evaluate_every=70, save_every=70, patience=None, samples=SAMPLES),
    )
