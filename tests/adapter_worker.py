"""Adapters made by peft on tiny networks, through our hands and back: prints, as JSON, how far logits move.

python adapter_worker.py FOLDER [CASE ...]. For each case: `peft` is our directory loaded by peft, `merged` our merged
model loaded by transformers, each against peft's own adapter; `effect` is what the adapter changes at all, `gguf` how
much a weight's change differs after a GGUF file.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from variants import VARIANTS, build, text_ids

from geode import adapters, checkpoint, merge
from geode.errors import OptionError
from geode.formats import hf
from geode.formats.base import Target

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    """One adapter of peft's making."""

    variant: str
    options: dict[str, Any]


CASES = {
    "all matrices": Case("Llama 3", {"target_modules": LINEAR}),
    "patterns": Case(
        "Llama 3",
        {"target_modules": LINEAR, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}}
        | {"alpha_pattern": {"k_proj": 3, "layers.2.*.down_proj": 20}, "layers_to_transform": [1, 2]},
    ),
    "rsLoRA and biases": Case(
        "Llama, linear scaling, biases",
        {"target_modules": ["q_proj", "down_proj"], "bias": "lora_only", "use_rslora": True},
    ),
    "all biases": Case("StableLM 2 1.6B", {"target_modules": ["q_proj", "o_proj"], "bias": "all"}),
    "DoRA": Case("Qwen 3", {"target_modules": LINEAR, "use_dora": True}),
    "DoRA, fused": Case(
        "GPT-NeoX, Pythia, oasst-sft", {"target_modules": ["query_key_value", "dense"], "use_dora": True}
    ),
    "embeddings, tied": Case("SmolLM2", {"target_modules": ["embed_tokens", "v_proj"]}),
    "head, tied": Case("SmolLM2", {"target_modules": ["lm_head", "v_proj"]}),
    "both, tied": Case("SmolLM2", {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
    "saved embeddings, tied": Case("SmolLM2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "saved both, tied": Case(
        "SmolLM2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    ),
    "both, untied": Case("Llama 3", {"target_modules": ["embed_tokens", "lm_head", "k_proj"]}),
    "norms": Case("Gemma 3 4B, 12B", {"target_modules": LINEAR, "modules_to_save": ["norm", "q_norm"]}),
    "embeddings of Gemma": Case("Gemma 2 2B, 9B", {"target_modules": ["embed_tokens", "q_proj", "k_proj"]}),
    "norms of heads": Case("StableLM 2 12B", {"target_modules": ["k_proj"], "modules_to_save": ["q_layernorm"]}),
    "fused": Case("Falcon 40B", {"target_modules": ["query_key_value", "dense", "dense_4h_to_h"]}),
    "fused, one head": Case("Falcon 7B", {"target_modules": ["query_key_value"]}),
    "fused, biases": Case("GPT-NeoX, Pythia, oasst-sft", {"target_modules": ["query_key_value"], "bias": "lora_only"}),
    "head of NeoX": Case("StableLM alpha", {"target_modules": ["embed_out", "lm_head", "dense_h_to_4h"]}),
    "OLMo 2": Case("OLMo 2", {"target_modules": LINEAR}),
}


def logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0].double().numpy()


def made(case: Case, folder: Path) -> tuple[list[int], np.ndarray, np.ndarray]:
    """A base model and an adapter for it in `folder`; a text, the base's logits and the adapter's."""
    variant = next(v for v in VARIANTS if v.name == case.variant)
    model = build(variant)
    model.save_pretrained(folder / "base")
    ids = text_ids(variant)
    plain = logits(model, ids)
    model.name_or_path = str(folder / "base")
    options = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "task_type": "CAUSAL_LM"} | case.options
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise) if "saved" in name or "bias" in name else parameter.mul_(1 + 0.2 * noise)
    wrapped.save_pretrained(folder / "adapter")
    return ids, plain, logits(wrapped, ids)


def by_peft(base: Path, adapter: Path, ids: list[int]) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype=torch.float32)
    return logits(peft.PeftModel.from_pretrained(model, adapter), ids)


def by_transformers(path: Path, ids: list[int]) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32)
    return logits(model, ids)


def written(made: merge.Made, folder: Path) -> Path:
    folder.mkdir()
    hf.write(made, folder, folder.name, Target())
    return folder


def measure(case: Case, folder: Path) -> dict[str, Any]:
    ids, plain, wanted = made(case, folder)
    base = checkpoint.open(folder / "base")
    opened = adapters.open(folder / "adapter")
    adapters.write_peft(opened, folder / "again")
    merged = merge.adapter(base, opened)
    found = {
        "effect": wanted - plain,
        "peft": by_peft(folder / "base", folder / "again", ids) - wanted,
        "merged": by_transformers(written(merged, folder / "merged"), ids) - wanted,
    }
    try:
        adapters.write_gguf(opened, folder / "adapter.gguf")
        back = adapters.open(folder / "adapter.gguf", base)
        assert back.pairs.keys() == opened.pairs.keys()
        found["gguf"] = np.array([np.abs(change(back, n) - change(opened, n)).max() for n in back.pairs])
    except OptionError:
        pass
    return {key: float(np.abs(value).max()) for key, value in found.items()} | {"tied": merged.config.tied}


def change(adapter: adapters.Adapter, name: str) -> np.ndarray:
    pair = adapter.pairs[name]
    return pair.scale * (pair.b.astype(np.float64) @ pair.a.astype(np.float64))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # networks this small only wait for each other's threads
    root, names = Path(sys.argv[1]), sys.argv[2:] or list(CASES)
    print(json.dumps({name: measure(CASES[name], root / str(list(CASES).index(name))) for name in names}))
