"""What a run does to the process's memory: pages of files let go, and the C library's allocator set."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from geode.io.files import map_file, release
from geode.network import allocator

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells what is mapped")
SIZE = 8 << 20


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    found = 0
    for line in lines:
        if line.endswith(str(path)):
            found += next(int(part.split()[1]) for part in lines if part.startswith("Rss:")) * 1024
    return found


@LINUX
@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="no such advice here")
def test_pages_are_let_go_and_read_again(tmp_path: Path) -> None:
    one, other = tmp_path / "one.bin", tmp_path / "other.bin"
    numbers = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    numbers.tofile(one), numbers.tofile(other)
    first, second = map_file(one), map_file(other)
    assert first.sum() == second.sum() and resident(one) == resident(other) == SIZE
    release([one, tmp_path / "absent"])
    assert resident(one) == 0 and resident(other) == SIZE
    assert np.array_equal(first, numbers) and resident(one) > 0
    view = first[5:]
    del first
    release([one])
    assert resident(one) == 0 and view[0] == numbers[5]


def test_a_mapping_ends_with_its_last_array(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    array = map_file(tmp_path / "x")
    assert not array.flags.writeable
    view = array[1:]
    del array
    release([tmp_path / "x"])
    assert view.tobytes() == b"bc"
    del view
    release([tmp_path / "x"])


PROGRAM = """
import ctypes, os, sys
from pathlib import Path
from geode.network import allocator

def taken():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

done = allocator.prepare() if "set" in sys.argv else None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
big, small = libc.malloc(60 << 20), libc.malloc(1 << 10)  # the small one stays behind the hole
ctypes.memset(big, 1, 60 << 20)
before = taken()
libc.free(big)
kept = before - taken() < 1 << 20
allocator.give_back()
print(done, kept, before - taken() > 59 << 20)
"""


def told(*words: str, **environment: str) -> list[str]:
    """Whether it was set; whether a freed block stays; whether it goes back when that is asked for."""
    kept = {name: value for name, value in os.environ.items() if name not in allocator.OWN}
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_freed_blocks_stay_until_they_are_given_back() -> None:
    if (found := told("set"))[0] != "True":
        pytest.skip("another C library")
    assert found == ["True", "True", "True"]
    assert told() == ["None", "False", "True"]  # by itself glibc unmaps so large a block


def test_the_users_own_settings_stay() -> None:
    assert told("set", MALLOC_MMAP_THRESHOLD_="1000000")[:2] == ["False", "False"]
