"""Keras presets: written and read back, by us here and by keras_hub in a process of its own; damaged and hostile ones."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import worker
from keras_hub_worker import NETWORKS, OURS, toy_ranked, toy_scored

from geode import families, formats
from geode.config import Config, Stretch, Yarn
from geode.dialects import keras_hub as dialect
from geode.errors import ConfigError, FormatError, GeodeError, ModelNotFound, TensorError, TokenizerError
from geode.formats import Checkpoint, Target
from geode.formats.keras import backbone_of
from geode.io import h5
from geode.quant import DTYPES, quantize, to_float32
from geode.tensors import Tensors, from_arrays, shapes
from geode.tokenizer import Vocabulary

h5py = pytest.importorskip("h5py")
KERAS = formats.by_name("keras")
PLAIN = Target()
CLOSE = 5e-5
"""Of the largest logit. Both are float32; Qwen 3's norms of heads make the most of rounding, 1e-5."""


class Made(Checkpoint):
    """A checkpoint in memory."""

    words: Vocabulary | None = None

    def _tensors(self) -> Tensors:
        return self.stored

    def _vocabulary(self) -> Vocabulary | None:
        return self.words

    def _tokenizer(self) -> Any:
        return self.words.tokenizer() if self.words else None

    def _template(self) -> str | None:
        return tiny.TEMPLATE if self.words else None


def described(name: str) -> dict[str, Any]:
    """What keras_hub saves as config.json for one of its networks."""
    stem, arguments = NETWORKS[name]
    return {"registered_name": f"keras_hub>{stem}Backbone", "config": arguments}


def opened(name: str) -> tuple[families.Family, Config]:
    stem, arguments = NETWORKS[name]
    backbone = backbone_of(described(name), "test")
    family = families.by_name(backbone.family)
    stored = () if arguments.get("tie_word_embeddings", stem not in ("Llama", "Mistral")) else (dialect.HEAD,)
    return family, backbone.config_from(family, arguments, stored, "test")


def stored(name: str, kind: str = "F32", seed: int = 0) -> Tensors:
    """Random weights under keras_hub's names."""
    family, config = opened(name)
    rng = np.random.default_rng(seed)
    known = shapes(config)
    found = {}
    for rule in dialect.rules(config, family):
        for their, shape in rule.their_shapes(known).items():
            found[their] = rng.standard_normal(shape).astype(DTYPES[kind])
    return from_arrays(found)


def made(name: str, kind: str = "F32", words: Vocabulary | None = None) -> Made:
    family, config = opened(name)
    canonical = dialect.read(stored(name, kind), config, family)
    checkpoint = Made(Path("nowhere"), "made", family, config, canonical, {})
    checkpoint.words = words
    return checkpoint


def written(checkpoint: Checkpoint, folder: Path, target: Target = PLAIN) -> Path:
    folder.mkdir(exist_ok=True)
    KERAS.write(checkpoint, folder, "preset", target)
    return folder


def same(found: Tensors, expected: Tensors) -> None:
    assert set(found) == set(expected)
    for name in expected:
        a, b = np.asarray(found[name]), np.asarray(expected[name])
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


# ------------------------------------------------------------------------------------------------------- There and back


