"""Kept pages on disk, so that known beginnings need not be computed again by the next process.

What the pages mean, and which are worth it, is not known here.

    DIR / <model> / <name of a page>.<group>        32 bytes: digest of the rest | the page's bytes

<model> tells apart what may not be mixed: weights, type of the cache, instruction set, layout. Files appear whole or
not at all, are checked when they are read, and the oldest go when there are too many.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import OptionError

if TYPE_CHECKING:
    from .native import NativeRunner

DIGEST = 32
MOST = 4 << 30  # bytes of a model's files


class Keeper:
    """Writes what a runner keeps, and brings it back. Trouble with the disk is nobody's error: then less is kept."""

    def __init__(self, runner: NativeRunner, folder: str | Path, most: int = MOST):
        self._runner = runner
        self._most = most
        self.folder = Path(folder) / _model_key(runner)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # pages tell what was said
        except OSError as error:
            raise OptionError(f"Nothing can be kept in cache_dir {folder}: {error.strerror or error}.") from None

    def read(self) -> int:
        """Fills free pages from the files, the newest that find room, up to half of each group. Returns how many."""
        spare = [self._runner.store.spare(group) for group in range(len(self._runner.executor.groups))]
        chosen: list[Path] = []
        for path in sorted(self._files(), key=_age, reverse=True):
            group = _parsed(path)[1]
            if group < len(spare) and spare[group]:
                spare[group] -= 1
                chosen.append(path)
        return sum(map(self._read, reversed(chosen)))  # so that the newest are the last to go

    def write(self, stop: Callable[[], object] = lambda: False) -> int:
        """Writes what is kept and not yet there, until it is told to stop. Returns how many pages."""
        there = {_parsed(path) for path in self._files()}
        count = 0
        for group, page, name in list(self._runner.store.kept()):
            if stop():
                break
            count += (name, group) not in there and self._write(group, page, name)
        self._prune()
        return count

    def _read(self, path: Path) -> bool:
        name, group = _parsed(path)
        try:
            data = path.read_bytes()
        except OSError:
            return False
        if data[:DIGEST] != _digest(data[DIGEST:]):
            path.unlink(missing_ok=True)
            return False
        return self._runner.adopt(group, name, data[DIGEST:])

    def _write(self, group: int, page: int, name: bytes) -> bool:
        data = self._runner.cache.read(group, page)
        path = self.folder / f"{name.hex()}.{group}"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(_digest(data) + data)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            return False
        return True

    def _prune(self) -> None:
        files = sorted(self._files(), key=_age)
        excess = sum(map(_size, files)) - self._most
        for path in files:
            if excess <= 0:
                return
            excess -= _size(path)
            with contextlib.suppress(OSError):
                path.unlink()

    def _files(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            yield from (path for path in self.folder.iterdir() if _is_page(path))


def _model_key(runner: NativeRunner) -> str:
    model = runner.executor.model
    parts = (runner.config, runner.executor.kv_type, model.fingerprint, model.isa, __version__)
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=DIGEST).digest()


def _is_page(path: Path) -> bool:
    stem, _, group = path.name.partition(".")
    return len(stem) == 64 and set(stem) <= set("0123456789abcdef") and group.isdecimal()


def _parsed(path: Path) -> tuple[bytes, int]:
    stem, _, group = path.name.partition(".")
    return bytes.fromhex(stem), int(group)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
