"""Tuning's speed and peak memory beside transformers + PEFT, TRL's loss and keras-hub: same rows, alternately, one run.

    python benchmarks/tune.py                                # LoRA of rank 16 on all linears, 4 × 512 tokens
    python benchmarks/tune.py --learn all --rounds 5         # every token carries loss
    python benchmarks/tune.py --method full --peers plain
    python benchmarks/tune.py --peers keras_jax keras_torch  # keras-hub's own LoRA on a network of the same size

The model is the real Gemma 3 270M; rows are conversations of recipes/assistant_own.jsonl packed by Geode, so that each
contestant computes on the same ids, positions and loss mask: what one leaves out it leaves out by itself. Contestants
run in turn, each in a process of its own; a round's ratio is taken between neighbours and the median counts. Speed is
that of the best of STEPS steps after one that is not counted (compiling, allocating); memory is the process's peak.
    plain        PEFT on transformers, bfloat16, scaled-dot-product attention; logits whole
    chunked      the same with TRL's chunked log-probabilities (its default loss)
    keras_*      keras-hub's Gemma of the same size with its LoRA on all linears; its own attention, no packing mask
Needs beside Geode: pip install transformers peft trl keras-hub
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROWS, LENGTH, RANK, STEPS = 4, 512, 16, 3
DATA = Path(__file__).parents[1] / "recipes" / "assistant_own.jsonl"
GOALS = {"lora": {"plain": 4.0, "chunked": 4.0}, "full": {"plain": 2.0, "chunked": 2.0}}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TILE = 32768  # tokens of the vocabulary that TRL's loss takes at a time
Step = Callable[[Any], float]


def recipe(args: argparse.Namespace) -> Any:
    from geode.tune import Batch, Data, Full, Lora, Recipe, Run

    return Recipe(
        model="gemma3:270m",
        data=Data(train=(str(DATA),), holdout=0, template="gemma", length=LENGTH, learn=args.learn),
        method=Lora(rank=RANK) if args.method == "lora" else Full(),
        batch=Batch(rows=ROWS),
        run=Run(steps=STEPS + 1, dtype=args.dtype, remat=args.remat),
    )


def micros(args: argparse.Namespace) -> Iterator[Any]:
    """The rows that all contestants are given, step by step."""
    from geode import checkpoint
    from geode.io import hub
    from geode.tune import batches, corpus

    described = recipe(args)
    words = corpus.words(described, checkpoint.open(hub.resolve(described.model)))
    steps = batches.steps(corpus.gather(described, words[1], words[0]).train, described, fixed=args.on != "torch")
    return (steps.at(i)[0] for i in range(steps.count))


def geode(args: argparse.Namespace) -> Step:
    from geode import checkpoint
    from geode.io import hub
    from geode.tune import setup

    described, choice = recipe(args), setup.Choice(args.on, args.dtype, "")
    from geode.network import backend

    backend.select(args.on)
    found = checkpoint.open(hub.resolve(described.model))
    trainer = setup.trainer(described, *setup.network(described, found, choice))
    return lambda micro: trainer.step([micro.arrays()], 1e-4).loss


def transformers_model(args: argparse.Namespace) -> Any:
    import torch
    import transformers

    options = {"dtype": getattr(torch, args.dtype), "attn_implementation": "sdpa"}
    model = transformers.AutoModelForCausalLM.from_pretrained(args.folder, **options)
    if args.method == "full":
        return model
    import peft

    options = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": list(LINEARS), "task_type": "CAUSAL_LM"}
    return peft.get_peft_model(model, peft.LoraConfig(**options))


def torch_step(args: argparse.Namespace, loss_of: Callable[[Any, dict[str, Any]], Any]) -> Step:
    import torch

    model = transformers_model(args)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step(micro: Any) -> float:
        labels = np.full(micro.tokens_BT.shape, -100)
        weight = micro.weights_M > 0
        labels.reshape(-1)[micro.at_M[weight] + 1] = micro.targets_M[weight]
        ids, positions = micro.tokens_BT, np.maximum(micro.positions_BT, 0)
        given = {"input_ids": ids, "labels": labels, "position_ids": positions}
        loss = loss_of(model, {name: torch.as_tensor(array).long() for name, array in given.items()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def plain(args: argparse.Namespace) -> Step:
    return torch_step(args, lambda model, given: model(**given, use_cache=False).loss)


def chunked(args: argparse.Namespace) -> Step:
    """As TRL's trainer has it where there is no Triton: all positions, forward and again in the backward."""
    from trl.kernels import ChunkedLogProbFunction

    def loss(model: Any, given: dict[str, Any]) -> Any:
        labels = given.pop("labels")[:, 1:]
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        hidden = inner.model(**given, use_cache=False).last_hidden_state[:, :-1]
        flat = hidden.reshape(-1, hidden.shape[-1])
        targets = labels.clamp(min=0).reshape(-1)
        found = ChunkedLogProbFunction.apply(flat, inner.lm_head.weight, None, targets, 1.0, TILE, None, 1.0, ())
        kept = labels.reshape(-1) >= 0
        return -found[0][kept].sum() / kept.sum()

    return torch_step(args, loss)


