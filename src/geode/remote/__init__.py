"""Models behind an OpenAI-compatible server, near or far, as any other model."""

from .model import Remote
from .pace import Pace, Prices, Spending

__all__ = ["Pace", "Prices", "Remote", "Spending"]
