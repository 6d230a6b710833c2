"""The kernels for AMX with the tile instructions in plain C++, on any CPU that has the rest of AVX-512."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

import pytest
from isa_build import AVX2, AVX512, CSRC, VNNI, build, compiled, run, shared_symbols

from geode.native import extension

ISAS = {
    "isa_avx2": AVX2,
    "isa_avxvnni": [*AVX2, "-mavxvnni"],
    "isa_avx512vnni": VNNI,
    "isa_avx512": AVX512,
    "isa_amx": AVX512,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AMX belongs to x86-64"),
    pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not here (Debian: apt-get install g++)"),
]


def test_tiles_in_plain_code(tmp_path: Path) -> None:
    if not extension.is_there() or not {"avx512", "amx"} & set(extension.module().isas()):
        pytest.skip("this CPU has no AVX-512 with VNNI and BF16")
    program = build(tmp_path, "g++", ISAS, ["-DGEODE_FAKE_TILES"])
    assert shared_symbols(tmp_path, "nm") == []
    assert run([str(program), "amx"]).splitlines() == ["amx: right"]


def test_the_real_instructions_come_after_what_they_read(tmp_path: Path) -> None:
    if not shutil.which("objdump"):
        pytest.skip("objdump is not here (Debian: apt-get install binutils)")
    file = compiled(tmp_path, "g++", CSRC / "isa_amx.cpp", [*AVX512, "-mamx-tile", "-mamx-bf16"])
    code = run(["objdump", "-d", "--no-show-raw-insn", str(file)])
    places = [match.start() for match in re.finditer(r"ldtilecfg", code)]
    assert places
    for place in places:
        operand = re.match(r"ldtilecfg\s+(\S+)", code[place:])[1]
        before = code[max(0, place - 3000) : place]
        assert re.search(rf"movb\s+\$0x1,{re.escape(operand)}", before), (
            "the palette is stored before the configuration"
        )
    assert code.count("tdpbf16ps") and code.count("tilerelease")
