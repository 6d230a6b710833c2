"""TensorRT-LLM's own checkpoints: config.json and one rank{i}.safetensors for each rank. Its converters are legacy.

Tensor names and how tensors are split are the dialect's business, bytes `io.safetensors`'s. Quantised checkpoints and
built engines are not read. Today's TensorRT-LLM reads Hugging Face directories by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import families
from ..config import Config
from ..dialects import parallel
from ..dialects import trtllm as dialect
from ..dialects.parallel import WHOLE, Cut, even
from ..errors import ConfigError, FormatError, GeodeError, ModelNotFound
from ..families import Family
from ..tensors import Entry, Tensors
from .base import Checkpoint, Format, Target, common_type, described, floats, read_json, write_json, write_tokenizer

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "falcon": "FalconForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
}
"""Our family -> `architecture`: tensorrt_llm/models/__init__.py in github.com/NVIDIA/TensorRT-LLM."""

KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "hidden_act": "hidden_act",
    "rotary_base": "rope_theta",
    "rotary_scaling": "rope_scaling",
    "attn_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "tie_word_embeddings": "tie_word_embeddings",
}
"""Their keys -> Hugging Face's, for the families that resemble Llama."""

_SCALED = {"query_pre_attn_scalar": "query_pre_attn_scalar", "final_logit_softcapping": "final_logit_softcapping"}
_OWN: dict[str, dict[str, str]] = {
    "gemma2": _SCALED | {"attn_logit_softcapping": "attn_logit_softcapping", "hidden_act": "hidden_activation"},
    "gemma3": _SCALED
    | {
        "hidden_act": "hidden_activation",
        "sliding_window": "sliding_window",
        "sliding_window_pattern": "sliding_window_pattern",
        "rope_local_base_freq": "rope_local_base_freq",
    },
    "falcon": {
        "num_key_value_heads": "num_kv_heads",
        "intermediate_size": "ffn_hidden_size",
        "norm_epsilon": "layer_norm_epsilon",
        "hidden_act": "activation",
        "bias": "bias",
        "parallel_attention": "parallel_attn",
        "new_decoder_architecture": "new_decoder_architecture",
    },
    "gpt_neox": {"norm_epsilon": "layer_norm_eps", "rotary_emb_base": "rotary_emb_base", "rotary_pct": "rotary_pct"},
}
_WITHOUT: dict[str, tuple[str, ...]] = {
    "gemma2": ("mlp_bias",),
    "gemma3": ("mlp_bias",),
    "qwen2": ("attn_bias", "mlp_bias"),
    "qwen3": ("mlp_bias",),
    "falcon": ("head_size", "attn_bias", "mlp_bias"),
    "gpt_neox": ("num_key_value_heads", "head_size", "rotary_base", "attn_bias", "mlp_bias"),
}
FIXED = {
    "logits_dtype": "float32",
    "position_embedding_type": "rope_gpt_neox",
    "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    "embedding_sharding_dim": 0,
}
DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
RANK = re.compile(r"rank(\d+)\.safetensors")


class TrtLlm(Checkpoint):
    """A directory of config.json and the ranks' files."""

    def _tensors(self) -> Tensors:
        return dialect.read(self.stored, self.config, self.family)


def claims(path: Path) -> bool:
    """A directory with rank0.safetensors beside its config.json, or one of the ranks' files."""
    if path.is_dir():
        return (path / "rank0.safetensors").is_file() and (path / "config.json").is_file()
    return RANK.fullmatch(path.name) is not None


def open(path: Path) -> TrtLlm:
    """Opens a directory, or the one that a rank's file lies in."""
    path = path if path.is_dir() else path.parent
    values = read_json(path / "config.json")
    if not isinstance(values.get("architecture"), str):
        raise ConfigError(f"{path / 'config.json'} has no architecture, so its family is not known.")
    if _quantised(values.get("quantization")):
        raise FormatError(
            f"{path} is quantised by TensorRT-LLM, which is not read. Take the checkpoint it was made from."
        )
    mapping = values.get("mapping")
    mapping = mapping if isinstance(mapping, dict) else {}
    ranks, stages = (_whole_number(mapping.get(name, 1), name, path) for name in ("tp_size", "pp_size"))
    family, config = described(path) or _network(values, str(path / "config.json"))
    if family.name not in ARCHITECTURES:
        raise ConfigError(f"{path}: TensorRT-LLM has no {family.name}; its manifest is of another checkpoint.")
    return TrtLlm(path, "trtllm", family, config, _stored(path, config, family, values, ranks, stages), values)


