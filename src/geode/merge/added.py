"""Adapters merged into a base model.

How adapters are stored is not known here, nor how the result is written.

    LoRA   W + scale · B·A                                   arxiv.org/abs/2106.09685
    DoRA   (W + scale · B·A), each row made `magnitude` long   arxiv.org/abs/2402.09353
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from ..adapters import Adapter, Pair
from ..errors import ConfigError, OptionError
from ..formats import Checkpoint
from ..quant import BLOCKS
from ..tensors import Entry, shapes
from .computed import EMBEDDING, HEAD, Made, Rows, Shift, computed, made, retyped, rows_of, wide

ALONE = 1 << 18
"""Multiplications that OpenBLAS does with one thread (interface/gemm.c). Its others would wait in a loop for more, on
the cores that the packing next to it needs, and all of it takes five times as long."""

Change = Callable[[np.ndarray, slice], np.ndarray]
"""What is added to some rows, given those rows and which they are."""


def adapter(base: Checkpoint, adapter: Adapter, weight: float = 1.0) -> Made:
    """The base with one adapter merged in, `weight` times. Raises as `adapters` does."""
    return adapters(base, [(adapter, weight)])


def kept(entry: Entry) -> str:
    """What a changed tensor is stored in: the base's own type."""
    return entry.type


def roomy(entry: Entry) -> str:
    """The base's own type, but Q8_0 for fewer bits: those would swallow most of what an adapter changes."""
    return "Q8_0" if entry.type in BLOCKS and _bits(entry.type) < _bits("Q8_0") else entry.type


def exact(entry: Entry) -> str:
    """Float32, for whoever stores it in a type of their own."""
    return "F64" if entry.type == "F64" else "F32"


def _bits(kind: str) -> float:
    return 8 * BLOCKS[kind].nbytes / BLOCKS[kind].elements


def adapters(
    base: Checkpoint,
    given: Sequence[tuple[Adapter, float]],
    types: Callable[[Entry], str] = kept,
    *,
    measure: bool = True,
) -> Made:
    """The base with adapters merged in: W + Σ weight · change, computed in float32, stored in `types` of the base's.

    What is packed is unpacked, changed and packed again; `Made.report` tells what that did where `measure` asks for it.
    A head tied to the embeddings is untied where an adapter changes one of the two alone. Raises ConfigError where an
    adapter is for another network, OptionError without adapters.
    """
    if not given:
        raise OptionError("Give at least one adapter to merge.")
    for one, _ in given:
        _check_fit(base, one)
    known, config, remarks = dict(base.tensors.entries), base.config, []
    if config.tied and not all(_same_for_head(one) for one, _ in given):
        known[HEAD], config = known[EMBEDDING], config.replace(tied=False)
        remarks.append("The adapter does not change embeddings and head alike, so the head is no longer tied to them.")
    shifts: dict[str, Shift] = {}
    touched = {name for one, _ in given for name in (*one.pairs, *one.replaced)} & shapes(config).keys()
    found = {name: _merged(name, known[name], given, types, shifts if measure else None) for name in touched}
    remarks += [sentence for one, _ in given for sentence in one.left_out]
    return made([base], known | found, config=config, shifts=shifts, remarks=remarks)


def _check_fit(base: Checkpoint, one: Adapter) -> None:
    if one.family.name != base.family.name or shapes(one.config) != shapes(base.config):
        raise ConfigError(
            f"The adapter was opened for a {one.family.name} network, and {base.path} is a {base.family.name} network "
            "of other sizes. Open it for the model that it is merged into."
        )


def _same_for_head(one: Adapter) -> bool:
    """Whether an adapter does the same to embeddings and head."""
    first, second = one.pairs.get(EMBEDDING), one.pairs.get(HEAD)
    if (EMBEDDING in one.replaced) != (HEAD in one.replaced) or (first is None) != (second is None):
        return False
    if EMBEDDING in one.replaced and not np.array_equal(wide(one.replaced[EMBEDDING]), wide(one.replaced[HEAD])):
        return False
    return first is None or second is None or _same_pair(first, second)


def _same_pair(one: Pair, other: Pair) -> bool:
    return one.scale == other.scale and np.array_equal(one.a, other.a) and np.array_equal(one.b, other.b)


def _merged(
    name: str,
    entry: Entry,
    given: Sequence[tuple[Adapter, float]],
    types: Callable[[Entry], str],
    shifts: dict[str, Shift] | None,
) -> Entry:
    def start() -> tuple[Rows, Rows]:
        old = rows_of(entry.load())
        if len(given) == 1 and given[0][1] == 1 and name in given[0][0].replaced and name not in given[0][0].pairs:
            return rows_of(given[0][0].replaced[name]), old  # without a rounding on the way
        changes = [change for one, weight in given for change in _changes(name, one, weight)]
        return lambda cut: _sum(old(cut), cut, changes), old

    return computed(name, retyped(entry, types(entry)), start, shifts)


def _sum(old: np.ndarray, cut: slice, changes: Sequence[Change]) -> np.ndarray:
    total = changes[0](old, cut)
    for change in changes[1:]:
        total = total + change(old, cut)
    return np.asarray(np.add(old, total, out=total if total.dtype == old.dtype else None))


def _changes(name: str, one: Adapter, weight: float) -> Iterable[Change]:
    if name in one.replaced:
        new = rows_of(one.replaced[name])
        yield lambda old, cut: weight * (new(cut) - old)
    if (pair := one.pairs.get(name)) is None:
        return
    a, b = pair.a.astype(np.float32), pair.b.astype(np.float32) * np.float32(pair.scale)
    if pair.magnitude is None:
        b *= np.float32(weight)
        yield lambda old, cut: _product(b[cut], a)
    else:
        yield partial(_turned, a, b, pair.magnitude.astype(np.float32), np.float32(weight))


def _product(b: np.ndarray, a: np.ndarray) -> np.ndarray:
    """B·A, a few rows at a time."""
    found = np.empty((len(b), a.shape[1]), np.float32)
    step = max(1, ALONE // max(1, a.size))
    for at in range(0, len(b), step):
        np.matmul(b[at : at + step], a, out=found[at : at + step])
    return found


def _turned(
    a: np.ndarray, b: np.ndarray, magnitude: np.ndarray, weight: np.float32, old: np.ndarray, cut: slice
) -> np.ndarray:
    new = old + _product(b[cut], a)
    length = magnitude[cut] / np.linalg.norm(new, axis=1)
    return np.asarray(weight * (length[:, None] * new - old))
