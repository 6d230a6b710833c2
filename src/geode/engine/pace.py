"""How much of prompts one step may take while others wait for their next token. Requests are not known here.

A chunk of a prompt holds up everybody who is being continued. The longer the chunk the fewer the steps, and the longer
the time between two tokens of the others; what a token costs on this machine is learnt while it runs.
"""

from __future__ import annotations

BETWEEN = 0.03  # seconds that a step with prompts in it should take at most: people read slower than that
LEAST = 16  # tokens that are always allowed; steps of fewer say little of what one costs
SHARE = 0.2  # of what the last step said


class Pace:
    """Seconds that a token of a step takes, as it was lately; `most` are the tokens that fit into BETWEEN."""

    def __init__(self, between: float = BETWEEN):
        self.most = 4 * LEAST
        self._between = between
        self._seconds: float | None = None

    def beside(self, tokens: int) -> int:
        """Tokens of prompts that a step takes beside those of texts that are being continued."""
        return max(LEAST, self.most - tokens)

    def ran(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        if tokens < LEAST:
            return
        each = seconds / tokens
        self._seconds = each if self._seconds is None else self._seconds + SHARE * (each - self._seconds)
        self.most = max(LEAST, int(self._between / self._seconds))
