"""The planner against real runs: peak memory and seconds of a step, each configuration in a process of its own.

python benchmarks/tune_plan.py [--model gemma3:270m] [--only NAME ...] [--steps 3]

What is measured is the resident memory at its highest (VmHWM) after three steps of random tokens, all of them learnt.
Linux only. The plan is made from the model's header alone, before anything is allocated.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from geode.tune.plan import Plan, plan
from geode.tune.recipe import Batch, Data, Full, Lora, Recipe, Run

LORA = Lora(rank=16)
CONFIGURATIONS: dict[str, tuple[Any, int, int, Run]] = {
    "lora bf16 2x512 torch": (LORA, 2, 512, Run(on="torch", dtype="bfloat16")),
    "lora bf16 4x512 torch": (LORA, 4, 512, Run(on="torch", dtype="bfloat16")),
    "lora bf16 4x512 torch remat": (LORA, 4, 512, Run(on="torch", dtype="bfloat16", remat="block")),
    "qlora int8 bf16 2x512 torch": (replace(LORA, quantize="int8"), 2, 512, Run(on="torch", dtype="bfloat16")),
    "qlora int4 bf16 2x512 torch": (replace(LORA, quantize="int4"), 2, 512, Run(on="torch", dtype="bfloat16")),
    "full float32 2x256 torch": (Full(), 2, 256, Run(on="torch", dtype="float32")),
    "full bf16 4x512 torch": (Full(), 4, 512, Run(on="torch", dtype="bfloat16")),
    "lora float32 1x256 jax": (LORA, 1, 256, Run(on="jax", dtype="float32")),
    "full float32 1x256 jax": (Full(), 1, 256, Run(on="jax", dtype="float32")),
}


def recipe_of(model: str, name: str) -> Recipe:
    method, rows, length, run = CONFIGURATIONS[name]
    return Recipe(model, Data(train=("random",), length=length), method, batch=Batch(rows=rows), run=run)


def planned(model: str, name: str) -> Plan:
    """What the planner says, from the header alone."""
    from geode import checkpoint
    from geode.io import hub
    from geode.tune import setup

    recipe = recipe_of(model, name)
    found = checkpoint.open(hub.resolve(model))
    names, run = setup.chosen(recipe, found), recipe.run
    size = found.tensors.nbytes
    return plan(found.config, recipe, names.pairs, names.whole, on=run.on, dtype=run.dtype, file=size)


def status(field: str) -> int:
    """Bytes that the kernel counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(model: str, name: str, steps: int) -> dict[str, Any]:
    """Runs some steps in this process: its memory at each stage, and seconds of a step."""
    import numpy as np

    from geode import checkpoint
    from geode.io import hub
    from geode.tune import setup

    recipe = recipe_of(model, name)
    found = checkpoint.open(hub.resolve(recipe.model))
    choice = setup.choose(recipe)
    importlib.import_module("geode.network.decoder")  # what the framework itself takes

    stages = {"framework": status("VmRSS")}
    trainer = setup.trainer(recipe, *setup.network(recipe, found, choice))
    stages |= {"loaded": status("VmRSS"), "loading": status("VmHWM"), "mapped": status("RssFile")}
    random, shape = np.random.default_rng(0), (recipe.batch.rows, recipe.data.length)
    count = shape[0] * shape[1]
    seconds = []
    for _ in range(steps):
        arrays: dict[str, np.ndarray] = {
            "tokens": random.integers(0, found.config.vocab, shape).astype(np.int32),
            "positions": np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1)),
            "segments": np.ones(shape, np.int32),
            "at": np.arange(count, dtype=np.int32),
            "targets": random.integers(0, found.config.vocab, count).astype(np.int32),
            "weights": np.full(count, 1 / count, np.float32),
            "owners": np.zeros(count, np.int32),
            "labels": np.zeros(0, np.int8),
        }
        start = perf_counter()
        trainer.step([arrays], 1e-6)
        seconds.append(perf_counter() - start)
        stages["after"] = status("VmHWM")
    return {"peak": status("VmHWM"), "seconds": min(seconds), **stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gemma3:270m")
    parser.add_argument("--only", nargs="*", default=[*CONFIGURATIONS])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.model, args.measure, args.steps)))
        return
    print(f"{'':<32}{'planned':>10}{'peak':>10}{'':>8}{'step':>9}", flush=True)
    for name in args.only:
        command = [sys.executable, __file__, "--model", args.model, "--steps", str(args.steps), "--measure", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        real = json.loads(done.stdout.strip().splitlines()[-1])
        said, peak = planned(args.model, name).total, real["peak"]
        print(f"{name:<32}{said / 1e6:>7.0f} MB{peak / 1e6:>7.0f} MB{said / peak - 1:>+8.1%}{real['seconds']:>7.2f} s")
        rest = ", ".join(f"{key} {value / 1e6:.0f}" for key, value in real.items() if key not in ("peak", "seconds"))
        print(f"{'':<32}{rest}", flush=True)


if __name__ == "__main__":
    main()
