"""Keras: a preset directory of keras_hub, which `CausalLM.from_preset` and `save_to_preset` read and write.

Names of weights and arguments of classes are the dialect's business, HDF5 `io.h5`'s. Classes are names here, nothing
is imported.

    config.json                       the backbone's class and arguments      metadata.json  versions, parameters
    model.weights.h5                  weights; or model.weights.json with model_00000.weights.h5 …
    task.json, preprocessor.json      CausalLM and what stands before it; both repeat what they hold
    tokenizer.json                    the tokenizer's class: Keras's file, not Hugging Face's of the same name
    assets/tokenizer/                 vocabulary.spm, or vocabulary.json and merges.txt
    chat_template.jinja, geode.json   ours; keras_hub passes over them
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import families
from ..config import Config
from ..dialects import keras_hub as dialect
from ..dialects import matches
from ..errors import ConfigError, ModelNotFound
from ..io import h5
from ..io.h5 import INDEX, SINGLE
from ..tensors import Tensors, parameters
from .base import Checkpoint, Format, Target, common_type, described, floats, read_json, write_json
from .keras_classes import BACKBONES, LLAMA, LLAMA3, Backbone, nearest

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer, Vocabulary

VERSIONS = {"keras_version": "3.15.1", "keras_hub_version": "0.32.0"}  # whose layout this is
DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
SEQUENCE = 1024  # tokens that keras_hub packs to unless told otherwise


class Keras(Checkpoint):
    """A preset's directory."""

    def tokenizer_files(self) -> list[Path]:
        return []  # its tokenizer.json is Keras's own

    def _tensors(self) -> Tensors:
        return dialect.read(self.stored, self.config, self.family)

    def _tokenizer(self) -> Tokenizer | None:
        return None if self.vocabulary is None else self.vocabulary.tokenizer()

    def _vocabulary(self) -> Vocabulary | None:
        from .keras_words import read_vocabulary

        return read_vocabulary(self.path, backbone_of(self.metadata, "config.json").stem)

    def _vision(self) -> list[str]:
        return [name for name in self.stored.entries if any(matches(name, pattern) for pattern in dialect.VISION)]


# Reading


def claims(path: Path) -> bool:
    """A directory whose config.json names a class of Keras, one of its files, or weights of Keras."""
    if path.is_dir() or path.name == "config.json":
        return "registered_name" in read_json(path / "config.json" if path.is_dir() else path)
    return path.name.endswith(".weights.h5") or path.name == INDEX


def open(path: Path) -> Keras:
    """Opens a preset's directory or its config.json, or weights with a backbone's config.json beside them."""
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"{folder} has no config.json, so what the weights beside it compute is not known.")
    values = read_json(folder / "config.json")
    stored = h5.read(_weights(path, folder))
    backbone = backbone_of(values, str(folder / "config.json"))
    family = families.by_name(backbone.family)
    config = backbone.config_from(family, _arguments(values), stored.entries, str(folder / "config.json"))
    return Keras(folder, "keras", family, _with_context(config, folder), stored, values)


def _weights(path: Path, folder: Path) -> Path:
    if path.name == INDEX or (path.name.endswith(".weights.h5") and not re.search(r"_\d{5}\.", path.name)):
        return path
    found = next((folder / name for name in (SINGLE, INDEX) if (folder / name).is_file()), None)
    if found is None:
        raise ModelNotFound(f"{folder} has neither {SINGLE} nor {INDEX}: the preset's weights are missing.")
    return found


def backbone_of(values: Mapping[str, Any], what: str) -> Backbone:
    """The class that a config.json names. Raises ConfigError for one that is not known, or is quantised."""
    named = values.get("registered_name")
    name = str(named).rpartition(">")[2]
    arguments = _arguments(values)
    found = [one for one in BACKBONES if one.name == name]
    if not found:
        known = ", ".join(dict.fromkeys(one.name for one in BACKBONES))
        reason = next((why for family, why in UNLIKE.items() if family in name.lower()), "")
        raise ConfigError(
            f"{what} names the class {str(named)[:100]!r}; classes read here are {known}. {reason}".strip()
        )
    _check_dtype(arguments.get("dtype"), what)
    # Gemma and Gemma 2 share their class; the norms after attention and feed-forward part them.
    return found[-1] if len(found) == 1 or arguments.get("use_post_attention_norm") else found[0]


