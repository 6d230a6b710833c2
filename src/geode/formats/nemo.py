"""NeMo: a .nemo tar of model_config.yaml and model_weights.ckpt, whole or split over ranks; also unpacked.

Tensor names are the dialect's business, the tar is `io.tar`'s, the pickles in it `io.torch_pickle`'s. Distributed
checkpoints, a directory of chunks in the place of one .ckpt, are not read.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import families
from ..config import Attn, Bands, Config, Stretch
from ..dialects import nemo as dialect
from ..dialects import parallel
from ..errors import ConfigError, FormatError, ModelNotFound
from ..families import Family
from ..tensors import Entry, Tensors
from .base import Checkpoint, Format, Target, common_type, described, floats, write_sentencepiece, write_tokenizer

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer
    from ..tokenizer.vocabulary import Vocabulary

YAML, WEIGHTS, TOKENIZER = "model_config.yaml", "model_weights.ckpt", "tokenizer.model"
RANK = re.compile(r"(?:(?:mp_rank_(\d+)|tp_rank_(\d+)_pp_rank_(\d+))/)?model_weights\.ckpt")
LAYER = re.compile(r"decoder\.layers\.(\d+)\.")

KEYS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "kv_channels": "head_dim",
    "layernorm_epsilon": "rms_norm_eps",
    "max_position_embeddings": "max_position_embeddings",
    "rotary_base": "rope_theta",
    "override_vocab_size": "vocab_size",
}
"""NeMo's keys -> Hugging Face's."""

FALCON_KEYS = {name: theirs for name, theirs in KEYS.items() if name != "kv_channels"} | {
    "ffn_hidden_size": "ffn_hidden_size",
    "num_query_groups": "num_kv_heads",
    "layernorm_epsilon": "layer_norm_epsilon",
}
ACTIVATIONS = {"silu": "fast-swiglu", "gelu_tanh": "fast-geglu", "gelu": "gelu"}

SETTINGS = """\
target: nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel
mcore_gpt: true
transformer_engine: true
micro_batch_size: 1
global_batch_size: 1
tensor_model_parallel_size: 1
pipeline_model_parallel_size: 1
virtual_pipeline_model_parallel_size: null
sequence_parallel: false
megatron_amp_O2: false
use_cpu_initialization: false
pre_process: true
post_process: true
position_embedding_type: rope
rotary_percentage: 1.0
attention_type: multihead
transformer_block_type: pre_ln
headscale: false
normalize_attention_scores: true
apply_query_key_layer_scaling: false
init_method_std: 0.02
use_scaled_init_method: true
hidden_dropout: 0.0
attention_dropout: 0.0
ffn_dropout: 0.0
persist_layer_norm: true
do_layer_norm_weight_decay: false
fp32_residual_connection: false
bias_activation_fusion: false
bias_dropout_add_fusion: false
masked_softmax_fusion: true
"""
"""What its converters write whatever the network: examples/nlp/language_modeling/conf in github.com/NVIDIA/NeMo."""


@dataclass
class Nemo(Checkpoint):
    """A .nemo file or its unpacked directory; `members` are the files in it."""

    members: Mapping[str, np.ndarray]

    def _tensors(self) -> Tensors:
        centered = bool(self.metadata.get("layernorm_zero_centered_gamma")) or (
            self.metadata.get("normalization") == "layernorm1p"
        )
        return dialect.read(self.stored, self.config, self.family, centered)

    def _tokenizer(self) -> Tokenizer | None:
        found = super()._tokenizer()
        if found is None and (inner := self._vocabulary()) is not None:
            return inner.tokenizer()
        return found

    def _vocabulary(self) -> Vocabulary | None:
        found = super()._vocabulary()
        return _inner_vocabulary(self.members) if found is None else found


def _inner_vocabulary(members: Mapping[str, np.ndarray]) -> Vocabulary | None:
    """The SentencePiece model in a .nemo: NeMo puts a digest before its name."""
    from .. import tokenizer

    name = next((name for name in members if name.endswith(TOKENIZER)), None)
    if name is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / TOKENIZER
        file.write_bytes(members[name].tobytes())
        return tokenizer.vocabulary(file)


def claims(path: Path) -> bool:
    """A .nemo file, a directory that holds one, or an unpacked one."""
    if path.is_dir():
        return (path / YAML).is_file() or (any(path.glob("*.nemo")) and not any(path.glob("*.safetensors")))
    return path.suffix == ".nemo" or path.name == YAML


def open(path: Path) -> Nemo:
    """Opens a .nemo file or an unpacked one's directory."""
    from ..io import plain_yaml, tar
    from ..io.files import map_file

    path = path.parent if path.name == YAML else path
    if path.is_dir() and not (path / YAML).is_file():
        path = _file_in(path)
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        members = {file.relative_to(path).as_posix(): map_file(file) for file in files}
    else:
        members = tar.members(path)
    if YAML not in members:
        raise FormatError(f"{path} has no {YAML}, so its network is not known. Is it a .nemo file of a language model?")
    text = members[YAML].tobytes().decode("utf-8", "replace")
    values = _resolved(plain_yaml.loads(text, f"{path}: {YAML}"))
    stages = _stages(path, members)
    known = described(path if path.is_dir() else path.parent)
    family, config = known or _network(path, values, _vocabulary_size(values, members, stages[0]))
    return Nemo(path, "nemo", family, config, _whole(stages, config), values, members)


