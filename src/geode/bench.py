"""How fast a model runs, told as llama-bench tells it, and what the machine could do.

How logits are computed is not known here: every executor is driven as real generation drives it.

An executor may have a method `facts()`, a mapping with any of: backend, isa, threads, weights_bytes, and
bytes_per_token, a function of the tokens before it.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ContextError, OptionError
from .lm import Local
from .tensors import flops_per_token


@dataclass(frozen=True)
class Test:
    """Processing a prompt of `tokens` ("pp512"), or generating `tokens` after `depth` others ("tg128@4096")."""

    kind: str  # "pp" or "tg"
    tokens: int
    depth: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}{self.tokens}" + (f"@{self.depth}" if self.depth else "")

    @property
    def prompt(self) -> int:
        """Tokens that are there before the first is generated."""
        return self.tokens if self.kind == "pp" else max(self.depth, 1)

    @property
    def generated(self) -> int:
        """Tokens to ask for. The first comes with the prompt's logits, so n steps give n + 1."""
        return 1 if self.kind == "pp" else self.tokens + 1


@dataclass(frozen=True)
class Timing:
    """Tokens per second of each repetition of a test; mean and sample deviation as llama-bench has them."""

    test: Test
    samples: tuple[float, ...]

    @property
    def speed(self) -> float:
        return statistics.fmean(self.samples)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0


def check(lm: Local, tests: list[Test]) -> None:
    """Raises ContextError for a test that the model's context cannot hold, before any of them runs."""
    for test in tests:
        if test.prompt + test.generated > lm.context:
            raise ContextError(
                f"The test {test.name} needs a context of {test.prompt + test.generated} tokens, and the model's holds "
                f"{lm.context}. Ask for fewer tokens, or a smaller depth."
            )


def run(lm: Local, test: Test, repeat: int = 5, seed: int = 0) -> Timing:
    """Runs a test once to warm up and then `repeat` times. Greedy, on random ids that `seed` fixes.

    n generated tokens are n steps of one token each, the choice of the next included; the prompt that gives them their
    depth is not counted. Raises OptionError, ContextError.
    """
    if repeat < 1 or test.tokens < 1 or test.depth < 0:
        raise OptionError("A test needs at least one token, one repetition, and a depth of 0 or more.")
    check(lm, [test])
    bare = Local(lm.executor)  # nothing that ends the text: random prompts soon meet an end token
    samples = []
    for _ in range(repeat + 1):
        usage = bare.stream(_ids(lm, test.prompt, seed), max_tokens=test.generated, temperature=0).result().usage
        samples.append(usage.prompt_speed if test.kind == "pp" else usage.speed)
    return Timing(test, tuple(samples[1:]))


def prompt_flops(lm: Local, tokens: int) -> float:
    """Multiplications and additions of a prompt, a token on average: each sees half of it, and one asks for logits."""
    config = lm.config
    head = 2 * config.vocab * config.width
    return flops_per_token(config, tokens // 2) - head * (tokens - 1) / tokens


def facts(lm: Local) -> Mapping[str, Any]:
    """What the executor tells of itself; {} where it tells nothing."""
    tell = getattr(lm.executor, "facts", None)
    return tell() if tell is not None else {}


def bytes_per_token(known: Mapping[str, Any], depth: int) -> int | None:
    """Bytes of memory read for one token with `depth` before it, where the executor tells."""
    found = known.get("bytes_per_token")
    return int(found(depth)) if callable(found) else found


def machine(threads: int | None) -> tuple[float | None, float | None]:
    """Measures memory in bytes/s and matrix units in flop/s; None where the native extension is not there."""
    try:
        module = import_module(".native.machine", __package__)
    except ImportError:
        return None, None
    return float(module.bandwidth(threads)), float(module.peak(threads))


def peak_memory() -> int | None:
    """Bytes of memory that this process had at most; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _ids(lm: Local, count: int, seed: int) -> list[int]:
    """Random ids behind a BOS, where the tokenizer begins texts with one."""
    tokenizer = lm.tokenizer
    size = lm.config.vocab if tokenizer is None else tokenizer.size
    ids: list[int] = np.random.default_rng(seed).integers(0, size, count).tolist()
    if tokenizer is not None and tokenizer.adds_bos and tokenizer.bos is not None:
        ids[0] = tokenizer.bos
    return ids
