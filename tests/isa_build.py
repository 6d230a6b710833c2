"""Builds tests/native/check_*.cpp with the kernels, for CPUs that are not at hand and under sanitizers."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parent / "src" / "geode" / "native" / "csrc"
FLAGS = ("-std=c++20", "-O2", "-ffp-contract=off", "-Wno-maybe-uninitialized", "-Wno-uninitialized", "-Wno-psabi")
COMMON = ("cpu.cpp", "layout.cpp", "memory.cpp", "dequantize.cpp")

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
VNNI = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
AVX512 = [*VNNI, "-mavx512bf16"]
DOT = ["-march=armv8.2-a+dotprod+fp16"]


def build(folder: Path, compiler: str, isas: Mapping[str, Sequence[str]], extra: Sequence[str] = ()) -> Path:
    """The checker as a static program. `isas`: flags of each isa_*.cpp that needs some; `extra`: flags of all."""
    sources = [*(CSRC / name for name in COMMON), *sorted(CSRC.glob("isa_*.cpp")), HERE / "native/check_kernels.cpp"]
    return linked(folder, compiler, sources, isas, extra, ["-static"])


def build_training(
    folder: Path, compiler: str, isas: Mapping[str, Sequence[str]], extra: Sequence[str], link: Sequence[str]
) -> Path:
    """The same of the passes of training. `isas`: flags of each training_*.cpp; `link`: those of linking."""
    sources = [CSRC / "pool.cpp", *sorted(CSRC.glob("training*.cpp")), HERE / "native/check_training.cpp"]
    return linked(folder, compiler, sources, isas, extra, link)


def linked(
    folder: Path,
    compiler: str,
    sources: Sequence[Path],
    isas: Mapping[str, Sequence[str]],
    extra: Sequence[str],
    link: Sequence[str],
) -> Path:
    """A program, named as the last of its sources."""
    objects = [compiled(folder, compiler, source, [*isas.get(source.stem, ()), *extra]) for source in sources]
    program = folder / sources[-1].stem
    run([compiler, *link, *map(str, objects), "-o", str(program)])
    return program


def compiled(folder: Path, compiler: str, source: Path, flags: Sequence[str]) -> Path:
    out = folder / f"{source.stem}.o"
    include = ["-I", str(CSRC), "-I", str(HERE / "native")]
    run([compiler, *FLAGS, *flags, *include, "-c", str(source), "-o", str(out)])
    return out


def run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def shared_symbols(folder: Path, nm: str) -> list[str]:
    """Functions of files for one CPU that a linker may replace by another file's, compiled for another CPU."""
    lines = [
        f"{file.name} {line}"
        for file in sorted([*folder.glob("isa_*.o"), *folder.glob("training_*.o")])
        for line in run([nm, "-C", str(file)]).splitlines()
    ]
    return [line for line in lines if " W " in line]
