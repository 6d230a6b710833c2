"""What happens in a run, as plain values that are shown and written.

Who shows or writes them is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .recipe import Recipe

__all__ = ["Evaluation", "Event", "Finished", "Sample", "Saved", "Started", "Step"]


@dataclass(frozen=True)
class Started:
    """The run begins, or goes on after `step` steps that are behind already."""

    step: int  # steps done before: 0, or those of the checkpoint that is resumed
    steps: int  # of the whole run
    recipe: Recipe
    backend: str = ""  # in words: "torch, bfloat16, CPU"
    trained: int = 0  # numbers that are trained
    parameters: int = 0  # numbers of the whole model


@dataclass(frozen=True)
class Step:
    """One optimizer step, counted from 1."""

    step: int
    steps: int
    epoch: float  # of the data seen by its end: 1.5 is half of the second
    loss: float  # mean over the learnt tokens, in nats
    lr: float
    norm: float  # of all gradients together, before they are clipped
    tokens: int  # of this step, padding not counted
    learnt: int  # of these, the tokens that carry loss
    seconds: float
    memory: int = 0  # bytes: the highest so far, of the device or of this process
    sources: tuple[str, ...] = ()  # "file.jsonl:12": what was learnt from
    metrics: Mapping[str, float] = field(default_factory=dict)  # what an objective says beside its loss


@dataclass(frozen=True)
class Evaluation:
    """The validation data measured after `step` steps; 0 is before the first."""

    step: int
    loss: float
    tokens: int  # that the loss is the mean over
    best: bool  # no evaluation of this run was better
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One prompt of the recipe answered after `step` steps."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint, or at the end the model itself, is whole on the disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class Finished:
    """The run is over; what was to be saved is saved."""

    reason: Literal["done", "early", "interrupted", "failed"]
    step: int  # the last one done
    seconds: float  # of this process, resumed or not
    loss: float | None = None  # of the last step
    best: Evaluation | None = None  # whose weights are kept
    message: str = ""  # why, where it failed


Event = Started | Step | Evaluation | Sample | Saved | Finished
