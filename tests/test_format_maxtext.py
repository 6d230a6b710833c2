"""MaxText's layouts: there and back, scanned and not, beside MaxText's own conversion where it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orbax_worker
import pytest
from conftest import worker
from test_format_flax import drawn, network
from variants import GQA, MHA, SIX, VARIANTS, WIDE, Variant, build

from geode import checkpoint, families, manifest
from geode.config import Config
from geode.dialects import flax as flax_dialect
from geode.dialects import maxtext as dialect
from geode.errors import ConfigError, TensorError
from geode.formats import Checkpoint, Target, claiming, maxtext
from geode.io import orbax
from geode.quant import to_float32
from geode.tensors import Entry, Tensors, from_arrays, shapes

pytest.importorskip("tensorstore")
PAIRS = Variant(
    "Gemma 2, pairs",
    "Gemma2Config",
    GQA | WIDE | {"num_hidden_layers": 4, "sliding_window": 8, "query_pre_attn_scalar": 32},
)
PAIRS_27B = Variant("Gemma 2 27B, pairs", "Gemma2Config", PAIRS.options | {"query_pre_attn_scalar": 12})
BLOCKS = Variant(
    "Gemma 3, two blocks", "Gemma3TextConfig", GQA | WIDE | SIX | {"num_hidden_layers": 13, "query_pre_attn_scalar": 32}
)
SHORT = Variant("Gemma 3, less than a block", "Gemma3TextConfig", GQA | WIDE | SIX | {"num_hidden_layers": 4})
NAMES = ("Gemma 1 2B", "Gemma 1 7B", "Llama 3", "Llama 3.1, 3.2", "SmolLM2", "Mistral Nemo", "Qwen 2, 2.5", "Qwen 3")
ALL = [*(one for one in VARIANTS if one.name in NAMES), PAIRS, PAIRS_27B, BLOCKS, SHORT]
ALL += [
    Variant(
        "Llama 3.1, untied",
        "LlamaConfig",
        MHA | {"rope_parameters": next(v for v in VARIANTS if v.name == "Llama 3.1, 3.2").options["rope_parameters"]},
    )
]
EVERY = [pytest.param(one, id=one.slug) for one in ALL]
PREFIX = "params/params/"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant, str], Path]:
    """A variant's directory as transformers saves it."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("networks")

    @cache
    def save(slug: str, dtype: str) -> Path:
        variant = next(one for one in ALL if one.slug == slug)
        build(variant).to(getattr(torch, dtype)).save_pretrained(root / dtype / slug)
        return root / dtype / slug

    return lambda variant, dtype="float32": save(variant.slug, dtype)


def write(path: Path, folder: Path, **options: Any) -> Path:
    """As `geode.convert` does it."""
    opened, target = checkpoint.open(path), Target(**options)
    folder.mkdir(parents=True, exist_ok=True)
    assert maxtext.refuses(opened, target) is None
    maxtext.write(opened, folder, "", target)
    manifest.write(folder, {"config": opened.family.config_to_hf(opened.config)})
    return folder


def close(found: Any, expected: Any, rtol: float) -> None:
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(to_float32(found[name]), to_float32(expected[name]), rtol=rtol, err_msg=name)


# There and back


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("variant", EVERY)
def test_there_and_back(variant: Variant, scanned: bool, saved: Any, tmp_path: Path) -> None:
    opened = checkpoint.open(saved(variant))
    folder = write(saved(variant), tmp_path, scanned=scanned)
    again = checkpoint.open(folder)
    assert again.format == "maxtext"
    assert (again.config, again.family) == (opened.config, opened.family)
    close(again.tensors, opened.tensors, 2.0**-22)  # one rounding each way where a factor is folded in
    for name, entry in again.tensors.entries.items():
        array = again.tensors[name]
        assert (entry.shape, entry.type, entry.nbytes) == (array.shape, "F32", array.nbytes)
    assert any(name.startswith(f"{PREFIX}decoder/layers/") for name in again.stored) == (scanned and variant != SHORT)
    for place in ("0", "0/items"):
        close(checkpoint.open(folder / place).tensors, again.tensors, 0.0)


