"""Hugging Face: a directory of config.json, safetensors in shards, the tokenizer's files and generation settings.

Tensor names are the dialect's business, bytes `io.safetensors`'s. vLLM, SGLang, TGI and TensorRT-LLM read the same.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import families
from ..dialects import hf as dialect
from ..dialects import matches
from ..errors import ConfigError, FormatError, ModelNotFound
from ..quant import QTensor
from ..tensors import Tensors
from .base import Checkpoint, Format, Target, common_type, end_ids, floats, read_json, write_json, write_tokenizer

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SIGNS = "geode.signs.npz"
DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


class HuggingFace(Checkpoint):
    """A directory with config.json."""

    def _tensors(self) -> Tensors:
        return dialect.read(self.stored, self.config, self.family)

    def _ends(self) -> frozenset[int]:
        generation = read_json(self.path / "generation_config.json")
        return end_ids(self.metadata if generation.get("eos_token_id") is None else generation)

    @cached_property
    def _signs(self) -> dict[str, np.ndarray]:
        from zipfile import BadZipFile

        if not (self.path / SIGNS).is_file():
            return {}
        try:
            with np.load(self.path / SIGNS, allow_pickle=False) as kept:
                return {name: kept[name] for name in kept}
        except (OSError, ValueError, EOFError, BadZipFile) as problem:
            raise FormatError(
                f"{self.path / SIGNS} is damaged ({problem}). Delete it: packing then takes the usual signs."
            ) from None

    def signs(self, name: str) -> np.ndarray | None:
        return self._signs.get(name)

    def _vision(self) -> list[str]:
        return [name for name in self.stored.entries if any(matches(name, one) for one in self.family.vision)]


def claims(path: Path) -> bool:
    """A directory with config.json and safetensors, one of these files, or a directory where only weights miss."""
    if path.is_dir():
        has_weights = any(path.glob("*.safetensors*")) or not any(path.glob("*.gguf"))
        return (path / "config.json").is_file() and has_weights
    return path.suffix == ".safetensors" or path.name in ("config.json", "model.safetensors.index.json", *PICKLES)


def open(path: Path) -> HuggingFace:
    """Opens a directory, config.json, an index, or one .safetensors file beside its config.json."""
    if path.suffix == ".safetensors" and "-of-" not in path.name:
        return _open(path.parent, path)
    return _open(path, path) if path.is_dir() else _open(path.parent, path.parent)


def _open(path: Path, weights: Path) -> HuggingFace:
    if not (path / "config.json").is_file():
        raise ModelNotFound(f"{path} has no config.json, so what the weights beside it compute is not known.")
    values = read_json(path / "config.json")
    model_type = values.get("model_type")
    text = values.get("text_config")
    if isinstance(text, dict) and text.get("model_type"):  # the text half of a multimodal checkpoint
        shared = {name: value for name, value in values.items() if name in _IDS}
        values, model_type = shared | text, text["model_type"]
    if not isinstance(model_type, str):
        raise ConfigError(f"{path / 'config.json'} has no model_type, so its family is not known.")
    family = families.by_model_type(model_type)
    config = family.config_from_hf(values, str(path / "config.json"))
    return HuggingFace(path, "hf", family, config, _stored(weights), values)


def _stored(weights: Path) -> Tensors:
    """safetensors; where a directory has none, PyTorch's own files, which older checkpoints come in."""
    if weights.is_dir() and not any(weights.glob("*.safetensors*")) and any((weights / n).is_file() for n in PICKLES):
        from ..io import torch_zip

        return torch_zip.read(weights)
    from ..io import safetensors

    return safetensors.read(weights)


def write(checkpoint: Checkpoint, folder: Path, name: str, target: Target) -> None:
    """A directory that transformers' `from_pretrained` opens."""
    from ..io import safetensors

    kind = target.dtype or common_type(checkpoint.tensors)
    stored = dialect.write(floats(checkpoint.tensors, None), checkpoint.config, checkpoint.family)
    safetensors.write(folder, floats(stored, target.dtype), max_shard_bytes=target.max_shard_bytes)
    if target.dtype in (None, "F32"):
        _keep_signs(checkpoint.tensors, folder / SIGNS)
    write_json(folder / "config.json", config_json(checkpoint, kind))
    if generation := generation_json(checkpoint):
        write_json(folder / "generation_config.json", generation)
    write_tokenizer(checkpoint, folder)


def _keep_signs(tensors: Tensors, path: Path) -> None:
    """What numbers of unpacked blocks do not tell, a bit for 16 of them, so that they go back into the same bits."""
    from ..recover import SIGNED, signs

    packed = {name: tensors[name] for name, entry in tensors.entries.items() if entry.type in SIGNED}
    found = {name: signs(array) for name, array in packed.items() if isinstance(array, QTensor)}
    kept: dict[str, Any] = {name: bits for name, bits in found.items() if bits is not None}
    if kept:
        np.savez(path, **kept)


def refuses(checkpoint: Checkpoint, target: Target) -> str | None:
    """Networks that config.json of their family cannot say."""
    if checkpoint.family.spells(checkpoint.config):
        return None
    try:
        checkpoint.family.config_to_hf(checkpoint.config)
    except ConfigError as problem:
        return str(problem)
    return "Its config.json has no keys for all of this network; take the one of the original checkpoint."


def config_json(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """config.json: the network, its token ids and the type of its weights."""
    made = checkpoint.family.config_to_hf(checkpoint.config)
    return made | {"torch_dtype": DTYPE_NAMES[dtype]} | token_ids(checkpoint)


def token_ids(checkpoint: Checkpoint) -> dict[str, Any]:
    """bos, eos and pad as config.json spells them; those the source says, else the tokenizer's."""
    known = {key: checkpoint.metadata[key] for key in _IDS if checkpoint.metadata.get(key) is not None}
    if known or checkpoint.tokenizer is None:
        return known
    roles = checkpoint.tokenizer.roles
    found = {"bos_token_id": roles.bos, "eos_token_id": roles.eos, "pad_token_id": roles.pad}
    return {key: value for key, value in found.items() if value is not None}


_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def generation_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """generation_config.json: the source's own where it has one, else the ids that end a text."""
    if checkpoint.format == "hf" and (found := read_json(checkpoint.path / "generation_config.json")):
        return found
    ids: dict[str, Any] = token_ids(checkpoint)
    ends = sorted(checkpoint.ends | (checkpoint.tokenizer.ends if checkpoint.tokenizer else frozenset()))
    if ends:
        ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return ids


FORMAT = Format(
    name="hf",
    about="Hugging Face directory: config.json, safetensors, tokenizer files",
    claims=claims,
    open=open,
    write=write,
    refuses=refuses,
    options=frozenset({"dtype", "max_shard_bytes"}),
)
