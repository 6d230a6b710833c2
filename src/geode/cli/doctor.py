"""`geode doctor`: what is installed, what really works, what is missing and the command that installs it.

Each framework is tried in a process of its own, because one that is broken may take its process with it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import screen

PACKAGES = ("numpy", "ml_dtypes", "jinja2", "keras", "jax", "torch", "tensorflow", "huggingface_hub", "transformers")
TRY_SECONDS = 120
REPORT = "; import json; print(json.dumps([float(y), [str(d) for d in devices]]))"
TRIES = {
    "native": "import numpy; from geode.native import extension as e; x = numpy.ones((8, 8), numpy.float32); "
    "y = e.module().matmul(e.isa(), 'F32', x.view(numpy.uint8), 8, x)[0, 0]; devices = [e.isa()]",
    "jax": "import jax; x = jax.numpy.ones((8, 8)); y = (x @ x)[0, 0]; devices = jax.devices()",
    "torch": "import torch; cuda = torch.cuda.is_available(); x = torch.ones(8, 8, device='cuda' if cuda else 'cpu'); "
    "y = (x @ x)[0, 0]; devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ['cpu']",
    "tensorflow": "import tensorflow as tf; x = tf.ones((8, 8)); y = (x @ x)[0, 0]; "
    "devices = [d.name for d in tf.config.list_logical_devices()]",
}
"""Programs that multiply two 8 × 8 arrays of ones, whose every element is 8, and name the devices."""

FEATURES = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
"""CPU features that fast kernels of any engine ask for, as Linux spells them."""


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "doctor",
        help="tell what works on this machine",
        description="Tells what is installed, which backends and accelerators really work, and what is missing. "
        "Exit code 1 where an installed backend does not work.",
    )
    parser.add_argument("--quick", action="store_true", help="do not try the backends, which takes some seconds each")
    parser.add_argument("--json", action="store_true", help="as JSON")


def main(args: argparse.Namespace) -> int:
    versions = {name: _version(name) for name in PACKAGES}
    native = _native()
    here = {**versions, "native": native["built"]}
    document: dict[str, Any] = {
        "python": platform.python_version(),
        "geode": _geode(),
        "packages": versions,
        "native": native,
        "backends": {} if args.quick else {name: _try(name) for name in TRIES if here[name]},
        "machine": _machine(),
        "missing": _missing(),
    }
    if args.json:
        screen.dump(document)
    else:
        print(_page(document))
    return 1 if any(not backend["works"] for backend in document["backends"].values()) else 0


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _geode() -> str:
    from .. import __version__

    return __version__


def _native() -> dict[str, Any]:
    """Instruction sets and threads of the native engine, or why it cannot be used."""
    from ..errors import BackendError
    from ..native import extension

    facts: dict[str, Any] = {"built": extension.is_there(), "isa": None, "isas": [], "threads": None, "problem": None}
    try:
        module = extension.module()
        return facts | {"isas": module.isas(), "threads": extension.threads(None), "isa": extension.isa()}
    except BackendError as problem:
        return facts | {"problem": str(problem)}


def _try(backend: str) -> dict[str, Any]:
    """Whether the backend multiplies, and on what."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    program = TRIES[backend] + REPORT
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=TRY_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"works": False, "devices": [], "problem": f"no answer within {TRY_SECONDS} s"}
    try:
        value, devices = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        said = done.stderr.strip().splitlines()[-1:] or [f"it ended with exit code {done.returncode} and no word"]
        return {"works": False, "devices": [], "problem": said[0]}
    problem = None if value == 8.0 else f"8 × 8 ones times themselves gave {value}, not 8"
    return {"works": problem is None, "devices": devices, "problem": problem}


def _machine() -> dict[str, Any]:
    from ..io.download import free
    from ..io.hub import home
    from ..memory import available

    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": cores(),
        "features": features(),
        "memory": memory(),
        "memory_free": available(),
        "home": str(home()),
        "disk_free": free(home()),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def features() -> list[str]:
    """The CPU features that matter; empty where the system does not tell."""
    if sys.platform == "darwin":
        told = subprocess.run(["sysctl", "hw.optional", "machdep.cpu"], capture_output=True, text=True).stdout.lower()
        found = {key for key, value in re.findall(r"hw\.optional\.(?:arm\.feat_)?(\w+): (\d)", told) if value == "1"}
        return [name for name in FEATURES if name in found]
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", told, re.MULTILINE)
    found = set(line[1].split()) if line else set()
    return [name for name in FEATURES if name in found]


def memory() -> int | None:
    """Bytes of memory in all; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _missing() -> dict[str, Any]:
    """Extras with packages that are not here, by the installed package's own list; and the command for each."""
    from importlib import metadata

    try:
        geode = metadata.distribution("geode")
    except metadata.PackageNotFoundError:
        return {}
    wanted: dict[str, list[str]] = {}
    for requirement in geode.requires or ():
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", requirement)
        if name and extra and name[0] != "geode" and _version(name[0]) is None:
            wanted.setdefault(extra[1], []).append(name[0])
    where = "-e '.[{}]'" if _editable(geode) else "'geode[{}]'"
    return {
        extra: {"packages": names, "install": f"pip install {where.format(extra)}"} for extra, names in wanted.items()
    }


def _editable(geode: Any) -> bool:
    """True for a checkout installed with -e (packaging.python.org: direct_url.json)."""
    try:
        return bool(json.loads(geode.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"))
    except ValueError:
        return False


def _page(facts: dict[str, Any]) -> str:
    packages = [(name, version or "not installed") for name, version in facts["packages"].items()]
    sections = [
        screen.table([("python", facts["python"]), ("geode", facts["geode"]), *packages]),
        _native_table(facts["native"]),
        _backends(facts["backends"]),
        _machine_table(facts["machine"]),
        _missing_table(facts["missing"]),
    ]
    return "\n\n".join(filter(None, sections))


def _native_table(native: dict[str, Any]) -> str:
    if native["isa"] is None:
        return screen.table([("native", native["problem"])])
    others = ", ".join(isa for isa in native["isas"] if isa != native["isa"])
    told = f"{native['isa']}, {native['threads']} threads" + f"; GEODE_ISA may be {others}" * bool(others)
    return screen.table([("native", told)])


def _backends(backends: dict[str, Any]) -> str:
    lines = []
    for name, backend in backends.items():
        good = f"works on {', '.join(backend['devices'])}"
        lines.append((name, good if backend["works"] else f"DOES NOT WORK: {backend['problem']}"))
    return screen.table(lines) if lines else ""


def _machine_table(machine: dict[str, Any]) -> str:
    from ..io.progress import size

    total, free = ("unknown" if count is None else size(count) for count in (machine["memory"], machine["memory_free"]))
    rows = [
        ("system", machine["system"]),
        ("cpu", f"{machine['cores']} cores; {' '.join(machine['features']) or 'features unknown'}"),
        ("memory", f"{total}, {free} free"),
        ("disk", f"{size(machine['disk_free'])} free at {machine['home']}"),
    ]
    return screen.table(rows)


def _missing_table(missing: dict[str, Any]) -> str:
    if not missing:
        return ""
    rows = [(extra, ", ".join(row["packages"]), row["install"]) for extra, row in missing.items()]
    return screen.table([("extra", "lacks", "install with"), *rows])