@pytest.mark.parametrize("kind", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_presets_come_back_bit_for_bit(name: str, kind: str, tmp_path: Path) -> None:
    source = made(name, kind)
    assert KERAS.refuses(source, PLAIN) is None
    folder = written(source, tmp_path / "preset")
    same(h5.read(folder / "model.weights.h5"), stored(name, kind))
    found = formats.claiming(folder)
    assert found is KERAS
    again = found.open(folder)
    assert (again.family, again.config) == (source.family, source.config)
    same(again.tensors, source.tensors)
    assert again.tokenizer is None and again.template is None
    for name_, entry in again.tensors.entries.items():
        array = again.tensors[name_]
        assert (array.shape, array.nbytes) == (entry.shape, entry.nbytes)


def test_the_manifest_tells_the_context(tmp_path: Path) -> None:
    source = made("llama")
    source.config = source.config.replace(context=777)
    folder = written(source, tmp_path / "preset")
    (folder / "geode.json").write_text(json.dumps({"config": source.family.config_to_hf(source.config)}))
    assert KERAS.open(folder).config.context == 777


def test_shards_keep_layers_whole(tmp_path: Path) -> None:
    source = made("gpt_neox")
    folder = written(source, tmp_path / "preset", Target(max_shard_bytes=20_000))
    index = json.loads((folder / "model.weights.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert index["metadata"]["total_size"] == stored("gpt_neox").nbytes
    for layer, file in index["weight_map"].items():
        with h5py.File(folder / file) as shard:
            assert set(shard[layer]) <= {"0", "1"} and len(shard[layer]) >= 1
    same(KERAS.open(folder).tensors, source.tensors)
    same(KERAS.open(folder / "model_00001.weights.h5").tensors, source.tensors)


def test_packed_weights_are_unpacked(tmp_path: Path) -> None:
    source = made("llama")
    wide = np.random.default_rng(1).standard_normal((48, 96)).astype(np.float32)
    packed = quantize(wide, "Q8_0")
    source.config = source.config.replace(ffn=96)
    known = {name: np.zeros(shape, np.float32) for name, shape in shapes(source.config).items()}
    source.stored = from_arrays(known | {"blk.0.ffn_down.weight": packed})
    again = KERAS.open(written(source, tmp_path / "preset"))
    assert {entry.type for entry in again.stored.entries.values()} == {"F32"}
    assert np.array_equal(again.tensors["blk.0.ffn_down.weight"], to_float32(packed))


def test_types_can_be_asked_for(tmp_path: Path) -> None:
    folder = written(made("gemma"), tmp_path / "preset", Target(dtype="BF16"))
    assert {entry.type for entry in KERAS.open(folder).stored.entries.values()} == {"BF16"}
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["dtype"]["config"]["name"] == "bfloat16"


def test_what_else_opens(tmp_path: Path) -> None:
    folder = written(made("qwen2"), tmp_path / "preset")
    (folder / "model.weights.h5").rename(folder / "mine.weights.h5")
    same(KERAS.open(folder / "mine.weights.h5").tensors, made("qwen2").tensors)
    with pytest.raises(ModelNotFound, match=r"neither model\.weights\.h5 nor"):
        KERAS.open(folder)
    assert formats.claiming(folder / "config.json") is KERAS


def test_links_to_a_cache_are_followed(tmp_path: Path) -> None:
    folder = written(made("llama"), tmp_path / "preset")
    (folder / "model.weights.h5").rename(tmp_path / "blob")
    (folder / "model.weights.h5").symlink_to(tmp_path / "blob")
    same(KERAS.open(folder).tensors, made("llama").tensors)


# -------------------------------------------------------------------------------------------------------- Configurations


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("gemma2", {"query_scalar": 12.0}, "the scale of attention scores (1/√12, not 1/√32)"),
        ("gemma3", {"tied": False}, "whether the head is the embedding"),
        ("gemma", {"norm": dataclasses.replace(opened("gemma")[1].norm, eps=1e-5)}, "the norms"),
        ("gemma2", {"activation": "gelu"}, "the activation (gelu, not gelu_tanh)"),
        ("llama", {"qkv_bias": True, "out_bias": True}, "a bias after attention"),
        ("llama", {"head_dim": 32}, "the width of heads (32, not 12)"),
        ("mistral", {"tied": True}, "whether the head is the embedding (True, not False)"),
        ("gpt_neox", {"block": "pre", "activation": "gelu"}, "the order in a block (pre, not parallel)"),
    ],
)
def test_what_no_class_computes_is_refused(name: str, changes: dict[str, Any], said: str) -> None:
    source = made(name)
    source.config = source.config.replace(**changes)
    refusal = KERAS.refuses(source, PLAIN)
    assert refusal is not None and said in refusal and refusal[0].isupper()


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_unknown_ropes_are_refused(name: str) -> None:
    source = made(name)
    layer = source.config.pattern[0]
    rope = dataclasses.replace(layer.rope, scaling=Yarn(4.0, 64))
    source.config = source.config.replace(pattern=(dataclasses.replace(layer, rope=rope),))
    assert "scaled by Yarn" in str(KERAS.refuses(source, PLAIN))


def test_windows_that_keras_drops_are_refused() -> None:
    source = made("qwen2")
    source.config = source.config.replace(pattern=(dataclasses.replace(source.config.pattern[0], window=8),))
    assert "window 8" in str(KERAS.refuses(source, PLAIN))


@pytest.mark.parametrize(("family", "said"), [("falcon", "ALiBi"), ("olmo", "no class for the family olmo")])
def test_families_without_a_class_are_refused(family: str, said: str) -> None:
    source = made("llama")
    source.family = families.by_name(family)
    assert said in str(KERAS.refuses(source, PLAIN))


def read(name: str, **changes: Any) -> Config:
    arguments = NETWORKS[name][1]
    values = described(name) | {"config": arguments | changes}
    backbone = backbone_of(values, "config.json")
    return backbone.config_from(families.by_name(backbone.family), values["config"], (), "config.json")


def test_keys_that_keras_ignores_are_read_as_meant() -> None:
    """KerasHub computes without them: gemma_decoder_block.py, llama_rotary_embedding.py."""
    assert read("gemma2", query_head_dim_normalize=False).query_scalar == 48 // 4
    assert read("llama", rope_position_scaling_factor=4.0).pattern[0].rope.scaling == Stretch(4.0)


def test_old_presets_say_less() -> None:
    """Gemma 1 as Kaggle had it first: saved by keras_nlp, without the keys of Gemma 2."""
    keys = ("vocabulary_size", "num_layers", "num_query_heads", "num_key_value_heads", "hidden_dim", "intermediate_dim")
    arguments = {key: NETWORKS["gemma"][1][key] for key in keys} | {"head_dim": 32, "name": "gemma_backbone"}
    values = {"registered_name": "keras_nlp>GemmaBackbone", "config": arguments | {"dtype": "bfloat16"}}
    backbone = backbone_of(values, "test")
    family = families.by_name("gemma")
    assert backbone.config_from(family, values["config"], (), "test") == opened("gemma")[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"intermediate_dim": 81}, "even number"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon"),
        ({"num_layers": 10**9}, "num_layers"),
        ({"num_query_heads": "os.system"}, "num_query_heads"),
        ({"hidden_dim": None}, "hidden_dim"),
        ({"alibi": True}, "alibi"),
        ({"sliding_window_size": -3}, "sliding_window_size"),
        ({"use_post_ffw_norm": False}, "use_post_ffw_norm"),
        ({"dtype": {"class_name": "QuantizedDTypePolicy", "config": {"name": "int8_from_bfloat16"}}}, "int8"),
        ({"dtype": {"class_name": "DTypePolicyMap", "config": {"policy_map": {}}}}, "dtype policy"),
    ],
)
def test_impossible_arguments(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read("gemma2", **changes)


@pytest.mark.parametrize(
    "values",
    [
        {"registered_name": "keras_hub>FalconBackbone", "config": {}},
        {"registered_name": "builtins>eval", "module": "builtins", "class_name": "eval", "config": {"source": "1/0"}},
        {"registered_name": None},
        {"registered_name": ["GemmaBackbone"], "config": {}},
        {"registered_name": "keras_hub>GemmaBackbone", "config": [1, 2]},
        {"registered_name": "keras_hub>GemmaBackbone", "config": {"use_post_attention_norm": {"a": []}}},
    ],
)
def test_hostile_classes_are_only_names(values: dict[str, Any], tmp_path: Path) -> None:
    folder = written(made("gemma"), tmp_path / "preset")
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError):
        KERAS.open(folder)


