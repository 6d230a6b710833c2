"""What fits before anything is loaded: for each model how many sequences of what length. `geode serve --plan`.

How pages are cut is `engine.plan`'s to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .. import memory
from ..engine import plan as engine
from ..errors import CapacityError
from .loading import Facts
from .settings import Settings

LENGTHS = (512, 2048, 8192, 32768, 131072)  # tokens
CROWDED = 0.8  # part of the memory that weights may take before models take turns


@dataclass(frozen=True)
class Row:
    """So many sequences of `length` tokens, prompt and answer together, each taking so many bytes."""

    length: int
    sequences: int
    sequence_bytes: int


@dataclass(frozen=True)
class Planned:
    """One model. `problem` says why it does not fit, where it does not. Bytes, tokens."""

    name: str
    weights_bytes: int
    kv_bytes: int
    kv_type: str
    context: int
    longest: int
    rows: tuple[Row, ...]
    problem: str = ""

    def text(self) -> str:
        """For people."""
        head = f"{self.name}: weights {_mib(self.weights_bytes)}, context {self.context} tokens"
        if self.problem:
            return f"{head}\n  {self.problem}"
        lines = [f"{head}, keys and values ({self.kv_type}) {_mib(self.kv_bytes)}"]
        lines += [
            f"  {row.sequences:>6} sequences of {row.length:>6} tokens, {_mib(row.sequence_bytes)} each"
            for row in self.rows
        ]
        return "\n".join([*lines, f"  the longest that fits alone has {self.longest} tokens"])


def plans(settings: Settings, facts: Mapping[str, Facts]) -> list[Planned]:
    """For each model of the settings."""
    weights, free = sum(each.size for each in facts.values()), memory.available()
    return [_planned(name, each, settings, share(settings, each, weights, free)) for name, each in facts.items()]


def share(settings: Settings, facts: Facts, weights: int, free: int | None) -> int | None:
    """Bytes for one model's keys and values, as far as they are of use: an equal part of what the weights of all leave
    of the memory that is given, or of half of what is `free`. None: the system does not say what that is."""
    if settings.kv_memory is not None:
        return settings.kv_memory
    budget, count = free if settings.memory is None else settings.memory, len(settings.models)
    if budget is None:
        return None
    if count > 1 and weights > CROWDED * budget:  # they take turns
        weights, count = facts.size, 2
    left = max(0, budget - weights) // count // (2 if settings.memory is None else 1)
    return min(left, engine.useful(facts.config, facts.kv_type, settings.step_tokens)) if facts.kv_type else left


def _planned(name: str, facts: Facts, settings: Settings, share: int | None) -> Planned:
    config, kind = facts.config, facts.kv_type
    empty = Planned(name, facts.size, 0, kind, config.context, 0, ())
    if not kind or share is None:
        return replace(empty, problem="Only the native engine has pages, of which a plan can be made.")
    try:
        found = [
            engine.plan(config, facts.size, kind, facts.size + share, length, settings.step_tokens)
            for length in sorted({min(length, config.context) for length in (*LENGTHS, config.context)})
        ]
    except CapacityError as problem:
        return replace(empty, problem=str(problem))
    rows = tuple(Row(one.length, one.sequences, one.sequence_bytes) for one in found if one.sequences)
    return Planned(name, facts.size, found[0].kv_bytes, kind, config.context, found[0].longest, rows)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
