"""PEFT's directory: adapter_config.json, the options, and adapter_model.safetensors, the tensors.

Names and layouts of tensors are `dialects.peft`'s. Options that change the mathematics and are not understood are
refused by name. The truth is `LoraConfig` in github.com/huggingface/peft src/peft/tuners/lora/config.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import formats
from ..config import Config
from ..dialects import Rule
from ..dialects import peft as dialect
from ..dialects.peft import Pair
from ..errors import ConfigError, ModelNotFound, TensorError
from ..formats.base import read_json, write_json
from ..quant import to_float32
from ..tensors import Array, Tensors, shapes
from .base import CONFIG, Adapter
from .origin import base_of

if TYPE_CHECKING:
    from ..formats import Checkpoint

WEIGHTS = "adapter_model.safetensors"
SCORE = "score"  # transformers' name for the head of AutoModelForSequenceClassification

UNDERSTOOD = frozenset("r lora_alpha use_rslora use_dora rank_pattern alpha_pattern bias peft_type".split())
HARMLESS = frozenset(
    """
    auto_mapping base_model_name_or_path revision inference_mode init_lora_weights lora_dropout layers_to_transform
    layers_pattern target_modules exclude_modules modules_to_save peft_version task_type loftq_config eva_config
    corda_config lora_ga_config megatron_core qalora_group_size velora_config runtime_config ensure_weight_tying
    """.split()
)
"""Options of training and bookkeeping: what they did lies in the tensors. All others must be off."""

CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that take from the base's weights what the adapter starts with."""


def read(folder: Path, base: Checkpoint | None) -> Adapter:
    """Opens a directory. Raises as `adapters.open` does."""
    from ..io import safetensors

    options = read_json(folder / CONFIG)
    _check(options, folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        old = (
            " adapter_model.bin beside it is a pickle: load and save the adapter with peft."
            * (folder / "adapter_model.bin").is_file()
        )
        raise ModelNotFound(f"{folder} has no {WEIGHTS}.{old}")
    base = base or formats.open(base_of(folder, fetch=False))
    family, config = base.family, base.config
    parts, whole, vision = dialect.read_names(safetensors.read(folder / WEIGHTS), family)
    score = whole.pop(f"{SCORE}.weight", None)
    theirs = {name: dialect.pair_of(name, parts[name], _scale(name, parts[name], options)) for name in parts}
    _check_magnitudes(theirs, options, folder)
    rules, untied = dialect.hf_rules(config, family), config.replace(tied=False)
    pairs = dialect.split(rules, theirs, untied)
    tower = f"{len(vision)} tensors of the adapter belong to a vision tower, which the text model has not."
    left = [tower] * bool(vision)
    left += ["The adapter has the head of a reward model, which a language model has not."] * (score is not None)
    name = options.get("base_model_name_or_path") or str(base.path)
    whole_ones = dialect.whole_tensors(rules, whole, untied)
    return Adapter(family, config, pairs, whole_ones, name, tuple(left), _checked_score(score, config, folder))


def _checked_score(score: Array | None, config: Config, folder: Path) -> np.ndarray | None:
    if score is not None and (len(score.shape) != 2 or score.shape[1] != config.width):
        raise TensorError(
            f"{folder / WEIGHTS} has a {SCORE}.weight of shape {tuple(score.shape)}; the base model needs one row of "
            f"{config.width} for each label. Give the base model that the adapter was trained on."
        )
    return None if score is None else to_float32(score)


def _check(options: Mapping[str, Any], path: Path) -> None:
    if options.get("peft_type") != "LORA":
        raise ConfigError(f"{path} has peft_type {options.get('peft_type')!r}; adapters of type 'LORA' are read here.")
    start = options.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGES_THE_BASE):
        raise ConfigError(
            f"{path} has init_lora_weights {start!r}, which changes the base's weights before the adapter is added. "
            "Save it as a plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...) of peft."
        )
    unknown = sorted(key for key, value in options.items() if key not in UNDERSTOOD | HARMLESS and value)
    if unknown:
        shown = ", ".join(f"{key} = {options[key]!r:.60}" for key in unknown)
        raise ConfigError(f"{path} sets {shown}: what that changes in the network is not understood here.")


def _check_magnitudes(pairs: Mapping[str, Pair], options: Mapping[str, Any], folder: Path) -> None:
    wanted = bool(options.get("use_dora"))
    wrong = [name for name, pair in pairs.items() if (pair.magnitude is not None) != wanted]
    if wrong:
        has = "no magnitude" if wanted else "a magnitude"
        raise TensorError(
            f"{folder / CONFIG} has use_dora {wanted}, and {folder / WEIGHTS} has {has} for {wrong[0]}. "
            "Options and tensors come from different adapters, or the adapter was saved in part: save it anew."
        )


def _scale(name: str, parts: Mapping[str, Any], options: Mapping[str, Any]) -> float:
    """alpha / rank, or alpha / √rank: arxiv.org/abs/2312.03732."""
    module = name.removesuffix(".weight")
    rank = _number(_by_pattern(options, "rank_pattern", module, options.get("r", 8)), "r")
    alpha = _number(_by_pattern(options, "alpha_pattern", module, options.get("lora_alpha", 8)), "lora_alpha")
    low = parts.get("lora_A", parts.get("lora_embedding_A"))
    if low is not None and low.shape[:1] != (rank,):
        raise TensorError(f"The adapter's A for {name} has shape {low.shape}, and its options say rank {rank:g}.")
    return alpha / math.sqrt(rank) if options.get("use_rslora") else alpha / rank


