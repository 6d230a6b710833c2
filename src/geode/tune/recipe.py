"""A recipe: one tuning run described completely, as frozen dataclasses, and overrides of its leaves.

What a field does to a network is not known here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

from ..errors import OptionError

__all__ = [
    "Batch",
    "Data",
    "Full",
    "Lora",
    "Objective",
    "Optim",
    "Recipe",
    "Run",
    "check",
    "difference",
    "from_dict",
    "override",
    "to_dict",
]


@dataclass(frozen=True)
class Data:
    """What is learnt from, and how its rows become rows of tokens."""

    train: tuple[str, ...] = ()  # files, directories, or hf:owner/name[/config][:split]
    valid: tuple[str, ...] = ()  # without any, `holdout` of the training examples are set aside
    holdout: float = 0.02  # a share of the examples, below 1; 0 validates on nothing
    shape: str = "auto"  # what the rows are: a name from `shapes.NAMES`
    columns: Mapping[str, str] = field(default_factory=dict)  # our name -> the data's own: {"prompt": "question"}
    learn: Literal["assistant", "all", "last"] = "assistant"  # which tokens carry loss; "last" is the last answer
    length: int = 512  # tokens of a row
    long: Literal["drop", "split", "error"] = "drop"  # what happens to a document that is longer
    pack: bool = True  # several documents a row, none of which sees another
    template: str | None = None  # a Jinja file or the name of a built-in format; None is the model's own
    system: str | None = None  # said first in every conversation that has no system message
    limit: int | None = None  # examples taken, from the first on


@dataclass(frozen=True)
class Lora:
    """Low-rank changes beside frozen matrices. arxiv.org/abs/2106.09685"""

    rank: int = 16
    alpha: float | None = None  # the change is scaled by alpha / rank; None is twice the rank
    targets: tuple[str, ...] = ("blk.*",)  # patterns of canonical matrix names
    whole: tuple[str, ...] = ()  # patterns of tensors trained whole beside them
    rslora: bool = False  # alpha / sqrt(rank). arxiv.org/abs/2312.03732
    dora: bool = False  # magnitudes trained apart from directions. arxiv.org/abs/2402.09353
    quantize: Literal["int8", "int4"] | None = None  # what the frozen matrices are kept in. arxiv.org/abs/2305.14314


@dataclass(frozen=True)
class Full:
    """The network's own tensors."""

    targets: tuple[str, ...] = ("*",)  # patterns of canonical names; what matches none stays as it is


@dataclass(frozen=True)
class Objective:
    """What is minimised. `name` chooses; beta and the others mean what the paper of each says."""

    name: Literal["sft", "dpo", "ipo", "kto", "orpo", "simpo", "reward", "distil"] = "sft"
    beta: float | None = None  # None: the method's usual one
    gamma: float = 0.5  # simpo's margin, as a share of beta
    label_smoothing: float = 0.0  # dpo's: how likely a label is wrong
    desirable: float = 1.0  # kto: what a good answer weighs
    undesirable: float = 1.0  # kto: what another one weighs
    reference: bool = True  # dpo, kto: against the untuned model, or without
    z_loss: float = 0.0  # sft: pulls log Z to 0. arxiv.org/abs/2204.02311
    teacher: str | None = None  # distil: a model that shares the vocabulary
    top: int = 32  # distil: the teacher's likeliest tokens that are learnt from
    temperature: float = 1.0  # distil's


@dataclass(frozen=True)
class Optim:
    """How gradients become steps."""

    name: Literal["adamw", "adam8bit", "adafactor", "muon", "sgd"] = "adamw"
    lr: float | None = None  # None: 2e-4 for LoRA, 2e-5 for whole tensors, a tenth of these for preferences
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.03  # a share of the steps
    final: float = 0.1  # the last learning rate, as a share of the highest
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0  # the gradients' largest norm, all together
    ema: float | None = None  # momentum of a running mean of the weights, which is what is saved then


@dataclass(frozen=True)
class Batch:
    """One optimizer step: `rows` × `accumulate` rows of `Data.length` tokens, on every process."""

    rows: int = 4
    accumulate: int = 1


