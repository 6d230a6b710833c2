"""Family tables: published configurations are read as transformers reads them, and written so that all read them back."""

from __future__ import annotations

import copy
import dataclasses
import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from published import PUBLISHED, Json
from variants import SMALL, VARIANTS

from geode import families, tensors
from geode.config import Attn, Bands, Config, Factors, Rope, Stretch, Yarn
from geode.dialects import gguf as gguf_dialect
from geode.dialects import hf as hf_dialect
from geode.errors import ConfigError
from geode.families import Family
from geode.positions import rope_factors

pytestmark = pytest.mark.filterwarnings("ignore")
UNKNOWN_TO_TRANSFORMERS = ("RefinedWeb", "RefinedWebModel", "stablelm_epoch")


def text_half(values: Json) -> Json:
    return values.get("text_config", values)


def read(values: Json) -> tuple[Family, Config]:
    family = families.by_model_type(text_half(values)["model_type"])
    return family, family.config_from_hf(text_half(values))


def published(name: str) -> Config:
    return read(PUBLISHED[name][1])[1]


@cache
def variant_json(name: str) -> Json:
    """config.json of a tiny network as transformers writes it."""
    transformers = pytest.importorskip("transformers")
    variant = next(variant for variant in VARIANTS if variant.name == name)
    options = SMALL | {"tie_word_embeddings": variant.config_class.startswith("Gemma")} | copy.deepcopy(variant.options)
    if variant.config_class == "FalconConfig":
        options |= {"ffn_hidden_size": options.pop("intermediate_size"), "tie_word_embeddings": True}
    return dict(json.loads(getattr(transformers, variant.config_class)(**options).to_json_string()))


# ------------------------------------------------------------------------------------------------------------ published


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_has_its_parameter_count(name: str) -> None:
    count, values = PUBLISHED[name]
    assert tensors.parameters(read(values)[1]) == count


def test_the_multimodal_gemma_has_64_more_rows_than_its_tokenizer() -> None:
    assert tensors.parameters(published("gemma-3-4b").replace(vocab=262_144)) == 3_880_099_328


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_computes_the_same_network(name: str) -> None:
    reference = pytest.importorskip("reference")
    pytest.importorskip("transformers")
    values = text_half(PUBLISHED[name][1])
    if values["model_type"] in UNKNOWN_TO_TRANSFORMERS:
        pytest.skip("transformers never read this model_type; the newer file of the same model is compared")
    family, config = read(values)
    assert_same_network(reference.meta_model(values), family, config)


def assert_same_network(model: Any, family: Family, config: Config) -> None:
    """Names, shapes, rope, windows, scale and epsilon of transformers' model."""
    import reference

    renamed = {hf_dialect._renamed(name, family): shape for name, shape in reference.shapes(model).items()}
    expected = tensors.shapes(config)
    ours = {n: s for rule in hf_dialect.rules(config, family) for n, s in rule.their_shapes(expected).items()}
    assert ours == renamed
    assert_same_ropes(reference.ropes(model), config)
    if hasattr(model.config, "sliding_window"):
        assert [layer.window for layer in config.layers] == reference.windows(model)
    attention = reference.attention(model)
    if (scale := getattr(attention, "scaling", None) or getattr(attention, "inv_norm_factor", None)) is not None:
        assert config.scale == pytest.approx(scale, rel=1e-6)
    assert config.norm.eps == reference.norm_eps(model)
    for ours_name, theirs in (("attn_softcap", "attn_logit_softcapping"), ("final_softcap", "final_logit_softcapping")):
        assert getattr(config, ours_name) == getattr(model.config, theirs, None)
    assert config.clip_qkv == getattr(model.config, "clip_qkv", None)
    assert config.context == model.config.max_position_embeddings


def assert_same_ropes(expected: dict[str, tuple[np.ndarray, float]], config: Config) -> None:
    for layer in config.layers:
        kind = "" if "" in expected else "full_attention" if layer.window is None else "sliding_attention"
        frequencies, magnitude = expected[kind]
        np.testing.assert_allclose(layer.rope.frequencies(config.head_dim), frequencies, rtol=3e-7, atol=0)
        assert layer.rope.magnitude == pytest.approx(magnitude, rel=1e-12)


def test_old_and_new_files_of_one_model_are_one_network() -> None:
    for name in ("falcon-7b", "falcon-40b", "stablelm-3b-4e1t", "stablelm-2-1.6b", "gemma-7b"):
        assert published(f"{name}-first") == published(name)


# ------------------------------------------------------------------------------------- details that others got wrong


