"""Training with PyTorch in one process, or as one of several that `torchrun`'s environment describes; prints JSON.

python processes_worker.py
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from layout_worker import GEMMA, LLAMA, ROWS, STEPS, batches
from random_networks import network

from geode.config import Config
from geode.errors import GeodeError
from geode.network import backend
from geode.tune.recipe import Optim

RUNS: dict[str, tuple[Config, bool, str | None]] = {
    "gemma full": (GEMMA, False, None),
    "llama lora": (LLAMA, True, None),
    "llama lora int4": (LLAMA, True, "int4"),
    "odd full": (GEMMA.replace(vocab=97, width=72, ffn=81), False, None),
}
OPTIM = Optim(weight_decay=0.1, clip=2.0)


def halves(batch: dict[str, np.ndarray], index: int, count: int) -> list[dict[str, np.ndarray]]:
    """One process's rows of a batch, as two micro-batches."""
    parts = []
    for number in range(index * 2, index * 2 + 2):
        size = ROWS // (2 * count)
        rows = slice(number * size, (number + 1) * size)
        length = batch["tokens"].shape[1]
        mine = (batch["at"] >= rows.start * length) & (batch["at"] < rows.stop * length)
        part = {name: batch[name][rows] for name in ("tokens", "positions", "segments")}
        part |= {name: batch[name][mine] for name in ("at", "targets", "weights")}
        parts.append(part | {"at": part["at"] - np.int32(rows.start * length)})
    return parts


def run(config: Config, is_lora: bool, quantize: str | None, index: int, count: int, cut: bool) -> dict[str, Any]:
    from geode.network import lora, objectives, optimizers
    from geode.network import processes_torch as processes
    from geode.network.decoder import Decoder
    from geode.network.training import Trainer

    fetch = network(config).__getitem__
    rows = processes.Rows(config, index, count) if cut else None
    decoder = Decoder(config, rows.fetch(fetch) if rows else fetch, "float32", quantize)
    trained = dict(decoder.store.variables)
    if is_lora:
        lora.freeze(decoder)
        names = [name for name in decoder.store.holders if name.startswith("blk.")]
        trained = lora.attach(decoder, names, rank=4, scale=2.0, dora=True)
    if rows:
        rows.attach(decoder)
    names = rows.names(decoder) if rows else set()
    variables = list(trained.values())
    optimizer: Any = (
        processes.Optimizer(OPTIM, variables, (), names) if count > 1 else optimizers.make(OPTIM, variables)
    )
    trainer = Trainer(decoder, trained, optimizer, objectives.sft(1e-3))
    outcomes = [trainer.step(halves(batch, index, count), 3e-3) for batch in batches()]
    losses = [processes.summed(o.metrics)["loss"] if count > 1 else o.loss for o in outcomes]
    numbers = [(rows.whole(v) if rows else backend.to_numpy(v.value)).astype(np.float64) for v in variables]
    held = sum(v.value.numel() * v.value.element_size() for v in [*decoder.variables, *optimizer.state])
    return {
        "loss": losses,
        "norm": [o.norm for o in outcomes],
        "sums": [float(np.square(each).sum()) for each in numbers],
        "held": held,
        "steps": STEPS,
    }


def refusals(index: int, count: int) -> dict[str, str]:
    from geode.network import processes_torch as processes

    def said(action: Any) -> str:
        try:
            return str(action())
        except GeodeError as problem:
            return f"{type(problem).__name__}: {problem}"

    import keras

    variable = keras.Variable(np.zeros((4, 4), np.float32), name="blk_0_attn_q_weight")
    return {"muon": said(lambda: processes.Optimizer(Optim(name="muon"), [variable], (), {variable.name}))}


def main() -> dict[str, Any]:
    backend.select("torch")
    from geode.network import processes_torch as processes

    index, count = processes.join(60)
    found: dict[str, Any] = {}
    for name, options in RUNS.items():
        found[name] = {"same": run(*options, index, count, False)}
        if count > 1:
            found[name]["cut"] = run(*options, index, count, True)
    found["refused"] = refusals(index, count)
    processes.leave()
    return found


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(json.dumps(main()))
