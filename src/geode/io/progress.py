"""A progress bar with speed and rest time: a bar on a terminal, a line every ten seconds elsewhere.

What is being counted, beyond that it is bytes, is not known here.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

REDRAW_SECONDS = 0.1  # on a terminal
LINE_SECONDS = 10.0  # elsewhere
SPEED_SECONDS = 8.0  # the speed shown is the mean of so long
PACE_SECONDS = 0.2  # and nobody knows it sooner


class Progress:
    """Counts bytes up to `total`. `done` bytes were there before and do not count for the speed."""

    def __init__(
        self,
        label: str,
        total: int,
        done: int = 0,
        quiet: bool = False,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.label, self.total, self.done, self.quiet = label, total, done, quiet
        self._out = out or sys.stderr
        self._clock = clock
        self._terminal = self._out.isatty()
        self._drawn = clock() if not self._terminal else float("-inf")
        self._marks = deque([(clock(), done)])

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, count: int) -> None:
        """`count` more bytes are there (fewer, where a download starts again)."""
        self.done += count
        now = self._clock()
        if now - self._drawn >= (REDRAW_SECONDS if self._terminal else LINE_SECONDS):
            self._draw(now)

    def close(self) -> None:
        """Draws the last state; on a terminal, ends the line."""
        if self._terminal or self.done == self.total:
            self._draw(self._clock())
        if self._terminal and not self.quiet:
            print(file=self._out, flush=True)

    def line(self, width: int) -> str:
        """The bar as text of at most `width` columns."""
        share = min(self.done / self.total, 1.0) if self.total else 1.0
        left = f"{self.label} {share:4.0%} "
        right = f" {size(self.done)} of {size(self.total)}{self._pace()}"
        room = width - len(left) - len(right) - 2
        if room < 8:
            return (left + right.lstrip())[:width]
        full = round(share * room)
        return f"{left}[{'#' * full}{'-' * (room - full)}]{right}"

    def _pace(self) -> str:
        (then, before), (now, here) = self._marks[0], self._marks[-1]
        if now - then < PACE_SECONDS or here <= before:
            return ""
        speed = (here - before) / (now - then)
        rest = "" if self.done >= self.total else f", {clock_time((self.total - self.done) / speed)} left"
        return f", {size(speed)}/s{rest}"

    def _draw(self, now: float) -> None:
        self._drawn = now
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[0][0] > SPEED_SECONDS:
            self._marks.popleft()
        if self.quiet:
            return
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + self.line(width).ljust(width), end="", file=self._out, flush=True)
        else:
            print(self.line(100), file=self._out, flush=True)


def size(count: float) -> str:
    """Bytes for people, in powers of ten: 253113024 is "253.1 MB"."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def clock_time(seconds: float) -> str:
    """Seconds for people: 75 is "1:15", 3675 is "1:01:15"."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
