"""Fixtures shared by all tests: a home of our own, real models where they can be had, work done once for all workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from geode.io.lock import hold

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the parallel workers of one run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def once(shared: Path) -> Callable[[str, Callable[[Path], None]], Path]:
    """`once(name, make)`: a folder that the first worker to ask fills; the others wait for it."""

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with hold(shared / f"{name}.lock", lambda: None):
            if not done.exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """`real_model(name)`: a real checkpoint of the catalogue, pulled if need be; skips where it cannot be had."""
    from geode.errors import GeodeError
    from geode.io import hub

    def find(name: str) -> Path:
        try:
            return hub.pull(name, quiet=True)
        except GeodeError as problem:
            pytest.skip(f"{name} cannot be had here: {problem}")

    return find


def worker(script: str, *arguments: str, env: dict[str, str] | None = None) -> Any:
    """Runs tests/`script` in a process of its own (one process has one framework) and returns the JSON it prints."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(HERE)} | (env or {}),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
