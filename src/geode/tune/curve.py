"""loss.svg: a run's losses over its steps, the learning rate small below; one file that is readable on light and dark.

Where the events come from is not known here.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TypeVar

from .events import Evaluation, Event, Finished, Started, Step
from .progress import Silent

__all__ = ["NAME", "Picture", "draw"]

NAME = "loss.svg"
WIDTH, HEIGHT = 800, 470
LEFT, RIGHT = 64, 772  # of both panels
LOSS = (64, 330)  # top and bottom of the large panel
RATE = (362, 420)  # and of the small one
FOOT = 458  # the line of the legend
LETTER = 6.4  # pixels of an average one
POINTS = 1500  # of the training loss that are drawn; a longer run is thinned
BENDS = 400  # of the smoothed line
SHARE = 0.02  # of the steps, to each side, that the smoothed line is the mean over
STRAYS = 0.02  # of the training losses may lie far above the others, and are marked at the panel's edge

Point = tuple[float, float]
T = TypeVar("T")


class Picture(Silent):
    """Draws the file anew at each evaluation and at the end, from the events that `source` gives."""

    def __init__(self, path: Path, source: Callable[[], Iterable[Event]], title: str = ""):
        self.path = path
        self.name = path.name
        self._source = source
        self._title = title

    def evaluated(self, event: Evaluation) -> None:
        """Raises OSError, and what the source raises."""
        self._draw()

    def finished(self, event: Finished) -> None:
        self._draw()

    def _draw(self) -> None:
        beside = self.path.with_name(f"{self.path.name}.part")
        beside.write_text(draw(self._source(), self._title), encoding="utf-8")
        os.replace(beside, self.path)


def draw(events: Iterable[Event], title: str = "") -> str:
    """The picture as SVG. Of a step or an evaluation that comes twice (a resumed run), the later one counts."""
    run = _gathered(events)
    if not title and run.model:
        title = f"Tuning {run.model}"
    span = _span(run)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="13"',
        ' font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n',
        f"<title>{escape(title or 'Loss')}</title>\n<desc>{escape(_told(run))}</desc>\n{STYLE}",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>\n',
        f'<text x="{LEFT}" y="24" font-size="16" font-weight="600">{escape(title or "Loss")}</text>\n',
        *_losses(run, span),
        *_rates(run, span),
        "</svg>\n",
    ]
    return "".join(parts)


@dataclass(frozen=True)
class _Run:
    model: str
    unit: str  # of the losses
    steps: Sequence[Step]  # with a finite loss
    measured: Sequence[Evaluation]
    total: int


def _gathered(events: Iterable[Event]) -> _Run:
    steps: dict[int, Step] = {}
    measured: dict[int, Evaluation] = {}
    model, unit, total = "", "", 0
    for event in events:
        match event:
            case Started():
                model, total = Path(event.recipe.model).name, event.steps
                unit = ", nats a token" if event.recipe.objective.name == "sft" else ""
            case Step() if math.isfinite(event.loss):
                steps[event.step] = event
                total = event.steps
            case Evaluation() if math.isfinite(event.loss):
                measured[event.step] = event
    ordered = [steps[i] for i in sorted(steps)]
    return _Run(model, unit, ordered, [measured[i] for i in sorted(measured)], total)


def _told(run: _Run) -> str:
    """The picture in a sentence, for those who do not see it."""
    if not run.steps:
        return "No step is done yet."
    text = f"Training loss from {run.steps[0].loss:.3f} to {run.steps[-1].loss:.3f} over {run.steps[-1].step:,} steps"
    if run.measured:
        best = min(run.measured, key=lambda one: one.loss)
        text += f"; validation loss at best {best.loss:.3f}, at step {best.step:,}"
    return text + "."


# Scales


@dataclass(frozen=True)
class _Scale:
    """Values from `low` to `high` lie on pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, count: int, whole: bool = False) -> list[float]:
        """About `count` round numbers between the ends."""
        step = _round_step((self.high - self.low) / count)
        step = max(1.0, step) if whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(least: float) -> float:
    """The next of 1, 2, 5, 10, 20 ..."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= least * 0.999)


def _widened(values: Sequence[float], start: float, end: float) -> _Scale:
    """A scale whose ends are round numbers around the values."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(abs(high), 1e-12):
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    step = _round_step((high - low) / 5) / 2
    return _Scale(math.floor(low / step) * step, math.ceil(high / step) * step, start, end)


def _span(run: _Run) -> _Scale:
    return _Scale(0, max(run.total, run.steps[-1].step if run.steps else 1, 1), LEFT, RIGHT)


# Panels


