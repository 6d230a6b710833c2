"""The kernels for ARM, cross-compiled and run by an emulator against the definitions of numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from isa_build import DOT, build, build_training, run, shared_symbols

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ISAS = {"isa_neon": DOT, "isa_neon_i8mm": [f"{DOT[0]}+i8mm"], "training_neon": DOT}


@pytest.fixture(autouse=True)
def tools() -> None:
    for tool in (COMPILER, EMULATOR):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not here (Debian: apt-get install g++-aarch64-linux-gnu qemu-user)")


@pytest.mark.slow
def test_arm_kernels_under_an_emulator(tmp_path: Path) -> None:
    program = build(tmp_path, COMPILER, ISAS)
    assert shared_symbols(tmp_path, "aarch64-linux-gnu-nm") == []
    everything = run([EMULATOR, "-cpu", "max", str(program)]).splitlines()
    assert everything == ["neon_i8mm: right", "neon: right", "portable: right"]
    oldest = run([EMULATOR, "-cpu", "cortex-a57", str(program)]).splitlines()  # has neither extension
    assert oldest == ["portable: right"]


def test_passes_of_training_on_arm_under_an_emulator(tmp_path: Path) -> None:
    program = build_training(tmp_path, COMPILER, ISAS, [], ["-static"])
    assert shared_symbols(tmp_path, "aarch64-linux-gnu-nm") == []
    found = run([EMULATOR, "-cpu", "max", str(program), "neon", "portable"]).splitlines()
    assert found == ["neon: right", "portable: right"]
