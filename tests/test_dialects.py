"""Tensor tables: every variant of transformers' own saving becomes canonical and goes back bit for bit."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from variants import VARIANTS, Variant, build, text_ids

import geode.checkpoint
from geode import families, tensors
from geode.config import Config
from geode.dialects import gguf as gguf_dialect
from geode.dialects import grouped_rows, halved_rows, matches, split_name
from geode.dialects import hf as hf_dialect
from geode.dialects.ops import Rows, Split, Stack
from geode.errors import ConfigError, TensorError
from geode.families import Family
from geode.io import gguf, safetensors
from geode.quant import QTensor, to_float32
from geode.tensors import Entry, Tensors, from_arrays

EVERY = [pytest.param(variant, id=variant.slug) for variant in VARIANTS]
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: a variant's directory as transformers saves it, and its logits (T, V)."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("saved")

    @cache
    def save(name: str, dtype: str) -> tuple[Path, np.ndarray]:
        variant = named(name)
        path = folder / dtype / variant.slug
        model = build(variant)
        with torch.no_grad():
            logits = model(torch.tensor([text_ids(variant)])).logits[0].numpy()
        model.to(getattr(torch, dtype)).save_pretrained(path)
        return path, logits

    return save


def named(name: str) -> Variant:
    return next(variant for variant in VARIANTS if variant.name == name)


def bits(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    """Everything of an array that must not change."""
    kind = array.type if isinstance(array, QTensor) else array.dtype.name
    data = array.data if isinstance(array, QTensor) else array
    return kind, tuple(array.shape), np.ascontiguousarray(data).tobytes()


def same(found: Tensors, expected: Tensors) -> None:
    """Names and bits, and the entries tell what loading gives."""
    assert set(found) == set(expected)
    for name in expected:
        assert bits(found[name]) == bits(expected[name]), name
    honest(found)


def honest(found: Tensors) -> None:
    """What an entry announces is what comes."""
    for name, entry in found.entries.items():
        came = tensors.entry_of(found[name])
        assert (came.shape, came.type, came.nbytes) == (entry.shape, entry.type, entry.nbytes), name


def without_copies(stored: Tensors, config: Config) -> Tensors:
    head = {"lm_head.weight", "embed_out.weight"} if config.tied else set()
    return Tensors({name: entry for name, entry in stored.entries.items() if name not in head})


# -------------------------------------------------------------------------------------------- there and back: Hugging Face


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", EVERY)
def test_transformers_files_come_back_bit_for_bit(variant: Variant, dtype: str, saved: Any) -> None:
    opened = geode.checkpoint.open(saved(variant.name, dtype)[0])
    canonical = opened.tensors
    assert {name: array.shape for name, array in canonical.items()} == tensors.shapes(opened.config)
    honest(canonical)
    back = hf_dialect.write(canonical, opened.config, opened.family)
    as_we_name = {hf_dialect._renamed(name, opened.family): entry for name, entry in opened.stored.entries.items()}
    same(back, without_copies(Tensors(as_we_name), opened.config))
    assert {array.dtype for array in back.values()} == {DTYPES[dtype]}


@pytest.mark.parametrize("variant", EVERY)
def test_transformers_computes_the_same_from_what_we_write(variant: Variant, saved: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path, logits = saved(variant.name, "float32")
    opened = geode.checkpoint.open(path)
    safetensors.write(tmp_path / "model.safetensors", hf_dialect.write(opened.tensors, opened.config, opened.family))
    (tmp_path / "config.json").write_text(json.dumps(opened.family.config_to_hf(opened.config)))
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        again = model.eval()(torch.tensor([text_ids(variant)])).logits[0].numpy()
    assert again.tobytes() == logits.tobytes()


# ----------------------------------------------------------------------------------------------------- there and back: GGUF


def said_by_gguf(config: Config) -> Config:
    """The nearest network that GGUF has keys for; the tensors are the same."""
    if config.query_scalar is not None:
        config = config.replace(query_scalar=float(config.head_dim))
    if config.qkv_bias and config.layers[0].window != config.layers[-1].window:
        config = config.replace(pattern=(dataclasses.replace(config.layers[0], window=None),))
    return config


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", EVERY)
def test_canonical_tensors_go_through_a_gguf_file(variant: Variant, dtype: str, saved: Any, tmp_path: Path) -> None:
    opened = geode.checkpoint.open(saved(variant.name, dtype)[0])
    config = said_by_gguf(opened.config)
    path = write_gguf(tmp_path / "model.gguf", opened.tensors, config, opened.family)
    again = geode.checkpoint.open(path)
    assert again.format == "gguf"
    assert again.family.gguf_arch == opened.family.gguf_arch
    assert set(again.tensors) == set(opened.tensors)
    for name, array in opened.tensors.items():
        assert bits(again.tensors[name]) == bits(stored_in_gguf(array)), name
    for ours, theirs in zip(config.layers, again.config.layers, strict=True):
        assert theirs.window == ours.window
        frequencies = theirs.rope.frequencies(config.head_dim)
        np.testing.assert_allclose(frequencies, ours.rope.frequencies(config.head_dim), rtol=3e-7)
    assert again.config.replace(pattern=()) == config.replace(pattern=())
    honest(again.tensors)


def write_gguf(path: Path, canonical: Tensors, config: Config, family: Family) -> Path:
    metadata = {"general.architecture": family.gguf_arch, **family.config_to_gguf(config)}
    written = dict(gguf_dialect.write(canonical, config, family).entries)
    if (freqs := metadata.pop("rope_freqs", None)) is not None:
        written["rope_freqs.weight"] = tensors.entry_of(freqs)
    gguf.write(path, metadata, Tensors(written))
    return path


def stored_in_gguf(array: Any) -> Any:
    """Gemma's norms, in float64 after one was added, are float32 in GGUF."""
    return array.astype(np.float32) if array.dtype == np.float64 else array