def test_a_vision_tower_is_left_out(tmp_path: Path) -> None:
    folder = written(made("gemma3"), tmp_path / "preset")
    values = json.loads((folder / "config.json").read_text())
    values["config"]["vision_encoder"] = {"class_name": "Gemma3VisionEncoder", "config": {}}
    (folder / "config.json").write_text(json.dumps(values))
    with h5py.File(folder / "model.weights.h5", "a") as file:
        file["layers/gemma3_vision_encoder/block/vars/0"] = np.ones((3, 3), np.float32)
    again = KERAS.open(folder)
    same(again.tensors, made("gemma3").tensors)
    assert again.left_out() and "1 tensors" in again.left_out()[0]


# ------------------------------------------------------------------------------------------------------------ Tokenizers

WORDS = {
    "gemma": lambda: toy_scored(True),
    "gemma3": lambda: toy_scored(True),
    "llama": lambda: toy_scored(False),
    "mistral": lambda: toy_scored(False),
    "llama3": lambda: toy_ranked("Llama 3.1"),
    "mistral-nemo": lambda: toy_ranked("Mistral Nemo"),
    "qwen2": lambda: toy_ranked("Qwen 2"),
    "qwen3": lambda: toy_ranked("Qwen 3"),
    "gpt_neox": lambda: toy_ranked("GPT-NeoX"),
}


