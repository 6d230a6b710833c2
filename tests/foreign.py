"""What the tests of other programs' formats share: a tiny checkpoint written as another format, opened and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from variants import VARIANTS, Variant, build

import geode.checkpoint
from geode.formats import Checkpoint, Target, by_name
from geode.formats.base import write_json
from geode.tensors import Tensors

PLAIN = Target()


def named(name: str) -> Variant:
    return next(variant for variant in VARIANTS if variant.name == name)


def by_slug(*names: str) -> Any:
    """A parameter `variant`, one for each name."""
    variants = [named(name) for name in names]
    return pytest.mark.parametrize("variant", variants, ids=[variant.slug for variant in variants])


def saved(variant: Variant, folder: Path, dtype: str = "float32") -> tuple[Any, Checkpoint]:
    """transformers' model of a variant, saved in `folder`, and that opened."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = build(variant).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return model, geode.checkpoint.open(folder)


def converted(source: Checkpoint, name: str, folder: Path, target: Target = PLAIN, manifest: bool = True) -> Checkpoint:
    """`source` written as the format `name`, and opened again."""
    one = by_name(name)
    folder.mkdir()
    assert one.refuses(source, target) is None
    assert one.write is not None
    one.write(source, folder, folder.name, target)
    if manifest:
        write_json(folder / "geode.json", {"config": source.family.config_to_hf(source.config)})
    return geode.checkpoint.open(folder)


def same(found: Tensors, expected: Tensors) -> None:
    """Names, shapes and every bit; float64 that came of adding one is compared in the type it is compared with."""
    assert set(found) == set(expected)
    for name, entry in expected.entries.items():
        assert found.entries[name].shape == entry.shape, name
        array, other = np.asarray(found[name]), np.asarray(expected[name])
        assert array.tobytes() == other.astype(array.dtype).tobytes(), name


def near(found: Tensors, expected: Tensors, tolerance: float) -> None:
    """The same but for norms, which may differ by `tolerance` where one was added in a narrower type."""
    same(*(Tensors({n: e for n, e in t.entries.items() if "norm" not in n}) for t in (found, expected)))
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(
            np.asarray(found[name]).astype(np.float64), np.asarray(expected[name]).astype(np.float64), atol=tolerance
        )
