"""One llama-bench test through llama.cpp's Python bindings, for a peer that brings no llama-bench: a line of JSON.

    python benchmarks/llama_python.py model.gguf --prompt 512 --threads 2 --flash 1
    python benchmarks/llama_python.py model.gguf --generate 128 --depth 4096

Runs in whatever interpreter has `llama_cpp` (llama-cpp-python) or `xllamacpp`, and needs nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import time
from typing import Any


def with_llama_cpp(args: argparse.Namespace) -> dict[str, Any]:
    """Through the C functions that the binding exposes, as llama-bench calls them: random tokens, nothing sampled."""
    import ctypes

    import llama_cpp as api

    keep = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(keep, None)
    begun = time.perf_counter()
    model = api.llama_model_load_from_file(args.model.encode(), api.llama_model_default_params())
    options = api.llama_context_default_params()
    options.n_ctx = args.depth + args.prompt + args.generate
    options.n_threads = options.n_threads_batch = args.threads
    options.flash_attn_type = args.flash
    context = api.llama_init_from_model(model, options)
    loaded = time.perf_counter() - begun
    vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))

    def process(count: int) -> None:
        tokens = (ctypes.c_int32 * count)(*random.choices(range(vocab), k=count))
        if api.llama_decode(context, api.llama_batch_get_one(tokens, count)):
            raise SystemExit(f"llama_decode failed on {count} tokens")
        api.llama_synchronize(context)

    def prompt(count: int) -> None:
        for at in range(0, count, options.n_batch):
            process(min(options.n_batch, count - at))

    def once() -> float:
        api.llama_memory_clear(api.llama_get_memory(context), True)
        prompt(args.depth)
        start = time.perf_counter()
        prompt(args.prompt)
        for _ in range(args.generate):
            process(1)
        return (args.prompt + args.generate) / (time.perf_counter() - start)

    process(1)  # weights are read from the disk by their first use
    return {"load_seconds": loaded, "samples": [once() for _ in range(args.repeat)]}


def with_xllamacpp(args: argparse.Namespace) -> dict[str, Any]:
    """Through its server, which times prompt and answer itself; greedy, for a server cannot but sample."""
    import xllamacpp as api

    options = api.CommonParams()
    options.model.path = args.model
    options.n_ctx, options.n_parallel, options.verbosity = args.depth + args.prompt + args.generate + 64, 1, -1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = args.threads
    options.flash_attn_type = api.llama_flash_attn_type(args.flash)
    begun = time.perf_counter()
    server = api.Server(options)
    loaded = time.perf_counter() - begun

    def once() -> float:
        ids = random.choices(range(300, 30_000), k=args.depth + args.prompt or 1)
        asked = {"prompt": ids, "n_predict": args.generate or 1, "cache_prompt": False, "ignore_eos": True}
        timings = server.handle_completions(asked | {"temperature": 0})["timings"]
        return float(timings["predicted_per_second" if args.generate else "prompt_per_second"])

    return {"load_seconds": loaded, "samples": [once() for _ in range(args.repeat)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    for name in ("prompt", "generate", "depth"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--flash", type=int, default=1, choices=(0, 1))
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()
    run = with_llama_cpp if importlib.util.find_spec("llama_cpp") else with_xllamacpp
    print(json.dumps(run(args)))


if __name__ == "__main__":
    main()
