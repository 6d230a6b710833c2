"""Adapters per text in one batch: logits are those of merged weights, and other texts' do not move by a bit."""

from __future__ import annotations

import dataclasses
import gc
import json
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_networks import BLOCKY, WINDOWS, network, text

import geode
from geode import adapters, checkpoint, families, tensors
from geode.adapters import Adapter, Pair
from geode.checkpoint import Checkpoint
from geode.config import Config
from geode.dialects import hf as hf_dialect
from geode.engine.adapters import Adapters, Loaded
from geode.errors import CapacityError, GeodeError, ModelNotFound, OptionError, TensorError
from geode.io import safetensors
from geode.native import executor as native
from geode.native import extension
from geode.sampling import Candidates, Need
from geode.tensors import Tensors, from_arrays

pytestmark = pytest.mark.skipif(not extension.is_there(), reason="the native engine was not built")

LLAMA, FALCON = families.by_name("llama"), families.by_name("falcon")
PLAIN = Config(96, 48, 3, 4, 2, 16, 80, 512, norm=LLAMA.constants["norm"])
SHARED = PLAIN.replace(block="parallel_shared", activation="gelu", gated=False, norm=FALCON.constants["norm"])
CONFIGS = {
    "pre": PLAIN,
    "sandwich, windows": WINDOWS,
    "post, norms of whole rows": PLAIN.replace(block="post", qk_norm="whole"),
    "parallel, biases": PLAIN.replace(block="parallel", qkv_bias=True, out_bias=True, ffn_bias=True),
    "one norm for both, tied": SHARED.replace(tied=True),
    "scaled embeddings, soft caps": PLAIN.replace(
        scale_embedding=True, final_softcap=20.0, attn_softcap=30.0, tied=True
    ),
}
LINEARS = "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split()
LENGTHS = (70, 9, 45, 1, 130, 30)
WHO = (0, None, 1, 0, 2, None)  # the adapter of each text


def pairs(config: Config, seed: int, rank: int, stems: Sequence[str] = LINEARS, ends: bool = True) -> dict[str, Pair]:
    """On some matrices of every other layer, and on embeddings and head."""
    rng, shapes = np.random.default_rng(seed), tensors.shapes(config.replace(tied=False))
    names = [f"blk.{i}.{stem}.weight" for i in range(seed % 2, config.depth, 2) for stem in stems]
    names += ["token_embd.weight", "output.weight"] * ends
    return {name: pair(rng, *shapes[name], rank) for name in names if name in shapes}


def pair(rng: np.random.Generator, out: int, width: int, rank: int, scale: float = 0.7) -> Pair:
    a = rng.standard_normal((rank, width)) / np.sqrt(width)
    return Pair(a.astype(np.float32), (0.5 * rng.standard_normal((out, rank))).astype(np.float32), scale)


def merged(config: Config, stored: Tensors, changes: dict[str, Pair]) -> native.Executor:
    """A network of the weights W + scale · B · A; a tied head comes off the embeddings."""
    arrays = {name: np.asarray(stored[name]) for name in stored}
    if config.tied:
        arrays["output.weight"] = arrays["token_embd.weight"]
    for name, one in changes.items():
        arrays[name] = arrays[name] + np.float32(one.scale) * (one.b @ one.a)
    return native.open(config.replace(tied=False), from_arrays(arrays), threads=1, quiet=True)


def together(
    executor: native.Executor, ids: Sequence[list[int]], who: Sequence[Any], seed: int = 3
) -> list[list[np.ndarray]]:
    """Feeds texts together, each in pieces of its own random sizes: for each the logits after every piece."""
    state = executor._begin([len(one) for one in ids], 0)
    found: list[list[np.ndarray]] = [[] for _ in ids]
    rng = np.random.default_rng(seed)
    while rest := [i for i, one in enumerate(ids) if state.texts[i].length < len(one)]:
        parts = [
            native.Part(state.texts[i], ids[i][state.texts[i].length :][: int(rng.choice([1, 5, 33]))], adapter=who[i])
            for i in rest
        ]
        logits = executor.needed(executor._forward(state, parts), None, [part.adapter for part in parts])
        for i, row in zip(rest, np.asarray(logits), strict=True):
            found[i].append(row)
    return found


