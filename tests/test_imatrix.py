"""The importance matrix and the trace: what is seen of a forward, against transformers' hooks and plain sums; its files."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import worker
from random_networks import SMALL, WINDOWS, network, text, write_gguf

from geode import imatrix, quant
from geode.cli import main
from geode.errors import ContextError, FormatError, ModelNotFound, OptionError, TensorError
from geode.imatrix import ImportanceMatrix
from geode.io import gguf
from geode.lm import Local
from geode.native import executor as native
from geode.native import extension

if not extension.is_there():
    pytest.skip("the native engine was not built: pip install -e .", allow_module_level=True)

OBSERVED = (
    "Gemma 3, ring turned over",
    "Falcon 7B",
    "OLMo 2",
    "StableLM 2 12B",
    "GPT-NeoX, Pythia, oasst-sft",
)
"""A text of two chunks; one norm for both halves of a block; norms after; both halves side by side; biases."""
BOS = 7


@pytest.fixture(scope="module")
def observed(once: Callable[..., Path]) -> dict[str, Any]:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = once("observed", lambda folder: None)
    return worker("observed_worker.py", str(folder), *OBSERVED)  # type: ignore[no-any-return]


@pytest.mark.xdist_group("observed")
@pytest.mark.parametrize("name", OBSERVED)
def test_the_trace_is_transformers_residual_stream(observed: dict[str, Any], name: str) -> None:
    assert len(observed[name]["residual"]) in (4, 8)  # the embedding and each block
    assert max(observed[name]["residual"]) < 1e-5


@pytest.mark.xdist_group("observed")
@pytest.mark.parametrize("name", OBSERVED)
def test_inputs_are_what_transformers_linear_layers_get(observed: dict[str, Any], name: str) -> None:
    found = observed[name]
    assert len(found["inputs"]) == 4 * (len(found["residual"]) - 1)
    assert max(found["inputs"].values()) < 1e-5
    assert found["shared"]
    assert ("blk.0.ffn_gate.weight" in found["names"]) == name.startswith(("Gemma", "OLMo", "StableLM"))


def model(adds_bos: bool = True, threads: int = 2) -> Local:
    """A random network whose letters are ids."""
    tokenizer = SimpleNamespace(
        bos=BOS,
        adds_bos=adds_bos,
        size=WINDOWS.vocab,
        ends=frozenset(),
        encode=lambda words, bos: [BOS] * bos + [ord(letter) % 96 for letter in words],
    )
    return Local(native.open(WINDOWS, network(WINDOWS), threads=threads), tokenizer)  # type: ignore[arg-type]


def test_looking_changes_nothing() -> None:
    lm, ids = model(), text(530)
    before = lm.logits(ids)
    trace = lm.executor.trace(ids)
    assert trace.dtype == np.float32
    assert trace.shape == (WINDOWS.depth + 1, 530, WINDOWS.width)
    lm.executor.inputs(ids)
    np.testing.assert_array_equal(lm.logits(ids), before)
    np.testing.assert_array_equal(lm.executor.trace(ids[:100]), trace[:, :100])
    np.testing.assert_array_equal(model(threads=1).executor.trace(ids), trace)


def test_threads_agree_on_the_sums() -> None:
    ids = text(200)
    one, three = (model(threads=count).executor.inputs(ids) for count in (1, 3))
    assert one.keys() == three.keys()
    for name, squares in one.items():
        np.testing.assert_allclose(three[name], squares, rtol=1e-12)


def test_chunks_are_llama_imatrixs() -> None:
    """Whole ones only, their first token replaced by BOS, which the text begins with, too."""
    lm = model()
    words = "a text of some letters, twice as long as a chunk, and a little more"
    found = imatrix.collect(lm, words, context=30)
    ids = [BOS, *(ord(letter) % 96 for letter in words)]
    parts = [[BOS, *ids[at + 1 : at + 30]] for at in (0, 30)]
    expected = [lm.executor.inputs(part) for part in parts]
    assert (found.chunks, found.chunk_size) == (2, 30)
    for name, squares in found.sums.items():
        np.testing.assert_array_equal(squares, expected[0][name] + expected[1][name])
        np.testing.assert_allclose(found.weights(name), squares / 60, rtol=1e-6)
    assert set(found.counts.values()) == {60}
    plain = imatrix.collect(model(adds_bos=False), words, context=30, chunks=1)
    assert plain.chunks == 1
    assert not np.array_equal(plain.sums["blk.0.attn_q.weight"], expected[0]["blk.0.attn_q.weight"])


def test_the_head_is_collected_when_asked() -> None:
    lm, ids = model(), text(64)
    assert imatrix.collect(lm, ids, context=32).weights("output.weight") is None
    found = imatrix.collect(lm, ids, context=32, head=True).weights("output.weight")
    assert found is not None and found.shape == (WINDOWS.width,) and found.dtype == np.float32
    assert set(imatrix.collect(lm, ids, context=32).sums) == {
        f"blk.{i}.{stem}.weight"
        for i in range(WINDOWS.depth)
        for stem in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ({"context": 2000}, ContextError, "2000 tokens.*1024"),
        ({"context": 0}, OptionError, "from 1 on"),
        ({"chunks": 0}, OptionError, "from 1 on"),
        ({"context": 65}, OptionError, "64 tokens, and chunks of 65"),
    ],
)
def test_what_cannot_be_collected_is_refused_at_once(how: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        imatrix.progress(model(adds_bos=False), text(64), **how)


def test_another_engine_is_told_apart() -> None:
    lm = SimpleNamespace(executor=object(), context=1024, tokenizer=None)
    with pytest.raises(OptionError, match="--on native"):
        imatrix.collect(lm, [1, 2, 3], context=2)  # type: ignore[arg-type]


def test_inputs_that_are_no_numbers_are_told() -> None:
    with pytest.raises(TensorError, match=r"blk\.0\.attn_q.*--check"):
        ImportanceMatrix().add({"blk.0.attn_q.weight": np.array([1.0, np.inf])}, 3)


def small() -> ImportanceMatrix:
    found = ImportanceMatrix(chunks=2, chunk_size=5, texts=["calibration.txt", "ö.txt"])
    found.add({f"blk.0.attn_{part}.weight": np.arange(4) / 3 for part in "qkv"}, 6)
    found.add({"blk.0.ffn_down.weight": np.ones(8)}, 4)
    return found


def test_a_file_comes_back(tmp_path: Path) -> None:
    small().write(tmp_path / "imatrix.gguf")
    found = imatrix.read(tmp_path / "imatrix.gguf")
    assert (found.chunks, found.chunk_size, found.texts) == (2, 5, ["calibration.txt", "ö.txt"])
    assert found.counts == small().counts
    for name in small().sums:
        np.testing.assert_array_equal(found.weights(name), small().weights(name))
    assert found.weights("output.weight") is None
    ImportanceMatrix().write(tmp_path / "empty.gguf")
    assert imatrix.read(tmp_path / "empty.gguf").sums == {}


def test_the_file_is_llama_cpps(tmp_path: Path) -> None:
    """Keys, types and tensors that `common_imatrix_load` asks for, seen by the gguf package."""
    peer = pytest.importorskip("gguf")
    small().write(tmp_path / "imatrix.gguf")
    file = peer.GGUFReader(tmp_path / "imatrix.gguf")
    kinds = {name: [kind.name for kind in field.types] for name, field in file.fields.items()}
    assert kinds["general.type"] == ["STRING"]
    assert kinds["imatrix.datasets"] == ["ARRAY", "STRING"]
    assert kinds["imatrix.chunk_count"] == kinds["imatrix.chunk_size"] == ["UINT32"]
    tensors = {tensor.name: tensor for tensor in file.tensors}
    assert {tensor.tensor_type.name for tensor in file.tensors} == {"F32"}
    assert tensors["blk.0.ffn_down.weight.counts"].data.tolist() == [4.0]
    fused = tensors["blk.0.attn_qkv.weight.in_sum2"].data  # where a family's file has q, k and v in one
    np.testing.assert_array_equal(fused, (np.arange(4) / 3).astype(np.float32))


def test_a_fused_tensor_is_read_as_its_parts(tmp_path: Path) -> None:
    tensors = {
        "blk.3.attn_qkv.weight.in_sum2": np.array([[8, 2]], np.float32),
        "blk.3.attn_qkv.weight.counts": np.array([[4]], np.float32),
    }
    gguf.write(tmp_path / "fused.gguf", {"general.type": "imatrix"}, tensors)
    found = imatrix.read(tmp_path / "fused.gguf")
    assert sorted(found.sums) == [f"blk.3.attn_{part}.weight" for part in "kqv"]
    assert found.weights("blk.3.attn_v.weight").tolist() == [2, 0.5]  # type: ignore[union-attr]


def named(name: str) -> bytes:
    return struct.pack("<i", len(name.encode())) + name.encode()


def test_the_older_format_is_read(tmp_path: Path) -> None:
    """As `save_imatrix_legacy` writes it: a value is the mean square times the number of chunks."""
    entry = named("blk.0.ffn_up.weight") + struct.pack("<ii3f", 10, 3, 5, 20, 0)
    (tmp_path / "old.dat").write_bytes(struct.pack("<i", 1) + entry + struct.pack("<i", 10) + named("wiki.train"))
    found = imatrix.read(tmp_path / "old.dat")
    assert found.weights("blk.0.ffn_up.weight").tolist() == [0.5, 2, 0]  # type: ignore[union-attr]
    assert (found.chunks, found.texts) == (10, ["wiki.train"])
    (tmp_path / "older.dat").write_bytes(struct.pack("<i", 1) + entry)
    assert imatrix.read(tmp_path / "older.dat").weights("blk.0.ffn_up.weight") is not None


@pytest.mark.parametrize(
    "data",
    [b"", b"GG", struct.pack("<i", 1), struct.pack("<ii", 1, -5), struct.pack("<ii", 1, 1 << 30), b"\x01\0\0\0" * 9],
)
def test_what_is_no_importance_matrix_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(FormatError, match="geode imatrix"):
        imatrix.read(tmp_path / "bad")


def test_another_gguf_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"general\.type"):
        imatrix.read(write_gguf(tmp_path / "model.gguf"))
    experts = {"e.in_sum2": np.ones((2, 4), np.float32), "e.counts": np.ones((2, 1), np.float32)}
    gguf.write(tmp_path / "experts.gguf", {"general.type": "imatrix"}, experts)
    with pytest.raises(FormatError, match="experts"):
        imatrix.read(tmp_path / "experts.gguf")
    with pytest.raises(ModelNotFound, match="geode imatrix"):
        imatrix.read(tmp_path / "none")


def test_the_matrix_makes_outputs_nearer() -> None:
    """Of a network's own matrices packed in two bits: with the matrix, what they compute is closer to what it was."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 512)) * np.exp(rng.standard_normal(512))
    weight = rng.standard_normal((64, 512)).astype(np.float32)
    found = ImportanceMatrix()
    found.add({"w": np.square(x).sum(axis=0)}, 400)
    right = x @ weight.T
    errors = [
        np.square(x @ quant.quantize(weight, "Q2_K", counts).dequantize().T - right).mean()
        for counts in (None, found.weights("w"))
    ]
    assert errors[1] < 0.8 * errors[0]


# --- the verb ----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.chdir(tmp_path)
    write_gguf(Path("model.gguf"))
    Path("text.txt").write_text("words", encoding="utf-8")
    monkeypatch.setattr(Local, "tokenize", lambda self, words, bos=None: text(100, vocab=SMALL.vocab))
    return "model.gguf", "text.txt"


def test_the_verb_writes_the_file(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["imatrix", *files, "-o", "out.gguf", "--context", "32", "--head"]) == 0
    found = imatrix.read("out.gguf")
    assert (found.chunks, found.texts, found.counts["output.weight"]) == (3, ["text.txt"], 96)
    out = capsys.readouterr()
    assert "[1][2][3]" in out.out and "out.gguf" in out.out
    assert "--imatrix out.gguf" in out.err
    assert main(["imatrix", *files, "--context", "32", "--chunks", "2"]) == 0
    assert "output.weight" not in imatrix.read("imatrix.gguf").sums


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--on", "torch"], "native engine"), (["--context", "0"], "from 1 on"), (["--context", "200"], "longer text")],
)
def test_the_verb_says_what_is_wrong(
    files: tuple[str, str], more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["imatrix", *files, *more]) == 2
    assert said in capsys.readouterr().err
    assert not Path("imatrix.gguf").exists()
