"""The compiled part, imported when it is needed, and the errors that say why it cannot be used.

GEODE_ISA      an instruction set instead of the fastest that this CPU has
"""

from __future__ import annotations

import os
from importlib import import_module, util
from typing import Any

from ..errors import BackendError, OptionError


def is_there() -> bool:
    """Whether the extension was built."""
    return util.find_spec(f"{__package__}._native") is not None


def module() -> Any:
    """The extension. Raises BackendError where it was not built."""
    try:
        return import_module(f"{__package__}._native")
    except ImportError as problem:
        raise BackendError(
            f"Geode's native engine was not built ({problem}). Install a C++ compiler (Debian: apt-get install g++) "
            "and reinstall with `pip install .`, or run on torch, jax or tensorflow with --on."
        ) from None


def isa() -> str:
    """The instruction set to use: GEODE_ISA's, else the fastest here. Raises BackendError."""
    here = module().isas()
    asked = os.environ.get("GEODE_ISA", "")
    if asked and asked not in here:
        raise BackendError(
            f"GEODE_ISA asks for {asked!r}, which this CPU or system does not have; it has {', '.join(here)}. "
            "Choose one of these, or unset GEODE_ISA."
        )
    return str(asked or here[0])


def threads(count: int | None) -> int:
    """How many threads: `count`, else the physical cores that this process may use. Raises OptionError."""
    cores = int(module().usable_cores())
    if count is None:
        return cores
    most = max(8, 4 * (os.cpu_count() or 1))
    if not 1 <= count <= most:
        raise OptionError(
            f"threads must be from 1 to {most} on this machine; {count} was given. "
            f"It has {cores} cores to compute on, and more threads than cores only wait for each other."
        )
    return count
