"""Decode speed and peak memory beside keras-hub and transformers: same network, same framework, one run.

    python benchmarks/generate.py                                  # all pairs, float32
    python benchmarks/generate.py --dtype bfloat16 --rounds 5 --only jax

The network is a Gemma 1 of Gemma 3 270M's size, with random weights (keras-hub 0.32 runs no Gemma 3 without its
preprocessor). Contestants run in turn, each in a process of its own, so a slow spell
of the machine meets all of them; the ratio is taken round by round and its median is what counts. Decode speed is
(time for N tokens - time for 1 token) / (N - 1), so prompt processing and compilation are not in it.
Needs keras-hub and transformers beside Geode: pip install keras-hub transformers
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

PROMPT = [2, *range(1000, 1031)]
TOKENS = 48
PAIRS = (("jax", "keras_hub", 1.5), ("torch", "keras_hub", 1.5), ("torch", "transformers", 1.0))
SIZES = {"vocab": 262144, "width": 640, "depth": 18, "heads": 4, "kv_heads": 1, "head_dim": 256, "ffn": 2048}
CONTEXT = 8192


def geode_runner(on: str, dtype: str) -> Callable[[int], None]:
    import numpy as np

    from geode.config import Config, Norm
    from geode.network import backend

    backend.select(on)
    from geode.lm import Local
    from geode.network.decoder import Decoder
    from geode.network.executor import Executor
    from geode.tensors import shapes

    norm = Norm("rms", eps=1e-6)
    config = Config(**SIZES, context=CONTEXT, norm=norm, activation="gelu_tanh", scale_embedding=True, tied=True)
    known = shapes(config)
    random = np.random.default_rng(0)
    decoder = Decoder(config, lambda name: random.standard_normal(known[name], np.float32) * 0.02, dtype)
    lm = Local(Executor(decoder))
    return lambda count: lm.generate(PROMPT, max_tokens=count, temperature=0)


def keras_hub_runner(on: str, dtype: str) -> Callable[[int], None]:
    os.environ["KERAS_BACKEND"] = on
    import keras
    import keras_hub
    import numpy as np

    keras.config.set_dtype_policy(dtype)
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=SIZES["vocab"], num_layers=SIZES["depth"], num_query_heads=SIZES["heads"],
        num_key_value_heads=SIZES["kv_heads"], hidden_dim=SIZES["width"], head_dim=SIZES["head_dim"],
        intermediate_dim=2 * SIZES["ffn"],  # keras-hub counts gate and up together
        dtype=dtype,
    )  # fmt: skip
    model = keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)
    model.compile(sampler="greedy")

    def run(count: int) -> None:
        length = len(PROMPT) + count
        ids = np.zeros((1, length), "int32")
        ids[0, : len(PROMPT)] = PROMPT
        mask = np.arange(length)[None] < len(PROMPT)
        model.generate({"token_ids": ids, "padding_mask": mask}, stop_token_ids=None)

    return run


def transformers_runner(on: str, dtype: str) -> Callable[[int], None]:
    import torch
    import transformers

    config = transformers.GemmaConfig(
        vocab_size=SIZES["vocab"], hidden_size=SIZES["width"], num_hidden_layers=SIZES["depth"],
        num_attention_heads=SIZES["heads"], num_key_value_heads=SIZES["kv_heads"], head_dim=SIZES["head_dim"],
        intermediate_size=SIZES["ffn"],
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    ids = torch.tensor([PROMPT])

    def run(count: int) -> None:
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    return run


RUNNERS = {"geode": geode_runner, "keras_hub": keras_hub_runner, "transformers": transformers_runner}


def one(who: str, on: str, dtype: str) -> dict[str, float]:
    """One contestant, in this process: tokens per second (best of three) and peak memory."""
    run = RUNNERS[who](on, dtype)
    run(1), run(TOKENS)  # compile and warm
    speeds = []
    for _ in range(3):
        start = time.perf_counter()
        run(1)
        middle = time.perf_counter()
        run(TOKENS)
        end = time.perf_counter()
        speeds.append((TOKENS - 1) / ((end - middle) - (middle - start)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"speed": statistics.median(speeds), "peak": peak}


def apart(who: str, on: str, dtype: str) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", who, "--only", on, "--dtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"KERAS_BACKEND": on})
    if done.returncode:
        raise SystemExit(f"{who} on {on} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="one framework")
    parser.add_argument("--one", choices=RUNNERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.only, args.dtype)))
        return
    print(
        f"{'framework':<11}{'peer':<14}{'geode tok/s':>12}{'peer tok/s':>12}{'ratio':>8}{'to reach':>10}{'peak MB':>18}"
    )
    for on, peer, goal in PAIRS:
        if args.only in (None, on):
            rounds = [(apart("geode", on, args.dtype), apart(peer, on, args.dtype)) for _ in range(args.rounds)]
            ratio = statistics.median(ours["speed"] / theirs["speed"] for ours, theirs in rounds)
            mine, other = (statistics.median(r[i]["speed"] for r in rounds) for i in (0, 1))
            peaks = " vs ".join(f"{max(r[i]['peak'] for r in rounds):.0f}" for i in (0, 1))
            print(f"{on:<11}{peer:<14}{mine:>12.1f}{other:>12.1f}{ratio:>8.2f}{goal:>10.1f}{peaks:>18}", flush=True)


if __name__ == "__main__":
    main()