# --------------------------------------------------------------------------------------------------------- the mathematics


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("threads", [1, 3])
def test_logits_are_those_of_merged_weights(name: str, threads: int) -> None:
    config = CONFIGS[name]
    stored = network(config)
    executor = native.open(config, stored, threads=threads, quiet=True)
    changes = [pairs(config, 0, 3), pairs(config, 1, 16), pairs(config, 2, 21, ["attn_v", "ffn_down"], ends=False)]
    loaded = [executor.adapter(one) for one in changes]
    ids = [text(length, seed=i) for i, length in enumerate(LENGTHS)]
    found = together(executor, ids, [None if i is None else loaded[i] for i in WHO])
    alone = [np.concatenate(list(executor.rows(one))) for one in ids]
    for one, number, rows, plain in zip(ids, WHO, found, alone, strict=True):
        wanted = plain
        if number is not None:
            whole = merged(config, stored, changes[number])
            wanted = np.concatenate(list(whole.rows(one)))
            assert np.abs(wanted - plain).max() > 0.1
        np.testing.assert_allclose(rows[-1], wanted[-1], atol=1e-4, rtol=0)
        for row in rows:  # each is the result after some prefix
            assert np.abs(wanted - row).max(axis=1).min() <= (0 if number is None else 1e-4)