def _file_in(folder: Path) -> Path:
    files = sorted(folder.glob("*.nemo"))
    if len(files) != 1:
        raise ModelNotFound(f"{folder} holds {len(files)} .nemo files; name the one to open.")
    return files[0]


def _resolved(values: dict[str, Any]) -> dict[str, Any]:
    """References to a neighbour, as in `${.encoder_seq_length}`, replaced by what they name."""

    def one(value: Any) -> Any:
        found = re.fullmatch(r"\$\{\.?(?:model\.)?(\w+)\}", value) if isinstance(value, str) else None
        return values.get(found[1]) if found else value

    return {name: one(value) for name, value in values.items()}


def _stages(path: Path, members: Mapping[str, np.ndarray]) -> list[list[Tensors]]:
    """The tensors of each rank: pipeline stages, of tensor-parallel ranks."""
    from ..io import torch_zip

    found: dict[tuple[int, int], Tensors] = {}
    for name, data in members.items():
        if rank := RANK.fullmatch(name):
            tp, pp = int(rank[1] or rank[2] or 0), int(rank[3] or 0)
            value = torch_zip.load(data, f"{path}: {name}")
            found[pp, tp] = dialect.plain(torch_zip.tensors(value, f"{path}: {name}"))
    if not found:
        kind = "a distributed checkpoint" if any(name.startswith("model_weights/") for name in members) else "no model"
        raise FormatError(
            f"{path} holds {kind}; one {WEIGHTS}, whole or by rank, was expected. Let NeMo write it so: load it with "
            "MegatronGPTModel.restore_from and save with `dist_ckpt_format` left out, or export it to Hugging Face."
        )
    stages, ranks = (1 + max(place) for place in zip(*found, strict=True))
    if lacking := [f"{pp}/{tp}" for pp in range(stages) for tp in range(ranks) if (pp, tp) not in found]:
        raise FormatError(f"{path} lacks the weights of the ranks {', '.join(lacking[:8])} (pipeline/tensor).")
    return [[found[pp, tp] for tp in range(ranks)] for pp in range(stages)]


def _whole(stages: list[list[Tensors]], config: Config) -> Tensors:
    """All tensors, joined over ranks and numbered through the stages."""
    made: dict[str, Entry] = {}
    cuts = dialect.cuts(config, _rows(stages[0]), len(stages[0]))
    below = 0
    for ranks in stages:
        whole = parallel.joined(ranks, cuts)
        layers = [int(found[1]) for name in whole.entries if (found := LAYER.match(name))]
        made = {_raised(name, below): entry for name, entry in whole.entries.items()} | made
        below += 1 + max(layers, default=-1)
    return Tensors(made)


def _raised(name: str, below: int) -> str:
    return LAYER.sub(lambda found: f"decoder.layers.{int(found[1]) + below}.", name)


def _rows(ranks: list[Tensors]) -> int:
    """Rows of the embeddings, padding included."""
    entries = [tensors.entries[dialect.EMBEDDINGS] for tensors in ranks if dialect.EMBEDDINGS in tensors.entries]
    return sum(entry.shape[0] for entry in entries if entry.shape)


