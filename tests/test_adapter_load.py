"""Models with adapters: every verb and framework opens them, packed bases keep the change, words beside an adapter win."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import worker

import geode
from geode import adapters, checkpoint, conversion, families, manifest, merge, tensors
from geode.adapters import Adapter, Pair
from geode.checkpoint import Checkpoint
from geode.cli.app import main
from geode.config import Config
from geode.dialects import hf as hf_dialect
from geode.errors import ConfigError, ModelNotFound, OptionError, TensorError
from geode.io import catalogue, hub, safetensors, store
from geode.merge.added import ALONE, _product
from geode.native import extension
from geode.quant import QTensor, to_float32
from geode.tensors import from_arrays

LLAMA = families.by_name("llama")
CONFIG = Config(96, 64, 2, 4, 2, 16, 96, 128, norm=LLAMA.constants["norm"])
Q, DOWN, K = "blk.1.attn_q.weight", "blk.0.ffn_down.weight", "blk.0.attn_k.weight"
IDS = [1, 17, 30, 5, 80, 41, 22, 9, 60, 11]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
native = pytest.mark.skipif(not extension.is_there(), reason="the native engine was not built")


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GEODE_HOME", str(tmp_path / "home"))


def given(base: Checkpoint, size: float = 1.0) -> Adapter:
    """Pairs of rank 4 on three matrices, and a norm of its own."""
    random, shapes = np.random.default_rng(9), tensors.shapes(base.config)

    def pair(out: int, width: int) -> Pair:
        a, b = random.standard_normal((4, width)) / np.sqrt(width), random.standard_normal((out, 4))
        return Pair(a.astype(np.float32), np.float32(size * b), 0.5)

    return Adapter(base.family, base.config, {name: pair(*shapes[name]) for name in (Q, DOWN, K)}, from_arrays({}))


def fill(folder: Path) -> None:
    """base (float32), packed.gguf (Q4_0), lora and lora.gguf for it, and the merged model."""
    random, base = np.random.default_rng(0), folder / "base"
    arrays = {n: random.standard_normal(s).astype(np.float32) * 0.2 for n, s in tensors.shapes(CONFIG).items()}
    base.mkdir()
    safetensors.write(base, hf_dialect.write(from_arrays(arrays), CONFIG, LLAMA))
    (base / "config.json").write_text(json.dumps(LLAMA.config_to_hf(CONFIG)))
    tiny.add_words(base, tiny.scored())
    opened = checkpoint.open(base)
    adapters.write(dataclasses.replace(given(opened), base="../base"), folder / "lora")
    adapters.write(given(opened), folder / "lora.gguf")
    made = merge.adapter(opened, adapters.open(folder / "lora", opened))
    conversion.write(made, folder / "merged", check=False, quiet=True)
    conversion.convert(base, folder / "packed.gguf", quant="q4_0", check=False, quiet=True)


@pytest.fixture(scope="session")
def made(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    return once("adapter_load", fill)


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy of the adapter's directory that a test may change."""
    shutil.copytree(made / "base", tmp_path / "base")
    return shutil.copytree(made / "lora", tmp_path / "lora")