@pytest.mark.parametrize("isa", extension.module().isas() if extension.is_there() else [])
@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_K"])
def test_a_row_does_not_depend_on_the_others(isa: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every instruction set, packed weights too: a text among others has the bits that it has alone."""
    monkeypatch.setenv("GEODE_ISA", isa)
    config = BLOCKY.replace(depth=2)
    executor = native.open(config, network(config, kind), threads=2, quiet=True)
    loaded = [executor.adapter(pairs(config, 0, 4)), executor.adapter(pairs(config, 1, 16))]
    ids = [text(length, seed=i) for i, length in enumerate((40, 3, 25, 40, 9))]
    who = [loaded[0], None, loaded[1], loaded[0], None]
    found = together(executor, ids, who)
    for one, adapter, rows in zip(ids, who, found, strict=True):
        (mine,) = together(executor, [one], [adapter], seed=4)
        np.testing.assert_array_equal(mine[-1], rows[-1])


def test_the_head_reads_all_where_an_adapter_changes_it() -> None:
    """Screened heads find few logits of most rows; those of changed rows are computed whole, with the change."""
    config = BLOCKY.replace(tied=True)
    executor = native.open(config, network(config, "Q8_0"), threads=2, quiet=True)
    assert executor.model.screens
    change = pairs(config, 0, 5)
    head, body = executor.adapter(change), executor.adapter(pairs(config, 1, 5, ends=False))
    hidden = next(iter(executor.hidden(text(20))))[:3]
    need = Need(3, np.inf, np.empty(0, np.int32), config.vocab)
    first, second, third = executor.needed(hidden, [need, need, need], [head, body, None])
    one, plain = change["output.weight"], executor._logits(hidden)
    assert isinstance(second, Candidates) and isinstance(third, Candidates)
    np.testing.assert_allclose(first, plain[0] + one.scale * (one.b @ (one.a @ hidden[0])), atol=1e-4)
    targets = [5, 6, 7]
    logprobs, _ = executor.judge(hidden, targets, None, [head, body, None])
    np.testing.assert_allclose(logprobs[0], first[5] - np.logaddexp.reduce(np.float64(first)), atol=1e-4)
    assert logprobs[1:] == executor.judge(hidden, targets)[0][1:]


def test_halves_hold_pairs_of_any_size() -> None:
    """Beside packed weights pairs have 16 bits; what is too small or too large for halves is none the worse for it."""
    config = BLOCKY.replace(depth=2)
    executor = native.open(config, network(config, "Q8_0"), threads=1, quiet=True)
    change = pairs(config, 0, 5, ends=False)
    far = {n: Pair(p.a * np.float32(2**-40), p.b * np.float32(2**30), p.scale * 2.0**10) for n, p in change.items()}
    found = [together(executor, [text(20)], [executor.adapter(one)])[0][-1] for one in (change, far)]
    np.testing.assert_array_equal(*found)
    wide = native.open(config, network(config, "Q8_0"), dtype="float32", threads=1, quiet=True)
    assert executor.adapter(change).nbytes * 2 == wide.adapter(change).nbytes
    (near,) = (rows[-1] for rows in together(wide, [text(20)], [wide.adapter(change)]))
    plain = [together(one, [text(20)], [None])[0][-1] for one in (executor, wide)]
    assert np.abs(found[0] - near).max() < 2 * np.abs(plain[0] - plain[1]).max()


def test_hidden_states_of_a_text_go_through_its_adapter() -> None:
    executor = native.open(PLAIN, network(PLAIN), threads=1, quiet=True)
    change, ids = pairs(PLAIN, 0, 4, ends=False), text(600)
    through = np.concatenate(list(executor.hidden(ids, 5, executor.adapter(change))))
    assert through.shape == (595, PLAIN.width) and through.dtype == np.float32
    whole = merged(PLAIN, network(PLAIN), change)
    np.testing.assert_allclose(through, np.concatenate(list(whole.hidden(ids, 5))), atol=1e-4)


def test_wrong_adapters_are_told_and_touch_nothing() -> None:
    executor = native.open(PLAIN, network(PLAIN), threads=1, quiet=True)
    other = native.open(PLAIN, network(PLAIN, seed=1), threads=1, quiet=True)
    strange = other.adapter(pairs(PLAIN, 0, 2))
    with pytest.raises(ValueError, match="another model"):
        executor.needed(np.zeros((1, PLAIN.width), np.float32), None, [strange])
    with pytest.raises(ValueError, match="another model"):
        list(executor.hidden([1, 2], 0, strange))
    with pytest.raises(ValueError, match="one adapter"):
        executor.judge(np.zeros((2, PLAIN.width), np.float32), [1, 1], None, [executor.adapter(pairs(PLAIN, 0, 2))])
    rng = np.random.default_rng(0)
    for name, shape in {
        "blk.0.attn_q.weight": (64, 47),
        "blk.9.attn_q.weight": (64, 48),
        "blk.0.ffn_norm.weight": (48, 1),
    }.items():
        with pytest.raises(OptionError, match="does not fit"):
            executor.adapter({name: pair(rng, *shape, 2)})


# --------------------------------------------------------------------------------------------------------- files and names


def save(folder: Path, config: Config = PLAIN, family: families.Family = LLAMA) -> Checkpoint:
    arrays = hf_dialect.write(network(config), config, family)
    folder.mkdir()
    safetensors.write(folder, arrays)
    (folder / "config.json").write_text(json.dumps(family.config_to_hf(config)))
    return checkpoint.open(folder)


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return save(tmp_path / "base")


def given(base: Checkpoint, seed: int = 0, **changed: Any) -> Adapter:
    change = pairs(base.config, seed, 4, ends=False)
    return dataclasses.replace(Adapter(base.family, base.config, change, from_arrays({}), str(base.path)), **changed)


def loader(base: Checkpoint, **options: Any) -> Adapters:
    return Adapters(native.open(base.config, base.tensors, threads=1, quiet=True), base, **options)


def logits(executor: native.Executor, loaded: Loaded | None, ids: list[int]) -> np.ndarray:
    return together(executor, [ids], [loaded and loaded.native])[0][-1]


@pytest.mark.parametrize("file", ["lora", "lora.gguf"])
def test_files_give_what_load_gives(base: Checkpoint, tmp_path: Path, file: str) -> None:
    adapters.write(given(base), tmp_path / file)
    there = loader(base)
    loaded = there.load("mine", tmp_path / file)
    ids, whole = text(30), geode.load(base.path, adapter=tmp_path / file, on="native", threads=1, dtype="float32")
    wanted = next(iter(whole.executor.rows(ids, 29)))[0]
    np.testing.assert_allclose(logits(there._executor, loaded, ids), wanted, atol=1e-4)
    assert np.abs(wanted - logits(there._executor, None, ids)).max() > 0.1
    assert (loaded.name, loaded.rank, there.names()) == ("mine", 4, ["mine"])


def test_fused_matrices_and_rslora(tmp_path: Path) -> None:
    """query_key_value of a file is three matrices here; the scale is alpha / √rank."""
    base = save(tmp_path / "base", SHARED.replace(tied=True, head_dim=12, ffn=4 * SHARED.width), FALCON)
    rng = np.random.default_rng(1)
    shapes = tensors.shapes(base.config)
    change = {f"blk.1.attn_{part}.weight": pair(rng, *shapes[f"blk.1.attn_{part}.weight"], 4) for part in "qkv"}
    adapters.write_peft(given(base, pairs=change), tmp_path / "lora")
    options = tmp_path / "lora" / "adapter_config.json"
    options.write_text(json.dumps(json.loads(options.read_text()) | {"use_rslora": True}))
    there = loader(base)
    loaded = there.load("fused", tmp_path / "lora")
    ids, whole = text(30), geode.load(base.path, adapter=tmp_path / "lora", on="native", threads=1, dtype="float32")
    wanted = next(iter(whole.executor.rows(ids, 29)))[0]
    np.testing.assert_allclose(logits(there._executor, loaded, ids), wanted, atol=1e-4)
    assert np.abs(wanted - logits(there._executor, None, ids)).max() > 0.1


def test_who_holds_an_adapter_keeps_it(base: Checkpoint, tmp_path: Path) -> None:
    """Unloading frees the name at once, and the memory with the last request."""
    adapters.write(given(base), tmp_path / "one")
    adapters.write(given(base, seed=2), tmp_path / "two")
    there = loader(base)
    held = there.load("style", tmp_path / "one")
    before, memory = logits(there._executor, held, text(9)), weakref.ref(held.native)
    there.unload("style")
    assert there.names() == []
    with pytest.raises(ModelNotFound, match="no adapter 'style'"):
        there.get("style")
    other = there.load("style", tmp_path / "two")
    assert there.get("style") is other and other.key != held.key
    np.testing.assert_array_equal(logits(there._executor, held, text(9)), before)
    assert np.abs(logits(there._executor, other, text(9)) - before).max() > 0.01
    del held
    gc.collect()
    assert memory() is None


def test_keys_tell_contents_apart(base: Checkpoint, tmp_path: Path) -> None:
    adapters.write(given(base), tmp_path / "one")
    strong = {name: dataclasses.replace(one, scale=2 * one.scale) for name, one in given(base).pairs.items()}
    adapters.write(given(base, pairs=strong), tmp_path / "strong")
    there = loader(base)
    keys = [there.load(name, tmp_path / folder).key for name, folder in (("a", "one"), ("b", "one"), ("c", "strong"))]
    assert keys[0] == keys[1] != keys[2]
    assert there.names() == ["a", "b", "c"]


def test_what_cannot_stand_beside_others_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    one = given(base).pairs[name]
    norm = from_arrays({"output_norm.weight": np.ones(base.config.width, np.float32)})
    broken = dataclasses.replace(one, b=np.full_like(one.b, np.nan))
    cases: dict[str, tuple[Adapter, type[GeodeError]]] = {
        "magnitudes": (
            given(base, pairs={name: dataclasses.replace(one, magnitude=np.ones(64, np.float32))}),
            OptionError,
        ),
        "whole": (given(base, replaced=norm), OptionError),
        "head of a reward model": (given(base, score=np.ones((1, 48), np.float32)), OptionError),
        "changes nothing": (given(base, pairs={}), OptionError),
        "rank 4": (given(base), OptionError),
        "not finite": (given(base, pairs={name: broken}), TensorError),
    }
    for message, (adapter, kind) in cases.items():
        adapters.write_peft(adapter, tmp_path / message)
        there = loader(base, most_rank=3 if message == "rank 4" else None)
        with pytest.raises(kind, match=message):
            there.load("it", tmp_path / message)
        assert there.names() == []
    adapters.write_peft(given(base), tmp_path / "good")
    there = loader(base)
    with pytest.raises(OptionError, match="needs a name"):
        there.load(" ", tmp_path / "good")
    with pytest.raises(ModelNotFound):
        there.load("it", tmp_path / "none")
    there.load("it", tmp_path / "good")
    with pytest.raises(OptionError, match="loaded already"):
        there.load("it", tmp_path / "good")
    with pytest.raises(ModelNotFound, match="Loaded are: it"):
        there.unload("that")


def test_an_adapter_of_another_network_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    """Without the checkpoint an adapter names its own base, which must be of the running network's sizes."""
    other = save(tmp_path / "other", PLAIN.replace(ffn=96))
    adapters.write_peft(given(other), tmp_path / "lora")
    there = Adapters(native.open(base.config, base.tensors, threads=1, quiet=True))
    with pytest.raises(TensorError, match="other sizes"):
        there.load("it", tmp_path / "lora")
    adapters.write_peft(given(base), tmp_path / "fits")
    assert there.load("it", tmp_path / "fits").rank == 4
    adapters.write_gguf(given(base), tmp_path / "it.gguf")
    with pytest.raises(OptionError, match="does not tell its base"):
        there.load("file", tmp_path / "it.gguf")


def test_no_memory_no_adapter(base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters.write_peft(given(base), tmp_path / "lora")
    there = loader(base)
    monkeypatch.setattr("geode.engine.adapters.available", lambda: 100)
    with pytest.raises(CapacityError, match="Unload another"):
        there.load("it", tmp_path / "lora")
    assert there.names() == []


def test_many_threads_ask_for_one_name(base: Checkpoint, tmp_path: Path) -> None:
    """One loads it, the others are told that it is taken; nobody waits for the reading of files."""
    adapters.write_peft(given(base), tmp_path / "lora")
    there, outcomes = loader(base), []

    def ask() -> None:
        try:
            outcomes.append(there.load("it", tmp_path / "lora"))
        except OptionError as problem:
            outcomes.append(problem)

    asking = [threading.Thread(target=ask) for _ in range(6)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    assert sum(isinstance(one, Loaded) for one in outcomes) == 1 and len(outcomes) == 6
    assert there.names() == ["it"]
