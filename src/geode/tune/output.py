"""What a run leaves in its directory: an adapter or a model that serves as it is, its manifest and its card.

How weights were trained is not known here. Files are written beside and moved in, the weights before the manifest.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import adapters, conversion, manifest
from ..formats import Checkpoint, Target
from ..io.files import explained
from ..merge.computed import made
from ..tensors import entry_of, parameters
from . import card, setup
from .events import Event
from .recipe import Lora, Recipe, to_dict

if TYPE_CHECKING:
    from ..chat import Template

PART = ".output.part"
RECIPE = "recipe.json"
PACKAGES = ("keras", "jax", "torch", "tensorflow", "numpy")


@dataclass(frozen=True)
class Made:
    """What the weights came from, as the manifest and the card tell it."""

    recipe: Recipe
    checkpoint: Checkpoint
    template: Template | None
    base: str  # the model as the adapter's reader finds it again
    base_files: Sequence[Mapping[str, Any]]
    data: Sequence[card.DataFile]
    counts: Mapping[str, Any]
    choice: setup.Choice

    @property
    def parameters(self) -> int:
        """Numbers of the whole model."""
        return parameters(self.checkpoint.config)


def write(out: Path, weights: Mapping[str, np.ndarray], about: Made, result: Mapping[str, Any]) -> None:
    """Puts the model into the run's directory. `result`: step, losses and so on, for the manifest.

    Raises CapacityError, and what writing an adapter or a model raises.
    """
    part = out / PART
    shutil.rmtree(part, ignore_errors=True)
    try:
        if isinstance(about.recipe.method, Lora):
            part.mkdir()
            adapters.write_peft(setup.adapter(about.recipe, about.checkpoint, weights, about.base), part)
        else:
            _whole(part, weights, about)
        _words(part, about)
        _json(part / RECIPE, to_dict(card.shared(about.recipe)))
        manifest.write(part, _manifest(about, result))
        _publish(part, out)
    except OSError as error:
        raise explained(error, out) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def describe(out: Path, about: Made, events: Iterable[Event], tables: Sequence[card.Table] = ()) -> None:
    """Writes the model card and the notice of the base model's licence."""
    facts = card.Facts(
        recipe=about.recipe,
        base=about.base if "/" in about.base else "",
        licence=conversion.licence_of(about.checkpoint),
        terms=conversion.terms_of(about.checkpoint),
        data=about.data,
        counts=dict(_counts(about.counts)),
        tables=tables,
    )
    try:
        card.write(out, facts, events)
    except OSError as error:
        raise explained(error, out) from None


def _counts(counts: Mapping[str, Any]) -> Iterable[tuple[str, int]]:
    """The reports' figures by names that a reader understands."""
    for use, report in counts.items():
        yield from ((f"{use}: {name}", report[name]) for name in ("examples", "tokens", "learnt"))
        yield from ((f"{use}: left out, {reason}", each["count"]) for reason, each in report["dropped"].items())


def _whole(part: Path, weights: Mapping[str, np.ndarray], about: Made) -> None:
    """The network itself, as Hugging Face keeps it: bfloat16, or float32 where the base is."""
    own = {entry.type for entry in about.checkpoint.tensors.entries.values()}
    tuned = made([about.checkpoint], {name: entry_of(array) for name, array in weights.items()})
    target = Target(dtype="F32" if own == {"F32"} else "BF16")
    conversion.write(tuned, part, "hf", target, check=False, allow_loss=True, quiet=True)


def _words(part: Path, about: Made) -> None:
    """What the model was taught to speak: its template, and the tokens that end an answer."""
    if about.template is not None:
        (part / "chat_template.jinja").write_text(about.template.source, encoding="utf-8")
    tokenizer = about.checkpoint.tokenizer
    if tokenizer is not None and about.template is not None:
        ends = sorted(about.checkpoint.ends | frozenset(tokenizer.ends))
        _json(part / "generation_config.json", {"bos_token_id": tokenizer.bos, "eos_token_id": ends})


def _manifest(about: Made, result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "made": "tune",
        "base": {"name": about.base, "files": list(about.base_files)},
        "data": [{"name": file.name, "sha256": file.sha256, "use": file.use} for file in about.data],
        "counts": dict(about.counts),
        "recipe": to_dict(card.shared(about.recipe)),
        "result": dict(result),
        "computed": {"framework": about.choice.on, "dtype": about.choice.dtype, "machine": platform.machine()},
        "versions": dict(_versions()),
    }


def _versions() -> Iterable[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue


def _json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _publish(part: Path, out: Path) -> None:
    """Moves every file in; the manifest last, which says that the others are whole."""
    files = sorted(part.iterdir(), key=lambda file: file.name == manifest.NAME)
    for file in files:
        os.replace(file, out / file.name)
