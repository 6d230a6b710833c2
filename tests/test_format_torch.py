"""PyTorch's files without PyTorch: equal to what torch writes and reads, and nothing in a pickle is ever run."""

from __future__ import annotations

import collections
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import by_slug, converted, named, same, saved
from variants import VARIANTS, Variant

import geode.checkpoint
from geode.errors import ConfigError, FormatError, GeodeError, ModelNotFound, TensorError
from geode.formats import Target, by_name, gemma_pytorch
from geode.formats.base import write_json
from geode.io import torch_zip
from geode.tensors import Tensors, from_arrays

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

GEMMAS = tuple(variant.name for variant in VARIANTS if variant.config_class.startswith("Gemma"))
LLAMAS = ("Llama 2", "Llama 3", "Llama 3.1, 3.2")


# ------------------------------------------------------------------------------------------------------------- tensors


def samples() -> dict[str, Any]:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    return {
        "plain": x,
        "turned": x.t(),
        "cut": x[1:3, 2:],
        "repeated": x[0].expand(3, 4),
        "parameter": torch.nn.Parameter(x),
        "half": x.half(),
        "brain": x.bfloat16(),
        "double": x.double(),
        "small": x.to(torch.float8_e4m3fn),
        "short": torch.tensor([1, 65535], dtype=torch.uint16),
        "whole": torch.arange(5),
        "complex": torch.polar(torch.ones(3), torch.arange(3.0)),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
        "truth": torch.tensor([True, False]),
    }


def raw(tensor: Any) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else b""


def test_what_torch_saves_is_read(tmp_path: Path) -> None:
    kept = samples()
    state = collections.OrderedDict(kept)
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    other = {"steps": 3, "names": ["a", 2.5, None, True, False], "shape": torch.Size([2, 3]), "large": 2**70}
    torch.save({"state": state, "other": other, "module": torch.nn.Linear(3, 2).state_dict()}, tmp_path / "a.pt")
    found = torch_zip.load(tmp_path / "a.pt")
    assert found["other"] == other | {"shape": (2, 3)}
    assert set(found["module"]) == {"weight", "bias"}
    for name, tensor in kept.items():
        entry = found["state"][name]
        assert entry.shape == tuple(tensor.shape), name
        assert entry.nbytes == tensor.numel() * tensor.element_size(), name
        assert entry.load().tobytes() == raw(tensor), name


def test_torch_reads_what_is_written(tmp_path: Path) -> None:
    torch.save(samples(), tmp_path / "a.pt")
    entries = torch_zip.tensors(torch_zip.load(tmp_path / "a.pt"), "a.pt").entries
    kept = Tensors({name: entry for name, entry in entries.items() if name not in ("small", "short")})
    torch_zip.write(
        tmp_path / "b.pt", {"state": kept, "more": {"n": -1, "large": 2**70, "x": 0.5, "t": "ä", "no": None}}
    )
    for mmap in (True, False):
        found = torch.load(tmp_path / "b.pt", weights_only=True, mmap=mmap)
        assert found["more"] == {"n": -1, "large": 2**70, "x": 0.5, "t": "ä", "no": None}
        for name, tensor in samples().items():
            if name in kept:
                assert torch.equal(found["state"][name], tensor.detach()), name
    with zipfile.ZipFile(tmp_path / "b.pt") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            with (tmp_path / "b.pt").open("rb") as file:
                file.seek(info.header_offset + 26)
                name_length, extra = struct.unpack("<HH", file.read(4))
            assert (info.header_offset + 30 + name_length + extra) % 64 == 0


def test_a_type_that_torch_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TensorError, match="no storage of type U32"):
        torch_zip.write(tmp_path / "a.pt", {"state": from_arrays({"a": np.zeros(2, np.uint32)})})
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------ hostile, damaged


class Runs:
    """A pickle of this calls whatever it is told."""

    def __init__(self, function: Any, *arguments: Any):
        self.what = (function, arguments)

    def __reduce__(self) -> Any:
        return self.what


