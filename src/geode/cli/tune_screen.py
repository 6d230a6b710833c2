"""A tuning run on the terminal: one line that is drawn anew; elsewhere lines, of which there are never many.

How a run goes on is not known here.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from ..io.progress import clock_time, size
from ..tune.events import Evaluation, Finished, Sample, Saved, Started, Step
from . import screen

REDRAW_SECONDS = 0.1  # on a terminal
LINE_SECONDS = 5.0  # elsewhere; the first and the last step are always told
RECENT = 20  # steps that the speed is the mean of
BAR = 24  # columns of the bar, where the line leaves as many


class Screen:
    """Shows what a run tells on `out` (stderr). A terminal that is gone is told nothing more."""

    name = "The progress on the screen"

    def __init__(self, quiet: bool = False, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self.quiet = quiet
        self._out = out or sys.stderr
        self._clock = clock
        self._terminal = self._out.isatty()
        self._drawn = float("-inf")
        self._width = 0  # of the line that stands there
        self._recent: deque[Step] = deque(maxlen=RECENT)
        self._mark: tuple[int, float] | None = None  # a step of this process and when it was done
        self._valid: Evaluation | None = None

    def note(self, text: str) -> None:
        """A remark, a line each."""
        for line in text.splitlines():
            self._say(line)

    def started(self, event: Started) -> None:
        share = f" ({event.trained / event.parameters:.2%} of {event.parameters:,})" if event.parameters else ""
        parts = [event.backend, f"{event.trained:,} numbers trained{share}" if event.trained else ""]
        steps = f"{event.steps:,} steps" + (f", {event.step:,} of them done before" if event.step else "")
        self._say(f"{'; '.join(filter(None, [*parts, steps]))}.")

    def step(self, event: Step) -> None:
        now = self._clock()
        if self._mark is None:
            self._mark = (event.step, now)  # the first step also compiles: it says nothing of those to come
        else:
            self._recent.append(event)
        first_or_last = self._mark[0] == event.step or event.step == event.steps
        if first_or_last or now - self._drawn >= (REDRAW_SECONDS if self._terminal else LINE_SECONDS):
            self._drawn = now
            self._show(self.line(event, now))

    def evaluated(self, event: Evaluation) -> None:
        self._valid = event
        further = "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in event.metrics.items())
        before = "Before the first step" if event.step == 0 else f"Step {event.step:,}"
        best = ", the best so far" if event.best and event.step else ""
        self._say(f"{before}: validation loss {event.loss:.4f} over {event.tokens:,} tokens{further}{best}.")

    def sampled(self, event: Sample) -> None:
        for sign, text in ((">", event.prompt), ("|", event.text)):
            for line in screen.harmless(text).splitlines() or [""]:
                self._say(f"  {sign} {line}".rstrip())

    def saved(self, event: Saved) -> None:
        self._say(f"Step {event.step:,}: saved as {event.path}.")

    def finished(self, event: Finished) -> None:
        best = f" Best validation loss {event.best.loss:.4f}, at step {event.best.step:,}." if event.best else ""
        text = ENDS[event.reason].format(step=f"{event.step:,}")
        message = f": {event.message.rstrip('.')}" if event.message else ""
        self._say(f"{text} after {clock_time(event.seconds)}{message}.{best}")

    def line(self, event: Step, now: float) -> str:
        """The step in one line; on a terminal with a bar where it has room."""
        parts = [
            f"step {event.step:,}/{event.steps:,}",
            f"epoch {event.epoch:.2f}",
            f"loss {event.loss:.4f}",
            f"validation {self._valid.loss:.4f}" if self._valid else "",
            self._speed(),
            size(event.memory) if event.memory else "",
            self._left(event, now),
        ]
        text = "  ".join(filter(None, parts))
        room = shutil.get_terminal_size().columns - 1 - len(text) - 4
        if not self._terminal or room < BAR // 2:
            return text
        columns = min(room, BAR)
        full = round(columns * event.step / max(event.steps, 1))
        return f"[{'#' * full}{'-' * (columns - full)}]  {text}"

    def _speed(self) -> str:
        seconds = sum(step.seconds for step in self._recent)
        return f"{sum(step.tokens for step in self._recent) / seconds:,.0f} tokens/s" if seconds > 0 else ""

    def _left(self, event: Step, now: float) -> str:
        """By the clock since the first step, so that evaluations and saving count."""
        first, then = self._mark or (event.step, now)
        if event.step <= first or event.step >= event.steps:
            return ""
        return f"{clock_time((now - then) / (event.step - first) * (event.steps - event.step))} left"

    def _show(self, text: str) -> None:
        """Draws the line that changes; elsewhere a line of its own."""
        if self.quiet:
            return
        if not self._terminal:
            print(text, file=self._out, flush=True)
            return
        text = text[: shutil.get_terminal_size().columns - 1]
        print("\r" + text.ljust(self._width), end="", file=self._out, flush=True)
        self._width = len(text)

    def _say(self, text: str) -> None:
        """A line that stays, above the one that changes."""
        if self.quiet:
            return
        erased = "\r" + " " * self._width + "\r" if self._width else ""
        self._width = 0
        self._drawn = float("-inf")
        print(erased + screen.paragraph(text, self._out), file=self._out, flush=True)


ENDS = {
    "done": "All {step} steps done",
    "early": "Ended early at step {step}, as the validation loss went down no more,",
    "interrupted": "Interrupted at step {step}",
    "failed": "Failed at step {step}",
}
