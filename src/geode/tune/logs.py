"""log.jsonl: every event of a run as one line of JSON, in order, without steps that a resumed run takes again.

What is made of the events (pictures, cards) is not known here.
"""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError
from . import recipe
from .events import Evaluation, Event, Finished, Sample, Saved, Started, Step

__all__ = ["NAME", "Log", "cut", "read"]

NAME = "log.jsonl"
KINDS: dict[str, type] = {
    "started": Started,
    "step": Step,
    "evaluation": Evaluation,
    "sample": Sample,
    "saved": Saved,
    "finished": Finished,
}
KIND_OF = {cls: kind for kind, cls in KINDS.items()}


class Log:
    """Appends each event to the file. A kill costs at most the line that was being written; `saved` syncs the disk."""

    def __init__(self, path: Path, clock: Callable[[], datetime.datetime] | None = None):
        self.path = path
        self.name = path.name
        self._clock = clock or (lambda: datetime.datetime.now(datetime.UTC))

    def started(self, event: Started) -> None:
        """Raises OSError, as every method here."""
        cut(self.path, event.step)
        self._append(event)

    def step(self, event: Step) -> None:
        self._append(event)

    def evaluated(self, event: Evaluation) -> None:
        self._append(event)

    def sampled(self, event: Sample) -> None:
        self._append(event)

    def saved(self, event: Saved) -> None:
        self._append(event, sync=True)  # a checkpoint that outlives a power cut should find its steps here

    def finished(self, event: Finished) -> None:
        self._append(event, sync=True)

    def _append(self, event: Event, sync: bool = False) -> None:
        now = self._clock().isoformat(timespec="milliseconds")
        line = json.dumps({"event": KIND_OF[type(event)], "time": now, **_plain(event)}, ensure_ascii=False)
        with self.path.open("ab") as file:  # opened anew each time: no handle is left over, whatever ends the run
            file.write(line.encode() + b"\n")
            if sync:
                file.flush()
                os.fsync(file.fileno())


def cut(path: Path, step: int) -> None:
    """Takes away what came after `step`, and lines that a kill left torn. At step 0 nothing stays. Raises OSError."""
    if not path.exists():
        return
    beside = path.with_name(f"{path.name}.part")
    with path.open("rb") as old, beside.open("wb") as new:
        new.writelines(line for line in old if step and _stays(line, step))
        new.flush()
        os.fsync(new.fileno())
    os.replace(beside, path)


def read(path: Path) -> Iterator[Event]:
    """The events of a log, oldest first; a last line without its end (a kill, or a run that is writing) is left out.

    Raises FormatError with the line that is none, OSError.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield _event(line, f"{path.name}, line {number},")


def _stays(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):
        return False


def _event(line: bytes, where: str) -> Event:
    try:
        values = json.loads(line)
        kind = KINDS[values["event"]]
        found: Event = _made(kind, values)
    except (ValueError, KeyError, TypeError) as problem:
        raise FormatError(
            f"{where} is no event of a run ({type(problem).__name__}: {problem}). "
            "Take the line out, or move the file away; a run writes a new one."
        ) from None
    return found


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    """The dataclass with the fields that are there; names of a later version are left out."""
    given: dict[str, Any] = {}
    for one in fields(kind):
        if one.name in values:
            given[one.name] = REVIVE.get(one.name, _revived)(values[one.name])
        elif one.default is MISSING and one.default_factory is MISSING:
            raise KeyError(one.name)
    return kind(**given)


NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
NUMBERS = ("loss", "norm", "lr", "epoch", "seconds")


def _number(value: Any) -> Any:
    return NOT_FINITE[value] if isinstance(value, str) else value


def _revived(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


REVIVE: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(NUMBERS, _number),
    "metrics": lambda values: {name: _number(value) for name, value in values.items()},
    "path": Path,
    "best": lambda value: _made(Evaluation, value) if isinstance(value, Mapping) else value,
    "recipe": recipe.from_dict,
}


def _plain(value: Any) -> Any:
    """What JSON can hold. Numbers that are not finite become their names, as in protobuf's JSON."""
    if isinstance(value, recipe.Recipe):
        return recipe.to_dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.as_posix() if isinstance(value, Path) else _scalar(value)


def _scalar(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value  # a number of some framework
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
