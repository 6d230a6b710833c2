"""Where an artefact goes: made in a folder beside its place, and given its name when it is whole.

What is made is not known here. Nothing is left behind by work that fails, is interrupted or killed.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from . import formats
from .errors import OptionError
from .io import files
from .io.lock import alive


def check(path: Path, source: Path, single: bool, force: bool) -> None:
    """Raises OptionError where an artefact, one file or a directory, cannot or should not go to `path`."""
    if not path.absolute().parent.is_dir():
        raise OptionError(f"There is no directory {path.parent} to write {path.name} into. Make it first.")
    source, there = source.resolve(), path.resolve()
    if there == source or there in source.parents:
        raise OptionError(f"{path} is the source itself, or holds it. Choose another place.")
    parts = sorted(path.parent.glob(f"{glob.escape(path.stem)}-?????-of-?????{glob.escape(path.suffix)}")) * single
    if not (path.exists() or parts) or (path.is_dir() and not any(path.iterdir())):
        return
    if not force:
        taken = path if path.exists() else parts[0]
        raise OptionError(f"{taken} is there already. Choose another name, or replace it with --force.")
    if path.is_file() and not single:
        raise OptionError(f"{path} is a file, and a directory is to be written there. Choose another name.")
    if path.is_dir() and (single or formats.claiming(path) is None):
        raise OptionError(f"{path} is a directory that holds no checkpoint, so it is not replaced. Remove it yourself.")


@contextlib.contextmanager
def workshop(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, gone when the block ends. Those that killed processes left are removed."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        pid = old.name.removesuffix(".part").rsplit(".", 1)[1]
        if not (pid.isdigit() and alive(int(pid))):
            shutil.rmtree(old, ignore_errors=True)
    folder = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        folder.mkdir()
    except OSError as error:
        raise OptionError(f"{path.parent} cannot be written to: {error.strerror}. Choose another directory.") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """A full or broken disk as one of our errors."""
    try:
        yield
    except OSError as error:
        raise files.explained(error, path) from None


def publish(folder: Path, path: Path, single: bool) -> None:
    """Gives the finished files of a folder their names; what they replace goes last."""
    if single:
        for file in sorted(folder.iterdir(), reverse=True):  # the manifest before the file, parts before the first
            _sync(file)
            os.replace(file, path.with_name(file.name))
        return
    for file in folder.rglob("*"):
        if file.is_file():
            _sync(file)
    old = folder.with_suffix(".old")
    if path.exists():
        os.replace(path, old)
    os.replace(folder, path)
    shutil.rmtree(old, ignore_errors=True)


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
