"""Several processes that train one network with PyTorch: gradients summed, and matrices cut by rows among them.

Batches, and what a network is made of, are not known here.

    every process                 its own rows of a step; weights of all processes' targets sum to 1 (`tune.batches`)
    end of a step                 gradients are added up, not averaged: one flat sum over processes, no wrapper around
                                  the network, and no overlap with the backward pass
    matrices cut (`Rows`)         process p keeps rows p·n … of each matrix, frozen or trained, and of what its
                                  optimizer remembers; a block gathers its own for its forward, again for its
                                  backward, and gives each process the sum of its rows' gradients

That is what FSDP2 does. `fully_shard` itself exchanges the parameters of `torch.nn.Module`s; Keras's parts read their
`keras.Variable`s, which go on to point at the whole ones. So the gathered ones are put in their place by Keras's own
`StatelessScope`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

import keras
import numpy as np
import torch
import torch.distributed as dist

from ..config import Config
from ..errors import BackendError, OptionError
from ..quant import QTensor
from ..tensors import Array, shapes
from . import backend, optimizers
from .backend import Tensor
from .storage import Fetch

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


# Their names since PyTorch 2.13, and before.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def join(seconds: float = 600.0) -> tuple[int, int]:
    """Joins the processes that `torchrun` has started, as its environment says: this one's number, and their count.

    (0, 1) where there is no such environment. seconds: how long to wait for the others. Raises OptionError for half of
    an environment, BackendError where the others do not come.
    """
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    given = [name for name in VARIABLES if name in os.environ]
    if not {"RANK", "WORLD_SIZE"} & set(given):
        return 0, 1
    if missing := sorted(set(VARIABLES) - set(given)):
        raise OptionError(
            f"Processes that train together need {', '.join(VARIABLES)} in their environment; {', '.join(missing)} is "
            "not there. Start them with torchrun, or unset the others to train alone."
        )
    kind = "gloo" if backend.on_cpu() else "nccl"
    try:
        dist.init_process_group(kind, timeout=timedelta(seconds=seconds))
    except (RuntimeError, ValueError) as problem:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise BackendError(
            f"Process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} could not join others at {place}: {problem} "
            "Start all of them, with the same MASTER_ADDR and MASTER_PORT and a RANK each."
        ) from problem
    return dist.get_rank(), dist.get_world_size()


def leave() -> None:
    """Ends the joint work; a process that leaves without it makes the others wait."""
    if dist.is_initialized():
        dist.destroy_process_group()


def summed(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures that every process has a part of, such as a step's metrics, added up: the same on all of them."""
    values = torch.tensor(list(figures.values()), dtype=torch.float64)
    dist.all_reduce(values)
    return dict(zip(figures, values.tolist(), strict=True))


class Optimizer:
    """`optimizers.make` for a network that several processes train: all of them change whole variables alike, and each
    its own rows of those that are cut.

    cut: names (`variable.name`) of trained variables that hold this process's rows, `Rows.names`.

    Raises OptionError for a method that needs whole matrices where some are cut.
    """

    WHOLE = ("adafactor", "muon")

    def __init__(
        self, optim: Any, variables: Sequence[Any], apart: Collection[str] = (), cut: Collection[str] = ()
    ) -> None:
        self._is_cut = [variable.name in cut for variable in variables]
        if optim.name in self.WHOLE and any(self._is_cut):
            raise OptionError(
                f"optim.name {optim.name} looks at whole matrices; here they are cut among processes. Choose adamw, "
                "adam8bit or sgd, or let every process keep all weights."
            )
        self.clip, self.variables = optim.clip, list(variables)
        self.inner = optimizers.make(dataclasses.replace(optim, clip=None), variables, apart)

    @property
    def state(self) -> list[Any]:
        return self.inner.state

    @property
    def means(self) -> list[Any]:
        return self.inner.means

    def apply(self, gradients: Sequence[Tensor | None], lr: Tensor) -> Tensor:
        """One step with the gradients of all processes; the length of them all before clipping, the same on each."""
        pairs = zip(gradients, self.variables, strict=True)
        found = [torch.zeros_like(v.value) if g is None else g for g, v in pairs]
        whole = [g for g, is_cut in zip(found, self._is_cut, strict=True) if not is_cut]
        _sum(whole)
        norm = self._norm(whole, [g for g, is_cut in zip(found, self._is_cut, strict=True) if is_cut])
        factor = torch.ones(()) if self.clip is None else torch.clamp(self.clip / (norm + 1e-6), max=1.0)
        # A length that is no number must stop every process, also one whose own rows are fine.
        self.inner.apply(found, lr, torch.where(torch.isfinite(norm), factor, norm))
        return norm

    def _norm(self, whole: list[Tensor], cut: list[Tensor]) -> Tensor:
        squares = torch.square(backend.norm(cut)) if cut else torch.zeros(())
        if cut:
            dist.all_reduce(squares)
        return torch.sqrt(squares + torch.square(backend.norm(whole))) if whole else torch.sqrt(squares)


