"""Converting a large checkpoint: `geode convert` beside `cp` and beside llama.cpp's converter and quantiser, in turns.

    python benchmarks/convert.py --scratch /big/disk --llama-cpp llama.cpp --llama-bin llama.cpp/build/bin

The source is a Hugging Face directory of Gemma 2B's shape with random weights in bfloat16, 5.0 GB, written once. Each
round copies it (`cp` and sync), converts it to each type with geode, and converts it with llama.cpp: its
convert_hf_to_gguf.py to bfloat16 and llama-quantize after it, which is how its users do it. Files are in the system's
cache or not for all alike: --cold empties it before every step (as root, on Linux). A ratio is taken round by round and
its median counts. Memory: the largest anonymous part of the process (its own, without pages of mapped files), and the
whole resident size, which grows with the cache that the system lends.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import synthetic

from geode import families, tokenizer
from geode.dialects import hf as dialect
from geode.io import safetensors
from geode.tensors import Entry, Tensors, shapes

TYPES = ("q4_0", "q4_k_m")
SHARD = 5_000_000_000
POOL = 1 << 24  # random numbers that all matrices are cut from: drawing billions takes longer than all else here


@dataclass
class Step:
    """One command, all rounds: seconds, and the largest memory in bytes."""

    seconds: list[float] = field(default_factory=list)
    own: int = 0
    resident: int = 0


def make_source(folder: Path) -> int:
    """Writes the checkpoint where it is not there yet; returns its bytes."""
    family, config = families.by_name("gemma"), synthetic.GEMMA_2B
    stored = dialect.write(
        Tensors({name: _entry(name, shape) for name, shape in shapes(config).items()}), config, family
    )
    if not (folder / "config.json").exists():
        safetensors.write(folder, stored, max_shard_bytes=SHARD)
        words = tokenizer.vocabulary(synthetic._tokenizer(config.vocab))
        assert words is not None
        for name, data in tokenizer.to_hf(words, None, config.context).items():
            (folder / name).write_bytes(data)
        (folder / "config.json").write_text(json.dumps(family.config_to_hf(config) | {"torch_dtype": "bfloat16"}))
    return stored.nbytes


def _entry(name: str, shape: tuple[int, ...]) -> Entry:
    size = int(np.prod(shape))
    return Entry(shape, "BF16", 2 * size, partial(_weights, name, shape))


def _weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape))
    start = sum(name.encode()) * 4099 % POOL
    pool = np.resize(np.roll(_pool(), -start), size)
    spread = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
    return (pool * np.float32(spread)).astype(ml_dtypes.bfloat16).reshape(shape)


def _pool(kept: list[np.ndarray] = []) -> np.ndarray:  # noqa: B006
    if not kept:
        kept.append(np.random.default_rng(0).standard_normal(POOL, np.float32))
    return kept[0]


def timed(step: Step, command: list[str], cold: bool) -> None:
    """Runs a command to its end, with what it wrote on the disk, and watches its memory."""
    if cold:
        empty_cache()
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        watcher = threading.Thread(target=_watch, args=(process, step), daemon=True)
        watcher.start()
        _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{said[-2000:]}")
    os.sync()
    step.seconds.append(time.perf_counter() - begun)


def _watch(process: subprocess.Popen[str], step: Step) -> None:
    while process.poll() is None:
        try:
            text = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        found = {
            line.split(":")[0]: line.split()[1] for line in text.splitlines() if line.startswith(("RssAnon", "VmHWM"))
        }
        step.own = max(step.own, int(found.get("RssAnon", 0)) * 1024)
        step.resident = max(step.resident, int(found.get("VmHWM", 0)) * 1024)
        time.sleep(0.05)


def empty_cache() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def plan(args: argparse.Namespace, source: Path) -> dict[str, Callable[[], list[list[str]]]]:
    """Names of the steps and the commands of each."""
    out = args.scratch / "out"
    geode = [sys.executable, "-m", "geode", "convert", str(source), "--quiet", "--force"]
    verified = [] if args.verify else ["--no-verify"]
    steps: dict[str, Callable[[], list[list[str]]]] = {
        "cp": lambda: [["cp", "-r", str(source), str(out)]],
    }
    for kind in args.types:
        steps[f"geode {kind}"] = partial(
            lambda kind: [[*geode, str(out / f"{kind}.gguf"), "--quant", kind, *verified]], kind
        )
    if args.llama_cpp and args.llama_bin:
        converter = [sys.executable, str(args.llama_cpp / "convert_hf_to_gguf.py"), str(source), "--outtype", "bf16"]
        whole = str(out / "whole.gguf")
        steps["llama.cpp bf16"] = lambda: [[*converter, "--outfile", whole]]
        for kind in args.types:
            quantise = [
                str(args.llama_bin / "llama-quantize"),
                whole,
                str(out / f"{kind}.gguf"),
                kind,
                str(args.threads),
            ]
            steps[f"llama.cpp {kind}"] = partial(lambda command: [command], quantise)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="a directory with 20 GB of room")
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's sources, for convert_hf_to_gguf.py")
    parser.add_argument("--llama-bin", type=Path, help="the directory of llama-quantize")
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cold", action="store_true", help="empty the system's cache before each step")
    parser.add_argument("--verify", action="store_true", help="geode verifies what it wrote, in the same time")
    args = parser.parse_args()
    source = args.scratch / "source"
    source.mkdir(parents=True, exist_ok=True)
    nbytes = make_source(source)
    steps = plan(args, source)
    done = {name: Step() for name in steps}
    for _ in range(args.rounds):
        shutil.rmtree(args.scratch / "out", ignore_errors=True)
        (args.scratch / "out").mkdir()
        for name, commands in steps.items():
            for command in commands():
                timed(done[name], command, args.cold)
            if name == "cp":
                shutil.rmtree(args.scratch / "out" / "source")
            print(f"{name}: {done[name].seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    report(done, nbytes, args.types)


def report(done: dict[str, Step], nbytes: int, types: list[str]) -> None:
    """One line a step, and the two ratios that count."""
    print(f"source: {nbytes / 1e9:.2f} GB in bfloat16")
    for name, step in done.items():
        seconds = statistics.median(step.seconds)
        print(
            f"{name:<18}{seconds:8.1f} s  {nbytes / seconds / 1e9:6.2f} GB/s of source  "
            f"own memory {step.own / 1e6:7.0f} MB, resident {step.resident / 1e6:7.0f} MB"
        )
    for kind in types:
        ours = done[f"geode {kind}"].seconds
        copy = statistics.median(c / o for c, o in zip(done["cp"].seconds, ours, strict=True))
        print(f"{kind}: {copy:.2f} of the copy's speed", end="")
        if f"llama.cpp {kind}" in done:
            both = zip(done["llama.cpp bf16"].seconds, done[f"llama.cpp {kind}"].seconds, ours, strict=True)
            print(f", {statistics.median((a + b) / o for a, b, o in both):.2f} × llama.cpp", end="")
        print()


if __name__ == "__main__":
    main()
