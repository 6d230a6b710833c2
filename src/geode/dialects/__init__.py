"""One invertible table per dialect: how another project's tensors become the canonical ones, and back.

A dialect is a list of `Rule`s; what can happen between two names is in `ops`. What a rule means for a model family is
data in `families`; which file the bytes lie in is the business of `io`.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..config import Config
from ..errors import TensorError
from ..quant import DTYPES, QTensor
from ..tensors import Array, Entry, Tensors, shapes
from .ops import Op, Split


@dataclass(frozen=True)
class Rule:
    """`ours` = ops(`theirs`): names on both sides and the operations between, first to last."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    ops: tuple[Op, ...] = ()
    optional: bool = False  # absent in the file means zeros

    def read(self, arrays: list[Array]) -> list[Array]:
        for op in self.ops:
            arrays = op.forward(arrays)
        return arrays

    def write(self, arrays: list[Array]) -> list[Array]:
        for op in reversed(self.ops):
            arrays = op.inverse(arrays)
        return arrays

    def widens(self) -> bool:
        """Whether the numbers come out as float64, in both directions."""
        return any(op.widens for op in self.ops)

    def their_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The shape of each of `theirs`, given those of ours."""
        found = [shapes[name] for name in self.ours]
        for op in reversed(self.ops):
            found = op.shapes(found)
        return dict(zip(self.theirs, found, strict=True))


def rule(ours: str, theirs: str, *ops: Op, optional: bool = False) -> Rule:
    """The common case: one tensor to one tensor."""
    return Rule((ours,), (theirs,), ops, optional)


def fused(config: Config, layer: str, kind: str, theirs: str, *ops: Op) -> Rule:
    """Queries, keys and values of a layer in one tensor of theirs: `ops`, and then [q; k; v] cut along the rows."""
    ours = tuple(f"blk.{layer}.attn_{part}.{kind}" for part in "qkv")
    return Rule(ours, (theirs,), (*ops, Split((config.q_width, config.kv_width, config.kv_width))))


def read(rules: Sequence[Rule], stored: Tensors, config: Config, ignore: Iterable[str] = ()) -> Tensors:
    """Canonical tensors over `stored`, still lazy. `ignore`: file-name patterns of harmless tensors.

    Raises TensorError listing what is missing, what nobody asked for, and what has another size.
    """
    expected = shapes(config)
    found: dict[str, Entry] = {}
    missing: list[str] = []
    wrong: list[str] = []
    for one in rules:
        absent = [name for name in one.theirs if name not in stored.entries]
        if absent and not (one.optional and len(absent) == len(one.theirs)):
            missing += absent
        else:
            wrong += _misfits(one, stored, expected)
            found |= _entries(one, stored, expected)
    asked = {name for one in rules for name in one.theirs}
    extra = [n for n in stored.entries if n not in asked and not any(matches(n, p) for p in ignore)]
    _complain(missing, extra, wrong)
    return Tensors({name: found[name] for name in expected})


def write(rules: Sequence[Rule], canonical: Tensors, narrow: str = "F32") -> Tensors:
    """The other direction: their names over our tensors, still lazy. `narrow` is the type that float64 is stored as."""
    found: dict[str, Entry] = {}
    for one in rules:
        ours = [canonical.entries[name] for name in one.ours]
        kinds = {entry.type for entry in ours}
        kind = "F64" if one.widens() else ours[0].type if len(kinds) == 1 else "F32"
        kind = narrow if kind == "F64" else kind
        load = _once(lambda one=one, kind=kind: _cast(one.write([canonical[name] for name in one.ours]), kind))  # type: ignore[misc]
        theirs = one.their_shapes({name: entry.shape for name, entry in zip(one.ours, ours, strict=True)})
        for i, (name, shape) in enumerate(theirs.items()):
            packed = sum(entry.nbytes for entry in ours) // len(one.theirs)
            nbytes = math.prod(shape) * DTYPES[kind].itemsize if kind in DTYPES else packed
            found[name] = Entry(shape, kind, nbytes, _piece(load, i))
    return Tensors(found)


def _cast(arrays: list[Array], kind: str) -> list[Array]:
    return [array if isinstance(array, QTensor) else array.astype(DTYPES[kind], copy=False) for array in arrays]


def _entries(one: Rule, stored: Tensors, expected: dict[str, tuple[int, ...]]) -> dict[str, Entry]:
    if one.theirs[0] not in stored.entries:
        return {name: _zeros(expected[name]) for name in one.ours}
    theirs = [stored.entries[name] for name in one.theirs]
    if not one.ops:
        return {one.ours[0]: theirs[0]}
    kind = "F64" if one.widens() else theirs[0].type
    load = _once(lambda: one.read([stored[name] for name in one.theirs]))
    stored_bytes, stored_size = sum(entry.nbytes for entry in theirs), sum(math.prod(entry.shape) for entry in theirs)

    def nbytes(name: str) -> int:
        size = math.prod(expected[name])
        return size * DTYPES[kind].itemsize if kind in DTYPES else stored_bytes * size // stored_size

    return {name: Entry(expected[name], kind, nbytes(name), _piece(load, i)) for i, name in enumerate(one.ours)}


def _misfits(one: Rule, stored: Tensors, expected: dict[str, tuple[int, ...]]) -> list[str]:
    """Shapes that disagree, from headers alone."""
    wanted = one.their_shapes(expected)
    have = {name: stored.entries[name].shape for name in one.theirs if name in stored.entries}
    return [
        f"{name}: expected {wanted[name]}, the file has {shape}"
        for name, shape in have.items()
        if shape != wanted[name]
    ]


def _zeros(shape: tuple[int, ...]) -> Entry:
    return Entry(shape, "F32", 4 * math.prod(shape), lambda: np.zeros(shape, np.float32))


def _piece(load: Callable[[], list[Array]], i: int) -> Callable[[], Array]:
    return lambda: load()[i]


def _once(load: Callable[[], list[Array]]) -> Callable[[], list[Array]]:
    """Remembers the pieces of a fused tensor until each has been taken once, so that it is read only once."""
    kept: list[list[Array]] = []
    taken = 0

    def pieces() -> list[Array]:
        nonlocal taken
        if not kept:
            kept.append(load())
        arrays = kept[0]
        taken += 1
        if taken >= len(arrays):
            kept.clear()
            taken = 0
        return arrays

    return pieces


def _complain(missing: list[str], extra: list[str], wrong: list[str]) -> None:
    problems = [
        f"{len(names)} {what} ({', '.join(names[:8])}{', …' if len(names) > 8 else ''})"
        for what, names in (("missing", missing), ("that nobody asked for", extra), ("of another shape", wrong))
        if names
    ]
    if problems:
        raise TensorError(
            f"The weights do not fit the configuration: tensors {'; '.join(problems)}. "
            "Check that config and weights come from the same checkpoint and that no shard is absent."
        )


def matches(name: str, pattern: str) -> bool:
    """Shell-style pattern match of a tensor's name."""
    return fnmatch.fnmatchcase(name, pattern)


def split_name(name: str) -> tuple[str, str, str]:
    """'blk.3.attn_q.weight' -> ('3', 'blk.{}.attn_q', 'weight'); the layer is '' outside the blocks."""
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("blk."):
        return "", stem, kind
    _, layer, rest = stem.split(".", 2)
    return layer, f"blk.{{}}.{rest}", kind


@lru_cache(maxsize=2)  # every layer asks for the same
def grouped_rows(config: Config) -> tuple[int, ...]:
    """Row order that turns a projection fused per key/value head, [q … q k v] repeated, into [q; k; v]."""
    group = config.heads // config.kv_heads
    rows = np.arange(config.q_width + 2 * config.kv_width).reshape(config.kv_heads, group + 2, config.head_dim)
    parts = (rows[:, :group], rows[:, group], rows[:, group + 1])
    return tuple(int(i) for i in np.concatenate([part.reshape(-1) for part in parts]))


@lru_cache(maxsize=4)
def halved_rows(heads: int, head_dim: int) -> tuple[int, ...]:
    """Row order that turns rotary pairs lying side by side (0,1)(2,3)… into half against half."""
    rows = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return tuple(int(i) for i in rows.swapaxes(1, 2).reshape(-1))
