"""llama2.c's arrays <-> canonical tensors. Its names are Meta's, and so are its rows of q and k, pairs side by side."""

from __future__ import annotations

from ..config import Config
from ..tensors import Tensors
from . import read as read_rules
from . import write as write_rules
from .torch_ckpt import meta_rules


def read(stored: Tensors, config: Config) -> Tensors:
    """Canonical tensors over a file's."""
    return read_rules(meta_rules(config), stored, config, ("freqs_*",))


def write(canonical: Tensors, config: Config) -> Tensors:
    """A file's tensors over canonical ones, without the tables of rotations."""
    return write_rules(meta_rules(config), canonical)
