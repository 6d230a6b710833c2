"""gemma_pytorch: Google's own PyTorch program's checkpoint, one .ckpt of tensors beside its tokenizer.

The pickle in it is followed by `io.torch_pickle`, names are the dialect's business. What the network is, the .ckpt does
not say: our manifest does, else the config.json beside it, else, of published sizes, the shapes of the tensors.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import families
from ..config import Config
from ..dialects import matches
from ..dialects import torch_ckpt as dialect
from ..errors import ConfigError, FormatError, ModelNotFound
from ..families import Family
from ..tensors import Tensors
from .base import (
    Checkpoint,
    Format,
    Target,
    common_type,
    described,
    floats,
    read_text,
    write_json,
    write_sentencepiece,
    write_tokenizer,
)
from .gemmas import PUBLISHED

NAME = "model.ckpt"
STATE = "model_state_dict"

KEYS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "head_dim": "head_dim",
    "rms_norm_eps": "rms_norm_eps",
    "sliding_window_size": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "query_pre_attn_scalar": "query_pre_attn_scalar",
}
"""Fields of `GemmaConfig` in gemma/config.py -> Hugging Face's keys."""


class GemmaPytorch(Checkpoint):
    """A .ckpt, in the directory that holds its tokenizer."""

    def _tensors(self) -> Tensors:
        return dialect.read_gemma(self.stored, self.config, self.family)

    def _vision(self) -> list[str]:
        return [name for name in self.stored.entries if any(matches(name, pattern) for pattern in dialect.VISION)]


def claims(path: Path) -> bool:
    """A .ckpt that is a zip, or a directory that holds one; NeMo's weights are not."""
    if path.is_dir():
        return not any(path.glob("*.safetensors")) and any(claims(file) for file in path.glob("*.ckpt"))
    if path.suffix != ".ckpt" or path.name == "model_weights.ckpt":
        return False
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def open(path: Path) -> GemmaPytorch:
    """Opens a .ckpt, or the only one of a directory."""
    from ..io import torch_zip

    path = _file_in(path) if path.is_dir() else path
    value = torch_zip.load(path)
    if not isinstance(value, dict) or STATE not in value:
        raise FormatError(f"{path} has no {STATE!r}, which every checkpoint of gemma_pytorch has; is it another's?")
    stored = torch_zip.tensors(value[STATE], str(path))
    if quantised := [name for name in stored.entries if name.endswith(".weight_scaler")]:
        raise FormatError(
            f"{path} is one of gemma_pytorch's int8 files ({len(quantised)} tensors with scales). Take the checkpoint "
            "that is not quantised, and let `geode convert` quantise it."
        )
    known = described(path.parent)
    values = _published(path, stored) if known is None else {}
    family, config = known or _configured(path, values)
    return GemmaPytorch(path, "gemma_pytorch", family, config, stored, values)


def _file_in(folder: Path) -> Path:
    files = sorted(folder.glob("*.ckpt"))
    if len(files) != 1:
        raise ModelNotFound(f"{folder} holds {len(files)} .ckpt files; name the one to open.")
    return files[0]


def _configured(path: Path, values: dict[str, Any]) -> tuple[Family, Config]:
    family = families.by_model_type(values["model_type"])
    return family, family.config_from_hf(values, f"What is known of {path}")


def _published(path: Path, stored: Tensors) -> dict[str, Any]:
    """Hugging Face's keys of the network, by config.json and the tensors. Raises ConfigError where they do not tell."""
    shapes = {name.replace(dialect.MULTIMODAL, "embedder", 1): entry.shape for name, entry in stored.entries.items()}
    given = almost_json(path.parent / "config.json")
    family = _generation(shapes)
    try:
        (vocab, width), depth = shapes["embedder.weight"], _depth(shapes)
        usual = PUBLISHED.get((family.name, depth, width))
        if usual is None and "num_attention_heads" not in given:
            raise ConfigError(
                f"{path} has {depth} layers, {width} channels wide, which no published Gemma has, and no config.json "
                f"beside it says how many heads these are. Write one with {', '.join(KEYS)}."
            )
        sizes = {"vocab_size": vocab, "hidden_size": width, "num_hidden_layers": depth}
        sizes |= {"max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "head_dim": 256} | (usual or {})
        sizes |= {theirs: given[ours] for ours, theirs in KEYS.items() if given.get(ours) is not None}
        sizes |= _heads(shapes, int(sizes["head_dim"]))
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError) as problem:
        raise ConfigError(
            f"{path} lacks tensors that every Gemma has ({problem}), so its network is not known."
        ) from None
    return {"model_type": family.hf_types[0]} | sizes


