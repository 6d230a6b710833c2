"""Which axis of a mesh cuts which axis of a tensor, by the tensor's name.

What a device or a framework is, is not known here: a planner reads this as well as JAX does.

    mesh      data · fsdp · tensor devices. Rows of a batch are cut over data and fsdp together.
    matrix    (E, D)                  outputs E    inputs D
      attn_q, attn_k, attn_v            tensor       fsdp       heads go whole to a device
      ffn_gate, ffn_up                  tensor       fsdp
      attn_output, ffn_down             fsdp         tensor     sums over the tensor axis follow
      token_embd, output                tensor       fsdp       the vocabulary is E
    bias      as its matrix's outputs where those are on "tensor"
    norm      whole on every device
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

from ..config import Config
from ..errors import OptionError
from ..tensors import shapes

Axis = str | tuple[str, ...] | None
Axes = tuple[Axis, ...]

BATCH: tuple[str, ...] = ("data", "fsdp")
ACROSS = ("attn_output", "ffn_down")
HEADS = {"attn_q": "heads", "attn_output": "heads", "attn_k": "kv_heads", "attn_v": "kv_heads"}


@dataclass(frozen=True)
class Mesh:
    """How many devices lie along each axis."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.data, self.fsdp, self.tensor

    @property
    def count(self) -> int:
        """All devices."""
        return self.data * self.fsdp * self.tensor

    @property
    def rows(self) -> int:
        """Parts that a batch is cut into."""
        return self.data * self.fsdp

    def size(self, axis: Axis) -> int:
        """Devices along an axis, or along several together."""
        names = (axis,) if isinstance(axis, str) else axis or ()
        found = 1
        for name in names:
            found *= int(getattr(self, name))
        return found


NAMES = tuple(field.name for field in fields(Mesh))


def mesh_of(values: Mapping[str, int]) -> Mesh:
    """The mesh of a recipe's `run.mesh`. Raises OptionError for an axis that there is none of, or no whole number."""
    unknown = [name for name in values if name not in NAMES]
    if unknown:
        raise OptionError(f"A mesh has the axes {', '.join(NAMES)}; run.mesh names {', '.join(map(str, unknown))}.")
    for name, size in values.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise OptionError(f"run.mesh.{name} should be how many devices lie along it, 1 or more; got {size!r}.")
    return Mesh(**values)


class Cuts:
    """The axes of every tensor of one network on one mesh, and of what is derived from it.

    Where a size is no multiple of the devices along its axis the tensor stays whole along it; `notes` says so.
    """

    def __init__(self, config: Config, mesh: Mesh):
        self.config, self.mesh = config, mesh
        self.shapes = shapes(config)

    @cached_property
    def named(self) -> dict[str, Axes]:
        """Axes by canonical name."""
        return {name: self._canonical(name, shape) for name, shape in self.shapes.items()}

    @property
    def notes(self) -> list[str]:
        """What stays whole although the mesh could cut it, a sentence each."""
        found: dict[str, None] = {}
        for name, shape in self.shapes.items():
            for axis, given, size in zip(_wanted(name, len(shape)), self.named[name], shape, strict=True):
                if given is None and self.mesh.size(axis) > 1:
                    found[f"{_role(name)} stays whole along its {self._size(name, axis, size)}"] = None
        return [f"{note}." for note in found]

    def of(self, name: str, shape: Sequence[int]) -> Axes:
        """Axes of a variable: a canonical tensor, its integers and scales, a low-rank pair beside it, or what an
        optimizer remembers of any of these. Dots may be spelt "_". What is not known stays whole."""
        return self._fit(self._derived(name.replace(".", "_"), len(shape)), shape)

    def part(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that one device holds."""
        cut = zip(shape, self.of(name, shape), strict=True)
        return tuple(size // self.mesh.size(axis) for size, axis in cut)

    @cached_property
    def _spelt(self) -> dict[str, Axes]:
        return {name.replace(".", "_"): axes for name, axes in self.named.items()}

    def _derived(self, name: str, rank: int) -> Axes:
        if name in self._spelt:
            return self._spelt[name]
        for suffix, derive in DERIVED.items():
            if name.endswith(suffix):
                return derive(self._derived(name.removesuffix(suffix), rank), rank)
        return (None,) * rank

    def _canonical(self, name: str, shape: tuple[int, ...]) -> Axes:
        axes = self._fit(_wanted(name, len(shape)), shape)
        heads = HEADS.get(_role(name))
        if heads is None or getattr(self.config, heads) % self.mesh.tensor == 0:
            return axes
        return tuple(None if axis == "tensor" else axis for axis in axes)

    def _fit(self, axes: Axes, shape: Sequence[int]) -> Axes:
        """The axes that cut these sizes into equal parts, the others left whole."""
        axes = (*axes, *(None,) * len(shape))[: len(shape)]
        return tuple(
            axis if size % self.mesh.size(axis) == 0 and self.mesh.size(axis) > 1 else None
            for axis, size in zip(axes, shape, strict=True)
        )

    def _size(self, name: str, axis: Axis, size: int) -> str:
        heads = HEADS.get(_role(name)) if axis == "tensor" else None
        what = f"{size} channels" if heads is None else f"{getattr(self.config, heads)} heads"
        return f"{what}, which {self.mesh.size(axis)} devices of the {axis!r} axis cannot share evenly"


def _role(name: str) -> str:
    """blk.0.attn_q.weight -> attn_q"""
    return name.split(".")[-2]


def _wanted(name: str, rank: int) -> Axes:
    role = _role(name)
    if "norm" in role:
        return (None,) * rank
    axes: Axes = ("fsdp", "tensor") if role in ACROSS else ("tensor", "fsdp")
    if rank == 1:
        return (None,) if role in ACROSS else axes[:1]
    return axes


def _same(axes: Axes, rank: int) -> Axes:
    return axes


def _first(axes: Axes, rank: int) -> Axes:
    return axes[:1]


def _together(axes: Axes, rank: int) -> Axes:
    """Blocks of numbers in the order of the tensor: cut along all of its axes at once."""
    names = tuple(axis for axis in axes if isinstance(axis, str))
    return (names or None, *(None,) * (rank - 1))


DERIVED: dict[str, Callable[[Axes, int], Axes]] = {
    "_q": _same,
    "_scale": lambda axes, rank: axes[:rank],
    "_lora_a": lambda axes, rank: (None, *axes[1:2]),
    "_lora_b": lambda axes, rank: (*axes[:1], None),
    "_lora_magnitude": _first,
    "_squares": _first,
    "_m_top": _together,
    "_r_top": _together,
    "_m8": _together,
    "_r8": _together,
    "_m": _same,
    "_v": _same,
    "_mean": _same,
    "_rows": lambda axes, rank: axes[:-1],
    "_columns": lambda axes, rank: (*axes[:-2], *axes[-1:]),
}
"""What is derived from a tensor, told by how its variable's name ends."""