def _vocabulary_size(values: Mapping[str, Any], members: Mapping[str, np.ndarray], ranks: list[Tensors]) -> int:
    """Rows that mean tokens: by the configuration, else the tokenizer in the file, else all of them."""
    if isinstance(values.get("override_vocab_size"), int):
        return int(values["override_vocab_size"])
    rows = _rows(ranks)
    inner = _inner_vocabulary(members)
    return rows if inner is None or len(inner.pieces) > rows else len(inner.pieces)


# What model_config.yaml says


def _network(path: Path, values: Mapping[str, Any], vocab: int) -> tuple[Family, Config]:
    family = _family(path, values)
    keys = FALCON_KEYS if family.name == "falcon" else KEYS
    found = {theirs: values[name] for name, theirs in keys.items() if values.get(name) is not None}
    found |= {"vocab_size": vocab, **_positions(values, family), **_special(values, family)}
    if family.name not in ("gemma", "gemma2"):
        found["tie_word_embeddings"] = bool(values.get("share_embeddings_and_output_weights"))
    return family, family.config_from_hf(found, f"{path}: {YAML}")


def _family(path: Path, values: Mapping[str, Any]) -> Family:
    name, norm = str(values.get("name")), str(values.get("normalization")).lower()
    activation = str(values.get("activation")).removeprefix("fast-")
    if "falcon" in name:
        return families.FALCON
    if norm == "rmsnorm" and activation == "geglu" and values.get("apply_embedding_scaling"):
        return families.GEMMA2 if "gemma2" in name or _custom(values) else families.GEMMA
    if norm == "rmsnorm" and activation == "swiglu":
        if values.get("qkv_bias"):
            return families.QWEN2
        return families.MISTRAL if values.get("window_size") else families.LLAMA
    raise ConfigError(
        f"{path}: a network with normalization {norm}, activation {activation} and name {name} is of no family that is "
        f"read from NeMo; these are {', '.join(dialect.FAMILIES)}."
    )


def _custom(values: Mapping[str, Any]) -> dict[str, Any]:
    found = values.get("mcore_customization_config")
    return found if isinstance(found, dict) else {}


