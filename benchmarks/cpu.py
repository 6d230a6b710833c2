"""Geode's native engine beside llama.cpp on one CPU: same files, same run, one process each, taking turns.

    python benchmarks/cpu.py --llama-bin llama.cpp/build/bin                # everything; an hour or more
    python benchmarks/cpu.py --only decode --models gemma3:270m --threads 1 --rounds 5
    GEODE_ISA=avx2 python benchmarks/cpu.py --only prefill --llama-python avx2-venv/bin/python

A ratio is taken round by round and its median counts, so a slow spell of the machine meets both. llama.cpp runs with
and without flash attention first and keeps the better. Above 1 is faster than the peer, for seconds and bytes as well.
Build the peer for this CPU: llama.cpp with GGML_NATIVE, or pip install llama-cpp-python from source; `xllamacpp` is
prebuilt, for AVX2. With --llama-bin, llama-bench and llama-completion of that directory are the peer; else the Python
binding in --llama-python's interpreter, which has no command to start. Models are names that `geode pull` knows, files,
or names of `synthetic.py`, written to --scratch where they are not there yet.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import synthetic

from geode.bench import Test
from geode.io import hub

HERE = Path(__file__).parent
PROMPT = "The capital of France is"
REAL = ("gemma3:270m", "smollm2:135m-instruct")
TESTS = {
    "decode": (Test("tg", 128), Test("tg", 128, 4096)),
    "prefill": (Test("pp", 512), Test("pp", 4096)),
    "start": (),
}
TIMES_FILE = 2.5  # memory for llama.cpp's mapped file, its repacked copy of it, and a cache


@dataclass(frozen=True)
class Done:
    """A process that ended well, seen from outside."""

    seconds: float
    peak: int  # bytes
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Row:
    """Medians over the rounds; `ratio` is above 1 where Geode is better."""

    model: str
    threads: int
    what: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    goal: float
    remark: str = ""

    def __str__(self) -> str:
        numbers = f"{self.ours:>11,.2f}{self.theirs:>11,.2f}{self.ratio:>8.2f}{self.goal:>7.2f}"
        verdict = "" if self.ratio >= self.goal else "short"
        head = f"{self.model:<24.24}{self.threads:>3}  {self.what:<16}{self.peer:<14}"
        return f"{head}{numbers}{verdict:>7}  {self.remark}".rstrip()


HEAD = f"{'model':<24}{'thr':>3}  {'what':<16}{'peer':<14}{'geode':>11}{'peer':>11}{'ratio':>8}{'goal':>7}"

# Contestants


def run(command: list[str | Path]) -> Done:
    """Runs a command to its end; the program stops here when it fails."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        child = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if child.returncode:
            tail = err.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{' '.join(map(str, command))} ended with {child.returncode}:\n{tail}")
        unit = 1 if sys.platform == "darwin" else 1024
        return Done(seconds, usage.ru_maxrss * unit, out.read().decode(errors="replace"))


