"""Orbax directories: what Orbax writes is read, what we write Orbax restores, and damage is named."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import orbax_worker
import pytest
from conftest import worker

from geode.errors import CapacityError, FormatError, GeodeError, MissingExtra, ModelNotFound, TensorError
from geode.io import orbax
from geode.quant import QTensor
from geode.tensors import Entry, Tensors, from_arrays

pytest.importorskip("tensorstore")
TREE = orbax_worker.flattened(orbax_worker.tree())


@pytest.fixture(scope="session")
def theirs(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """Checkpoints that Orbax itself has saved."""
    pytest.importorskip("orbax.checkpoint")
    return once("orbax-saved", lambda folder: worker("orbax_worker.py", "save", str(folder)) and None)


def same(found: Tensors, expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        entry = found.entries[name]
        assert orbax_worker.digest(np.asarray(found[name])) == orbax_worker.digest(array), name
        assert (entry.shape, entry.nbytes) == (array.shape, array.nbytes)


# Reading


@pytest.mark.parametrize("kind", ["standard", "plain", "zarr3", "plain3", "steps", "items"])
def test_what_orbax_saves_is_read(kind: str, theirs: Path) -> None:
    folder = orbax.find(theirs / kind)
    assert folder is not None
    same(orbax.read(folder), TREE)
    assert sorted(orbax.names(folder)) == sorted(TREE)


def test_the_latest_step_is_found_by_number(theirs: Path) -> None:
    assert orbax.find(theirs / "steps") == theirs / "steps" / "20" / "default"
    assert orbax.find(theirs / "items") == theirs / "items" / "20" / "items"
    assert orbax.find(theirs / "items" / "3") == theirs / "items" / "3" / "items"


def test_a_directory_with_several_checkpoints_is_not_guessed(theirs: Path, tmp_path: Path) -> None:
    assert orbax.find(theirs) is None
    shutil.copytree(theirs / "standard", tmp_path / "gemma-2b")
    assert orbax.find(tmp_path) == tmp_path / "gemma-2b"


def test_other_directories_are_not_orbax(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1"\n')  # TensorFlow's
    (tmp_path / "7").mkdir()
    assert orbax.find(tmp_path) is None
    assert orbax.find(tmp_path / "checkpoint") is None
    with pytest.raises(ModelNotFound, match="no Orbax checkpoint"):
        orbax.read(tmp_path)


def test_a_database_without_metadata_lists_itself(theirs: Path, tmp_path: Path) -> None:
    for kind in ("standard", "zarr3"):
        folder = shutil.copytree(theirs / kind, tmp_path / kind)
        (folder / "_METADATA").unlink()
        same(orbax.read(folder), TREE)


def aggregate(leaves: dict[str, Any]) -> bytes:
    """The file `checkpoint` of older versions."""
    msgpack = pytest.importorskip("msgpack")

    def packed(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            inner = msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True)
            return msgpack.ExtType(1, inner)
        return {key: packed(one) for key, one in value.items()} if isinstance(value, dict) else value

    return msgpack.packb(packed(leaves), strict_types=True)


def test_the_older_listing_in_msgpack_is_read(theirs: Path, tmp_path: Path) -> None:
    """Placeholders for arrays in directories of their own, dotted; small arrays and pieces of large ones inside."""
    folder = shutil.copytree(theirs / "plain", tmp_path / "old")
    (folder / "_METADATA").unlink()
    (folder / "transformer/layer_0/attn/q_einsum.w").rename(folder / "transformer.layer_0.attn.q_einsum.w")
    large = np.arange(12, dtype=np.float32).reshape(3, 4)
    pieces = {"__msgpack_chunked_array__": True, "shape": {"0": 3, "1": 4},
              "chunks": {"0": large.reshape(-1)[:7], "1": large.reshape(-1)[7:]}}  # fmt: skip
    (folder / "checkpoint").write_bytes(aggregate({
        "transformer/layer_0/attn/q_einsum": {"w": "PLACEHOLDER://transformer/layer_0/attn/q_einsum.w"},
        "transformer/final_norm": {"scale": "PLACEHOLDER://transformer/final_norm.scale"},
        "small": np.ones(3, ml_dtypes.bfloat16), "large": pieces, "step": 7, "none": None,
    }))  # fmt: skip
    assert orbax.find(folder) == folder
    kept = ("transformer/layer_0/attn/q_einsum/w", "transformer/final_norm/scale")
    expected = {name: TREE[name] for name in kept} | {"small": np.ones(3, ml_dtypes.bfloat16), "large": large}
    same(orbax.read(folder), expected)


def test_layers_are_read_one_by_one(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).standard_normal((6, 5, 4)).astype(np.float32)
    orbax.write(tmp_path, from_arrays({"a": stack}), stacks={"a": 1})
    parts = orbax.unstacked(orbax.read(tmp_path).entries["a"], 1)
    assert len(parts) == 5
    for j, part in enumerate(parts):
        assert (part.shape, part.nbytes) == ((6, 4), 96)
        np.testing.assert_array_equal(part.load(), stack[:, j])
    (piece,) = orbax.unstacked(from_arrays({"a": stack}).entries["a"], 0)[2:3]
    np.testing.assert_array_equal(piece.load(), stack[2])


def test_more_layers_than_any_network_has_are_refused() -> None:
    with pytest.raises(FormatError, match="99999 layers"):
        orbax.unstacked(Entry((3, 99999), "F32", 0, lambda: np.zeros(0)), 1)


def test_neither_jax_nor_orbax_is_imported(tmp_path: Path) -> None:
    orbax.write(tmp_path, from_arrays({"a/b": np.ones(3, np.float32)}))
    code = f"import sys; from pathlib import Path; from geode.io import orbax; print(orbax.read(Path({str(tmp_path)!r}))['a/b'].sum(), [n for n in sys.modules if n.split('.')[0] in ('jax', 'orbax', 'msgpack')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3.0 []"


# Writing


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint in one directory, and one as a step of a training run."""
    root = tmp_path_factory.mktemp("ours")
    orbax.write(root / "flat", from_arrays(TREE), keys=lambda name: tuple(name.rsplit("/", 1)))
    orbax.write(root / "run" / "0", from_arrays(TREE), item="items", zarr3=True, stacks={"other/deep/half": 1})
    (root / "flat" / "geode.json").write_text("{}")  # files beside do not disturb Orbax
    return root / "flat", root / "run" / "0"