def test_nothing_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"a": Runs(mark.touch)}, tmp_path / "a.pt")
    with pytest.raises(FormatError, match=r"asks for '__builtin__\.getattr'.*not executed"):
        torch_zip.load(tmp_path / "a.pt")
    torch.save({"a": Runs(eval, f"open({str(mark)!r}, 'w')")}, tmp_path / "b.pt")
    with pytest.raises(FormatError, match=r"asks for '__builtin__\.eval'.*not executed"):
        torch_zip.load(tmp_path / "b.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "c.pt")
    with pytest.raises(FormatError, match=r"'torch\.nn\.modules\.linear\.Linear'"):
        torch_zip.load(tmp_path / "c.pt")
    assert not mark.exists()


def archive(path: Path, pickle: bytes, members: dict[str, bytes] | None = None, kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, data in ({"a/data.pkl": pickle} | (members or {})).items():
            file.writestr(name, data)
    return path


def tensor_of(storage: bytes = b"FloatStorage", count: int = 4, offset: int = 0, shape: bytes = b"K\x02K\x02\x86",
              strides: bytes = b"K\x02K\x01\x86") -> bytes:  # fmt: skip
    """A pickle of one tensor, in opcodes."""
    persistent = b"(X\x07\x00\x00\x00storagectorch\n" + storage + b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK"
    persistent += bytes([count]) + b"tQ"
    rest = b"K" + bytes([offset]) + shape + strides + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(" + persistent + rest + b"s."


@pytest.mark.parametrize(
    ("pickle", "problem"),
    [
        (tensor_of(count=200), "reaches beyond"),
        (tensor_of(offset=1), "reaches beyond"),
        (tensor_of(strides=b"K\x04K\x01\x86"), "reaches beyond"),
        (tensor_of(shape=b"K\x02K\x02K\x02\x87"), "a tensor of shape"),
        (tensor_of(shape=b"J\xff\xff\xff\xffK\x02\x86"), "described by storage, offset, shape"),
        (tensor_of(storage=b"EvilStorage"), "torch.EvilStorage"),
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x02cbuiltins\neval\n.", "builtins.eval"),
        (b"\x80\x02(X\x02\x00\x00\x00lsios\nsystem\n.", "opcode INST"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02}}b.", "is not"),
        (b"\x80\x02K\x01}b.", "sets the state"),
        (b"\x80\x02K\x01)R.", "calls something"),
        (b"\x80\x02]]s.", "makes no sense"),
        (b"\x80\x02h\x05.", "makes no sense"),
        (b"\x80\x02.", "makes no sense"),
        (b"\x80\x02}", "makes no sense"),
        (b"\x80\x02}]K\x01s.", "makes no sense"),
        (b"\x80\x02X\xff\xff\xff\x7fa.", "makes no sense"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "is not a good"),
        (b"\x80\x02r\xff\xff\xff\xff.", "makes no sense"),
        (b"", "makes no sense"),
    ],
)
def test_pickles_that_are_no_checkpoint(pickle: bytes, problem: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", pickle, {"a/data/0": bytes(16)})
    if problem == "is not" and pickle.endswith(b"b."):
        assert torch_zip.load(path) == {}  # attributes of a dict: left where they are
        return
    with pytest.raises(FormatError, match=problem):
        torch_zip.load(path)


def test_the_hand_made_tensor_is_whole(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", tensor_of(), {"a/data/0": np.arange(4, dtype="<f4").tobytes()})
    np.testing.assert_array_equal(torch_zip.load(path)["a"].load(), [[0, 1], [2, 3]])


def test_archives_that_are_no_checkpoint(tmp_path: Path) -> None:
    good = tensor_of()
    link = zipfile.ZipInfo("a/data/0")
    link.external_attr = 0o120777 << 16
    cases = {
        "points outside": {"a/../../b": b""},
        "points outside of it": {"/etc/passwd": b""},
        "has no member 'data/0'": {},
        "big-endian": {"a/data/0": bytes(16), "a/byteorder": b"big"},
        "two members": {"a/data/0": bytes(16), "b/data/0": bytes(16)},
    }
    for i, (problem, members) in enumerate(cases.items()):
        with pytest.raises(FormatError, match=problem):
            torch_zip.load(archive(tmp_path / f"{i}.pt", good, members))
    with pytest.raises(FormatError, match="compressed"):
        torch_zip.load(archive(tmp_path / "z.pt", good, {"a/data/0": bytes(16)}, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "l.pt", "w") as file:
        file.writestr("a/data.pkl", good)
        file.writestr(link, "/etc/passwd")
    with pytest.raises(FormatError, match="is a link"):
        torch_zip.load(tmp_path / "l.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(FormatError, match=r"before version 1\.6.*torch\.save"):
        torch_zip.load(tmp_path / "old.pt")


def test_every_truncation_and_flipped_byte_is_ours(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3, 2), "b": torch.ones(2).bfloat16()}, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    path = tmp_path / "b.pt"
    flips = [
        bytes([*data[:at], data[at] ^ flip, *data[at + 1 :]]) for at in range(0, len(data), 3) for flip in (1, 255)
    ]
    for damaged in [data[:size] for size in range(0, len(data), 61)] + flips:
        path.write_bytes(damaged)
        try:
            for entry in torch_zip.tensors(torch_zip.load(path), "it").entries.values():
                entry.load()
        except FormatError:
            continue


# --------------------------------------------------------------------------------------------- Hugging Face's older kind


@pytest.mark.parametrize("shards", [1, 2])
def test_pytorch_model_bin(shards: int, tmp_path: Path) -> None:
    model, expected = saved(named(LLAMAS[1]), tmp_path / "new")
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_bytes((tmp_path / "new" / "config.json").read_bytes())
    state = list(model.state_dict().items())
    names = ["pytorch_model.bin"] if shards == 1 else ["pytorch_model-00001-of-2.bin", "pytorch_model-00002-of-2.bin"]
    for i, name in enumerate(names):
        torch.save(dict(state[i::shards]), old / name)
    if shards > 1:
        where = {name: names[i % shards] for i, (name, _) in enumerate(state)}
        write_json(old / "pytorch_model.bin.index.json", {"weight_map": where})
    for path in (old, old / ("pytorch_model.bin" if shards == 1 else "pytorch_model.bin.index.json")):
        found = geode.checkpoint.open(path)
        assert found.config == expected.config
        same(found.tensors, expected.tensors)
    if shards > 1:
        (old / names[1]).unlink()
        with pytest.raises(ModelNotFound, match="pytorch_model-00002"):
            geode.checkpoint.open(old)
        write_json(old / "pytorch_model.bin.index.json", {"weight_map": {"a": "../b.bin"}})
        with pytest.raises(FormatError, match="Do not trust"):
            geode.checkpoint.open(old)


# --------------------------------------------------------------------------------------------------------- gemma_pytorch


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@by_slug(*GEMMAS)
def test_gemma_pytorch_there_and_back(variant: Variant, dtype: str, tmp_path: Path) -> None:
    model, source = saved(variant, tmp_path / "hf", dtype)
    found = converted(source, "gemma_pytorch", tmp_path / "out")
    assert found.format == "gemma_pytorch"
    assert (found.family.name, found.config) == (source.family.name, source.config)
    same(found.tensors, source.tensors)
    state = torch.load(tmp_path / "out" / "model.ckpt", weights_only=True, mmap=True)["model_state_dict"]
    theirs = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert torch.equal(state.pop("embedder.weight"), theirs.pop("model.embed_tokens.weight"))
    for layer in range(model.config.num_hidden_layers):
        at = f"model.layers.{layer}.self_attn."
        parts = [theirs.pop(f"{at}{part}_proj.weight") for part in "qkv"]
        assert torch.equal(state.pop(f"{at}qkv_proj.weight"), torch.cat(parts))
    tables = state.pop("freqs_cis", None)
    renamed = {
        name.replace("q_norm", "query_norm").replace("k_norm", "key_norm"): tensor for name, tensor in theirs.items()
    }
    assert set(state) == set(renamed)
    assert all(torch.equal(state[name], renamed[name]) for name in state)
    if "Gemma3" not in variant.config_class:
        dims, length = model.config.head_dim, 2 * model.config.max_position_embeddings
        frequencies = 1.0 / (10_000.0 ** (torch.arange(0, dims, 2).float() / dims))
        angles = torch.outer(torch.arange(length), frequencies).float()
        torch.testing.assert_close(tables, torch.polar(torch.ones_like(angles), angles), atol=1e-5, rtol=0)


@by_slug(*(name for name in GEMMAS if "4B" not in name))
def test_gemma_pytorch_without_a_manifest(variant: Variant, tmp_path: Path) -> None:
    source = saved(variant, tmp_path / "hf")[1]
    found = converted(source, "gemma_pytorch", tmp_path / "out", manifest=False)
    assert found.config == source.config
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(ConfigError, match="no published Gemma"):
        geode.checkpoint.open(tmp_path / "out")


def test_published_sizes_are_known_by_their_shapes() -> None:
    for (name, depth, width), own in gemma_pytorch.PUBLISHED.items():
        dim = own.get("head_dim", 256)
        heads, groups = (4, 1) if width < 1500 else (16, 8) if width < 4000 else (32, 16)
        shapes = {
            "text_token_embedder.weight": (100, width),
            "model.layers.0.self_attn.qkv_proj.weight": ((heads + 2 * groups) * dim, width),
            "model.layers.0.self_attn.o_proj.weight": (width, heads * dim),
            "model.layers.0.mlp.gate_proj.weight": (300, width),
            f"model.layers.{depth - 1}.mlp.gate_proj.weight": (300, width),
        }
        shapes |= {"model.layers.0.self_attn.query_norm.weight": (dim,)} if name == "gemma3" else {}
        shapes |= {"model.layers.0.pre_feedforward_layernorm.weight": (width,)} if name != "gemma" else {}
        stored = from_arrays({key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()})
        family, config = gemma_pytorch._configured(Path("x"), gemma_pytorch._published(Path("none/model.ckpt"), stored))
        assert (family.name, config.heads, config.kv_heads, config.head_dim) == (name, heads, groups, dim)
        assert config.scale == float(own.get("query_pre_attn_scalar", 256) ** -0.5)


def test_almost_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{'vocab_size': 256000, 'quant': false, 'x': null, 'l': [1, 2.5,],\n}")
    assert gemma_pytorch.almost_json(path) == {"vocab_size": 256000, "quant": False, "x": None, "l": [1, 2.5]}
    for bad in ("{'a': __import__('os').getcwd()}", "{'a': b}", "{", "[1]", "(" * 100_000, "{**{}}"):
        path.write_text(bad)
        with pytest.raises(FormatError):
            gemma_pytorch.almost_json(path)


def test_other_ckpt_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.ones(2)}}, path)
    with pytest.raises(FormatError, match="model_state_dict"):
        geode.checkpoint.open(path)
    torch.save({"model_state_dict": {"embedder.weight_scaler": torch.ones(2)}}, path)
    with pytest.raises(FormatError, match="int8"):
        geode.checkpoint.open(path)
    torch.save({"model_state_dict": {"a": torch.ones(2)}}, path)
    with pytest.raises(ConfigError, match="lacks tensors"):
        geode.checkpoint.open(path)
    llama = saved(named(LLAMAS[0]), tmp_path / "llama")[1]
    problem = by_name("gemma_pytorch").refuses(llama, Target())
    assert problem == "gemma_pytorch runs Gemma 1, 2 and 3, and no llama."


# ------------------------------------------------------------------------------------------------------------------ Meta


def interleaved(weight: Any, heads: int) -> Any:
    """Hugging Face's rows of q or k as Meta has them."""
    rows, width = weight.shape
    return weight.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)


def meta_state(model: Any) -> dict[str, Any]:
    c, state = model.config, model.state_dict()
    made = {"tok_embeddings.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"]}
    if not c.tie_word_embeddings:
        made["output.weight"] = state["lm_head.weight"]
    names = {"v_proj": "attention.wv", "o_proj": "attention.wo", "gate_proj": "feed_forward.w1"}
    names |= {"down_proj": "feed_forward.w2", "up_proj": "feed_forward.w3"}
    for i in range(c.num_hidden_layers):
        at, to = f"model.layers.{i}.", f"layers.{i}."
        made[f"{to}attention_norm.weight"] = state[f"{at}input_layernorm.weight"]
        made[f"{to}ffn_norm.weight"] = state[f"{at}post_attention_layernorm.weight"]
        made[f"{to}attention.wq.weight"] = interleaved(state[f"{at}self_attn.q_proj.weight"], c.num_attention_heads)
        made[f"{to}attention.wk.weight"] = interleaved(state[f"{at}self_attn.k_proj.weight"], c.num_key_value_heads)
        for theirs, ours in names.items():
            module = "self_attn" if ours.startswith("attention") else "mlp"
            made[f"{to}{ours}.weight"] = state[f"{at}{module}.{theirs}.weight"]
    return made


