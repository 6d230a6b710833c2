"""Gemma's Flax layout: there and back, read by Orbax and by the `gemma` package, every spelling and published size."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orbax_worker
import pytest
import tiny
from conftest import worker
from published import PUBLISHED
from variants import GEMMA3_ROPE, GQA, SIX, VARIANTS, WIDE, Variant, build, text_ids

from geode import checkpoint, families, manifest
from geode.config import Config
from geode.dialects import flax as dialect
from geode.dialects import hf as hf_dialect
from geode.errors import ConfigError, GeodeError, TensorError
from geode.formats import Target, claiming, flax
from geode.io import orbax
from geode.tensors import Entry, Tensors, from_arrays, shapes

pytest.importorskip("tensorstore")
LONG = Variant(
    "Gemma 3 4B", "Gemma3TextConfig", GQA | WIDE | SIX | {"rope_parameters": GEMMA3_ROPE, "query_pre_attn_scalar": 32}
)
GEMMAS = [*(one for one in VARIANTS if one.config_class.startswith("Gemma")), LONG]
EVERY = [pytest.param(one, id=one.slug) for one in GEMMAS]
DTYPES = {"float32": "F32", "bfloat16": "BF16"}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant, str], tuple[Path, np.ndarray]]:
    """A variant's directory as transformers saves it, and its logits (T, V)."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("gemmas")

    @cache
    def save(slug: str, dtype: str) -> tuple[Path, np.ndarray]:
        variant = next(one for one in GEMMAS if one.slug == slug)
        model = build(variant)
        with torch.no_grad():
            logits = model(torch.tensor([text_ids(variant)])).logits[0].numpy()
        model.to(getattr(torch, dtype)).save_pretrained(root / dtype / slug)
        return root / dtype / slug, logits

    return lambda variant, dtype: save(variant.slug, dtype)


def write(path: Path, folder: Path, target: Target | None = None) -> Path:
    """As `geode.convert` does it."""
    opened = checkpoint.open(path)
    folder.mkdir(parents=True, exist_ok=True)
    assert flax.refuses(opened, target or Target()) is None
    flax.write(opened, folder, "", target or Target())
    manifest.write(folder, {"config": opened.family.config_to_hf(opened.config)})
    return folder


def same(found: Any, expected: Any) -> None:
    assert set(found) == set(expected)
    for name in expected:
        assert orbax_worker.digest(found[name]) == orbax_worker.digest(expected[name]), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", EVERY)
def test_there_and_back_bit_for_bit(variant: Variant, dtype: str, saved: Any, tmp_path: Path) -> None:
    path, _ = saved(variant, dtype)
    opened = checkpoint.open(path)
    again = checkpoint.open(write(path, tmp_path))
    assert again.format == "flax"
    assert (again.config, again.family) == (opened.config, opened.family)
    assert {entry.type for entry in again.stored.entries.values()} == {DTYPES[dtype]}
    same(again.tensors, opened.tensors)
    back = hf_dialect.write(again.tensors, again.config, again.family)
    same(back, {name: opened.stored[name] for name in back})
    assert again.left_out() == []


def test_types_that_are_asked_for(saved: Any, tmp_path: Path) -> None:
    path, _ = saved(GEMMAS[0], "float32")
    for kind in ("BF16", "F16"):
        stored = checkpoint.open(write(path, tmp_path / kind, Target(dtype=kind))).stored
        assert {entry.type for entry in stored.entries.values()} == {kind}


# The owners' code


def test_orbax_restores_it(saved: Any, tmp_path: Path) -> None:
    pytest.importorskip("orbax.checkpoint")
    path, _ = saved(GEMMAS[0], "bfloat16")
    folder = write(path, tmp_path)
    restored = worker("orbax_worker.py", "restore", str(folder))[str(folder)]
    opened = checkpoint.open(folder)
    assert restored == {name: orbax_worker.digest(array) for name, array in opened.stored.items()}
    assert "transformer/layer_2/attn/kv_einsum/w" in restored


