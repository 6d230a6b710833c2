"""GGUF's adapter: one file of pairs, for llama.cpp's --lora.

Names and layouts of tensors are `dialects.peft`'s, bytes `io.gguf`'s. The truth is src/llama-adapter.cpp in
github.com/ggml-org/llama.cpp, which knows pairs only: no magnitudes, no tensors kept whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dialects import peft as dialect
from ..errors import ConfigError, FormatError, OptionError
from ..tensors import from_arrays
from .base import Adapter

if TYPE_CHECKING:
    from ..formats import Checkpoint

KIND = "general.type"


def claims(path: Path) -> bool:
    """Whether a file is GGUF and calls itself an adapter."""
    from ..io import gguf

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return False
    try:
        return gguf.read(path).metadata.get(KIND) == "adapter"
    except FormatError:
        return False


def read(path: Path, base: Checkpoint | None) -> Adapter:
    """Opens a file for `base`, for it does not tell its network's sizes. Raises as `adapters.open` does."""
    from ..io import gguf

    file = gguf.read(path)
    alpha = _checked(file.metadata, path)
    if base is None:
        raise OptionError(
            f"{path} is a GGUF adapter, which does not tell its base model. Name that one, and this file as --adapter "
            "(adapter=)."
        )
    arch, family = file.metadata.get("general.architecture"), base.family
    if arch != family.gguf_arch:
        raise ConfigError(f"{path} is an adapter for {arch!r}, and the base model is {family.gguf_arch!r}.")
    theirs, whole = dialect.read_gguf_names(file.tensors, alpha)
    rules, untied = dialect.gguf_rules(base.config, family), base.config.replace(tied=False)
    pairs = dialect.split(rules, theirs, untied)
    return Adapter(family, base.config, pairs, dialect.whole_tensors(rules, whole, untied), str(base.path))


def _checked(metadata: dict[str, Any], path: Path) -> float:
    """Alpha of a file that is a LoRA adapter."""
    kind, sort = metadata.get(KIND), metadata.get("adapter.type")
    if kind != "adapter" or sort != "lora":
        raise ConfigError(f"{path} has {KIND} {kind!r} and adapter.type {sort!r}; 'adapter' and 'lora' were expected.")
    if "adapter.alora.invocation_tokens" in metadata:
        raise ConfigError(
            f"{path} has adapter.alora.invocation_tokens: it changes the model only after certain tokens, which no "
            "merged weights can do and which is not understood here."
        )
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float):
        raise ConfigError(f"{path} has adapter.lora.alpha {alpha!r}; a floating-point number was expected.")
    return alpha


def write_gguf(adapter: Adapter, path: str | Path) -> None:
    """Writes a file of float32 pairs that llama.cpp loads with --lora.

    Raises OptionError for what llama.cpp's adapters cannot hold: magnitudes (DoRA), tensors kept whole, embeddings that
    the head shares, a reward model's head; and CapacityError.
    """
    from ..io import gguf

    _refuse(adapter)
    rules = dialect.gguf_rules(adapter.config, adapter.family)
    alpha = adapter.common_alpha or 1.0  # 0 would mean a scale of 1
    pairs = dialect.join(rules, adapter.pairs, adapter.config.replace(tied=False))
    metadata = {
        "general.architecture": adapter.family.gguf_arch,
        KIND: "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": np.float32(alpha),
        "general.file_type": np.uint32(0),
        "general.quantization_version": np.uint32(2),
    }
    gguf.write(Path(path), metadata, from_arrays(dialect.gguf_names(pairs, alpha)))


def _refuse(adapter: Adapter) -> None:
    if adapter.score is not None:
        raise OptionError(
            "The adapter has the head of a reward model, which neither a GGUF adapter nor a merged language model can "
            "hold. Keep it as peft has it: --to peft."
        )
    embeddings = {dialect.EMBEDDING, "output.weight"} & adapter.pairs.keys() if adapter.config.tied else set()
    reasons = {
        "has magnitudes (DoRA)": any(pair.magnitude is not None for pair in adapter.pairs.values()),
        f"replaces {len(adapter.replaced)} tensors whole ({', '.join(list(adapter.replaced)[:4])})": adapter.replaced,
        "changes embeddings that the head shares": embeddings,
        "changes nothing": not adapter.pairs,
    }
    for reason, holds in reasons.items():
        if holds:
            raise OptionError(
                f"The adapter {reason}, which a GGUF adapter cannot hold: llama.cpp adds pairs to matrices and nothing "
                "else. Merge it into its base model instead: geode merge BASE --adapter ADAPTER DST --to gguf."
            )