@pytest.mark.parametrize("by_row", [True, False], ids=["llama3", "llama2"])
@pytest.mark.parametrize("ranks", [1, 2])
@by_slug(*LLAMAS)
def test_meta(variant: Variant, ranks: int, by_row: bool, tmp_path: Path) -> None:
    model, expected = saved(variant, tmp_path / "hf")
    meta = tmp_path / "meta"
    meta.mkdir()
    c = expected.config
    params: dict[str, Any] = {"dim": c.width, "n_layers": c.depth, "n_heads": c.heads, "n_kv_heads": c.kv_heads}
    params |= {"norm_eps": c.norm.eps, "rope_theta": c.pattern[0].rope.theta, "vocab_size": -1, "multiple_of": 256}
    write_json(meta / "params.json", params | {"use_scaled_rope": c.pattern[0].rope.scaling is not None})
    for rank in range(ranks):
        made = {}
        for name, tensor in meta_state(model).items():
            columns = name.endswith(("wo.weight", "w2.weight")) or (name == "tok_embeddings.weight" and not by_row)
            whole = tensor.ndim == 1
            made[name] = tensor if whole else tensor.chunk(ranks, int(columns))[rank].clone()
        torch.save(made, meta / f"consolidated.{rank:02}.pth")
    found = geode.checkpoint.open(meta / "consolidated.00.pth")
    assert found.config.replace(context=c.context, pattern=c.pattern) == c
    assert found.config.pattern[0].rope.theta == c.pattern[0].rope.theta
    same(found.tensors, expected.tensors)


def test_meta_lacking_files(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "consolidated.00.pth")
    with pytest.raises(ModelNotFound, match=r"params\.json"):
        geode.checkpoint.open(tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text(json.dumps({"dim": 4}))
    with pytest.raises(FormatError, match="every Llama has"):
        geode.checkpoint.open(tmp_path)
    torch.save({"a": torch.ones(2)}, tmp_path / "consolidated.02.pth")
    with pytest.raises(GeodeError, match=r"consolidated\.01\.pth were expected"):
        geode.checkpoint.open(tmp_path)