def gemma_config(c: Config) -> dict[str, Any]:
    """The fields of gm.nn's TransformerConfig."""
    far = next(layer.rope for layer in c.layers if layer.window is None)
    sandwich = c.block == "sandwich"
    by_heads = c.query_scalar not in (None, c.head_dim)
    return {
        "num_embed": c.vocab, "embed_dim": c.width, "hidden_dim": c.ffn, "num_heads": c.heads, "head_dim": c.head_dim,
        "num_kv_heads": c.kv_heads, "final_logit_softcap": c.final_softcap, "attn_logits_soft_cap": c.attn_softcap,
        "use_post_attn_norm": sandwich, "use_post_ffw_norm": sandwich, "use_qk_norm": c.qk_norm != "none",
        "sliding_window_size": next((layer.window for layer in c.layers if layer.window), None),
        "attention_types": ["LOCAL_SLIDING" if layer.window else "GLOBAL" for layer in c.layers],
        "transpose_gating_einsum": dialect.transposed_by_size(c),
        "local_base_frequency": int(c.layers[0].rope.theta), "global_base_frequency": int(far.theta),
        "global_scale_factor": getattr(far.scaling, "factor", 1.0),
        "query_pre_attn_norm": f"BY_ONE_OVER_SQRT_{'EMBED_DIM_DIV_NUM_HEADS' if by_heads else 'HEAD_DIM'}",
    }  # fmt: skip


