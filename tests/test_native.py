"""The native engine as an executor: the same bits however work is cut, every weight and cache type, bad input.

Kernels have tests of their own, and so has the screened head; transformers is the judge in test_parity.py.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import worker
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import (
    BLOCKY,
    KINDS,
    SMALL,
    WINDOWS,
    arrays,
    network,
    packed_row,
    text,
    widened,
    write_gguf,
    write_hf,
)

import geode
from geode.config import Attn, Config
from geode.errors import (
    BackendError,
    CapacityError,
    ContextError,
    GeodeError,
    MissingExtra,
    OptionError,
    TensorError,
)
from geode.lm import Local
from geode.mixes import plan
from geode.native import executor as native
from geode.native import extension, weights
from geode.native.pages import PAGE, Group, Pages, Text, groups, table
from geode.quant import DTYPES, quantize, to_float32
from geode.sampling import log_softmax
from geode.tensors import Entry, Tensors, from_arrays, shapes

if not extension.is_there():
    pytest.skip("the native engine was not built: pip install -e .", allow_module_level=True)

ISAS = extension.module().isas()
KV_TYPES = ("float32", "float16", "bfloat16", "q8_0")


def engine(tensors: Tensors, config: Config = WINDOWS, isa: str | None = None, **options: Any) -> native.Executor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEODE_ISA", isa or "")
        return native.open(config, tensors, **options)


def logits(executor: native.Executor, ids: Sequence[int]) -> np.ndarray:
    return np.concatenate(list(executor.rows(ids)))


def same(found: np.ndarray, expected: np.ndarray, executor: native.Executor) -> None:
    """The same bits; AMX alone may sum a batch in another order than a single row (docs/native.md)."""
    if executor.facts()["isa"] == "amx":
        np.testing.assert_allclose(found, expected, atol=0.5 * float(expected.std()))
    else:
        np.testing.assert_array_equal(found, expected)


def divergence(expected: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Share of equal likeliest tokens, and the mean KL divergence from `expected` in nats."""
    p, q = log_softmax(expected.astype(np.float64)), log_softmax(found.astype(np.float64))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    return float((p.argmax(axis=1) == q.argmax(axis=1)).mean()), float(kl.mean())


# The same bits


TEXTS = [text(length) for length in (530, 3, 130, 64, 65, 1)]


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_work_may_be_cut_in_any_way(isa: str, kv_type: str) -> None:
    """Chunks, pages, windows, batches of unequal length, prompts mixed with single tokens: all as the text alone."""
    executor = engine(network(WINDOWS), isa=isa, kv_type=kv_type, threads=2)
    full = [logits(executor, ids) for ids in TEXTS]
    _, last = executor.prefill(TEXTS, room=0)
    same(np.asarray(last), np.stack([rows[-1] for rows in full]), executor)
    for number, at, rows in token_by_token(executor, {0: 440, 2: 1}, steps=80):
        same(rows, full[number][at], executor)
    for number, at, rows in mixed(executor, (0, 2, 4)):
        same(rows, full[number][at], executor)


