"""Runs random networks with weights of every type natively, against the Keras decoder on the same numbers in float32.

python packed_worker.py      prints, as JSON, the instruction set and, for each type, how far apart the two are
"""

from __future__ import annotations

import json

import numpy as np
from random_networks import BLOCKY, KINDS, network, text, widened

from geode.native import executor as native
from geode.native import extension
from geode.network import executor as keras

TEXT = text(512, vocab=BLOCKY.vocab)


def logarithms(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities in float64: a divergence of 1e-9 is asked for."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def measure(kind: str) -> dict[str, float]:
    tensors = network(BLOCKY, kind)
    reference = keras.open(BLOCKY, widened(tensors), on="torch", dtype="float32", threads=2)
    expected = np.concatenate(list(reference.rows(TEXT))).astype(np.float64)
    engine = native.open(BLOCKY, tensors, kv_type="float32")
    found = np.concatenate(list(engine.rows(TEXT))).astype(np.float64)
    p, q = logarithms(expected), logarithms(found)
    return {
        "agreement": float((p.argmax(axis=1) == q.argmax(axis=1)).mean()),
        "divergence": float((np.exp(p) * (p - q)).sum(axis=1).mean()),
        "distance": float(np.abs(found - expected).max()),
        "spread": float(expected.std()),
    }


if __name__ == "__main__":
    print(json.dumps({"isa": extension.isa(), "kinds": {kind: measure(kind) for kind in KINDS}}))
