"""What PyTorch keeps and what optimizers remember, counted on tiny networks beside what the planner says; prints JSON.

python plan_worker.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
from layout_worker import GEMMA, LLAMA
from random_networks import network

from geode.config import Attn, Config
from geode.network import backend
from geode.tensors import shapes
from geode.tune.plan import Plan, plan
from geode.tune.recipe import Batch, Data, Full, Lora, Optim, Recipe, Run

GEMMA3 = GEMMA.replace(depth=3, attn_softcap=None, qk_norm="shared", pattern=(Attn(40), Attn()), context=256)
LAYERED = LLAMA.replace(depth=2, norm=replace(LLAMA.norm, kind="layer", bias=True), gated=False, activation="gelu")
PLAIN, LORA, FULL = Optim(), Lora(rank=4), Full()
RUNS: dict[str, tuple[Config, Any, str, str, int]] = {
    "gemma3 lora bf16": (GEMMA3, LORA, "bfloat16", "none", 192),
    "gemma3 lora bf16 remat": (GEMMA3, LORA, "bfloat16", "block", 192),
    "gemma3 full float32": (GEMMA3, FULL, "float32", "none", 192),
    "gemma3 full bf16": (GEMMA3, FULL, "bfloat16", "none", 192),
    "gemma3 int4 bf16": (GEMMA3, replace(LORA, quantize="int4"), "bfloat16", "none", 192),
    "gemma2 lora float32": (GEMMA, LORA, "float32", "none", 64),
    "llama lora bf16": (LLAMA.replace(depth=2), LORA, "bfloat16", "none", 128),
    "llama dora int8": (LLAMA.replace(depth=2), replace(LORA, dora=True, quantize="int8"), "float32", "none", 64),
    "layer norms full": (LAYERED, FULL, "float32", "none", 64),
}
OPTIMS = ("adamw", "adam8bit", "adafactor", "muon", "sgd")


def recipe_of(method: Any, remat: str, length: int, optim: Optim) -> Recipe:
    run = Run(remat=remat)  # type: ignore[arg-type]
    return Recipe("tiny", Data(train=("-",), length=length), method, optim=optim, batch=Batch(rows=2), run=run)


def parts(config: Config, method: Any, dtype: str, remat: str, length: int, optim: Optim = PLAIN) -> Any:
    """The plan of a run, its decoder, trained variables and optimizer."""
    from geode.network import lora, optimizers
    from geode.network.decoder import Decoder

    matrices = tuple(name for name, shape in shapes(config).items() if len(shape) == 2 and name.startswith("blk."))
    pairs, whole = ((), tuple(shapes(config))) if isinstance(method, Full) else (matrices, ())
    said = plan(config, recipe_of(method, remat, length, optim), pairs, whole, on="torch", dtype=dtype)
    is_full, quantize = isinstance(method, Full), getattr(method, "quantize", None)
    held = "float32" if is_full else dtype
    fetch = network(config).__getitem__
    decoder = Decoder(config, fetch, held, quantize, compute=dtype, remat=remat == "block", wide=frozenset(whole))
    trained = lora.freeze(decoder, whole)
    if pairs:
        trained |= lora.attach(decoder, pairs, rank=method.rank, scale=2.0, dora=method.dora)
    return said, decoder, trained, optimizers.make(optim, list(trained.values()), ["token_embd_weight"])


def counted(config: Config, method: Any, dtype: str, remat: str, length: int) -> dict[str, float]:
    import torch

    from geode.network import objectives

    said, decoder, trained, optimizer = parts(config, method, dtype, remat, length)
    random, shape, count = np.random.default_rng(0), (2, length), 2 * length
    batch = {
        "tokens": random.integers(0, config.vocab, shape),
        "positions": np.tile(np.arange(length), (2, 1)),
        "segments": np.ones(shape, np.int64),
        "at": np.arange(count),
        "targets": random.integers(0, config.vocab, count),
        "weights": np.full(count, 1 / count, np.float32),
    }
    seen: dict[int, Any] = {}
    own = {v.value.untyped_storage().data_ptr() for v in decoder.variables}

    def keep(tensor: Any) -> Any:
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks

    class Seen(hooks):
        """What a context within keeps is counted too; it hides what it keeps from those around it."""

        def __init__(self, pack: Any, unpack: Any):
            super().__init__(lambda t: keep(p) if isinstance(p := pack(t), torch.Tensor) else p, unpack)

    torch.autograd.graph.saved_tensors_hooks = Seen  # type: ignore[misc]
    with hooks(keep, lambda tensor: tensor):
        objectives.sft()(decoder, {name: torch.tensor(array) for name, array in batch.items()})
    kept = sum(t.untyped_storage().nbytes() for place, t in seen.items() if place not in own)
    aside = count * config.width * 4  # what the gradient of hidden states will be: `loss.Sweep`
    return {"kept": kept, "aside": aside, **told(said), **held(decoder, trained, optimizer)}


def told(said: Plan) -> dict[str, float]:
    names = ("weights", "gradients", "optimizer", "activations")
    return {f"plan {name}": said.memory[name] for name in names} | {"plan trained": said.trained}


def held(decoder: Any, trained: Any, optimizer: Any) -> dict[str, float]:
    def size(variables: Any) -> int:
        return sum(v.value.numel() * v.value.element_size() for v in variables)

    return {
        "weights": size(decoder.variables),
        "gradients": size(trained.values()),
        "optimizer": size(optimizer.state),
        "trained": sum(v.value.numel() for v in trained.values()),
    }


def optims() -> dict[str, dict[str, float]]:
    found = {}
    for name in OPTIMS:
        for ema in (None, 0.99):
            optim = Optim(name=name, ema=ema)  # type: ignore[arg-type]
            said, *rest = parts(GEMMA3, FULL, "float32", "none", 32, optim)
            found[f"{name} {ema}"] = told(said) | held(*rest)
    return found


if __name__ == "__main__":
    backend.select("torch")
    print(json.dumps({"runs": {name: counted(*options) for name, options in RUNS.items()}, "optims": optims()}))
