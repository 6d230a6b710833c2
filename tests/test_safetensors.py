"""safetensors files: built by hand, by Hugging Face's package and by us; single, sharded, bent and fuzzed."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geode.errors import FormatError, GeodeError, ModelNotFound, OptionError, TensorError
from geode.io import safetensors
from geode.quant import DTYPES, QTensor
from geode.tensors import Entry, Tensors

INDEX = "model.safetensors.index.json"
ARRAYS: dict[str, np.ndarray] = {
    kind.lower(): np.arange(6).astype(dtype).reshape(2, 3) for kind, dtype in DTYPES.items()
} | {"scalar": np.array(2.5, np.float32), "nothing": np.zeros((0, 4), np.float16), "é": np.ones(3, np.uint8)}


def build(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def info(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(data: bytes, name: str = "model.safetensors") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return save


def names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


def same(found: Tensors, arrays: dict[str, Any]) -> None:
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        back = found[name]
        assert isinstance(back, np.ndarray)
        assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


def test_a_file_built_by_hand_is_read_in_place(save: Callable[..., Path]) -> None:
    header = {"__metadata__": {"format": "pt"}, "b": info("I16", [2, 2], [8, 16]), "a": info()}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path = save(build(raw, struct.pack("<2f4h", 1, 2, 3, 4, 5, 6)))
    found = safetensors.read(path)
    assert found.entries["b"].shape == (2, 2)
    assert found.entries["b"].type == "I16"
    assert found.nbytes == 16
    np.testing.assert_array_equal(found["a"], [1, 2])
    np.testing.assert_array_equal(found["b"], [[3, 4], [5, 6]])
    assert not found["a"].flags.owndata
    assert safetensors.metadata(path) == {"format": "pt"}


@pytest.mark.parametrize("pad", range(8))
def test_headers_of_any_length_give_aligned_arrays(save: Callable[..., Path], pad: int) -> None:
    raw = json.dumps({"a": info()}).encode() + b" " * pad
    array = safetensors.read(save(build(raw, struct.pack("<2f", 1, 2))))["a"]
    assert array.flags.aligned
    np.testing.assert_array_equal(array, [1, 2])


def test_every_type_comes_back_bitwise(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "m.safetensors", ARRAYS, {"note": "é"})
    same(safetensors.read(tmp_path / "m.safetensors"), ARRAYS)
    assert safetensors.metadata(tmp_path / "m.safetensors") == {"note": "é"}
    assert all(array.flags.aligned for array in safetensors.read(tmp_path / "m.safetensors").values())


def test_arrays_in_other_layouts_are_written_in_the_files_own(tmp_path: Path) -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    safetensors.write(tmp_path / "m.safetensors", {"turned": matrix.T, "swapped": matrix.astype(">f4")})
    found = safetensors.read(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(found["turned"], matrix.T)
    np.testing.assert_array_equal(found["swapped"], matrix)


def test_no_tensors_is_a_file_too(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "m.safetensors", {}, {})
    assert len(safetensors.read(tmp_path / "m.safetensors")) == 0
    assert safetensors.metadata(tmp_path / "m.safetensors") == {}


# Peers


def test_the_safetensors_package_reads_what_we_write(tmp_path: Path) -> None:
    peer = pytest.importorskip("safetensors")
    arrays = {k: v for k, v in ARRAYS.items() if v.dtype.name not in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}
    safetensors.write(tmp_path / "m.safetensors", arrays)
    with peer.safe_open(tmp_path / "m.safetensors", "numpy") as file:
        assert set(file.keys()) == set(arrays)
        assert file.metadata() == {"format": "pt"}
        for name, array in arrays.items():
            back = file.get_tensor(name)
            assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_narrow_floats_mean_to_torch_what_they_mean_to_us(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("safetensors.torch")
    rng = np.random.default_rng(0)
    values = rng.normal(size=64).astype(np.float32)
    kinds = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
    ours = {name: values.astype(getattr(ml_dtypes, name)) for name in kinds}
    safetensors.write(tmp_path / "m.safetensors", ours)
    for name, back in peer.load_file(tmp_path / "m.safetensors").items():
        assert back.dtype == kinds[name]
        np.testing.assert_array_equal(back.float().numpy(), ours[name].astype(np.float32))


def test_files_of_the_safetensors_package_are_read(tmp_path: Path) -> None:
    peer = pytest.importorskip("safetensors.numpy")
    arrays = {
        "b": np.arange(5, dtype=np.uint8),
        "a": np.arange(4, dtype=np.int64),
        "empty": np.zeros((2, 0), np.float32),
    }
    peer.save_file(arrays, tmp_path / "m.safetensors", {"k": "v"})
    same(safetensors.read(tmp_path / "m.safetensors"), arrays)
    assert safetensors.metadata(tmp_path / "m.safetensors") == {"k": "v"}


# Directories and shards

WEIGHTS = {f"layer.{i}": np.full((4, 4), i, np.float32) for i in range(5)}


def test_shards_hold_at_most_what_is_asked(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "m", WEIGHTS, max_shard_bytes=130)
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert names(tmp_path / "m") == [*shards, INDEX]
    same(safetensors.read(tmp_path / "m"), WEIGHTS)
    same(safetensors.read(tmp_path / "m" / INDEX), WEIGHTS)
    same(safetensors.read(tmp_path / "m" / shards[2]), {"layer.4": WEIGHTS["layer.4"]})
    index = json.loads((tmp_path / "m" / INDEX).read_text())
    assert index["metadata"] == {"total_size": 320}
    assert list(index["weight_map"].values()) == [shards[0]] * 2 + [shards[1]] * 2 + [shards[2]]
    assert safetensors.metadata(tmp_path / "m") == {"format": "pt"}


def test_a_tensor_bigger_than_a_shard_has_its_own(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "m", WEIGHTS, max_shard_bytes=1)
    assert len(names(tmp_path / "m")) == 6
    same(safetensors.read(tmp_path / "m"), WEIGHTS)


@pytest.mark.parametrize("limit", [None, 320])
def test_one_shard_needs_no_index(tmp_path: Path, limit: int | None) -> None:
    safetensors.write(tmp_path / "m", WEIGHTS, max_shard_bytes=limit)
    assert names(tmp_path / "m") == ["model.safetensors"]


def test_the_files_of_an_earlier_checkpoint_go(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    safetensors.write(tmp_path, WEIGHTS, max_shard_bytes=64)
    safetensors.write(tmp_path, safetensors.read(tmp_path), max_shard_bytes=128)  # reading what it replaces
    assert names(tmp_path) == ["config.json", *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)), INDEX]
    safetensors.write(tmp_path, safetensors.read(tmp_path))
    assert names(tmp_path) == ["config.json", "model.safetensors"]
    same(safetensors.read(tmp_path), WEIGHTS)
    safetensors.write(tmp_path, WEIGHTS, max_shard_bytes=128)
    assert "model.safetensors" not in names(tmp_path)


def test_the_only_file_of_a_directory_may_have_any_name(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "adapter.safetensors", WEIGHTS)
    same(safetensors.read(tmp_path), WEIGHTS)
    safetensors.write(tmp_path / "another.safetensors", WEIGHTS)
    with pytest.raises(ModelNotFound, match=r"adapter\.safetensors, another\.safetensors"):
        safetensors.read(tmp_path)


def test_transformers_reads_our_shards(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    safetensors.write(tmp_path, {k: v.numpy() for k, v in model.state_dict().items()}, max_shard_bytes=5000)
    assert INDEX in names(tmp_path)
    back, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in model.state_dict().items())


def sharded(tmp_path: Path) -> dict[str, Any]:
    safetensors.write(tmp_path, WEIGHTS, max_shard_bytes=130)
    index: dict[str, Any] = json.loads((tmp_path / INDEX).read_text())
    return index


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"model-00002-of-00003\.safetensors"):
        safetensors.read(tmp_path)


def test_a_tensor_absent_from_its_shard_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    index["weight_map"]["layer.9"] = "model-00001-of-00003.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"model-00001-of-00003.*'layer\.9'"):
        safetensors.read(tmp_path)


def test_a_tensor_that_the_index_forgot_is_kept(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    del index["weight_map"]["layer.1"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    same(safetensors.read(tmp_path), WEIGHTS)


def test_of_two_copies_the_index_chooses(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    first, second = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
    safetensors.write(tmp_path / second, {name: WEIGHTS[name] for name in ("layer.1", "layer.2", "layer.3")})
    same(safetensors.read(tmp_path), WEIGHTS)
    del index["weight_map"]["layer.1"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(FormatError, match=rf"{second}.*'layer\.1' is in two shards"):
        safetensors.read(tmp_path)
    assert (tmp_path / first).exists()


@pytest.mark.parametrize(
    "file",
    ["../model.safetensors", "/etc/passwd", "a/../../b", "C:\\x", "..\\x", "\\\\host\\x", "", ".", "a\0b"],
)
def test_an_index_that_leaves_its_directory_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": file}}))
    with pytest.raises(FormatError, match="leaves the directory"):
        safetensors.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "list, expected an object"),
        ("{", "not JSON"),
        ("{}", "weight_map is None"),
        ('{"weight_map": {}}', "weight_map is {}"),
        ('{"weight_map": {"a": 1}}', "weight_map is"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "'a' twice"),
    ],
)
def test_a_bad_index_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(FormatError, match=message):
        safetensors.read(tmp_path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no \.safetensors file"):
        safetensors.read(tmp_path)
    for name in ("absent.safetensors", INDEX):
        with pytest.raises(ModelNotFound, match=name):
            safetensors.read(tmp_path / name)


# Failing while writing


def failing() -> Tensors:
    def load() -> np.ndarray:
        raise RuntimeError("broken")

    good = {name: Entry(array.shape, "F32", array.nbytes, lambda a=array: a) for name, array in WEIGHTS.items()}
    return Tensors(good | {"bad": Entry((1,), "F32", 4, load)})


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    for path in (tmp_path / "new" / "dir", tmp_path / "m.safetensors"):
        with pytest.raises(RuntimeError):
            safetensors.write(path, failing(), max_shard_bytes=64 if path.suffix == "" else None)
    assert names(tmp_path) == []


def test_a_failed_write_leaves_the_old_shards_alone(tmp_path: Path) -> None:
    sharded(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with pytest.raises(RuntimeError):
        safetensors.write(tmp_path, failing(), max_shard_bytes=130)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


@pytest.mark.parametrize(
    ("tensors", "options", "error", "message"),
    [
        ({"q": QTensor("Q8_0", (1, 32), np.zeros((1, 34), np.uint8))}, {}, TensorError, "Dequantise"),
        ({"c": np.zeros(2, np.complex64)}, {}, TensorError, "COMPLEX64"),
        ({"__metadata__": np.zeros(2)}, {}, OptionError, "__metadata__"),
        ({"\ud800": np.zeros(2)}, {}, OptionError, "cannot hold"),
        (WEIGHTS, {"metadata": {"a": 1}}, OptionError, "texts"),
        (WEIGHTS, {"max_shard_bytes": 0}, OptionError, "1 or more"),
        (WEIGHTS, {"max_shard_bytes": 130}, OptionError, "3 shards"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    tmp_path: Path, tensors: dict[str, Any], options: dict[str, Any], error: type[GeodeError], message: str
) -> None:
    with pytest.raises(error, match=message):
        safetensors.write(tmp_path / "m.safetensors", tensors, **options)
    assert names(tmp_path) == []


# Bad files

BODY = bytes(8)
BAD = {
    "empty": (b"", "0 bytes"),
    "cut in the length": (bytes(7), "7 bytes"),
    "length": (build({}, length=1000), "the file ends after"),
    "absurd length": (build({}, length=(1 << 64) - 1), "limit of 100000000"),
    "not UTF-8": (build(b'{"\xff": 1}'), "not UTF-8"),
    "not JSON": (build(b"{]"), "not JSON"),
    "utf-16": (build("{}".encode("utf-16")), "not "),
    "deep JSON": (build(b'{"a":' + b"[" * 200_000), "not JSON"),
    "long number": (build(b'{"a":' + b"1" * 10_000 + b"}"), "not JSON"),
    "not an object": (build([]), "list, expected an object"),
    "twice": (build(b'{"a": 1, "b": 2, "a": 3}'), "'a' twice"),
    "twice inside": (build(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' twice"),
    "metadata": (build({"__metadata__": {"a": 1}}), "expected names with texts"),
    "metadata list": (build({"__metadata__": []}), "expected names with texts"),
    "surrogate": (build(b'{"\\ud800": 1}'), "not UTF-8"),
    "no object": (build({"a": 1}), "'a' is 1, expected dtype"),
    "no dtype": (build({"a": {"shape": [], "data_offsets": [0, 0]}}), "expected dtype"),
    "dtype": (build({"a": info("F4")}, BODY), "dtype 'F4'.*BF16"),
    "dtype number": (build({"a": info(3)}, BODY), "dtype 3"),
    "shape": (build({"a": info(shape=[-2])}, BODY), r"shape \[-2\]"),
    "shape float": (build({"a": info(shape=[2.0])}, BODY), r"shape \[2.0\]"),
    "shape bool": (build({"a": info(shape=[True, 2])}, BODY), "shape"),
    "shape text": (build({"a": info(shape="22")}, BODY), "shape"),
    "axes": (build({"a": info("U8", [1] * 65, [0, 1])}, BODY), "at most 64"),
    "overflow": (build({"a": info(shape=[1 << 40, 1 << 40, 0], offsets=[0, 0])}, b""), "addresses"),
    "offsets": (build({"a": info(offsets=[0])}, BODY), "expected two"),
    "offsets backwards": (build({"a": info(offsets=[8, 0])}, BODY), "span another"),
    "span": (build({"a": info(offsets=[0, 7])}, BODY), "takes 8 bytes"),
    "out of range": (build({"a": info(offsets=[0, 8])}, BODY[:7]), "take 8 bytes, and 7 follow"),
    "far out of range": (build({"a": info(offsets=[1 << 62, (1 << 62) + 8])}, BODY), "hole"),
    "left over": (build({"a": info()}, BODY + b"x"), "take 8 bytes, and 9 follow"),
    "hole": (build({"a": info(), "b": info(offsets=[12, 20])}, bytes(20)), "'b' begins at 12, expected 8.*hole"),
    "overlap": (build({"a": info(), "b": info(offsets=[4, 12])}, bytes(12)), "'b' begins at 4.*overlaps"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_their_fault(save: Callable[..., Path], case: str) -> None:
    data, message = BAD[case]
    path = save(data)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=message) as caught:
            safetensors.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000 + 20 * len(data)
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert len(text) < 600


def test_every_truncation_is_noticed(save: Callable[..., Path], tmp_path: Path) -> None:
    safetensors.write(tmp_path / "whole.safetensors", {"a": np.arange(3, dtype=np.float32), "b": np.zeros(2, bool)})
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for size in range(len(whole)):
        with pytest.raises(FormatError):
            safetensors.read(save(whole[:size]))


def test_a_huge_checkpoint_opens_by_its_header(tmp_path: Path) -> None:
    size = 17_179_869_184
    head = build({"t": info("F32", [1 << 20, 4096], [0, size])})
    with (tmp_path / "huge.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)  # none of it on the disk
    found = safetensors.read(tmp_path)
    assert found.nbytes == size
    assert found.entries["t"].shape == (1 << 20, 4096)


# Fuzz: an error of ours or success, always at once

HEADER = {"__metadata__": {"format": "pt"}, "a": info("F32", [2, 2], [0, 16]), "b": info("BF16", [3], [16, 22])}
WHOLE = build(HEADER, bytes(range(22)))


def survives(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with contextlib.suppress(GeodeError):
        found = safetensors.read(path)
        safetensors.write(path, {name: found[name] for name in found}, safetensors.metadata(path))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "m.safetensors"


quick = settings(max_examples=300, deadline=None)


@quick
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_do_no_harm(scratch: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for at, byte in changes:
        data[at] = byte
    survives(scratch, bytes(data))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F4"]) | JSON,
        "shape": st.lists(st.integers(0, 4) | st.integers(), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(0, 32) | st.integers(), min_size=2, max_size=2) | JSON,
    }
)


@quick
@given(
    st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), FIELDS | JSON, max_size=3), st.binary(max_size=32)
)
def test_headers_of_any_content_do_no_harm(scratch: Path, header: dict[str, object], body: bytes) -> None:
    survives(scratch, build(header, body))


@quick
@given(st.binary(max_size=200))
def test_random_bytes_do_no_harm(scratch: Path, data: bytes) -> None:
    survives(scratch, build(data, b""))
    survives(scratch, data)