@dataclass(frozen=True)
class Run:
    """How long, on what, and what is written on the way."""

    epochs: float = 1.0
    steps: int | None = None  # instead of epochs
    seed: int = 0
    on: Literal["auto", "jax", "torch", "tensorflow"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of what is computed; trained numbers are kept in float32
    remat: Literal["none", "block"] = "none"  # "block" keeps only what goes in and out of blocks, and computes again
    evaluate_every: int = 50  # steps; 0 only at the end
    save_every: int = 50  # steps; 0 only at the end
    keep: int = 2  # checkpoints
    patience: int | None = 3  # evaluations without a better loss, after which the run ends; the best weights are kept
    samples: tuple[str, ...] = ()  # prompts that are answered at each evaluation
    sample_tokens: int = 48
    mesh: Mapping[str, int] = field(default_factory=dict)  # jax: devices along "data", "fsdp", "tensor"


@dataclass(frozen=True)
class Recipe:
    """One run. Two runs of one recipe on one machine, framework and data give the same bits."""

    model: str = ""
    data: Data = field(default_factory=Data)
    method: Lora | Full = field(default_factory=Lora)
    objective: Objective = field(default_factory=Objective)
    optim: Optim = field(default_factory=Optim)
    batch: Batch = field(default_factory=Batch)
    run: Run = field(default_factory=Run)


# Plain values and back


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON's own types; a method is told by its "kind"."""
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    found["method"]["kind"] = type(recipe.method).__name__.lower()
    return found


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """The way back. Raises OptionError for keys or values that a recipe has not."""
    return typing.cast(Recipe, _built(Recipe, values, ""))


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with leaves replaced, each "optim.lr=1e-4" or "run.samples=[\"Hi\"]": JSON where it is, else a text.

    "method=full" and "method=lora" choose the method anew. Raises OptionError, which names the fields that there are.
    """
    values = to_dict(recipe)
    for setting in settings:
        path, sign, text = setting.partition("=")
        if not sign:
            raise OptionError(f"A setting is NAME=VALUE, such as optim.lr=1e-4; got {setting!r}.")
        if path == "method":
            values["method"] = {"kind": text}
            continue
        _put(values, path.strip().split("."), _value(text), setting)
    return from_dict(values)


def difference(one: Recipe, other: Recipe) -> list[str]:
    """The leaves that two recipes do not share, a line each: "optim.lr: 0.0002, 0.0001"."""
    first, second = _leaves(to_dict(one)), _leaves(to_dict(other))
    names = dict.fromkeys([*first, *second])
    return [
        f"{name}: {first.get(name, 'nothing')!r}, {second.get(name, 'nothing')!r}"
        for name in names
        if first.get(name, ...) != second.get(name, ...)
    ]


KINDS = {"lora": Lora, "full": Full}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _put(values: dict[str, Any], path: list[str], value: Any, setting: str) -> None:
    place: Any = values
    for i, word in enumerate(path):
        is_open = place is values.get("data", {}).get("columns") or place is values.get("run", {}).get("mesh")
        if not isinstance(place, dict) or (word not in place and not is_open) or word == "kind":
            names = [name for name in place if name != "kind"] if isinstance(place, dict) else []
            where = ".".join(path[:i]) or "a recipe"
            known = f"{where} has {', '.join(names)}" if names else f"{where} is a value and has no parts"
            raise OptionError(f"--set {setting}: there is no {'.'.join(path[: i + 1])}; {known}.")
        if i == len(path) - 1:
            place[word] = value
        place = place[word]


def _leaves(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def _built(kind: type, values: Any, where: str) -> Any:
    """A dataclass of these values."""
    if not isinstance(values, Mapping):
        raise OptionError(f"{where or 'A recipe'} should be an object with named parts; got {values!r}.")
    values = dict(values)
    if where == "method":
        named = values.pop("kind", "lora")
        if named not in KINDS:
            raise OptionError(f"method should be one of {', '.join(KINDS)}; got {named!r}.")
        kind = KINDS[named]
    hints, names = typing.get_type_hints(kind), [one.name for one in fields(kind)]
    unknown = [name for name in values if name not in names]
    if unknown:
        raise OptionError(f"{where or 'A recipe'} has no {', '.join(map(str, unknown))}; it has {', '.join(names)}.")
    return kind(**{name: _checked(hints[name], value, f"{where}.{name}".strip(".")) for name, value in values.items()})


def _checked(hint: Any, value: Any, where: str) -> Any:
    """A value that is what the field's type says, or an OptionError that says what is expected."""
    origin, kinds = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) or where == "method":
        return _built(hint if isinstance(hint, type) else Lora, value, where)
    if origin is Literal:
        return _expect(value in kinds, value, where, "one of " + ", ".join(map(str, kinds)))
    if origin in (typing.Union, types.UnionType):
        missing = value is None and type(None) in kinds
        return None if missing else _checked(next(k for k in kinds if k is not type(None)), value, where)
    if origin is None:
        return _scalar(hint, value, where)
    if origin is tuple:
        listed = [value] if isinstance(value, str) else value
        _expect(isinstance(listed, list | tuple), value, where, "a list of texts")
        return tuple(_checked(kinds[0], each, where) for each in listed)
    _expect(isinstance(value, Mapping), value, where, "an object")
    return {str(key): _checked(kinds[1], each, where) for key, each in value.items()}


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        return float(_expect(is_number, value, where, "a number"))
    if hint is int:
        return _expect(isinstance(value, int) and not isinstance(value, bool), value, where, "a whole number")
    return _expect(isinstance(value, hint), value, where, {bool: "true or false", str: "a text"}[hint])