def _sum(tensors: list[Tensor]) -> None:
    """Adds up what each process has, in place, as one flat message of each dtype."""
    for kind in dict.fromkeys(tensor.dtype for tensor in tensors):
        mine = [tensor for tensor in tensors if tensor.dtype == kind]
        flat = torch.cat([tensor.reshape(-1) for tensor in mine])
        dist.all_reduce(flat)
        for tensor, part in zip(mine, flat.split([tensor.numel() for tensor in mine]), strict=True):
            tensor.copy_(part.view_as(tensor))


class Rows:
    """The matrices of one network cut by rows: process p of P keeps rows p·n … (p+1)·n - 1, n = ⌈E / P⌉.

        rows = Rows(config, index, count)
        decoder = Decoder(config, rows.fetch(fetch), dtype, quantize)     nothing is ever whole
        rows.attach(decoder)                                              after `lora.attach`
        optimizer = Optimizer(optim, variables, apart, rows.names(decoder))

    Blocks are computed again in the backward pass, so that a gathered matrix lives as long as its block. Norms, biases
    and low-rank pairs are whole everywhere.
    """

    KINDS = ("", "_q", "_scale", "_squares", "_lora_magnitude")  # what there is a row of for each output

    def __init__(self, config: Config, index: int, count: int):
        self.index, self.count = index, count
        matrices = {name: shape[0] for name, shape in shapes(config).items() if _is_matrix(name)}
        self._matrices = matrices
        self._rows = {name.replace(".", "_") + kind: rows for name, rows in matrices.items() for kind in self.KINDS}

    def fetch(self, fetch: Fetch) -> Fetch:
        """`fetch`, of whose matrices only this process's rows are read."""

        def mine(name: str) -> Array:
            array = fetch(name)
            if name not in self._matrices:
                return array
            part = self.part(self._matrices[name])
            return array.rows(part) if isinstance(array, QTensor) else array[part]

        return mine

    def part(self, rows: int) -> slice:
        """This process's rows of so many."""
        size = -(-rows // self.count)
        return slice(min(self.index * size, rows), min((self.index + 1) * size, rows))

    def names(self, decoder: Any) -> set[str]:
        """Names of the decoder's variables that are cut."""
        return {variable.name for variable in decoder.variables if variable.name in self._rows}

    def attach(self, decoder: Any) -> None:
        """Lets a decoder gather what it computes with, part by part."""
        decoder.remat = True
        parts = [decoder.token_embd, *decoder.blk]
        for part in parts:
            part.call = self._gathering(part.call, part.variables)
        head = decoder.unembed or decoder.token_embd
        decoder.logprobs = self._gathering(decoder.logprobs, head.variables)
        decoder.head = self._gathering(decoder.head, head.variables)

    def whole(self, variable: Any) -> np.ndarray:
        """All rows of a variable, in every process: float32, or integers as they are."""
        value = variable.value
        if variable.name in self._rows:
            value = _Whole.apply(value.detach(), self._rows[variable.name], self.index, self.count)
        return backend.to_numpy(value)

    def _gathering(self, call: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
        cut = [variable for variable in variables if variable.name in self._rows]

        def gathering(*inputs: Any) -> Any:
            every = [_Whole.apply(v.value, self._rows[v.name], self.index, self.count) for v in cut]
            with _InPlace(cut, every):
                return call(*inputs)

        return gathering


class _InPlace(keras.StatelessScope):  # type: ignore[misc]
    """Inside, variables have these values; unlike Keras's own scope it lets a shape differ from the variable's."""

    def __init__(self, variables: Sequence[Any], values: Sequence[Tensor]) -> None:
        super().__init__()
        self._values = {id(variable): value for variable, value in zip(variables, values, strict=True)}

    def get_current_value(self, ref: Any) -> Tensor | None:
        return self._values.get(id(ref))


class _Whole(torch.autograd.Function):
    """Rows that processes have a part of each -> all of them; gradients the other way, added up."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, rows: int, index: int, count: int) -> Tensor:
        ctx.place = (rows, index, count, len(part))
        size = -(-rows // count)
        # As bytes: a message has no need to know bfloat16 or float16.
        mine = _filled(part.detach(), size).reshape(size, -1).contiguous().view(torch.uint8)
        every = mine.new_empty((count * size, mine.shape[1]))
        _gather(every, mine)
        return every.view(part.dtype).reshape(count * size, *part.shape[1:])[:rows]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, _, count, mine = ctx.place
        size = -(-rows // count)
        every = _filled(upstream[0], count * size).contiguous()
        own = every.new_empty((size, *every.shape[1:]))
        _scatter(own, every)
        return own[:mine], None, None, None


def _filled(value: Tensor, rows: int) -> Tensor:
    """`value` with zeros behind it up to so many rows."""
    missing = rows - len(value)
    return value if not missing else torch.cat([value, value.new_zeros((missing, *value.shape[1:]))])


def _is_matrix(name: str) -> bool:
    return name.endswith(".weight") and "norm" not in name
