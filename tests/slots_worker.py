"""The engine over a framework's slots, beside each request alone; printed as JSON.

python slots_worker.py FRAMEWORK [TOKENS]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import random_networks as networks

from geode import engine
from geode.engine.drafts import Lookup
from geode.engine.engine import Engine
from geode.engine.request import Request
from geode.generate import Options, naive
from geode.network import executor as network

ENDS: frozenset[int] = frozenset()


def requests(most: int) -> list[Request]:
    """Prompts shorter and longer than the windows and than a chunk, alike in their beginnings, greedy and drawn."""
    long = networks.text(300, seed=7)
    prompts = [networks.text(n, seed=n) for n in (1, 5, 40, 130)] + [long, [*long[:200], 3, 4, 5], [1, 2, 3, 4] * 12]
    kinds = [Options(max_tokens=most, temperature=0), Options(max_tokens=most - 1, temperature=0.8, seed=5, top_k=20)]
    return [Request(ids=ids, options=kinds[i % 2], client=str(i % 3)) for i, ids in enumerate(prompts)]


def together(running: Engine, asked: list[Request]) -> list[list[int]]:
    """All at once, stepped on this thread."""
    found: list[list[int]] = [[] for _ in asked]

    def into(tokens: list[int]) -> Any:
        return lambda piece: tokens.append(piece.token)

    for request, tokens in zip(asked, found, strict=True):
        running.submit(request, into(tokens))
    while running.step():
        running.runner.check()
    running.check()
    return found


def reused(running: Engine) -> list[int]:
    """Cached tokens of a text said again, of one that goes another way, and of one behind a ring that turned."""
    long = networks.text(600, seed=9)
    counts = []
    for ids in (networks.text(90, seed=3), [*networks.text(90, seed=3)[:60], 1, 2], long, long[:590], long[:100]):
        tickets = [running.submit(Request(ids=ids, options=Options(max_tokens=1)), lambda piece: None)]
        while running.step():
            pass
        counts.append(tickets[0].usage.cached_tokens)
    return counts


def main(on: str, most: int = 12) -> None:
    weights = networks.network(networks.WINDOWS)
    executor = network.open(networks.WINDOWS, weights, on=on, dtype="float32")
    from geode.engine.slots import SlotRunner
    from geode.network import backend

    asked = requests(most)
    alone = [naive(executor, request.ids, request.options) for request in asked]
    drafting = engine.open(executor, slots=3)
    drafted = together(drafting, asked)
    plain = Engine(drafting.runner)  # whose programs are compiled
    vectors = plain.embed(asked[2].ids, pooling="last")
    scores = plain.score(asked[3].ids, 100)
    while plain.step():
        pass
    last = executor.decoder.hidden(*_arrays(asked[2].ids))[0]
    print(
        json.dumps(
            {
                "alone": alone,
                "drafted": drafted,
                "plain": together(plain, asked),
                "accepted": drafting.stats().accepted_tokens,
                "vector": float(np.abs(vectors.result() - backend.to_numpy(last)[0, -1]).max()),
                "scores": len(scores.result()[0]),
                "reused": reused(Engine(SlotRunner(executor, slots=2), drafter=Lookup())),
            }
        )
    )


def _arrays(ids: Any) -> tuple[Any, Any]:
    from keras import ops

    return ops.convert_to_tensor(np.asarray([ids], np.int32)), ops.convert_to_tensor(
        np.arange(len(ids), dtype=np.int32)[None]
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
