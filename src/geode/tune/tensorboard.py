"""A run's numbers and samples for TensorBoard, written without it: event files of TFRecords that hold small protobufs.

What the numbers mean is not known here. The framing is tensorflow.org/tutorials/load_data/tfrecord's; the fields are
those of tensorflow/core/util/event.proto and tensorflow/core/framework/summary.proto.
"""

from __future__ import annotations

import json
import os
import re
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .events import Evaluation, Finished, Sample, Saved, Started, Step
from .recipe import to_dict

__all__ = ["TensorBoard", "crc32c", "record"]

VERSION = b"brain.Event:2"
START = 1  # SessionLog.SessionStatus: what was logged from this step on, by whoever came before, counts no more
STRING = 7  # DataType.DT_STRING


class TensorBoard:
    """Writes into `folder`, one file for each process of a run: what TensorBoard takes for one run that went on."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        self.folder = folder
        self.name = f"{folder.name} (for TensorBoard)"
        self._clock = clock
        self._file: Path | None = None
        self._prompts: list[str] = []

    def started(self, event: Started) -> None:
        """Raises OSError, as every method here."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = _new_file(self.folder, self._clock())
        self._prompts = list(event.recipe.run.samples)
        self._append(0, _bytes(3, VERSION))
        self._append(event.step and event.step + 1, _bytes(7, _int(1, START)))
        self._append(event.step, _summary(_text("recipe", _as_code(json.dumps(to_dict(event.recipe), indent=2)))))

    def step(self, event: Step) -> None:
        """The names that Hugging Face's trainers use, so that runs of both lie in one chart."""
        numbers = {
            "loss": event.loss,
            "learning_rate": event.lr,
            "grad_norm": event.norm,
            "epoch": event.epoch,
            "tokens_per_second": event.tokens / event.seconds if event.seconds > 0 else 0.0,
            "memory": float(event.memory),
            **event.metrics,
        }
        self._scalars(event.step, "train", numbers)

    def evaluated(self, event: Evaluation) -> None:
        self._scalars(event.step, "eval", {"loss": event.loss, **event.metrics})

    def sampled(self, event: Sample) -> None:
        if event.prompt not in self._prompts:
            self._prompts.append(event.prompt)
        shown = f"{_as_code(event.prompt)}\n\n---\n\n{_as_code(event.text)}"
        self._append(event.step, _summary(_text(f"sample/{self._prompts.index(event.prompt) + 1}", shown)))

    def saved(self, event: Saved) -> None:
        """Nothing to draw."""

    def finished(self, event: Finished) -> None:
        """Nothing to draw."""

    def _scalars(self, step: int, group: str, numbers: Mapping[str, float]) -> None:
        values = (_bytes(1, _bytes(1, f"{group}/{name}".encode()) + _float(2, x)) for name, x in numbers.items())
        self._append(step, _bytes(5, b"".join(values)))

    def _append(self, step: int, what: bytes) -> None:
        """One Event: wall time, step, and what it holds."""
        assert self._file is not None, "`started` comes first"
        event = struct.pack("<Bd", 1 << 3 | 1, self._clock()) + _int(2, step) + what
        with self._file.open("ab") as file:
            file.write(record(event))


def _new_file(folder: Path, now: float) -> Path:
    """Names sort by time, since TensorBoard reads the files of a run in the order of their names."""
    times = [int(found[1]) for name in os.listdir(folder) if (found := FILE.match(name))]
    return folder / f"events.out.tfevents.{max([int(now), *(last + 1 for last in times)]):010d}.geode.{os.getpid()}"


FILE = re.compile(r"events\.out\.tfevents\.(\d+)\.")


# Protobuf's wire format: a key (field << 3 | kind), then a varint, four bytes, or a length and bytes


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", _single(value))


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _single(value: float) -> float:
    """Infinite where float32 ends; struct would raise."""
    try:
        struct.pack("<f", value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    return value


def _summary(value: bytes) -> bytes:
    return _bytes(5, _bytes(1, value))


def _text(tag: str, markdown: str) -> bytes:
    """A Summary.Value for the plugin that shows texts: a string tensor without dimensions."""
    tensor = _int(1, STRING) + _bytes(8, markdown.encode())
    metadata = _bytes(1, _bytes(1, b"text"))
    return _bytes(1, tag.encode()) + _bytes(8, tensor) + _bytes(9, metadata)


def _as_code(text: str) -> str:
    """Markdown that shows the text as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


# TFRecord: length, its checksum, bytes, their checksum


def record(data: bytes) -> bytes:
    """The bytes framed as one TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _masked(data: bytes) -> bytes:
    """Rotated and moved, so that a checksum over bytes with checksums in them is none of a special kind."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum. rfc-editor.org/rfc/rfc3720#appendix-B.4"""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _entry(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


TABLE = tuple(_entry(byte) for byte in range(256))
