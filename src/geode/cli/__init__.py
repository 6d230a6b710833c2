"""The command `geode`, one small file a verb."""

from .app import main

__all__ = ["main"]