def _expect(holds: bool, value: Any, where: str, what: str) -> Any:
    if not holds:
        raise OptionError(f"{where} should be {what}; got {value!r}.")
    return value


# Ranges


def check(recipe: Recipe) -> None:
    """Raises OptionError for values that no run can have, in the order of the recipe."""
    data, method, objective, optim, batch, run = (
        *(recipe.data, recipe.method, recipe.objective, recipe.optim, recipe.batch, recipe.run),
    )
    _expect(bool(recipe.model), recipe.model, "model", "a name or a path of a model")
    _expect(bool(data.train), data.train, "data.train", "at least one file, directory or hf: dataset")
    _expect(0 <= data.holdout < 1, data.holdout, "data.holdout", "a share, 0 or more and below 1")
    _expect(data.length >= 2, data.length, "data.length", "2 tokens or more")
    _expect(data.limit is None or data.limit >= 1, data.limit, "data.limit", "1 or more, or null")
    if isinstance(method, Lora):
        _expect(method.rank >= 1, method.rank, "method.rank", "1 or more")
        _expect(method.alpha is None or method.alpha > 0, method.alpha, "method.alpha", "above 0, or null")
    for name in ("beta1", "beta2", "warmup", "final"):
        value = getattr(optim, name)
        most = 1 if name == "final" else 0.999999
        _expect(0 <= value <= most, value, f"optim.{name}", "a share from 0 to 1")
    _expect(optim.lr is None or optim.lr > 0, optim.lr, "optim.lr", "above 0, or null")
    _expect(optim.epsilon > 0, optim.epsilon, "optim.epsilon", "above 0")
    _expect(optim.weight_decay >= 0, optim.weight_decay, "optim.weight_decay", "0 or more")
    _expect(optim.clip is None or optim.clip > 0, optim.clip, "optim.clip", "above 0, or null")
    _expect(optim.ema is None or 0 < optim.ema < 1, optim.ema, "optim.ema", "between 0 and 1, or null")
    _expect(objective.beta is None or objective.beta > 0, objective.beta, "objective.beta", "above 0, or null")
    _expect(0 <= objective.label_smoothing < 0.5, objective.label_smoothing, "objective.label_smoothing", "below 0.5")
    _expect(objective.z_loss >= 0, objective.z_loss, "objective.z_loss", "0 or more")
    _expect(objective.top >= 1, objective.top, "objective.top", "1 or more")
    _expect(objective.temperature > 0, objective.temperature, "objective.temperature", "above 0")
    if objective.name == "distil":
        _expect(bool(objective.teacher), objective.teacher, "objective.teacher", "a name or a path of a model")
    for name in ("rows", "accumulate"):
        _expect(getattr(batch, name) >= 1, getattr(batch, name), f"batch.{name}", "1 or more")
    _expect(run.steps is None or run.steps >= 1, run.steps, "run.steps", "1 or more, or null")
    _expect(run.epochs > 0, run.epochs, "run.epochs", "above 0")
    _expect(run.seed >= 0, run.seed, "run.seed", "0 or more")
    for name in ("evaluate_every", "save_every", "sample_tokens"):
        _expect(getattr(run, name) >= 0, getattr(run, name), f"run.{name}", "0 or more")
    _expect(run.keep >= 1, run.keep, "run.keep", "1 or more")
    _expect(run.patience is None or run.patience >= 1, run.patience, "run.patience", "1 or more, or null")
