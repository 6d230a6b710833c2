"""Training over a mesh of simulated devices on JAX; prints JSON: losses of each mesh, and what devices hold.

python layout_worker.py meshes        eight devices, one process
python layout_worker.py process       one of several processes, as the environment of `layout.join` says
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from random_networks import network

from geode import families
from geode.config import Attn, Config
from geode.errors import GeodeError
from geode.network import backend
from geode.tune.recipe import Optim

GEMMA = Config(
    96, width=64, depth=1, heads=4, kv_heads=2, head_dim=16, ffn=128, context=64, pattern=(Attn(6),),
    block="sandwich", norm=families.by_name("gemma2").constants["norm"], activation="gelu_tanh", query_scalar=24.0,
    attn_softcap=50.0, final_softcap=30.0, scale_embedding=True, tied=True,
)  # fmt: skip
LLAMA = Config(
    96, width=64, depth=1, heads=4, kv_heads=2, head_dim=16, ffn=128, context=64, qkv_bias=True,
    norm=families.by_name("llama").constants["norm"],
)  # fmt: skip
NETWORKS = {"gemma": GEMMA, "llama": LLAMA}
ONE: Mapping[str, int] = {}
MESHES = {
    "one": ONE,
    "fsdp": {"fsdp": 8},
    "tensor": {"data": 4, "tensor": 2},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
}
RUNS = {
    "gemma full floats": ["fsdp", "all"],
    "llama lora int4": ["tensor"],
}
"""Network, method and storage, and the meshes they are tried on beside one device."""

ROWS, LENGTH, STEPS = 8, 16, 6
SHOWN = {"attn_q": "blk.0.attn_q.weight", "ffn_down": "blk.0.ffn_down.weight", "embedding": "token_embd.weight"}


def batches() -> list[dict[str, np.ndarray]]:
    """A micro-batch a step: rows of two documents each, half of their tokens learnt."""
    random = np.random.default_rng(3)
    half, m = LENGTH // 2, ROWS * LENGTH // 2
    positions = np.tile(np.arange(half, dtype=np.int32), (ROWS, 2))
    segments = np.repeat(np.array([[1, 2]], np.int32), half, axis=1).repeat(ROWS, axis=0)
    return [
        {
            "tokens": random.integers(0, 96, (ROWS, LENGTH)).astype(np.int32),
            "positions": positions,
            "segments": segments,
            "at": np.sort(random.permutation(ROWS * LENGTH)[:m]).astype(np.int32),
            "targets": random.integers(0, 96, m).astype(np.int32),
            "weights": np.full(m, 1 / m, np.float32),
        }
        for _ in range(STEPS)
    ]


def trainer_of(config: Config, lora: bool, quantize: str | None = None, layout: Any = None) -> Any:
    from geode.network import lora as pairs
    from geode.network import objectives, optimizers
    from geode.network.decoder import Decoder
    from geode.network.training import Trainer

    decoder = Decoder(config, network(config).__getitem__, "float32", quantize, remat=lora)
    if lora:
        pairs.freeze(decoder)
        names = [name for name in decoder.store.holders if name.startswith("blk.")]
        trained = pairs.attach(decoder, names, rank=4, scale=2.0)
    else:
        trained = dict(decoder.store.variables)
    optimizer = optimizers.make(Optim(weight_decay=0.1), list(trained.values()))
    objective = objectives.sft(1e-3)
    if layout is not None:
        layout.attach(decoder)
        objective = layout.objective(objective, trained)
    return Trainer(decoder, trained, optimizer, objective)


def run(config: Config, mesh: Mapping[str, int], lora: bool, quantize: str | None = None) -> dict[str, Any]:
    """Losses and gradient lengths of some steps, the parts that device 0 holds, and how many numbers differ at last."""
    if not mesh:
        trainer = trainer_of(config, lora, quantize)
        outcomes = [trainer.step([batch], 3e-3) for batch in batches()]
        return {"loss": [o.loss for o in outcomes], "norm": [o.norm for o in outcomes]}
    from geode.network.layout_jax import Layout

    layout = Layout(config, mesh)
    with layout.scope():
        trainer = trainer_of(config, lora, quantize, layout)
        outcomes = [trainer.step([layout.batch(batch)], 3e-3) for batch in batches()]
    variables = [*trainer.decoder.variables, *trainer.optimizer.state]
    held = sum(v.value.addressable_shards[0].data.nbytes for v in variables)
    found = {name: part(trainer.decoder.store.variables.get(full)) for name, full in SHOWN.items()}
    state = {v.name: part(v) for v in variables if "attn_q" in v.name and "blk_0" in v.name}
    asked = {v.name: list(layout.cuts.part(v.name, v.shape)) for v in variables}
    return {
        "loss": [o.loss for o in outcomes],
        "norm": [o.norm for o in outcomes],
        "share": held / sum(v.value.nbytes for v in variables),
        "parts": found | state,
        "astray": [v.name for v in variables if part(v) != asked[v.name]],
        "notes": layout.notes,
        "whole": float(np.abs(layout.whole(variables[0].value)).sum()),
    }


def part(variable: Any) -> list[int] | None:
    return None if variable is None else list(variable.value.addressable_shards[0].data.shape)


def meshes() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, titles in RUNS.items():
        network, lora, quantize = name.split()
        options = (lora == "lora", None if quantize == "floats" else quantize)
        found[name] = {title: run(NETWORKS[network], MESHES[title], *options) for title in ("one", *titles)}
    return found | {"errors": errors()}


def errors() -> dict[str, str]:
    from geode.network.layout_jax import Layout

    def said(mesh: Any, rows: int) -> str:
        try:
            return str(Layout(LLAMA, mesh).batch({"tokens": np.zeros((rows, 4), np.int32)}))
        except GeodeError as problem:
            return f"{type(problem).__name__}: {problem}"

    return {
        "too many": said({"data": 16}, 16),
        "too few": said({"data": 4}, 16),
        "rows": said({"data": 4, "fsdp": 2}, 12),
        "axis": said({"model": 8}, 16),
        "size": said({"data": 0}, 16),
    }


def process() -> dict[str, Any]:
    import jax

    from geode.network import layout_jax as layout

    layout.join()
    found = run(LLAMA, {"data": 2, "fsdp": 2}, True, "int4")
    return found | {"processes": jax.process_count(), "here": len(jax.local_devices()), "all": len(jax.devices())}


if __name__ == "__main__":
    backend.select("jax")
    print(json.dumps({"meshes": meshes, "process": process}[sys.argv[1]]()))