def edit(folder: Path, **options: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    return folder


def logits(*names: Path, **how: Any) -> np.ndarray:
    """What native gives; the second name is an adapter."""
    lm = geode.load(names[0], on="native", adapter=names[1] if names[1:] else None, **how)
    return lm.logits(IDS)


# ------------------------------------------------------------------------------------------------------------- loading


@native
def test_an_adapter_is_a_model(made: Path) -> None:
    wanted = logits(made / "merged")
    assert np.abs(logits(made / "base") - wanted).max() > 0.1
    for names in (["lora"], ["lora/adapter_config.json"], ["base", "lora"], ["base", "lora.gguf"]):
        np.testing.assert_allclose(logits(*(made / name for name in names)), wanted, atol=1e-5)
    np.testing.assert_allclose(logits(made / "lora", dtype="bfloat16"), logits(made / "merged", dtype="bfloat16"))
    np.testing.assert_array_equal(logits(made / "lora", quantize="q4_0"), logits(made / "merged", quantize="q4_0"))


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_frameworks_open_adapters(framework: str, made: Path) -> None:
    for package in (framework, "keras"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    found = worker("adapter_load_worker.py", framework, str(made / "lora"), str(made / "merged"))
    assert max(found.values()) < 1e-4, found


def test_what_changes_in_a_packed_model_has_room(made: Path) -> None:
    """Q8_0 for the matrices that change; all others are the file's own bytes, where they lie."""
    base = checkpoint.open(made / "packed.gguf")
    found = merge.adapted(base, made / "lora")
    exact = checkpoint.open(made / "packed.gguf", made / "lora", exact=True)
    one = adapters.open(made / "lora", base)
    assert set(one.pairs) == {Q, DOWN, K}
    for name, entry in found.tensors.entries.items():
        old, new = base.tensors[name], found.tensors[name]
        if name not in one.pairs:
            assert entry is base.tensors.entries[name]
            assert not isinstance(new, QTensor) or "attn_" in name or np.shares_memory(old.data, new.data)
            continue
        pair = one.pairs[name]
        wanted = to_float32(old).astype(np.float64) + pair.scale * (pair.b.astype(np.float64) @ pair.a)
        assert entry.type == "Q8_0" and entry.nbytes == new.nbytes
        assert exact.tensors.entries[name].type == "F32"
        assert exact.tensors.entries[name].nbytes == exact.tensors[name].nbytes
        np.testing.assert_allclose(exact.tensors[name], wanted, atol=1e-5)
        assert np.sqrt(np.mean((to_float32(new) - wanted) ** 2)) < 0.01 * np.sqrt(np.mean(wanted**2))
    assert found.stored.nbytes == sum(array.nbytes for array in found.stored.values())


@native
def test_a_packed_model_keeps_the_change(made: Path) -> None:
    """Packed back into four bits, the same matrices are five times farther from the exact sum."""
    base = checkpoint.open(made / "packed.gguf")
    squeezed = merge.adapter(base, adapters.open(made / "lora", base))
    exact, found = (
        checkpoint.open(made / "packed.gguf", made / "lora", exact=exact).tensors for exact in (True, False)
    )

    def off(other: Any) -> float:
        return max(float(np.abs(to_float32(other[name]) - to_float32(exact[name])).max()) for name in (Q, DOWN, K))

    assert off(squeezed.tensors) > 5 * off(found)
    wide = logits(made / "packed.gguf", made / "lora", dtype="float32")
    assert np.abs(logits(made / "packed.gguf", made / "lora") - wide).mean() < 0.1 * np.abs(wide).mean()


def test_types_that_stay_and_types_that_do_not() -> None:
    entry = tensors.entry_of(np.zeros((32, 256), np.float32))
    for kind, roomy, exact in (
        *(("F32", "F32", "F32"), ("F16", "F16", "F32"), ("BF16", "BF16", "F32"), ("F64", "F64", "F64")),
        *(("Q4_K", "Q8_0", "F32"), ("Q6_K", "Q8_0", "F32"), ("Q4_1", "Q8_0", "F32"), ("Q8_0", "Q8_0", "F32")),
    ):
        one = dataclasses.replace(entry, type=kind)
        assert (merge.kept(one), merge.roomy(one), merge.exact(one)) == (kind, roomy, exact)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(700, 640, 16), (3, 5, 1), (40, 2048, 256)])
def test_products_of_a_few_rows_are_products(rows: int, columns: int, rank: int) -> None:
    random = np.random.default_rng(0)
    b, a = random.standard_normal((rows, rank), np.float32), random.standard_normal((rank, columns), np.float32)
    assert rows * columns * rank > ALONE or rows == 3
    np.testing.assert_allclose(_product(b, a), b.astype(np.float64) @ a, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------------------- words


def test_the_words_are_the_bases(made: Path) -> None:
    base, found = checkpoint.open(made / "base"), checkpoint.open(made / "lora")
    assert found.template == base.template == tiny.TEMPLATE
    assert (found.ends, found.format) == (base.ends, "hf")
    assert found.tokenizer is not None and found.tokenizer.encode("the cat") == base.tokenizer.encode("the cat")
    assert {file.name for file in found.tokenizer_files()} == {file.name for file in base.tokenizer_files()}
    assert {"adapter_model.safetensors", "adapter_config.json", "model.safetensors"} <= {f.name for f in found.files()}


@native
def test_words_beside_the_adapter_come_first(own: Path) -> None:
    (own / "chat_template.jinja").write_text(TEMPLATE)
    (own / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 33]}))
    lm = geode.load(own, on="native")
    assert lm.template is not None and lm.own_template
    assert lm.template.render([{"role": "user", "content": "Hi"}]) == "<user>Hi"
    assert lm.ends == {2, 33}
    bare = own.parent / "base"
    (bare / "chat_template.jinja").unlink()
    assert geode.load(own, on="native").own_template
    tiny.add_words(own, dataclasses.replace(tiny.scored(), roles=dataclasses.replace(tiny.ROLES, adds_bos=False)))
    (own / "chat_template.jinja").write_text(TEMPLATE)
    again = geode.load(own, on="native")
    assert geode.load(bare, on="native").tokenize("the")[0] == 1 != again.tokenize("the")[0]