@pytest.mark.parametrize("name", WORDS)
def test_tokenizers_come_back(name: str, tmp_path: Path) -> None:
    source = made(name, words=WORDS[name]())
    folder = written(source, tmp_path / "preset")
    again = KERAS.open(folder)
    ours, theirs = source.tokenizer, again.tokenizer
    for text in ("the quick brown fox", "in the end.\n\nIt was, 42?", "<|im_end|>the<eos>", ""):
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.encode(text, special=True) == ours.encode(text, special=True)
    assert (theirs.size, theirs.bos, theirs.adds_bos, theirs.ends) == (ours.size, ours.bos, ours.adds_bos, ours.ends)
    assert theirs.control.keys() == ours.control.keys()
    assert again.template == tiny.TEMPLATE


def test_losses_are_told() -> None:
    assert KERAS.losses(made("llama", words=toy_scored(False)), PLAIN) == []
    assert "numbers" in KERAS.losses(made("qwen2", words=toy_ranked("Qwen 2")), PLAIN)[0]
    neox = KERAS.losses(made("gpt_neox", words=toy_ranked("GPT-NeoX")), PLAIN)
    assert any("before every text" in one for one in neox)
    nameless = dataclasses.replace(toy_ranked("Llama 3.1"), cut=None)
    assert "left out" in KERAS.losses(made("llama3", words=nameless), PLAIN)[0]
    assert "<|start_header_id|>" in KERAS.losses(made("llama3", words=tiny.ranked()), PLAIN)[0]


def test_what_keras_cannot_tokenize_goes_without(tmp_path: Path) -> None:
    folder = written(made("llama3", words=tiny.ranked()), tmp_path / "preset")
    assert not (folder / "tokenizer.json").exists() and not (folder / "assets").exists()
    assert json.loads((folder / "task.json").read_text())["config"]["preprocessor"] is None


def spoilt(folder: Path, file: str, change: Callable[[Any], Any]) -> None:
    path = folder / file
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


VOCABULARY, TOKENIZER = "assets/tokenizer/vocabulary.json", "tokenizer.json"


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (VOCABULARY, lambda ids: ids | {"x": 10**12}),
        (VOCABULARY, lambda ids: ids | {"x": -1}),
        (VOCABULARY, lambda ids: ids | {"x": True}),
        (VOCABULARY, lambda ids: ids | {"x": 5, "y": 5}),
        (VOCABULARY, lambda ids: ids | {"\ud800": len(ids)}),
        (VOCABULARY, lambda ids: list(ids)),
        (TOKENIZER, lambda values: values | {"registered_name": "os>system"}),
        (TOKENIZER, lambda values: values | {"registered_name": "keras_hub>GemmaTokenizer"}),
        (
            TOKENIZER,
            lambda values: (
                values | {"registered_name": "keras_hub>MistralTekkenTokenizer", "config": {"split_pattern": "(("}}
            ),
        ),
    ],
)
def test_damaged_vocabularies(file: str, change: Callable[[Any], Any], tmp_path: Path) -> None:
    folder = written(made("llama3", words=toy_ranked("Llama 3.1")), tmp_path / "preset")
    spoilt(folder, file, change)
    with pytest.raises((TokenizerError, FormatError)):
        KERAS.open(folder).tokenizer  # noqa: B018


