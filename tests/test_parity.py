"""Every family and variant, on every framework and on the native engine, against transformers; the table in docs/parity.md.

GEODE_WRITE_DOCS=1 writes the table; otherwise the committed one must have the same rows and hold the same bound.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import worker
from random_networks import KINDS
from variants import VARIANTS, Variant, save

pytest.importorskip("transformers")
pytestmark = pytest.mark.xdist_group("parity")

FRAMEWORKS = ("jax", "torch", "tensorflow", "native")
BOUND = 1e-4
SECOND = "## The native engine on packed weights"
PACKED_BOUNDS = {"F32": (1.0, 1e-8), "F16": (1.0, 1e-8), "BF16": (0.96, 2e-3), "": (0.9, 0.015)}
"""Least agreement and largest divergence by type; "" stands for all packed ones."""
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


@pytest.fixture(scope="module")
def packed() -> dict[str, Any]:
    """The native engine on packed weights, against the Keras decoder on the same numbers."""
    return worker("packed_worker.py")  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights(packed: dict[str, Any], kind: str) -> None:
    found = packed["kinds"][kind]
    assert found["spread"] > 1, "the test network says nothing: its logits are all alike"
    agreement, divergence = PACKED_BOUNDS.get(kind, PACKED_BOUNDS[""])
    assert found["agreement"] >= agreement
    assert found["divergence"] <= divergence


def test_page(measured: Callable, packed: dict[str, Any]) -> None:
    results = {on: measured(on) for on in FRAMEWORKS}
    if os.environ.get("GEODE_WRITE_DOCS"):
        PAGE.write_text(page(results, packed), encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8").split(SECOND)[0]
    rows = re.findall(r"^\| ([^|]+?) \| (\d.*)\|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == [variant.name for variant in VARIANTS], "run `make docs`"
    figures = [float(figure) for _, cells in rows for figure in re.findall(r"\d\.\de[-+]\d+", cells)]
    assert len(figures) == 3 * len(FRAMEWORKS) * len(VARIANTS)
    assert max(figures) <= BOUND


def test_page_of_packed_weights() -> None:
    text = PAGE.read_text(encoding="utf-8").split(SECOND)[1]
    rows = re.findall(r"^\| (\S+) \| ([\d.]+) % \| (\S+) \| (\S+) \|$", text, re.MULTILINE)
    assert [kind for kind, *_ in rows] == list(KINDS), "run `make docs`"
    for kind, agreement, divergence, _ in rows:
        least, most = PACKED_BOUNDS.get(kind, PACKED_BOUNDS[""])
        assert float(agreement) >= 100 * least
        assert float(divergence) <= most


def page(results: dict[str, dict[str, dict[str, float]]], packed: dict[str, Any]) -> str:
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
    return "\n".join([*lines, *packed_section(packed)]) + "\n"


def packed_section(packed: dict[str, Any]) -> list[str]:
    """The second table."""
    lines = [
        "",
        SECOND,
        "",
        "A random network with matrices of each type, run by the native engine in the type's own bits, against the "
        "Keras decoder on the same numbers in float32; 512 positions, keys and values in float32 "
        f"(`tests/packed_worker.py`). Instruction set: {packed['isa']}. The weights are the same numbers on both sides, so "
        "what is left is the rounding of activations: to 8 bits beside packed weights, to bfloat16 beside bfloat16. A "
        "random network magnifies it; a trained one does much less.",
        "",
        "- **top-1**: positions at which both find the same likeliest token.",
        "- **KL**: mean divergence of the native distribution from the reference's, in nats.",
        "- **logits**: the largest difference, where the reference's standard deviation is about 3.",
        "",
        "| weights | top-1 | KL | logits |",
        "|---|---|---|---|",
    ]
    for kind in KINDS:
        found = packed["kinds"][kind]
        cells = f"{100 * found['agreement']:.1f} % | {abs(found['divergence']):.1e} | {found['distance']:.1e}"
        lines.append(f"| {kind} | {cells} |")
    return lines