@pytest.mark.parametrize("to", ["out.gguf", "out"])
def test_words_beside_the_adapter_are_converted(own: Path, to: str) -> None:
    (own / "chat_template.jinja").write_text(TEMPLATE)
    (own / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 33]}))
    conversion.convert(own, own.parent / to, check=extension.is_there(), quiet=True)
    found = checkpoint.open(own.parent / to)
    assert found.template == TEMPLATE
    assert found.tokenizer is not None
    assert found.ends | found.tokenizer.ends == {2, 33}


# ------------------------------------------------------------------------------------------------------ the base model


def test_the_base_lies_beside_the_adapter_or_here(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert adapters.base_of(own) == own / "../base"
    edit(own, base_model_name_or_path="base")
    monkeypatch.chdir(own.parent)
    assert adapters.base_of(own) == Path("base")
    shutil.copytree("base", own / "base")
    assert adapters.base_of(own) == own / "base"
    edit(own, base_model_name_or_path=str(own.parent / "base"))
    assert adapters.base_of(own) == own.parent / "base"


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"base_model_name_or_path": "gemma3:270m"}, "gemma3:270m"),
        ({"base_model_name_or_path": "owner/repo"}, "hf:owner/repo"),
        ({"base_model_name_or_path": "owner/repo", "revision": "a/b"}, "hf:owner/repo@a%2Fb"),
        ({"base_model_name_or_path": "hf:owner/repo"}, "hf:owner/repo"),
    ],
)
def test_the_base_is_pulled(
    options: dict[str, Any], asked: str, own: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled: list[str] = []
    monkeypatch.setattr(hub, "pull", lambda name: pulled.append(name) or made / "base")
    opened = checkpoint.open(edit(own, **options))
    assert pulled == [asked]
    assert opened.path == made / "base"
    with pytest.raises(ModelNotFound, match=rf"was made for {asked}, which is not on this machine: `geode pull"):
        adapters.open(own)
    assert pulled == [asked]


def test_a_base_that_cannot_be_had(own: Path) -> None:
    for name in ("nowhere", "../nowhere"):
        with pytest.raises(ModelNotFound, match=rf"was made for {name}\. .*--adapter"):
            checkpoint.open(edit(own, base_model_name_or_path=name))
    for name in (None, "", 7):
        with pytest.raises(ModelNotFound, match="does not name the model"):
            checkpoint.open(edit(own, base_model_name_or_path=name))


def remember(own: Path, **changed: Any) -> Path:
    """A manifest as tuning writes it."""
    file = own.parent / "base" / "model.safetensors"
    files = [{"name": file.name, "size": file.stat().st_size, "sha256": "0" * 64} | changed]
    files.append({"name": "config.json", "size": 1, "sha256": "1" * 64})  # tools write it anew
    manifest.write(own, {"base": {"name": "base", "files": files}})
    return own


def test_another_base_than_the_adapters_own(own: Path) -> None:
    base = own.parent / "base"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.open(remember(own))
        checkpoint.open(base, own)
        checkpoint.open(base, remember(own, name="other.safetensors", size=1))
    remember(own, size=12345)
    with pytest.raises(ConfigError, match=r"another model.safetensors: that one had 12,345 bytes.* has changed since"):
        checkpoint.open(own)
    with pytest.warns(UserWarning, match="12,345 bytes"):
        checkpoint.open(base, own)


def test_digests_of_a_pull_tell_another_base(own: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = own.parent / "ready"
    shutil.copytree(made / "base", ready)
    store.record("hf:o/r", "here", "", None, ready)
    pulled = store.install("hf:o/r", ready)
    edit(own, base_model_name_or_path="o/r")
    with pytest.raises(ConfigError, match="sha256 began with 000000000000"):
        checkpoint.open(remember(own))
    digest = next(file.sha256 for file in pulled.files if file.name == "model.safetensors")
    assert checkpoint.open(remember(own, sha256=digest)).path == pulled.path


@pytest.mark.parametrize("names", [["lora.gguf"], ["merged", "base"], ["packed.gguf", "nothing"]])
def test_wrong_models_and_adapters(names: list[str], made: Path) -> None:
    told = {"lora.gguf": "does not tell its base model", "merged": "is no adapter", "packed.gguf": "Known names"}
    with pytest.raises((OptionError, ModelNotFound), match=told[names[0]]):
        geode.load(made / names[0], adapter=made / names[1] if names[1:] else None)


def test_an_adapter_for_another_network(made: Path, tmp_path: Path) -> None:
    config = CONFIG.replace(depth=1)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in tensors.shapes(config).items()}
    safetensors.write(tmp_path / "model.safetensors", hf_dialect.write(from_arrays(arrays), config, LLAMA))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA.config_to_hf(config)))
    with pytest.raises(TensorError, match="the base model that the adapter was trained on"):
        checkpoint.open(tmp_path, made / "lora")


