"""Two processes of PyTorch over gloo against one: gradients summed, and matrices cut by rows."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import HERE, worker

COUNT = 2
ALONE = {"OMP_NUM_THREADS": "1"}


def started() -> list[Any]:
    """What each of the processes prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(COUNT), "PYTHONPATH": str(HERE)}
    running = [
        subprocess.Popen(
            [sys.executable, str(HERE / "processes_worker.py")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | ALONE | group | {"RANK": str(number)},
        )
        for number in range(COUNT)
    ]
    told = [process.communicate() for process in running]
    for process, (_, error) in zip(running, told, strict=True):
        assert process.returncode == 0, error[-4000:]
    return [json.loads(text.strip().splitlines()[-1]) for text, _ in told]


@pytest.fixture(scope="module")
def found(once: Callable[..., Path]) -> Any:
    torch = pytest.importorskip("torch")
    pytest.importorskip("keras")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch was built without gloo")

    def make(folder: Path) -> None:
        told = {"one": worker("processes_worker.py", env=ALONE), "two": started()}
        (folder / "found.json").write_text(json.dumps(told))

    return json.loads((once("processes", make) / "found.json").read_text())


@pytest.mark.parametrize("way", ["same", "cut"])
def test_two_learn_as_one(found: Any, way: str) -> None:
    """Losses, lengths of the gradient and the weights after six steps of two micro-batches each."""
    for name, alone in found["one"].items():
        for told in found["two"]:
            if name == "refused":
                continue
            for figure in ("loss", "norm", "sums"):
                expected = alone["same"][figure]
                assert told[name][way][figure] == pytest.approx(expected, rel=1e-5), (name, way, figure)


def test_both_end_with_the_same_bits(found: Any) -> None:
    first, second = found["two"]
    for name in first:
        if name != "refused":
            assert first[name]["cut"]["sums"] == second[name]["cut"]["sums"]
            assert first[name]["same"] == second[name]["same"]


def test_cut_matrices_take_half(found: Any) -> None:
    for told in found["two"]:
        full, odd = (told[name]["cut"]["held"] / told[name]["same"]["held"] for name in ("gemma full", "odd full"))
        assert full < 0.51 and odd < 0.51
        assert told["llama lora"]["cut"]["held"] < 0.65 * told["llama lora"]["same"]["held"]


def test_what_needs_whole_matrices_says_so(found: Any) -> None:
    for told in found["two"]:
        assert told["refused"]["muon"].startswith("OptionError: optim.name muon looks at whole matrices")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR, MASTER_PORT is not there"),
        ({"RANK": "0"}, "torchrun"),
    ],
)
def test_half_an_environment(environment: dict[str, str], words: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("keras")
    code = (
        "from geode.network import backend; backend.select('torch')\n"
        "from geode.network import processes_torch as processes\n"
        "try: processes.join()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean | environment, check=True
    )
    assert done.stdout.startswith("OptionError") and words in done.stdout
