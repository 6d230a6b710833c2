"""LoRA adapters: peft loads what we write and computes the same, GGUF's layout is llama.cpp's, the rest is refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import worker

from geode import adapters, checkpoint, families, tensors
from geode.adapters import Adapter, Pair
from geode.config import Config
from geode.dialects import gguf as gguf_dialect
from geode.dialects import hf as hf_dialect
from geode.dialects.peft import hf_rules, join, split
from geode.errors import ConfigError, FormatError, GeodeError, ModelNotFound, OptionError, TensorError
from geode.io import gguf, safetensors
from geode.tensors import Tensors, from_arrays

LLAMA, FALCON = families.by_name("llama"), families.by_name("falcon")
CONFIG = Config(96, 48, 2, 4, 2, 12, 80, 128, norm=LLAMA.constants["norm"])
FUSED = Config(96, 48, 2, 4, 2, 12, 80, 128, block="parallel", activation="gelu", gated=False, tied=True)
FUSED = FUSED.replace(norm=FALCON.constants["norm"])
RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def pair(out: int, width: int, rank: int = 3, scale: float = 2.0) -> Pair:
    return Pair(floats(rank, width), floats(out, rank), scale)


def change(one: Pair) -> np.ndarray:
    return one.scale * (one.b.astype(np.float64) @ one.a.astype(np.float64))


def save(folder: Path, family: families.Family = LLAMA, config: Config = CONFIG) -> Path:
    """A Hugging Face directory of random weights."""
    arrays = {name: floats(*shape) for name, shape in tensors.shapes(config).items()}
    folder.mkdir()
    safetensors.write(folder, hf_dialect.write(from_arrays(arrays), config, family))
    (folder / "config.json").write_text(json.dumps(family.config_to_hf(config)))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base")


def directory(
    folder: Path, base: Path | None, extra: dict[str, Any] | None = None, **changed: np.ndarray | None
) -> Path:
    """A PEFT directory with one pair of rank 4, on the first layer's queries."""
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    arrays = {f"{stem}.lora_A.weight": floats(4, 48), f"{stem}.lora_B.weight": floats(48, 4)}
    arrays |= {name.replace("__", "."): array for name, array in changed.items() if array is not None}
    gone = {name.replace("__", ".") for name, array in changed.items() if array is None}
    folder.mkdir(exist_ok=True)
    kept = {name: array for name, array in arrays.items() if name not in gone}
    safetensors.write(folder / "adapter_model.safetensors", kept)
    options = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": str(base) if base else None}
    (folder / "adapter_config.json").write_text(json.dumps(options | (extra or {})))
    return folder


# ------------------------------------------------------------------------------------------------------ beside peft itself

PARTED = {"embeddings, tied", "head, tied", "saved embeddings, tied", "embeddings of Gemma"}
TIED = {"both, tied", "saved both, tied", "norms", "fused", "fused, one head"}
_TABLE = """
    all matrices | patterns | rsLoRA and biases | all biases | DoRA | DoRA, fused | embeddings, tied | head, tied
    both, tied | saved embeddings, tied | saved both, tied | both, untied | norms | embeddings of Gemma | norms of heads
    fused | fused, one head | fused, biases | head of NeoX | OLMo 2
"""
CASES = [name.strip() for line in _TABLE.strip().splitlines() for name in line.split("|")]


