"""Whether two checkpoints are the same model: configuration, tokenizer, tensors, logits, and where they part.

How either is stored is not known here: both are opened checkpoints, read one tensor at a time. The logits are the
native engine's, in float32 where both fit.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import memory
from .checkpoint import Checkpoint
from .formats.base import common_type
from .quant import QTensor, pieces
from .tensors import Array, shapes

TOLERANCE = {"F64": 1e-6, "F32": 1e-6, "F16": 4e-3, "BF16": 4e-3, "Q8_0": 0.03, "Q6_K": 0.08, "Q5_K": 0.2}
TOLERANCE |= {"Q5_1": 0.2, "Q5_0": 0.2, "Q4_K": 0.4, "Q4_1": 0.4, "Q4_0": 0.4, "Q3_K": 0.5, "Q2_K": 0.8}
"""The error that rounding to a type may make: root mean square of the difference over that of the numbers. Twice what a
block with one outlier comes to; rows out of order, or exchanged tensors, come to 1.4."""

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village at the foot of a mountain, there lived a clockmaker who could not tell the time.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "In 1969, 600 million people watched; 17 x 24 = 408, and 3.14159 is not 22/7.",
    "Der schnelle braune Fuchs springt über den faulen Hund. 你好，世界。Привет, мир! مرحبا 🌍",
    '{"name": "Ada", "born": 1815, "languages": ["English", "French"]}\n\n| a | b |\n|---|---|\n',
)
RANDOM_IDS = 48  # ids of a prompt for models without a tokenizer
LONG_IDS = 640  # and of one prompt that is longer than the windows in use
LONG_UP_TO = 2_000_000_000  # parameters; for larger models the long prompt takes minutes


@dataclass(frozen=True)
class TensorDifference:
    """One tensor of both. `error` is relative: root mean square of the difference over that of A's numbers."""

    name: str
    types: tuple[str, str]
    error: float
    largest: float  # absolute

    @property
    def equal(self) -> bool:
        return self.largest == 0.0

    @property
    def ok(self) -> bool:
        return self.error <= max(TOLERANCE.get(kind, 0.0) for kind in self.types)


@dataclass(frozen=True)
class LogitDifference:
    """Logits of both over all prompts. `layers` is the relative error of the residual stream after each block."""

    prompts: int
    tokens: int
    largest: float  # absolute, of a logit
    divergence: float  # mean KL divergence of B's distribution from A's, in nats a token
    same_top: float  # share of positions where both like the same token best
    layers: tuple[float, ...]  # the embedding's first

    @property
    def first(self) -> str:
        """Where the first difference arises."""
        at = next((i for i, error in enumerate(self.layers) if error), None)
        if at is None:
            return "the head" if self.largest else ""
        return "the embedding" if at == 0 else f"block {at - 1}"


@dataclass
class Report:
    """What `compare` found. `config` and `tokenizer` hold one sentence for each difference."""

    config: list[str] = field(default_factory=list)
    tokenizer: list[str] = field(default_factory=list)
    tensors: list[TensorDifference] = field(default_factory=list)
    logits: LogitDifference | None = None
    notes: list[str] = field(default_factory=list)  # what was not compared, and why

    @property
    def wrong(self) -> list[TensorDifference]:
        """Tensors that differ by more than rounding to their type explains, worst first."""
        return sorted((one for one in self.tensors if not one.ok), key=lambda one: -one.error)

    @property
    def ok(self) -> bool:
        finite = self.logits is None or np.isfinite(self.logits.largest)
        return bool(finite and not (self.config or self.tokenizer or self.wrong))

    @property
    def equal(self) -> bool:
        """Whether not one bit of meaning differs."""
        return self.ok and all(one.equal for one in self.tensors) and not (self.logits and self.logits.largest)

    def summary(self) -> dict[str, Any]:
        """The figures, for a manifest."""
        worst = max(self.tensors, key=lambda one: one.error, default=None)
        found: dict[str, Any] = {"ok": self.ok, "equal": self.equal, "tensors": len(self.tensors)}
        found["tensors_equal"] = sum(one.equal for one in self.tensors)
        if worst is not None:
            found["worst_tensor"] = {"name": worst.name, "relative_error": worst.error, "largest": worst.largest}
        if self.logits is not None:
            kept = ("prompts", "tokens", "largest", "divergence", "same_top")
            found["logits"] = {name: getattr(self.logits, name) for name in kept} | {"first": self.logits.first}
        told = {"differences": self.config + self.tokenizer, "notes": self.notes}
        return found | {name: value for name, value in told.items() if value}