def test_gemma_norms_are_as_llama_cpp_stores_them(saved: Any, tmp_path: Path) -> None:
    opened = geode.checkpoint.open(saved("Gemma 3 270M, 1B", "float32")[0])
    written = gguf_dialect.write(opened.tensors, opened.config, opened.family)
    for ours, theirs in (
        ("output_norm", "model.norm"),
        ("blk.2.attn_q_norm", "model.layers.2.self_attn.q_norm"),
        ("blk.0.attn_norm", "model.layers.0.input_layernorm"),
        ("blk.0.post_attention_norm", "model.layers.0.post_attention_layernorm"),
        ("blk.0.ffn_norm", "model.layers.0.pre_feedforward_layernorm"),
        ("blk.0.post_ffw_norm", "model.layers.0.post_feedforward_layernorm"),
    ):
        expected = opened.stored[f"{theirs}.weight"].astype(np.float64) + 1.0
        assert bits(written[f"{ours}.weight"]) == bits(expected.astype(np.float32))


def test_llama_rows_are_permuted_as_llama_cpp_does(saved: Any) -> None:
    """Against the formula of llama.cpp's converter: heads of two halves become heads of neighbouring pairs."""
    opened = geode.checkpoint.open(saved("Llama 3", "float32")[0])
    written = gguf_dialect.write(opened.tensors, opened.config, opened.family)
    for part, heads in (("q", opened.config.heads), ("k", opened.config.kv_heads)):
        theirs = opened.stored[f"model.layers.1.self_attn.{part}_proj.weight"]
        rows, width = theirs.shape
        expected = theirs.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(theirs.shape)
        assert bits(written[f"blk.1.attn_{part}.weight"]) == bits(expected)
        assert bits(written[f"blk.1.attn_{part}.weight"]) != bits(theirs)


