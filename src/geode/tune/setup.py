"""A model made ready to be tuned: which framework and numbers, what of it is trained, and with what objective.

Data, and the order of steps, are not known here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..adapters import Adapter, Pair
from ..errors import MissingExtra, OptionError
from ..formats import Checkpoint
from ..tensors import from_arrays
from . import targets
from .place import Place
from .recipe import Full, Lora, Recipe

if TYPE_CHECKING:
    from ..network.decoder import Decoder
    from ..network.training import Trainer

FRAMEWORKS = ("torch", "jax", "tensorflow")  # in the order that "auto" tries on a CPU; with an accelerator JAX is first
RATES = {"lora": 2e-4, "full": 2e-5}
PREFERENCES = 0.1  # of these rates, for objectives that compare answers


@dataclass(frozen=True)
class Choice:
    """Where a run computes: the framework, the activations' type, and why these, in words."""

    on: str
    dtype: str
    why: str


def choose(recipe: Recipe) -> Choice:
    """The framework and dtype of a recipe. Raises BackendError, MissingExtra."""
    from ..network import allocator, backend

    on, why = _framework(recipe.run.on)
    for package in (on, "keras"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, on, f"Tuning on {on}")
    if on == "torch":
        allocator.prepare()  # before PyTorch allocates
    backend.select(on)
    dtype = recipe.run.dtype
    if dtype == "auto":
        dtype = "bfloat16" if backend.multiplies_bfloat16() else "float32"
        why += f", {dtype} as this machine multiplies it fast" if dtype == "bfloat16" else f", {dtype}"
    else:
        why += f", {dtype} as asked"
    return Choice(on, dtype, why)


def _framework(asked: str) -> tuple[str, str]:
    if asked != "auto":
        return asked, f"{asked} as asked"
    keras = sys.modules.get("keras")
    active = keras.config.backend() if keras is not None else os.environ.get("KERAS_BACKEND")
    if active:
        return str(active), f"{active} by KERAS_BACKEND"
    from ..lm import accelerated

    there = [name for name in FRAMEWORKS if importlib.util.find_spec(name) is not None]
    if not there:
        raise MissingExtra("torch", "torch", "Tuning")
    if "jax" in there and accelerated():
        return "jax", "jax for the accelerator"
    return there[0], f"{there[0]} for this CPU"


def learning_rate(recipe: Recipe) -> float:
    """The highest learning rate: the recipe's, or the method's usual one."""
    if recipe.optim.lr is not None:
        return recipe.optim.lr
    rate = RATES["full" if isinstance(recipe.method, Full) else "lora"]
    return rate * (PREFERENCES if recipe.objective.name not in ("sft", "distil", "reward") else 1)


def scale(method: Lora) -> float:
    """What B·A is multiplied by."""
    alpha = 2.0 * method.rank if method.alpha is None else method.alpha
    return float(alpha / np.sqrt(method.rank)) if method.rslora else alpha / method.rank


@dataclass(frozen=True)
class Chosen:
    """Canonical names: matrices that get a pair beside them, and tensors trained whole."""

    pairs: tuple[str, ...]
    whole: tuple[str, ...]


def chosen(recipe: Recipe, checkpoint: Checkpoint) -> Chosen:
    """What a recipe's method trains of a model. Raises OptionError where a pattern means nothing."""
    config, family, method = checkpoint.config, checkpoint.family, recipe.method
    if isinstance(method, Full) and recipe.objective.name == "reward":
        raise OptionError("A reward model is written as an adapter with its score. Choose method lora.")
    if isinstance(method, Full):
        return Chosen((), tuple(targets.tensors(config, family, method.targets, "method.targets")))
    pairs = targets.matrices(config, family, method.targets)
    whole = targets.tensors(config, family, method.whole, "method.whole") if method.whole else []
    both = sorted(set(pairs) & set(whole))
    if both:
        raise OptionError(f"method.targets and method.whole both mean {', '.join(both[:4])}. Choose one for each.")
    if method.quantize and any(len(checkpoint.tensors.entries[name].shape) == 2 for name in whole):
        raise OptionError(
            "method.whole names matrices, and method.quantize keeps all matrices as integers, which cannot be trained. "
            "Leave one of the two out."
        )
    return Chosen(tuple(pairs), tuple(whole))


def network(recipe: Recipe, checkpoint: Checkpoint, choice: Choice) -> tuple[Decoder, dict[str, Any]]:
    """The decoder, and the variables that are trained: "{tensor}" whole, "{tensor}.lora_a" and so on of pairs.

    What is trained is float32, frozen matrices are of the choice's dtype. Raises what opening the tensors raises.
    """
    from ..io import files
    from ..network import allocator

    if choice.on == "torch":
        allocator.prepare()  # a choice need not come from `choose`

    from ..network import lora, score
    from ..network.decoder import Decoder

    method, names = recipe.method, chosen(recipe, checkpoint)
    decoder = Decoder(
        checkpoint.config,
        checkpoint.tensors.__getitem__,
        "float32" if isinstance(method, Full) else choice.dtype,
        method.quantize if isinstance(method, Lora) else None,
        compute=choice.dtype,
        remat=recipe.run.remat == "block",
        wide=frozenset(names.whole),
    )
    files.release(checkpoint.files())
    trained = lora.freeze(decoder, names.whole)
    if isinstance(method, Lora):
        trained |= lora.attach(
            decoder, names.pairs, rank=method.rank, scale=scale(method), dora=method.dora, seed=recipe.run.seed
        )
    if recipe.objective.name == "reward":
        trained |= score.attach(decoder)
    return decoder, trained


def trainer(recipe: Recipe, decoder: Decoder, trained: Mapping[str, Any], place: Place | None = None) -> Trainer:
    """The trainer of a network by a recipe, in its place. Raises OptionError."""
    from ..network import objectives
    from ..network.training import Trainer

    place = place or Place()
    ends = [v.name for name, v in trained.items() if name.startswith(("token_embd.", "output."))]
    optimizer = place.optimizer(recipe.optim, list(trained.values()), ends)
    objective = place.objective(objectives.objective(recipe.objective), decoder, trained)
    return Trainer(decoder, trained, optimizer, objective, place)


def adapter(recipe: Recipe, checkpoint: Checkpoint, weights: Mapping[str, np.ndarray], base: str) -> Adapter:
    """Trained numbers as an adapter for the model that the hub knows as `base`."""
    assert isinstance(recipe.method, Lora)
    names = chosen(recipe, checkpoint)
    factor = scale(recipe.method)
    pairs = {
        name: Pair(weights[f"{name}.lora_a"], weights[f"{name}.lora_b"], factor, weights.get(f"{name}.magnitude"))
        for name in names.pairs
    }
    whole = from_arrays({name: weights[name] for name in names.whole})
    return Adapter(checkpoint.family, checkpoint.config, pairs, whole, base, score=weights.get("score.weight"))
