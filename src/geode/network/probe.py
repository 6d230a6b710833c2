"""What this device does at best, measured by a product and a copy. What it is asked for is not known here."""

from __future__ import annotations

from time import perf_counter

import numpy as np
from keras import ops

from . import backend
from .backend import Tensor

SIDE = 2048
TIMES = 3


def measure(dtype: str, side: int = SIDE) -> tuple[float, float]:
    """Operations and bytes a second: of a product of two matrices in `dtype`, and of changing one in memory."""
    x = backend.tensor(np.ones((side, side), np.float32), dtype)
    seconds = _best(backend.compile(lambda nothing, x: (ops.sum(ops.matmul(x, x)[0]), nothing), []), x)
    wide = backend.tensor(np.ones((4 * side, side), np.float32), "float32")
    moved = _best(backend.compile(lambda nothing, x: (ops.sum((x + 1.0)[-1]), nothing), []), wide)
    return 2 * side**3 / seconds, 8 * 4 * side * side / moved


def _best(run: object, x: Tensor) -> float:
    """The shortest of a few runs, after one that may compile."""
    found = []
    for _ in range(TIMES + 1):
        start = perf_counter()
        backend.to_numpy(run((), x)[0])  # type: ignore[operator]
        found.append(perf_counter() - start)
    return min(found[1:])