def test_fused_rows_are_cut_as_llama_cpp_does(saved: Any) -> None:
    """Falcon 40B's are grouped by key/value head, NeoX's by head; GGUF has all queries, then keys, then values."""
    for name in ("Falcon 40B", "Falcon 7B", "GPT-NeoX, Pythia, oasst-sft"):
        opened = geode.checkpoint.open(saved(name, "float32")[0])
        c, written = opened.config, gguf_dialect.write(opened.tensors, opened.config, opened.family)
        (theirs,) = [n for n in opened.stored if n.endswith("query_key_value.weight") and ".0." in n]
        groups = opened.stored[theirs].reshape(c.kv_heads, c.heads // c.kv_heads + 2, c.head_dim, c.width)
        expected = [groups[:, :-2], groups[:, -2], groups[:, -1]]
        fused = np.concatenate([part.reshape(-1, c.width) for part in expected])
        assert bits(written["blk.0.attn_qkv.weight"]) == bits(fused)


# -------------------------------------------------------------------------------------------------------- quantised weights


def quantised(rows: int, width: int = 64, kind: str = "Q8_0") -> QTensor:
    library = pytest.importorskip("gguf")
    noise = np.random.default_rng(rows).standard_normal((rows, width)).astype(np.float32)
    packed = library.quants.quantize(noise, library.GGMLQuantizationType[kind])
    return QTensor(kind, (rows, width), packed.reshape(rows, -1))


def test_rows_of_packed_tensors_move_in_their_bits() -> None:
    packed = quantised(24)
    moved = Rows(halved_rows(3, 8))
    (ours,) = moved.forward([packed])
    assert isinstance(ours, QTensor)
    assert bits(moved.inverse([ours])[0]) == bits(packed)
    np.testing.assert_array_equal(to_float32(ours), to_float32(packed)[list(halved_rows(3, 8))])


def test_packed_tensors_are_cut_and_joined_in_their_bits() -> None:
    packed = quantised(24)
    cut = Split((12, 4, 8))
    parts = cut.forward([packed])
    assert [part.shape for part in parts] == [(12, 64), (4, 64), (8, 64)]
    assert all(isinstance(part, QTensor) for part in parts)
    assert bits(cut.inverse(parts)[0]) == bits(packed)


def test_parts_of_several_types_are_joined_as_float32() -> None:
    parts = [quantised(4), quantised(2, kind="Q4_0"), np.ones((2, 64), np.float32)]
    (joined,) = Split((4, 2, 2)).inverse(parts)
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, np.concatenate([to_float32(part) for part in parts]))


def test_a_packed_falcon_goes_from_gguf_to_canonical_and_back(tmp_path: Path) -> None:
    family = families.by_name("falcon")
    config = Config(32, 64, 1, 4, 2, 16, 64, 32, block="parallel", gated=False, activation="gelu", tied=True,
                    norm=family.constants["norm"])  # fmt: skip
    stored = {}
    shapes = tensors.shapes(config)
    for rule in gguf_dialect.rules(config, family):
        for name, shape in rule.their_shapes(shapes).items():
            stored[name] = quantised(*shape) if len(shape) == 2 else np.ones(shape, np.float32)
    metadata = {"general.architecture": "falcon", **family.config_to_gguf(config)}
    gguf.write(tmp_path / "packed.gguf", metadata, from_arrays(stored))
    opened = geode.checkpoint.open(tmp_path / "packed.gguf")
    assert opened.config == config
    assert opened.tensors.entries["blk.0.attn_k.weight"].type == "Q8_0"
    assert opened.tensors.entries["blk.0.attn_k.weight"].nbytes == quantised(32).nbytes
    same(gguf_dialect.write(opened.tensors, config, family), from_arrays(stored))


def test_a_fused_tensor_is_read_once() -> None:
    family = families.by_name("gpt_neox")
    config = Config(32, 16, 1, 2, 2, 8, 16, 32, block="parallel", gated=False, norm=family.constants["norm"])
    reads: list[str] = []

    def entry(name: str, shape: tuple[int, ...]) -> Entry:
        array = np.zeros(shape, np.float32)
        return Entry(shape, "F32", array.nbytes, lambda: reads.append(name) or array)  # type: ignore[func-returns-value]

    shapes = tensors.shapes(config)
    theirs = {n: shape for rule in hf_dialect.rules(config, family) for n, shape in rule.their_shapes(shapes).items()}
    opened = hf_dialect.read(Tensors({name: entry(name, shape) for name, shape in theirs.items()}), config, family)
    assert reads == []
    for part in "qkv":
        opened[f"blk.0.attn_{part}.weight"]
    assert reads == ["gpt_neox.layers.0.attention.query_key_value.weight"]


# ---------------------------------------------------------------------------------------------------------- odd file contents


def stored_of(saved: Any, name: str) -> tuple[dict[str, Any], Config, Family]:
    opened = geode.checkpoint.open(saved(name, "float32")[0])
    return dict(opened.stored), opened.config, opened.family


def canonical_of(arrays: dict[str, Any], config: Config, family: Family) -> Tensors:
    return hf_dialect.read(from_arrays(arrays), config, family)


def complaint(arrays: dict[str, Any], config: Config, family: Family) -> str:
    with pytest.raises(TensorError) as problem:
        canonical_of(arrays, config, family)
    assert "\n" not in str(problem.value)
    return str(problem.value)


