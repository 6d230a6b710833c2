"""An adapter in memory, and finding out what lies at a path.

Options and bytes of either format are not known here, nor what merging is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..config import Config
from ..dialects.peft import Pair
from ..errors import ModelNotFound
from ..families import Family
from ..tensors import Tensors

if TYPE_CHECKING:
    from ..formats import Checkpoint

__all__ = ["Adapter", "Pair", "claims", "open"]

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Adapter:
    """Changes to a network of `family` and `config`, by canonical names.

    pairs     what is added to matrices; arxiv.org/abs/2106.09685
    replaced  tensors that come whole: norms, biases, embeddings trained beside the pairs
    base      name or path of the base model, where one is known
    left_out  what the files hold and this network has not, one sentence each
    score     a reward model's head (1, width), or a classifier's with as many rows as labels: it reads the last hidden
              state in the place of the network's own head, which then has no part in the adapter
    """

    family: Family
    config: Config
    pairs: Mapping[str, Pair]
    replaced: Tensors
    base: str | None = None
    left_out: tuple[str, ...] = ()
    score: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """The largest rank of a pair."""
        return max((pair.rank for pair in self.pairs.values()), default=0)

    @property
    def parameters(self) -> int:
        """Numbers in the adapter."""
        pairs = sum(pair.a.size + pair.b.size for pair in self.pairs.values())
        whole = sum(math.prod(entry.shape) for entry in self.replaced.entries.values())
        return pairs + whole + (0 if self.score is None else self.score.size)

    @property
    def common_alpha(self) -> float:
        """scale · rank of most pairs: what the formats call alpha."""
        found = [pair.scale * pair.rank for pair in self.pairs.values()]
        return max(found, key=found.count, default=1.0)


def claims(path: str | Path) -> bool:
    """Whether a path looks like an adapter: adapter_config.json, or a GGUF file that calls itself one."""
    from . import gguf

    path = Path(path)
    if path.is_dir():
        return (path / CONFIG).is_file()
    return path.name == CONFIG or gguf.claims(path)


def open(path: str | Path, base: Checkpoint | None = None) -> Adapter:
    """Opens a PEFT directory or a GGUF adapter for `base`, or for the model on this machine that the directory names.

    Raises ModelNotFound, FormatError, ConfigError for options that change the mathematics and are not understood, and
    TensorError where adapter and base do not fit.
    """
    from . import gguf, peft

    path = Path(path)
    if not path.exists():
        raise ModelNotFound(f"There is no adapter at {path}: expected a directory with {CONFIG} or a .gguf file.")
    if path.is_dir() and not (path / CONFIG).is_file():
        raise ModelNotFound(f"{path} has no {CONFIG}, so it is no adapter. A whole model is opened without --adapter.")
    if path.is_dir() or path.name == CONFIG:
        return peft.read(path if path.is_dir() else path.parent, base)
    return gguf.read(path, base)
