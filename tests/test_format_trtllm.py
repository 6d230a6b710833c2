"""TensorRT-LLM's checkpoints: each family there and back over ranks, and the pieces those that its converters make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import by_slug, converted, named, near, same, saved
from variants import Variant

import geode.checkpoint
from geode.errors import ConfigError, FormatError, ModelNotFound, TensorError
from geode.formats import Target, by_name
from geode.io import safetensors

torch = pytest.importorskip("torch")

NAMES = (
    *("Gemma 1 2B", "Gemma 1 7B", "Gemma 2 2B, 9B", "Gemma 2 27B", "Gemma 3 270M, 1B", "Gemma 3 4B, 12B", "Llama 2"),
    *("Llama 3", "Llama 3.1, 3.2", "Llama, linear scaling, biases", "SmolLM2", "Mistral 7B v0.1", "Mistral Nemo"),
    *("Falcon 7B", "Falcon 40B", "Qwen 1.5", "Qwen 2, 2.5", "Qwen 3", "StableLM alpha", "GPT-NeoX, Pythia, oasst-sft"),
)


def gemma(variant: Variant) -> bool:
    return variant.config_class.startswith("Gemma")


@pytest.mark.parametrize("ranks", [1, 2, 4])
@by_slug(*NAMES)
def test_there_and_back(variant: Variant, ranks: int, tmp_path: Path) -> None:
    """Bitwise; Gemma's norms, stored as 1 + w, within float32's rounding of 1."""
    source = saved(variant, tmp_path / "hf")[1]
    target = Target(parallel=ranks)
    if source.config.heads % ranks or (source.config.kv_heads % ranks and ranks % source.config.kv_heads):
        assert "do not split" in str(by_name("trtllm").refuses(source, target))
        return
    found = converted(source, "trtllm", tmp_path / "out", target)
    assert (found.format, found.config) == ("trtllm", source.config)
    near(found.tensors, source.tensors, 2.0**-23 if gemma(variant) else 0.0)
    assert sorted(file.name for file in (tmp_path / "out").glob("rank*")) == [
        f"rank{i}.safetensors" for i in range(ranks)
    ]


@by_slug("Gemma 1 2B", "Llama 3", "Qwen 2, 2.5", "Falcon 40B", "GPT-NeoX, Pythia, oasst-sft")
def test_bfloat16(variant: Variant, tmp_path: Path) -> None:
    """Bitwise, but for Gemma's norms: 1 + w keeps 8 bits."""
    source = saved(variant, tmp_path / "hf", "bfloat16")[1]
    found = converted(source, "trtllm", tmp_path / "out", Target(parallel=2))
    near(found.tensors, source.tensors, 2.0**-7 if gemma(variant) else 0.0)
    assert {entry.type for entry in found.stored.entries.values()} == {"BF16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    said = by_name("trtllm").losses(source, Target())
    assert any("1 + w in BF16" in loss for loss in said) == gemma(variant)


@by_slug(*(name for name in NAMES if name not in ("Mistral 7B v0.1", "Gemma 3 4B, 12B")))
def test_without_a_manifest(variant: Variant, tmp_path: Path) -> None:
    source = saved(variant, tmp_path / "hf")[1]
    found = converted(source, "trtllm", tmp_path / "out", manifest=False)
    expected = source.config
    if variant.config_class == "Gemma2Config":  # its window is given when an engine runs
        expected, found.config = (c.replace(pattern=()) for c in (expected, found.config))
    assert (found.family.name, found.config) == (source.family.name, expected)


def pieces(model: Any, config: Any, layer: int, rank: int, ranks: int) -> dict[str, Any]:
    """What rank `rank` of `ranks` holds of a layer, made as the converters of llama and gemma do."""
    state = model.state_dict()
    at = f"model.layers.{layer}."

    def get(name: str) -> Any:
        return state[f"{at}{name}.weight"]

    q, k, v = (get(f"self_attn.{part}_proj") for part in "qkv")
    if config.kv_heads < ranks:
        k, v = (
            x.view(config.kv_heads, 1, config.head_dim, -1).expand(-1, ranks // config.kv_heads, -1, -1) for x in (k, v)
        )
        k, v = (x.reshape(ranks * config.head_dim, -1) for x in (k, v))
    qkv = torch.cat([x.chunk(ranks)[rank] for x in (q, k, v)])
    return {
        "attention.qkv.weight": qkv,
        "attention.dense.weight": get("self_attn.o_proj").chunk(ranks, 1)[rank],
        "mlp.fc.weight": get("mlp.gate_proj").chunk(ranks)[rank],
        "mlp.gate.weight": get("mlp.up_proj").chunk(ranks)[rank],
        "mlp.proj.weight": get("mlp.down_proj").chunk(ranks, 1)[rank],
    }


@pytest.mark.parametrize("ranks", [1, 2, 4])
@by_slug("Gemma 1 2B", "Gemma 2 2B, 9B", "Llama 3", "Mistral Nemo")
def test_the_pieces_of_each_rank(variant: Variant, ranks: int, tmp_path: Path) -> None:
    model, source = saved(variant, tmp_path / "hf")
    converted(source, "trtllm", tmp_path / "out", Target(parallel=ranks))
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["mapping"] == {"world_size": ranks, "tp_size": ranks, "pp_size": 1}
    assert values["use_parallel_embedding"] == (gemma(variant) and ranks > 1)
    state = model.state_dict()
    embeddings = state["model.embed_tokens.weight"]
    head = embeddings if gemma(variant) else state["lm_head.weight"]
    for rank in range(ranks):
        found = safetensors.read(tmp_path / "out" / f"rank{rank}.safetensors")
        for name, tensor in pieces(model, source.config, 1, rank, ranks).items():
            np.testing.assert_array_equal(np.asarray(found[f"transformer.layers.1.{name}"]), tensor.numpy())
        np.testing.assert_array_equal(np.asarray(found["lm_head.weight"]), head.chunk(ranks)[rank].numpy())
        mine = embeddings.chunk(ranks)[rank] if gemma(variant) else embeddings
        np.testing.assert_array_equal(np.asarray(found["transformer.vocab_embedding.weight"]), mine.numpy())
        norm = state["model.layers.1.input_layernorm.weight"] + (1 if gemma(variant) else 0)
        np.testing.assert_array_equal(np.asarray(found["transformer.layers.1.input_layernorm.weight"]), norm.numpy())


def test_a_head_that_ranks_do_not_divide_has_rows_of_zeros(tmp_path: Path) -> None:
    variant = named("Llama 2")
    _, source = saved(Variant("x", "LlamaConfig", variant.options | {"vocab_size": 97}), tmp_path / "hf")
    found = converted(source, "trtllm", tmp_path / "out", Target(parallel=2))
    same(found.tensors, source.tensors)
    last = np.asarray(safetensors.read(tmp_path / "out" / "rank1.safetensors")["lm_head.weight"])
    assert last.shape == (49, 48)
    assert not last[-1].any()


def test_stages_of_a_pipeline_are_joined(tmp_path: Path) -> None:
    source = saved(named("Llama 3"), tmp_path / "hf")[1]
    converted(source, "trtllm", tmp_path / "out")
    out = tmp_path / "out"
    whole = dict(safetensors.read(out / "rank0.safetensors"))
    stages = ([0, 1], [2])
    for stage, layers in enumerate(stages):
        made = {
            name.replace(f"layers.{layer}.", f"layers.{layer - layers[0]}."): array
            for layer in layers
            for name, array in whole.items()
            if f"layers.{layer}." in name
        }
        ends = ("transformer.vocab_embedding.weight",) if stage == 0 else ("transformer.ln_f.weight", "lm_head.weight")
        safetensors.write(out / f"rank{stage}.safetensors", made | {name: whole[name] for name in ends})
    values = json.loads((out / "config.json").read_text())
    values["mapping"] = {"world_size": 2, "tp_size": 1, "pp_size": 2}
    (out / "config.json").write_text(json.dumps(values))
    same(geode.checkpoint.open(out / "rank1.safetensors").tensors, source.tensors)


def test_refusals_and_losses(tmp_path: Path) -> None:
    one = by_name("trtllm")
    for name, problem in {"OLMo 2": "no olmo2", "Pythia, sequential": "parallel residuals"}.items():
        assert problem in str(one.refuses(saved(named(name), tmp_path / name)[1], Target()))
    llama = saved(named("Llama 3"), tmp_path / "llama")[1]
    assert "do not split over 3 ranks" in str(one.refuses(llama, Target(parallel=3)))
    assert one.losses(llama, Target()) == []
    window = saved(named("Mistral 7B v0.1"), tmp_path / "mistral")[1]
    assert any("window" in loss for loss in one.losses(window, Target()))
    assert "legacy" in one.about


def test_damaged_directories(tmp_path: Path) -> None:
    source = saved(named("Llama 3"), tmp_path / "hf")[1]
    converted(source, "trtllm", tmp_path / "out", Target(parallel=2), manifest=False)
    out = tmp_path / "out"
    good = (out / "config.json").read_text()
    values = json.loads(good)

    def complaint(kind: type[Exception], **changes: Any) -> str:
        (out / "config.json").write_text(json.dumps(values | changes))
        with pytest.raises(kind) as caught:
            _ = geode.checkpoint.open(out).tensors
        return str(caught.value)

    assert "has no architecture" in complaint(ConfigError, architecture=None)
    assert "'Evil' is not read" in complaint(ConfigError, architecture="Evil")
    assert "quantised" in complaint(FormatError, quantization={"quant_algo": "FP8"})
    assert "tp_size should be 1 to 1024" in complaint(ConfigError, mapping={"tp_size": 10**9})
    assert "tp_size should be 1 to 1024" in complaint(ConfigError, mapping={"tp_size": "2"})
    assert "rank2.safetensors" in complaint(ModelNotFound, mapping={"tp_size": 4})
    assert "do not fit" in complaint(TensorError, mapping={"tp_size": 1})
    assert "lacks the key 'hidden_size'" in complaint(ConfigError, hidden_size=None)
    assert "should hold" in complaint(TensorError, num_key_value_heads=4)
    (out / "config.json").write_text(good)
    (out / "rank1.safetensors").write_bytes(b"12345678")
    with pytest.raises(FormatError):
        geode.checkpoint.open(out)
    (out / "rank1.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"rank1\.safetensors"):
        geode.checkpoint.open(out)
