"""The OpenAPI document tells of every operation what comes back, and that is what comes back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from live import scripted

from geode.serve import described
from geode.serve.app import create_app
from geode.serve.models import fixed
from geode.serve.problems import Problem, errors_of
from geode.serve.settings import Settings, Source

FUZZ = Path(__file__).parents[1] / "scripts" / "fuzz"


def test_every_answer_and_every_error_is_described() -> None:
    settings = Settings(models=(Source("fake", "fake"),))
    document = create_app(settings, fixed({"fake": scripted(["a"])}, settings)).openapi()
    found = {(method, path): one for path, each in document["paths"].items() for method, one in each.items()}
    assert set(found) == set(described.ANSWERS)
    for (_, path), operation in found.items():
        assert set(operation["responses"]) == {"200", "4XX", "5XX"}
        error = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
        assert error["required"] == [*errors_of(path)(Problem(400, "x"))]
    assert "ValidationError" not in str(document)


def test_a_short_fuzz() -> None:
    """`scripts/fuzz` is the long one."""
    pytest.importorskip("schemathesis")
    if not Path(sys.executable).with_name("schemathesis").exists():
        pytest.skip("schemathesis's program is not beside this Python")
    done = subprocess.run(
        [sys.executable, FUZZ, "--examples", "1", "--phases", "fuzzing"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "the engines' books: ok ok" in done.stdout