def token_by_token(
    executor: native.Executor, starts: dict[int, int], steps: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Prefills the beginnings of some texts together and feeds the rest: number of the text, position, logits."""
    state, rows = executor.prefill([TEXTS[number][:at] for number, at in starts.items()], room=steps)
    for step in range(steps):
        state, rows = executor.step(state, [TEXTS[number][at + step] for number, at in starts.items()])
        yield from ((number, at + step, np.asarray(rows)[i]) for i, (number, at) in enumerate(starts.items()))


def mixed(executor: native.Executor, numbers: Sequence[int]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Feeds the texts together, each in pieces of its own random sizes: number of the text, position, logits."""
    state = executor._begin([len(TEXTS[number]) for number in numbers], 0)
    texts = dict(zip(numbers, state.texts, strict=True))
    rng = np.random.default_rng(3)
    while rest := [number for number in numbers if texts[number].length < len(TEXTS[number])]:
        sizes = {number: int(rng.choice([1, 2, 7, 33, 130])) for number in rest}
        parts = [native.Part(texts[n], TEXTS[n][texts[n].length : texts[n].length + size]) for n, size in sizes.items()]
        hidden = executor._forward(state, parts)
        yield from ((n, texts[n].length - 1, executor._logits(hidden[i : i + 1])[0]) for i, n in enumerate(sizes))


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_K"])
def test_threads_do_not_change_a_bit(kind: str) -> None:
    found = []
    for threads in (1, 2, 3, 5):
        executor = engine(network(BLOCKY, kind), BLOCKY, threads=threads)
        assert executor.facts()["threads"] == threads
        state, first = executor.prefill([text(90), text(7)], room=3)
        _, second = executor.step(state, [4, 5])
        found.append([logits(executor, text(90)), np.asarray(first), np.asarray(second)])
    for others in found[1:]:
        for mine, theirs in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_answers_alike_alone_and_in_a_batch(kind: str) -> None:
    for isa in ISAS:
        executor = engine(network(BLOCKY, kind), BLOCKY, isa)
        full = logits(executor, text(40))
        state, rows = executor.prefill([text(40)[:20], text(33)], room=5)
        same(np.asarray(rows)[0], full[19], executor)
        for i in range(20, 24):
            state, rows = executor.step(state, [text(40)[i], 5])
            same(np.asarray(rows)[0], full[i], executor)


def test_a_row_whose_context_is_full_does_not_stop_the_others() -> None:
    executor = engine(network(WINDOWS))
    full = logits(executor, TEXTS[2][:20])
    state, _ = executor.prefill([text(WINDOWS.context - 1), TEXTS[2][:10]], room=10)
    for i in range(10, 20):
        state, rows = executor.step(state, [5, TEXTS[2][i]])
        same(np.asarray(rows)[1], full[i], executor)


def test_two_engines_share_a_process() -> None:
    one, two = engine(network(WINDOWS), threads=2), engine(network(BLOCKY, "Q4_0"), BLOCKY, threads=3)
    alone = logits(one, text(100)), logits(two, text(100))
    first, second = one.rows(text(100)), two.rows(text(100))
    np.testing.assert_array_equal(next(second), alone[1])
    np.testing.assert_array_equal(next(first), alone[0])


def test_threads_of_python_may_ask_one_engine_at_once() -> None:
    model = Local(engine(network(WINDOWS), threads=2))
    prompts = [text(length) for length in (200, 3, 77, 150)]
    alone = [model.generate(prompt, max_tokens=20, seed=1).tokens for prompt in prompts]
    found: list[list[int]] = [[] for _ in prompts]

    def ask(i: int) -> None:
        found[i] = model.generate(prompts[i], max_tokens=20, seed=1).tokens

    askers = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert found == alone


# Weights and caches in few bits


@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_are_the_numbers_they_stand_for(kind: str) -> None:
    """Against the same numbers in float32: what remains is the rounding of activations to 8 bits, or to bfloat16."""
    tensors = network(BLOCKY, kind)
    exact = logits(engine(widened(tensors), BLOCKY), text(100))
    agreement, kl = divergence(exact, logits(engine(tensors, BLOCKY, kv_type="float32"), text(100)))
    if kind in ("F32", "F16"):
        assert (agreement, kl) == (1, pytest.approx(0, abs=1e-9))
    assert agreement >= 0.85
    assert kl < 0.03


@pytest.mark.parametrize(("kv_type", "most"), [("float16", 1e-4), ("bfloat16", 5e-3), ("q8_0", 5e-3)])
def test_narrow_caches_stay_near_the_wide_one(kv_type: str, most: float) -> None:
    tensors = network(WINDOWS)
    exact = logits(engine(tensors, kv_type="float32"), TEXTS[0])
    agreement, kl = divergence(exact, logits(engine(tensors, kv_type=kv_type), TEXTS[0]))
    assert 0 < kl < most
    assert agreement > 0.9


@pytest.mark.parametrize(("asked", "kind"), [("f32", "F32"), ("bf16", "BF16"), ("f16", "F16"), ("q8_0", "Q8_0")])
def test_caches_go_by_both_names(asked: str, kind: str) -> None:
    assert engine(network(WINDOWS), kv_type=asked).kv_type == kind


def test_the_cache_is_as_wide_as_most_weights() -> None:
    assert engine(network(BLOCKY), BLOCKY).kv_type == "F32"
    assert engine(network(BLOCKY, "Q4_0"), BLOCKY).kv_type == ("BF16" if ISAS[0] in ("avx512", "amx") else "F16")
    assert engine(network(BLOCKY, "Q4_0"), BLOCKY, ISAS[-1]).kv_type == ("F16" if ISAS[-1] != "avx512" else "BF16")
    assert engine(network(BLOCKY, "Q4_0"), BLOCKY, dtype="float32").kv_type == "F32"


@pytest.mark.parametrize("mix", ["q8_0", "q4_0", "q4_k_m"])
def test_quantising_at_load_packs_as_quant_does(mix: str, tmp_path: Path) -> None:
    config = SMALL.replace(width=256, ffn=512)
    path = write_hf(tmp_path, "BF16", config)
    model = geode.load(path, on="native", quantize=mix)
    stored = network(config, "BF16")
    kinds = plan(config, mix)
    packed = from_arrays(
        {n: quantize(to_float32(a), kinds[n]) if weights.is_matrix(n) else a for n, a in stored.items()}
    )
    for name in filter(weights.is_matrix, packed):
        row = packed_row(packed, name, 5)
        assert bytes(model.executor.model.unpack(name, 5, len(row))) == row, name
    expected = logits(native.open(config, packed), text(50))
    np.testing.assert_array_equal(model.logits(text(50)), expected)


def test_quantising_leaves_packed_tensors_as_they_are() -> None:
    tensors = network(BLOCKY, "Q4_K")
    executor = native.open(BLOCKY, tensors, quantize="q8_0")
    row = packed_row(tensors, "blk.1.ffn_up.weight", 7)
    assert bytes(executor.model.unpack("blk.1.ffn_up.weight", 7, len(row))) == row


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_unpacks(dtype: str) -> None:
    tensors = network(BLOCKY, "Q4_K")
    executor = native.open(BLOCKY, tensors, dtype=dtype, kv_type=dtype)
    kind = DTYPES[{"float32": "F32", "bfloat16": "BF16"}[dtype]]
    wide = {n: to_float32(a).astype(kind) if weights.is_matrix(n) else a for n, a in tensors.items()}
    unpacked = native.open(BLOCKY, from_arrays(wide), kv_type=dtype)
    np.testing.assert_array_equal(logits(executor, text(30)), logits(unpacked, text(30)))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_what_the_file_has(kind: str) -> None:
    """Never widened; panels are whole, and a head that is screened keeps its few rough bits beside the exact ones."""
    config = BLOCKY.replace(vocab=320)
    tensors = network(config, kind)
    assert tensors.nbytes <= native.open(config, tensors).facts()["weights_bytes"] <= 1.15 * tensors.nbytes


# Scores and rows


def test_rows_in_chunks_are_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Local(engine(network(WINDOWS)))
    whole = model.logits(TEXTS[0])
    monkeypatch.setattr(native, "LOGITS", 100 * WINDOWS.vocab)
    chunks = list(model.rows(TEXTS[0]))
    assert max(map(len, chunks)) == 100
    np.testing.assert_array_equal(np.concatenate(chunks), whole)
    np.testing.assert_array_equal(np.concatenate(list(model.rows(TEXTS[0], 515))), whole[515:])


@pytest.mark.parametrize("size", [None, 90])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_score_is_the_softmax_of_the_rows(size: int | None, cap: float | None) -> None:
    config = WINDOWS.replace(final_softcap=cap)
    executor = engine(network(config), config, threads=3)
    ids, start = TEXTS[0], 2
    rows = logits(executor, ids[:-1])[start - 1 :]
    logprobs, greedy = executor.score(ids, start, size)
    expected = log_softmax(rows)[np.arange(len(rows)), ids[start:]]
    np.testing.assert_allclose(logprobs, expected, atol=2e-5)
    assert greedy == (rows[:, :size].argmax(axis=1) == ids[start:]).tolist()


def test_greedy_text_is_scored_as_greedy() -> None:
    model = Local(engine(network(WINDOWS)))
    result = model.generate(text(20), max_tokens=30, temperature=0, logprobs=0)
    score = model.score(text(20), result.tokens)
    assert score.is_greedy
    assert score.token_logprobs == pytest.approx(result.logprobs, abs=1e-5)


# Pages


def test_groups_are_layers_of_one_window() -> None:
    assert groups(WINDOWS) == (Group(100, (0, 3)), Group(8, (1,)), Group(None, (2,)))
    assert groups(WINDOWS.replace(pattern=(Attn(),))) == (Group(None, (0, 1, 2, 3)),)


def test_pages_of_a_text_are_counted() -> None:
    assert [Group(None, (0,)).pages(tokens, 512) for tokens in (0, 1, 64, 65, 1000)] == [0, 1, 1, 2, 16]
    assert Group(100, (0,)).pages(10**6, 256) == 7  # 100 + 256 positions touch at most seven pages of 64
    assert Group(100, (0,)).pages(65, 256) == 2


@settings(max_examples=100, deadline=None)
@given(
    window=st.sampled_from([None, 1, 8, 63, 64, 65, 100, 300]),
    pieces=st.lists(st.integers(1, 200), min_size=1, max_size=20),
)
def test_what_is_seen_has_a_page_and_no_more_than_counted(window: int | None, pieces: list[int]) -> None:
    group = Group(window, (0,))
    pages = Pages([group.pages(sum(pieces), max(pieces))])
    mine = Text(pages, (group,))
    for size in pieces:
        mine.extend(size)
        first = 0 if window is None else max(0, mine.length + 1 - window)
        needed = mine.tables[0][first // PAGE : -(-(mine.length + size) // PAGE)]
        assert -1 not in needed
        assert len(set(needed)) == len(needed)
        mine.advance(size)
    mine.release()
    assert sorted(pages.take(0) for _ in range(pages.counts[0])) == list(range(pages.counts[0]))


def test_pages_behind_a_window_are_given_back() -> None:
    pages = Pages([9, 9])
    mine = Text(pages, (Group(100, (0,)), Group(None, (1,))))
    mine.extend(300)
    mine.advance(300)
    assert [page >= 0 for page in mine.tables[0]] == [False] * 3 + [True] * 2
    assert -1 not in mine.tables[1]
    assert table([mine], 0).dtype == np.int32
    other = Text(pages, (Group(100, (0,)), Group(None, (1,))))
    other.extend(70)
    assert table([mine, other], 0)[1].tolist() == [*other.tables[0], -1, -1, -1]
    mine.release()
    mine.release()
    assert len({pages.take(1) for _ in range(7)}) == 7


@pytest.mark.parametrize(("short", "says"), [(False, "promised to prefill"), (True, "memory had no room")])
def test_pages_run_out_for_one_of_two_reasons(short: bool, says: str) -> None:
    mine = Text(Pages([2], short=short), (Group(None, (0,)),))
    mine.extend(128)
    with pytest.raises(CapacityError, match=rf"All 2 pages of 64 positions.*{says}"):
        mine.extend(129)


def feed(executor: native.Executor, state: Any, tokens: int) -> None:
    for i in range(tokens):
        state, _ = executor.step(state, [i % 90])


def test_more_steps_than_prefill_was_told() -> None:
    executor = engine(network(WINDOWS))
    state, _ = executor.prefill([text(60)], room=4)
    feed(executor, state, 4)
    with pytest.raises(CapacityError, match="promised to prefill"):
        feed(executor, state, PAGE)


def test_a_cache_beyond_memory_is_refused_or_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = engine(network(WINDOWS))
    a_page = sum(executor.page_bytes(group) for group in groups(WINDOWS))
    monkeypatch.setattr(native, "available", lambda: 3 * a_page)
    with pytest.raises(CapacityError, match=r"Keys and values of 530 tokens need.*--kv-type"):
        executor.prefill([TEXTS[0]], room=10)
    state, _ = executor.prefill([text(60)], room=900)  # which does not fit, but much may be said before
    with pytest.raises(CapacityError, match="memory had no room"):
        feed(executor, state, 900)
    assert PAGE < state.texts[0].length < 900


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_pages_are_as_large_as_said(kv_type: str) -> None:
    executor = engine(network(WINDOWS), kv_type=kv_type)
    state = executor._begin([10], 0)
    for number, group in enumerate(groups(WINDOWS)):
        assert state.cache.page_bytes(number) <= 1.1 * executor.page_bytes(group)


# Bad input


@pytest.mark.parametrize("name", ["output.weight", "blk.0.attn_q.weight", "blk.1.ffn_norm.weight"])
def test_weights_that_are_no_numbers_are_told(name: str) -> None:
    bad = arrays(WINDOWS)
    bad[name].flat[7] = np.nan
    model = Local(native.open(WINDOWS, from_arrays(bad)))
    for temperature in (0, 1):
        with pytest.raises(TensorError, match="NaN"):
            model.generate(text(20), max_tokens=5, temperature=temperature)
    with pytest.raises(TensorError, match="NaN"):
        model.score(text(20), [4, 5])


def test_a_page_that_held_no_numbers_does_no_harm_later() -> None:
    bad = arrays(WINDOWS)
    bad["token_embd.weight"][7] = np.inf
    executor = engine(from_arrays(bad))
    good = [i for i in text(80) if i != 7]
    expected = logits(executor, good)
    _, rows = executor.prefill([[7] * len(good), good], room=0)
    assert np.isnan(np.asarray(rows)[0]).any()
    same(np.asarray(rows)[1], expected[-1], executor)
    same(logits(executor, good), expected, executor)


@pytest.mark.parametrize(
    ("ids", "error", "says"),
    [
        ([], OptionError, "empty"),
        ([3, 96], OptionError, r"0 to 95; 96 was given"),
        ([-1], OptionError, "-1 was given"),
        ([2.5], OptionError, "integer token ids"),
        ([3] * 1024, ContextError, r"1024 tokens.*1024"),
    ],
)
def test_prompts_that_are_refused(ids: list[Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Local(engine(network(WINDOWS))).generate(ids, max_tokens=1)


def test_text_ends_where_the_context_is_full() -> None:
    result = Local(engine(network(WINDOWS))).generate(text(WINDOWS.context - 3), temperature=0)
    assert (len(result.tokens), result.finish_reason) == (3, "length")


def test_the_extension_checks_what_indexes_memory() -> None:
    executor = engine(network(WINDOWS))
    state = executor._begin([10], 0)
    pages = [np.zeros((1, 1), np.int32)] * 3

    def forward(
        tokens: Any = (1,), starts: Any = (0, 1), past: Any = (0,), tables: Any = pages, wanted: Any = (0,)
    ) -> None:
        rows = [np.asarray(one, np.int32) for one in (tokens, starts, past)]
        executor.model.forward(state.cache, *rows, tables, np.asarray(wanted, np.int32))

    forward()

    def refused(ask: Any, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            ask()

    for says, wrong in (
        ("no such token", {"tokens": (96,)}), ("no such token", {"tokens": (-1,)}),
        ("page table", {"tokens": (), "starts": (0,), "past": ()}), ("starts must go", {"starts": (0, 2)}),
        ("starts must go", {"starts": (1, 1)}), ("no rows", {"past": (-1,)}), ("too short", {"past": (64,)}),
        ("no rows", {"starts": (0, 1, 1), "past": (0, 0), "tables": [np.zeros((2, 1), np.int32)] * 3}),
        ("wanted row", {"wanted": (1,)}), ("wanted row", {"wanted": (-1,)}), ("page table", {"tables": pages[:2]}),
        ("page is not there", {"tables": [np.full((1, 1), -1, np.int32)] * 3}),
        ("page is not there", {"tables": [np.full((1, 1), 9, np.int32)] * 3}),
        ("page table", {"tables": [np.zeros((2, 1), np.int32)] * 3}),
    ):  # fmt: skip
        refused(lambda wrong=wrong: forward(**wrong), says)
    for width in (7, 49):
        refused(lambda width=width: executor.model.head(np.zeros((1, width), np.float32)), "another width")
    hidden = np.zeros((2, 48), np.float32)
    for targets, says in (((1,), "one target"), ((1, 96), "no such token"), ((-1, 1), "no such token")):
        ids = np.asarray(targets, np.int32)
        refused(lambda ids=ids: executor.model.score(hidden, ids, 96), says)
    for size in (0, 97):
        refused(lambda size=size: executor.model.score(hidden, np.zeros(2, np.int32), size), "out of range")
    refused(lambda: executor.model.unpack("output.weight", 96, 192), "no such row")
    refused(lambda: executor.model.unpack("output.weight", 0, 191), "number of bytes")
    with pytest.raises(KeyError):
        executor.model.unpack("output.wait", 0, 192)


@pytest.mark.parametrize("name", ["blk.2.attn_norm.weight", "blk.0.ffn_down.weight"])
def test_tensors_of_another_network_are_refused(name: str) -> None:
    wrong = arrays(WINDOWS)
    missing = from_arrays({n: a for n, a in wrong.items() if n != name})
    wrong[name] = wrong[name][..., :-1]
    for tensors, says in ((from_arrays(wrong), "has shape"), (missing, "is missing")):
        with pytest.raises(TensorError, match=f"{name}.*{says}"):
            native.open(WINDOWS, tensors)


@pytest.mark.parametrize("asked", ["avx1024", "neon" if "avx2" in ISAS else "avx2"])
def test_instruction_sets_that_are_not_here(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEODE_ISA", asked)
    with pytest.raises(BackendError, match=f"'{asked}'.*it has {ISAS[0]}"):
        native.open(WINDOWS, network(WINDOWS))


@pytest.mark.parametrize("isa", ISAS)
def test_an_instruction_set_can_be_asked_for(isa: str) -> None:
    assert engine(network(WINDOWS), isa=isa).facts()["isa"] == isa


@pytest.mark.parametrize("threads", [0, -3, 10_000, True])
def test_thread_counts_that_are_refused(threads: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="threads must be"):
        geode.load(write_hf(tmp_path), on="native", threads=threads)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kv_type": "int8"}, "kv_type must be one of auto, float32.*'int8'"),
        ({"quantize": "q9"}, "'q9' is no way to quantise"),
        ({"quantize": "q8_0", "dtype": "float32"}, "contradict"),
    ],
)
def test_options_that_are_refused(options: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=says):
        geode.load(write_hf(tmp_path), on="native", **options)


def test_a_packed_cache_needs_whole_blocks() -> None:
    config = WINDOWS.replace(head_dim=48)
    with pytest.raises(OptionError, match=r"runs of 32 channels.*have 48"):
        native.open(config, network(config), kv_type="q8_0")


@pytest.mark.parametrize("more", [{"kv_type": "q8_0"}, {"quantize": "q4_0"}])
def test_what_only_native_has_is_refused_elsewhere(more: dict[str, str], tmp_path: Path) -> None:
    try:
        with pytest.raises(OptionError, match=r"native engine's|no storage of torch's.*int8 or int4"):
            geode.load(write_hf(tmp_path), on="torch", **more)
    except MissingExtra as problem:
        pytest.skip(str(problem))


def test_numbers_that_cannot_be_packed_are_told_at_load() -> None:
    bad = arrays(BLOCKY)
    bad["blk.0.ffn_up.weight"][3, 5] = np.inf
    with pytest.raises(TensorError, match=r"blk\.0\.ffn_up\.weight.*finite"):
        native.open(BLOCKY, from_arrays(bad), quantize="q4_0")


def test_after_close_everything_is_refused() -> None:
    model = Local(engine(network(WINDOWS)))
    stream = model.stream(text(5), max_tokens=9)
    next(stream)
    rows = model.rows(text(9))
    model.close()
    model.close()
    asks = (
        lambda: next(stream), lambda: next(rows), lambda: model.generate([3], max_tokens=1),
        lambda: model.logits([3]), lambda: model.score([3], [4]), lambda: model.executor.facts(),
    )  # fmt: skip
    for ask in asks:
        with pytest.raises(BackendError, match=r"closed\. Load it again"):
            ask()


@pytest.mark.parametrize("at", ["blk.1.ffn_up.weight", "output.weight", "progress"])
def test_an_interrupted_load_breaks_nothing(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    tensors = network(WINDOWS)
    expected = logits(engine(tensors), text(30))
    with monkeypatch.context() as patch:
        if at == "progress":
            patch.setattr(weights, "QUIET_SECONDS", -1.0)
            patch.setattr(weights.Progress, "add", interrupt)
            torn = tensors
        else:
            entry = tensors.entries[at]
            torn = Tensors(tensors.entries | {at: Entry(entry.shape, entry.type, entry.nbytes, interrupt)})
        with pytest.raises(KeyboardInterrupt):
            engine(torn)
    np.testing.assert_array_equal(logits(engine(tensors), text(30)), expected)


def test_a_long_load_shows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[SimpleNamespace] = []

    def progress(label: str, total: int, quiet: bool) -> SimpleNamespace:
        bar = SimpleNamespace(total=total, done=0, closed=False)
        bar.add = lambda count: setattr(bar, "done", bar.done + count)
        bar.close = lambda: setattr(bar, "closed", True)
        shown.append(bar)
        return bar

    monkeypatch.setattr(weights, "Progress", progress)
    engine(network(WINDOWS))
    assert not shown
    times = iter([0.0, *[0.5] * 5, *[1.5] * 1000])
    monkeypatch.setattr(weights, "monotonic", lambda: next(times))
    engine(network(WINDOWS))
    (bar,) = shown
    assert (bar.done, bar.closed) == (bar.total, True)


# Damaged files


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A path to write to, and a whole GGUF of a network as small as can be."""
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    tiny = SMALL.replace(vocab=40, width=32, depth=1, heads=1, kv_heads=1, ffn=32)
    return path, write_gguf(path, "Q4_0", tiny).read_bytes()


def survives(path: Path, data: bytes) -> None:
    """A model, or one of our own errors; nothing else."""
    path.write_bytes(data)
    with contextlib.suppress(GeodeError):
        model = geode.load(path, on="native", threads=2)
        model.logits(range(3, 30))
        model.generate([3, 4, 5], max_tokens=4, temperature=0)


quick = settings(max_examples=int(os.environ.get("GEODE_FUZZ", "30")), deadline=None)


@quick
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes_of_a_file_do_no_harm(file: tuple[Path, bytes], changes: list[tuple[float, int]]) -> None:
    path, whole = file
    data = bytearray(whole)
    for at, byte in changes:
        data[int(at * len(whole))] = byte
    survives(path, bytes(data))


@quick
@given(st.floats(0, 1), st.binary(max_size=64), st.integers(0, 64))
def test_bytes_put_into_and_cut_out_of_a_file_do_no_harm(
    file: tuple[Path, bytes], at: float, insert: bytes, cut: int
) -> None:
    path, whole = file
    place = int(at * len(whole))
    survives(path, whole[:place] + insert + whole[place + cut :])


# Without the extension, and whole processes


def test_an_engine_that_was_not_built_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "geode.native._native", None)
    with pytest.raises(BackendError, match=r"not built.*g\+\+.*pip install \..*--on"):
        geode.load(write_hf(tmp_path), on="native")


def test_auto_is_native_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geode.lm, "_active", lambda: None)
    monkeypatch.setattr(geode.lm, "accelerated", lambda: False)
    assert isinstance(geode.load(write_hf(tmp_path)).executor, native.Executor)


def test_every_tensor_of_the_schema_has_a_place() -> None:
    biased = BLOCKY.replace(qkv_bias=True, out_bias=True, ffn_bias=True, qk_norm="per_head", tied=True)
    model = native.open(biased, network(biased)).model
    assert model.nbytes >= sum(4 * int(np.prod(shape)) for shape in shapes(biased).values())


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What native_worker.py saw in a process of its own."""
    folder = write_hf(tmp_path_factory.mktemp("native") / "model", "BF16")
    return worker("native_worker.py", str(folder))  # type: ignore[no-any-return]


def test_a_fork_goes_on_where_its_parent_was(processes: dict[str, Any]) -> None:
    if "child" not in processes:
        pytest.skip("this system does not fork")
    assert processes["child"] == processes["parent"] == processes["again"]


def test_a_run_imports_no_framework(processes: dict[str, Any]) -> None:
    assert processes["run"] == 0
    assert processes["frameworks"] == []


def test_peak_memory_is_the_weights_and_the_cache(real_model: Any) -> None:
    """Beyond what the interpreter takes with all modules imported, before it opens the file."""
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell a process's peak memory")
    found = worker("memory_worker.py", str(real_model("gemma3:270m")))
    assert found["peak"] - found["baseline"] <= 1.15 * found["weights"] + found["cache"]
