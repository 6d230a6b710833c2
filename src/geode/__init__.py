"""Geode opens language models: run, tune, judge and ship open weights.

Importing this loads nothing; each name below is fetched from its room when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config
    from .conversion import convert
    from .errors import GeodeError
    from .generate import Options, Piece, Usage
    from .lm import LM, Fake, Local
    from .lm import open as load
    from .remote import Remote
    from .results import Result, Score

__version__ = "0.1.0"

__all__ = [
    "LM",
    "Config",
    "Fake",
    "GeodeError",
    "Local",
    "Options",
    "Piece",
    "Remote",
    "Result",
    "Score",
    "Usage",
    "__version__",
    "convert",
    "load",
]

_ROOMS = {
    "config": {"Config"},
    "conversion": {"convert"},
    "errors": {"GeodeError"},
    "generate": {"Options", "Piece", "Usage"},
    "lm": {"LM", "Fake", "Local", "load"},
    "remote": {"Remote"},
    "results": {"Result", "Score"},
}


def __getattr__(name: str) -> Any:
    room = next((room for room, names in _ROOMS.items() if name in names), None)
    if room is None:
        raise AttributeError(f"module 'geode' has no attribute {name!r}")
    found = getattr(import_module(f".{room}", __name__), "open" if name == "load" else name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
