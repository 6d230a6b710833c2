"""Configurations: what a Config says of itself, and that no file is misread: one clear error, or the right network."""

from __future__ import annotations

import contextlib
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published import PUBLISHED, Json

from geode import families, tensors
from geode.config import Attn, Bands, Config, Factors, Rope, Stretch, Yarn
from geode.errors import ConfigError, GeodeError
from geode.positions import shortest_cycle

LLAMA = PUBLISHED["llama-3.1-8b"][1]
TINY = Config(vocab=50, width=16, depth=5, heads=4, kv_heads=2, head_dim=8, ffn=24, context=64)


def read(values: Json, **changes: Any) -> Config:
    values = values | changes
    return families.by_model_type(values["model_type"]).config_from_hf(values)


def refused(values: Json, *words: str, **changes: Any) -> None:
    """Reading raises one ConfigError of one paragraph that has all the words."""
    with pytest.raises(ConfigError) as problem:
        read(values, **changes)
    message = str(problem.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert len(message) < 600


# ----------------------------------------------------------------------------------------------------- what a Config says


def test_the_pattern_is_cycled_over_the_layers() -> None:
    near, far = Attn(4), Attn(None)
    assert TINY.replace(pattern=(near, near, far)).layers == (near, near, far, near, near)


def test_the_shortest_cycle_gives_the_layers_back() -> None:
    near, far = Attn(4), Attn(None)
    for flags in ("nnnnnf", "nf", "nnnnnfnn", "nffn", "n", "fnnnnn", "n" * 40 + "f", ("n" * 5 + "f") * 7 + "nn"):
        layers = [near if flag == "n" else far for flag in flags]
        cycle = shortest_cycle(layers)
        assert [cycle[i % len(cycle)] for i in range(len(layers))] == layers
    assert shortest_cycle([near, near, far] * 4 + [near]) == (near, near, far)
    assert shortest_cycle([far] * 9) == (far,)


def test_a_windowed_layer_keeps_no_more_than_its_window() -> None:
    config = TINY.replace(pattern=(Attn(10), Attn(None)))
    assert config.kv_bytes(100, itemsize=4) == 2 * (3 * 10 + 2 * 100) * config.kv_width * 4
    assert config.kv_bytes(7, itemsize=4) == 2 * 5 * 7 * config.kv_width * 4


def test_scale() -> None:
    assert TINY.scale == 8**-0.5
    assert TINY.replace(query_scalar=4.0).scale == 0.5


def test_counts_of_a_tiny_network() -> None:
    attention = 16 * 32 * 2 + 16 * 16 * 2  # q and output, k and v
    block = attention + 3 * 16 * 24 + 2 * 16
    assert tensors.parameters(TINY) == 2 * 50 * 16 + 5 * block + 16
    assert tensors.parameters(TINY.replace(tied=True)) == 50 * 16 + 5 * block + 16
    matrices = 5 * (attention + 3 * 16 * 24) + 50 * 16
    assert tensors.flops_per_token(TINY, 20) == 2 * matrices + 4 * 5 * 20 * 32


def test_rope_scaling_rules() -> None:
    plain = Rope(10_000.0).frequencies(8)
    assert plain.dtype == np.float32
    np.testing.assert_allclose(plain, [1.0, 0.1, 0.01, 0.001], rtol=1e-6)
    np.testing.assert_allclose(Rope(scaling=Stretch(4.0)).frequencies(8), plain / 4, rtol=1e-6)
    np.testing.assert_allclose(
        Rope(scaling=Factors((1.0, 2.0, 4.0, 8.0))).frequencies(8), plain / [1, 2, 4, 8], rtol=1e-6
    )
    bands = Rope(scaling=Bands(8.0, 1.0, 4.0, 64)).frequencies(8)
    np.testing.assert_allclose(bands[[0, 2, 3]], plain[[0, 2, 3]] / [1, 8, 8], rtol=1e-6)
    assert plain[1] / 8 < bands[1] <= plain[1]
    assert Rope(scaling=Yarn(4.0, 64)).magnitude == pytest.approx(0.1 * math.log(4) + 1)
    assert Rope(scaling=Yarn(4.0, 64, attention=0.7)).magnitude == 0.7
    assert Rope(scaling=Stretch(4.0)).magnitude == 1.0


# ------------------------------------------------------------------------------------------------------------ refused keys


def test_an_unhandled_key_is_listed_with_its_value() -> None:
    refused(LLAMA, "attn_temperature=0.7", "no_rope_layers=[0, 1]", attn_temperature=0.7, no_rope_layers=[0, 1])


@pytest.mark.parametrize(
    "key", ["quantization_config", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "vision_config"]
)
def test_what_changes_the_network_is_never_ignored(key: str) -> None:
    refused(LLAMA, key, "does not handle", **{key: {"quant_method": "gptq", "bits": 4}})


def test_an_unhandled_key_inside_rope_scaling_is_listed() -> None:
    scaling = LLAMA["rope_scaling"] | {"long_factor": [1.0], "alpha": 3}
    refused(LLAMA, "alpha, long_factor", rope_scaling=scaling)
    refused(
        PUBLISHED["gemma-3-1b"][1], "local_attention", rope_parameters={"full_attention": {}, "local_attention": {}}
    )


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "su", "mrope", 3, ["linear"]])
def test_other_rope_types_are_refused(kind: Any) -> None:
    refused(LLAMA, "rope type", "default, linear, llama3, yarn", rope_scaling={"rope_type": kind, "factor": 2.0})
    refused(LLAMA, "rope type", rope_scaling={"type": kind, "factor": 2.0})