def by_gemmas_rule(c: Config) -> bool:
    """Whether gm.nn has a name for the scale of this network's scores."""
    return c.query_scalar in (None, c.head_dim, c.width // c.heads)


@pytest.mark.skipif(importlib.util.find_spec("gemma") is None, reason="needs Google's `gemma` package")
@pytest.mark.parametrize("variant", [one for one in EVERY if "ring" not in one.id])
def test_gemmas_own_network_gives_these_logits(variant: Variant, saved: Any, tmp_path: Path) -> None:
    path, logits = saved(variant, "float32")
    config = checkpoint.open(path).config
    if not by_gemmas_rule(config):
        pytest.skip("gm.nn has no such scale of scores")
    write(path, tmp_path / "checkpoint")
    case = {"config": gemma_config(config), "ids": text_ids(variant)}
    (tmp_path / "case.json").write_text(json.dumps(case))
    found = np.array(worker("orbax_worker.py", "gemma", str(tmp_path))["logits"])
    np.testing.assert_allclose(found, logits, atol=1e-4)


# The layout


def test_the_layout_is_what_gm_nn_multiplies_with(saved: Any, tmp_path: Path) -> None:
    """The einsums of gemma/gm/nn/_modules.py beside Hugging Face's matrices."""
    path, _ = saved(LONG, "float32")
    hf, c = checkpoint.open(path), checkpoint.open(path).config
    theirs = checkpoint.open(write(path, tmp_path)).stored
    x = np.random.default_rng(0).standard_normal((3, c.width)).astype(np.float32)

    def ours(name: str) -> np.ndarray:
        return np.asarray(hf.stored[f"model.layers.1.{name}.weight"])

    def layer(name: str) -> np.ndarray:
        return np.asarray(theirs[f"transformer/layer_1/{name}"])

    query = np.einsum("TD,NDH->TNH", x, layer("attn/q_einsum/w")).reshape(3, -1)
    np.testing.assert_allclose(query, x @ ours("self_attn.q_proj").T, rtol=1e-4, atol=1e-5)
    keys, values = np.einsum("TD,CKDH->CTKH", x, layer("attn/kv_einsum/w")).reshape(2, 3, -1)
    np.testing.assert_allclose(keys, x @ ours("self_attn.k_proj").T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values, x @ ours("self_attn.v_proj").T, rtol=1e-4, atol=1e-5)
    out = np.einsum("TNH,NHD->TD", query.reshape(3, c.heads, -1), layer("attn/attn_vec_einsum/w"))
    np.testing.assert_allclose(out, query @ ours("self_attn.o_proj").T, rtol=1e-4, atol=1e-4)
    gate, up = np.einsum("TF,NHF->NTH", x, layer("mlp/gating_einsum/w"))
    np.testing.assert_allclose(gate, x @ ours("mlp.gate_proj").T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(up, x @ ours("mlp.up_proj").T, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer("mlp/linear/w"), ours("mlp.down_proj").T)
    for name, norm in {
        "pre_attention_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
        "pre_ffw_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
        "attn/_query_norm": "self_attn.q_norm", "attn/_key_norm": "self_attn.k_norm",
    }.items():  # fmt: skip
        np.testing.assert_array_equal(layer(f"{name}/scale"), ours(norm))


def test_keys_and_queries_are_one_array_where_there_are_as_many(saved: Any, tmp_path: Path) -> None:
    stored = checkpoint.open(write(saved(GEMMAS[1], "float32")[0], tmp_path)).stored
    assert stored["transformer/layer_0/attn/qkv_einsum/w"].shape == (3, 4, 48, 32)
    assert "transformer/layer_0/attn/q_einsum/w" not in stored


def test_the_vocabulary_is_padded_as_published() -> None:
    family = families.by_name("gemma")
    config = Config(256_000, 4, 1, 2, 1, 2, 4, 64, norm=family.constants["norm"], tied=True, scale_embedding=True)
    canonical = drawn(config)
    stored = dialect.write(canonical, config, family)
    embedding = stored[dialect.PREFIX + dialect.EMBEDDING]
    assert embedding.shape == (256_128, 4)
    assert not np.asarray(embedding[256_000:]).any()
    same(dialect.read(dialect.flat(stored, orbax.unstacked), config, family), canonical)


@pytest.mark.parametrize("transposed", [False, True])
def test_gates_are_read_whichever_way_they_lie(transposed: bool) -> None:
    config, canonical = small()
    family = families.by_name("gemma2")
    stored = {
        name.removeprefix(dialect.PREFIX): np.asarray(a) for name, a in dialect.write(canonical, config, family).items()
    }
    name = "layer_0/mlp/gating_einsum/w"
    assert stored[name].shape == (2, 48, 80)
    if transposed:
        stored |= {n: a.transpose(0, 2, 1) for n, a in stored.items() if n.endswith("gating_einsum/w")}
    same(dialect.read(from_arrays(stored), config, family), canonical)


def test_which_published_models_have_transposed_gates() -> None:
    found = {slug: dialect.transposed_by_size(network(slug)[1]) for slug in PUBLISHED if slug.startswith("gemma")}
    assert {slug for slug, transposed in found.items() if not transposed} == {
        "gemma-2b",
        "gemma-7b",
        "gemma-7b-first",
        "gemma-2-2b",
    }


def small() -> tuple[Config, Tensors]:
    family = families.by_name("gemma2")
    config = Config(
        96, 48, 7, 4, 2, 8, 80, 64, norm=family.constants["norm"], tied=True, block="sandwich", qk_norm="none"
    )
    return config, drawn(config)


def drawn(config: Config) -> Tensors:
    """Weights as a float32 file of Hugging Face gives them: norms are one more than what it has."""
    noise = np.random.default_rng(0)
    arrays = {name: noise.standard_normal(shape).astype(np.float32) for name, shape in shapes(config).items()}
    return from_arrays({name: a.astype(np.float64) + 1 if "norm" in name else a for name, a in arrays.items()})


def spelled(kind: str, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The other spellings, by the rules of gemma/gm/ckpts/_checkpoint.py and _compat.py."""
    nested = {n.removeprefix("transformer/").replace("gating_einsum/w", "gating_einsum").replace("linear/w", "linear"): a
              for n, a in stored.items()}  # fmt: skip
    if kind == "nested":
        return nested
    if kind == "training":
        return {f"params/{n}": a for n, a in nested.items()} | {"step": np.zeros(()), "opt_state/0/mu/x": np.zeros(3)}
    found = {n: a for n, a in stored.items() if "/layer_" not in n}
    for rest in sorted({n.split("/", 2)[2] for n in stored if "/layer_" in n}):
        for i in (0, 1):
            layers = [stored[f"transformer/layer_{j}/{rest}"] for j in range(i, 7, 2)]
            found[f"transformer/stacked_layers/attention_type_{i}/{rest}"] = np.stack(layers)
    return found


@pytest.mark.parametrize("kind", ["nested", "training", "stacked"])
def test_every_spelling_is_read(kind: str, tmp_path: Path) -> None:
    config, canonical = small()
    family = families.by_name("gemma2")
    stored = {name: np.asarray(array) for name, array in dialect.write(canonical, config, family).items()}
    orbax.write(tmp_path / "step" / "default", from_arrays(spelled(kind, stored)))
    found = dialect.flat(orbax.read(tmp_path / "step" / "default"), orbax.unstacked)
    expected = dialect.read(dialect.flat(from_arrays(stored), orbax.unstacked), config, family)
    same(dialect.read(found, config, family), expected)


# Opening


def network(slug: str) -> tuple[Any, Config]:
    values = PUBLISHED[slug][1]
    values = values.get("text_config", values)
    family = families.by_model_type(values["model_type"])
    return family, family.config_from_hf(values)


def unread(config: Config, rows: int) -> Tensors:
    """The stored tensors of a network, as headers alone."""
    known = shapes(config)
    table = dialect.rules(config, rows, dialect.transposed_by_size(config))
    named = {name: shape for one in table for name, shape in one.their_shapes(known).items()}
    return Tensors({name: Entry(shape, "BF16", 0, lambda: np.zeros(0)) for name, shape in named.items()})


@pytest.mark.parametrize("slug", [slug for slug in PUBLISHED if slug.startswith("gemma")])
def test_published_sizes_tell_the_network(slug: str) -> None:
    family, config = network(slug)
    vocab = min(config.vocab, 262_144)  # the multimodal files of Hugging Face have 64 rows more
    config = config.replace(vocab=vocab)
    found, read = flax.by_size(flax._sizes(unread(config, dialect.PADDED.get(vocab, vocab))), slug)
    assert found is family
    assert read == config


def test_other_sizes_need_a_manifest(saved: Any, tmp_path: Path) -> None:
    folder = write(saved(GEMMAS[0], "float32")[0], tmp_path)
    (folder / "geode.json").unlink()
    with pytest.raises(ConfigError, match=r"3 layers of width 48, which is no published size.*geode\.json"):
        checkpoint.open(folder)


def test_a_download_of_kaggle(saved: Any, tmp_path: Path) -> None:
    """The tokenizer lies beside the directory of the arrays; either may be given."""
    path = tiny.add_words(saved(GEMMAS[0], "float32")[0], tiny.scored())
    whole = write(path, tmp_path / "gemma")
    assert (whole / "tokenizer.model").is_file()
    below = tmp_path / "gemma" / "2b"
    below.mkdir()
    for name in ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "d"):
        (whole / name).rename(below / name)
    for place in (whole, below):
        opened = checkpoint.open(place)
        assert opened.format == "flax"
        assert opened.tokenizer is not None
        assert opened.template == tiny.TEMPLATE
        assert opened.vocabulary is not None
        same(opened.tensors, checkpoint.open(path).tensors)


def test_the_vision_tower_is_left_out(saved: Any, tmp_path: Path) -> None:
    path, _ = saved(LONG, "float32")
    opened = checkpoint.open(path)
    stored = dict(dialect.write(opened.tensors, opened.config, opened.family))
    vision = {
        "SigLiPFromPatches_0/siglip_encoder/embedding/kernel": np.zeros(3),
        "transformer/embedder/mm_input_projection/w": np.zeros(2),
    }
    orbax.write(tmp_path, from_arrays(stored | vision))
    manifest.write(tmp_path, {"config": opened.family.config_to_hf(opened.config)})
    again = checkpoint.open(tmp_path)
    same(again.tensors, opened.tensors)
    assert again.left_out() == ["The vision tower and its projector, 2 tensors, are not part of the text model."]


def test_other_orbax_directories_are_named(tmp_path: Path) -> None:
    orbax.write(tmp_path, from_arrays({"model/embed/w": np.zeros((2, 2))}))
    assert claiming(tmp_path) is flax.FORMAT
    with pytest.raises(ConfigError, match="neither as Gemma's Flax checkpoints nor as MaxText's"):
        checkpoint.open(tmp_path)


def test_missing_and_foreign_tensors_are_told(saved: Any, tmp_path: Path) -> None:
    path, _ = saved(GEMMAS[0], "float32")
    opened = checkpoint.open(path)
    stored = dict(dialect.write(opened.tensors, opened.config, opened.family))
    del stored["transformer/layer_1/mlp/linear/w"]
    orbax.write(tmp_path, from_arrays(stored | {"transformer/layer_0/lora/a": np.zeros(2)}))
    manifest.write(tmp_path, {"config": opened.family.config_to_hf(opened.config)})
    with pytest.raises(TensorError, match=r"1 missing \(layer_1/mlp/linear/w\).*layer_0/lora/a"):
        _ = checkpoint.open(tmp_path).tensors


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)])
def test_shapes_that_tell_nothing(shape: tuple[int, ...], tmp_path: Path) -> None:
    orbax.write(tmp_path, from_arrays({"transformer/embedder/input_embedding": np.zeros(shape, np.float32)}))
    with pytest.raises(GeodeError, match="expected 2 axes"):
        checkpoint.open(tmp_path)


def test_what_the_layout_has_no_place_for(saved: Any) -> None:
    opened = checkpoint.open(saved(GEMMAS[0], "float32")[0])
    opened.config = opened.config.replace(tied=False)
    assert flax.refuses(opened, Target()) == "Gemma's Flax layout has no place for output.weight (1 such tensors)."
    opened.family = families.by_name("llama")
    said = flax.refuses(opened, Target())
    assert said is not None
    assert "this model is llama" in said
