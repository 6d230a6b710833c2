"""GGUF: llama.cpp's one file of weights, network, tokenizer and template; weights in packed types, if asked for.

How the bytes lie is `io.gguf`'s business, which type each tensor gets that of `mixes`, and how numbers are packed that
of `quant` and of the extension.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from .. import families
from ..dialects import gguf as dialect
from ..errors import ConfigError, ModelNotFound
from ..quant import to_float32
from ..tensors import Tensors, entry_of
from .base import Checkpoint, Format, Target, common_type
from .packing import requantised, typed

MAGIC = b"GGUF"


class Gguf(Checkpoint):
    """A .gguf file, or the first of its parts. `types` are those of the metadata's keys."""

    types: Mapping[str, str] = MappingProxyType({})

    def _tensors(self) -> Tensors:
        return dialect.read(self.stored, self.config, self.family)

    def _tokenizer(self) -> Any:
        from .. import tokenizer

        return tokenizer.from_gguf(self.metadata) if "tokenizer.ggml.tokens" in self.metadata else None

    def _vocabulary(self) -> Any:
        from .. import tokenizer

        return tokenizer.vocabulary(self.metadata) if "tokenizer.ggml.tokens" in self.metadata else None

    def _template(self) -> str | None:
        found = self.metadata.get("tokenizer.chat_template")
        return found if isinstance(found, str) else None

    def tokenizer_files(self) -> list[Path]:
        return []

    def files(self) -> list[Path]:
        if "-00001-of-" not in self.path.name:
            return [self.path]
        stem, count = self.path.name.split("-00001-of-")
        return sorted(self.path.parent.glob(f"{glob.escape(stem)}-?????-of-{glob.escape(count)}"))


def claims(path: Path) -> bool:
    """A file that begins as GGUF does, or a directory that holds one."""
    if path.is_dir():
        return any(path.glob("*.gguf"))
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(4) == MAGIC


def open(path: Path) -> Gguf:
    """Opens a file, any part of a split one, or a directory that holds one model."""
    from ..io import gguf

    path = _file_in(path) if path.is_dir() else path
    file = gguf.read(path)
    arch = file.metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise ConfigError(f"{path} has no key general.architecture, so its family is not known.")
    family = families.by_gguf_arch(arch)
    shapes = {name: entry.shape for name, entry in file.tensors.entries.items()}
    freqs = to_float32(file.tensors["rope_freqs.weight"]) if "rope_freqs.weight" in shapes else None
    config = family.config_from_gguf(file.metadata, shapes, freqs)
    opened = Gguf(path, "gguf", families.spelling(config, family), config, file.tensors, file.metadata)
    opened.types = file.types
    return opened


def _file_in(path: Path) -> Path:
    files = sorted(path.glob("*.gguf"))
    whole = [file for file in files if "-of-" not in file.name or "-00001-of-" in file.name]
    if len(whole) == 1:
        return whole[0]
    if whole:
        names = ", ".join(file.name for file in whole)
        raise ModelNotFound(f"{path} holds several GGUF files ({names}): name the one to open.")
    raise ModelNotFound(f"{path} holds neither config.json nor a .gguf file, so there is no model to open.")


# Writing

FILE_TYPES = {"F32": 0, "F16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11}
FILE_TYPES |= {"q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18}
FILE_TYPES |= {"BF16": 32}
"""general.file_type: `enum llama_ftype` of include/llama.h in github.com/ggml-org/llama.cpp."""


def write(checkpoint: Checkpoint, folder: Path, name: str, target: Target) -> None:
    """The file `name`, or its parts where `max_shard_bytes` asks for them."""
    from ..io import gguf

    metadata, types = keys(checkpoint, target)
    config, family = checkpoint.config, checkpoint.family
    stored = dialect.write(typed(checkpoint, target), config, family)
    freqs = family.config_to_gguf(config).get("rope_freqs")
    if freqs is not None:  # a tensor of the file, and no weight of the network
        stored = Tensors({"rope_freqs.weight": entry_of(np.asarray(freqs, np.float32))} | stored.entries)
    if target.max_shard_bytes is None or stored.nbytes <= target.max_shard_bytes:
        gguf.write(folder / name, metadata, stored, types)
    else:
        gguf.write_parts(folder / name, metadata, stored, target.max_shard_bytes, types)


def keys(checkpoint: Checkpoint, target: Target) -> tuple[dict[str, Any], dict[str, str]]:
    """All metadata, and the types of those keys whose type their value does not tell."""
    from .. import tokenizer

    kind = target.quant.lower() if target.quant else target.dtype or common_type(checkpoint.tensors)
    if isinstance(checkpoint, Gguf):
        changed = (target.quant or target.dtype) and kind in FILE_TYPES
        kept = {key: value for key, value in checkpoint.metadata.items() if not key.startswith("split.")}
        return kept | ({"general.file_type": FILE_TYPES[kind]} if changed else {}), dict(checkpoint.types)
    made: dict[str, Any] = {"general.architecture": checkpoint.family.gguf_arch, "general.type": "model"}
    made |= {"general.name": checkpoint.path.stem, "general.quantization_version": 2}
    made |= {"general.file_type": FILE_TYPES[kind]} if kind in FILE_TYPES else {}
    made |= {"general.license": "gemma"} if checkpoint.family.gemma_terms else {}
    network = checkpoint.family.config_to_gguf(checkpoint.config)
    made |= {key: value for key, value in network.items() if key != "rope_freqs"}
    made |= {f"{checkpoint.family.gguf_arch}.vocab_size": checkpoint.config.vocab}
    if checkpoint.vocabulary is None:
        return made | {"tokenizer.ggml.model": "no_vocab"}, {}
    words, types = tokenizer.to_gguf(checkpoint.vocabulary, rows=checkpoint.config.vocab)
    template = checkpoint.template
    return made | words | ({"tokenizer.chat_template": template} if template else {}), types


def refuses(checkpoint: Checkpoint, target: Target) -> str | None:
    """Networks that llama.cpp's keys have no words for."""
    try:
        checkpoint.family.config_to_gguf(checkpoint.config)
    except ConfigError as problem:
        return str(problem)
    return None


def losses(checkpoint: Checkpoint, target: Target) -> list[str]:
    """Packing what is packed already, and what GGUF cannot say of a tokenizer."""
    from .. import tokenizer

    found = requantised(checkpoint, target)
    if checkpoint.format != "gguf" and checkpoint.vocabulary is not None:
        found += tokenizer.losses(checkpoint.vocabulary, "gguf")
    return found


FORMAT = Format(
    name="gguf",
    about="llama.cpp's single file; --quant packs the weights",
    claims=claims,
    open=open,
    write=write,
    refuses=refuses,
    losses=losses,
    options=frozenset({"dtype", "quant", "imatrix", "max_shard_bytes"}),
    suffix=".gguf",
)