def _by_pattern(options: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """The first pattern that matches the end of a module's name, as peft's `get_pattern_key` looks for it."""
    for pattern, value in (options.get(key) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error:
            raise ConfigError(f"{CONFIG} has {key} {pattern!r}, which is no regular expression.") from None
    return default


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or (key == "r" and value < 1):
        raise ConfigError(f"{CONFIG} has {key} {value!r}; a positive number was expected.")
    return value


# Writing


def write_peft(adapter: Adapter, folder: str | Path) -> None:
    """Writes a directory that `peft.PeftModel.from_pretrained` loads; one that is there gets the two files.

    Raises TensorError where fused matrices of the family cannot hold the change, OptionError, CapacityError.
    """
    from ..io import safetensors

    folder = Path(folder)
    adapter = adapter if adapter.score is None else _without_head(adapter)
    rules = dialect.hf_rules(adapter.config, adapter.family)
    pairs = dialect.join(rules, adapter.pairs, adapter.config.replace(tied=False))
    embedding = adapter.family.names["token_embd"] + ".weight"
    tensors: dict[str, np.ndarray] = {}
    for name, pair in pairs.items():
        tensors |= dialect.parts_of(name, pair, embedding)
    whole = dialect.their_tensors(rules, adapter.replaced)
    adapted = {name.removesuffix(".weight") for name in pairs}
    _refuse_halves(rules, whole, adapted)
    for name, array in whole.items():
        module, kind = name.rsplit(".", 1)
        tensors[f"{dialect.PREFIX}{module}.{'base_layer.' if module in adapted else ''}{kind}"] = array
    if adapter.score is not None:
        tensors[f"{dialect.PREFIX}{SCORE}.weight"] = adapter.score
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / WEIGHTS, tensors, {"format": "pt"})
    write_json(folder / CONFIG, _options(adapter, pairs, whole))


def _without_head(adapter: Adapter) -> Adapter:
    """What of an adapter a network has whose head is a score."""
    whole = {name: entry for name, entry in adapter.replaced.entries.items() if not name.startswith("output.")}
    pairs = {name: pair for name, pair in adapter.pairs.items() if not name.startswith("output.")}
    return replace(adapter, pairs=pairs, replaced=Tensors(whole))


def _refuse_halves(rules: Sequence[Rule], whole: Iterable[str], adapted: set[str]) -> None:
    """peft keeps a bias alone, or whole modules."""
    modules = {name.removesuffix(".weight") for name in whole if name.endswith(".weight")} - adapted
    missing = {n for rule in rules for n in rule.theirs if n.rsplit(".", 1)[0] in modules} - set(whole)
    if missing:
        raise TensorError(
            f"The adapter replaces a part of {min(missing).rsplit('.', 1)[0]} but not {min(missing)}, and peft keeps "
            "whole modules. Merge the adapter into its base model instead: geode merge BASE --adapter ADAPTER DST."
        )


def _options(adapter: Adapter, pairs: Mapping[str, Pair], whole: Iterable[str]) -> dict[str, Any]:
    """The keys that peft has had for years; those that came later default to off."""
    modules = {name.removesuffix(".weight"): pair for name, pair in pairs.items()}
    saved = {name.removesuffix(".weight") for name in whole if name.endswith(".weight")}
    biased = {name.removesuffix(".bias") for name in whole if name.endswith(".bias")} - saved
    ranks = [pair.rank for pair in pairs.values()]
    rank, alpha = max(ranks, key=ranks.count, default=8), adapter.common_alpha
    tied = {"ensure_weight_tying": True} if _tied(adapter) else {}
    return {
        "alpha_pattern": {m: _short(p.scale * p.rank) for m, p in modules.items() if p.scale * p.rank != alpha},
        "auto_mapping": None,
        "base_model_name_or_path": adapter.base,
        "bias": "all" if biased - modules.keys() else "lora_only" if biased else "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": _short(alpha),
        "lora_dropout": 0.0,
        "modules_to_save": sorted((saved - modules.keys()) | ({SCORE} if adapter.score is not None else set())) or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {m: p.rank for m, p in modules.items() if p.rank != rank},
        "revision": None,
        "target_modules": _targets(adapter, modules.keys()),
        "task_type": "CAUSAL_LM" if adapter.score is None else "SEQ_CLS",
        "use_dora": any(pair.magnitude is not None for pair in pairs.values()),
        "use_rslora": False,
    } | tied


def _tied(adapter: Adapter) -> bool:
    """Whether a tied head changes with the embeddings."""
    names = (dialect.EMBEDDING, "output.weight")
    both = all(name in adapter.pairs for name in names) or all(name in adapter.replaced for name in names)
    return adapter.config.tied and both


def _short(alpha: float) -> float | int:
    return int(alpha) if alpha == int(alpha) else alpha


def _targets(adapter: Adapter, modules: Iterable[str]) -> list[str]:
    """Last words of the modules' names where they mean these modules and no others, else whole names."""
    expected = shapes(adapter.config)
    rules = dialect.hf_rules(adapter.config, adapter.family)
    matrices = {
        rule.theirs[0].removesuffix(".weight")
        for rule in rules
        if len(expected.get(rule.ours[0], (0, 0))) == 2 and len(rule.theirs) == 1
    }
    wanted = set(modules)
    words = {name.rsplit(".", 1)[1] if "." in name else name for name in wanted}
    meant = {name for name in matrices if name.rsplit(".", 1)[-1] in words}
    return sorted(words if meant == wanted else wanted)
