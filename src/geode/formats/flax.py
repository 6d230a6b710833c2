"""Gemma's Flax checkpoints: an Orbax directory as Kaggle and the `gemma` package have it, the tokenizer beside.

Tensor names are the dialect's business, bytes `io.orbax`'s. What the files do not say of a network, its windows and
scales, is known by the size of the published models, or told by our manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import families
from ..config import Config
from ..dialects import flax as dialect
from ..errors import ConfigError, ModelNotFound
from ..families import Family
from ..tensors import Tensors
from .base import (
    Checkpoint,
    Format,
    Target,
    beside_template,
    described,
    floats,
    tokenizer_files,
    write_sentencepiece,
    write_tokenizer,
)
from .gemmas import PUBLISHED

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer, Vocabulary

FAMILIES = ("gemma", "gemma2", "gemma3")


@dataclass
class OrbaxCheckpoint(Checkpoint):
    """A checkpoint whose arrays may lie in a directory below, or whose tokenizer lies in the one above."""

    @property
    def home(self) -> Path:
        """Where the tokenizer is: in Kaggle's downloads beside the directory of the arrays."""
        return next((folder for folder in surroundings(self.path) if tokenizer_files(folder)), self.path)

    def _tokenizer(self) -> Tokenizer | None:
        from .. import tokenizer

        return tokenizer.load(self.home)

    def _vocabulary(self) -> Vocabulary | None:
        from .. import tokenizer

        return tokenizer.vocabulary(self.home)

    def _template(self) -> str | None:
        return beside_template(self.home)


class Flax(OrbaxCheckpoint):
    """An Orbax directory with Gemma's own names."""

    def _tensors(self) -> Tensors:
        from ..io import orbax

        return dialect.read(dialect.flat(self.stored, orbax.unstacked), self.config, self.family)

    def _vision(self) -> list[str]:
        return [name for name in self.stored.entries if dialect.of_vision(name.removeprefix(dialect.PREFIX))]


def surroundings(path: Path) -> Iterator[Path]:
    """A checkpoint's directory and the two above, where its tokenizer and its manifest may lie."""
    yield from (path, path.absolute().parent, path.absolute().parent.parent)


def claims(path: Path) -> bool:
    """Any Orbax directory that no other format knows; `open` tells whether it is Gemma's."""
    from ..io import orbax

    return path.is_dir() and orbax.find(path) is not None


def open(path: Path) -> Flax:
    """Opens the directory of the arrays, or one that holds it: a download of Kaggle, the steps of a training run."""
    from ..io import orbax

    folder = orbax.find(path)
    if folder is None:
        raise ModelNotFound(f"{path} holds no Orbax checkpoint. Give the directory that has _METADATA in it.")
    stored = orbax.read(folder)
    flat = dialect.flat(stored, orbax.unstacked)
    if dialect.EMBEDDING not in flat.entries:
        some = ", ".join(list(stored.entries)[:4])
        raise ConfigError(
            f"The arrays in {folder} ({some} …) are named neither as Gemma's Flax checkpoints nor as MaxText's name "
            "them, so what they compute is not known."
        )
    family, config = told(path) or by_size(_sizes(flat), str(folder))
    return Flax(path, "flax", family, config, stored, {})


def told(path: Path) -> tuple[Family, Config] | None:
    """The network by our manifest, in the directory or above it."""
    return next((found for folder in surroundings(path) if (found := described(folder))), None)


# What a size tells


@dataclass(frozen=True)
class Sizes:
    """What the shapes of a Gemma's tensors say, by config.json's names; `family` by which norms there are."""

    family: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int


def by_size(sizes: Sizes, what: str) -> tuple[Family, Config]:
    """The published Gemma of these sizes. Raises ConfigError when there is none."""
    rest = PUBLISHED.get((sizes.family, sizes.num_hidden_layers, sizes.hidden_size))
    if rest is None:
        raise ConfigError(
            f"{what} looks like {sizes.family} with {sizes.num_hidden_layers} layers of width {sizes.hidden_size}, "
            "which is no published size, and such files do not say windows and scales. Put a geode.json beside, with "
            'what a Hugging Face config.json says under "config".'
        )
    values = asdict(sizes) | {"max_position_embeddings": 8192, "rms_norm_eps": 1e-6} | rest
    family = families.by_name(values.pop("family"))
    return family, family.config_from_hf(values, what)


def _sizes(flat: Tensors) -> Sizes:
    """Raises ConfigError where a tensor that would tell is not there or has other axes."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        entry = flat.entries.get(name)
        if entry is None or len(entry.shape) != axes:
            found = "is not there" if entry is None else f"has shape {entry.shape}"
            raise ConfigError(f"The sizes of this Gemma are not known: {name} {found}, expected {axes} axes.")
        return entry.shape

    rows, width = shape(dialect.EMBEDDING, 2)
    heads, head_dim, _ = shape("layer_0/attn/attn_vec_einsum/w", 3)
    grouped = "layer_0/attn/kv_einsum/w" in flat.entries
    return Sizes(
        family=_family_of(flat),
        vocab_size=next((kept for kept, padded in dialect.PADDED.items() if padded == rows), rows),
        hidden_size=width,
        num_hidden_layers=len({seen[1] for name in flat.entries if (seen := re.match(r"layer_(\d+)/", name))}),
        num_attention_heads=heads,
        num_key_value_heads=shape("layer_0/attn/kv_einsum/w", 4)[1] if grouped else heads,
        head_dim=head_dim,
        intermediate_size=shape("layer_0/mlp/linear/w", 2)[0],
    )


def _family_of(flat: Tensors) -> str:
    if "layer_0/attn/_query_norm/scale" in flat.entries:
        return "gemma3"
    return "gemma2" if "layer_0/post_attention_norm/scale" in flat.entries else "gemma"


# Writing


def write(checkpoint: Checkpoint, folder: Path, name: str, target: Target) -> None:
    """A directory that `gm.ckpts.load_params` and Orbax's checkpointers restore, with the tokenizer's files in it."""
    from ..io import orbax

    stored = dialect.write(floats(checkpoint.tensors, None), checkpoint.config, checkpoint.family)
    orbax.write(folder, floats(stored, target.dtype), keys=_keys)
    write_tokenizer(checkpoint, folder)
    write_sentencepiece(checkpoint, folder)


def _keys(name: str) -> tuple[str, ...]:
    """The published files have two levels: "transformer/layer_0/attn/q_einsum", then "w"."""
    return tuple(name.rsplit("/", 1))


def refuses(checkpoint: Checkpoint, target: Target) -> str | None:
    """Gemma's own layout has Gemma only."""
    if checkpoint.family.name not in FAMILIES:
        return f"Gemma's Flax layout is for {', '.join(FAMILIES)} only; this model is {checkpoint.family.name}."
    if nameless := dialect.nameless(checkpoint.config):
        return f"Gemma's Flax layout has no place for {nameless[0]} ({len(nameless)} such tensors)."
    return None


FORMAT = Format(
    name="flax",
    about="Gemma's Flax layout, as on Kaggle: an Orbax directory",
    claims=claims,
    open=open,
    write=write,
    refuses=refuses,
)
