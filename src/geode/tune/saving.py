"""Checkpoints of a run: everything the next step depends on, written beside and renamed, so that a kill loses nothing.

What the numbers mean is not known here.

    OUT/checkpoints/step-00000050/state.safetensors    weights, optimizer
                                  position.json        the step, what was best so far, the recipe, what it was made of
    OUT/checkpoints/best/                              the weights of the best evaluation
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, TuningError
from ..io import safetensors
from ..io.files import explained
from . import recipe as recipes
from .recipe import Recipe

FOLDER, STATE, POSITION, BEST = "checkpoints", "state.safetensors", "position.json", "best"
State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Position:
    """Where a run stands after `step` steps.

    best, best_step   the lowest validation loss and when it was; None before the first evaluation
    waited            evaluations since then
    recent            the last losses
    seconds           that all steps took so far
    """

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    recent: tuple[float, ...] = ()
    seconds: float = 0.0
    made_of: Mapping[str, Any] = field(default_factory=dict)


def save(out: Path, state: State, position: Position, recipe: Recipe, keep: int) -> Path:
    """Writes a checkpoint and removes older ones, but for the last `keep`. Raises CapacityError, OptionError."""
    values = {name: getattr(position, name) for name in Position.__dataclass_fields__}
    path = _write(out, f"step-{position.step:08d}", state, {**values, "recipe": recipes.to_dict(recipe)})
    for old in _all(out)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def save_best(out: Path, weights: State, step: int) -> Path:
    """Writes the weights of the best evaluation, in place of the last best."""
    return _write(out, BEST, weights, {"step": step})


def best(out: Path) -> tuple[dict[str, np.ndarray], int] | None:
    """The weights of the best evaluation, and its step."""
    path = out / FOLDER / BEST
    _restore(path)
    if not (path / POSITION).is_file():
        return None
    return _state(path), int(_position(path)["step"])


def last(out: Path) -> Path | None:
    """The newest checkpoint; None where there is none."""
    found = _all(out)
    return found[-1] if found else None


def load(path: Path, recipe: Recipe, made_of: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], Position]:
    """A checkpoint's state and position. Raises TuningError where it is of another recipe, model or data, and says what
    differs; FormatError where it is damaged."""
    values = _position(path)
    differs = recipes.difference(recipes.from_dict(values.pop("recipe")), recipe)
    if differs:
        raise TuningError(
            f"{path.parent.parent} holds a run of another recipe. There, and now: {'; '.join(differs)}. Go on with the "
            "recipe it began with, choose another --out, or start anew with --force."
        )
    changed = [name for name in made_of if values["made_of"].get(name) != made_of[name]]
    if changed:
        raise TuningError(
            f"{path.parent.parent} holds a run that began with another {' and another '.join(changed)} than the recipe "
            "finds now. Bring them back, choose another --out, or start anew with --force."
        )
    return _state(path), Position(**{**values, "recent": tuple(values["recent"])})


def clear(out: Path) -> None:
    """Removes all checkpoints."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def _all(out: Path) -> list[Path]:
    return sorted(path for path in (out / FOLDER).glob("step-*") if (path / POSITION).is_file())


def _write(out: Path, name: str, state: State, position: Mapping[str, Any]) -> Path:
    path = out / FOLDER / name
    part = path.with_name(f".{name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        safetensors.write(part / STATE, dict(state))
        with (part / POSITION).open("w", encoding="utf-8") as file:
            json.dump(position, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        old = path.with_name(f".{name}.old")
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise explained(error, path) from None
    return path


def _restore(path: Path) -> None:
    """A kill between two renames leaves the last whole one beside its place."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        os.replace(old, path)


def _position(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / POSITION).read_text(encoding="utf-8"))
        return dict(found)
    except (OSError, ValueError) as problem:
        raise FormatError(
            f"{path / POSITION} cannot be read ({problem}), so the run cannot go on from there. Remove {path}: the "
            "checkpoint before it is used then."
        ) from None


def _state(path: Path) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in safetensors.read(path / STATE).items()}