@pytest.mark.parametrize("variant", EVERY)
def test_bfloat16_comes_back_bit_for_bit(variant: Variant, saved: Any, tmp_path: Path) -> None:
    """What has a factor in it is float32 unless bfloat16 is asked for, and so loses nothing."""
    opened = checkpoint.open(saved(variant, "bfloat16"))
    again = checkpoint.open(write(saved(variant, "bfloat16"), tmp_path))
    for name, array in opened.tensors.items():
        if "norm" in name:
            np.testing.assert_array_equal(to_float32(again.tensors[name]), array.astype(np.float32))
        else:
            assert np.asarray(again.tensors[name]).astype(array.dtype).tobytes() == array.tobytes(), name
    kinds = {name.removeprefix(PREFIX): entry.type for name, entry in again.stored.entries.items()}
    assert kinds[dialect.EMBEDDING] == ("F32" if opened.config.scale_embedding else "BF16")
    assert {kind for name, kind in kinds.items() if "/mlp" in name} == {"BF16"}


def test_bfloat16_that_is_asked_for_is_all(saved: Any, tmp_path: Path) -> None:
    stored = checkpoint.open(write(saved(ALL[0]), tmp_path, dtype="BF16")).stored
    assert {entry.type for entry in stored.entries.values()} == {"BF16"}


def test_orbax_restores_it(saved: Any, tmp_path: Path) -> None:
    pytest.importorskip("orbax.checkpoint")
    folder = write(saved(BLOCKS, "bfloat16"), tmp_path)
    restored = worker("orbax_worker.py", "restore", str(folder / "0/items"))[str(folder / "0/items")]
    assert restored == {name: orbax_worker.digest(array) for name, array in checkpoint.open(folder).stored.items()}


# The layout


def case(variant: Variant, model: str, scanned: bool, path: Path, folder: Path) -> dict[str, Any]:
    """What MaxText's own conversion needs to know, its arrays and ours in two files."""
    opened = checkpoint.open(path)
    name = f"{variant.slug}-{scanned}"
    written = checkpoint.open(write(path, folder / name, scanned=scanned)).stored
    prefix = "model.language_model." if model.startswith("gemma3") else "model."
    arrays = {n.replace("model.", prefix, 1): np.asarray(a) for n, a in opened.stored.items()}
    np.savez(folder / f"{name}-hf.npz", **arrays)
    np.savez(folder / f"{name}-ours.npz", **{n: np.asarray(a) for n, a in written.items()})
    c = opened.config
    values: dict[str, Any] = {"num_hidden_layers": c.depth, "hidden_size": c.width, "head_dim": c.head_dim}
    if model.startswith("gemma3"):
        values = {"text_config": values, "vision_config": {"num_hidden_layers": 0}}
    known = {n: list(entry.shape) for n, entry in written.entries.items()}
    return {
        "name": name,
        "arrays": f"{name}-hf.npz",
        "model": model,
        "scanned": scanned,
        "values": values,
        "shapes": known,
    }


