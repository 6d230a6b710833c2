"""Every family and variant as a tiny network of transformers' own classes, with weights that reach every corner.

Weights are drawn so that logits spread, soft-caps saturate, norms and biases matter. transformers is the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

T = 40  # tokens of a test text: more than every window
WINDOW = 8


@dataclass(frozen=True)
class Variant:
    """One row of the parity table."""

    name: str
    config_class: str
    options: dict[str, Any] = field(default_factory=dict)
    tokens: int = T

    @property
    def slug(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())


SMALL = {
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GQA = {"num_key_value_heads": 2}
MHA = {"num_key_value_heads": 4}
MQA = {"num_key_value_heads": 1}
WIDE = {"head_dim": 32}  # heads * head_dim is not the model's width
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 256}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
GEMMA2 = {"sliding_window": WINDOW, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
SIX = {"num_hidden_layers": 7, "sliding_window": WINDOW}
QUARTER = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}}
PARTIAL = QUARTER | {"hidden_size": 64}  # heads of 16, of which 4 rotate

VARIANTS = (
    Variant("Gemma 1 2B", "GemmaConfig", MQA | WIDE),
    Variant("Gemma 1 7B", "GemmaConfig", MHA | WIDE),
    Variant("Gemma 2 2B, 9B", "Gemma2Config", GQA | WIDE | GEMMA2 | {"query_pre_attn_scalar": 32}),
    Variant("Gemma 2 27B", "Gemma2Config", GQA | WIDE | GEMMA2 | {"query_pre_attn_scalar": 12}),
    Variant("Gemma 3 270M, 1B", "Gemma3TextConfig", MQA | WIDE | SIX | {"query_pre_attn_scalar": 32}),
    Variant("Gemma 3 4B, 12B", "Gemma3TextConfig", GQA | WIDE | SIX | {"rope_parameters": GEMMA3_ROPE}),
    Variant("Gemma 3 27B", "Gemma3TextConfig", GQA | WIDE | SIX | {"query_pre_attn_scalar": 21}),
    Variant("Gemma 3, ring turned over", "Gemma3TextConfig", MQA | WIDE | SIX, tokens=600),
    Variant("Llama 2", "LlamaConfig", MHA),
    Variant("Llama 3", "LlamaConfig", GQA | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    Variant("Llama 3.1, 3.2", "LlamaConfig", GQA | {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    Variant("Llama, linear scaling, biases", "LlamaConfig", GQA | {"attention_bias": True, "mlp_bias": True}
            | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    Variant("Falcon 3 (a Llama)", "LlamaConfig", GQA | WIDE | {"rope_parameters": {"rope_type": "default", "rope_theta": 1000042}}),
    Variant("SmolLM2", "LlamaConfig", GQA | {"tie_word_embeddings": True, "hidden_size": 36, "num_attention_heads": 6}
            | {"num_key_value_heads": 3, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
    Variant("Mistral 7B v0.1", "MistralConfig", GQA | {"sliding_window": WINDOW}),
    Variant("Mistral 7B v0.2, v0.3", "MistralConfig", GQA | {"sliding_window": None}),
    Variant("Mistral Nemo", "MistralConfig", GQA | WIDE | {"sliding_window": None}),
    Variant("Falcon 7B", "FalconConfig", {"hidden_size": 60, "num_attention_heads": 5, "multi_query": True}),
    Variant("Falcon 40B", "FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    Variant("Falcon 2 11B (one norm)", "FalconConfig",
            {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    Variant("OLMo 1", "OlmoConfig", MHA),
    Variant("OLMo 1, clipped", "OlmoConfig", MHA | {"clip_qkv": 1.0}),
    Variant("OLMo 2", "Olmo2Config", MHA | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    Variant("StableLM alpha", "GPTNeoXConfig", PARTIAL),
    Variant("StableLM 3B-4E1T", "StableLmConfig", MHA | PARTIAL),
    Variant("StableLM 2 1.6B", "StableLmConfig", MHA | PARTIAL | {"use_qkv_bias": True}),
    Variant("StableLM 2 12B", "StableLmConfig", GQA | PARTIAL | {"qk_layernorm": True, "use_parallel_residual": True}),
    Variant("Qwen 1.5", "Qwen2Config", MHA),
    Variant("Qwen 2, 2.5", "Qwen2Config", GQA | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    Variant("Qwen 2, windows and YaRN", "Qwen2Config", GQA | {"rope_parameters": YARN}
            | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    Variant("Qwen 3", "Qwen3Config", GQA | WIDE),
    Variant("GPT-NeoX, Pythia, oasst-sft", "GPTNeoXConfig", PARTIAL | {"use_parallel_residual": True}),
    Variant("Pythia, sequential", "GPTNeoXConfig", PARTIAL | {"use_parallel_residual": False}),
)  # fmt: skip


def build(variant: Variant, seed: int = 0) -> Any:
    """transformers' model of a variant, in float32, attention computed eagerly (soft-caps need it)."""
    import torch
    import transformers

    options = SMALL | {"tie_word_embeddings": variant.config_class.startswith("Gemma")} | variant.options
    if variant.config_class == "FalconConfig":
        options["ffn_hidden_size"] = options.pop("intermediate_size")
        options["tie_word_embeddings"] = True
    options = {name: value for name, value in options.items() if value is not None or name == "sliding_window"}
    config = getattr(transformers, variant.config_class)(**options)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_drawn(name, parameter, config, generator))
    return model


def _drawn(name: str, parameter: Any, config: Any, generator: Any) -> Any:
    import torch

    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("bias"):
        return 0.3 * noise
    if parameter.ndim == 1:  # a norm: around one, or around zero where one is added
        plus_one = config.model_type.startswith("gemma")
        return 0.3 * noise + (0.0 if plus_one else 1.0)
    if "embed" in name and "out" not in name:
        scaled = config.model_type.startswith("gemma")
        spread = 10.0 if scaled and getattr(config, "final_logit_softcapping", None) else 1.0
        return noise * spread * (config.hidden_size**-0.5 if scaled or config.tie_word_embeddings else 1.0)
    return _gain(name, config) * noise / math.sqrt(parameter.shape[1])


def _gain(name: str, config: Any) -> float:
    """Scores reach the soft-cap where there is one. Elsewhere they stay where softmax does not magnify float32's own
    rounding: at four times the gain transformers itself is 3e-4 from its float64 self."""
    if "lm_head" in name or "embed_out" in name:
        return 4.0
    if "q_proj" in name or "k_proj" in name:
        return 6.0 if getattr(config, "attn_logit_softcapping", None) else 1.5
    return 1.5


def text_ids(variant: Variant, seed: int = 1) -> list[int]:
    """A random text of the variant's length."""
    import random

    return [random.Random(seed + i).randrange(3, 96) for i in range(variant.tokens)]


def save(variant: Variant, folder: Path) -> Any:
    """Writes checkpoint, ids and reference logits of a variant below `folder`; returns the logits (T, V)."""
    import numpy as np
    import torch

    model = build(variant)
    ids = text_ids(variant)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float().numpy()
    model.save_pretrained(folder / variant.slug)
    np.savez(folder / f"{variant.slug}.npz", ids=ids, logits=logits)
    return logits
