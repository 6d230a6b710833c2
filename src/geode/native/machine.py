"""What this machine can do at most, measured: the bars that a benchmark's figures are held against."""

from __future__ import annotations

from . import extension


def bandwidth(threads: int | None = None) -> float:
    """Bytes per second that so many threads read from memory together. Takes about a fifth of a second."""
    return float(extension.module().read_bandwidth(extension.threads(threads), extension.isa()))


def peak(threads: int | None = None, type: str = "Q8_0") -> float:
    """Multiplications and additions per second of products with weights of `type`, data in the nearest caches."""
    return float(extension.module().peak_flops(extension.threads(threads), extension.isa(), type))