@pytest.fixture(scope="session")
def measured(once: Callable[[str, Callable[[Path], None]], Path]) -> dict[str, dict[str, Any]]:
    for package in ("torch", "transformers", "peft"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")

    def measure(folder: Path) -> None:
        (folder / "found.json").write_text(json.dumps(worker("adapter_worker.py", str(folder), *CASES)))

    found: dict[str, dict[str, Any]] = json.loads((once("adapters", measure) / "found.json").read_text())
    return found


@pytest.mark.parametrize("name", CASES)
def test_peft_computes_the_same(name: str, measured: dict[str, dict[str, Any]]) -> None:
    """The adapter that we wrote gives peft's own logits; merged, they move by float32's rounding."""
    found = measured[name]
    assert found["effect"] > 1
    assert found["peft"] <= 1e-6
    assert found["merged"] <= 1e-5 * max(20.0, found["effect"])
    assert found["tied"] == (name in TIED)
    pairs_only = name in {
        "all matrices",
        "patterns",
        "both, untied",
        "fused",
        "fused, one head",
        "head of NeoX",
        "OLMo 2",
    }
    assert ("gguf" in found) == pairs_only
    assert found.get("gguf", 0) < 1e-6


# ------------------------------------------------------------------------------------------------------------------ tables


def test_fused_matrices_take_a_part_alone_exactly() -> None:
    """An adapter on queries only, or on all three with inputs of their own, goes into query_key_value and back."""
    rules, shapes = hf_rules(FUSED, FALCON), tensors.shapes(FUSED)
    every = {name: pair(*shapes[name], rank=2 + i) for i, name in enumerate(f"blk.1.attn_{p}.weight" for p in "qkv")}
    stored = from_arrays({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    for names in (("q",), ("q", "v"), ("q", "k", "v")):
        ours = {f"blk.1.attn_{part}.weight": every[f"blk.1.attn_{part}.weight"] for part in names}
        (theirs,) = join(rules, ours, FUSED).values()
        assert theirs.rank == sum(one.rank for one in ours.values())
        wide = dict(stored.entries) | from_arrays({n: change(p).astype(np.float32) for n, p in ours.items()}).entries
        fused = hf_dialect.write(Tensors(wide), FUSED, FALCON)["transformer.h.1.self_attention.query_key_value.weight"]
        np.testing.assert_allclose(change(theirs), fused, atol=1e-5)
        back = split(rules, {"transformer.h.1.self_attention.query_key_value.weight": theirs}, FUSED)
        for name, one in back.items():
            np.testing.assert_allclose(change(one), change(ours[name]) if name in ours else 0, atol=1e-5)


def test_parts_with_one_input_share_it() -> None:
    shapes = tensors.shapes(FUSED)
    low = floats(3, 48)
    ours = {n: Pair(low.copy(), floats(shapes[n][0], 3), 0.5) for n in (f"blk.0.attn_{p}.weight" for p in "qkv")}
    (theirs,) = join(hf_rules(FUSED, FALCON), ours, FUSED).values()
    assert theirs.rank == 3
    assert theirs.scale == 0.5
    back = split(hf_rules(FUSED, FALCON), {"transformer.h.0.self_attention.query_key_value.weight": theirs}, FUSED)
    assert all(np.array_equal(back[name].b, ours[name].b) for name in ours)


def test_scales_that_differ_are_folded_where_a_matrix_has_one() -> None:
    shapes = tensors.shapes(FUSED)
    ours = {n: pair(*shapes[n], scale=s) for n, s in (("blk.0.attn_q.weight", 2.0), ("blk.0.attn_v.weight", 0.25))}
    (theirs,) = join(hf_rules(FUSED, FALCON), ours, FUSED).values()
    back = split(hf_rules(FUSED, FALCON), {"transformer.h.0.self_attention.query_key_value.weight": theirs}, FUSED)
    for name, one in ours.items():
        np.testing.assert_allclose(change(back[name]), change(one), atol=1e-5)


def test_fused_magnitudes_want_all_parts() -> None:
    ours = {"blk.0.attn_q.weight": Pair(floats(2, 48), floats(48, 2), 1.0, floats(48))}
    with pytest.raises(TensorError, match="magnitude"):
        join(hf_rules(FUSED, FALCON), ours, FUSED)


# -------------------------------------------------------------------------------------------------------------------- GGUF


def test_gguf_is_laid_out_as_llama_cpp_reads_it(base: Path, tmp_path: Path) -> None:
    """B's rows lie as the matrix's rows do; embeddings have A and B changed over; alpha is one for all."""
    library = pytest.importorskip("gguf")
    opened = checkpoint.open(base)
    shapes = tensors.shapes(CONFIG)
    names = (
        "blk.1.attn_q.weight",
        "blk.1.attn_k.weight",
        "blk.0.ffn_down.weight",
        "token_embd.weight",
        "output.weight",
    )
    given = {name: pair(*shapes[name], rank=2 + (i == 2), scale=2.0 + i) for i, name in enumerate(names)}
    adapters.write_gguf(Adapter(LLAMA, CONFIG, given, from_arrays({}), None), tmp_path / "a.gguf")
    reader = library.GGUFReader(tmp_path / "a.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert keys["general.type"] == "adapter"
    assert keys["adapter.type"] == "lora"
    assert keys["general.architecture"] == "llama"
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    wide = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    wide |= {name: change(one).astype(np.float32) for name, one in given.items()}
    expected = gguf_dialect.write(from_arrays(wide), CONFIG, LLAMA)
    for name in names:
        a, b = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
        made = a @ b.T if name == "token_embd.weight" else b @ a
        rank = b.shape[1]
        np.testing.assert_allclose(made * keys["adapter.lora.alpha"] / rank, expected[name], atol=2e-5)
    back = adapters.open(tmp_path / "a.gguf", opened)
    for name in names:
        np.testing.assert_allclose(change(back.pairs[name]), change(given[name]), atol=2e-5)


def test_gguf_without_alpha_has_a_scale_of_one(base: Path, tmp_path: Path) -> None:
    keys = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama"}
    parts = {"blk.0.ffn_up.weight.lora_a": floats(2, 48), "blk.0.ffn_up.weight.lora_b": floats(80, 2)}
    gguf.write(tmp_path / "a.gguf", keys, parts)
    assert adapters.open(tmp_path / "a.gguf", checkpoint.open(base)).pairs["blk.0.ffn_up.weight"].scale == 1.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"replaced": from_arrays({"output_norm.weight": np.ones(48, np.float32)})}, "output_norm.weight"),
        ({"pairs": {"blk.0.ffn_up.weight": Pair(floats(2, 48), floats(80, 2), 1.0, floats(80))}}, "DoRA"),
        ({"pairs": {"token_embd.weight": pair(96, 48)}, "config": CONFIG.replace(tied=True)}, "the head shares"),
        ({"pairs": {}}, "changes nothing"),
    ],
)
def test_gguf_refuses_what_llama_cpp_cannot_add(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    usual = {"config": CONFIG, "pairs": {"blk.0.ffn_up.weight": pair(80, 48)}, "replaced": from_arrays({})}
    with pytest.raises(OptionError, match=words):
        adapters.write_gguf(Adapter(LLAMA, **(usual | given)), tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


# ------------------------------------------------------------------------------------------------------- finding and writing


def test_what_is_an_adapter(base: Path, tmp_path: Path) -> None:
    made = directory(tmp_path / "a", base)
    opened = adapters.open(made)
    adapters.write_gguf(opened, tmp_path / "a.gguf")
    gguf.write(tmp_path / "m.gguf", {"general.architecture": "llama"}, {"x": floats(2)})
    assert adapters.claims(made)
    assert adapters.claims(made / "adapter_config.json")
    assert adapters.claims(tmp_path / "a.gguf")
    assert not adapters.claims(base)
    assert not adapters.claims(tmp_path / "m.gguf")
    assert not adapters.claims(base / "model.safetensors")


def test_the_base_is_found_beside_the_adapter(base: Path, tmp_path: Path) -> None:
    made = directory(tmp_path / "a", None, {"base_model_name_or_path": "../base"})
    assert adapters.open(made).pairs.keys() == {"blk.0.attn_q.weight"}


def test_written_whole_or_not_at_all(base: Path, tmp_path: Path) -> None:
    opened = adapters.open(directory(tmp_path / "a", base))
    assert adapters.write(opened, tmp_path / "b") == "peft"
    assert adapters.write(opened, tmp_path / "b.gguf") == "gguf"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "b.gguf", "base"]
    with pytest.raises(OptionError, match="there already"):
        adapters.write(opened, tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("mine")
    assert adapters.write(opened, tmp_path / "b", force=True) == "peft"
    assert (tmp_path / "b" / "README.md").read_text() == "mine"
    with pytest.raises(OptionError, match="are written as peft"):
        adapters.write(opened, tmp_path / "c", "onnx")
    again = adapters.open(tmp_path / "b", checkpoint.open(base))
    for name, one in opened.pairs.items():
        assert np.array_equal(again.pairs[name].a, one.a)
        assert np.array_equal(again.pairs[name].b, one.b)
        assert again.pairs[name].scale == one.scale


def test_bfloat16_adapters_keep_their_bits(base: Path, tmp_path: Path) -> None:
    import ml_dtypes

    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    low, high = floats(4, 48).astype(ml_dtypes.bfloat16), floats(48, 4).astype(ml_dtypes.bfloat16)
    made = directory(tmp_path / "a", base, None, **{f"{stem}.lora_A.weight": low, f"{stem}.lora_B.weight": high})
    adapters.write_peft(adapters.open(made), tmp_path / "b")
    first, second = (safetensors.read(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert set(first) == set(second)
    for name in first:
        assert first[name].dtype == second[name].dtype == ml_dtypes.bfloat16
        assert np.asarray(first[name]).tobytes() == np.asarray(second[name]).tobytes()


def test_other_savers_names_are_read(base: Path, tmp_path: Path) -> None:
    """Without peft's prefix, and with the adapter's name left in."""
    stem = "base_model__model__model__layers__0__self_attn__q_proj"
    gone = {f"{stem}__lora_A__weight": None, f"{stem}__lora_B__weight": None}
    plain = {"model.layers.1.mlp.up_proj.lora_A.default.weight": floats(4, 48)}
    plain |= {"model.layers.1.mlp.up_proj.lora_B.default.weight": floats(80, 4)}
    plain |= {"model.norm.modules_to_save.default.weight": floats(48)}
    opened = adapters.open(directory(tmp_path / "a", base, None, **gone, **plain))
    assert opened.pairs.keys() == {"blk.1.ffn_up.weight"}
    assert set(opened.replaced) == {"output_norm.weight"}


# --------------------------------------------------------------------------------------------------------------- bad input

Q = "base_model__model__model__layers__0__self_attn__q_proj"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"use_qalora": True}, "use_qalora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"use_of_tomorrow": {"strength": 2}}, "use_of_tomorrow"),
        ({"r": 0}, "r 0"),
        ({"lora_alpha": "much"}, "lora_alpha 'much'"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern"),
    ],
)
def test_options_that_change_the_mathematics_are_refused(
    options: dict[str, Any], words: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        adapters.open(directory(tmp_path / "a", base, options))


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({f"{Q}__lora_B__weight": None}, TensorError, "lora_B"),
        ({f"{Q}__lora_A__weight": floats(5, 48)}, TensorError, "rank 4"),
        ({f"{Q}__lora_B__weight": floats(48, 5)}, TensorError, "B .48, 5."),
        ({f"{Q}__lora_B__weight": floats(47, 4)}, TensorError, "the base model that"),
        ({f"{Q}__lora_A__weight": floats(4)}, TensorError, "should be a matrix"),
        ({f"{Q}__lora_magnitude_vector": floats(48)}, TensorError, "use_dora False"),
        ({"base_model__model__model__norm__weight": floats(49)}, TensorError, "vocabulary was extended"),
        ({"base_model__model__model__other__weight": floats(4)}, TensorError, "does not have"),
        ({"base_model__model__score__ia3_l": floats(4)}, TensorError, "no part of a LoRA"),
        (
            {
                "base_model__model__x__lora_A__weight": floats(4, 48),
                "base_model__model__x__lora_B__weight": floats(48, 4),
            },
            TensorError,
            "does not have: x.weight",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    changed: dict[str, Any], kind: type[GeodeError], words: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=words):
        adapters.open(directory(tmp_path / "a", base, None, **changed))


def test_files_that_are_not_there_or_damaged(base: Path, tmp_path: Path) -> None:
    opened = checkpoint.open(base)
    with pytest.raises(ModelNotFound, match="no adapter at"):
        adapters.open(tmp_path / "none")
    with pytest.raises(ModelNotFound, match="so it is no adapter"):
        adapters.open(base)
    with pytest.raises(ModelNotFound, match="not on this machine"):
        adapters.open(directory(tmp_path / "a", None, {"base_model_name_or_path": "nobody/nothing"}))
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(FormatError):
        adapters.open(tmp_path / "a", opened)
    weights.rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(ModelNotFound, match="pickle"):
        adapters.open(tmp_path / "a", opened)
    (tmp_path / "a" / "adapter_config.json").write_text("{")
    with pytest.raises(FormatError):
        adapters.open(tmp_path / "a", opened)


@pytest.mark.parametrize(
    ("keys", "parts", "words"),
    [
        ({"general.architecture": "gemma"}, {}, "gemma"),
        ({"general.type": "model"}, {}, "'model'"),
        ({"adapter.type": "control_vector"}, {}, "control_vector"),
        ({"adapter.alora.invocation_tokens": np.array([1], np.uint32)}, {}, "invocation_tokens"),
        ({"adapter.lora.alpha": 8}, {}, "floating-point"),
        ({}, {"blk.0.ffn_up.weight.lora_b": None}, "half of a pair"),
        ({}, {"blk.0.ffn_up.weight.lora_a": None}, "half of a pair"),
        ({}, {"blk.0.ffn_up.weight.lora_a": floats(2, 47)}, "the base model that"),
        ({}, {"blk.7.ffn_up.weight.lora_a": floats(2, 48), "blk.7.ffn_up.weight.lora_b": floats(80, 2)}, "blk.7"),
    ],
)
def test_bad_gguf_adapters(keys: dict[str, Any], parts: dict[str, Any], words: str, base: Path, tmp_path: Path) -> None:
    usual = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama"}
    usual |= {"adapter.lora.alpha": 8.0}
    arrays = {"blk.0.ffn_up.weight.lora_a": floats(2, 48), "blk.0.ffn_up.weight.lora_b": floats(80, 2)} | parts
    gguf.write(tmp_path / "a.gguf", usual | keys, {name: array for name, array in arrays.items() if array is not None})
    with pytest.raises((ConfigError, TensorError), match=words):
        adapters.open(tmp_path / "a.gguf", checkpoint.open(base))


def test_gguf_adapters_want_their_base(base: Path, tmp_path: Path) -> None:
    adapters.write_gguf(adapters.open(directory(tmp_path / "a", base)), tmp_path / "a.gguf")
    with pytest.raises(OptionError, match="base model"):
        adapters.open(tmp_path / "a.gguf")


def test_half_a_module_cannot_be_saved(tmp_path: Path) -> None:
    """peft keeps whole modules: a LayerNorm's weight without its bias is none."""
    one = Adapter(FALCON, FUSED, {}, from_arrays({"output_norm.weight": floats(48)}))
    with pytest.raises(TensorError, match=r"ln_f\.bias"):
        adapters.write_peft(one, tmp_path / "a")
