"""The rule of the house: imports run downward, frameworks stay in `network`, `import geode` loads nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "src" / "geode"
FILES = sorted(HOUSE.rglob("*.py"))
FRAMEWORKS = {"keras", "jax", "torch", "tensorflow", "keras_hub", "transformers"}

# Lower rooms first; a room may import its own and those before it.
FLOORS = (
    {*"errors manifest memory config lattice blocks quant recover integers strings tensors mixes sampling".split()},
    {"keys", "sandbox", "tool_calls"},
    {"positions"},
    {"families"},
    {"dialects"},
    {"io", "tokenizer"},
    {"native"},
    {"network"},
    {"imatrix"},
    {"formats"},
    {"chat", "artefact"},
    {"adapters"},
    {"merge"},
    {"checkpoint"},
    {"generate"},
    {"engine", "results"},
    {"remote"},
    {"lm"},
    {"perplexity", "bench", "verify"},
    {"conversion"},
    {"tune", "data", "evals", "safety", "serve"},
    {"cli"},
)


def imports(file: Path) -> list[tuple[str, bool]]:
    """Modules a file imports, absolute names; whether each only for type checkers."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    package = ("geode", *file.relative_to(HOUSE).with_suffix("").parts)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in guarded) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else ()
            whole = ".".join((*base, *filter(None, [node.module])))
            names = [f"{whole}.{alias.name}" for alias in node.names] if whole == "geode" else [whole]
            found += [(name, id(node) in guarded) for name in names]
    return found


def room(name: str) -> str:
    return name.split(".")[1] if name.startswith("geode.") else ""


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOUSE)))
def test_imports_run_downward(file: Path) -> None:
    here = file.relative_to(HOUSE).with_suffix("").parts[0]
    if here in ("__init__", "__main__"):
        return
    floor = next((i for i, rooms in enumerate(FLOORS) if here in rooms), None)
    assert floor is not None, f"{here} stands on no floor: add it to FLOORS"
    for name, for_types in imports(file):
        there = room(name)
        if for_types or not there or there == here or there.startswith("_"):
            continue
        below = set().union(*FLOORS[: floor + (floor == 0)])
        assert there in below, f"{here} imports {there}, which is not below it"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOUSE)))
def test_frameworks_stay_in_network(file: Path) -> None:
    if file.relative_to(HOUSE).parts[0] == "network":
        return
    found = {name.split(".")[0] for name, _ in imports(file)} & FRAMEWORKS
    assert not found, f"{file.name} imports {found}"


def test_only_backend_asks_which_framework() -> None:
    """What speaks one framework's own language is named for it: gradients_torch.py."""
    for file in (HOUSE / "network").glob("*.py"):
        if file.name != "backend.py":
            own = {"keras", file.stem.rsplit("_", 1)[-1]}
            found = {name.split(".")[0] for name, _ in imports(file)} & (FRAMEWORKS - own)
            assert not found, f"network/{file.name} imports {found}"


def test_import_geode_loads_nothing() -> None:
    code = "import sys, geode; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not (FRAMEWORKS | {"numpy", "jinja2", "tokenizers", "regex"}) & set(loaded)


def test_opening_a_file_loads_only_what_it_needs() -> None:
    """`geode run` answers in a second: what pulls, templates and other formats need must wait until they are asked."""
    rooms = "cli.run, cli.options, lm, checkpoint, chat, tokenizer, io.hub, io.gguf".replace(", ", ", geode.")
    code = f"import sys, geode.{rooms}; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    late = {"jinja2", "regex", "tokenizers", "http.client", "ssl", "hashlib", "zipfile", "difflib", "numpy.random"}
    assert not (FRAMEWORKS | late) & set(loaded)