def keras_hub(args: argparse.Namespace) -> Step:
    import keras
    import keras_hub

    keras.config.set_dtype_policy("bfloat16" if args.dtype == "bfloat16" and args.on == "torch" else "float32")
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=262144, num_layers=18, num_query_heads=4, num_key_value_heads=1, hidden_dim=640,
        intermediate_dim=2 * 2048, head_dim=256,
    )  # fmt: skip
    if args.method == "lora":
        names = ["query", "key", "value", "attention_output", "ffw_gating", "ffw_gating_2", "ffw_linear"]
        backbone.enable_lora(RANK, target_layer_names=names)
    model = keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, optimizer=keras.optimizers.AdamW(1e-4), weighted_metrics=[])

    def step(micro: Any) -> float:
        ids = micro.tokens_BT
        learnt = np.zeros(ids.shape, np.float32)
        learnt.reshape(-1)[micro.at_M[micro.weights_M > 0]] = 1
        given = {"token_ids": ids, "padding_mask": micro.segments_BT > 0}
        return float(model.train_on_batch(given, np.roll(ids, -1, 1), sample_weight=learnt))

    return step


CONTESTANTS = {"geode": geode, "plain": plain, "chunked": chunked, "keras_jax": keras_hub, "keras_torch": keras_hub}


def one(args: argparse.Namespace) -> dict[str, Any]:
    """One contestant, in this process."""
    if args.on == "torch":
        import torch

        torch.set_num_threads(args.threads)
    rows = list(micros(args))
    step = CONTESTANTS[args.one](args)
    losses, seconds = [], []
    for micro in rows:
        start = time.perf_counter()
        losses.append(step(micro))
        seconds.append(time.perf_counter() - start)
    tokens = statistics.mean(micro.tokens for micro in rows[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {
        "speed": tokens / min(seconds[1:]),
        "peak": peak,
        "losses": losses,
        "learnt": rows[0].learnt / rows[0].tokens,
    }


def apart(who: str, args: argparse.Namespace) -> dict[str, Any]:
    """The same in a process of its own."""
    on = {"keras_jax": "jax", "keras_torch": "torch"}.get(who, args.on)
    words = f"--learn {args.learn} --method {args.method} --remat {args.remat} --threads {args.threads}"
    dtype = "float32" if on == "jax" else args.dtype
    command = [sys.executable, __file__, "--one", who, "--on", on, "--dtype", dtype, "--folder", args.folder]
    environment = os.environ | {"KERAS_BACKEND": on, "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run([*command, *words.split()], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{who} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peak_flops(threads: int) -> float:
    """What this machine multiplies bfloat16 at, of large matrices: FLOP/s."""
    import torch

    torch.set_num_threads(threads)
    a = torch.randn(4096, 4096).bfloat16()
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 4096**3 / best


def flops(learnt: float, method: str) -> float:
    """Operations of a token that cannot be left out: blocks forth and back, the head where it is learnt."""
    from geode import checkpoint
    from geode.io import hub
    from geode.tensors import shapes

    config = checkpoint.open(hub.resolve("gemma3:270m")).config
    matrices = [shape for name, shape in shapes(config).items() if name.startswith("blk.") and len(shape) == 2]
    blocks = 2 * sum(rows * columns for rows, columns in matrices)
    pairs = 2 * RANK * sum(rows + columns for rows, columns in matrices)
    head = 2 * config.vocab * config.width
    times = 3 if method == "full" else 2
    return times * blocks + (3 * pairs if method == "lora" else 0) + times * learnt * head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", default=["plain", "chunked"], choices=list(CONTESTANTS)[1:])
    parser.add_argument("--learn", default="assistant", choices=("assistant", "all"))
    parser.add_argument("--method", default="lora", choices=("lora", "full"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--remat", default="none", choices=("none", "block"))
    parser.add_argument("--on", default="torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.folder = str(Path(folder) / "gemma")
        if {"plain", "chunked"} & set(args.peers):
            from geode.conversion import convert

            convert("gemma3:270m", args.folder, "hf", dtype="bfloat16", check=False, quiet=True)
        compare(args)


def compare(args: argparse.Namespace) -> None:
    top = peak_flops(args.threads)
    print(f"bfloat16 products of 4096³: {top / 1e9:.0f} GFLOP/s on {args.threads} threads")
    head = (f"{'peer':<13}", f"{'geode tok/s':>12}", f"{'peer tok/s':>12}", f"{'ratio':>7}", f"{'goal':>6}")
    print("".join(head) + f"{'peak GB':>16}{'of it':>7}{'of peak':>9}")
    for peer in args.peers:
        goal = GOALS[args.method].get(peer, 2.0)
        args.on = {"keras_jax": "jax"}.get(peer, "torch")
        rounds = [(apart("geode", args), apart(peer, args)) for _ in range(args.rounds)]
        ours, theirs = ([one[i] for one in rounds] for i in (0, 1))
        ratio = statistics.median(a["speed"] / b["speed"] for a, b in rounds)
        mine, other = (statistics.median(one["speed"] for one in side) for side in (ours, theirs))
        peaks = [statistics.median(one["peak"] for one in side) for side in (ours, theirs)]
        share = mine * flops(ours[0]["learnt"], args.method) / top
        memory = f"{peaks[0]:.2f} / {peaks[1]:.2f}"
        line = f"{peer:<13}{mine:>12.0f}{other:>12.0f}{ratio:>7.2f}{goal:>6.1f}{memory:>16}"
        line += f"{peaks[0] / peaks[1]:>7.2f}{share:>9.0%}"
        print(line, flush=True)
        if peer in ("plain", "chunked"):
            pairs = zip(ours[0]["losses"], theirs[0]["losses"], strict=True)
            print("  losses  " + "  ".join(f"{a:.4f}/{b:.4f}" for a, b in pairs))


if __name__ == "__main__":
    main()
