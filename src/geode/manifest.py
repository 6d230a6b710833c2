"""The manifest of an artefact: what it was made from, by which version, with which options, and how it was verified.

How artefacts are made is not known here. It lies in a directory as geode.json, beside a file as FILE.geode.json.
"""

from __future__ import annotations

import datetime
import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .errors import FormatError

NAME = "geode.json"
PIECE = 1 << 22  # bytes hashed at a time


def place(artefact: Path) -> Path:
    """Where the manifest of an artefact lies."""
    return artefact / NAME if artefact.is_dir() else artefact.with_name(f"{artefact.name}.{NAME}")


def read(artefact: Path) -> dict[str, Any] | None:
    """The manifest of an artefact; None where it has none. Raises FormatError."""
    path = place(artefact)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise FormatError(f"{path} is not valid JSON ({problem}). Delete it, or convert the model again.") from None
    if not isinstance(found, dict):
        raise FormatError(f"{path} should hold a JSON object; it holds a {type(found).__name__}.")
    return found


def write(artefact: Path, values: Mapping[str, Any]) -> None:
    """Writes the manifest `values` of an artefact, with the tool's version and the time."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = json.dumps({"tool": f"geode {__version__}", "created": now, **values}, indent=2, ensure_ascii=False)
    place(artefact).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Stamp:
    """A file as it was when it was opened. A file that is written to, or replaced, has another stamp."""

    path: Path
    size: int
    changed: int  # nanoseconds
    inode: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        info = os.stat(path)
        return cls(path, info.st_size, info.st_mtime_ns, info.st_ino)


class Sources:
    """The files of a source: hashed beside the work, and watched for changes while they are read."""

    def __init__(self, files: Iterable[Path]):
        self._stamps = [Stamp.of(path) for path in files]
        self._digests: dict[Path, str] = {}
        self._stop = False
        self._thread = threading.Thread(target=self._hash_all, daemon=True)
        self._thread.start()

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True  # whoever wanted the hashes has waited for them
        self._thread.join()

    def check(self) -> None:
        """Raises FormatError where a file has changed, or gone, since this object was made."""
        for stamp in self._stamps:
            try:
                same = Stamp.of(stamp.path) == stamp
            except OSError:
                same = False
            if not same:
                raise FormatError(
                    f"{stamp.path} changed while it was read, so what was made of it is thrown away. "
                    "Wait until whoever writes it has finished, and convert again."
                )

    def listed(self) -> list[dict[str, Any]]:
        """Name, bytes and sha256 of each file; waits for the hashes."""
        self._thread.join()
        return [
            {"name": stamp.path.name, "size": stamp.size, "sha256": self._digests.get(stamp.path)}
            for stamp in self._stamps
        ]

    def _hash_all(self) -> None:
        import hashlib

        for stamp in self._stamps:
            digest = hashlib.sha256()
            try:
                with stamp.path.open("rb", buffering=0) as file:
                    while not self._stop and (piece := file.read(PIECE)):
                        digest.update(piece)
            except OSError:
                continue  # `check` tells
            self._digests[stamp.path] = digest.hexdigest()
