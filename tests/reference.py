"""What transformers makes of a config.json, without allocating: the judge of tables of keys and names."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

Json = dict[str, Any]


def meta_model(values: Json) -> Any:
    """transformers' model of a configuration on torch's meta device."""
    import torch
    import transformers

    values = copy.deepcopy(values)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Parameters by name, a tied head left out."""
    tied = {name for name in ("lm_head.weight", "embed_out.weight") if model.config.tie_word_embeddings}
    return {name: tuple(p.shape) for name, p in model.state_dict().items() if name not in tied}


def ropes(model: Any) -> dict[str, tuple[np.ndarray, float]]:
    """Frequencies and magnitude by kind of layer; "" where all layers have one."""
    (module,) = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")][:1]
    real = type(module)(config=model.config)
    names = [name for name, _ in real.named_buffers() if name.endswith("inv_freq") and "original" not in name]
    found = {}
    for name in names:
        kind = name.removesuffix("inv_freq").rstrip("_")
        magnitude = getattr(real, f"{kind}_attention_scaling" if kind else "attention_scaling")
        found[kind] = getattr(real, name).float().numpy(), float(magnitude)
    return found


def windows(model: Any) -> list[int | None]:
    """The sliding window of each layer."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in types]


def attention(model: Any) -> Any:
    """The first layer's attention."""
    return next(m for name, m in model.named_modules() if name.endswith(("self_attn", "self_attention", ".attention")))


def norm_eps(model: Any) -> float:
    norm = [m for m in model.modules() if "Norm" in type(m).__name__][-1]
    return float(getattr(norm, "eps", getattr(norm, "variance_epsilon", 1e-5)))  # OLMo has it in the code