@pytest.mark.skipif(importlib.util.find_spec("maxtext") is None, reason="needs MaxText's tables")
def test_maxtexts_own_conversion_makes_the_same(saved: Any, tmp_path: Path) -> None:
    by_name = {one.name: one for one in ALL}
    models = {"Gemma 2, pairs": "gemma2-2b", "Gemma 3, two blocks": "gemma3-4b", "Llama 3.1, untied": "llama3.1-8b",
              "Qwen 2, 2.5": "qwen2.5-7b", "Qwen 3": "qwen3-8b"}  # fmt: skip
    cases = [
        case(by_name[n], model, scanned, saved(by_name[n]), tmp_path)
        for n, model in models.items()
        for scanned in (True, False)
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    made = worker("orbax_worker.py", "maxtext", str(tmp_path))
    for one in cases:
        theirs, ours = np.load(tmp_path / f"{one['name']}.npz"), np.load(tmp_path / f"{one['name']}-ours.npz")
        assert sorted(ours) == made[one["name"]]
        for name in ours:
            # Its Gemma 3 multiplies embeddings by the root rounded to bfloat16, and divides logits by the exact one.
            rounded = one["model"].startswith("gemma3") and name.endswith("token_embedder/embedding")
            np.testing.assert_allclose(
                theirs[name], ours[name], rtol=4e-3 if rounded else 1e-6, atol=1e-7, err_msg=name
            )


def both(variant: Variant, saved: Any, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Any]:
    """Hugging Face's arrays, MaxText's without prefix, and the network."""
    opened = checkpoint.open(saved(variant))
    written = checkpoint.open(write(saved(variant), folder)).stored
    plain = {name.removeprefix(PREFIX): np.asarray(array) for name, array in written.items()}
    return {name: np.asarray(array) for name, array in opened.stored.items()}, plain, opened.config


def test_gemma_is_as_its_conversion_script_makes_it(saved: Any, tmp_path: Path) -> None:
    """convert_gemma_chkpt.py: from Flax's einsums, with factors folded in and layers on axis 1."""
    opened = checkpoint.open(saved(ALL[0]))
    einsums = flax_dialect.flat(flax_dialect.write(opened.tensors, opened.config, opened.family), orbax.unstacked)
    _, stored, c = both(ALL[0], saved, tmp_path)
    for i in range(c.depth):
        layer = {
            n.removeprefix(f"layer_{i}/"): np.asarray(a) for n, a in einsums.items() if n.startswith(f"layer_{i}/")
        }
        attention = {
            part: stored[f"decoder/layers/self_attention/{part}/kernel"][:, i]
            for part in ("query", "key", "value", "out")
        }
        scale = np.float32(c.head_dim**-0.5)
        np.testing.assert_allclose(attention["query"], layer["attn/q_einsum/w"].transpose(1, 0, 2) * scale, rtol=1e-6)
        np.testing.assert_array_equal(attention["key"], layer["attn/kv_einsum/w"][0].transpose(1, 0, 2))
        np.testing.assert_array_equal(attention["value"], layer["attn/kv_einsum/w"][1].transpose(1, 0, 2))
        np.testing.assert_array_equal(attention["out"], layer["attn/attn_vec_einsum/w"])
        for j in (0, 1):
            np.testing.assert_array_equal(
                stored[f"decoder/layers/mlp/wi_{j}/kernel"][:, i], layer["mlp/gating_einsum/w"][j]
            )
        np.testing.assert_array_equal(stored["decoder/layers/mlp/wo/kernel"][:, i], layer["mlp/linear/w"])
        norm = stored["decoder/layers/pre_self_attention_norm/scale"][:, i]
        np.testing.assert_allclose(norm, layer["pre_attention_norm/scale"] + 1, rtol=1e-6)
    root = np.float32(math.sqrt(c.width))
    np.testing.assert_allclose(stored["token_embedder/embedding"], einsums[flax_dialect.EMBEDDING] * root, rtol=1e-6)


def test_mistral_has_the_scale_in_its_queries_and_halves_that_rotate(saved: Any, tmp_path: Path) -> None:
    """llama_or_mistral_ckpt.py: (D, L, H, head), queries over the root of a head's width."""
    variant = next(one for one in ALL if one.name == "Mistral Nemo")
    hf, stored, c = both(variant, saved, tmp_path)
    for part, heads, factor in (("q", c.heads, c.head_dim**-0.5), ("k", c.kv_heads, 1.0)):
        expected = hf[f"model.layers.2.self_attn.{part}_proj.weight"].T.reshape(c.width, heads, c.head_dim)
        kernel = stored[f"decoder/layers/self_attention/{'query' if part == 'q' else 'key'}/kernel"]
        np.testing.assert_allclose(kernel[:, 2], expected * np.float32(factor), rtol=1e-6)
    np.testing.assert_array_equal(stored["decoder/logits_dense/kernel"], hf["lm_head.weight"].T)


def test_llama31_rotates_neighbours(saved: Any, tmp_path: Path) -> None:
    hf, stored, c = both(next(one for one in ALL if one.name == "Llama 3.1, untied"), saved, tmp_path)
    halves = hf["model.layers.1.self_attn.k_proj.weight"].reshape(c.kv_heads, 2, c.head_dim // 2, c.width)
    expected = halves.transpose(3, 0, 2, 1).reshape(c.width, c.kv_heads, c.head_dim)
    np.testing.assert_array_equal(stored["decoder/layers/self_attention/key/kernel"][:, 1], expected)


def test_the_scale_of_27b_is_by_width(saved: Any, tmp_path: Path) -> None:
    hf, stored, c = both(PAIRS_27B, saved, tmp_path)
    expected = hf["model.layers.3.self_attn.q_proj.weight"].T.reshape(c.width, c.heads, c.head_dim) * np.float32(
        12**-0.5
    )
    np.testing.assert_allclose(stored["decoder/layers/self_attention_global/query/kernel"][:, 1], expected, rtol=1e-6)


def test_gemma3s_blocks_of_six(saved: Any, tmp_path: Path) -> None:
    hf, stored, _ = both(BLOCKS, saved, tmp_path)
    for i in range(13):
        expected = hf[f"model.layers.{i}.mlp.down_proj.weight"].T
        place = f"decoder/layers/layers_{i % 6}" if i < 12 else "decoder/layers_remainder/layers_0"
        found = stored[f"{place}/mlp/wo/kernel"]
        np.testing.assert_array_equal(found[:, i // 6] if i < 12 else found, expected)


def test_layers_that_are_all_stacked_are_read_for_gemma3(saved: Any, tmp_path: Path) -> None:
    """As convert_gemma3_chkpt.py once stacked them."""
    opened = checkpoint.open(saved(BLOCKS))
    single = dialect.write(opened.tensors, opened.config, opened.family)
    llama = families.by_name("llama")
    stacked, _ = dialect.scanned(single, opened.config, llama)
    again = dialect.read(dialect.unscanned(stacked, orbax.unstacked), opened.config, opened.family)
    close(again, opened.tensors, 2.0**-22)


def test_settings_say_the_network(saved: Any, tmp_path: Path) -> None:
    text = (write(saved(BLOCKS), tmp_path) / "maxtext.yml").read_text()
    said = {line.split(": ")[0]: json.loads(line.split(": ", 1)[1]) for line in text.splitlines()}
    expected = {"decoder_block": "gemma3", "base_emb_dim": 48, "base_num_decoder_layers": 13, "base_num_kv_heads": 2,
                "vocab_size": 96, "logits_via_embedding": True, "normalize_embedding_logits": True, "scan_layers": True,
                "rope_max_timescale": 1_000_000, "local_rope_max_timescale": 10_000, "sliding_window_size": 8,
                "use_qk_norm": True, "use_post_ffw_norm": True, "mlp_activations": ["gelu", "linear"]}  # fmt: skip
    assert {key: said[key] for key in expected} == expected
    assert "model_name" not in said


def test_published_models_have_their_name() -> None:
    family, config = network("gemma-2-27b")
    said = maxtext.settings(opened_as(family.name, config), scanned=False)
    assert (said["model_name"], said["base_num_decoder_layers"], said["vocab_size"]) == ("gemma2-27b", 23, 256_128)
    assert (said["attn_logits_soft_cap"], said["final_logits_soft_cap"]) == (50.0, 30.0)


# Opening


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("slug", ["gemma-2b", "gemma-7b", "gemma-2-2b", "gemma-2-27b"])
def test_a_published_gemma_is_known_by_its_sizes(slug: str, scanned: bool) -> None:
    family, config = network(slug)
    known, table = shapes(config), dialect.rules(config, family, flax_dialect.PADDED.get(config.vocab, config.vocab))
    headers = {name: Entry(shape, "BF16", 0, lambda: np.zeros(0)) for one in table
               for name, shape in one.their_shapes(known).items()}  # fmt: skip
    stored = Tensors(headers)
    if scanned:
        stored = dialect.scanned(stored, config, family)[0]
    found, read = maxtext.by_size(maxtext._sizes(dialect.unscanned(stored, orbax.unstacked), slug), slug)
    assert (found, read) == (family, config)


def test_other_families_need_a_manifest(saved: Any, tmp_path: Path) -> None:
    folder = write(saved(next(one for one in ALL if one.name == "Llama 3")), tmp_path)
    (folder / "geode.json").unlink()
    assert claiming(folder) is maxtext.FORMAT
    with pytest.raises(ConfigError, match=r"no Gemma's. Put a geode\.json"):
        checkpoint.open(folder)


def test_a_training_state_is_more_than_weights(saved: Any, tmp_path: Path) -> None:
    """The optimizer's arrays and the step are not asked for; a vision tower is told."""
    opened = checkpoint.open(saved(ALL[0]))
    folder = write(saved(ALL[0]), tmp_path / "a")
    stored = dict(checkpoint.open(folder).stored)
    more = {"step": np.zeros((), np.int32), "opt_state/mu/params/decoder/decoder_norm/scale": np.zeros(3)}
    more |= {"params/params/vision_encoder/x/kernel": np.zeros(2)}
    orbax.write(tmp_path / "b" / "7", from_arrays(stored | more), item="items")
    manifest.write(tmp_path / "b", {"config": opened.family.config_to_hf(opened.config)})
    again = checkpoint.open(tmp_path / "b")
    close(again.tensors, opened.tensors, 2.0**-22)
    assert again.left_out() == ["The vision tower and its projector, 1 tensors, are not part of the text model."]


def test_missing_tensors_are_told(saved: Any, tmp_path: Path) -> None:
    folder = write(saved(ALL[0]), tmp_path / "a", scanned=False)
    stored = dict(checkpoint.open(folder).stored)
    del stored["params/params/decoder/layers_1/mlp/wo/kernel"]
    orbax.write(tmp_path / "b", from_arrays(stored))
    (tmp_path / "b" / "geode.json").write_bytes((folder / "geode.json").read_bytes())
    with pytest.raises(TensorError, match=r"1 missing \(decoder/layers_1/mlp/wo/kernel\)"):
        _ = checkpoint.open(tmp_path / "b").tensors


# What MaxText has no place for


def opened_as(family: str, config: Config) -> Checkpoint:
    return Checkpoint(Path(), "hf", families.by_name(family), config, Tensors({}), {})


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("falcon", {}, "this model is falcon"),
        ("llama", {"ffn_bias": True}, "MaxText's llama has no place for blk.0.ffn_gate.bias (54 such tensors)"),
        ("qwen2", {"qkv_bias": True, "out_bias": True}, "no place for blk.0.attn_output.bias (18 such tensors)"),
        ("gemma2", {"depth": 25}, "pairs of layers; this model has 25"),
        ("llama", {"activation": "gelu"}, "the exact one"),
    ],
)
def test_refusals(family: str, changes: dict[str, Any], said: str) -> None:
    config = network("gemma-2b")[1]
    assert maxtext.refuses(opened_as("gemma", config), Target()) is None
    assert said in str(maxtext.refuses(opened_as(family, config.replace(**changes)), Target()))


def test_windows_and_ropes_of_ours_alone_are_losses(saved: Any) -> None:
    def losses(variant: Variant, **changes: Any) -> list[str]:
        opened = checkpoint.open(saved(variant))
        opened.config = opened.config.replace(**changes)
        return maxtext.losses(opened, Target())

    assert losses(BLOCKS) == losses(PAIRS) == losses(ALL[0]) == []
    nemo = next(one for one in ALL if one.name == "Mistral Nemo")
    windowed = checkpoint.open(saved(PAIRS)).config.pattern
    assert losses(nemo) == []
    assert "only geode.json says which" in losses(nemo, pattern=windowed)[0]
    tiny_bands = next(one for one in ALL if one.name == "Llama 3.1, untied")  # 64 tokens, where MaxText has 8192 fixed
    assert "scaling of rotary positions" in losses(tiny_bands)[0]


def test_drawn_weights_of_a_padded_gemma() -> None:
    family, config = (
        families.by_name("gemma"),
        network("gemma-2b")[1].replace(width=4, depth=1, heads=2, head_dim=2, ffn=4),
    )
    canonical = drawn(config)
    stored = dialect.write(canonical, config, family)
    assert stored[dialect.EMBEDDING].shape == (256_128, 4)
    close(dialect.read(stored, config, family), canonical, 2.0**-22)
