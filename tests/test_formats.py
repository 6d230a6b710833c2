"""Every format and every family: written, read back, and the logits compared. `docs/formats.md` is this table."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from geode import checkpoint, formats, verify
from geode.conversion import convert
from geode.formats import Format, Target

DOCS = Path(__file__).parents[1] / "docs" / "formats.md"
BEGIN, END = "<!-- table: GEODE_WRITE_DOCS=1 pytest tests/test_formats.py -->", "<!-- end of table -->"
WRITTEN = [one for one in formats.every() if one.write]
LARGEST = {"maxtext": 1e-3}
"""Largest difference of a logit after the round trip, in float32; formats not named fold no constant into a weight, and
give the same numbers to the last bit."""


@pytest.fixture(scope="module")
def source(once: Callable[[str, Callable[[Path], None]], Path]) -> Callable[[str], Path]:
    """`source(family)`: a tiny checkpoint as transformers saves it."""
    return lambda family: once(f"tiny-{family}", lambda folder: tiny.save(family, folder) and None)


def cell(one: Format, path: Path, folder: Path) -> tuple[str, verify.Report | None]:
    """One cell of the table, and the report behind it."""
    opened = checkpoint.open(path)
    if one.refuses(opened, Target()) is not None:
        return "–", None
    made = convert(path, folder / f"made{one.suffix}", one.name, quiet=True, allow_loss=True)
    assert made.report is not None
    back = verify.compare(opened, checkpoint.open(made.path))
    assert back.logits is not None
    return "=" if back.equal else f"{back.logits.largest:.0e}", back


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("one", [pytest.param(one, id=one.name) for one in WRITTEN])
def test_there_and_back(one: Format, family: str, source: Callable[[str], Path], tmp_path: Path) -> None:
    _, report = cell(one, source(family), tmp_path)
    if report is None:
        pytest.skip(f"{one.name} has no {family}")
    assert report.ok, (report.config, report.tokenizer, report.wrong)
    assert report.logits is not None and report.logits.largest <= LARGEST.get(one.name, 0.0)


@pytest.mark.parametrize("one", [pytest.param(one, id=one.name) for one in WRITTEN])
def test_each_format_claims_its_own(one: Format, source: Callable[[str], Path], tmp_path: Path) -> None:
    paths = (source(family) for family in tiny.FAMILIES)
    path = next(path for path in paths if one.refuses(checkpoint.open(path), Target()) is None)
    made = convert(path, tmp_path / f"made{one.suffix}", one.name, quiet=True, allow_loss=True, check=False)
    found = formats.claiming(made.path)
    assert found is not None and found.name == one.name
    assert checkpoint.open(made.path).format == one.name


def test_the_page_has_every_format() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert BEGIN in text and END in text
    rows = text.split(BEGIN)[1].split(END)[0]
    assert all(f"| `{one.name}` |" in rows for one in formats.every())
    assert all(family in rows for family in tiny.FAMILIES)


@pytest.mark.skipif(not os.environ.get("GEODE_WRITE_DOCS"), reason="writes docs/formats.md: GEODE_WRITE_DOCS=1")
def test_write_the_page(source: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    head = f"| format | {' | '.join(tiny.FAMILIES)} |\n|---|{'---|' * len(tiny.FAMILIES)}\n"
    rows = []
    for one in formats.every():
        cells = ["read only"] * len(tiny.FAMILIES)
        if one.write:
            folder = tmp_path_factory.mktemp(one.name)
            cells = [cell(one, source(family), _new(folder / family))[0] for family in tiny.FAMILIES]
        rows.append(f"| `{one.name}` | {' | '.join(cells)} |\n")
    text = DOCS.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    DOCS.write_text(f"{before}{BEGIN}\n{head}{''.join(rows)}{END}{after}", encoding="utf-8")


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