def test_what_we_write_is_read(ours: tuple[Path, Path]) -> None:
    for folder in ours:
        found = orbax.find(folder)
        assert found is not None
        same(orbax.read(found), TREE)


def test_orbax_restores_what_we_write(ours: tuple[Path, Path]) -> None:
    pytest.importorskip("orbax.checkpoint")
    flat, run = ours
    restored = worker("orbax_worker.py", "restore", str(flat), str(run / "items"))
    expected = orbax_worker.digests(orbax_worker.tree())
    assert restored[str(flat)] == expected
    assert restored[str(run / "items")] == expected


def test_large_arrays_lie_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orbax, "CHUNK", 100)
    large = np.random.default_rng(0).standard_normal((13, 5, 3)).astype(np.float32)
    assert orbax._chunk(from_arrays({"a": large}).entries["a"], None) == [1, 5, 3]
    assert orbax._chunk(from_arrays({"a": large}).entries["a"], 1) == [8, 1, 3]
    for zarr3 in (False, True):
        orbax.write(tmp_path / str(zarr3), from_arrays({"a": large}), zarr3=zarr3)
        np.testing.assert_array_equal(orbax.read(tmp_path / str(zarr3))["a"], large)


def test_one_array_is_in_memory_at_a_time(tmp_path: Path) -> None:
    loaded: list[str] = []

    def entry(name: str) -> Entry:
        return Entry((2,), "F32", 8, lambda: loaded.append(name) or np.zeros(2, np.float32))  # type: ignore[func-returns-value]

    orbax.write(tmp_path, Tensors({name: entry(name) for name in "abc"}))
    assert loaded == ["a", "b", "c"]
    assert not any(orbax.read(tmp_path)["b"])


def test_packed_and_false_tensors_are_refused(tmp_path: Path) -> None:
    packed = QTensor("Q8_0", (1, 32), np.zeros((1, 34), np.uint8))
    with pytest.raises(TensorError, match="plain arrays only"):
        orbax.write(tmp_path, from_arrays({"a": packed}))
    with pytest.raises(TensorError, match="announced as BF16"):
        orbax.write(tmp_path, Tensors({"a": Entry((2,), "BF16", 4, lambda: np.zeros(2, np.float32))}))


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorstore

    def full(*_: Any, **__: Any) -> Any:
        raise ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device [source locations='x']")

    monkeypatch.setattr(tensorstore, "open", full)
    with pytest.raises(CapacityError, match="No room to write"):
        orbax.write(tmp_path, from_arrays(TREE))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orbax.write(tmp_path, from_arrays(TREE))
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(MissingExtra, match=r"tensorstore.*geode\[orbax\]"):
        orbax.read(tmp_path)
    monkeypatch.setitem(sys.modules, "msgpack", None)
    (tmp_path / "checkpoint").write_bytes(b"\x80")
    with pytest.raises(MissingExtra, match="msgpack"):
        orbax.read(tmp_path)