def _whole_number(value: Any, name: str, path: Path) -> int:
    if type(value) is not int or not 0 < value <= 1024:
        raise ConfigError(f"{path / 'config.json'}: {name} should be 1 to 1024; it is {value!r:.40}.")
    return value


def _quantised(found: Any) -> bool:
    return isinstance(found, dict) and any(found.get(name) for name in ("quant_algo", "kv_cache_quant_algo"))


def _stored(path: Path, config: Config, family: Family, values: Mapping[str, Any], ranks: int, stages: int) -> Tensors:
    """All tensors, joined over ranks and numbered through the pipeline's stages."""
    from ..io import safetensors

    files = [path / f"rank{i}.safetensors" for i in range(ranks * stages)]
    if absent := [file.name for file in files if not file.is_file()]:
        raise ModelNotFound(f"{path} should hold {len(files)} ranks; {', '.join(absent[:8])} are not there.")
    read = [safetensors.read(file) for file in files]
    made: dict[str, Entry] = {}
    below = 0
    for stage in range(stages):
        mine = read[stage * ranks : (stage + 1) * ranks]
        heads = [tensors.entries[dialect.HEAD] for tensors in mine if dialect.HEAD in tensors.entries]
        rows = sum(entry.shape[0] for entry in heads if entry.shape)
        embeddings = _embeddings(config, ranks, bool(values.get("use_parallel_embedding")), values)
        whole = parallel.joined(mine, dialect.cuts(config, family, ranks, embeddings, rows))
        layers = [int(found[1]) for name in whole.entries if (found := LAYER.match(name))]
        made = {_raised(name, below): entry for name, entry in whole.entries.items()} | made
        below += 1 + max(layers, default=-1)
    return Tensors(made)


LAYER = re.compile(r"transformer\.layers\.(\d+)\.")


def _raised(name: str, below: int) -> str:
    return LAYER.sub(lambda found: f"transformer.layers.{int(found[1]) + below}.", name)


def _embeddings(config: Config, ranks: int, split: bool, values: Mapping[str, Any]) -> Cut:
    if not split:
        return WHOLE
    by_width = values.get("embedding_sharding_dim") == 1
    return even(config.width if by_width else config.vocab, ranks, int(by_width))


def _network(values: Mapping[str, Any], what: str) -> tuple[Family, Config]:
    known = {theirs: ours for ours, theirs in ARCHITECTURES.items()}
    if values["architecture"] not in known:
        raise ConfigError(
            f"{what}: the architecture {values['architecture']!r:.60} is not read; {', '.join(known)} are."
        )
    family = families.by_name(known[values["architecture"]])
    keys = _keys(family)
    found = {theirs: values[name] for name, theirs in keys.items() if values.get(name) is not None}
    if family.name == "mistral":
        found["sliding_window"] = None  # which is given when an engine runs
    if family.name == "falcon":
        found["multi_query"] = values.get("num_key_value_heads") == 1
    if family.name.startswith("gemma") or family.name == "falcon":
        found.setdefault("tie_word_embeddings", True)
    return family, family.config_from_hf(found, what)


def _keys(family: Family) -> dict[str, str]:
    kept = {name: theirs for name, theirs in KEYS.items() if name not in _WITHOUT.get(family.name, ())}
    return kept | _OWN.get(family.name, {})


# Writing