def _losses(run: _Run, x: _Scale) -> list[str]:
    smooth, around = _smoothed(run.steps)
    measured = [(float(one.step), one.loss) for one in run.measured]
    high = max([_usual([step.loss for step in run.steps]), *(loss for _, loss in measured)])
    shown = [*(loss for _, loss in measured), *(step.loss for step in run.steps if step.loss <= high)]
    if not shown:
        return [*_frame(LOSS, x), _label((LEFT + RIGHT) / 2, sum(LOSS) / 2, "nothing measured yet", "middle")]
    y = _widened(shown, LOSS[1], LOSS[0])
    return [
        *_axis_y(y, y.ticks(5)),
        *_epochs(run, x),
        *_frame(LOSS, x),
        _label(LEFT, LOSS[0] - 8, f"loss{run.unit}"),
        *_dots(run.steps, x, y),
        _line(smooth, x, y, "train"),
        _line(measured, x, y, "valid"),
        *_marks(run.measured, x, y),
        *_legend(run, around),
    ]


def _rates(run: _Run, x: _Scale) -> list[str]:
    """The learning rate, and below it the axis of steps that both panels share."""
    high = max((step.lr for step in run.steps), default=0.0)
    y = _Scale(0.0, high or 1.0, RATE[1], RATE[0] + 6)
    every = max(1, len(run.steps) // BENDS)
    rates = [(float(step.step), step.lr) for step in _thinned(run.steps, every)]
    parts = [*(_axis_y(y, [0.0, high]) if high else []), *_frame(RATE, x)]
    parts += [_label(LEFT, RATE[0] - 8, "learning rate"), _line(rates, x, y, "rate")]
    for tick in x.ticks(8, whole=True):
        parts.append(_label(x(tick), RATE[1] + 18, f"{tick:,.0f}", "middle"))
    return [*parts, _label(RIGHT, FOOT, "step", "end")]


def _smoothed(steps: Sequence[Step]) -> tuple[list[Point], int]:
    """Means over learnt tokens of the steps around each, and how many steps to each side these are."""
    around = max(1, round(len(steps) * SHARE)) if len(steps) > 4 else 0
    weights = [max(step.learnt, 1) for step in steps]
    sums = [0.0, *itertools.accumulate(step.loss * w for step, w in zip(steps, weights, strict=True))]
    counts = [0, *itertools.accumulate(weights)]
    points = []
    for i in range(len(steps)):
        first, last = max(i - around, 0), min(i + around + 1, len(steps))
        points.append((float(steps[i].step), (sums[last] - sums[first]) / (counts[last] - counts[first])))
    return list(_thinned(points, max(1, len(points) // BENDS))), around


def _thinned(items: Sequence[T], every: int) -> Sequence[T]:
    """Each `every`th, and the last."""
    return [*items[:-1:every], *items[-1:]]


def _usual(losses: Sequence[float]) -> float:
    """The highest loss that is no spike: a few spikes would press the rest flat."""
    if not losses:
        return -math.inf
    ordered = sorted(losses)
    most = ordered[int((len(ordered) - 1) * (1 - STRAYS))]
    return max(loss for loss in ordered if loss <= most + (most - ordered[0]) / 2)


# Marks


def _dots(steps: Sequence[Step], x: _Scale, y: _Scale) -> list[str]:
    """A dot for each loss; what lies above the panel is a triangle at its edge."""

    def places(some: Iterable[Step]) -> list[str]:
        return [f"M{x(step.step):.1f} {y(step.loss):.1f}" for step in some]

    usual = [step for step in steps if step.loss <= y.high]
    path = places(_thinned(usual, max(1, len(usual) // POINTS)))
    strays = places(step for step in steps if step.loss > y.high)
    width = 3.2 if len(path) > 200 else 5
    dots = f'<path class="dot" stroke-width="{width}" d="{"".join(f"{at}h0" for at in path)}"/>\n'
    return [dots, *([f'<path class="stray" d="{"".join(f"{at}l-4 7h8z" for at in strays)}"/>\n'] if strays else [])]


def _line(points: Sequence[Point], x: _Scale, y: _Scale, kind: str) -> str:
    if len(points) < 2:
        return ""
    corners = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    return f'<polyline class="{kind}" points="{corners}"/>\n'


def _marks(measured: Sequence[Evaluation], x: _Scale, y: _Scale) -> list[str]:
    """A dot for each evaluation, a ring and the number at the best one."""
    if not measured:
        return []
    parts = [
        f'<circle class="mark" cx="{x(one.step):.1f}" cy="{y(one.loss):.1f}" r="2.5"/>\n'
        for one in _thinned(measured, max(1, len(measured) // 100))
    ]
    best = min(measured, key=lambda one: one.loss)
    at = (x(best.step), y(best.loss))
    parts.append(f'<circle class="best" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="6"/>\n')
    aside = -14 if at[1] > LOSS[0] + 30 else 22
    anchor = "end" if at[0] > RIGHT - 60 else "middle" if at[0] > LEFT + 60 else "start"
    return [*parts, _label(at[0], at[1] + aside, f"{best.loss:.3f}", anchor, "value")]


def _epochs(run: _Run, x: _Scale) -> list[str]:
    """A line where each epoch ends, where these are few."""
    ends = [
        (int(after.epoch + 1e-9), before.step)
        for before, after in itertools.pairwise(run.steps)
        if int(after.epoch + 1e-9) > int(before.epoch + 1e-9) and after is not run.steps[-1]
    ]
    if len(ends) > 8:
        return []
    return [
        f'<path class="grid" d="M{x(step):.1f} {LOSS[0]}V{LOSS[1]}"/>\n'
        + _label(x(step), LOSS[0] - 8, f"epoch {epoch + 1}", "middle", "faint")
        for epoch, step in ends
        if x(step) > LEFT + 150
    ]


def _legend(run: _Run, around: int) -> list[str]:
    entries = [('<circle class="key" r="3"/>', "training")]
    if around:
        entries.append(('<path class="train" d="M-9 0H9"/>', f"mean of {2 * around + 1} steps"))
    if run.measured:
        entries.append(('<path class="valid" d="M-9 0H9"/>', "validation, best ringed"))
    parts, left = [], float(LEFT)
    for sign, text in entries:
        parts.append(f'<g transform="translate({left + 9:.0f} {FOOT - 4.5})">{sign}</g>\n')
        parts.append(_label(left + 26, FOOT, text))
        left += 26 + LETTER * len(text) + 24
    return parts


def _axis_y(y: _Scale, ticks: Iterable[float]) -> list[str]:
    ticks = list(ticks)
    texts = _numbers(ticks)
    return [
        f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{RIGHT}"/>\n' + _label(LEFT - 8, y(tick) + 4.5, text, "end")
        for tick, text in zip(ticks, texts, strict=True)
    ]


def _numbers(ticks: Sequence[float]) -> list[str]:
    """All with as many digits as tell them apart; small ones as powers of ten."""
    largest = max(map(abs, ticks), default=0.0)
    if largest and largest < 0.01:
        return [_small(tick) for tick in ticks]
    gap = min((b - a for a, b in itertools.pairwise(ticks)), default=1.0)
    digits = max(0, -math.floor(math.log10(gap) + 1e-9))
    return [f"{tick:,.{digits}f}" for tick in ticks]


def _small(value: float) -> str:
    """0.0002 is "2e-4"."""
    digits, power = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(power)}" if value else "0"


def _frame(panel: tuple[int, int], x: _Scale) -> list[str]:
    return [f'<path class="frame" d="M{LEFT} {panel[0]}V{panel[1]}H{RIGHT}"/>\n']


def _label(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>\n'


# The paper has a colour of its own: a page that shows the file in another scheme than the reader's stays readable.
STYLE = """<style>
.paper { fill: #ffffff } text { fill: #3c4149 } .faint { fill: #7d848e }
.grid { stroke: #e4e7eb; fill: none } .frame { stroke: #9aa1ab; fill: none }
.dot { stroke: #7aa7dc; stroke-linecap: round; opacity: .5 }
.key { fill: #7aa7dc } .stray { fill: #7aa7dc }
.train { stroke: #1f62b5; stroke-width: 2.2; fill: none; stroke-linejoin: round }
.valid { stroke: #d1601b; stroke-width: 2; fill: none; stroke-linejoin: round }
.mark { fill: #d1601b } .best { stroke: #d1601b; stroke-width: 1.6; fill: none }
.value { fill: #b14f12; font-weight: 600; paint-order: stroke; stroke: #ffffff; stroke-width: 4px }
.rate { stroke: #6b7480; stroke-width: 1.6; fill: none }
@media (prefers-color-scheme: dark) {
.paper { fill: #15181d } text { fill: #c9d0d9 } .faint { fill: #8b949e }
.grid { stroke: #2a2f37 } .frame { stroke: #5a626d }
.dot { stroke: #4f86c6; opacity: .55 } .key, .stray { fill: #4f86c6 }
.train { stroke: #7db4f5 } .valid { stroke: #f59a5b } .mark { fill: #f59a5b }
.best { stroke: #f59a5b } .value { fill: #ffb27d; stroke: #15181d }
.rate { stroke: #98a2ae }
}
</style>
"""
