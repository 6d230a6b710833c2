"""The C library's allocator, told to give large freed blocks back to the system. What is computed is not known here.

glibc maps blocks above a threshold by themselves and unmaps them when they are freed; the others share a heap. It
raises the threshold by itself, up to 32 MB, so that all tensors of a training step come to lie in the heap. They are
freed in another order than made and leave holes that no later one fits: half as much again as what lived was held
so (benchmarks/tune_plan.py). With the threshold kept where it starts, a step has more page faults instead.
"""

from __future__ import annotations

import ctypes
import os
import sys

THRESHOLD = 1 << 17  # glibc's own before the first block is freed
M_MMAP_THRESHOLD = -3  # malloc.h


def give_back(threshold: int = THRESHOLD) -> bool:
    """Blocks of `threshold` bytes and more go back to the system when they are freed.

    Whether it could be set: not in another C library, nor against MALLOC_MMAP_THRESHOLD_ of the environment.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, threshold))
    except AttributeError:
        return False