def _generation(shapes: Mapping[str, tuple[int, ...]]) -> Family:
    if "model.layers.0.self_attn.query_norm.weight" in shapes:
        return families.GEMMA3
    return families.GEMMA2 if "model.layers.0.pre_feedforward_layernorm.weight" in shapes else families.GEMMA


def _depth(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("model.layers."))


def _heads(shapes: Mapping[str, tuple[int, ...]], head_dim: int) -> dict[str, Any]:
    """Heads and the width of the network between, which the shapes give exactly."""
    queries = shapes["model.layers.0.self_attn.o_proj.weight"][1]
    rows = shapes["model.layers.0.self_attn.qkv_proj.weight"][0]
    return {
        "num_attention_heads": queries // head_dim,
        "num_key_value_heads": (rows - queries) // 2 // head_dim,
        "intermediate_size": shapes["model.layers.0.mlp.gate_proj.weight"][0],
    }


def almost_json(path: Path) -> dict[str, Any]:
    """The object in a config.json that may have single quotes and trailing commas, as Google's has; {} without a file.

    Read as a Python literal where it is no JSON; nothing in it is evaluated. Raises FormatError.
    """
    text = read_text(path)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _literal(path, text)
    if not isinstance(found, dict):
        raise FormatError(f"{path} should hold names with values; it holds a {type(found).__name__}.")
    return found


_WORDS = {"true": True, "false": False, "null": None}


def _literal(path: Path, text: str) -> Any:
    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Dict) and None not in node.keys:
            return {value(key): value(inner) for key, inner in zip(node.keys, node.values, strict=True) if key}
        if isinstance(node, ast.List | ast.Tuple):
            return [value(inner) for inner in node.elts]
        if isinstance(node, ast.Name) and node.id in _WORDS:
            return _WORDS[node.id]
        raise ValueError(f"it holds {type(node).__name__}, which is no value")

    try:
        if len(text) > 1 << 20:
            raise ValueError("it is longer than any configuration")
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as problem:
        raise FormatError(f"{path} is neither JSON nor nearly so ({problem}). Get the file again.") from None


# Writing


def write(checkpoint: Checkpoint, folder: Path, name: str, target: Target) -> None:
    """model.ckpt, config.json with gemma_pytorch's own fields, tokenizer.model and Hugging Face's tokenizer files."""
    from ..io import torch_zip

    kind = target.dtype or common_type(checkpoint.tensors)
    stored = dialect.write_gemma(floats(checkpoint.tensors, None), checkpoint.config, checkpoint.family)
    torch_zip.write(folder / NAME, {STATE: floats(stored, target.dtype)})
    write_json(folder / "config.json", _fields(checkpoint, kind))
    write_tokenizer(checkpoint, folder)
    write_sentencepiece(checkpoint, folder)


def _fields(checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    written = checkpoint.family.config_to_hf(checkpoint.config)
    found = {theirs: written[name] for theirs, name in KEYS.items() if written.get(name) is not None}
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return found | {"dtype": names[kind], "quant": False, "tokenizer": "tokenizer.model"}


def refuses(checkpoint: Checkpoint, target: Target) -> str | None:
    if checkpoint.family.name not in ("gemma", "gemma2", "gemma3"):
        return f"gemma_pytorch runs Gemma 1, 2 and 3, and no {checkpoint.family.name}."
    if not checkpoint.config.tied:
        return "gemma_pytorch has no head apart from the embeddings, which this checkpoint has."
    return None


FORMAT = Format(
    name="gemma_pytorch",
    about="Google's gemma_pytorch: model.ckpt, config.json, tokenizer.model",
    claims=claims,
    open=open,
    write=write,
    refuses=refuses,
)