def write(checkpoint: Checkpoint, folder: Path, name: str, target: Target) -> None:
    """config.json, rank{i}.safetensors for `target.parallel` ranks, and Hugging Face's tokenizer files."""
    from ..io import safetensors

    config, family, ranks = checkpoint.config, checkpoint.family, target.parallel
    kind = target.dtype or common_type(checkpoint.tensors)
    whole = dialect.write(floats(checkpoint.tensors, kind), config, family, ranks)
    split = _splits_embeddings(family, ranks)
    embeddings = even(config.vocab, ranks) if split else WHOLE
    cuts = dialect.cuts(config, family, ranks, embeddings, dialect.padded_rows(config.vocab, ranks))
    for rank in range(ranks):
        safetensors.write(folder / f"rank{rank}.safetensors", parallel.cut(whole, cuts, rank, ranks))
    write_json(folder / "config.json", config_json(checkpoint, kind, ranks))
    write_tokenizer(checkpoint, folder)


def _splits_embeddings(family: Family, ranks: int) -> bool:
    """Gemma's configuration in TensorRT-LLM insists on it: tensorrt_llm/models/gemma/config.py."""
    return family.name.startswith("gemma") and ranks > 1


def config_json(checkpoint: Checkpoint, kind: str, ranks: int) -> dict[str, Any]:
    """config.json as `PretrainedConfig` of TensorRT-LLM reads it."""
    family, config = checkpoint.family, checkpoint.config
    written = family.config_to_hf(config)
    made: dict[str, Any] = {"architecture": ARCHITECTURES[family.name], "dtype": DTYPE_NAMES[kind], **FIXED}
    made |= {"num_key_value_heads": config.kv_heads, "head_size": config.head_dim, "intermediate_size": config.ffn}
    made |= {name: written[theirs] for name, theirs in _keys(family).items() if theirs in written}
    made |= {"qk_layernorm": config.qk_norm != "none", "use_parallel_embedding": _splits_embeddings(family, ranks)}
    made |= {"mapping": {"world_size": ranks, "tp_size": ranks, "pp_size": 1}, "share_embedding_table": False}
    if family.name == "qwen2":
        made |= {"attn_bias": True, "qwen_type": "qwen2"}
    if family.name == "qwen3":
        made["qwen_type"] = "qwen3"
    if family.name == "gemma3":
        made["sliding_window_pattern"] = 6
    return made


def refuses(checkpoint: Checkpoint, target: Target) -> str | None:
    config, name, ranks = checkpoint.config, checkpoint.family.name, target.parallel
    if name not in ARCHITECTURES:
        return f"TensorRT-LLM's converters here know {', '.join(ARCHITECTURES)}, and no {name}."
    if name == "gpt_neox" and config.block != "parallel":
        return "TensorRT-LLM runs GPT-NeoX with parallel residuals only, and this network has sequential ones."
    if config.heads % ranks or config.ffn % ranks or (config.kv_heads % ranks and ranks % config.kv_heads):
        return (
            f"{config.heads} heads, {config.kv_heads} key/value heads and an MLP {config.ffn} wide do not split over "
            f"{ranks} ranks."
        )
    if _splits_embeddings(checkpoint.family, ranks) and config.vocab % ranks:
        return f"Gemma's {config.vocab} rows of embeddings cannot be split over {ranks} ranks."
    try:
        checkpoint.family.config_to_hf(config)
    except GeodeError as problem:
        return str(problem)
    return None


def losses(checkpoint: Checkpoint, target: Target) -> list[str]:
    found = []
    if any(layer.window for layer in checkpoint.config.pattern) and checkpoint.family.name != "gemma3":
        found.append(
            "The window of attention is not in TensorRT-LLM's configuration: give it when the engine runs "
            "(--max_attention_window_size)."
        )
    kind = target.dtype or common_type(checkpoint.tensors)
    if checkpoint.family.norm_plus_one and kind != "F32":
        found.append(f"Gemma's norms are stored as 1 + w in {kind}, which rounds w.")
    return found


FORMAT = Format(
    name="trtllm",
    about="TensorRT-LLM's own checkpoint (legacy): config.json, rank{i}.safetensors",
    claims=claims,
    open=open,
    write=write,
    refuses=refuses,
    losses=losses,
    options=frozenset({"dtype", "parallel"}),
)