# ------------------------------------------------------------------------------------------------------------ the verbs


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


@native
def test_every_verb_takes_an_adapter(made: Path, tmp_path: Path, capsys: Any) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat and the dog " * 40)
    lora = made / "lora"
    said = []
    for words in (
        ["run", lora, "the", "--max-tokens", "3", "--quiet", "--raw", "--temperature", "0"],
        ["run", made / "base", "the", "--adapter", lora, "--max-tokens", "3", "--quiet", "--raw"],
        ["info", lora],
        ["verify", lora, made / "merged"],
        ["perplexity", lora, text, "--context", "32", "--chunks", "1"],
        ["bench", lora, "--prompt", "4", "--generate", "2", "--repeat", "1"],
    ):
        assert run(*words) == 0, (words, capsys.readouterr())
        said.append(capsys.readouterr().out)
    assert "an adapter of rank 4 on 3 matrices" in said[2]
    assert "The same model" in said[3]


def test_info_does_not_fetch(own: Path, capsys: Any) -> None:
    assert run("info", edit(own, base_model_name_or_path="gemma3:270m")) == 0
    assert "is an adapter for gemma3:270m, which is not here yet. `geode pull gemma3:270m`" in capsys.readouterr().out
    assert run("info", own, "--json") == 0
    assert json.loads(capsys.readouterr().out)["adapter"] == {"base": "gemma3:270m"}


def test_an_adapter_is_converted_merged_or_as_it_is(made: Path, tmp_path: Path, capsys: Any) -> None:
    quick = ["--quiet", "--no-verify"]
    lora, wanted = made / "lora", checkpoint.open(made / "merged").tensors
    assert run("convert", lora, tmp_path / "out.gguf", *quick) == 0
    assert run("convert", made / "lora.gguf", tmp_path / "out", "--base", made / "base", *quick) == 0
    for name in ("out.gguf", "out"):
        found = checkpoint.open(tmp_path / name).tensors
        for key in (Q, DOWN, K):
            np.testing.assert_allclose(np.asarray(found[key]), np.asarray(wanted[key]), atol=1e-5)
    source = (manifest.read(tmp_path / "out.gguf") or {})["source"]
    assert {"adapter_model.safetensors", "model.safetensors"} <= {file["name"] for file in source["files"]}
    assert run("convert", lora, tmp_path / "low.gguf", "--quant", "q4_0", *quick) == 0
    assert checkpoint.open(tmp_path / "low.gguf").tensors.entries[Q].type == "Q4_0"
    assert run("convert", lora, tmp_path / "lora.gguf", "--to", "lora", *quick) == 0
    assert run("convert", tmp_path / "lora.gguf", tmp_path / "peft", "--to", "peft", "--base", made / "base") == 0
    assert adapters.open(tmp_path / "peft").pairs.keys() == {Q, DOWN, K}
    capsys.readouterr()
    assert run("convert", made / "base", tmp_path / "x", "--to", "peft") == 2
    assert "and " in capsys.readouterr().err
    assert run("convert", made / "lora.gguf", tmp_path / "x.gguf") == 2
    assert "does not tell its base model" in capsys.readouterr().err