def _arguments(values: Mapping[str, Any]) -> Mapping[str, Any]:
    found = values.get("config")
    return found if isinstance(found, dict) else {}


_FLOATS = {f"{mixed}{name}" for mixed in ("", "mixed_") for name in DTYPE_NAMES.values()}


def _check_dtype(policy: Any, what: str) -> None:
    """Weights of a quantised policy are integers with scales beside them."""
    name = _arguments(policy).get("name") if isinstance(policy, dict) else policy
    if policy is not None and name not in tuple(_FLOATS):
        raise ConfigError(
            f"{what} has the dtype policy {str(policy)[:100]}; float weights are read here. Load the model in Keras "
            "with dtype='bfloat16', and save it again."
        )


def _with_context(config: Config, folder: Path) -> Config:
    """The context that our manifest tells, for Keras has no key for it; else what its class usually has."""
    told = described(folder)
    return config if told is None else config.replace(context=told[1].context)


# Writing


UNLIKE = {
    "falcon": "KerasHub's Falcon is that of Falcon RW: ALiBi in place of rotary positions, one half of a block after "
    "the other, biases everywhere. No Falcon here computes so."
}
"""Families whose class in keras_hub computes something else."""

_WORDS_OF = {
    "pattern": "windows and rotary positions",
    "query_scalar": "the scale of attention scores",
    "tied": "whether the head is the embedding",
    "activation": "the activation",
    "norm": "the norms",
    "block": "the order in a block",
    "head_dim": "the width of heads",
    "kv_heads": "the key/value heads",
    "qkv_bias": "biases of queries, keys and values",
    "out_bias": "a bias after attention",
    "ffn_bias": "biases of the feed-forward",
    "attn_softcap": "the cap of attention scores",
    "final_softcap": "the cap of logits",
}


def refuses(checkpoint: Checkpoint, target: Target) -> str | None:
    """Why keras_hub has no class for this network: no class at all, or one that computes something else."""
    family, config = checkpoint.family, checkpoint.config
    if family.name in UNLIKE:
        return UNLIKE[family.name]
    if family.name not in dialect.LAYERS:
        known = ", ".join(dialect.LAYERS)
        return f"KerasHub has no class for the family {family.name}; it has those for {known}."
    backbone = backbone_for(checkpoint)
    try:
        near = nearest(backbone, family, config)
    except ConfigError as problem:
        return f"KerasHub's {backbone.name} takes no such network: {problem}"
    unlike = [name for name in _unlike(config, near) if name != "context"]
    if not unlike:
        return None
    shown = "; ".join(
        f"{_WORDS_OF.get(name, name)} ({_brief(config, name)}, not {_brief(near, name)})" for name in unlike
    )
    return f"KerasHub's {backbone.name} has no way to say what this network computes: {shown}."


def _unlike(config: Config, near: Config) -> list[str]:
    """Fields in which two networks differ in what they compute."""
    if config.query_scalar or near.query_scalar:
        config, near = (c.replace(query_scalar=c.query_scalar or float(c.head_dim)) for c in (config, near))
    a, b = (c.replace(pattern=c.layers) for c in (config, near))
    return [f.name for f in dataclasses.fields(a) if getattr(a, f.name) != getattr(b, f.name)]


def _brief(config: Config, name: str) -> str:
    if name == "query_scalar":
        return f"1/√{config.query_scalar or config.head_dim:g}"
    if name == "pattern":
        return ", ".join(
            f"window {one.window or 'none'} base {one.rope.theta:g} {_scaled(one.rope.scaling)}".strip()
            for one in config.pattern
        )
    return f"{getattr(config, name)}"


def _scaled(scaling: Any) -> str:
    return "" if scaling is None else f"scaled by {type(scaling).__name__}"


def backbone_for(checkpoint: Checkpoint) -> Backbone:
    """The class that computes a network. Llama's two are one network with two kinds of tokenizer."""
    found = [one for one in BACKBONES if one.family == checkpoint.family.name]
    if LLAMA not in found:
        return found[0]
    if checkpoint.vocabulary is None:
        return LLAMA if checkpoint.config.layers[0].rope.scaling is None else LLAMA3
    from ..tokenizer import Ranked

    return LLAMA3 if isinstance(checkpoint.vocabulary, Ranked) else LLAMA