def test_the_27b_gemmas_divide_by_width_over_heads() -> None:
    assert published("gemma-2-27b").scale == 144**-0.5
    assert published("gemma-3-27b").scale == 168**-0.5
    assert published("gemma-2-9b").scale == published("gemma-3-12b").scale == 256**-0.5


def test_gemma_2_has_windows_on_even_layers() -> None:
    windows = [layer.window for layer in published("gemma-2-2b").layers]
    assert windows == [4096, None] * 13


@pytest.mark.parametrize(("name", "window"), [("gemma-3-270m", 512), ("gemma-3-1b", 512), ("gemma-3-4b", 1024)])
def test_gemma_3_sees_all_on_every_sixth_layer(name: str, window: int) -> None:
    config = published(name)
    assert [i for i, layer in enumerate(config.layers) if layer.window is None] == list(range(5, config.depth, 6))
    assert {layer.window for layer in config.layers} == {window, None}


def test_gemma_3_scales_the_positions_of_global_layers_only() -> None:
    for layer in published("gemma-3-4b").layers:
        expected = (1e6, Stretch(8.0)) if layer.window is None else (1e4, None)
        assert (layer.rope.theta, layer.rope.scaling) == expected
    assert {layer.rope.scaling for layer in published("gemma-3-1b").layers} == {None}


@pytest.mark.parametrize("name", ["gemma-2b", "gemma-7b", "gemma-7b-first"])
def test_gemma_means_the_tanh_formula_whatever_its_file_says(name: str) -> None:
    assert published(name).activation == "gelu_tanh"


def test_gemma_7b_has_heads_wider_than_the_model() -> None:
    config = published("gemma-7b")
    assert (config.head_dim, config.q_width, config.width) == (256, 4096, 3072)


def test_the_soft_caps_of_gemma_2_are_there_unless_null() -> None:
    values = {k: v for k, v in PUBLISHED["gemma-2-2b"][1].items() if "softcapping" not in k}
    assert read(values)[1].attn_softcap == 50.0
    assert read(values)[1].final_softcap == 30.0
    off = read(values | {"attn_logit_softcapping": None, "final_logit_softcapping": None})[1]
    assert (off.attn_softcap, off.final_softcap) == (None, None)


def test_gemma_3_settings_that_a_file_leaves_out_are_those_of_transformers() -> None:
    values = PUBLISHED["gemma-3-1b"][1]
    fewer = {k: v for k, v in values.items() if k not in ("sliding_window", "rope_local_base_freq", "rope_theta")}
    layers = read(fewer)[1].layers
    assert (layers[0].window, layers[0].rope.theta, layers[5].rope.theta) == (4096, 1e4, 1e6)
    for sliding, theta in (({"rope_type": "default"}, 1e4), ({"rope_theta": 3e4}, 3e4)):
        nested = {"full_attention": {"rope_theta": 2e6}, "sliding_attention": sliding}
        layers = read(fewer | {"rope_parameters": nested})[1].layers
        assert (layers[0].rope.theta, layers[5].rope.theta) == (theta, 2e6)


def test_gemma_3_reads_its_pattern() -> None:
    layers = read(PUBLISHED["gemma-3-1b"][1] | {"sliding_window_pattern": 4})[1].layers
    assert [i for i, layer in enumerate(layers) if layer.window is None] == [3, 7, 11, 15, 19, 23]


def test_the_base_of_windowed_layers_goes_through_gguf() -> None:
    family, config = read(PUBLISHED["gemma-3-1b"][1] | {"rope_local_base_freq": 20_000.0})
    assert config.layers[0].rope.theta == 20_000.0
    assert through_gguf(family, config) == config


def test_mistral_has_its_window_unless_null() -> None:
    values = {k: v for k, v in PUBLISHED["mistral-7b-v0.2"][1].items() if k != "sliding_window"}
    assert read(values)[1].pattern[0].window == 4096  # the default of transformers' class
    assert published("mistral-7b-v0.1").pattern[0].window == 4096
    assert [published(f"mistral-7b-v0.{n}").pattern[0].window for n in (2, 3)] == [None, None]
    assert published("mistral-nemo").head_dim == 128


def test_llama_3_bands() -> None:
    assert published("llama-3.1-8b").pattern[0].rope.scaling == Bands(8.0, 1.0, 4.0, 8192)
    assert published("llama-3.2-1b").pattern[0].rope.scaling == Bands(32.0, 1.0, 4.0, 8192)
    assert published("llama-3-8b").pattern[0].rope.scaling is None


