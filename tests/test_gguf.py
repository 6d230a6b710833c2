"""GGUF files: built by hand, by ggml's own package and by us; whole, split, cut short, bent and fuzzed."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geode.errors import CapacityError, FormatError, GeodeError, ModelNotFound, OptionError, TensorError
from geode.io import gguf
from geode.quant import QTensor
from geode.tensors import Entry, Tensors

# A file built by hand, so that reader and writer are not checked against each other alone


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def info(name: str | bytes, axes: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, offset)


def build(keys: list[bytes], infos: list[bytes], body: bytes = b"", version: int = 3, alignment: int = 32) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(keys)) + b"".join(keys) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + body


STRINGS = struct.pack("<IQ", 8, 3) + string("a") + string("é") + string(b"\xff")
KEYS = [
    key("u8", 0, b"\xff"),
    key("i8", 1, b"\xff"),
    key("u16", 2, struct.pack("<H", 65535)),
    key("i16", 3, struct.pack("<h", -2)),
    key("u32", 4, struct.pack("<I", 1 << 31)),
    key("i32", 5, struct.pack("<i", -3)),
    key("f32", 6, struct.pack("<f", 0.1)),
    key("bool", 7, b"\x01"),
    key("string", 8, string("hé")),
    key("strings", 9, STRINGS),
    key("floats", 9, struct.pack("<IQ2f", 6, 2, 0.5, -1)),
    key("bools", 9, struct.pack("<IQ2?", 7, 2, True, False)),
    key("none", 9, struct.pack("<IQ", 4, 0)),
    key("nested", 9, struct.pack("<IQIQ2iIQ", 9, 2, 5, 2, 7, 8, 9, 0)),
    key("u64", 10, struct.pack("<Q", 1 << 63)),
    key("i64", 11, struct.pack("<q", -(1 << 63))),
    key("f64", 12, struct.pack("<d", 0.1)),
]
MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)
BLOCK = struct.pack("<e", 0.5) + bytes(range(32))
INFOS = [info("matrix", (3, 2), 0, 0), info("packed", (32, 1), 8, 32)]
BODY = MATRIX.tobytes() + bytes(8) + BLOCK
WHOLE = build(KEYS, INFOS, BODY)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[bytes], Path]:
    def save(data: bytes, name: str = "model.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return save


def leftovers(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


@pytest.mark.parametrize("version", [2, 3])
def test_every_value_type_is_read(save: Callable[[bytes], Path], version: int) -> None:
    found = gguf.read(save(build(KEYS, INFOS, BODY, version)))
    assert found.version == version
    m = found.metadata
    assert (m["u8"], m["i8"], m["u16"], m["i16"], m["u32"], m["i32"]) == (255, -1, 65535, -2, 1 << 31, -3)
    assert (m["u64"], m["i64"], m["f64"], m["f32"]) == (1 << 63, -(1 << 63), 0.1, float(np.float32(0.1)))
    assert m["bool"] is True
    assert m["string"] == "hé"
    assert m["strings"] == ["a", "é", "\udcff"]
    assert m["floats"].dtype == np.float32  # type: ignore[attr-defined]
    assert m["bools"].tolist() == [True, False]  # type: ignore[attr-defined]
    assert len(m["none"]) == 0  # type: ignore[arg-type]
    assert [list(inner) for inner in m["nested"]] == [[7, 8], []]  # type: ignore[attr-defined]
    assert found.types["none"] == "array[u32]"
    assert found.types["u8"] == "u8"


def test_tensors_are_views_of_the_file_in_row_major_shape(save: Callable[[bytes], Path]) -> None:
    tensors = gguf.read(save(WHOLE)).tensors
    assert {name: (e.shape, e.type, e.nbytes) for name, e in tensors.entries.items()} == {
        "matrix": ((2, 3), "F32", 24),
        "packed": ((1, 32), "Q8_0", 34),
    }
    matrix, packed = tensors["matrix"], tensors["packed"]
    np.testing.assert_array_equal(matrix, MATRIX)
    assert not matrix.flags.owndata
    assert not matrix.flags.writeable
    assert isinstance(packed, QTensor)
    np.testing.assert_array_equal(packed.dequantize(), np.arange(32, dtype=np.float32)[None] / 2)


def test_strings_are_a_sequence(save: Callable[[bytes], Path]) -> None:
    strings: Any = gguf.read(save(WHOLE)).metadata["strings"]
    assert (len(strings), strings[0], strings[-2:], list(strings)) == (3, "a", ["é", "\udcff"], ["a", "é", "\udcff"])
    assert "é" in strings
    assert strings.index("é") == 1
    assert strings == gguf.read(save(WHOLE)).metadata["strings"]
    assert strings != ["a"]


def test_a_rewritten_file_has_the_same_bytes(save: Callable[[bytes], Path], tmp_path: Path) -> None:
    found = gguf.read(save(WHOLE))
    gguf.write(tmp_path / "again.gguf", found.metadata, found.tensors, found.types)
    assert (tmp_path / "again.gguf").read_bytes() == WHOLE + bytes(-len(WHOLE) % 32)


def test_a_file_may_be_rewritten_in_place(save: Callable[[bytes], Path]) -> None:
    path = save(WHOLE)
    found = gguf.read(path)
    gguf.write(path, found.metadata, found.tensors, found.types)
    assert path.read_bytes() == WHOLE + bytes(-len(WHOLE) % 32)


ARRAYS = {
    "f32": np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 3, 2),
    "f16": np.arange(5, dtype=np.float16),
    "bf16": np.arange(3).astype(ml_dtypes.bfloat16),
    "f64": np.array([[np.pi]]),
    "i8": np.arange(-3, 3, dtype=np.int8),
    "i16": np.arange(4, dtype=np.int16),
    "i32": np.arange(4, dtype=np.int32),
    "i64": np.arange(4, dtype=np.int64),
    "q8_0": QTensor("Q8_0", (1, 32), np.frombuffer(BLOCK, np.uint8)[None]),
}


@pytest.mark.parametrize("alignment", [1, 8, 64])
def test_written_tensors_come_back_bitwise(tmp_path: Path, alignment: int) -> None:
    gguf.write(tmp_path / "m.gguf", {"general.alignment": alignment}, ARRAYS)
    found = gguf.read(tmp_path / "m.gguf")
    assert found.metadata == {"general.alignment": alignment}
    assert list(found.tensors) == list(ARRAYS)
    for name, array in ARRAYS.items():
        back = found.tensors[name]
        assert (type(back), back.shape, found.tensors.entries[name].type) == (type(array), array.shape, name.upper())
        if isinstance(array, QTensor) and isinstance(back, QTensor):
            array, back = array.data, back.data
        assert back.dtype == array.dtype
        assert back.flags.aligned
        assert back.tobytes() == array.tobytes()


def test_arrays_in_other_layouts_are_written_in_the_files_own(tmp_path: Path) -> None:
    tensors = {"turned": MATRIX.T, "swapped": MATRIX.astype(">f4"), "strided": MATRIX[:, ::2]}
    gguf.write(tmp_path / "m.gguf", {}, tensors)
    found = gguf.read(tmp_path / "m.gguf").tensors
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, "bool"),
        (3, "u32"),
        (-3, "i32"),
        (1 << 40, "u64"),
        (-(1 << 40), "i64"),
        (0.5, "f32"),
        ("x", "string"),
        ("", "string"),
        (["x", ""], "array[string]"),
        ([1, 2], "array[i32]"),
        ([1, (1 << 32) - 1], "array[u32]"),
        ([-1, 1 << 40], "array[i64]"),
        ([1, (1 << 64) - 1], "array[u64]"),
        ([1, 0.5], "array[f32]"),
        ([True, False], "array[bool]"),
        ([[1], [2, 3]], "array[array]"),
        (np.uint8(3), "u8"),
        (np.float64(0.1), "f64"),
        (np.arange(3, dtype=">u2"), "array[u16]"),
        (np.zeros(0, np.float32), "array[f32]"),
    ],
)
def test_types_are_chosen_for_values(tmp_path: Path, value: Any, kind: str) -> None:
    gguf.write(tmp_path / "m.gguf", {"k": value}, {})
    found = gguf.read(tmp_path / "m.gguf")
    assert found.types == {"k": kind}
    back: Any = found.metadata["k"]
    plain = [list(v) if isinstance(v, np.ndarray) else v for v in back] if kind.startswith("array") else back
    assert plain == (value.tolist() if isinstance(value, np.ndarray) else value)


@pytest.mark.parametrize(
    ("value", "types", "message"),
    [
        (None, {}, "no type for"),
        ([], {}, "no type for"),
        ([1, "x"], {}, "mixes"),
        ([None], {}, "no type for"),
        (1 << 64, {}, "64 bits"),
        ([-1, 1 << 63], {}, "64 bits"),
        (np.zeros(2, np.float16), {}, "unknown to GGUF"),
        (np.zeros((2, 2), np.float32), {}, "unknown to GGUF"),
        (300, {"k": "u8"}, "cannot be written as u8"),
        (1, {"k": "bool"}, "cannot be written as bool"),
        (1.5, {"k": "u32"}, "cannot be written as u32"),
        ("x", {"k": "f32"}, "cannot be written as f32"),
        (1e300, {"k": "f32"}, "cannot be written as f32"),
        ([300], {"k": "array[u8]"}, r"cannot be written as array\[u8\]"),
        ([1.5], {"k": "array[i32]"}, r"cannot be written as array\[i32\]"),
        (["x"], {"k": "array[f32]"}, r"cannot be written as array\[f32\]"),
        (["xy"], {"k": "array[array]"}, r"cannot be written as array\[array\]"),
        ([1], {"k": "array[string]"}, r"cannot be written as array\[string\]"),
        (1, {"k": "u128"}, "no metadata type"),
        ([1], {"k": "array"}, "no metadata type"),
        ("\ud800", {}, "cannot be written as string"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path: Path, value: Any, types: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        gguf.write(tmp_path / "m.gguf", {"k": value}, {}, types)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("x", np.zeros(2, np.uint8), "no tensor type U8"),
        ("x", np.zeros(2, bool), "no tensor type BOOL"),
        ("x", np.zeros((), np.float32), "1 to 4 axes"),
        ("x", np.zeros((1,) * 5, np.float32), "1 to 4 axes"),
        ("x", np.zeros((0, 2), np.float32), "none empty"),
        ("x" * 64, np.zeros(2, np.float32), "63 bytes"),
    ],
)
def test_tensors_that_gguf_cannot_hold_are_refused(tmp_path: Path, name: str, array: np.ndarray, message: str) -> None:
    with pytest.raises(TensorError, match=message):
        gguf.write(tmp_path / "m.gguf", {}, {name: array})
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("alignment", [0, 3, -32, "32", 2.0])
def test_an_impossible_alignment_is_not_written(tmp_path: Path, alignment: object) -> None:
    with pytest.raises(OptionError, match="power of two"):
        gguf.write(tmp_path / "m.gguf", {"general.alignment": alignment}, {})


def test_names_that_are_not_utf8_are_not_written(tmp_path: Path) -> None:
    for metadata, tensors in (({"\udcff": 1}, {}), ({}, {"\udcff": MATRIX})):
        with pytest.raises(OptionError, match="UTF-8"):
            gguf.write(tmp_path / "m.gguf", metadata, tensors)


# Failing while writing


def failing(error: BaseException) -> Tensors:
    def load() -> np.ndarray:
        raise error

    good = Entry((1024,), "F32", 4096, lambda: np.zeros(1024, np.float32))
    return Tensors({"good": good, "bad": Entry((1,), "F32", 4, load)})


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), TensorError("not there")])
def test_a_failed_write_leaves_the_old_file_alone(save: Callable[[bytes], Path], error: BaseException) -> None:
    path = save(WHOLE)
    with pytest.raises(type(error)):
        gguf.write(path, {}, failing(error))
    assert path.read_bytes() == WHOLE
    assert leftovers(path.parent) == ["model.gguf"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # Unix has it
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(CapacityError, match="No room to write"):
            gguf.write(tmp_path / "m.gguf", {}, {"x": np.zeros(10_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert leftovers(tmp_path) == []


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nowhere"):
        gguf.write(tmp_path / "nowhere" / "m.gguf", {}, {})


def test_a_tensor_that_is_not_what_was_announced_is_refused(tmp_path: Path) -> None:
    lying = Tensors({"x": Entry((2, 2), "F32", 16, lambda: np.zeros((4, 1), np.float32))})
    with pytest.raises(TensorError, match="announced as"):
        gguf.write(tmp_path / "m.gguf", {}, lying)
    assert leftovers(tmp_path) == []


# Peers


def test_the_gguf_package_reads_what_we_write(tmp_path: Path) -> None:
    peer = pytest.importorskip("gguf")
    metadata = {"general.architecture": "llama", "n": 3, "eps": 1e-5, "names": ["a", "é"], "ids": [1, -2], "on": True}
    gguf.write(tmp_path / "m.gguf", metadata, ARRAYS)
    reader = peer.GGUFReader(tmp_path / "m.gguf")
    found = {name: reader.get_field(name).contents() for name in metadata}
    assert found == metadata | {"eps": float(np.float32(1e-5))}
    assert [t.name for t in reader.tensors] == list(ARRAYS)
    for peers, (name, array) in zip(reader.tensors, ARRAYS.items(), strict=True):
        assert tuple(peers.shape[::-1]) == array.shape
        ours = array.data if isinstance(array, QTensor) else array
        assert peers.data.tobytes() == ours.tobytes(), name


def peer_file(path: Path, **options: Any) -> Path:
    peer = pytest.importorskip("gguf")
    writer = peer.GGUFWriter(path, "llama", **options)
    writer.add_uint32("llama.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "▁a", "é"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.0, -2.0])
    for i in range(5):
        writer.add_tensor(f"t{i}", np.full((2, 32), i, np.float32))
    packed = np.frombuffer(BLOCK * 2, np.uint8).reshape(2, 34)
    writer.add_tensor("q", packed, raw_dtype=peer.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_of_the_gguf_package_is_read_and_rewritten_bitwise(tmp_path: Path) -> None:
    path = peer_file(tmp_path / "peer.gguf")
    found = gguf.read(path)
    assert found.metadata["general.architecture"] == "llama"
    assert found.metadata["tokenizer.ggml.tokens"] == ["<s>", "▁a", "é"]
    packed = found.tensors["q"]
    assert isinstance(packed, QTensor)
    assert packed.shape == (2, 32)
    gguf.write(tmp_path / "ours.gguf", found.metadata, found.tensors, found.types)
    assert (tmp_path / "ours.gguf").read_bytes() == path.read_bytes()


# Split files


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    def part(i: int) -> bytes:
        head = [key("name", 8, string("m"))] if i == 0 else []
        split = [("split.no", i), ("split.count", 3)]
        keys = head + [key(k, 2, struct.pack("<H", v)) for k, v in split]
        keys.append(key("split.tensors.count", 5, struct.pack("<i", 3)))
        return build(keys, [info(f"t{i}", (6,), 0, 0)], (MATRIX + i).tobytes())

    paths = [tmp_path / f"m-{i + 1:05}-of-00003.gguf" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(part(i))
    return paths


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_any_part_opens_all(parts: list[Path], opened: int) -> None:
    found = gguf.read(parts[opened])
    assert list(found.tensors) == ["t0", "t1", "t2"]
    np.testing.assert_array_equal(found.tensors["t2"], MATRIX.reshape(-1) + 2)
    assert found.metadata == {"name": "m"}
    assert found.types == {"name": "string"}


def test_files_that_the_gguf_package_splits_are_joined(tmp_path: Path) -> None:
    peer_file(tmp_path / "peer.gguf", split_max_tensors=2)
    assert len(leftovers(tmp_path)) == 3
    found = gguf.read(tmp_path / "peer-00002-of-00003.gguf")
    assert sorted(found.tensors) == ["q", "t0", "t1", "t2", "t3", "t4"]
    assert found.metadata["llama.block_count"] == 2
    np.testing.assert_array_equal(found.tensors["t4"], np.full((2, 32), 4))


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(ModelNotFound, match=r"m-00002-of-00003\.gguf"):
        gguf.read(parts[0])


def test_a_renamed_part_is_refused(parts: list[Path]) -> None:
    with pytest.raises(FormatError, match=r"-00001-of-00003\.gguf"):
        gguf.read(parts[0].rename(parts[0].with_name("m.gguf")))


def test_parts_in_wrong_order_are_refused(parts: list[Path]) -> None:
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(FormatError, match=r"split\.no 1 .* expected 2"):
        gguf.read(parts[0])


def test_a_tensor_in_two_parts_is_refused(parts: list[Path]) -> None:
    parts[2].write_bytes(parts[2].read_bytes().replace(string("t2"), string("t1")))
    with pytest.raises(FormatError, match="'t1' is in two parts"):
        gguf.read(parts[0])


def test_too_few_tensors_in_all_parts_are_refused(parts: list[Path]) -> None:
    parts[0].write_bytes(
        parts[0].read_bytes().replace(struct.pack("<i", 3) + string("t0"), struct.pack("<i", 4) + string("t0"))
    )
    with pytest.raises(FormatError, match="hold 3 tensors"):
        gguf.read(parts[0])


def test_a_split_number_of_another_type_is_refused(save: Callable[[bytes], Path]) -> None:
    with pytest.raises(FormatError, match="expected an integer"):
        gguf.read(save(build([key("split.count", 9, struct.pack("<IQ2H", 2, 2, 1, 2))], [])))


# Bad files

HUGE = (1 << 64) - 1
NESTED = struct.pack("<IQ", 9, 1) * 4 + struct.pack("<IQI", 4, 1, 1)
BAD = {
    "empty": (b"", "magic"),
    "another format": (b"PK\x03\x04" + bytes(64), "starts with"),
    "version 1": (build([], [], version=1), "version 1, expected 2 or 3"),
    "version 4": (build([], [], version=4), "version 4, expected 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensor count": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0), f"number of tensors says {HUGE}"),
    "key count": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "number of metadata keys says"),
    "key length": (build([struct.pack("<QI", HUGE, 4)], []), "length of the name of metadata key 0 says"),
    "key not UTF-8": (build([key(b"\xff", 0, b"1")], []), "not UTF-8"),
    "key twice": (build([key("k", 0, b"1"), key("k", 0, b"2")], []), "'k' comes twice"),
    "value type": (build([key("k", 13, bytes(16))], []), "'k' has type 13"),
    "string length": (build([key("k", 8, struct.pack("<Q", 1 << 50))], []), "length of the metadata key 'k'"),
    "array type": (build([key("k", 9, struct.pack("<IQ", 77, 1))], []), "type 77"),
    "array length": (build([key("k", 9, struct.pack("<IQ", 12, 1 << 60))], []), "says"),
    "strings' length": (build([key("k", 9, struct.pack("<IQ", 8, 1 << 60))], []), "says"),
    "a string in an array": (build([key("k", 9, struct.pack("<IQQ", 8, 1, HUGE))], []), "says it goes on"),
    "not the last string": (build([key("k", 9, struct.pack("<IQQ", 8, 2, HUGE) + bytes(64))], []), "string 1 of 2"),
    "array of arrays": (build([key("k", 9, struct.pack("<IQ", 9, 1 << 60))], []), "says"),
    "nested too deep": (build([key("k", 9, NESTED)], []), "deeper than 4"),
    "boolean": (build([key("k", 7, b"\x02")], []), "boolean of 2"),
    "booleans": (build([key("k", 9, struct.pack("<IQ2B", 7, 2, 1, 3))], []), "boolean of 3"),
    "alignment": (build([key("general.alignment", 4, struct.pack("<I", 24))], []), "power of two"),
    "alignment zero": (build([key("general.alignment", 4, struct.pack("<I", 0))], []), "power of two"),
    "alignment type": (build([key("general.alignment", 8, string("32"))], []), "type string, expected u32"),
    "name length": (build([], [struct.pack("<Q", HUGE) + bytes(64)]), "length of the name of tensor 0"),
    "name not UTF-8": (build([], [info(b"\xff", (1,), 0, 0)], bytes(32)), "not UTF-8"),
    "tensor twice": (build([], [info("t", (1,), 0, 0), info("t", (1,), 0, 32)], bytes(64)), "'t' comes twice"),
    "no axes": (build([], [info("t", (), 0, 0)], bytes(32)), "0 axes"),
    "five axes": (build([], [info("t", (1,) * 5, 0, 0)], bytes(32)), "5 axes"),
    "empty axis": (build([], [info("t", (HUGE, 0), 0, 0)], bytes(32)), "no empty axis"),
    "overflow": (build([], [info("t", (1 << 32, 1 << 32), 0, 0)], bytes(32)), "the file has"),
    "tensor type": (build([], [info("t", (256,), 20, 0)], bytes(256)), "type number 20.*12 Q4_K"),
    "broken row": (build([], [info("t", (33, 2), 8, 0)], bytes(128)), "multiple of 32 for Q8_0"),
    "unaligned": (build([], [info("t", (1,), 0, 4)], bytes(64)), "offset 4, expected a multiple of 32"),
    "out of range": (build([], [info("t", (9,), 0, 32)], bytes(64)), "ends at byte"),
    "far out of range": (build([], [info("t", (1,), 0, HUGE - 31)], bytes(64)), "ends at byte"),
    "overlap": (build([], [info("a", (9,), 0, 0), info("b", (1,), 0, 32)], bytes(64)), "'a' and 'b' overlap"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_their_fault(save: Callable[[bytes], Path], case: str) -> None:
    data, message = BAD[case]
    path = save(data)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=message) as caught:
            gguf.read(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert text.endswith(".")
    assert len(text) < 600


def test_every_truncation_is_noticed(save: Callable[[bytes], Path]) -> None:
    for size in range(len(WHOLE)):
        with pytest.raises(FormatError):
            gguf.read(save(WHOLE[:size]))


def test_what_is_no_file_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(ModelNotFound, match=str(path)):
            gguf.read(path)


def test_a_huge_checkpoint_opens_by_its_header(tmp_path: Path) -> None:
    rows, path = 1 << 20, tmp_path / "huge.gguf"
    head = build([], [info("t", (4096, rows), 0, 0)])
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + rows * 4096 * 4)  # 17 GB, none of it on the disk
    found = gguf.read(path).tensors
    assert found.nbytes == 17_179_869_184
    assert found["t"][-1, -1] == 0


# Fuzz: an error of ours or success, always at once


def survives(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with contextlib.suppress(GeodeError):
        found = gguf.read(path)
        for value in found.metadata.values():
            list(value) if isinstance(value, gguf.StringArray) else None
        for name in found.tensors:
            found.tensors[name]
        gguf.write(path, found.metadata, found.tensors, found.types)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "m.gguf"


quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_do_no_harm(scratch: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for at, byte in changes:
        data[at] = byte
    survives(scratch, bytes(data))


@quick
@given(st.integers(0, len(WHOLE)), st.binary(max_size=64), st.integers(0, 64))
def test_bytes_put_in_and_cut_out_do_no_harm(scratch: Path, at: int, insert: bytes, cut: int) -> None:
    survives(scratch, WHOLE[:at] + insert + WHOLE[at + cut :])


@quick
@given(st.binary(max_size=400), st.integers(0, 4), st.integers(0, 4))
def test_random_bytes_do_no_harm(scratch: Path, tail: bytes, tensors: int, keys: int) -> None:
    survives(scratch, b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + tail)


VALUES = (
    st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(width=32, allow_nan=False)
    | st.text(max_size=8)
    | st.lists(st.text(max_size=4), min_size=1, max_size=4)
    | st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=4)
    | st.lists(st.booleans(), min_size=1, max_size=4)
)


@quick
@given(st.dictionaries(st.text(max_size=8).filter(lambda k: k != "general.alignment"), VALUES, max_size=4))
def test_metadata_comes_back(scratch: Path, metadata: dict[str, Any]) -> None:
    gguf.write(scratch, metadata, {})
    found = gguf.read(scratch)
    back = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.metadata.items()}
    assert back == metadata
    first = scratch.read_bytes()
    gguf.write(scratch, found.metadata, {}, found.types)
    assert scratch.read_bytes() == first
