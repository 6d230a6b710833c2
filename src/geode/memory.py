"""How much memory this process may still take. Reads what the system tells; measures nothing."""

from __future__ import annotations

import os
from pathlib import Path


def available(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take, by the machine and by its cgroups; None where the system does not say."""
    limits = [
        _machine_memory(root),
        _cgroup_memory(root / "sys/fs/cgroup"),
        _cgroup_memory(root / "sys/fs/cgroup/memory"),
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def _machine_memory(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS tells what is there, not what is free
    except (AttributeError, ValueError, OSError):
        return None


def _cgroup_memory(group: Path) -> int | None:
    """Limit less use, version 2 or 1; pages of files count as free, since the kernel drops them when asked."""
    for limit, used, file in (
        ("memory.max", "memory.current", "file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
    ):
        try:
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            free = int((group / limit).read_text()) - int((group / used).read_text()) + int(stat.get(file, 0))
            return max(free, 0)
        except (OSError, ValueError):  # "max" is no number: no limit
            continue
    return None