@pytest.mark.parametrize(
    ("text", "vision"),
    [
        ("language_model.model.", ("vision_tower.vision_model.post_layernorm.weight", "multi_modal_projector.w")),
        ("model.language_model.", ("model.vision_tower.vision_model.x.weight", "model.multi_modal_projector.w")),
    ],
)
def test_the_text_half_of_a_multimodal_gemma(text: str, vision: tuple[str, ...], saved: Any) -> None:
    arrays, config, family = stored_of(saved, "Gemma 3 4B, 12B")
    renamed = {name.replace("model.", text, 1): array for name, array in arrays.items() if name != "lm_head.weight"}
    renamed |= dict.fromkeys(vision, np.zeros(3, np.float32))
    same(canonical_of(renamed, config, family), canonical_of(arrays, config, family))


@pytest.mark.parametrize(
    ("name", "copy"),
    [
        ("Gemma 3 4B, 12B", "lm_head.weight"),
        ("Gemma 3 4B, 12B", "language_model.lm_head.weight"),
        ("Llama 3.1, 3.2", "lm_head.weight"),
        ("Falcon 7B", "lm_head.weight"),
    ],
)
def test_a_stored_copy_of_tied_embeddings_is_ignored(name: str, copy: str, saved: Any) -> None:
    arrays, config, family = stored_of(saved, name)
    arrays.pop("lm_head.weight", None)
    same(
        canonical_of(arrays | {copy: np.zeros((96, 48), np.float32)}, config, family),
        canonical_of(arrays, config, family),
    )


def test_a_head_that_is_not_tied_is_needed(saved: Any) -> None:
    arrays, config, family = stored_of(saved, "Llama 3")
    del arrays["lm_head.weight"]
    assert "1 missing (lm_head.weight)" in complaint(arrays, config, family)


def test_the_neox_head_has_two_names(saved: Any) -> None:
    arrays, config, family = stored_of(saved, "Pythia, sequential")
    (head,) = [name for name in arrays if name in ("embed_out.weight", "lm_head.weight")]
    array = arrays.pop(head)
    old = canonical_of(arrays | {"embed_out.weight": array}, config, family)
    same(old, canonical_of(arrays | {"lm_head.weight": array}, config, family))
    assert "embed_out.weight" in hf_dialect.write(old, config, family)


@pytest.mark.parametrize(
    ("name", "buffers"),
    [
        ("Llama 2", ("model.layers.0.self_attn.rotary_emb.inv_freq",)),
        ("StableLM 3B-4E1T", ("model.layers.2.self_attn.rotary_emb.inv_freq",)),
        ("Falcon 7B", ("transformer.h.0.self_attention.maybe_rotary.inv_freq",)),
        ("GPT-NeoX, Pythia, oasst-sft", ("gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.masked_bias",
                                         "gpt_neox.layers.0.attention.rotary_emb.inv_freq")),
    ],
)  # fmt: skip
def test_buffers_of_old_files_are_ignored(name: str, buffers: tuple[str, ...], saved: Any) -> None:
    arrays, config, family = stored_of(saved, name)
    old = arrays | dict.fromkeys(buffers, np.zeros(2, np.float32))
    same(canonical_of(old, config, family), canonical_of(arrays, config, family))


def test_norm_biases_that_stablelm_leaves_out_are_zero(saved: Any, tmp_path: Path) -> None:
    arrays, config, family = stored_of(saved, "StableLM 2 1.6B")
    fewer = {name: array for name, array in arrays.items() if not name.endswith("norm.bias")}
    assert len(arrays) - len(fewer) == 2 * config.depth + 1
    canonical = canonical_of(fewer, config, family)
    honest(canonical)
    assert not canonical["blk.1.ffn_norm.bias"].any()
    assert canonical["blk.1.ffn_norm.bias"].shape == (config.width,)
    del fewer["model.layers.0.self_attn.q_proj.bias"]
    assert "q_proj.bias" in complaint(fewer, config, family)


def test_all_problems_are_in_one_error(saved: Any) -> None:
    arrays, config, family = stored_of(saved, "Llama 3")
    del arrays["model.norm.weight"]
    arrays["model.layers.0.self_attn.q_proj.lora_A.weight"] = np.zeros(3, np.float32)
    arrays["model.embed_tokens.weight"] = np.zeros((97, 48), np.float32)
    message = complaint(arrays, config, family)
    assert "1 missing (model.norm.weight)" in message
    assert "1 that nobody asked for (model.layers.0.self_attn.q_proj.lora_A.weight)" in message
    assert "model.embed_tokens.weight: expected (96, 48), the file has (97, 48)" in message


