"""Runs a checkpoint natively in a process of its own, forks it, and prints, as JSON, what came of it.

python native_worker.py CHECKPOINT
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import Any

import geode
from geode.cli import main

FRAMEWORKS = {"keras", "torch", "jax", "tensorflow", "transformers", "keras_hub"}
PROMPT = list(range(3, 40))


def ask(lm: Any) -> list[int]:
    return list(lm.generate(PROMPT, max_tokens=12, temperature=0).tokens)


def forked(lm: Any) -> list[int]:
    """The answer of a child of this process, through a pipe."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, json.dumps(ask(lm)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return list(json.loads(text or "[]"))


if __name__ == "__main__":
    words = ["run", sys.argv[1], "--on", "native", "--ids", "3,4,5", "--max-tokens", "4"]
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        code = main(words)
    found: dict[str, Any] = {"run": code, "frameworks": sorted(FRAMEWORKS & set(sys.modules))}
    lm = geode.load(sys.argv[1], on="native", threads=2)
    found["parent"] = ask(lm)
    if hasattr(os, "fork"):
        found["child"] = forked(lm)
    found["again"] = ask(lm)
    print(json.dumps(found))