# Damage


def refused(folder: Path) -> str:
    with pytest.raises(GeodeError) as problem:
        dict(orbax.read(folder))
    assert "\n" not in str(problem.value)
    return str(problem.value)


def test_a_missing_piece_is_not_zeros(theirs: Path, tmp_path: Path) -> None:
    """zarr gives zeros for a chunk that is not there; Orbax says whether zeros are stored."""
    folder = shutil.copytree(theirs / "plain", tmp_path / "a")
    (folder / "transformer/final_norm.scale/0").unlink()
    assert "transformer/final_norm/scale" in refused(folder)
    folder = shutil.copytree(theirs / "plain3", tmp_path / "b")
    (folder / "transformer/final_norm.scale/c/0").unlink()
    assert "transformer/final_norm/scale" in refused(folder)


def test_a_missing_array_is_named(theirs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(theirs / "plain", tmp_path / "a")
    shutil.rmtree(folder / "transformer/final_norm.scale")
    assert "transformer/final_norm/scale, which is not there" in refused(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "list, expected an object"),
        ("{}", "no Orbax checkpoint"),
        ('{"use_ocdbt": true}', "tree_metadata"),
        ('{"tree_metadata": {"a": 3}}', "expected key_metadata"),
        ('{"tree_metadata": {"a": {"key_metadata": [{"key": "a"}], "value_metadata": 3}}}', "expected key_metadata"),
        ('{"tree_metadata": {"a": {"key_metadata": [], "value_metadata": {}}}}', "names an array ''"),
    ],
)
def test_damaged_metadata(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "_METADATA").write_text(text)
    assert said in refused(tmp_path)


@pytest.mark.parametrize("key", ["..", "a/../../b", "/etc/passwd", "C:\\x", "a\\..\\b", "a\0b", ""])
def test_names_that_leave_the_directory_are_refused(key: str, tmp_path: Path) -> None:
    entry = {"key_metadata": [{"key": key, "key_type": 2}], "value_metadata": {"value_type": "np.ndarray"}}
    (tmp_path / "_METADATA").write_text(json.dumps({"tree_metadata": {"a": entry}}))
    assert "Do not trust" in refused(tmp_path)
    (tmp_path / "_METADATA").unlink()
    (tmp_path / "checkpoint").write_bytes(aggregate({"a": f"PLACEHOLDER://{key}"}))
    assert "Do not trust" in refused(tmp_path)


@pytest.mark.parametrize(
    "data", [b"\x81", b"\x81\xa1a", b"\x81\xa1a\xc7\x04\x01\x93\x01\x02\x03", b"\xdf\xff\xff\xff\xff"]
)
def test_a_damaged_listing_in_msgpack(data: bytes, tmp_path: Path) -> None:
    pytest.importorskip("msgpack")
    (tmp_path / "checkpoint").write_bytes(data)
    assert "not msgpack" in refused(tmp_path)


def test_a_listing_that_is_too_deep(tmp_path: Path) -> None:
    tree: dict[str, Any] = {"a": np.ones(1, np.float32)}
    for _ in range(100):
        tree = {"a": tree}
    (tmp_path / "checkpoint").write_bytes(aggregate(tree))
    assert "keys deep" in refused(tmp_path)


@pytest.mark.parametrize("kind", ["standard", "plain", "zarr3"])
def test_any_damage_is_our_error_or_harmless(kind: str, theirs: Path, tmp_path: Path) -> None:
    """Files cut short, emptied or with a byte turned: an error of ours, or an answer, and nothing else."""
    dice = random.Random(3)
    folder = tmp_path / "damaged"
    files = sorted(file.relative_to(theirs / kind) for file in (theirs / kind).rglob("*") if file.is_file())
    caught = 0
    for file in files:
        data = (theirs / kind / file).read_bytes()
        flipped = bytearray(data)
        if data:
            flipped[dice.randrange(len(data))] ^= 0xFF
        for broken in (b"", data[: len(data) // 2], bytes(flipped)):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(theirs / kind, folder)
            (folder / file).write_bytes(broken)
            try:
                dict(orbax.read(folder))
            except GeodeError:
                caught += 1
    assert caught >= len(files) / 2
