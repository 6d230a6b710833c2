"""The passes of training, and in the slow test all of the native engine, built under AddressSanitizer and
UndefinedBehaviorSanitizer, then ThreadSanitizer.

pytest -m slow tests/test_sanitizers.py      about thirty minutes on two cores; do it when C++ changed
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from isa_build import AVX2, AVX512, DOT, build_training, run

from geode.native import extension

HERE = Path(__file__).parent
ROOT = HERE.parent
TESTS = (
    "test_native.py",
    "test_kernels.py",
    "test_head.py",
    "test_engine_adapters.py",
    "test_engine_native.py",
    "test_training_kernels.py",
)
# These run the installed extension.
WHOLE_PROCESSES = "fork or imports_no_framework or peak_memory or with_and_without or attention_over_spans"
BOTH = [("address,undefined", "libasan.so"), ("thread", "libtsan.so")]
TRAINING = {
    "x86_64": {"training_avx2": AVX2, "training_avx512": AVX512},
    "aarch64": {"training_neon": DOT},
}

ENVIRONMENT = {
    # Python keeps memory until it ends, and its own allocator hides blocks from the sanitizer.
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0",
    "PYTHONMALLOC": "malloc",
    "OMP_NUM_THREADS": "1",  # numpy's and PyTorch's threads are not instrumented
    "OPENBLAS_NUM_THREADS": "1",
    "GEODE_FUZZ": "300",
}


@pytest.mark.parametrize(("sanitizers", "runtime"), BOTH)
def test_passes_of_training(sanitizers: str, runtime: str, tmp_path: Path) -> None:
    """Of every instruction set, on memory that ends where its numbers do; then threads that all want some at once."""
    find_runtime(runtime)
    flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-DGEODE_SANITIZED", "-O1", "-g"]
    program = build_training(tmp_path, "g++", TRAINING.get(platform.machine(), {}), flags, flags[:1])
    here = extension.module().isas() if extension.is_there() else ["portable"]
    names = [name for name in ("avx512", "avx2", "neon", "portable") if name in here]
    found = run(["env", "ASAN_OPTIONS=detect_leaks=0", str(program), *names])
    assert found.splitlines() == [f"{name}: right" for name in names]


@pytest.mark.slow
@pytest.mark.xdist_group("sanitizers")
@pytest.mark.parametrize(("sanitizers", "runtime"), BOTH)
def test_the_native_tests_pass(sanitizers: str, runtime: str, tmp_path: Path) -> None:
    library = find_runtime(runtime)
    extension = build(tmp_path, sanitizers)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "other_extension", "-p", "no:xdist", "-q", "-x", "--override-ini",
         "addopts=-m 'not slow' -p no:cacheprovider", "-k", f"not ({WHOLE_PROCESSES})",
         *(str(HERE / name) for name in TESTS if (HERE / name).exists())],
        capture_output=True, text=True, cwd=ROOT,
        env=os.environ | ENVIRONMENT | {
            "LD_PRELOAD": library, "GEODE_TEST_EXTENSION": str(extension), "PYTHONPATH": str(HERE),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]


def find_runtime(name: str) -> str:
    """The sanitizer's library, which must be in the process before Python is."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("needs g++ on Linux")
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip(f"this compiler has no {name}: apt-get install libgcc-12-dev, or its like")
    stdcxx = subprocess.run(["g++", "-print-file-name=libstdc++.so"], capture_output=True, text=True).stdout.strip()
    return f"{found} {stdcxx}"  # the sanitizer wraps the throwing of exceptions, and asks for it at the start


def build(folder: Path, sanitizers: str) -> Path:
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: pip install cmake ninja nanobind")
    subprocess.run(
        ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(folder), f"-DGEODE_SANITIZE={sanitizers}",
         f"-DPython_EXECUTABLE={sys.executable}"], check=True,
    )  # fmt: skip
    subprocess.run(["cmake", "--build", str(folder)], check=True)
    return folder / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
