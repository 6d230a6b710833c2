"""Properties of the network on one framework, printed as JSON.

python network_worker.py CHECKPOINT FRAMEWORK
"""

from __future__ import annotations

import json
import sys

import numpy as np

import geode
from geode.errors import GeodeError


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def packed(lm: geode.Local) -> float:
    """Two texts in one row, told apart by segments, against each alone: through the decoder itself, without cache."""
    from keras import ops

    from geode.network import backend

    texts = [list(range(3, 20)), list(range(40, 65))]
    tokens = np.asarray([sum(texts, [])], np.int32)
    positions = np.asarray([[i for text in texts for i in range(len(text))]], np.int32)
    segments = np.asarray([[n for n, text in enumerate(texts) for _ in text]], np.int32)
    rows = (ops.convert_to_tensor(array) for array in (tokens, positions, segments))
    together = backend.to_numpy(lm.executor.decoder.call(*rows)[0])[0]
    return distance(together, np.concatenate([lm.logits(text) for text in texts]))


def grown(lm: geode.Local) -> float:
    """A cache that starts at its smallest and doubles twice, against the full forward."""
    ids = [3 + i % 90 for i in range(600)]
    full = lm.logits(ids)
    state, logits = lm.executor.prefill([ids[:240]], room=1)
    worst = distance(logits[0], full[239])
    for i in range(240, 600):
        state, logits = lm.executor.step(state, [ids[i]])
        worst = max(worst, distance(logits[0], full[i]))
    return worst


def overtaken(lm: geode.Local) -> dict[str, float]:
    """A batch in which one row fills its context while another goes on, against the other's full forward."""
    ids, context = list(range(3, 23)), lm.context
    full = lm.logits(ids)
    state, _ = lm.executor.prefill([[5] * (context - 1), ids[:10]], room=10)
    worst = 0.0
    for i in range(10, 20):
        state, logits = lm.executor.step(state, [5, ids[i]])
        worst = max(worst, distance(logits[1], full[i]))
    return {"overtaken": worst, "room": state.room / context}


def traces(lm: geode.Local) -> dict[str, int]:
    """How often the forward is traced for prompts of nine lengths and four steps each."""
    decoder, count = lm.executor.decoder, 0
    hidden = decoder.hidden

    def counted(*arguments: object) -> object:
        nonlocal count
        count += 1
        return hidden(*arguments)

    decoder.hidden = counted
    for length in range(2, 11):
        lm.generate(list(range(3, 3 + length)), max_tokens=5, temperature=0)
    decoder.hidden = hidden
    return {"calls": 9 * 5, "traces": count}


def second_framework(on: str) -> str:
    other = "jax" if on != "jax" else "torch"
    try:
        geode.load(sys.argv[1], on=other)
    except GeodeError as problem:
        return f"{type(problem).__name__}: {problem}"
    return "no error"


if __name__ == "__main__":
    path, on = sys.argv[1:3]
    lm = geode.load(path, on=on, dtype="float32")
    rough = geode.load(path, on=on, dtype="bfloat16")
    ids = list(range(3, 40))
    fine, coarse = lm.logits(ids), rough.logits(ids)
    found = {
        "packed": packed(lm),
        "grown": grown(lm),
        **overtaken(lm),
        **traces(geode.load(path, on=on, dtype="float32")),
        "bfloat16": distance(fine, coarse) / float(fine.std()),
        "bfloat16_batch": distance(rough.executor.prefill([ids, ids[:9]], 0)[1][1], coarse[8]) / float(fine.std()),
        "second": second_framework(on),
    }
    print(json.dumps(found))
