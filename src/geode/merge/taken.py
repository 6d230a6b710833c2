"""An adapter taken out of two checkpoints: the best pair of low rank for each difference.

How adapters are stored is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ..adapters import Adapter, Pair
from ..errors import OptionError
from ..formats import Checkpoint
from ..tensors import from_arrays, shapes
from .computed import EMBEDDING, HEAD, wide
from .mixed import check_alike

EXACT = 1024  # the smaller side of a matrix that LAPACK takes apart at once
SPARE, ROUNDS = 16, 4  # columns beyond the rank, and power iterations


@dataclass(frozen=True)
class Extracted:
    """An adapter, and for each matrix the share of the difference D that it lacks: |D - B·A| / |D|, Frobenius norms."""

    adapter: Adapter
    residuals: Mapping[str, float]


def extract(base: Checkpoint, tuned: Checkpoint, rank: int) -> Extracted:
    """The best pair of `rank` for every matrix that differs; norms and biases that differ are kept whole.

    Small matrices by LAPACK's SVD; large ones by random projection with power iterations, arxiv.org/abs/0909.4061, the
    same at every call. Raises ConfigError for models of different shape, OptionError.
    """
    if rank < 1:
        raise OptionError(f"A rank is 1 or more; got {rank}.")
    check_alike([base, tuned])
    pairs: dict[str, Pair] = {}
    whole: dict[str, np.ndarray] = {}
    residuals: dict[str, float] = {}
    for name, shape in shapes(base.config).items():
        difference = wide(tuned.tensors[name]) - wide(base.tensors[name])
        if difference.any() and len(shape) == 2 and not name.endswith("_norm.weight"):
            pairs[name], residuals[name] = _low_rank(difference, rank)
        elif difference.any():
            whole[name] = wide(tuned.tensors[name])
    if base.config.tied and EMBEDDING in pairs:
        pairs[HEAD] = pairs[EMBEDDING]
    whole |= {name: wide(tuned.tensors[name]) for name in _companions(whole, base) - whole.keys()}
    return Extracted(Adapter(base.family, base.config, pairs, from_arrays(whole), str(base.path)), residuals)


def _companions(whole: Iterable[str], base: Checkpoint) -> set[str]:
    """What belongs to the same module, or lies in one tensor with it in some dialect, and is kept with it."""
    stems = {name.rsplit(".", 1)[0] for name in whole}
    norms = {f"{stem}.{kind}" for stem in stems if stem.endswith("norm") for kind in ("weight", "bias")}
    fused = {f"{stem[:-1]}{part}.bias" for stem in stems if stem.endswith(QKV) for part in "qkv"}
    return (norms | fused) & shapes(base.config).keys()


QKV = ("attn_q", "attn_k", "attn_v")


def _low_rank(difference: np.ndarray, rank: int) -> tuple[Pair, float]:
    rank = min(rank, *difference.shape)
    matrix = difference.astype(np.float32, copy=False)
    if min(matrix.shape) <= max(EXACT, rank + SPARE):
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    else:
        q = _range(matrix, rank + SPARE)
        small, s, vt = np.linalg.svd(q.T @ matrix, full_matrices=False)
        u = q @ small
    root = np.sqrt(s[:rank])
    pair = Pair(root[:, None] * vt[:rank], u[:, :rank] * root, 1.0)
    total = math.sqrt(float(np.sum(np.square(matrix, dtype=np.float64))))
    return pair, _rest(matrix, pair) / total


def _rest(matrix: np.ndarray, pair: Pair) -> float:
    """|D - B·A|, a few rows at a time."""
    cuts = (slice(at, at + 1024) for at in range(0, len(matrix), 1024))
    return math.sqrt(sum(float(np.sum(np.square(matrix[c] - pair.b[c] @ pair.a, dtype=np.float64))) for c in cuts))


def _range(matrix: np.ndarray, columns: int) -> np.ndarray:
    """Orthonormal columns that span nearly all of the matrix's largest directions."""
    start = np.random.default_rng(0).standard_normal((matrix.shape[1], columns), np.float32)
    q = np.linalg.qr(matrix @ start)[0]
    for _ in range(ROUNDS):
        q = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ q)[0])[0]
    return np.asarray(q)
