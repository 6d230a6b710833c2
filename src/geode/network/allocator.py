"""The C library's allocator, set for training on a CPU. What is computed is not known here.

glibc maps blocks above a threshold by themselves and unmaps them when they are freed: the system clears every page
anew, a fifth of a step. Kept in one heap they cost nothing but holes, since they are freed in another order than made.
Gemma 3 270M with LoRA, 4 × 512 tokens in bfloat16 (dev/LOG.md; peak, and seconds in the kernel of a step of 4 s):

    left alone                                2.7 GB    1 to 2 s
    threshold of 128 KB                       2.4 GB    5 s
    threshold of 128 KB, huge pages           2.3 GB    3 s
    one heap, huge pages                      2.9 GB    0.4 s      blocks aligned to 2 MB leave more holes
    one heap                                  2.7 GB    0.4 s
    one heap, its free pages given back       2.5 GB    0.5 s      once, after the first step: later ones grow less
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = -1
OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Settings of a user's who has an allocator, or one's behaviour, in mind."""


def prepare() -> bool:
    """All blocks come from one heap from now on, and what is freed stays in it.

    Whether it could be set: not in another C library, nor against what the environment says already.
    """
    if any(name in os.environ for name in OWN):
        return False
    library = _glibc()
    return library is not None and bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, NEVER))


def give_back() -> bool:
    """Free pages within the heap go back to the system; whether there were any."""
    library = _glibc()
    return library is not None and bool(library.malloc_trim(0))


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
