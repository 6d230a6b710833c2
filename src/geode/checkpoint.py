"""A model's files opened: the format that claims them says configuration, canonical tensors, tokenizer, all lazily.

What a network computes is not known here, nor where files come from.
"""

from __future__ import annotations

from pathlib import Path

from . import formats
from .errors import ModelNotFound
from .formats import Checkpoint

__all__ = ["Checkpoint", "open"]


def open(path: str | Path) -> Checkpoint:
    """Opens whatever format a path is of: a .gguf file, a Hugging Face directory … (`formats.every()` lists them).

    Reads headers only. Raises ModelNotFound, FormatError, ConfigError.
    """
    path = Path(path)
    if not path.exists():
        raise ModelNotFound(f"There is no model at {path}: expected a .gguf file or a directory with config.json.")
    found = formats.claiming(path)
    if found is not None:
        return found.open(path)
    if path.is_dir():
        raise ModelNotFound(f"{path} holds neither config.json nor a .gguf file, so there is no model to open.")
    return formats.by_name("gguf").open(path)  # whose complaint says what a model's file begins with
