"""`geode bench`: how fast a model runs on this machine, as users of llama-bench expect it.

How that is measured is not known here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import PurePath
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from . import options, screen

if TYPE_CHECKING:
    from ..bench import Test, Timing


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "bench",
        help="measure how fast a model runs",
        description="Measures prompt processing (pp) and generation (tg) in tokens per second, as llama-bench does: "
        "random tokens, greedy, one run to warm up, then mean ± deviation of the repetitions. Lists have commas.",
        conflict_handler="resolve",  # a list of thread counts takes the place of the one
    )
    options.add_model(parser)
    parser.add_argument("--prompt", type=_counts, default=[512], metavar="N,...", help="lengths of prompts (512)")
    parser.add_argument("--generate", type=_counts, default=[128], metavar="N,...", help="tokens to generate (128)")
    parser.add_argument(
        "--depth", type=_counts, default=[0], metavar="N,...", help="tokens before the generated ones (0)"
    )
    parser.add_argument("--repeat", type=_positive, default=5, metavar="N", help="times that each test runs (5)")
    parser.add_argument("--threads", type=_counts, default=[None], metavar="N,...", help="CPU threads, a row for each")
    parser.add_argument("--json", action="store_true", help="as JSON: one document, or a list where threads are")


def main(args: argparse.Namespace) -> None:
    tests = _tests(args)
    documents: list[dict[str, Any]] = []
    for threads in args.threads:
        documents.append(_bench(args, tests, threads, first=not documents))
    if args.json:
        return screen.dump(documents[0] if len(documents) == 1 else documents)
    for document in documents:
        print("\n" + "\n".join(_remarks(document)))


def _counts(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = [-1]
    if min(counts) < 0:
        raise argparse.ArgumentTypeError(f"expected numbers of 0 or more with commas between, got {text!r}")
    return counts


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)


def _tests(args: argparse.Namespace) -> list[Test]:
    """As llama-bench, 0 tokens means no such test."""
    from ..bench import Test

    prompts = [Test("pp", tokens) for tokens in args.prompt if tokens]
    tests = prompts + [Test("tg", tokens, depth) for depth in args.depth for tokens in args.generate if tokens]
    if not tests:
        raise OptionError("Nothing is to be measured: --prompt and --generate are both 0. Give one of them a length.")
    return tests


def _bench(args: argparse.Namespace, tests: list[Test], threads: int | None, first: bool) -> dict[str, Any]:
    """One document; in a table, its rows as they come."""
    from .. import bench

    begun = perf_counter()
    lm = options.load(argparse.Namespace(**vars(args) | {"threads": threads}))
    document = _head(args, lm, threads, perf_counter() - begun)
    bench.check(lm, tests)
    timings = []
    for test in tests:
        timings.append(bench.run(lm, test, args.repeat))
        if not args.json:
            print("\n".join(_lines(document, timings[-1], head=first and len(timings) == 1)), flush=True)
    document["peak_rss"] = bench.peak_memory()  # before the machine is measured, which takes memory of its own
    document["bandwidth"], document["peak_flops"] = bench.machine(document["threads"])
    document["tests"] = [_entry(lm, document, timing) for timing in timings]
    return document


def _head(args: argparse.Namespace, lm: Any, threads: int | None, loaded: float) -> dict[str, Any]:
    from .. import bench
    from ..tensors import parameters

    known = bench.facts(lm)
    stored = _stored(args.model)
    return {
        "model": args.model,
        "size": stored,
        "parameters": parameters(lm.config),
        "backend": known.get("backend") or _backend(lm.executor, args.on),
        "isa": known.get("isa"),
        "threads": known.get("threads") or threads,
        "kv_type": known.get("kv_type"),
        "load_seconds": loaded,
        "weights_bytes": known.get("weights_bytes") or stored,
        "bytes_per_token": bench.bytes_per_token(known, 0),
    }


def _stored(model: str) -> int:
    """Bytes of the tensors in the file."""
    from .. import checkpoint
    from ..io import hub

    return checkpoint.open(hub.resolve(model)).stored.nbytes


def _backend(executor: Any, on: str) -> str:
    """What runs an open model; of a framework, its name."""
    if on != "auto":
        return on
    if ".network." not in type(executor).__module__:
        return "native"
    from ..network import backend

    return backend.name()


def _entry(lm: Any, document: dict[str, Any], timing: Timing) -> dict[str, Any]:
    from .. import bench

    test = timing.test
    entry = {
        "test": test.name,
        "tokens": test.tokens,
        "depth": test.depth,
        "tokens_per_second": timing.speed,
        "stddev": timing.deviation,
        "samples": list(timing.samples),
    }
    if test.kind == "pp":
        flops = bench.prompt_flops(lm, test.tokens) * timing.speed
        return entry | {"flops": flops, "of_peak": _share(flops, document["peak_flops"])}
    read = bench.bytes_per_token(bench.facts(lm), test.depth + test.tokens // 2)
    rate = None if read is None else read * timing.speed
    return entry | {
        "bytes_per_token": read,
        "bytes_per_second": rate,
        "of_bandwidth": _share(rate, document["bandwidth"]),
    }


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part and whole else None


COLUMNS = (("size", 10), ("params", 10), ("backend", 10), ("threads", 7), ("test", 14), ("t/s", 18))


def _lines(document: dict[str, Any], timing: Timing, head: bool) -> Iterator[str]:
    """A row of the table, under its head where it is the first. The columns are llama-bench's."""
    name = PurePath(document["model"]).name
    width = max(len(name), len("model"))
    if head:
        yield f"| {'model':<{width}} | " + " | ".join(f"{title:>{wide}}" for title, wide in COLUMNS) + " |"
        yield f"| {'-' * width} | " + " | ".join("-" * (wide - 1) + ":" for _, wide in COLUMNS) + " |"
    test = timing.test
    cells = (
        f"{document['size'] / 2**20:.2f} MiB",
        f"{document['parameters'] / 1e6:.2f} M",
        document["backend"],
        str(document["threads"] or "auto"),
        f"{test.kind}{test.tokens}" + (f" @ d{test.depth}" if test.depth else ""),
        f"{timing.speed:.2f} ± {timing.deviation:.2f}",
    )
    rows = (f"{cell:>{wide}}" for cell, (_, wide) in zip(cells, COLUMNS, strict=True))
    yield f"| {name:<{width}} | " + " | ".join(rows) + " |"