def compare(a: Checkpoint, b: Checkpoint, *, logits: bool = True, threads: int | None = None) -> Report:
    """Compares two opened checkpoints; memory for one tensor of each, and with `logits` for each network in turn."""
    report = Report(config_differences(a, b), tokenizer_differences(a, b))
    if a.tokenizer is None or b.tokenizer is None:
        which = "Neither has" if a.tokenizer is b.tokenizer else "Only one of both has"
        report.notes.append(f"{which} a tokenizer, so tokens were not compared.")
    if a.template != b.template:
        report.notes.append("The chat templates differ, or only one has one.")
    if shapes(a.config) != shapes(b.config):
        report.notes.append("The networks have different tensors, so neither tensors nor logits were compared.")
        return report
    report.tensors = list(tensor_differences(a, b))
    if not logits:
        report.notes.append("Logits were not compared, as asked.")
    elif (reason := _too_large(a, b)) is not None:
        report.notes.append(reason)
    else:
        report.logits = logit_differences(a, b, threads)
    return report


def config_differences(a: Checkpoint, b: Checkpoint) -> list[str]:
    """One sentence for each field of the configuration that differs."""
    pairs = ((f.name, getattr(a.config, f.name), getattr(b.config, f.name)) for f in dataclasses.fields(a.config))
    alike = a.config.depth == b.config.depth and a.config.replace(
        **{f.name: getattr(b.config, f.name) for f in dataclasses.fields(b.config) if f.name != "pattern"}
    ).same(b.config)
    return [
        f"{name} is {ours!r:.120} in the first and {theirs!r:.120} in the second."
        for name, ours, theirs in pairs
        if ours != theirs and not (name == "pattern" and alike)
    ]


def tokenizer_differences(a: Checkpoint, b: Checkpoint) -> list[str]:
    """Sizes, roles and the ids of the built-in prompts."""
    ours, theirs = a.tokenizer, b.tokenizer
    if ours is None or theirs is None:
        return []
    found = [
        f"The tokenizer's {name} is {x} in the first and {y} in the second."
        for name in ("size", "bos", "adds_bos", "ends")
        if (x := _shown(getattr(ours, name))) != (y := _shown(getattr(theirs, name)))
    ]
    for text in PROMPTS:
        if (x := ours.encode(text)) != (y := theirs.encode(text)):
            at = next((i for i, pair in enumerate(zip(x, y, strict=False)) if pair[0] != pair[1]), min(len(x), len(y)))
            found.append(
                f"{text[:24]!r}… is cut in other tokens from the {at}th on: {x[at : at + 4]}, {y[at : at + 4]}."
            )
    return found


def tensor_differences(a: Checkpoint, b: Checkpoint) -> Iterator[TensorDifference]:
    """Every tensor of the network, compared number by number as float32."""
    for name in shapes(a.config):
        kinds = _stored_type(a, name), _stored_type(b, name)
        yield TensorDifference(name, kinds, *_difference(a.tensors[name], b.tensors[name]))


def logit_differences(a: Checkpoint, b: Checkpoint, threads: int | None = None) -> LogitDifference:
    """Runs both over the built-in prompts, one network in memory at a time."""
    texts, dtype = prompts(a), _arithmetic(a)
    ours, theirs = _run(a, texts, dtype, threads), _run(b, texts, dtype, threads)
    x, y = (np.concatenate(logits) for logits, _ in (ours, theirs))
    layers = _layer_errors(ours[1], theirs[1])
    logp, logq = _log_softmax(x), _log_softmax(y)
    divergence = float((np.exp(logp) * (logp - logq)).sum(axis=-1).mean())
    same = float((x.argmax(axis=-1) == y.argmax(axis=-1)).mean())
    return LogitDifference(len(texts), len(x), float(np.abs(x - y).max()), max(divergence, 0.0), same, layers)


