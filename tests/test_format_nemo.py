"""NeMo's files: every family of its converters there and back, ranks joined, tars and YAML that are not what they say."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from foreign import by_slug, converted, named, near, same, saved
from variants import Variant

import geode.checkpoint
from geode.errors import ConfigError, FormatError, ModelNotFound, TensorError
from geode.formats import Checkpoint, Target, by_name
from geode.formats.base import write_json
from geode.io import plain_yaml, tar

torch = pytest.importorskip("torch")

NAMES = (
    *("Gemma 1 2B", "Gemma 1 7B", "Gemma 2 2B, 9B", "Gemma 2 27B", "Llama 2", "Llama 3", "Llama 3.1, 3.2", "SmolLM2"),
    *("Falcon 3 (a Llama)", "Mistral 7B v0.1", "Mistral Nemo", "Falcon 7B", "Falcon 40B", "Qwen 1.5", "Qwen 2, 2.5"),
)


def weights_of(path: Path) -> dict[str, Any]:
    """The state dict in a .nemo, as NeMo unpacks and loads it."""
    with tarfile.open(path, "r:") as archive:
        assert all(member.name.startswith("./") for member in archive)
        data = archive.extractfile("./model_weights.ckpt").read()  # type: ignore[union-attr]
    return torch.load(io.BytesIO(data), weights_only=True)  # type: ignore[no-any-return]


def fused(state: dict[str, Any], at: str, heads: int, groups: int, kind: str) -> Any:
    """[q … q k v] for each key/value head, made one by one as NeMo's converters do."""
    q, k, v = (state[f"{at}{part}_proj.{kind}"] for part in "qkv")
    q, k, v = q.view(heads, -1, *q.shape[1:]), k.view(groups, -1, *k.shape[1:]), v.view(groups, -1, *v.shape[1:])
    each = heads // groups
    parts = [part for i in range(groups) for part in (*q[i * each : (i + 1) * each], k[i], v[i])]
    return torch.cat(parts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@by_slug(*NAMES)
def test_there_and_back(variant: Variant, dtype: str, tmp_path: Path) -> None:
    """Bitwise, but for Gemma 1, whose norms NeMo stores as 1 + w: 2^-24 in float32."""
    model, source = saved(variant, tmp_path / "hf", dtype)
    found = converted(source, "nemo", tmp_path / "out")
    assert (found.format, found.family.name, found.config) == ("nemo", source.family.name, source.config)
    near(found.tensors, source.tensors, 2.0**-24 if variant.config_class == "GemmaConfig" else 0.0)
    theirs, state = weights_of(tmp_path / "out" / "model.nemo"), model.state_dict()
    c = source.config
    if "Falcon" in variant.config_class:
        name = "transformer.h.1.self_attention.query_key_value.weight"
        assert torch.equal(theirs["model.decoder.layers.1.self_attention.linear_qkv.weight"], state[name])
        return
    for kind in ["weight"] + ["bias"] * c.qkv_bias:
        made = fused(state, "model.layers.1.self_attn.", c.heads, c.kv_heads, kind)
        assert torch.equal(theirs[f"model.decoder.layers.1.self_attention.linear_qkv.{kind}"], made)
    gate_up = torch.cat([state[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up")])
    assert torch.equal(theirs["model.decoder.layers.1.mlp.linear_fc1.weight"], gate_up)
    norm = theirs["model.decoder.layers.1.self_attention.linear_qkv.layer_norm_weight"]
    plus_one = variant.config_class == "GemmaConfig"
    assert torch.equal(norm, state["model.layers.1.input_layernorm.weight"].float() + 1 if plus_one else
                       state["model.layers.1.input_layernorm.weight"])  # fmt: skip
    assert ("model.output_layer.weight" in theirs) == ("Gemma" not in variant.config_class)


@by_slug(*NAMES)
def test_without_a_manifest(variant: Variant, tmp_path: Path) -> None:
    """model_config.yaml tells the network. It does not tell a tied head from an equal one, nor each layer's window."""
    source = saved(variant, tmp_path / "hf")[1]
    found = converted(source, "nemo", tmp_path / "out", manifest=False)
    assert found.family.name == source.family.name or (found.family.name, source.family.name) == ("llama", "mistral")
    assert found.config.replace(tied=source.config.tied) == source.config
    if found.config.tied == source.config.tied:
        near(found.tensors, source.tensors, 2.0**-24 if variant.config_class == "GemmaConfig" else 0.0)


def test_the_yaml_is_what_a_yaml_library_reads(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    source = saved(named("Gemma 2 27B"), tmp_path / "hf")[1]
    converted(source, "nemo", tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "model.nemo") as archive:
        text = archive.extractfile("./model_config.yaml").read().decode()  # type: ignore[union-attr]
    values = yaml.safe_load(text)
    assert values == plain_yaml.loads(text, "it")
    assert values["mcore_customization_config"]["query_pre_attn_scalar"] == 12
    assert (values["activation"], values["normalization"], values["kv_channels"]) == ("fast-geglu", "rmsnorm", 32)
    assert (values["window_size"], values["layernorm_epsilon"], values["precision"]) == ([8, 0], 1e-6, "32")


def test_refusals_and_losses(tmp_path: Path) -> None:
    one = by_name("nemo")
    for name in ("Gemma 3 270M, 1B", "OLMo 2", "GPT-NeoX, Pythia, oasst-sft", "Llama, linear scaling, biases",
                 "Qwen 2, windows and YaRN", "Falcon 2 11B (one norm)"):  # fmt: skip
        assert one.refuses(saved(named(name), tmp_path / name)[1], Target()), name
    assert one.losses(geode.checkpoint.open(tmp_path / "OLMo 2"), Target()) == []


# ----------------------------------------------------------------------------------------------------------------- ranks


def split(state: dict[str, Any], config: Any, ranks: int) -> list[dict[str, Any]]:
    """Megatron's pieces of each tensor."""

    def pieces(name: str, tensor: Any) -> list[Any]:
        if "linear_fc1" in name and "layer_norm" not in name and config.gated:
            gate, up = tensor.chunk(2)
            return [torch.cat(pair) for pair in zip(gate.chunk(ranks), up.chunk(ranks), strict=True)]
        if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
            return list(tensor.chunk(ranks, 1))
        if "layer_norm" in name or (tensor.ndim == 1 and "linear_qkv" not in name and "linear_fc1" not in name):
            return [tensor] * ranks
        return list(tensor.chunk(ranks))

    whole = {name: pieces(name, tensor) for name, tensor in state.items()}
    return [{name: parts[rank].clone() for name, parts in whole.items()} for rank in range(ranks)]


@pytest.mark.parametrize("layout", ["mp_rank_{:02}", "tp_rank_{:02}_pp_rank_{:03}"])
@by_slug("Llama 3", "Gemma 1 7B", "Qwen 2, 2.5", "Falcon 40B")
def test_ranks_are_joined(variant: Variant, layout: str, tmp_path: Path) -> None:
    source = saved(variant, tmp_path / "hf")[1]
    whole = converted(source, "nemo", tmp_path / "whole")
    unpacked = tmp_path / "unpacked"
    with tarfile.open(tmp_path / "whole" / "model.nemo") as archive:
        archive.extract("./model_config.yaml", unpacked, filter="data")
    write_json(unpacked / "geode.json", {"config": source.family.config_to_hf(source.config)})
    state = {name.replace("model.", "model.module.", 1): t for name, t in weights_of(whole.path).items()}
    state["model.module.decoder.layers.0.self_attention.linear_qkv._extra_state"] = torch.zeros(3)
    for tp, part in enumerate(split(state, source.config, 2)):
        for pp in range(3 if "pp" in layout else 1):
            folder = unpacked / layout.format(tp, pp)
            folder.mkdir()
            torch.save(part if "pp" not in layout else of_stage(part, pp), folder / "model_weights.ckpt")
    found = geode.checkpoint.open(unpacked)
    same(found.tensors, whole.tensors)
    (folder / "model_weights.ckpt").unlink()
    if "pp" in layout:
        with pytest.raises(FormatError, match="lacks the weights of the ranks 2/1"):
            geode.checkpoint.open(unpacked)


def of_stage(state: dict[str, Any], stage: int) -> dict[str, Any]:
    """One layer a stage, each numbered from zero; the ends where they belong."""
    made = {}
    for name, tensor in state.items():
        if f".layers.{stage}." in name:
            made[name.replace(f".layers.{stage}.", ".layers.0.")] = tensor
        first, last = "embedding" in name, "final_layernorm" in name or "output_layer" in name
        if (first and stage == 0) or (last and stage == 2):
            made[name] = tensor
    return made


def test_rows_of_padding_are_left_out(tmp_path: Path) -> None:
    source = saved(named("Llama 3"), tmp_path / "hf")[1]
    whole = converted(source, "nemo", tmp_path / "whole")
    state = weights_of(whole.path)
    for name in ("model.embedding.word_embeddings.weight", "model.output_layer.weight"):
        state[name] = torch.cat([state[name], torch.full((32, 48), 7.0)])
    unpacked = tmp_path / "unpacked"
    with tarfile.open(whole.path) as archive:
        archive.extract("./model_config.yaml", unpacked, filter="data")
    torch.save(state, unpacked / "model_weights.ckpt")
    same(geode.checkpoint.open(unpacked).tensors, whole.tensors)  # override_vocab_size says 96
    assert geode.checkpoint.open(unpacked / "model_config.yaml").config.vocab == 96


def test_ranks_that_do_not_fit(tmp_path: Path) -> None:
    source = saved(named("Llama 3"), tmp_path / "hf")[1]
    whole = converted(source, "nemo", tmp_path / "whole")
    one, other = split(weights_of(whole.path), source.config, 2)
    other.pop("model.decoder.final_layernorm.weight")
    unpacked = tmp_path / "unpacked"
    for rank, state in enumerate((one, other)):
        (unpacked / f"mp_rank_{rank:02}").mkdir(parents=True)
        torch.save(state, unpacked / f"mp_rank_{rank:02}" / "model_weights.ckpt")
    with tarfile.open(whole.path) as archive:
        archive.extract("./model_config.yaml", unpacked, filter="data")
    with pytest.raises(TensorError, match="do not hold the same tensors"):
        geode.checkpoint.open(unpacked)


# --------------------------------------------------------------------------------------------------------- hostile files


def make_tar(path: Path, *members: tuple[tarfile.TarInfo | str, bytes], mode: Any = "w:") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("a")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def test_tars_that_are_no_checkpoint(tmp_path: Path) -> None:
    for i, name in enumerate(("../a", "/etc/passwd", "a/../../b", "c:/x", "..\\x")):
        with pytest.raises(FormatError, match="points outside"):
            tar.members(make_tar(tmp_path / f"{i}.nemo", (name, b"x")))
    for i, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
        with pytest.raises(FormatError, match="link or a device"):
            tar.members(make_tar(tmp_path / f"l{i}.nemo", (link(kind), b"")))
    with pytest.raises(FormatError, match=r"gzip.*gunzip"):
        geode.checkpoint.open(make_tar(tmp_path / "z.nemo", ("a", b"x"), mode="w:gz"))
    (tmp_path / "n.nemo").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(FormatError, match="headers cannot be read"):
        geode.checkpoint.open(tmp_path / "n.nemo")
    with pytest.raises(FormatError, match=r"no model_config\.yaml"):
        geode.checkpoint.open(make_tar(tmp_path / "m.nemo", ("a", b"x")))
    yaml = ("./model_config.yaml", b"num_layers: 1\n")
    with pytest.raises(FormatError, match="holds no model"):
        geode.checkpoint.open(make_tar(tmp_path / "w.nemo", yaml))
    with pytest.raises(FormatError, match="distributed checkpoint"):
        geode.checkpoint.open(make_tar(tmp_path / "d.nemo", yaml, ("model_weights/.metadata", b"x")))
    torch.save({"model.embedding.word_embeddings.weight": torch.ones(4, 2)}, tmp_path / "w.ckpt")
    weights = ("./model_weights.ckpt", (tmp_path / "w.ckpt").read_bytes())
    with pytest.raises(ConfigError, match="is of no family"):
        geode.checkpoint.open(make_tar(tmp_path / "f.nemo", yaml, weights))
    (tmp_path / "several").mkdir()
    for name in "ab":
        make_tar(tmp_path / "several" / f"{name}.nemo", yaml)
    with pytest.raises(ModelNotFound, match=r"2 \.nemo files"):
        geode.checkpoint.open(tmp_path / "several")


def test_a_cut_or_changed_tar_is_ours(tmp_path: Path) -> None:
    source = saved(named("SmolLM2"), tmp_path / "hf")[1]
    converted(source, "nemo", tmp_path / "out", manifest=False)
    path = tmp_path / "out" / "model.nemo"
    data = path.read_bytes()
    for size in (0, 100, 512, 600, 3000, len(data) // 2, len(data) - 2000):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError):
            geode.checkpoint.open(path)
    for at in range(0, 2600, 37):
        path.write_bytes(bytes([*data[:at], data[at] ^ 1, *data[at + 1 : 3000]]) + data[3000:])
        try:
            opened: Checkpoint = geode.checkpoint.open(path)
            _ = opened.tensors
        except (FormatError, ConfigError, TensorError):
            continue


# ------------------------------------------------------------------------------------------------------------------ YAML

TEXT = r"""
# a comment
a: 1
b: -2.5e-3   # another
c: 1e-5
d: null
e: ~
f:
g: yes it is
h: 'it''s # no comment'
i: "x\ty\x00"
j: [1, 2.5, null, "a, b", [x]]
k: {p: 1, "q r": true}
l:
- 4096
- 0
m:
  - name: x
    value: 1
  - name: y
  -
    - 1
n:
  o:
    p: ${.a}
  q: False
r: a#b
s: some folded
  text
t: []
u: nemo:tokenizer.model
"v w": -7
"""


def test_yaml() -> None:
    found = plain_yaml.loads(TEXT, "it")
    expected: dict[str, Any] = {"a": 1, "b": -0.0025, "c": 1e-5, "d": None, "e": None, "f": None, "g": "yes it is"}
    expected |= {
        "h": "it's # no comment",
        "i": "x\ty\0",
        "j": [1, 2.5, None, "a, b", ["x"]],
        "k": {"p": 1, "q r": True},
    }
    expected |= {"l": [4096, 0], "m": [{"name": "x", "value": 1}, {"name": "y"}, [1]]}
    expected |= {"n": {"o": {"p": "${.a}"}, "q": False}, "r": "a#b", "s": "some folded text", "t": []}
    assert found == expected | {"u": "nemo:tokenizer.model", "v w": -7}
    flat = {name: value for name, value in found.items() if name not in ("j", "m")}
    assert plain_yaml.loads(plain_yaml.dumps(flat), "it") == flat


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &x 1", "more than a text"),
        ("a: *x", "more than a text"),
        ("a: !!python/object/apply:os.system [ls]", "more than a text"),
        ("a: |\n  text", "more than a text"),
        ("a: [1, 2", "closing bracket"),
        ("a: 'x", "closing quote"),
        ('a: "x', "cannot be read"),
        ("a: 1\na: 2", "a second time"),
        ("a: 1\n   b: 2\n c: 3", "indented"),
        ("- 1\n- 2", "not a list of names"),
        ("just words", "a name with a value"),
        ("\ta: 1", "tab"),
        ("a:\n    b: 1\n  c: 2", "not a list of names|deeper"),
        ("a: " + "[" * 100_000 + "]" * 100_000, "brackets in brackets"),
        ("x" * 20_000_000, "characters"),
    ],
)
def test_yaml_that_is_not_read(text: str, problem: str) -> None:
    if text.startswith("a: 1\n   b"):
        assert plain_yaml.loads(text, "it")["a"] == "1 b: 2 c: 3"  # a folded text, as YAML has it
        return
    with pytest.raises(FormatError, match=problem):
        plain_yaml.loads(text, "it")


def test_numbers_stay_numbers() -> None:
    values = {
        "a": 1e-5,
        "b": 1e20,
        "c": 0.1,
        "d": -3.0,
        "e": 2**60,
        "f": "1e-5",
        "g": "null",
        "h": "",
        "i": "-",
        "j": "1",
    }
    assert plain_yaml.loads(plain_yaml.dumps(values), "it") == values
