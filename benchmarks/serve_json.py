"""Answers bound to random JSON schemas: whether each validates, and how fast they come beside answers that are free.

    python benchmarks/serve_json.py model.gguf                       # 500 schemas, 8 at a time, greedy
    python benchmarks/serve_json.py model.gguf --temperature 0.8 --schemas 100

Each schema goes with its own prompt to the engine. Blocks alternate in one run: the bound answers of a block of
schemas, then as many tokens for the same prompts unbound (the end tokens forbidden). Speculation is off for both: free
answers of a small model repeat themselves. Compiling a schema counts with the bound answers; the tables of the
vocabulary, made once for a model, are told of apart. An answer cut off by --tokens counts as a failure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema_rs

from geode import engine, lm
from geode.engine.request import Request
from geode.generate import Options
from geode.serve.ask import JsonSchema
from geode.serve.grammar import guide, vocabulary

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from random_schemas import random_schema

GOAL = 0.9


@dataclass
class Tally:
    """What one way of answering took, block by block."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, tokens: int, seconds: float) -> None:
        self.tokens.append(tokens)
        self.seconds.append(seconds)

    @property
    def speed(self) -> float:
        return sum(self.tokens) / sum(self.seconds)


class Bench:
    """A model behind an engine, and the wishes of the command line."""

    def __init__(self, given: argparse.Namespace):
        self.model = lm.open(given.model, threads=given.threads)
        self.options = partial(Options, temperature=given.temperature, seed=0)
        self.tokens = given.tokens
        self.engine = engine.open(
            self.model.executor, tokenizer=self.model.tokenizer, ends=self.model.ends, slots=given.clients
        )
        self.pool = ThreadPoolExecutor(given.clients)
        begun = time.perf_counter()
        self.bind = partial(guide, self.model.tokenizer, self.model.config.vocab, self.model.ends)  # type: ignore[arg-type]
        vocabulary(self.model.tokenizer, self.model.config.vocab, self.model.ends)  # type: ignore[arg-type]
        print(f"tables of {self.model.config.vocab} tokens: {time.perf_counter() - begun:.1f} s")

    def prompt(self, schema: Any) -> list[int]:
        wish = f"Write a JSON object about a friend of yours. It must follow this schema:\n{json.dumps(schema)}"
        return self.model.ids_of([{"role": "user", "content": wish}])

    def bound(self, schema: Any, ids: Sequence[int]) -> Any:
        options = self.options(max_tokens=self.tokens)
        constraint = self.bind(JsonSchema(schema), self.tokens)()
        request = Request(ids=ids, options=options, constraint=constraint, salt="bound", speculate=False)
        return self.engine.generate(request)

    def free(self, tokens: int, ids: Sequence[int]) -> Any:
        never = dict.fromkeys(self.model.ends, float("-inf"))
        options = self.options(max_tokens=tokens, logit_bias=never)
        return self.engine.generate(Request(ids=ids, options=options, salt="free", speculate=False))

    def timed(self, ask: Any, firsts: Sequence[Any], prompts: Sequence[Sequence[int]], tally: Tally) -> list[Any]:
        begun = time.perf_counter()
        answers = list(self.pool.map(ask, firsts, prompts))
        tally.add(sum(answer.usage.completion_tokens for answer in answers), time.perf_counter() - begun)
        return answers


def fault(schema: Any, answer: Any) -> str | None:
    """What is wrong with an answer; None where it is whole and validates."""
    if answer.finish_reason != "stop":
        return f"cut off: {answer.text[-100:]!r}"
    try:
        jsonschema_rs.validator_for(schema, validate_formats=True).validate(json.loads(answer.text))
    except (ValueError, jsonschema_rs.ValidationError) as problem:
        return f"{problem}: {answer.text[:200]!r}"
    return None


def main() -> int:
    given = arguments()
    bench = Bench(given)
    bound, free = Tally(), Tally()
    faults: list[str] = []
    schemas = [random_schema(seed) for seed in range(given.schemas)]
    with bench.engine, bench.pool:
        for start in range(0, len(schemas), given.block):
            block = schemas[start : start + given.block]
            prompts = [bench.prompt(schema) for schema in block]
            answers = bench.timed(bench.bound, block, prompts, bound)
            bench.timed(bench.free, [answer.usage.completion_tokens for answer in answers], prompts, free)
            found = [fault(schema, answer) for schema, answer in zip(block, answers, strict=True)]
            faults += [f"schema {start + i}: {each}" for i, each in enumerate(found) if each]
            done = f"bound {bound.speed:7.1f}  free {free.speed:7.1f} tokens/s  {len(faults)} wrong"
            print(f"{start + len(block):5}  {done}")
    return report(bound, free, faults, len(schemas))


def report(bound: Tally, free: Tally, faults: list[str], count: int) -> int:
    ratios = [a / b for a, b in zip(free.seconds, bound.seconds, strict=True)]
    ratio = statistics.median(ratios)
    print(*faults, sep="\n")
    print(f"{count - len(faults)} of {count} answers validate; {sum(bound.tokens)} tokens")
    print(f"bound {bound.speed:.1f}, free {free.speed:.1f} tokens/s; median of blocks {ratio:.2f} x (goal {GOAL})")
    return int(bool(faults) or ratio < GOAL)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--block", type=int, default=24, help="schemas before the free answers' turn")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--tokens", type=int, default=1024, help="of an answer at most")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
