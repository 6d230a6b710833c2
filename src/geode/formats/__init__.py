"""Checkpoint formats, one file each: how it is told from the others, opened and written.

Tensor names and layouts are tables in `dialects`, bytes are `io`'s; what a network computes is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from ..errors import ModelNotFound, OptionError
from .base import Checkpoint, Format, Target

__all__ = ["NAMES", "Checkpoint", "Format", "Target", "by_name", "claiming", "every", "open"]

NAMES = ("hf", "gguf", "keras", "flax", "maxtext", "gemma_pytorch", "nemo", "trtllm", "llama2c", "meta")
"""What `--to` takes, and the name of each format's file here."""

_ASKED = ("trtllm", "gemma_pytorch", "nemo", "meta", "llama2c", "keras", "hf", "gguf", "maxtext", "flax")
"""The order in which formats are asked whether a path is theirs: those that are told by more come first."""


def every() -> Iterator[Format]:
    """All formats."""
    return (by_name(name) for name in NAMES)


def by_name(name: str) -> Format:
    """The format that `--to` names; nothing else is imported. Raises OptionError."""
    if name not in NAMES:
        known = "; ".join(f"{one.name} ({one.about})" for one in every())
        raise OptionError(f"There is no format {name!r}. There are: {known}.")
    found: Format = import_module(f".{name}", __name__).FORMAT
    return found


def open(path: str | Path) -> Checkpoint:
    """Opens whatever format a path is of; reads headers only. Raises ModelNotFound, FormatError, ConfigError."""
    path = Path(path)
    if not path.exists():
        raise ModelNotFound(f"There is no model at {path}: expected a .gguf file or a directory with config.json.")
    found = claiming(path)
    if found is not None:
        return found.open(path)
    if path.is_dir():
        raise ModelNotFound(f"{path} holds neither config.json nor a .gguf file, so there is no model to open.")
    return by_name("gguf").open(path)  # whose complaint says what a model's file begins with


def claiming(path: Path) -> Format | None:
    """The format that a path looks like."""
    if path.suffix == ".gguf" and path.is_file():  # the one that starts in a second
        return by_name("gguf")
    return next((one for name in _ASKED if (one := by_name(name)).claims(path)), None)