def losses(checkpoint: Checkpoint, target: Target) -> list[str]:
    """What keras_hub's tokenizers do not do."""
    if checkpoint.vocabulary is None:
        return []
    from .keras_words import lacking, remarks, words_for

    words = words_for(backbone_for(checkpoint).stem, checkpoint.vocabulary)
    reason = lacking(words, checkpoint.vocabulary)
    if words is None or reason:
        return [f"The tokenizer is left out: {reason}"]
    return remarks(words, checkpoint.vocabulary)


def write(checkpoint: Checkpoint, folder: Path, name: str, target: Target) -> None:
    """A directory that `keras_hub.models.CausalLM.from_preset` opens."""
    kind = target.dtype or common_type(checkpoint.tensors)
    backbone = backbone_for(checkpoint)
    stored = dialect.write(floats(checkpoint.tensors, None), checkpoint.config, checkpoint.family)
    h5.write(folder, floats(stored, target.dtype), target.max_shard_bytes)
    arguments = backbone.config_to(checkpoint.config) | {"dropout": 0.0} | EXTRA_ARGUMENTS.get(backbone.stem, {})
    config = _serialised(backbone.module, f"{backbone.module}_backbone", backbone.name, arguments, DTYPE_NAMES[kind])
    write_json(folder / "config.json", config)
    counted = {"parameter_count": parameters(checkpoint.config), "tasks": ["CausalLM"]}
    write_json(folder / "metadata.json", VERSIONS | counted)
    before = _write_words(checkpoint, backbone, folder, DTYPE_NAMES[kind])
    task = _serialised(backbone.module, f"{backbone.module}_causal_lm", f"{backbone.stem}CausalLM", {}, None)
    task["config"] = {"backbone": config, "preprocessor": before, "name": f"{backbone.module}_causal_lm"}
    write_json(folder / "task.json", task)
    if checkpoint.template is not None:
        (folder / "chat_template.jinja").write_text(checkpoint.template, encoding="utf-8")


EXTRA_ARGUMENTS: dict[str, dict[str, Any]] = {"Gemma3": {"image_size": 896, "vision_encoder": None}}
"""What a class insists on, and a network of text has not."""


def _serialised(
    package: str, module: str, name: str, arguments: Mapping[str, Any], dtype: str | None
) -> dict[str, Any]:
    """An object of keras_hub as `keras.saving.serialize_keras_object` spells it."""
    common: dict[str, Any] = {"name": module, "trainable": True}
    if dtype is not None:
        policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": dtype}, "registered_name": None}
        common["dtype"] = policy
    path = f"keras_hub.src.models.{package}.{module}"
    return {
        "module": path,
        "class_name": name,
        "config": {**common, **arguments},
        "registered_name": f"keras_hub>{name}",
    }


def _write_words(checkpoint: Checkpoint, backbone: Backbone, folder: Path, dtype: str) -> dict[str, Any] | None:
    """The tokenizer's files, and the preprocessor over it; None where keras_hub cannot hold this tokenizer."""
    vocabulary = checkpoint.vocabulary
    if vocabulary is None:
        return None
    from .keras_words import ASSETS, lacking, words_for, write_assets

    words = words_for(backbone.stem, vocabulary)
    if words is None or lacking(words, vocabulary):
        return None
    arguments = write_assets(words, vocabulary, folder / ASSETS)
    module = f"{words.module}_tokenizer"
    tokenizer = _serialised(words.module, module, words.name, arguments, "int32")
    write_json(folder / "tokenizer.json", tokenizer)
    packing: dict[str, Any] = {"tokenizer": tokenizer, "config_file": "preprocessor.json", "add_end_token": True}
    packing["sequence_length"] = min(SEQUENCE, checkpoint.config.context)
    packing["add_start_token"] = vocabulary.roles.adds_bos
    module, name = f"{backbone.module}_causal_lm_preprocessor", f"{backbone.stem}CausalLMPreprocessor"
    before = _serialised(backbone.module, module, name, packing, dtype)
    write_json(folder / "preprocessor.json", before)
    return before


FORMAT = Format(
    name="keras",
    about="Keras preset: what keras_hub's from_preset opens",
    claims=claims,
    open=open,
    write=write,
    refuses=refuses,
    losses=losses,
    options=frozenset({"dtype", "max_shard_bytes"}),
)
