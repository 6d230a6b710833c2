"""Rows of floats times a matrix of int8 in integer arithmetic, where a CPU is faster at that than at making floats.

    x  ≈  unit · (65536·a + 256·b + c)         a, b, c: int8, `unit` the row's largest number / 8257536

Three bytes keep each number of x to 2⁻²³ of its row's largest, about as float32 does, and the products are exact. Which
processor is good at this is not known here.

Shape letters: M rows of x, D columns, E rows of the matrix.
"""

from __future__ import annotations

import math

import numpy as np
from keras import ops

from . import backend
from .backend import Tensor

LIMIT = 126 << 16  # what the largest number becomes: with 2^23 added for the signs of the bytes it stays below 2^24
ZERO = 0x808080  # so that every byte is 128 more than its digit
SHIFTS = np.array([16, 8, 0], np.int32)[:, None, None]


def product(x: Tensor, q_ED: Tensor) -> Tensor | None:
    """x (..., D) · qᵀ -> float32 (..., E); None where floats are the better way."""
    lead, (e, d) = tuple(x.shape[:-1]), q_ED.shape
    m = math.prod(lead)
    if m > backend.FEW or not backend.multiplies_integers(x):
        return None
    x_MD = backend.cast(ops.reshape(x, (m, d)), "float32")
    unit_M1 = ops.max(abs(x_MD), axis=-1, keepdims=True) / LIMIT + 1e-37
    fixed_MD = backend.cast(x_MD / unit_M1, "int32") + ZERO
    digits = backend.cast(((fixed_MD >> ops.convert_to_tensor(SHIFTS)) & 255) - 128, "int8")  # (3, M, D)
    products = backend.integer_product(digits.reshape(3 * m, d), q_ED)
    a, b, c = products[:m], products[m : 2 * m], products[2 * m :]
    return ((a * 65536.0 + b * 256.0 + c) * unit_M1).reshape(*lead, e)  # XLA takes ten times as long over a `sum`