def _remarks(document: dict[str, Any]) -> Iterator[str]:
    """What a table of speeds does not say: loading, memory, and how near to the machine's limits each test came."""
    memory, weights = document["peak_rss"], document["weights_bytes"]
    parts = [
        f"threads {document['threads']}" if document["threads"] else "",
        document["isa"] or "",
        f"loaded in {document['load_seconds']:.2f} s",
        f"{weights / 1e6:.1f} MB of weights" if weights != document["size"] else "",
        f"at most {memory / 1e6:.1f} MB in memory" if memory else "",
    ]
    yield " · ".join(part for part in parts if part)
    yield from (line for test in document["tests"] if (line := _limit(document, test)))


def _limit(document: dict[str, Any], test: dict[str, Any]) -> str:
    """`tg128: 246.1 MB a token, 11.5 GB/s, 82 % of the memory's 14.0 GB/s`"""
    if test["test"].startswith("pp"):
        share, peak = test["of_peak"], document["peak_flops"]
        tail = f", {share:.0%} of the matrix units' {peak / 1e9:,.1f}" if share else ""
        return f"{test['test']}: {test['flops'] / 1e9:,.1f} GFLOP/s{tail}"
    if test["bytes_per_second"] is None:
        return ""
    share, bandwidth = test["of_bandwidth"], document["bandwidth"]
    tail = f", {share:.0%} of the memory's {bandwidth / 1e9:.1f} GB/s" if share else ""
    read = f"{test['bytes_per_token'] / 1e6:.1f} MB a token, {test['bytes_per_second'] / 1e9:.1f} GB/s"
    return f"{test['test']}: {read}{tail}"
