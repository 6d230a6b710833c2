"""A model's files opened: configuration, canonical tensors, tokenizer, template, all lazily.

What a network computes is not known here, nor where files come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import families
from .config import Config
from .dialects import gguf as gguf_dialect
from .dialects import hf as hf_dialect
from .errors import ConfigError, FormatError, ModelNotFound
from .families import Family
from .quant import to_float32
from .tensors import Tensors

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


@dataclass
class Checkpoint:
    """One opened checkpoint. `stored` are the tensors as the file has them, `tensors` the canonical ones over them."""

    path: Path
    format: str  # "gguf" or "hf"
    family: Family
    config: Config
    stored: Tensors
    metadata: Mapping[str, Any]  # GGUF's keys, or config.json

    @cached_property
    def tensors(self) -> Tensors:
        """Canonical tensors. Raises TensorError when config and weights disagree."""
        read = gguf_dialect.read if self.format == "gguf" else hf_dialect.read
        return read(self.stored, self.config, self.family)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The checkpoint's tokenizer; None when it brings none. Raises TokenizerError when it is damaged."""
        from . import tokenizer

        if self.format == "hf":
            return tokenizer.load(self.path)
        if "tokenizer.ggml.tokens" not in self.metadata:
            return None
        return tokenizer.from_gguf(self.metadata)

    @cached_property
    def template(self) -> str | None:
        """The checkpoint's own chat template (Jinja), if it has one."""
        if self.format == "gguf":
            found = self.metadata.get("tokenizer.chat_template")
            return found if isinstance(found, str) else None
        if (found := _text(self.path / "chat_template.jinja")) is not None:
            return found
        found = _json(self.path / "chat_template.json").get("chat_template")
        return _default_template(found or _json(self.path / "tokenizer_config.json").get("chat_template"))

    @property
    def chat(self) -> str | None:
        """The name of the built-in format that this family speaks when the checkpoint brings no template."""
        control = self.tokenizer.control if self.tokenizer else {}
        return next((name for token, name in self.family.chat if not token or token in control), None)

    @cached_property
    def ends(self) -> frozenset[int]:
        """Ids that end a text by the checkpoint's generation settings (the tokenizer knows more)."""
        if self.format == "gguf":
            return frozenset()
        found = _json(self.path / "generation_config.json").get("eos_token_id")
        found = self.metadata.get("eos_token_id") if found is None else found
        return frozenset(i for i in (found if isinstance(found, list) else [found]) if type(i) is int)


def open(path: str | Path) -> Checkpoint:
    """Opens a .gguf file, a Hugging Face directory, a .safetensors file beside its config.json, or a directory that
    holds one GGUF file. Reads headers only.

    Raises ModelNotFound, FormatError, ConfigError.
    """
    path = Path(path)
    if path.is_dir():
        return _open_directory(path)
    if not path.is_file():
        raise ModelNotFound(f"There is no model at {path}: expected a .gguf file or a directory with config.json.")
    if path.suffix == ".safetensors":
        return _open_hf(path.parent, path.parent if "-of-" in path.name else path)
    if path.name in ("config.json", "model.safetensors.index.json"):
        return _open_hf(path.parent, path.parent)
    return _open_gguf(path)


def _open_directory(path: Path) -> Checkpoint:
    has_weights = any(path.glob("*.safetensors*")) or not any(path.glob("*.gguf"))
    if (path / "config.json").is_file() and has_weights:
        return _open_hf(path, path)
    files = sorted(path.glob("*.gguf"))
    whole = [file for file in files if "-of-" not in file.name or "-00001-of-" in file.name]
    if len(whole) == 1:
        return _open_gguf(whole[0])
    if whole:
        names = ", ".join(file.name for file in whole)
        raise ModelNotFound(f"{path} holds several GGUF files ({names}): name the one to open.")
    raise ModelNotFound(f"{path} holds neither config.json nor a .gguf file, so there is no model to open.")


def _open_gguf(path: Path) -> Checkpoint:
    from .io import gguf

    file = gguf.read(path)
    arch = file.metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise ConfigError(f"{path} has no key general.architecture, so its family is not known.")
    family = families.by_gguf_arch(arch)
    shapes = {name: entry.shape for name, entry in file.tensors.entries.items()}
    freqs = to_float32(file.tensors["rope_freqs.weight"]) if "rope_freqs.weight" in shapes else None
    config = family.config_from_gguf(file.metadata, shapes, freqs)
    return Checkpoint(path, "gguf", family, config, file.tensors, file.metadata)


def _open_hf(path: Path, weights: Path) -> Checkpoint:
    from .io import safetensors

    if not (path / "config.json").is_file():
        raise ModelNotFound(f"{path} has no config.json, so what the weights beside it compute is not known.")
    values = _json(path / "config.json")
    model_type = values.get("model_type")
    text = values.get("text_config")
    if isinstance(text, dict) and text.get("model_type"):  # the text half of a multimodal checkpoint
        shared = {name: values[name] for name in ("eos_token_id",) if name in values}
        values, model_type = shared | text, text["model_type"]
    if not isinstance(model_type, str):
        raise ConfigError(f"{path / 'config.json'} has no model_type, so its family is not known.")
    family = families.by_model_type(model_type)
    config = family.config_from_hf(values, str(path / "config.json"))
    return Checkpoint(path, "hf", family, config, safetensors.read(weights), values)


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} when there is no file. Raises FormatError."""
    text = _text(path)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise FormatError(f"{path} is not valid JSON ({problem}). Get the file again from its source.") from None
    if not isinstance(found, dict):
        raise FormatError(f"{path} should hold a JSON object; it holds a {type(found).__name__}.")
    return found


def _text(path: Path) -> str | None:
    """What a text file holds, None when there is no file. Raises FormatError."""
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise FormatError(f"{path} is not UTF-8 text ({problem}). Get the file again from its source.") from None


def _default_template(found: Any) -> str | None:
    """One template out of what tokenizer_config.json may hold: a text, or a list of named ones."""
    if isinstance(found, list):
        entries = (entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default")
        found = next(entries, {}).get("template")
    return found if isinstance(found, str) else None