def _positions(values: Mapping[str, Any], family: Family) -> dict[str, Any]:
    found: dict[str, Any] = {}
    factor, window = values.get("seq_len_interpolation_factor"), values.get("window_size")
    if factor not in (None, 1, 1.0):
        found["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif values.get("scale_positional_embedding"):
        bands = {name: values.get(theirs, usual) for name, (theirs, usual) in _BANDS.items()}
        found["rope_scaling"] = {"rope_type": "llama3"} | bands
    if family.name in ("mistral", "gemma2"):
        found["sliding_window"] = window[0] if isinstance(window, list) and window else None
    return found


_BANDS = {
    "factor": ("scale_factor", 8),
    "low_freq_factor": ("low_freq_factor", 1),
    "high_freq_factor": ("high_freq_factor", 4),
    "original_max_position_embeddings": ("old_context_len", 8192),
}
"""Hugging Face's keys -> NeMo's, and what absence means: `mcore_model_customize` in megatron_gpt_model.py."""


def _special(values: Mapping[str, Any], family: Family) -> dict[str, Any]:
    custom = _custom(values)
    if family.name == "falcon":
        groups = values.get("num_query_groups")
        new = bool(custom.get("new_decoder_architecture"))
        found = {"new_decoder_architecture": new, "multi_query": groups == 1, "bias": bool(values.get("bias"))}
        return found | {"parallel_attn": custom.get("parallel_attention", True)}
    names = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")
    return {name: custom[name] for name in names if name in custom} if family.name == "gemma2" else {}


# Writing


def write(checkpoint: Checkpoint, folder: Path, name: str, target: Target) -> None:
    """model.nemo, and the tokenizer's files beside it as Hugging Face names them."""
    from ..io import plain_yaml, tar, torch_zip
    from ..io.files import staging

    write_tokenizer(checkpoint, folder)
    spm = write_sentencepiece(checkpoint, folder)
    tensors = floats(checkpoint.tensors, target.dtype)
    stored = dialect.write(tensors, checkpoint.config, checkpoint.family)
    text = SETTINGS + plain_yaml.dumps(_values(checkpoint, target.dtype or common_type(checkpoint.tensors), spm))
    path = folder / "model.nemo"
    with staging(path) as stage, stage.open(path) as file:
        writer = tar.Writer(file)
        writer.add(YAML, lambda part: part.write(text.encode()))
        writer.add(WEIGHTS, lambda part: torch_zip.write_to(part, dict(stored.entries)))
        if spm:
            writer.add(TOKENIZER, lambda part: part.write((folder / TOKENIZER).read_bytes()))
        writer.close()


def _values(checkpoint: Checkpoint, kind: str, spm: bool) -> dict[str, Any]:
    """What model_config.yaml says of this network, beside SETTINGS."""
    config, family = checkpoint.config, checkpoint.family
    written = family.config_to_hf(config)
    keys = FALCON_KEYS if family.name == "falcon" else KEYS
    found = {name: written[theirs] for name, theirs in keys.items() if written.get(theirs) is not None}
    gelu = config.activation == "gelu_tanh"
    found |= {"encoder_seq_length": config.context, "make_vocab_size_divisible_by": _divisor(config.vocab)}
    found |= {"activation": ACTIVATIONS[config.activation], "openai_gelu": gelu, "bias": config.out_bias}
    found |= {"normalization": "rmsnorm" if config.norm.kind == "rms" else "layernorm", "qkv_bias": config.qkv_bias}
    found |= {"share_embeddings_and_output_weights": dialect.shares(family)}
    found |= {"precision": {"F32": "32", "F16": "16", "BF16": "bf16"}[kind]}
    found |= _written_positions(config) | _written_special(checkpoint, written)
    model = {"library": "sentencepiece", "type": None, "model": f"nemo:{TOKENIZER}", "vocab_file": None}
    beside = {"library": "huggingface", "type": ".", "model": None, "vocab_file": None, "use_fast": True}
    return found | {"tokenizer": (model if spm else beside) | {"merge_file": None, "delimiter": None}}


def _divisor(vocab: int) -> int:
    """The largest power of two up to 128 that divides the rows, so that none is padding."""
    return min(128, vocab & -vocab)


def _written_positions(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rope = config.pattern[-1].rope
    if isinstance(rope.scaling, Stretch):
        found["seq_len_interpolation_factor"] = rope.scaling.factor
    if isinstance(rope.scaling, Bands):
        bands = (rope.scaling.factor, rope.scaling.low, rope.scaling.high, rope.scaling.original_context)
        names = (name for name, _ in _BANDS.values())
        found |= {"scale_positional_embedding": True, **dict(zip(names, bands, strict=True))}
    window = next((layer.window for layer in config.pattern if layer.window), None)
    return found | ({"window_size": [window, 0]} if window else {})


def _written_special(checkpoint: Checkpoint, written: Mapping[str, Any]) -> dict[str, Any]:
    family = checkpoint.family.name
    if family == "falcon":
        custom = {"new_decoder_architecture": written["new_decoder_architecture"], "parallel_attention": True}
        return {"name": "megatron_falcon_gpt", "mcore_customization_config": custom}
    if family in ("gemma", "gemma2"):
        found: dict[str, Any] = {"apply_embedding_scaling": True, "layernorm_zero_centered_gamma": family == "gemma2"}
        names = ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar")
        custom = {name: written[name] for name in names if name in written}
        return found | ({"name": "megatron_gemma2", "mcore_customization_config": custom} if custom else {})
    return {}


def refuses(checkpoint: Checkpoint, target: Target) -> str | None:
    config, name = checkpoint.config, checkpoint.family.name
    if name not in dialect.FAMILIES:
        return f"NeMo's converters know {', '.join(dialect.FAMILIES)}, and no {name}."
    if name != "falcon" and (config.out_bias or config.ffn_bias or (config.qkv_bias and name != "qwen2")):
        return f"NeMo has no biases in a {name} of this kind."
    if any(not isinstance(layer.rope.scaling, Stretch | Bands | None) for layer in config.pattern):
        return "NeMo stretches rotary positions linearly or as Llama 3.1 does, and this network does it otherwise."
    mixed = len(config.pattern) > 1 and name != "gemma2"
    if mixed or (name in ("llama", "qwen2") and config.pattern[0] != Attn(None, config.pattern[0].rope)):
        return f"NeMo has no window over the attention of a {name}."
    if name == "falcon" and config.block == "parallel_shared" and config.kv_heads not in (1, config.heads):
        return "NeMo's Falcon of several key/value heads has two norms before each layer, and this network has one."
    return None


FORMAT = Format(
    name="nemo",
    about="NVIDIA NeMo 1: model.nemo, with Megatron-Core's names",
    claims=claims,
    open=open,
    write=write,
    refuses=refuses,
)
