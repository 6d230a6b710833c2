"""Opening checkpoints: the layouts they come in, and one clear error for each that is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import geode.checkpoint
from geode import families, tensors
from geode.checkpoint import Checkpoint
from geode.config import Config
from geode.dialects import gguf as gguf_dialect
from geode.dialects import hf as hf_dialect
from geode.errors import ConfigError, FormatError, GeodeError, ModelNotFound, TensorError
from geode.io import gguf, safetensors
from geode.tensors import Tensors, from_arrays

LLAMA = families.by_name("llama")
CONFIG = Config(20, 8, 2, 2, 1, 4, 12, 32, norm=LLAMA.constants["norm"])


def canonical(config: Config = CONFIG) -> Tensors:
    random = np.random.default_rng(0)
    shapes = tensors.shapes(config)
    return from_arrays({name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """A directory of config.json and model.safetensors, and nothing else."""
    safetensors.write(tmp_path / "model.safetensors", hf_dialect.write(canonical(), CONFIG, LLAMA))
    write_json(tmp_path / "config.json", LLAMA.config_to_hf(CONFIG))
    return tmp_path


def write_gguf(path: Path, **metadata: Any) -> Path:
    known: dict[str, Any] = {"general.architecture": "llama", **LLAMA.config_to_gguf(CONFIG), **metadata}
    known = {name: value for name, value in known.items() if value is not None}
    gguf.write(path, known, gguf_dialect.write(canonical(), CONFIG, LLAMA))
    return path


def whole(opened: Checkpoint) -> None:
    assert opened.config == CONFIG
    assert opened.family is LLAMA
    expected = canonical()
    assert set(opened.tensors) == set(expected)
    assert all(np.array_equal(opened.tensors[name], array) for name, array in expected.items())


def refused(kind: type[GeodeError], path: Path, *words: str) -> None:
    with pytest.raises(kind) as problem:
        geode.checkpoint.open(path)
    message = str(problem.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


# ------------------------------------------------------------------------------------------------------------------- layouts


def test_a_directory_of_two_files_is_enough(hf: Path) -> None:
    opened = geode.checkpoint.open(hf)
    whole(opened)
    assert opened.format == "hf"
    assert opened.template is None
    assert opened.ends == frozenset()
    assert opened.tokenizer is None
    assert opened.chat == "llama2"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_the_directory_stands_for_it(hf: Path, name: str) -> None:
    whole(geode.checkpoint.open(hf / name))
    whole(geode.checkpoint.open(str(hf / name)))


def test_one_of_several_weight_files_is_the_one_that_is_named(hf: Path) -> None:
    other = canonical(CONFIG.replace(vocab=21))
    safetensors.write(hf / "other.safetensors", hf_dialect.write(other, CONFIG, LLAMA))
    whole(geode.checkpoint.open(hf / "model.safetensors"))
    with pytest.raises(TensorError, match=r"expected \(20, 8\), the file has \(21, 8\)"):
        _ = geode.checkpoint.open(hf / "other.safetensors").tensors


@pytest.mark.parametrize("named", ["", "model.safetensors.index.json", "model-00002-of-*.safetensors"])
def test_shards(hf: Path, named: str) -> None:
    stored = hf_dialect.write(canonical(), CONFIG, LLAMA)
    safetensors.write(hf, stored, max_shard_bytes=1500)
    assert len(list(hf.glob("model-0*"))) > 2
    whole(geode.checkpoint.open(next(hf.glob(named)) if named else hf))


def test_an_absent_shard_is_named(hf: Path) -> None:
    safetensors.write(hf, hf_dialect.write(canonical(), CONFIG, LLAMA), max_shard_bytes=1500)
    lost = sorted(hf.glob("model-0*"))[1]
    lost.unlink()
    refused(ModelNotFound, hf, lost.name)


def test_a_gguf_file_and_a_directory_that_holds_one(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    for given in (path, tmp_path):
        opened = geode.checkpoint.open(given)
        whole(opened)
        assert opened.format == "gguf"
        assert opened.path == path


def test_a_gguf_beside_a_config_json_without_weights_is_opened(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    write_json(tmp_path / "config.json", {"model_type": "llama"})  # as repositories of GGUF files have it
    assert geode.checkpoint.open(tmp_path).path == path


def test_two_gguf_files_in_a_directory_are_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a-q4.gguf")
    write_gguf(tmp_path / "b-q8.gguf")
    refused(ModelNotFound, tmp_path, "a-q4.gguf, b-q8.gguf")


def test_parts_of_one_gguf_are_one_model(tmp_path: Path) -> None:
    stored = gguf_dialect.write(canonical(), CONFIG, LLAMA).entries
    names = list(stored)
    split = {"split.count": 2, "split.tensors.count": len(names)}
    metadata = {"general.architecture": "llama", **LLAMA.config_to_gguf(CONFIG)}
    for number, part in enumerate((names[:5], names[5:])):
        own = metadata if number == 0 else {}
        path = tmp_path / f"model-{number + 1:05}-of-00002.gguf"
        types = dict.fromkeys(("split.count", "split.no"), "u16") | {"split.tensors.count": "i32"}
        gguf.write(path, own | split | {"split.no": number}, Tensors({name: stored[name] for name in part}), types)
    whole(geode.checkpoint.open(tmp_path))


def test_only_headers_are_read(hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = geode.checkpoint.open(hf)

    def never() -> Any:
        raise AssertionError("weights were read")

    for name, entry in opened.stored.entries.items():
        opened.stored.entries[name] = tensors.Entry(entry.shape, entry.type, entry.nbytes, never)
    assert opened.tensors.nbytes == opened.stored.nbytes
    assert opened.tensors.entries["output.weight"].shape == (20, 8)


def test_the_text_half_of_a_multimodal_checkpoint(tmp_path: Path) -> None:
    family = families.by_name("gemma3")
    config = Config(20, 8, 2, 2, 1, 4, 12, 32, block="sandwich", qk_norm="shared", scale_embedding=True, tied=True,
                    activation="gelu_tanh", query_scalar=4.0, norm=family.constants["norm"])  # fmt: skip
    text = family.config_to_hf(config) | {"sliding_window": 8, "layer_types": ["full_attention"] * 2}
    write_json(tmp_path / "config.json", {"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": text,
                                          "vision_config": {"hidden_size": 1}})  # fmt: skip
    stored = hf_dialect.write(canonical(config), config, family)
    renamed = {name.replace("model.", "language_model.model.", 1): entry for name, entry in stored.entries.items()}
    safetensors.write(tmp_path / "model.safetensors", Tensors(renamed))
    opened = geode.checkpoint.open(tmp_path)
    assert opened.family is family
    assert (opened.config.width, opened.config.depth, opened.config.tied) == (8, 2, True)
    assert opened.ends == {1, 106}
    assert set(opened.tensors) == set(canonical(config))


# ------------------------------------------------------------------------------------------------------------------- refused


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    refused(ModelNotFound, tmp_path / "nothing", "nothing", "expected a .gguf file or a directory")


def test_an_empty_directory(tmp_path: Path) -> None:
    refused(ModelNotFound, tmp_path, "neither config.json nor a .gguf file")


def test_weights_without_config_json(hf: Path) -> None:
    (hf / "config.json").unlink()
    refused(ModelNotFound, hf / "model.safetensors", "no config.json")
    refused(ModelNotFound, hf, "neither config.json nor a .gguf file")


def test_config_json_without_weights(hf: Path) -> None:
    (hf / "model.safetensors").unlink()
    refused(ModelNotFound, hf, ".safetensors")


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"{", FormatError, "not valid JSON"),
        (b"", FormatError, "not valid JSON"),
        (b"\xff\xfe{}", FormatError, "not UTF-8"),
        (b"[" * 100_000, FormatError, "not valid JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", FormatError, "not valid JSON"),
        (b"[1]", FormatError, "holds a list"),
        (b'"llama"', FormatError, "holds a str"),
        (b"{}", ConfigError, "no model_type"),
        (b'{"model_type": 3}', ConfigError, "no model_type"),
        (b'{"model_type": null}', ConfigError, "no model_type"),
        (b'{"model_type": "mamba"}', ConfigError, "Known are: llama, mistral"),
        (b'{"model_type": "llava", "text_config": []}', ConfigError, "'llava'"),
        (b'{"model_type": "llava", "text_config": {"model_type": ["llama"]}}', ConfigError, "no model_type"),
        (b'{"model_type": "llama", "vocab_size": NaN}', ConfigError, "vocab_size"),
    ],
)
def test_a_damaged_config_json(hf: Path, content: bytes, kind: type[GeodeError], words: str) -> None:
    (hf / "config.json").write_bytes(content)
    refused(kind, hf, words, "config.json")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"PK\x03\x04" + bytes(100))
    refused(FormatError, tmp_path / "model.bin", "GGUF")


@pytest.mark.parametrize("arch", [None, 7, ["llama"]])
def test_a_gguf_without_architecture(tmp_path: Path, arch: Any) -> None:
    refused(ConfigError, write_gguf(tmp_path / "m.gguf", **{"general.architecture": arch}), "general.architecture")


def test_a_gguf_of_another_architecture(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", **{"general.architecture": "mamba"})
    refused(ConfigError, path, "'mamba'", "llama, gemma")


def test_weights_of_another_network_are_refused_when_asked_for(hf: Path) -> None:
    write_json(hf / "config.json", LLAMA.config_to_hf(CONFIG.replace(depth=3)))
    opened = geode.checkpoint.open(hf)
    with pytest.raises(TensorError, match=r"9 missing \(model\.layers\.2\."):
        _ = opened.tensors


# ----------------------------------------------------------------------------------------------------------- template and ends


def test_the_sources_of_a_template_in_their_order(hf: Path) -> None:
    def template() -> str | None:
        return geode.checkpoint.open(hf).template

    write_json(hf / "tokenizer_config.json", {"chat_template": "from tokenizer_config"})
    assert template() == "from tokenizer_config"
    named = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "the default one"}]
    write_json(hf / "tokenizer_config.json", {"chat_template": named})
    assert template() == "the default one"
    write_json(hf / "chat_template.json", {"chat_template": "from chat_template.json"})
    assert template() == "from chat_template.json"
    (hf / "chat_template.jinja").write_text("{{ 'é' }}\n", encoding="utf-8")
    assert template() == "{{ 'é' }}\n"


@pytest.mark.parametrize(
    "found", [None, 3, {}, [], ["default"], [{"name": ["default"], "template": "x"}], [{"name": "rag", "template": "x"}],
              [{"name": "default"}], [{"name": "default", "template": 3}]],
)  # fmt: skip
def test_what_is_no_template_is_none(hf: Path, found: Any) -> None:
    write_json(hf / "tokenizer_config.json", {"chat_template": found})
    assert geode.checkpoint.open(hf).template is None


@pytest.mark.parametrize("file", ["chat_template.json", "tokenizer_config.json"])
def test_a_damaged_template_file(hf: Path, file: str) -> None:
    (hf / file).write_bytes(b'{"chat_template": ')
    with pytest.raises(FormatError, match=file):
        _ = geode.checkpoint.open(hf).template


def test_a_template_that_is_no_text(hf: Path) -> None:
    (hf / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match=r"chat_template\.jinja is not UTF-8"):
        _ = geode.checkpoint.open(hf).template


def test_the_template_of_a_gguf(tmp_path: Path) -> None:
    assert geode.checkpoint.open(write_gguf(tmp_path / "a.gguf")).template is None
    path = write_gguf(tmp_path / "b.gguf", **{"tokenizer.chat_template": "{{ messages }}"})
    opened = geode.checkpoint.open(path)
    assert opened.template == "{{ messages }}"
    assert opened.ends == frozenset()
    assert opened.tokenizer is None


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ([1, 106], 7, {1, 106}),
        (2, 7, {2}),
        (None, 7, {7}),
        (None, [7, 8], {7, 8}),
        (None, None, set()),
        ([5, True, "2", None, 3.0], None, {5}),
        ("</s>", 7, set()),
    ],
)
def test_ends(hf: Path, generation: Any, config: Any, ends: set[int]) -> None:
    write_json(hf / "config.json", LLAMA.config_to_hf(CONFIG) | {"eos_token_id": config})
    write_json(hf / "generation_config.json", {"eos_token_id": generation, "max_length": 100})
    assert geode.checkpoint.open(hf).ends == ends


def test_a_damaged_generation_config(hf: Path) -> None:
    (hf / "generation_config.json").write_text("eos_token_id: 1")
    opened = geode.checkpoint.open(hf)
    with pytest.raises(FormatError, match=r"generation_config\.json is not valid JSON"):
        _ = opened.ends