def test_rope_scaling_without_its_numbers_is_refused() -> None:
    refused(LLAMA, "'llama3' needs the key 'low_freq_factor'", rope_scaling={"rope_type": "llama3", "factor": 8.0})
    refused(LLAMA, "'linear' needs the key 'factor'", rope_scaling={"rope_type": "linear", "factor": None})
    refused(LLAMA, "low_freq_factor", "below", rope_scaling=LLAMA["rope_scaling"] | {"low_freq_factor": 4.0})


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("falcon-7b", {"alibi": True}, ["alibi is True", "only False"]),
        ("falcon-7b", {"parallel_attn": False}, ["parallel_attn is False"]),
        ("falcon-7b", {"apply_residual_connection_post_layernorm": True}, ["apply_residual"]),
        ("falcon-7b", {"num_ln_in_parallel_attn": 2}, ["num_ln_in_parallel_attn"]),
        ("falcon-7b", {"activation": "relu"}, ["activation is 'relu'", "'gelu'"]),
        ("llama-2-7b", {"hidden_act": "relu"}, ["hidden_act is 'relu'", "'silu'"]),
        ("llama-2-7b", {"rope_interleaved": True}, ["rope_interleaved"]),
        ("gemma-3-1b", {"use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
        ("gemma-3-1b", {"sliding_window": None}, ["sliding_window"]),
        ("gemma-2b", {"hidden_act": "silu"}, ["hidden_act"]),
        ("qwen2-7b", {"use_mrope": True}, ["use_mrope"]),
        ("qwen2-7b", {"attention_bias": True}, ["attention_bias"]),
        ("stablelm-3b-4e1t-first", {"rotary_scaling_factor": 2.0}, ["rotary_scaling_factor"]),
        ("llama-2-7b", {"layer_types": ["sliding_attention"] * 32}, ["layer_types", "never"]),
        ("mistral-7b-v0.1", {"layer_types": ["full_attention", "sliding_attention"] * 16}, ["layer_types", "never"]),
        ("gemma-2-2b", {"layer_types": ["full_attention"] * 25}, ["layer_types", "26 layers"]),
        ("gemma-2-2b", {"layer_types": ["chunked_attention"] * 26}, ["layer_types", "chunked_attention"]),
        ("gemma-2-2b", {"layer_types": "full_attention"}, ["layer_types"]),
        ("gemma-2-2b", {"layer_types": [["full_attention"]] * 26}, ["layer_types"]),
    ],
)  # fmt: skip
def test_values_outside_the_mathematics_are_refused(name: str, changes: Json, words: list[str]) -> None:
    refused(PUBLISHED[name][1], *words, **changes)


@pytest.mark.parametrize("name", ["gemma-2b", "gemma-2-2b", "gemma-3-1b", "olmo-7b", "olmo-2-7b"])
def test_biases_that_a_family_has_not_are_read_or_refused(name: str) -> None:
    config = read(PUBLISHED[name][1], attention_bias=True)  # transformers' classes have them, so they are read
    assert config.qkv_bias
    assert config.out_bias


# ----------------------------------------------------------------------------------------------------------- refused values

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
NUMBERS = ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta")


@pytest.mark.parametrize("key", SIZES)
def test_a_missing_size_is_named(key: str) -> None:
    values = {name: value for name, value in LLAMA.items() if name != key}
    refused(values, f"lacks the key '{key}'")
    refused(values, f"lacks the key '{key}'", **{key: None})


@pytest.mark.parametrize("key", [*SIZES, *NUMBERS])
@pytest.mark.parametrize("value", ["8", "", math.nan, math.inf, -8, 0, 10**400, [8], {"a": 8}, True])
def test_a_number_of_a_wrong_kind_is_refused(key: str, value: Any) -> None:
    refused(LLAMA, key, "should be", **{key: value})


