"""A model with an adapter on one framework, printed as JSON: how far logits are from those of the merged model on disk.

python adapter_load_worker.py FRAMEWORK ADAPTER MERGED. On torch also from peft's own, where peft is installed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

import geode

IDS = [1, 17, 30, 5, 80, 41, 22, 9, 60, 11]


def by_peft(adapter: str) -> np.ndarray:
    import peft
    import torch
    import transformers

    base = Path(adapter) / json.loads((Path(adapter) / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, adapter).eval()(torch.tensor([IDS])).logits[0].numpy()


def main(framework: str, adapter: str, merged: str) -> dict[str, float]:
    own, wanted = (geode.load(name, on=framework, dtype="float32").logits(IDS) for name in (adapter, merged))
    found = {"merged": own - wanted}
    if framework == "torch" and importlib.util.find_spec("peft"):
        found["peft"] = own - by_peft(adapter)
    return {name: float(np.abs(value).max()) for name, value in found.items()}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