def geode(path: Path, test: Test, threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """What `geode bench` says of one test: the document, with the test's entry in it."""
    sizes = {"--prompt": 0, "--generate": 0, "--depth": test.depth}
    sizes["--prompt" if test.kind == "pp" else "--generate"] = test.tokens
    flags = [str(word) for pair in sizes.items() for word in pair]
    command = [sys.executable, "-m", "geode", "bench", path, "--on", args.on, "--threads", threads, *flags]
    document = run([*command, "--repeat", args.repeat, "--json"]).json
    return document | document["tests"][0]


def llama(path: Path, test: Test, threads: int, flash: int, args: argparse.Namespace) -> float:
    """llama.cpp's tokens per second."""
    prompt, generate = (test.tokens, 0) if test.kind == "pp" else (0, test.tokens)
    if args.llama_bin:
        sizes = ["-p", prompt, "-n", generate, "-d", test.depth, "-t", threads, "-fa", flash, "-r", args.repeat]
        return float(run([args.llama_bin / "llama-bench", "-m", path, *sizes, "-o", "json"]).json[0]["avg_ts"])
    sizes = ["--prompt", prompt, "--generate", generate, "--depth", test.depth, "--flash", flash]
    command = [args.llama_python, HERE / "llama_python.py", path, *sizes, "--threads", threads]
    return statistics.fmean(run([*command, "--repeat", args.repeat]).json["samples"])


def transformers(path: Path, test: Test, threads: int, args: argparse.Namespace) -> float:
    """transformers' tokens per second, in bfloat16."""
    command = [sys.executable, __file__, "--transformers", path, "--threads", threads, "--repeat", args.repeat]
    return float(run([*command, "--tokens", test.tokens]).text)


def transformers_here(path: Path, tokens: int, threads: int, repeat: int) -> float:
    """The same, in this process."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16).eval()
    ids = torch.randint(1000, model.config.vocab_size, (1, tokens))
    speeds = []
    with torch.inference_mode():
        for _ in range(repeat + 1):
            start = time.perf_counter()
            model(ids, logits_to_keep=1)
            speeds.append(tokens / (time.perf_counter() - start))
    return statistics.fmean(speeds[1:])  # the first warms up


# Comparisons


def speeds(name: str, path: Path, test: Test, threads: int, args: argparse.Namespace) -> Iterator[Row]:
    """One test against every peer that can run it."""
    flash = max((1, 0), key=lambda on: llama(path, test, threads, on, args))
    peers: dict[str, Callable[[], float]] = {"llama.cpp": lambda: llama(path, test, threads, flash, args)}
    if name == REAL[0] and test.kind == "pp" and not args.no_transformers:
        peers["transformers"] = lambda: transformers(path, test, threads, args)
    documents, rounds = [], []
    for _ in range(args.rounds):
        documents.append(geode(path, test, threads, args))
        rounds.append({peer: measure() for peer, measure in peers.items()})
    ours = [document["tokens_per_second"] for document in documents]
    remark = _remark(documents[-1], statistics.median(ours))
    for peer in peers:
        goal = 2.0 if peer == "transformers" else _goal(name, test, documents[-1]["isa"])
        theirs = [found[peer] for found in rounds]
        yield _row(name, threads, f"{test.name} t/s", peer, ours, theirs, goal, remark if peer == "llama.cpp" else "")


def starts(name: str, path: Path, threads: int, args: argparse.Namespace) -> Iterator[Row]:
    """The whole command for one token, from a warm disk: seconds, and memory at its peak."""
    ours = [sys.executable, "-m", "geode", "run", path, PROMPT, "--on", args.on, "--raw", "--quiet"]
    ours += ["--threads", threads, "--max-tokens", 1, "--temperature", 0]
    theirs = [args.llama_bin / "llama-completion", "-m", path, "-p", PROMPT, "-n", 1, "-t", threads, "--temp", 0]
    theirs += ["-no-cnv", "--no-warmup", "-c", 4096]
    run(ours), run(theirs)  # both from a warm disk and warm caches
    rounds = [(run(ours), run(theirs)) for _ in range(max(args.rounds, 5))]
    seconds, peaks = ([[read(pair[side]) for pair in rounds] for side in (0, 1)] for read in _READINGS)
    yield _row(name, threads, "start s", "llama.cpp", *seconds, 1.0, inverse=True)
    yield _row(name, threads, "peak MB", "llama.cpp", *peaks, 1.0, f"file {path.stat().st_size / 1e6:,.0f} MB", True)


_READINGS: tuple[Callable[[Done], float], ...] = (lambda done: done.seconds, lambda done: done.peak / 1e6)


def _row(
    name: str, threads: int, what: str, peer: str, ours: list[float], theirs: list[float], goal: float,
    remark: str = "", inverse: bool = False,
) -> Row:  # fmt: skip
    ratios = [b / a if inverse else a / b for a, b in zip(ours, theirs, strict=True)]
    middle = statistics.median
    return Row(name, threads, what, peer, middle(ours), middle(theirs), middle(ratios), goal, remark)


def _goal(name: str, test: Test, isa: str | None) -> float:
    if test.kind == "pp":
        return 4.0 if isa is None or isa.startswith(("avx512", "amx")) else 1.1
    return 1.5 if name == REAL[0] else 1.3


def _remark(document: dict[str, Any], speed: float) -> str:
    parts = [f"{document['isa']}", f"load {document['load_seconds']:.2f} s"]
    if bytes_each := document.get("bytes_per_token"):
        rate = bytes_each * speed
        parts.append(f"{bytes_each / 1e6:.0f} MB/token, {rate / document['bandwidth']:.0%} of bandwidth")
    return ", ".join(parts)


def kept(rows: list[Row]) -> Iterator[str]:
    """How much of its decode speed each side keeps when 4,096 tokens are in the cache."""
    found = {(row.model, row.threads, row.what): row for row in rows}
    for (model, threads, what), far in found.items():
        near = found.get((model, threads, what.replace("@4096", "")))
        if near is not None and near is not far:
            ours, theirs = far.ours / near.ours, far.theirs / near.theirs
            yield f"{model}, {threads} threads: decode at 4,096 keeps {ours:.0%} (goal 80 %), llama.cpp's {theirs:.0%}"


# Models


def find(name: str, scratch: Path) -> Path | None:
    """The file of a model; None, with a word why, when this machine is too small for it."""
    if name not in synthetic.MODELS:
        return hub.resolve(name)
    path = scratch / f"{name}.gguf"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if synthetic.size(name) * TIMES_FILE > memory:
        print(f"{name} left out: {synthetic.size(name):,} bytes, and this machine has {memory:,} of memory")
        return None
    if not path.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        synthetic.write(name, path)
    return path


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TESTS, help="one kind of measurement")
    parser.add_argument("--models", nargs="+", default=[*REAL, *synthetic.MODELS], metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each side takes")
    parser.add_argument("--repeat", type=int, default=1, help="repetitions inside a turn")
    parser.add_argument("--on", default="native", help="Geode's executor")
    found = shutil.which("llama-bench")
    where = Path(found).parent if found else None
    parser.add_argument("--llama-bin", type=Path, default=where, metavar="DIR", help="where llama-bench is")
    parser.add_argument("--llama-python", type=Path, metavar="PATH", help="an interpreter with llama.cpp's binding")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "geode-benchmarks")
    parser.add_argument("--no-transformers", action="store_true", help="llama.cpp is the only peer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    parser.add_argument("--transformers", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=512, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.llama_python:
        args.llama_bin = None
    args.llama_python = args.llama_python or Path(sys.executable)
    return args


def measurements(args: argparse.Namespace) -> Iterator[Row]:
    kinds = [args.only] if args.only else list(TESTS)
    for name in args.models:
        path = find(name, args.scratch)
        for threads in args.threads if path else ():
            for test in (test for kind in kinds for test in TESTS[kind]):
                yield from speeds(name, path, test, threads, args)
            if "start" in kinds and args.llama_bin:
                yield from starts(name, path, threads, args)


def main() -> None:
    args = options()
    if args.transformers:
        print(transformers_here(args.transformers, args.tokens, args.threads[0], args.repeat))
        return
    print(HEAD)
    rows = []
    for row in measurements(args):
        rows.append(row)
        print(row, flush=True)
    print(*kept(rows), sep="\n")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
