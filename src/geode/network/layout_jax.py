"""A network over a mesh of devices on JAX: where its numbers lie, by `keras.distribution`.

Which axis of a tensor lies along which axis of the mesh is `axes`' to know; batches and steps are not known here.

    with layout.scope():                          variables made here are cut as they are made
        decoder, optimizer = ...
    layout.attach(decoder)                        activations stay cut by rows between blocks
    Trainer(decoder, trained, optimizer, layout.objective(objective, trained))
    trainer.step([layout.batch(arrays)], lr)

Everything else is XLA's: from where inputs lie it finds where results do, and the sums between devices.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ..config import Config
from ..errors import BackendError, OptionError
from .axes import BATCH, NAMES, Axes, Cuts, mesh_of
from .objectives import Objective

Tensor = Any


def join(coordinator: str | None = None, process: int | None = None, count: int | None = None) -> None:
    """Makes this process one of `count` that compute together, before anything else of JAX is used.

    coordinator: "host:port" of process 0. What is not given is JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID and
        JAX_NUM_PROCESSES, or what a cluster (Slurm, a TPU pod …) tells JAX itself.

    CPUs talk by gloo. Raises OptionError for values that do not fit together, BackendError where others do not come.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    process = _number("JAX_PROCESS_ID") if process is None else process
    count = _number("JAX_NUM_PROCESSES") if count is None else count
    if (process is None) != (count is None) or (count is not None and not 0 <= (process or 0) < count):
        raise OptionError(
            f"Processes that compute together need a number each, 0 … count - 1; got process {process} of {count}. Set "
            "JAX_PROCESS_ID and JAX_NUM_PROCESSES for each of them."
        )
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(coordinator, count, process)
    except (RuntimeError, ValueError) as problem:
        raise BackendError(
            f"Process {process} of {count} could not join the others at {coordinator}: {problem} Start all of them "
            "with the same JAX_COORDINATOR_ADDRESS=host:port, which process 0 can listen on, before JAX is used."
        ) from problem


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdigit():
        raise OptionError(f"{name} should be a whole number; got {text!r}.")
    return None if text is None else int(text)


class Layout(keras.distribution.ModelParallel):  # type: ignore[misc]
    """One network's tensors on one mesh. What cannot be cut evenly is whole on every device; `notes` says what."""

    def __init__(self, config: Config, values: Mapping[str, int]):
        self.cuts = Cuts(config, mesh_of(values))
        mesh = self.cuts.mesh
        devices = keras.distribution.list_devices()
        if len(devices) != mesh.count:
            asked = " × ".join(f"{name} {size}" for name, size in zip(NAMES, mesh.shape, strict=True))
            raise BackendError(
                f"run.mesh asks for {asked} = {mesh.count} devices; JAX has {len(devices)} here ({devices[0]} …). "
                f"Let the axes' sizes multiply to {len(devices)}, or start with the devices that were asked for."
            )
        shape = keras.distribution.DeviceMesh(mesh.shape, NAMES, devices)
        layouts = keras.distribution.LayoutMap(shape)
        for name, axes in self.cuts.named.items():
            layouts[name.replace(".", "_")] = axes
        super().__init__(layout_map=layouts, batch_dim_name="data", auto_shard_dataset=False)

    @property
    def notes(self) -> list[str]:
        """What stays whole although the mesh could cut it, a sentence each."""
        return self.cuts.notes

    def sharding(self, axes: Axes = ()) -> NamedSharding:
        """Where a tensor with these axes lies; without any it is whole on every device."""
        return NamedSharding(self.device_mesh.backend_mesh, PartitionSpec(*axes))

    # What Keras asks when it makes a variable

    def get_variable_layout(self, variable: Any) -> NamedSharding:
        return self.sharding(self.cuts.of(variable.name, variable.shape))

    def get_data_layout(self, data_shape: Sequence[int]) -> NamedSharding:
        return self.sharding((BATCH, *(None,) * (len(data_shape) - 1)))

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Variables made inside are cut. What must be whole first is so in the host's memory, not on a device."""
        with super().scope(), jax.default_device(jax.local_devices(backend="cpu")[0]):
            yield

    # Values

    def tensor(self, name: str, array: np.ndarray, dtype: str) -> Tensor:
        """An array as the variable of this name holds it: each device is given its own part, in `dtype`."""
        return self._placed(array, self.sharding(self.cuts.of(name, array.shape)), dtype)

    def batch(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """A micro-batch's arrays, rows (B, T) cut over data and fsdp; lists of places are whole.

        Every process gives the same arrays, those of all rows, and its devices take their own. Raises OptionError for
        rows that the devices cannot share evenly.
        """
        rows, parts = len(arrays["tokens"]), self.cuts.mesh.rows
        if rows % parts:
            raise OptionError(
                f"A micro-batch of {rows} rows cannot be cut over data × fsdp = {parts} devices. Let batch.rows be a "
                f"multiple of {parts}."
            )
        return {name: self._placed(array, self._of_batch(array)) for name, array in arrays.items()}

    def whole(self, value: Tensor) -> np.ndarray:
        """All of a tensor, in the host's memory of every process."""
        if getattr(value, "is_fully_addressable", True) or value.is_fully_replicated:
            return np.asarray(value)
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(value, tiled=True))

    def attach(self, decoder: Any) -> None:
        """Keeps a decoder's activations cut by rows, and nothing else, before and after each block.

        Left to itself XLA may rather cut them along "fsdp" as the weights are, and sum what each device has of every
        row; so it gathers weights for the time of a product instead, which is what FSDP means.
        """
        decoder.token_embd.call = self._constrained(decoder.token_embd.call)
        for block in decoder.blk:
            block.call = self._constrained(block.call)

    def objective(self, objective: Objective, trained: Mapping[str, Any]) -> Objective:
        """An objective whose gradients for the trained variables are cut as these are."""

        def constrained(decoder: Any, batch: Mapping[str, Tensor]) -> Any:
            pairs = [(v, self._at_home(v)) for v in trained.values()]
            with keras.StatelessScope(state_mapping=pairs):
                return objective(decoder, batch)

        return constrained

    def _at_home(self, variable: Any) -> Tensor:
        """A variable's value where it lies; as a step of the computation it holds for the gradient too."""
        return jax.lax.with_sharding_constraint(variable.value, self.get_variable_layout(variable))

    def _constrained(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def constrained(*inputs: Any) -> Any:
            found = call(*inputs)
            x, *rest = found if isinstance(found, tuple) else (found,)
            x = jax.lax.with_sharding_constraint(x, self.get_data_layout(x.shape))
            return (x, *rest) if rest else x

        return constrained

    def _of_batch(self, array: np.ndarray) -> NamedSharding:
        return self.get_data_layout(array.shape) if array.ndim > 1 else self.sharding()

    def _placed(self, array: np.ndarray, sharding: NamedSharding, dtype: str | None = None) -> Tensor:
        kind = array.dtype if dtype is None else jax.numpy.dtype(dtype)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index].astype(kind))