def test_a_long_list_of_problems_is_cut() -> None:
    family = families.by_name("llama")
    config = Config(8, 8, 40, 2, 2, 4, 8, 8)
    message = complaint({}, config, family)
    assert "363 missing" in message
    assert len(message) < 1000


@pytest.mark.parametrize("name", ["Falcon 40B", "GPT-NeoX, Pythia, oasst-sft"])
@pytest.mark.parametrize("shape", [(48, 96), (1, 96 * 48), (97, 48), (96, 48, 1)])
def test_fused_tensors_of_another_shape_are_refused_from_the_header(
    name: str, shape: tuple[int, ...], saved: Any
) -> None:
    arrays, config, family = stored_of(saved, name)
    (fused,) = [n for n in arrays if n.endswith("query_key_value.weight") and ".0." in n]
    want = arrays[fused].shape
    message = complaint(arrays | {fused: np.zeros(shape, np.float32)}, config, family)
    assert f"{fused}: expected {want}, the file has {shape}" in message


def test_per_head_norms_of_another_number_or_shape_are_refused(saved: Any) -> None:
    arrays, config, family = stored_of(saved, "StableLM 2 12B")
    norm = "model.layers.1.self_attn.q_layernorm.norms.{}.weight"
    assert norm.format(3) in arrays
    fewer = {name: array for name, array in arrays.items() if name != norm.format(3)}
    assert f"1 missing ({norm.format(3)})" in complaint(fewer, config, family)
    more = arrays | {norm.format(4): arrays[norm.format(3)]}
    assert f"1 that nobody asked for ({norm.format(4)})" in complaint(more, config, family)
    wider = arrays | {norm.format(3): np.zeros(17, np.float32)}
    assert f"{norm.format(3)}: expected (16,), the file has (17,)" in complaint(wider, config, family)


def test_gguf_tensors_of_another_shape_are_refused(saved: Any) -> None:
    opened = geode.checkpoint.open(saved("GPT-NeoX, Pythia, oasst-sft", "float32")[0])
    arrays = dict(gguf_dialect.write(opened.tensors, opened.config, opened.family))
    arrays["blk.0.attn_qkv.weight"] = arrays["blk.0.attn_qkv.weight"].T
    with pytest.raises(TensorError, match=r"blk\.0\.attn_qkv\.weight: expected \(192, 64\), the file has \(64, 192\)"):
        gguf_dialect.read(from_arrays(arrays), opened.config, opened.family)


def test_split_refuses_another_height() -> None:
    with pytest.raises(TensorError, match=r"5 entries along axis 0; 2 \+ 2 were expected"):
        Split((2, 2)).forward([np.zeros((5, 3))])


# ------------------------------------------------------------------------------------------------------------------ the parts


def test_rows_and_stack_undo_themselves() -> None:
    arrays = [np.arange(12.0).reshape(6, 2)]
    order = Rows((5, 3, 1, 0, 2, 4))
    np.testing.assert_array_equal(order.forward(arrays)[0][:, 0], [10, 6, 2, 0, 4, 8])
    np.testing.assert_array_equal(order.inverse(order.forward(arrays))[0], arrays[0])
    rows = [np.arange(3.0), np.ones(3)]
    np.testing.assert_array_equal(Stack(2).inverse(Stack(2).forward(rows)), rows)


def test_row_orders_are_permutations() -> None:
    assert halved_rows(2, 4) == (0, 2, 1, 3, 4, 6, 5, 7)
    config = Config(8, 8, 1, 4, 2, 2, 8, 8)  # two groups of q q k v, two channels each
    assert grouped_rows(config) == (0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)


def test_names() -> None:
    assert split_name("blk.12.attn_q.weight") == ("12", "blk.{}.attn_q", "weight")
    assert split_name("token_embd.weight") == ("", "token_embd", "weight")
    assert matches("a.rotary_emb.inv_freq", "*.rotary_emb.inv_freq")
    assert not matches("gpt_neox.layers.0.attention.dense.bias", "*.attention.bias")


def test_every_variant_can_be_written_as_gguf_or_says_why(saved: Any) -> None:
    refused = []
    for variant in VARIANTS:
        opened = geode.checkpoint.open(saved(variant.name, "float32")[0])
        try:
            opened.family.config_to_gguf(opened.config)
        except ConfigError:
            refused.append(variant.name)
    assert refused == ["Gemma 2 27B", "Gemma 3 4B, 12B", "Gemma 3 27B", "Gemma 3, ring turned over",
                       "Qwen 2, windows and YaRN"]  # fmt: skip