def test_damaged_merges_and_models(tmp_path: Path) -> None:
    folder = written(made("llama3", words=toy_ranked("Llama 3.1")), tmp_path / "ranked")
    (folder / "assets/tokenizer/merges.txt").write_text("t h\na b c\n")
    with pytest.raises(TokenizerError, match="two pieces"):
        KERAS.open(folder).tokenizer  # noqa: B018
    folder = written(made("llama", words=toy_scored(False)), tmp_path / "scored")
    (folder / "assets/tokenizer/vocabulary.spm").write_bytes(b"\x0a\xff\xff")
    with pytest.raises(TokenizerError):
        KERAS.open(folder).tokenizer  # noqa: B018


# ----------------------------------------------------------------------------------------------------- Damage and malice


def without(path: Path, *names: str) -> None:
    with h5py.File(path, "a") as file:
        for name in names:
            del file[name]


EMBEDDING = "layers/reversible_embedding/vars/0"


def compressed(path: Path) -> None:
    without(path, EMBEDDING)
    with h5py.File(path, "a") as file:
        file.create_dataset(EMBEDDING, data=np.ones((96, 48), np.float32), compression="gzip")


def unwritten(path: Path) -> None:
    """A shape without bytes, which HDF5 would make up as zeros."""
    without(path, EMBEDDING)
    with h5py.File(path, "a") as file:
        file.create_dataset(EMBEDDING, shape=(1 << 30, 1 << 20), dtype=np.float32)


def elsewhere(path: Path) -> None:
    without(path, EMBEDDING)
    (path.parent / "secret").write_bytes(bytes(96 * 48 * 4))
    with h5py.File(path, "a") as file:
        place = [(str(path.parent / "secret"), 0, 96 * 48 * 4)]
        file.create_dataset(EMBEDDING, shape=(96, 48), dtype=np.float32, external=place)


def virtual(path: Path) -> None:
    without(path, EMBEDDING)
    with h5py.File(path.parent / "other.h5", "w") as other:
        other["x"] = np.ones((96, 48), np.float32)
    with h5py.File(path, "a") as file:
        layout = h5py.VirtualLayout((96, 48), np.float32)
        layout[:] = h5py.VirtualSource(str(path.parent / "other.h5"), "x", shape=(96, 48))
        file.create_virtual_dataset(EMBEDDING, layout)


def of_texts(path: Path) -> None:
    without(path, EMBEDDING)
    with h5py.File(path, "a") as file:
        file[EMBEDDING] = ["a", "b"]


def big_endian(path: Path) -> None:
    without(path, EMBEDDING)
    with h5py.File(path, "a") as file:
        file[EMBEDDING] = np.ones((96, 48), ">f4")


@pytest.mark.parametrize("harm", [compressed, unwritten, elsewhere, virtual, of_texts, big_endian])
def test_arrays_that_keras_never_writes(harm: Callable[[Path], None], tmp_path: Path) -> None:
    folder = written(made("llama"), tmp_path / "preset")
    harm(folder / "model.weights.h5")
    with pytest.raises(FormatError, match=EMBEDDING):
        KERAS.open(folder)


@pytest.mark.parametrize("link", ["soft", "external"])
def test_links_inside_are_not_followed(link: str, tmp_path: Path) -> None:
    folder = written(made("llama"), tmp_path / "preset")
    other = written(made("llama"), tmp_path / "other") / "model.weights.h5"
    without(folder / "model.weights.h5", EMBEDDING)
    with h5py.File(folder / "model.weights.h5", "a") as file:
        file["layers/copy"] = file["layers/llama_layer_norm"]  # a hard link in a circle would be one of these
        file["layers/copy/circle"] = file["layers"]
        file[EMBEDDING] = h5py.SoftLink("/layers/x") if link == "soft" else h5py.ExternalLink(str(other), EMBEDDING)
    with pytest.raises(TensorError, match=EMBEDDING):
        KERAS.open(folder).tensors  # noqa: B018


def test_missing_extra_and_misshapen_weights(tmp_path: Path) -> None:
    folder = written(made("qwen3"), tmp_path / "preset")
    gone = "layers/qwen3_transformer_decoder_1/_feedforward_layernorm/vars/0"
    without(folder / "model.weights.h5", gone, EMBEDDING)
    with h5py.File(folder / "model.weights.h5", "a") as file:
        file["layers/lora/vars/0"] = np.ones(3, np.float32)
        file[EMBEDDING] = np.ones((95, 48), np.float32)
    with pytest.raises(TensorError) as caught:
        KERAS.open(folder).tensors  # noqa: B018
    assert all(name in str(caught.value) for name in (gone, EMBEDDING, "layers/lora/vars/0"))