def prompts(checkpoint: Checkpoint) -> list[list[int]]:
    """The built-in prompts as ids; random ones for a model without a tokenizer, and one longer than the windows."""
    config = checkpoint.config
    drawn = random.Random(0)

    def some(count: int) -> list[int]:
        return [drawn.randrange(config.vocab) for _ in range(min(count, config.context))]

    tokenizer = checkpoint.tokenizer
    found = [tokenizer.encode(text)[: config.context] for text in PROMPTS] if tokenizer else [some(RANDOM_IDS)] * 2
    found = [ids for ids in found if ids and max(ids) < config.vocab]
    windowed = any(layer.window for layer in config.layers)
    small = _parameters(checkpoint) <= LONG_UP_TO
    return found + [some(LONG_IDS)] * (windowed and small) + [some(RANDOM_IDS)] * (not found)


# How


def _stored_type(checkpoint: Checkpoint, name: str) -> str:
    """A tensor's type; of one that is computed, in float64, that of most numbers in the file."""
    kind = checkpoint.tensors.entries[name].type
    return common_type(checkpoint.stored) if kind == "F64" else kind


def _shown(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else value


def _difference(x: Array, y: Array) -> tuple[float, float]:
    """Relative and largest absolute difference of the numbers as float32, piece by piece."""
    if _same_bits(x, y):
        return 0.0, 0.0
    squares = total = largest = 0.0
    for one, two in zip(_flat(x), _flat(y), strict=True):
        difference = np.abs(one - two)
        total += float(np.dot(one, one))
        squares += float(np.dot(difference, difference))
        largest = max(largest, float(difference.max(initial=0.0)))
    if not largest:
        return 0.0, 0.0
    return (squares / total) ** 0.5 if total else float("inf"), largest


def _same_bits(x: Array, y: Array) -> bool:
    if isinstance(x, QTensor) or isinstance(y, QTensor):
        return isinstance(x, QTensor) and isinstance(y, QTensor) and x.type == y.type and np.array_equal(x.data, y.data)
    return x.dtype == y.dtype and np.array_equal(x, y)


def _flat(array: Array) -> Iterator[np.ndarray]:
    """All numbers as float32, in pieces of the same size whatever the type."""
    plain = array if isinstance(array, QTensor) else np.ascontiguousarray(array)
    return (piece.astype(np.float32, copy=False) for piece in pieces(plain))


def _arithmetic(checkpoint: Checkpoint) -> str:
    """float32 for both where it fits, so that equal numbers in different types give equal logits; else as stored."""
    free = memory.available()
    return "float32" if free is None or 4 * _parameters(checkpoint) < free / 2 else "auto"


def _run(
    checkpoint: Checkpoint, texts: Sequence[Sequence[int]], dtype: str, threads: int | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Logits (T, V) of each text, and the residual streams (depth + 1, T, width) of the first two."""
    from .native import executor as native

    executor = native.open(checkpoint.config, checkpoint.tensors, dtype, threads, quiet=True)
    try:
        logits = [np.concatenate(list(executor.rows(ids))) for ids in texts]
        return logits, [executor.trace(ids) for ids in texts[:2]]
    finally:
        executor.close()


def _layer_errors(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> tuple[float, ...]:
    """Relative error of the residual stream after the embedding and after each block."""
    apart = sum(np.square(one - two, dtype=np.float64).sum(axis=(1, 2)) for one, two in zip(x, y, strict=True))
    size = sum(np.square(one, dtype=np.float64).sum(axis=(1, 2)) for one in x)
    return tuple(float(error) for error in np.sqrt(apart / np.maximum(size, np.finfo(np.float64).tiny)))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    shifted: np.ndarray = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return shifted


def _too_large(a: Checkpoint, b: Checkpoint) -> str | None:
    """Why the networks cannot be run here, if so."""
    from .native import extension

    if not extension.is_there():
        return "The native engine was not built, so logits were not compared."
    free = memory.available()
    need = max(a.tensors.nbytes, b.tensors.nbytes) + a.config.kv_bytes(LONG_IDS, 4) + (1 << 28)
    if free is not None and need > free:
        return f"Logits were not compared: {need / 2**30:.1f} GiB of memory are needed and {free / 2**30:.1f} are free."
    return None


def _parameters(checkpoint: Checkpoint) -> int:
    from .tensors import parameters

    return parameters(checkpoint.config)
