"""Where a network lies while it is tuned: on one device, cut over a mesh, or whole in each of several processes.

How it is cut, and how processes talk, is `network`'s to know.

    alone       one process and its device
    a mesh      JAX: data, fsdp and tensor axes of `run.mesh`, in one process or several that JAX_* variables describe
    together    PyTorch: as many processes as torchrun has started, each with its own rows of a step
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import Config
from ..errors import OptionError
from .recipe import Recipe

if TYPE_CHECKING:
    from ..network.objectives import Objective

Arrays = Mapping[str, Any]


def leads() -> bool:
    """Whether this process is the one that writes. Known before processes have met."""
    return int(os.environ.get("RANK") or os.environ.get("JAX_PROCESS_ID") or 0) == 0


class Place:
    """One process and its device. `index` of `count` processes computes its own part of each step."""

    index, count = 0, 1
    notes: tuple[str, ...] = ()

    def scope(self) -> AbstractContextManager[Any]:
        """Networks are made, and steps taken, inside."""
        return contextlib.nullcontext()

    def objective(self, objective: Objective, decoder: Any, trained: Mapping[str, Any]) -> Objective:
        return objective

    def optimizer(self, optim: Any, variables: list[Any], apart: list[str]) -> Any:
        from ..network import optimizers

        return optimizers.make(optim, variables, apart)

    def batch(self, arrays: Arrays) -> Arrays:
        """A micro-batch where the network is."""
        return arrays

    def summed(self, figures: Mapping[str, float]) -> Mapping[str, float]:
        """Figures of all processes, of which each has a part."""
        return figures

    def read(self, value: Any) -> np.ndarray:
        """All of a tensor."""
        from ..network import backend

        return np.array(backend.to_numpy(value))


class Meshed(Place):
    """JAX's devices as a mesh."""

    def __init__(self, config: Config, mesh: Mapping[str, int]):
        from ..network import layout_jax as layout

        if "JAX_NUM_PROCESSES" in os.environ:
            layout.join()
        self.layout = layout.Layout(config, mesh)
        self.notes = tuple(self.layout.notes)
        self.batch = self.layout.batch  # type: ignore[method-assign]
        self.read = self.layout.whole  # type: ignore[method-assign]
        self.scope = self.layout.scope  # type: ignore[method-assign]

    def objective(self, objective: Objective, decoder: Any, trained: Mapping[str, Any]) -> Objective:
        self.layout.attach(decoder)
        return self.layout.objective(objective, trained)


class Together(Place):
    """One of several PyTorch processes."""

    def __init__(self, index: int, count: int):
        self.index, self.count = index, count

    def optimizer(self, optim: Any, variables: list[Any], apart: list[str]) -> Any:
        from ..network.processes_torch import Optimizer

        return Optimizer(optim, variables, apart)

    def summed(self, figures: Mapping[str, float]) -> Mapping[str, float]:
        from ..network.processes_torch import summed

        return summed(figures)


def find(recipe: Recipe, config: Config, on: str) -> Place:
    """The place of a run. Waits for the other processes where there are any. Raises OptionError, BackendError."""
    if recipe.run.mesh and on != "jax":
        raise OptionError(f"run.mesh is JAX's, and this run is on {on}. Leave it out, or add --on jax.")
    if on == "jax" and recipe.run.mesh:
        return Meshed(config, recipe.run.mesh)
    if on == "torch" and "WORLD_SIZE" in os.environ:
        from ..network.processes_torch import join

        index, count = join()
        if count > 1 and recipe.objective.name == "kto":
            raise OptionError("kto measures how far a network has moved in one process. Start it without torchrun.")
        return Together(index, count) if count > 1 else Place()
    return Place()
