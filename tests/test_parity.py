"""Every family and variant, on every framework and on the native engine, against transformers; the table in docs/parity.md.

GEODE_WRITE_DOCS=1 writes the table; otherwise the committed one must have the same rows and hold the same bound.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from conftest import worker
from variants import VARIANTS, Variant, save

pytest.importorskip("transformers")
pytestmark = pytest.mark.xdist_group("parity")

FRAMEWORKS = ("jax", "torch", "tensorflow", "native")
BOUND = 1e-4
PAGE = Path(__file__).parents[1] / "docs" / "parity.md"


@pytest.fixture(scope="module")
def references(once: Callable[..., Path]) -> Path:
    """Checkpoints and logits of all variants, by transformers."""
    return once("references", lambda folder: [save(variant, folder) for variant in VARIANTS] and None)


@pytest.fixture(scope="module")
def measured(references: Path) -> Callable[[str], dict[str, dict[str, float]]]:
    return cache(lambda on: worker("parity_worker.py", str(references), on))


@pytest.mark.parametrize("on", FRAMEWORKS)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.slug)
def test_logits(measured: Callable, on: str, variant: Variant) -> None:
    found = measured(on)[variant.name]
    assert found["spread"] > 0.5, "the test network says nothing: its logits are all alike"
    assert found["reference"] <= BOUND, "distance from transformers"
    assert found["cached"] <= BOUND, "cached decoding, distance from the full forward"
    assert found["batched"] <= BOUND, "a batch of unequal prompts, distance from the full forward"


def test_page(measured: Callable) -> None:
    results = {on: measured(on) for on in FRAMEWORKS}
    if os.environ.get("GEODE_WRITE_DOCS"):
        PAGE.write_text(page(results), encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+?) \| (\d.*)\|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == [variant.name for variant in VARIANTS], "run `make docs`"
    figures = [float(figure) for _, cells in rows for figure in re.findall(r"\d\.\de[-+]\d+", cells)]
    assert len(figures) == 3 * len(FRAMEWORKS) * len(VARIANTS)
    assert max(figures) <= BOUND


def page(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """docs/parity.md."""
    head = " | ".join(f"{on}: transformers | cached | batched" for on in FRAMEWORKS)
    lines = [
        "# Parity",
        "",
        "Largest difference of any logit, float32, on tiny random networks built from transformers' own classes "
        "(`tests/variants.py`): every norm, bias, soft-cap and window is at work, and texts are longer than the windows.",
        "",
        "- **transformers**: our logits against the model that wrote the checkpoint.",
        "- **cached**: prefill and then token by token, against our own full forward, at every position.",
        "- **batched**: three prompts of unequal lengths in one batch, against the full forward of each.",
        "",
        f"The bound is {BOUND:.0e}. Written by `make docs`; `make test` measures it anew.",
        "",
        f"| network | {head} |",
        "|---|" + "---|" * (3 * len(FRAMEWORKS)),
    ]
    for variant in VARIANTS:
        cells = [
            f"{results[on][variant.name][what]:.1e}" for on in FRAMEWORKS for what in ("reference", "cached", "batched")
        ]
        lines.append(f"| {variant.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
