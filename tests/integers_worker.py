"""What int8 and int4 storage do on one framework, against the same numbers as floats; printed as JSON.

python integers_worker.py GGUF FRAMEWORK
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from parity_worker import stepwise
from random_networks import BLOCKY, network

import geode
from geode import checkpoint, integers
from geode.config import Attn, Config
from geode.lm import Local
from geode.network import executor
from geode.quant import to_float32
from geode.tensors import Tensors, from_arrays

ODD = Config(
    96, width=48, depth=2, heads=4, kv_heads=2, head_dim=20, ffn=80, context=64, pattern=(Attn(8), Attn()), tied=True,
    qkv_bias=True, ffn_bias=True,
)  # fmt: skip
"""Rows of no whole groups, biases, a window, one matrix for embedding and head."""

IDS = [3 + 7 * i % 90 for i in range(24)]  # more rows than those for which integers pay


def rounded(tensors: Tensors, config: Config, kind: str) -> Tensors:
    """The tensors with every matrix as numpy's definition keeps it, in float32."""
    kinds = integers.plan(config, kind)
    return from_arrays({name: _rounded(to_float32(tensors[name]), kinds.get(name)) for name in tensors})


def _rounded(array: np.ndarray, kind: str | None) -> np.ndarray:
    if kind is None:
        return array
    if kind == "int8":
        return integers.from_int8(*integers.to_int8(array))
    return integers.from_int4(*integers.to_int4(array), array.shape[1])


def against_floats(on: str, kind: str, floats: np.ndarray) -> dict[str, Any]:
    """Distances: from the network on the definition's numbers in floats; cached and in a batch from the full forward; and
    what rounding itself does, of weights and to bfloat16, in standard deviations of the logits."""
    tensors = network(ODD)
    lm = Local(executor.open(ODD, tensors, on, "float32", quantize=kind))
    same = Local(executor.open(ODD, rounded(tensors, ODD, kind), on, "float32"))
    rough = executor.open(ODD, tensors, on, "bfloat16", quantize=kind)
    full, start = lm.logits(IDS), len(IDS) - 3
    return {
        "definition": float(np.abs(full - same.logits(IDS)).max()),
        "cached": stepwise(lm, IDS, [start, 1], full),
        "rounding": spread(full - floats) / spread(floats),
        "bfloat16": spread(rough.prefill([IDS[:3]], 1)[1][0] - full[2]) / spread(full),
        "logits": full[::8, ::16].tolist(),
    }


def spread(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def sizes(on: str, kind: str | None) -> int:
    """Bytes of all variables of a network whose rows are whole groups."""
    held = executor.open(BLOCKY, network(BLOCKY), on, "float32", quantize=kind).decoder.variables
    widths = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1}
    return sum(int(np.prod(v.shape)) * widths[v.dtype] for v in held)


def temporary(kind: str, rows: int) -> int:
    """Bytes that JAX's compiled forward needs beside weights and results."""
    import jax
    import keras

    decoder = executor.open(BLOCKY, network(BLOCKY), "jax", "float32", quantize=kind).decoder

    def forward(values: list[Any], tokens: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(decoder.variables, values, strict=True))):
            return decoder.hidden(tokens)[0]

    values = [variable.value for variable in decoder.variables]
    compiled = jax.jit(forward).lower(values, np.ones((1, rows), np.int32)).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


def gradient(on: str, kind: str, rows: int) -> float:
    """The gradient of x of one Linear, against the definition's matrix; and nothing of the matrix is trained."""
    from geode.network import backend
    from geode.network.layers import Linear
    from geode.network.storage import Store

    tensors, name = network(BLOCKY), "blk.0.ffn_up"
    part = Linear(Store(BLOCKY, tensors.__getitem__, "float32", kind), name)
    assert not part.trainable_variables
    weight = _rounded(to_float32(tensors[f"{name}.weight"]), kind)
    rng = np.random.default_rng(rows)
    x, pull = (rng.standard_normal((rows, width)).astype(np.float32) for width in weight.shape[::-1])
    dx = {"jax": _gradient_jax, "torch": _gradient_torch, "tensorflow": _gradient_tensorflow}[on](part, x, pull)
    return float(np.abs(backend.to_numpy(dx) - pull @ weight).max())


def _gradient_jax(part: Any, x: np.ndarray, pull: np.ndarray) -> Any:
    import jax

    return jax.jit(jax.grad(lambda x: (part(x) * pull).sum()))(x)


def _gradient_torch(part: Any, x: np.ndarray, pull: np.ndarray) -> Any:
    import torch

    given = torch.tensor(x, requires_grad=True)
    (part(given) * torch.tensor(pull)).sum().backward()
    return given.grad


def _gradient_tensorflow(part: Any, x: np.ndarray, pull: np.ndarray) -> Any:
    import tensorflow as tf

    given = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(given)
        loss = tf.reduce_sum(part(given) * pull)
    return tape.gradient(loss, given)


def from_gguf(path: Path, on: str) -> float:
    """A Q4_0 file kept as int4, against the same file in floats: only embedding and head are rounded, to int8."""
    found = checkpoint.open(path)
    tensors = dict(found.tensors)
    ends = {name: integers.to_int8(tensors[name]) for name in ("token_embd.weight", "output.weight") if name in tensors}
    same = tensors | {name: integers.from_int8(*both) for name, both in ends.items()}
    exact = Local(executor.open(found.config, from_arrays(same), on, "float32")).logits(IDS)
    return float(np.abs(geode.load(path, on=on, dtype="float32", quantize="int4").logits(IDS) - exact).max())


if __name__ == "__main__":
    gguf, on = Path(sys.argv[1]), sys.argv[2]
    floats = Local(executor.open(ODD, network(ODD), on, "float32")).logits(IDS)
    results = {
        "kinds": {kind: against_floats(on, kind, floats) for kind in integers.KINDS},
        "bytes": {str(kind): sizes(on, kind) for kind in (None, *integers.KINDS)},
        "gradient": {f"{kind} {rows}": gradient(on, kind, rows) for kind in integers.KINDS for rows in (1, 40)},
        "gguf": from_gguf(gguf, on),
    }
    if on == "jax":
        results["temporary"] = {f"{kind} {rows}": temporary(kind, rows) for kind, rows in (("int4", 1), ("int8", 24))}
    print(json.dumps(results))
