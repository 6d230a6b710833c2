"""LoRA adapters that requests name: loaded and unloaded while the engine runs.

How adapters lie in files is `geode.adapters`' to know, and how they are multiplied the executor's.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import adapters as files
from ..adapters import Adapter, Pair
from ..errors import CapacityError, ModelNotFound, OptionError, TensorError
from ..memory import available
from ..native.executor import Executor
from ..tensors import shapes

if TYPE_CHECKING:
    from ..formats import Checkpoint


@dataclass(frozen=True, eq=False)
class Loaded:
    """An adapter in memory. Whoever holds it may use it, also after it was unloaded; its memory goes with the last."""

    name: str
    key: bytes  # a digest of all its numbers: another for other weights under the same name
    rank: int
    nbytes: int
    native: Any = field(repr=False)  # for `native.executor.Part.adapter`


class Adapters:
    """What is loaded, by name; called by any thread.

    base       the checkpoint that `executor` runs, as it is opened without an adapter. Without it a PEFT directory must
               name a model on this machine, and a GGUF file cannot be loaded.
    most_rank  adapters of a larger rank are refused; None refuses none
    """

    def __init__(self, executor: Executor, base: Checkpoint | None = None, most_rank: int | None = None):
        self._executor = executor
        self._base = base
        self._most_rank = most_rank
        self._lock = threading.Lock()
        self._loaded: dict[str, Loaded | None] = {}  # None while it is being read

    def load(self, name: str, path: str | Path) -> Loaded:
        """Reads a PEFT directory or a GGUF file.

        Raises OptionError for a name that is taken and for what an adapter beside others cannot do (DoRA, tensors that
        come whole); CapacityError; and as `geode.adapters.open` does.
        """
        self._reserve(name)
        try:
            loaded = self._read(name, Path(path))
        except BaseException:
            with self._lock:
                del self._loaded[name]
            raise
        with self._lock:
            self._loaded[name] = loaded
        return loaded

    def unload(self, name: str) -> None:
        """Frees the name at once. Raises ModelNotFound, with the names that are there."""
        with self._lock:
            self._find(name)
            del self._loaded[name]

    def names(self) -> list[str]:
        with self._lock:
            return sorted(name for name, loaded in self._loaded.items() if loaded is not None)

    def get(self, name: str) -> Loaded:
        """Raises ModelNotFound, with the names that are there."""
        with self._lock:
            return self._find(name)

    def _find(self, name: str) -> Loaded:
        loaded = self._loaded.get(name)
        if loaded is None:
            there = ", ".join(sorted(name for name, one in self._loaded.items() if one is not None))
            raise ModelNotFound(f"There is no adapter {name!r}. Loaded are: {there or 'none'}.")
        return loaded

    def _reserve(self, name: str) -> None:
        if not isinstance(name, str) or not name.strip():
            raise OptionError(f"An adapter needs a name; {name!r} was given.")
        with self._lock:
            if name in self._loaded:
                raise OptionError(f"An adapter {name!r} is loaded already. Unload it first, or choose another name.")
            self._loaded[name] = None

    def _read(self, name: str, path: Path) -> Loaded:
        opened = files.open(path, self._base)
        _refuse(opened, path)
        self._check_fit(opened, path)
        _check_memory(opened.pairs)
        if self._base is not None and (other := files.other_base(path, self._base)) is not None:
            warnings.warn(f"{other} Its answers may be worse than its author's.", stacklevel=3)
        key, made = _key(opened.pairs), self._executor.adapter(opened.pairs)
        return Loaded(name, key, opened.rank, made.nbytes, made)

    def _check_fit(self, opened: Adapter, path: Path) -> None:
        if shapes(opened.config.replace(tied=False)) != shapes(self._executor.config.replace(tied=False)):
            raise TensorError(
                f"{path} was made for a {opened.family.name} network of other sizes than the model that runs here. "
                "Load an adapter that was trained on this model."
            )
        if self._most_rank is not None and opened.rank > self._most_rank:
            raise OptionError(
                f"{path} has rank {opened.rank}, and adapters up to rank {self._most_rank} are taken here."
            )


def _refuse(opened: Adapter, path: Path) -> None:
    """What goes beyond pairs on matrices cannot be another thing for each row of a batch."""
    reasons = {
        "has magnitudes (DoRA)": any(pair.magnitude is not None for pair in opened.pairs.values()),
        f"replaces {len(opened.replaced)} tensors whole ({', '.join(list(opened.replaced)[:4])})": opened.replaced,
        "has the head of a reward model or classifier": opened.score is not None,
        "changes nothing": not opened.pairs,
    }
    for reason, holds in reasons.items():
        if holds:
            raise OptionError(
                f"{path} {reason}; beside others only low-rank pairs can be applied. Load the model with it instead, "
                "geode.load(model, adapter=...), or merge it: geode merge BASE --adapter ADAPTER DST."
            )


def _check_memory(pairs: Mapping[str, Pair]) -> None:
    free, need = available(), sum(4 * (pair.a.size + pair.b.size) for pair in pairs.values())
    if free is not None and need > free:
        raise CapacityError(
            f"The adapter takes {need / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free. Unload another one first."
        )


def _key(pairs: Mapping[str, Pair]) -> bytes:
    """Raises TensorError for what is no number."""
    digest = blake2b(digest_size=16)
    for name, pair in sorted(pairs.items()):
        for part, array in (("A", pair.a), ("B", pair.b)):
            if not np.isfinite(array).all():
                raise TensorError(
                    f"The adapter's {part} for {name} has numbers that are not finite. Get the file again."
                )
            digest.update(f"{name} {part} {array.dtype} {array.shape} {pair.scale!r}\n".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.digest()