def test_packed_bases_are_converted_as_they_are_loaded(made: Path, own: Path) -> None:
    edit(own, base_model_name_or_path=str(made / "packed.gguf"))
    conversion.convert(own, own.parent / "a.gguf", check=False, quiet=True)
    conversion.convert(own, own.parent / "b.gguf", quant="q4_0", check=False, quiet=True)
    found, again = (checkpoint.open(own.parent / name).tensors.entries for name in ("a.gguf", "b.gguf"))
    assert [found[name].type for name in (Q, "blk.0.attn_q.weight")] == ["Q8_0", "Q4_0"]
    assert again[Q].type == "Q4_0"


def test_an_adapter_is_not_replaced_by_itself(own: Path) -> None:
    with pytest.raises(OptionError, match="is the source itself"):
        conversion.convert(own, own, "hf", force=True, check=False, quiet=True)
    assert (own / "adapter_model.safetensors").is_file()


# -------------------------------------------------------------------------------------------------------- the assistant


@pytest.fixture
def assistant(made: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter that came with Geode, for a model that was pulled."""
    ready = own.parent / "ready"
    shutil.copytree(made / "base", ready)
    store.record("gemma3:270m", "here", "", catalogue.GEMMA_TERMS, ready)
    store.install("gemma3:270m", ready)
    house = own.parent / "house"
    shutil.copytree(edit(own, base_model_name_or_path="gemma3:270m"), house / "assistant")
    (house / "assistant" / "chat_template.jinja").write_text(TEMPLATE)
    monkeypatch.setattr(hub, "HOUSE", house)
    return house / "assistant"


@native
def test_the_assistant_is_a_name(assistant: Path, made: Path, capsys: Any) -> None:
    for name in ("assistant", "Assistant", "gemma3:270m-assistant"):
        assert hub.resolve(name) == hub.find(name) == hub.pull(name) == assistant
    lm = geode.load("assistant", on="native")
    assert lm.own_template
    np.testing.assert_allclose(lm.logits(IDS), logits(made / "merged"), atol=1e-5)
    np.testing.assert_allclose(
        geode.load("gemma3:270m", on="native", adapter="assistant").logits(IDS), lm.logits(IDS), atol=1e-6
    )
    assert run("list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["assistant"]["path"] == str(assistant) and rows["assistant"]["type"] == "adapter of gemma3:270m"
    assert run("info", "assistant") == 0
    assert "Gemma Terms of Use" in capsys.readouterr().out
    assert run("remove", "assistant") == 2
    assert "came with Geode itself" in capsys.readouterr().err
    assert assistant.is_dir()


def test_pulling_the_assistant_brings_its_base(assistant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.remove("gemma3:270m")
    brought: list[str] = []
    monkeypatch.setattr(hub, "_pull", lambda source, quiet: brought.append(source.name))
    with pytest.raises(AttributeError):  # of what the pull brought here, which is nothing
        hub.pull("assistant", quiet=True)
    assert brought == ["gemma3:270m"]


@native
def test_chat_without_a_model_is_the_assistants(
    assistant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import io

    (tmp_path / "assistant").write_text("not meant")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\n"))
    assert run("chat", "--max-tokens", "3", "--temperature", "0", "--on", "native") == 0
    told = capsys.readouterr()
    assert told.out.strip() and "no chat template" not in told.err


def test_without_the_files_there_is_no_such_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(hub, "HOUSE", tmp_path)
    with pytest.raises(ModelNotFound, match="neither a file") as problem:
        hub.resolve("assistant")
    assert "assistant," not in str(problem.value)
    assert run("chat") == 2
    assert "geode chat smollm2" in capsys.readouterr().err
    assert run("list", "--all") == 0
    assert "assistant" not in capsys.readouterr().out


def test_every_packaged_adapter_has_a_base_in_the_catalogue() -> None:
    names = {name for item in catalogue.CATALOGUE for name in (item.name, *item.aliases)}
    own = {name for row in catalogue.PACKAGED for name in (row.name, *row.aliases)}
    assert {row.base for row in catalogue.PACKAGED} <= {item.name for item in catalogue.CATALOGUE}
    assert not own & names and all(name == name.lower() for name in own)
