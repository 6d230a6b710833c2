"""One process at a time: a lock that the death of its holder releases.

What the lock protects is not known here.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import OptionError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

POLL_SECONDS = 0.2
WRITE_SECONDS = 10.0  # no process takes so long between creating the file and writing its number


@contextlib.contextmanager
def hold(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the lock at `path` for the block; calls `waiting` once where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _kernel_lock(path, waiting) if fcntl else _pid_file(path, waiting):
        yield


@contextlib.contextmanager
def _kernel_lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """The kernel forgets the lock when its holder ends. The file stays: to delete it would let two hold one name."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _pid_file(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """A file that only one can create, with the number of its process; that of a dead process is taken away."""
    told = False
    while not _create(path):
        if _abandoned(path):
            path.unlink(missing_ok=True)
            continue
        if not told:
            waiting()
            told = True
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    except PermissionError:
        if os.name == "nt":  # which refuses a name whose deletion is under way
            return False
        raise
    with os.fdopen(descriptor, "w") as file:
        file.write(str(os.getpid()))
    return True


def _abandoned(path: Path) -> bool:
    """True where the process that the file names is gone, or died before it wrote its number."""
    try:
        text = path.read_text()
        return not alive(int(text)) if text.isdigit() else time.time() - path.stat().st_mtime > WRITE_SECONDS
    except OSError:
        return False  # taken away meanwhile; the next turn will see


def alive(pid: int) -> bool:
    """Whether a process of this number runs."""
    if os.name == "nt":
        return _alive_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _alive_on_windows(pid: int) -> bool:
    """os.kill ends the process there, whatever the signal. learn.microsoft.com: OpenProcess, GetExitCodeProcess"""
    import ctypes

    query_limited_information, still_active = 0x1000, 259
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    handle = kernel.OpenProcess(query_limited_information, False, pid)
    if not handle:
        return False
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == still_active


@contextlib.contextmanager
def claim(path: Path, taken: str) -> Iterator[None]:
    """Holds the lock at `path` for the block. Raises OptionError, which says `taken`, where another process has it."""

    def refuse() -> None:
        raise OptionError(taken)

    with hold(path, refuse):
        yield