def test_falcon_shares_keys_and_norms_as_its_generation_does() -> None:
    small, large = published("falcon-7b-first"), published("falcon-40b-first")
    assert (small.heads, small.kv_heads, small.head_dim, small.block) == (71, 1, 64, "parallel_shared")
    assert (large.heads, large.kv_heads, large.head_dim, large.block) == (128, 8, 64, "parallel")
    assert (small.activation, small.tied, small.qkv_bias, small.ffn_bias) == ("gelu", True, False, False)


def test_part_of_each_head_rotates() -> None:
    dims = {"stablelm-3b-4e1t": 20, "stablelm-2-1.6b": 16, "stablelm-2-12b": 40, "pythia-12b": 32, "gpt-neox-20b": 24}
    for name, rotated in dims.items():
        config = published(name)
        assert config.pattern[0].rope.dims(config.head_dim) == rotated


def test_olmo_clips_from_0424_on() -> None:
    assert [published(name).clip_qkv for name in ("olmo-1b", "olmo-7b", "olmo-7b-0424")] == [None, None, 8.0]
    assert not published("olmo-7b").norm.weight


def test_qwen_has_no_windows_and_biases_on_queries_keys_values_only() -> None:
    config = published("qwen2-7b")
    assert {layer.window for layer in config.layers} == {None}
    assert (config.qkv_bias, config.out_bias, config.ffn_bias) == (True, False, False)


def test_qwen_can_have_windows_on_its_upper_layers() -> None:
    values = PUBLISHED["qwen2-0.5b"][1] | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 20}
    assert [layer.window for layer in read(values)[1].layers] == [None] * 20 + [64] * 4


def test_only_the_20b_neox_has_the_tanh_formula() -> None:
    assert published("gpt-neox-20b").activation == "gelu_tanh"
    assert published("pythia-12b").activation == "gelu"
    assert published("gpt-neox-20b").block == "parallel"


# ---------------------------------------------------------------------------------------------- there and back: config.json


def configurations() -> list[Any]:
    """Every published and every tiny one."""
    return [*PUBLISHED, *(pytest.param(variant.name, id=f"tiny-{variant.slug}") for variant in VARIANTS)]


def as_json(name: str) -> Json:
    return PUBLISHED[name][1] if name in PUBLISHED else variant_json(name)


@pytest.mark.parametrize("name", configurations())
def test_what_we_write_we_read(name: str) -> None:
    family, config = read(as_json(name))
    written = json.loads(json.dumps(family.config_to_hf(config)))
    assert families.by_model_type(written["model_type"]) is family
    assert family.config_from_hf(written) == config


@pytest.mark.parametrize("name", configurations())
def test_transformers_reads_what_we_write(name: str) -> None:
    pytest.importorskip("transformers")
    import reference

    family, config = read(as_json(name))
    assert_same_network(reference.meta_model(json.loads(json.dumps(family.config_to_hf(config)))), family, config)


# ----------------------------------------------------------------------------------------------------- there and back: GGUF

# What GGUF has no key for; llama.cpp derives it from the family and the size.
UNSAYABLE = {
    "gpt-neox-20b": "activation",  # llama.cpp takes the tanh formula for every file; ours takes the other
    "Gemma 2 27B": "query_scalar",  # these two have the depth and width of no 27B model
    "Gemma 3 27B": "query_scalar",
    "Gemma 3 4B, 12B": "query_scalar",  # 256 for heads of 32 channels
    "Gemma 3, ring turned over": "query_scalar",
    "Qwen 2, windows and YaRN": "which layers",
}


def through_gguf(family: Family, config: Config) -> Config:
    """Written as GGUF's keys and shapes, and read by the family that its architecture names."""
    metadata = family.config_to_gguf(config)
    freqs = metadata.pop("rope_freqs", None)
    assert all(isinstance(value, str | int | float) for value in metadata.values())
    single = {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in metadata.items()}
    back = families.by_gguf_arch(family.gguf_arch).config_from_gguf(single, gguf_shapes(config, family), freqs)
    assert (freqs is None) == (not isinstance(config.pattern[-1].rope.scaling, Bands | Factors))
    return back


def gguf_shapes(config: Config, family: Family) -> dict[str, tuple[int, ...]]:
    expected = tensors.shapes(config)
    return {n: s for rule in gguf_dialect.rules(config, family) for n, s in rule.their_shapes(expected).items()}


@pytest.mark.parametrize("name", configurations())
def test_what_we_write_as_gguf_we_read(name: str) -> None:
    family, config = read(as_json(name))
    if name in UNSAYABLE:
        with pytest.raises(ConfigError, match=f"GGUF has no key for {UNSAYABLE[name]}"):
            family.config_to_gguf(config)
        return
    assert through_gguf(family, config) == config  # Llama 3.1's factors are known again as its rule


