"""int8 and int4: matrices as the Keras executors keep them when asked for integers, and the way there and back.

    int8   q int8 (E, D)       scale float32 (E,)     w = scale[e] · q            -127 … 127
    int4   q uint8 (E, 16·G)   scale float16 (E, G)   w = scale[e, g] · (q - 8)      0 … 15, groups of 32 columns

           byte 16·g + j of a row  =  q[32·g + j] | q[32·g + 16 + j] << 4

int8 is symmetric and has one scale an output row, scale = max|w| / 127 and q = round(w / scale), halves to even:
`keras.quantizers.abs_max_quantize(w, axis=-1, to_numpy=True)` without its epsilon. torchao's Int8WeightOnlyConfig has a
scale a row too (max / 127.5). int4 is ggml's Q4_0, its bytes and its scales in two arrays: the number farthest from
zero gets q = 0, so all 16 levels are used, and a Q4_0 file comes through with every number unchanged. Rows that are no
whole number of groups are filled up with zeros.

Frameworks and layers are not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from .config import Config
from .errors import OptionError, TensorError
from .quant import QTensor, quantize, to_float32
from .tensors import Array, shapes

KINDS = ("int8", "int4")
GROUP = 32  # columns that share one scale in int4
BLOCK = 18  # bytes of one such group in a file: scale, then nibbles
PIECE = 1 << 20  # numbers that are float32 at a time


def plan(config: Config, kind: str) -> dict[str, str]:
    """Canonical names of all matrices to what they are kept as: embedding and head int8, the others `kind`.

    Raises OptionError for a kind that is neither.
    """
    if kind not in KINDS:
        raise OptionError(f"{kind!r} is no way to keep integers here; there are {', '.join(KINDS)}.")
    return {
        name: "int8" if name in ("token_embd.weight", "output.weight") else kind
        for name in shapes(config)
        if name.endswith(".weight") and "norm" not in name
    }


def weight_bytes(config: Config, kind: str, itemsize: int) -> int:
    """Bytes of all weights with matrices as `plan` has them and the rest at `itemsize` a number."""
    kinds = plan(config, kind)
    return sum(_nbytes(shape, kinds.get(name), itemsize) for name, shape in shapes(config).items())


def _nbytes(shape: tuple[int, ...], kind: str | None, itemsize: int) -> int:
    if kind is None:
        return math.prod(shape) * itemsize
    rows, columns = shape
    return rows * (columns + 4) if kind == "int8" else rows * groups(columns) * BLOCK


def groups(columns: int) -> int:
    """How many scales a row of int4 has."""
    return -(-columns // GROUP)


def to_int8(array: Array) -> tuple[np.ndarray, np.ndarray]:
    """A matrix (E, D), packed or not, as q int8 (E, D) and scale float32 (E,). Off by scale / 2 at most.

    Besides the result, a few MB are in use at a time. Raises TensorError for numbers that are not finite.
    """
    q, scale = np.empty(array.shape, np.int8), np.empty(array.shape[0], np.float32)
    for rows, numbers in _pieces(array):
        largest = np.abs(numbers).max(axis=1)
        if not np.isfinite(largest).all():
            raise TensorError(
                "Only finite numbers can be kept as int8; the tensor holds infinities or NaNs. Mend the checkpoint."
            )
        scale[rows] = largest / np.float32(127)
        divisor = np.where(scale[rows] > 0, scale[rows], np.float32(1))[:, None]
        q[rows] = np.clip(np.rint(numbers / divisor), -127, 127)
    return q, scale


def from_int8(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The numbers: float32 (E, D)."""
    numbers: np.ndarray = q.astype(np.float32) * scale[:, None]
    return numbers


def to_int4(array: Array) -> tuple[np.ndarray, np.ndarray]:
    """A matrix (E, D), packed or not, as q uint8 (E, 16·G) and scale float16 (E, G).

    Off by |scale| / 2 at most (a group's other end by |scale|), and by half precision's rounding of the scale; a Q4_0
    tensor comes through unchanged. Raises TensorError for numbers that are not finite or too large for half precision.
    """
    rows, count = array.shape[0], groups(array.shape[1])
    q, scale = np.empty((rows, count, GROUP // 2), np.uint8), np.empty((rows, count), np.float16)
    for at, data in _blocks(array):
        blocks = data.reshape(-1, count, BLOCK)
        q[at] = blocks[:, :, 2:]
        scale[at] = np.ascontiguousarray(blocks[:, :, :2]).view("<f2")[:, :, 0]
    return q.reshape(rows, -1), scale


def from_int4(q: np.ndarray, scale: np.ndarray, columns: int) -> np.ndarray:
    """The numbers: float32 (E, columns)."""
    grouped = q.reshape(*scale.shape, GROUP // 2)
    fields = np.concatenate([grouped & 15, grouped >> 4], axis=-1).astype(np.float32) - 8
    return (fields * scale.astype(np.float32)[:, :, None]).reshape(len(q), -1)[:, :columns]


def _blocks(array: Array) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows as bytes of Q4_0, some at a time."""
    if isinstance(array, QTensor) and array.type == "Q4_0":
        yield slice(None), array.data
        return
    padding = ((0, 0), (0, -array.shape[1] % GROUP))
    for rows, numbers in _pieces(array):
        yield rows, quantize(np.pad(numbers, padding), "Q4_0").data


def _pieces(array: Array) -> Iterator[tuple[slice, np.ndarray]]:
    """Some whole rows at a time, as float32."""
    step = max(1, PIECE // array.shape[1])
    for start in range(0, array.shape[0], step):
        rows = slice(start, start + step)
        yield rows, to_float32(array.rows(rows) if isinstance(array, QTensor) else array[rows])