@pytest.mark.parametrize("key", [*SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings"])
@pytest.mark.parametrize("value", [2**40, 8.5])
def test_a_size_that_no_network_has_is_refused(key: str, value: Any) -> None:
    refused(LLAMA, key, "whole number", **{key: value})


@pytest.mark.parametrize("key", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
@pytest.mark.parametrize("value", [1, "true", [True]])
def test_a_switch_is_true_or_false(key: str, value: Any) -> None:
    refused(LLAMA, key, "true or false", **{key: value})


def test_an_impossible_number_of_layers_is_refused_before_any_loop_over_them() -> None:
    for name, (_, values) in PUBLISHED.items():
        text = values.get("text_config", values)
        key = "n_layer" if "n_layer" in text else "num_hidden_layers"
        refused(text, "num_hidden_layers", "10000", **{key: 10**9})
        assert read(text, **{key: 7, "layer_types": None}).depth == 7, name


def test_many_layers_of_an_unlucky_pattern_are_read_at_once() -> None:
    types = ["sliding_attention"] * 9_999 + ["full_attention"]
    config = read(PUBLISHED["gemma-2-2b"][1], num_hidden_layers=10_000, layer_types=types)
    assert len(config.pattern) == 10_000


def test_heads_that_do_not_divide_are_refused() -> None:
    refused(LLAMA, "32 heads", "5 key/value heads", num_key_value_heads=5)
    refused(LLAMA, "4096 channels", "33 heads", num_attention_heads=33)
    refused(LLAMA, "channels", "even", head_dim=7)
    refused(PUBLISHED["pythia-70m"][1], "rotary channels", rotary_pct=0.3)
    refused(PUBLISHED["pythia-70m"][1], "rotary channels", rotary_pct=1.5)
    refused(PUBLISHED["pythia-70m"][1], "rotary channels", rotary_pct=0.001)


def test_absurd_heads_are_refused_before_any_table_of_their_rows() -> None:
    refused(PUBLISHED["pythia-70m"][1], "corrupt", hidden_size=2**30, num_attention_heads=2**20)
    refused(
        PUBLISHED["stablelm-2-12b"][1], "corrupt", hidden_size=2**20, num_attention_heads=2**20, num_key_value_heads=1
    )


@pytest.mark.parametrize("value", ["linear", 3, [8.0]])
def test_rope_scaling_should_be_an_object(value: Any) -> None:
    refused(LLAMA, "rope_scaling should be an object", rope_scaling=value)
    refused(LLAMA, "rope_parameters should be an object", rope_parameters=value)


@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "original_max_position_embeddings"])
@pytest.mark.parametrize("value", ["8", 0, -1.0, math.nan, [8.0], True])
def test_rope_scaling_takes_numbers_above_zero(key: str, value: Any) -> None:
    refused(LLAMA, key, rope_scaling=LLAMA["rope_scaling"] | {key: value})


def test_rope_bases_of_one_and_less_are_refused() -> None:
    refused(LLAMA, "rotary base", rope_theta=0.5)
    refused(LLAMA, "rotary base", rope_theta=1)


# ------------------------------------------------------------------------------------------------------------------- fuzzed

WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(0, 64),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(0, 9), max_size=3),
    st.lists(st.sampled_from(["full_attention", "sliding_attention"]), max_size=30),
    st.dictionaries(st.sampled_from(["factor", "rope_type", "rope_theta", "full_attention"]), st.floats(), max_size=3),
    st.sampled_from(["gelu", "silu", "yarn", "linear", [{}], {"full_attention": {"factor": 2}}]),
)
KEYS = sorted({key for _, values in PUBLISHED.values() for key in values.get("text_config", values)} - {"model_type"})
ROPE_KEYS = ("rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
             "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate", "rope_theta")  # fmt: skip
ROPE = st.dictionaries(st.sampled_from(ROPE_KEYS), WRONG | st.sampled_from(["llama3", "yarn", "linear"]), max_size=5)
CHANGES = st.dictionaries(st.sampled_from([*KEYS, "layer_types", "rope_parameters"]), WRONG, max_size=3)