def test_every_truncation_is_an_error_of_ours(tmp_path: Path) -> None:
    folder = written(made("gpt_neox"), tmp_path / "preset")
    path = folder / "model.weights.h5"
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 100, 2048, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(GeodeError):
            KERAS.open(folder)
    path.write_bytes(b"not HDF5 at all" * 1000)
    with pytest.raises(FormatError):
        KERAS.open(folder)


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"/layers/x/vars": "../model.weights.h5"}},
        {"weight_map": {"/layers/x/vars": "/etc/passwd"}},
        {"weight_map": {"/layers/x/vars": "C:\\model.weights.h5"}},
        {"weight_map": {"/layers/x/vars": ["model.weights.h5", ".."]}},
        {"weight_map": {"/layers/x/vars": ""}},
        {"weight_map": {"/layers/x/vars": 3}},
        {"weight_map": {"/layers/x/vars": "a\0b"}},
        {"weight_map": ["model_00000.weights.h5"]},
        {"metadata": {}},
        [],
    ],
)
def test_an_index_stays_in_its_folder(index: Any, tmp_path: Path) -> None:
    folder = written(made("llama"), tmp_path / "preset")
    (folder / "model.weights.h5").rename(tmp_path / "model.weights.h5")
    (folder / "model.weights.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"model\.weights\.json"):
        KERAS.open(folder)


def test_shards_that_are_not_there(tmp_path: Path) -> None:
    folder = written(made("llama"), tmp_path / "preset", Target(max_shard_bytes=30_000))
    (folder / "model_00001.weights.h5").unlink()
    with pytest.raises(ModelNotFound, match="model_00001"):
        KERAS.open(folder)


# ------------------------------------------------------------------------------------------------------- keras_hub itself


@pytest.fixture(scope="module")
def report(once: Callable[[str, Callable[[Path], None]], Path]) -> dict[str, Any]:
    """What keras_hub and transformers say of presets, all families in one process."""
    for package in ("keras_hub", "torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install keras-hub torch transformers")

    def make(folder: Path) -> None:
        environment = {"KERAS_BACKEND": "torch", "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
        found = worker("keras_hub_worker.py", str(folder), env=environment)
        (folder / "report.json").write_text(json.dumps(found))

    return json.loads((once("keras_hub", make) / "report.json").read_text())


@pytest.mark.parametrize("name", OURS)
def test_keras_hub_computes_what_transformers_does(name: str, report: dict[str, Any]) -> None:
    assert report["ours"][name]["difference"] < CLOSE


@pytest.mark.parametrize("name", OURS)
def test_keras_hub_generates_from_texts(name: str, report: dict[str, Any]) -> None:
    found = report["ours"][name]
    assert found["tokens"][0] == found["tokens"][1]
    if "NeoX" in name:  # which gets a BOS it should not, and positions that it has not: both are told as losses
        return
    assert found["packed"][0] == found["packed"][1]
    if "Gemma 3" not in name:
        assert found["generated"][0] == found["generated"][1]
    if "Gemma" in name:  # the others' toy networks say control tokens, which KerasHub shows as text
        assert found["text"][0] == found["text"][1]


@pytest.mark.parametrize("name", NETWORKS)
def test_transformers_computes_what_keras_hub_saved(name: str, report: dict[str, Any]) -> None:
    found = report["theirs"][name]
    assert found["difference"] < CLOSE
    assert found["tokens"][0] == found["tokens"][1]
    assert found["bos"][0] == found["bos"][1]


def test_forms_of_weights(report: dict[str, Any]) -> None:
    found = report["forms"]
    assert found["shards"] == 0.0
    assert 0.0 < found["narrow"] < 0.05  # bfloat16 has 8 bits
    assert found["theirs_narrow"] == [["BF16"], True]
    assert found["theirs_shards"] > 3
    assert found["bare"]