@pytest.mark.parametrize(
    "scaling",
    [
        Stretch(4.0),
        Yarn(4.0, 256),
        Yarn(4.0, 256, beta_fast=16.0, beta_slow=2.0),
        Yarn(4.0, 256, attention=1.0),
        Factors((1.0, 2.0, 2.0, 3.0, 4.0, 5.0)),
    ],
)
def test_rope_scaling_goes_through_gguf(scaling: Any) -> None:
    family, config = read(variant_json("Llama 3"))
    layer = config.pattern[0]
    config = config.replace(
        pattern=(dataclasses.replace(layer, rope=dataclasses.replace(layer.rope, scaling=scaling)),)
    )
    back = through_gguf(family, config).pattern[0].rope
    np.testing.assert_allclose(back.frequencies(12), config.pattern[0].rope.frequencies(12), rtol=3e-7)
    assert back.magnitude == pytest.approx(config.pattern[0].rope.magnitude, rel=1e-6)


def test_yarn_without_truncation_cannot_be_said_in_gguf() -> None:
    family, config = read(variant_json("Llama 3"))
    layer = config.pattern[0]
    rope = dataclasses.replace(layer.rope, scaling=Yarn(4.0, 256, truncate=False))
    with pytest.raises(ConfigError, match="no key for YaRN without truncation"):
        family.config_to_gguf(config.replace(pattern=(dataclasses.replace(layer, rope=rope),)))


def test_factors_cannot_be_said_in_config_json() -> None:
    family, config = read(PUBLISHED["llama-3.1-8b"][1])
    odd = Rope(5e5, scaling=Factors(tuple(1.0 + i % 3 for i in range(64))))
    back = through_gguf(family, config.replace(pattern=(Attn(None, odd),)))
    assert back.pattern[0].rope == odd
    assert not family.spells(back)
    with pytest.raises(ConfigError, match="per-channel factors"):
        family.config_to_hf(back)


def test_a_windowed_llama_is_a_mistral() -> None:
    """GGUF calls both llama; only one config.json has a key for the window."""
    mistral, config = read(PUBLISHED["mistral-7b-v0.1"][1])
    llama = families.by_gguf_arch("llama")
    assert not llama.spells(config)
    assert families.spelling(config, llama) is mistral
    assert families.spelling(config.replace(pattern=(Attn(),)), llama) is llama


def test_rope_factors_are_llama_cpps() -> None:
    """The published Llama 3.1 GGUF files hold 1 for short waves and 8 for long ones, as conversion/llama.py writes."""
    factors = rope_factors(published("llama-3.1-8b").pattern[0].rope, 128)
    assert factors.dtype == np.float32
    assert factors.shape == (64,)
    np.testing.assert_allclose(factors[[0, -1]], [1.0, 8.0], rtol=1e-6)
    assert (np.diff(factors) > -1e-5).all()


@pytest.mark.parametrize("name", configurations())
def test_llama_cpp_knows_every_tensor_that_we_write(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    family, config = read(as_json(name))
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.gguf_arch)
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[arch]}
    stems = {name.rsplit(".", 1)[0] for name in gguf_shapes(config, family)}
    generic = {".".join(("blk", "{bid}", *stem.split(".")[2:])) if stem.startswith("blk.") else stem for stem in stems}
    assert generic <= known


@pytest.mark.parametrize("name", configurations())
def test_llama_cpp_knows_every_key_that_we_write(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    family, config = read(as_json(name))
    try:
        written = family.config_to_gguf(config)
    except ConfigError:
        return  # another test says which
    names = [value for group in vars(gguf.Keys).values() if isinstance(group, type) for value in vars(group).values()]
    known = {name.replace("{arch}", family.gguf_arch) for name in names if isinstance(name, str)}
    assert set(written) - {"rope_freqs"} <= known


# ----------------------------------------------------------------------------------------------------------------- by name


def test_an_unknown_model_type_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'mamba'.*llama, mistral, gemma.*RefinedWebModel.*qwen2"):
        families.by_model_type("mamba")
    with pytest.raises(ConfigError, match=r"'mamba'.*llama, gemma.*gptneox"):
        families.by_gguf_arch("mamba")


def test_every_family_names_its_own() -> None:
    for family in families.FAMILIES:
        assert families.by_name(family.name) is family
        assert all(families.by_model_type(name) is family for name in family.hf_types)