def settle(config: Config) -> None:
    """What every user of a Config does with it first."""
    for layer in config.pattern[:3]:
        assert np.isfinite(layer.rope.frequencies(config.head_dim)).all()
        assert math.isfinite(layer.rope.magnitude)
    assert math.isfinite(config.scale)
    assert len(config.layers) == config.depth


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(PUBLISHED)), CHANGES, ROPE | st.none())
def test_a_damaged_config_json_is_an_error_or_a_network(name: str, changes: Json, rope: Json | None) -> None:
    values = PUBLISHED[name][1]
    values = values.get("text_config", values) | changes | ({} if rope is None else {"rope_scaling": rope})
    family = families.by_model_type(values["model_type"])
    try:
        config = family.config_from_hf(values)
    except GeodeError:
        return
    settle(config)
    written = json.loads(json.dumps(family.config_to_hf(config)))
    assert family.config_from_hf(written) == config


GGUF_WRONG = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(0, 64),
    st.floats(width=32),
    st.text(max_size=8),
    st.sampled_from(["yarn", "linear", "longrope"]),
    st.lists(st.integers(0, 9), max_size=3).map(np.array),
)
GGUF_NAMES = ("gemma-2-2b", "gemma-3-1b", "llama-3.1-8b", "falcon-7b", "olmo-7b-0424", "stablelm-2-12b", "pythia-70m")
GGUF_KEYS = ("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.freq_base_swa",
             "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "expert_count", "attention.sliding_window")  # fmt: skip


def gguf_of(name: str) -> tuple[families.Family, Json, Json]:
    from geode.dialects import gguf as dialect

    values = PUBLISHED[name][1]
    family = families.by_model_type(values["model_type"])
    config = family.config_from_hf(values)
    shapes = tensors.shapes(config)
    theirs = {
        n: shape
        for rule in dialect.rules(config.replace(depth=1), family)
        for n, shape in rule.their_shapes(shapes).items()
    }
    return family, family.config_to_gguf(config), theirs


GGUF = {name: gguf_of(name) for name in GGUF_NAMES}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_gguf_metadata_is_an_error_or_a_network(data: st.DataObject) -> None:
    family, metadata, shapes = GGUF[data.draw(st.sampled_from(GGUF_NAMES))]
    names = [*metadata, *(f"{family.gguf_arch}.{key}" for key in GGUF_KEYS)]
    changed = metadata | data.draw(st.dictionaries(st.sampled_from(names), GGUF_WRONG, max_size=3))
    lost = data.draw(st.sampled_from([*names, ""]))
    kept = {name: value for name, value in changed.items() if name != lost}
    freqs = data.draw(
        st.none() | st.lists(st.floats(width=32), max_size=3).map(np.array) | st.just(kept.get("rope_freqs"))
    )
    kept.pop("rope_freqs", None)
    with contextlib.suppress(GeodeError):
        settle(family.config_from_gguf(kept, shapes, freqs))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llama.block_count": 10**9}, r"block_count.*10000"),
        ({"llama.attention.head_count": np.array([32, 32])}, "head_count"),
        ({"llama.expert_count": 8}, "expert_count is 8"),
        ({"llama.expert_count": np.array([], np.int32)}, "expert_count is"),
        ({"llama.rope.scaling.type": np.array([1, 2])}, r"rope\.scaling\.type"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope.*none, linear, yarn"),
        ({"llama.rope.dimension_count": 0}, "dimension_count"),
        ({"llama.rope.freq_base": "big"}, "freq_base"),
        ({"llama.attention.sliding_window": -1}, "sliding_window"),
        ({"llama.attention.causal": False}, "attention.causal=False"),
        ({"llama.attention.value_length": 64, "llama.attention.key_length": 128}, None),
    ],
)
def test_gguf_metadata_outside_the_mathematics(changes: Json, words: str | None) -> None:
    family, metadata, shapes = GGUF["llama-3.1-8b"]
    metadata = {name: value for name, value in metadata.items() if name != "rope_freqs"} | changes
    with pytest.raises(ConfigError) as problem:
        family.config_from_gguf(metadata, shapes)
    assert words is None or re.search(words, str(problem.value))


@pytest.mark.parametrize("freqs", [np.ones(3), np.ones((64, 1)), np.zeros(64), np.full(64, np.nan), np.full(64, -1.0)])
def test_rope_factors_should_be_one_for_each_pair_and_above_zero(freqs: np.ndarray) -> None:
    family, metadata, shapes = GGUF["llama-3.1-8b"]
    metadata = {name: value for name, value in metadata.items() if name != "rope_freqs"}
    with pytest.raises(ConfigError, match="rope_freqs"):
        family.config_from_gguf(metadata, shapes, freqs)


def test_a_gguf_without_embeddings_has_no_vocabulary() -> None:
    family, metadata, _ = GGUF["pythia-70m"]
    with pytest.raises(ConfigError, match=r"token_embd\.weight"):
        family.config_from_gguf(metadata, {})
