"""The learning rate of each step.

Plain numbers; what a step is made of is not known here.
"""

from __future__ import annotations

import math

from ..errors import OptionError
from .recipe import Optim

__all__ = ["rate", "warmup_steps"]


def rate(optim: Optim, step: int, steps: int) -> float:
    """The learning rate of `step`, from 0, of `steps`: up from 0 in a straight line, then down to lr · final.

    The same as transformers' get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup and
    get_constant_schedule_with_warmup; lr · final is what a step after the last would have. "constant" knows no final.

    Raises OptionError where nobody has chosen a learning rate yet.
    """
    if optim.lr is None:
        raise OptionError("optim.lr is not set, and no method has put its own in its place; set optim.lr.")
    warm = warmup_steps(optim, steps)
    if step < warm:
        return optim.lr * step / warm
    if optim.schedule == "constant":
        return optim.lr
    done = min(1.0, (step - warm) / max(1, steps - warm))
    left = (1 + math.cos(math.pi * done)) / 2 if optim.schedule == "cosine" else 1 - done
    return optim.lr * (optim.final + (1 - optim.final) * left)


def warmup_steps(optim: Optim, steps: int) -> int:
    """Steps until the highest rate: the share of all, rounded up as transformers does."""
    return math.ceil(optim.warmup * steps)
