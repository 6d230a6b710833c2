"""What the native engine shows of a forward against hooks in transformers' own models; prints the distances as JSON.

python observed_worker.py FOLDER VARIANT ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from variants import VARIANTS, Variant, build, text_ids

import geode

STEMS = {  # transformers' names of linear layers -> the canonical one, of those that share its input the first
    "q_proj": "attn_q", "k_proj": "attn_q", "v_proj": "attn_q", "query_key_value": "attn_q",
    "o_proj": "attn_output", "self_attention.dense": "attn_output", "attention.dense": "attn_output",
    "gate_proj": "ffn_up", "up_proj": "ffn_up", "dense_h_to_4h": "ffn_up",
    "down_proj": "ffn_down", "dense_4h_to_h": "ffn_down",
}  # fmt: skip


class Hooks:
    """The residual stream and every linear layer's input, as a model runs."""

    def __init__(self, model: Any):
        layers = next(
            module
            for module in model.modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == model.config.num_hidden_layers
        )
        self.residual: list[np.ndarray] = []
        self.squares: dict[str, np.ndarray] = {}
        layers[0].register_forward_pre_hook(self._begin, with_kwargs=True)
        for number, layer in enumerate(layers):
            layer.register_forward_hook(self._end)
            for name, module in layer.named_modules():
                stem = next((stem for end, stem in STEMS.items() if name.endswith(end)), None)
                if stem is not None:
                    module.register_forward_pre_hook(self._input(f"blk.{number}.{stem}.weight"))

    def _begin(self, _: Any, args: Any, kwargs: Any) -> None:
        self.residual.append((args[0] if args else kwargs["hidden_states"])[0].numpy())

    def _end(self, _: Any, args: Any, out: Any) -> None:
        self.residual.append((out[0] if isinstance(out, tuple) else out)[0].numpy())

    def _input(self, name: str) -> Any:
        def keep(_: Any, args: Any) -> None:
            self.squares[name] = args[0].reshape(-1, args[0].shape[-1]).double().square().sum(dim=0).numpy()

        return keep


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference beside the largest number; infinite for other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def measure(variant: Variant, folder: Path) -> dict[str, Any]:
    model, ids = build(variant), text_ids(variant)
    model.save_pretrained(folder / variant.slug)
    hooks = Hooks(model)
    with torch.no_grad():
        model(torch.tensor([ids]))
    lm = geode.load(folder / variant.slug, on="native", dtype="float32", threads=2)
    squares = lm.executor.inputs(ids)
    return {
        "residual": [distance(*pair) for pair in zip(lm.executor.trace(ids), np.array(hooks.residual), strict=True)],
        "inputs": {name: distance(squares[name], expected) for name, expected in hooks.squares.items()},
        "shared": all(squares[f"blk.1.attn_{part}.weight"] is squares["blk.1.attn_q.weight"] for part in "kv"),
        "names": sorted(squares),
    }


if __name__ == "__main__":
    chosen = [variant for variant in VARIANTS if variant.name in sys.argv[2:]]
    print(json.dumps({variant.name: measure(variant, Path(sys.argv[1])) for variant in chosen}))
