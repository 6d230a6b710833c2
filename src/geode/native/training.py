"""The extension's passes for a training step: activations in bfloat16 or float32, between the matrix products.

Tensors are given by the addresses of their first numbers, contiguous; no framework is known here.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from . import extension

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}  # csrc/kernels.h `Activation`


@functools.cache
def passes(threads: int, is_bfloat16: bool) -> Any:
    """csrc/bind.cpp's `Passes` for tensors of bfloat16 or float32. Raises BackendError without the extension."""
    return extension.module().Passes(extension.isa(), threads, _openmp(), is_bfloat16)


@functools.cache
def are_there() -> bool:
    """Whether the extension was built, and has these passes."""
    return extension.is_there() and hasattr(extension.module(), "Passes")


def _openmp() -> int:
    """The address of GOMP_parallel where this process has it: the framework's threads, which spin between operations
    and would fight others for the cores. Else 0: threads of the extension's own."""
    try:
        start = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # no such function; Windows has no list of all that is loaded
        return 0
    return ctypes.cast(start, ctypes.c_void_p).value or 0
