"""The engine over tiny native networks: answers alone and in a crowd, under pressure, with guesses, masks and errors."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_networks import BLOCKY, WINDOWS, network, text

from geode.config import Config
from geode.engine import open as open_engine
from geode.engine.drafts import Lookup
from geode.engine.engine import Engine
from geode.engine.keep import Keeper
from geode.engine.native import NativeRunner
from geode.engine.plan import plan
from geode.engine.request import Request
from geode.engine.sequence import Generation
from geode.errors import BackendError, CapacityError, ContextError, OptionError, TensorError
from geode.generate import Options, Piece, Row, stream
from geode.native import executor as native
from geode.native import extension
from geode.native.pages import PAGE
from geode.quant import to_float32
from geode.sampling import log_softmax, top_k
from geode.tensors import from_arrays

if not extension.is_there():
    pytest.skip("the native engine was not built: pip install -e .", allow_module_level=True)

NETWORKS = {"f32": (WINDOWS, "F32"), "q8_0": (BLOCKY, "Q8_0"), "bf16": (BLOCKY, "BF16")}
STEP = 48  # tokens of a step: few, so that prompts come in chunks


def executor(config: Config = WINDOWS, kind: str = "F32", seed: int = 0) -> native.Executor:
    return native.open(config, network(config, kind, seed), threads=1)


def over(model: native.Executor, pages: Sequence[int] | None = None, **options: Any) -> Engine:
    """An engine with so many pages of each group."""
    runner = NativeRunner(model, STEP, memory=64 << 20)
    if pages is not None:
        counts = list(pages)
        runner = _with_pages(model, counts)
    return Engine(runner, **options)


def _with_pages(model: native.Executor, counts: list[int]) -> NativeRunner:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geode.engine.native.page_counts", lambda *_: counts)
        return NativeRunner(model, STEP)


@dataclass
class Heard:
    """What one request was told."""

    pieces: list[Piece] = field(default_factory=list)
    error: Exception | None = None
    ticket: Any = None

    def __call__(self, piece: Piece | Exception) -> None:
        if isinstance(piece, Exception):
            assert self.error is None
            self.error = piece
        else:
            assert not self.over
            self.pieces.append(piece)

    @property
    def over(self) -> bool:
        return self.error is not None or bool(self.pieces and self.pieces[-1].finish_reason)

    @property
    def tokens(self) -> list[int]:
        return [piece.token for piece in self.pieces if piece.token is not None]


def ask(engine: Engine, ids: Sequence[int], **options: Any) -> Heard:
    """Submits a request; what is no field of `Request` is one of `Options`."""
    fields = {name: options.pop(name) for name in list(options) if name in Request.__dataclass_fields__}
    heard = Heard()
    heard.ticket = engine.submit(Request(ids=ids, options=Options(**options), **fields), heard)
    return heard


def run(engine: Engine, check: bool = True) -> int:
    """Steps until nothing is left; how many. The books are right after each."""
    steps = 0
    while engine.step():
        steps += 1
        if check:
            engine._scheduler.check()
            engine.runner.check()
        assert steps < 5000
    engine.check()
    assert engine.stats().running == engine.stats().waiting == 0
    return steps


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8, "seed": 3},
    {"temperature": 1, "seed": 4, "top_k": 5},
    {"temperature": 0, "repetition_penalty": 1.3},
    {"temperature": 0.9, "seed": 5, "top_p": 0.9, "frequency_penalty": 0.5, "logprobs": 2},
    {"temperature": 0, "logit_bias": {5: 2.0}, "logprobs": 0},
]


def alone(model: native.Executor, ids: Sequence[int], **options: Any) -> list[int]:
    """What the request loop makes of a prompt that nobody else is beside."""
    row = Row(ids, Options(**options), model.config.context)
    return [piece.token for _, piece in stream(model, [row]) if piece.token is not None]


def crowd(stems: int = 2, count: int = 12, vocab: int = 96) -> list[list[int]]:
    """Texts of all lengths, some with common beginnings."""
    rng = random.Random(7)
    long = [text(300, seed=seed, vocab=vocab) for seed in range(stems)]
    cuts = [rng.choice([0, 0, 63, 64, 65, 130, 250]) for _ in range(count)]
    return [rng.choice(long)[:cut] + text(rng.randrange(1, 90), seed=i, vocab=vocab) for i, cut in enumerate(cuts)]


@pytest.mark.parametrize("kind", NETWORKS)
def test_answers_do_not_depend_on_the_crowd(kind: str) -> None:
    config, dtype = NETWORKS[kind]
    model = executor(config, dtype)
    prompts = crowd(vocab=config.vocab)
    expected = [alone(model, ids, max_tokens=20, **OPTIONS[i % 6]) for i, ids in enumerate(prompts)]
    engine = over(model)
    heard = [ask(engine, ids, max_tokens=20, **OPTIONS[i % 6]) for i, ids in enumerate(prompts)]
    run(engine)
    assert [one.tokens for one in heard] == expected
    again = [ask(engine, ids, max_tokens=20, **OPTIONS[i % 6]) for i, ids in enumerate(prompts)]
    run(engine)
    assert [one.tokens for one in again] == expected
    assert sum(one.ticket.usage.cached_tokens for one in again) > sum(one.ticket.usage.cached_tokens for one in heard)


def test_pressure_preempts_and_changes_nothing() -> None:
    model = executor()
    prompts = [text(30, seed=seed) for seed in range(8)]
    expected = [alone(model, ids, max_tokens=120, **OPTIONS[i % 6]) for i, ids in enumerate(prompts)]
    engine = over(model, pages=(9, 16, 7))
    heard = [ask(engine, ids, max_tokens=120, **OPTIONS[i % 6]) for i, ids in enumerate(prompts)]
    run(engine)
    assert [one.tokens for one in heard] == expected
    assert engine.stats().preemptions > 0


class Oracle:
    """Knows the answers, and is wrong after a random number of tokens."""

    def __init__(self, answers: dict[int, list[int]], honest: float):
        self.answers = answers
        self.rng = random.Random(5)
        self.honest = honest
        self.judgements: list[tuple[int, int]] = []
        self.gone: set[int] = set()

    def draft(self, sequences: Sequence[Generation], most: Sequence[int]) -> list[list[int]]:
        return [self._one(sequence, limit) for sequence, limit in zip(sequences, most, strict=True)]

    def _one(self, sequence: Generation, limit: int) -> list[int]:
        said = sequence.usage.completion_tokens
        rest = self.answers[sequence.number][said : said + self.rng.randrange(0, 9)][:limit]
        return [token if self.rng.random() < self.honest else (token + 1) % 96 for token in rest]

    def judged(self, sequence: Generation, drafted: int, accepted: int) -> None:
        self.judgements.append((drafted, accepted))

    def forget(self, sequence: Generation) -> None:
        self.gone.add(sequence.number)


@pytest.mark.parametrize("pages", [None, (9, 16, 7)], ids=["room", "pressure"])
@pytest.mark.parametrize("honest", [1.0, 0.7, 0.0])
def test_guesses_change_nothing(honest: float, pages: Sequence[int] | None) -> None:
    model = executor()
    prompts = crowd()
    expected = [alone(model, ids, max_tokens=40, **OPTIONS[i % 6]) for i, ids in enumerate(prompts)]
    oracle = Oracle({i + 1: answer for i, answer in enumerate(expected)}, honest)
    engine = over(model, pages=pages, drafter=oracle)
    heard = [ask(engine, ids, max_tokens=40, **OPTIONS[i % 6]) for i, ids in enumerate(prompts)]
    run(engine)
    assert [one.tokens for one in heard] == expected
    stats = engine.stats()
    assert stats.drafted_tokens == sum(drafted for drafted, _ in oracle.judgements) > 0
    assert stats.accepted_tokens == sum(accepted for _, accepted in oracle.judgements)
    assert (stats.accepted_tokens == stats.drafted_tokens) == (honest == 1.0)
    assert oracle.gone == set(range(1, len(prompts) + 1))
    quiet = ask(engine, prompts[0], max_tokens=40, speculate=False, **OPTIONS[0])
    run(engine)
    assert quiet.tokens == expected[0] and quiet.ticket.usage.drafted_tokens == 0


def test_guessing_that_fails_is_given_up() -> None:
    model = executor()

    class Broken(Oracle):
        def draft(self, sequences: Sequence[Generation], most: Sequence[int]) -> list[list[int]]:
            raise RuntimeError("no idea")

    engine = over(model, drafter=Broken({}, 1.0))
    heard = ask(engine, text(50), max_tokens=10, temperature=0)
    with pytest.warns(UserWarning, match="no idea"):
        run(engine)
    assert heard.tokens == alone(model, text(50), max_tokens=10, temperature=0)


def test_one_computes_what_many_share() -> None:
    """Equal prompts that come together: the first runs, the others wait for its pages."""
    model = executor()
    prompt = text(400)
    engine = over(model)
    heard = [ask(engine, prompt, max_tokens=3, temperature=0) for _ in range(4)]
    run(engine)
    assert [one.ticket.usage.cached_tokens for one in heard] == [0, 384, 384, 384]
    assert engine.stats().cached_tokens == 3 * 384
    assert len({tuple(one.tokens) for one in heard}) == 1
    salted = ask(engine, prompt, max_tokens=3, temperature=0, salt="mine")
    run(engine)
    assert salted.ticket.usage.cached_tokens == 0 and salted.tokens == heard[0].tokens


def test_a_conversation_goes_on_from_its_pages() -> None:
    model = executor()
    engine = over(model)
    first = ask(engine, text(100), max_tokens=100, temperature=0)
    run(engine)
    more = [*text(100), *first.tokens, *text(30, seed=3)]
    second = ask(engine, more, max_tokens=5, temperature=0)
    run(engine)
    assert second.ticket.usage.cached_tokens == 192
    assert second.tokens == alone(model, more, max_tokens=5, temperature=0)


def test_cancelled_requests_leave_at_once() -> None:
    model = executor()
    engine = over(model)
    heard = [ask(engine, text(200, seed=i), temperature=0) for i in range(3)]
    for _ in range(15):
        engine.step()
    heard[0].ticket.cancel()
    heard[0].ticket.cancel()
    before = engine.stats().pages_used
    count = len(heard[0].pieces)
    engine.step()
    assert engine.stats().running == 2 and sum(engine.stats().pages_used) < sum(before)
    heard[1].ticket.cancel()
    heard[2].ticket.cancel()
    waiting = ask(engine, text(10), max_tokens=2)
    waiting.ticket.cancel()
    run(engine)
    assert len(heard[0].pieces) == count and not waiting.pieces
    heard[0].ticket.cancel()
    run(engine)


def test_a_listener_that_fails_harms_nobody() -> None:
    engine = over(executor())
    calls: list[Piece | Exception] = []

    def broken(piece: Piece | Exception) -> None:
        calls.append(piece)
        raise RuntimeError("gone")

    engine.submit(Request(ids=[1, 2], options=Options(max_tokens=5)), broken)
    good = ask(engine, [1, 2], max_tokens=5)
    run(engine)
    assert len(calls) == 1 and len(good.tokens) == 5


def test_nan_ends_one_request_and_leaves_no_page() -> None:
    config = WINDOWS
    weights = network(config)
    arrays = {name: weights[name] for name in weights.entries}
    embedding = to_float32(arrays["token_embd.weight"]).copy()
    embedding[95] = np.nan
    arrays["token_embd.weight"] = embedding
    engine = over(native.open(config, from_arrays(arrays), threads=1))
    good = ask(engine, text(150, vocab=90), max_tokens=20, temperature=0)
    bad = ask(engine, [*text(150, vocab=90), 95, *text(100, seed=4, vocab=90)], max_tokens=20, temperature=0)
    run(engine)
    assert isinstance(bad.error, TensorError) and not bad.pieces
    assert len(good.tokens) == 20
    assert engine.stats().pages_kept[2] == len(text(150, vocab=90) + good.tokens[:-1]) // PAGE


def test_a_run_that_fails_ends_the_guilty_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = over(executor())
    inner = engine.runner.run

    def run_unless(parts: Sequence[Any]) -> Any:
        if any(13 in part.tokens for part in parts):
            raise BackendError("no thirteen")
        return inner(parts)

    monkeypatch.setattr(engine.runner, "run", run_unless)
    bias = {13: -math.inf}
    good = ask(engine, [1, 2, 3], max_tokens=8, temperature=0, logit_bias=bias)
    bad = ask(engine, [1, 13, 3], max_tokens=8, temperature=0)
    run(engine)
    assert isinstance(bad.error, BackendError) and len(good.tokens) == 8


class Only:
    """A constraint: ids of a set, `mask` counted."""

    def __init__(self, allowed: set[int], forced: dict[int, list[int]] | None = None, size: int = 96):
        self.allowed, self.after, self.size = allowed, forced or {}, size
        self.said: list[int] = []
        self.masks = 0

    def mask(self) -> np.ndarray | None:
        self.masks += 1
        found = np.zeros(self.size, bool)
        found[list(self.allowed)] = True
        return found

    def allows(self, token: int) -> bool:
        return token in self.allowed

    def accept(self, token: int) -> None:
        assert token in self.allowed
        self.said.append(token)

    def forced(self) -> list[int]:
        return self.after.get(self.said[-1], []) if self.said else []


@pytest.mark.parametrize("options", OPTIONS)
def test_constraints_hold_whatever_is_guessed(options: dict[str, Any]) -> None:
    model = executor()
    allowed = set(range(0, 96, 3))
    answers = []
    for drafter in (None, Oracle({1: text(40)}, 1.0)):
        engine = over(model, drafter=drafter)
        constraint = Only(allowed)
        heard = ask(engine, text(80), max_tokens=30, constraint=constraint, **options)
        other = ask(engine, text(80), max_tokens=30, speculate=False, **options)
        run(engine)
        assert len(heard.tokens) == 30 and set(heard.tokens) <= allowed and constraint.said == heard.tokens[:-1]
        assert other.tokens == alone(model, text(80), max_tokens=30, **options)
        answers.append(heard.tokens)
    assert answers[0] == answers[1]


def test_a_greedy_choice_that_is_allowed_needs_no_mask() -> None:
    engine = over(executor())
    constraint = Only(set(range(96)))
    heard = ask(engine, text(80), max_tokens=30, temperature=0, constraint=constraint)
    free = ask(engine, text(80), max_tokens=30, temperature=0)
    run(engine)
    assert constraint.masks == 0 and heard.tokens == free.tokens


@pytest.mark.parametrize("kind", ["Q8_0", "F32"])
@pytest.mark.parametrize("share", [2, 6, 40])
def test_a_choice_among_few_is_the_choice_among_all(kind: str, share: int) -> None:
    """Where the likeliest is forbidden, others of the likeliest do, or else all are looked at."""
    size = 1024
    config = replace(BLOCKY, vocab=size)
    engine = over(native.open(config, network(config, kind, 3), threads=1))
    random.seed(share)
    for seed in range(8):
        allowed = set(random.sample(range(size), size // share))
        given = text(30, seed)
        few = ask(engine, given, max_tokens=12, temperature=0, constraint=Only(allowed, size=size))
        whole = ask(engine, given, max_tokens=12, temperature=0, logprobs=0, constraint=Only(allowed, size=size))
        run(engine)
        assert few.tokens == whole.tokens and set(few.tokens) <= allowed


def test_what_is_forced_needs_no_choice() -> None:
    engine = over(executor())
    constraint = Only({6, 7, 8, 9}, forced={6: [7, 8, 9], 7: [8, 9], 8: [9]})
    heard = ask(engine, text(80), max_tokens=40, temperature=1, seed=1, constraint=constraint)
    steps = run(engine)
    for i, token in enumerate(heard.tokens[:-3]):
        if token == 6:
            assert heard.tokens[i : i + 4] == [6, 7, 8, 9]
    assert steps < 40 and len(heard.tokens) == 40
    watched = ask(engine, text(80), max_tokens=10, logprobs=0, constraint=Only({6, 7}, forced={6: [7]}))
    run(engine)
    assert all(piece.logprob is not None for piece in watched.pieces)


def test_a_constraint_that_fails_ends_its_request_only() -> None:
    engine = over(executor())
    nothing = ask(engine, text(20), max_tokens=5, constraint=Only(set()))

    class Broken(Only):
        def accept(self, token: int) -> None:
            if len(self.said) == 2:
                raise OptionError("the grammar is exhausted")
            super().accept(token)

    broken = ask(engine, text(20), max_tokens=5, temperature=0, constraint=Broken(set(range(96))))
    good = ask(engine, text(20), max_tokens=5, temperature=0)
    run(engine)
    assert isinstance(nothing.error, OptionError) and isinstance(broken.error, OptionError)
    assert broken.tokens == good.tokens[:3] and len(good.tokens) == 5


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings(pooling: str) -> None:
    model = executor()
    prompts = crowd(count=5)
    engine = over(model, pages=(12, 9, 14))
    found = [engine.embed(ids, pooling=pooling) for ids in prompts]
    busy = [ask(engine, ids, max_tokens=10, temperature=0) for ids in prompts]
    run(engine)
    for ids, vector in zip(prompts, found, strict=True):
        hidden = np.concatenate(list(model.hidden(ids)))
        expected = hidden[-1] if pooling == "last" else hidden.mean(axis=0, dtype=np.float64).astype(np.float32)
        np.testing.assert_array_equal(vector.result(0), expected)
    assert all(len(one.tokens) == 10 for one in busy)
    with pytest.raises(OptionError, match="pooling"):
        engine.embed([1], pooling="max")


def test_scores() -> None:
    model = executor()
    engine = over(model)
    ask(engine, text(300), max_tokens=2)
    run(engine)  # leaves pages that the score must not skip
    found = engine.score(text(300), 40)
    gone = engine.score(text(300), 1)
    gone.cancel()
    run(engine)
    logprobs, greedy = model.score(text(300), 40)
    assert found.result(0) == (logprobs, greedy, []) and gone.cancelled()
    for start in (0, 300):
        with pytest.raises(OptionError, match="start"):
            engine.score(text(300), start)


@pytest.mark.parametrize("count", [1, 5])
def test_scores_with_the_likeliest(count: int) -> None:
    model = executor()
    ids, start = text(90), 3
    engine = over(model)
    found = engine.score(ids, start, top=count)
    run(engine)
    logprobs, greedy, top = found.result(0)
    assert (logprobs, greedy) == model.score(ids, start)
    every = log_softmax(np.concatenate([*model.rows(ids[:-1], start - 1)]))
    assert len(top) == len(every) == len(ids) - start
    for row, likeliest, target, logprob in zip(every, top, ids[start:], logprobs, strict=True):
        assert [i for i, _ in likeliest] == top_k(row, count).tolist()
        np.testing.assert_allclose([p for _, p in likeliest], row[[i for i, _ in likeliest]], atol=1e-4)
        assert dict(likeliest).get(target, logprob) == logprob, "the same number, so that it can be found by it"


@pytest.mark.parametrize(
    ("ids", "options", "error"),
    [
        ([], {}, OptionError),
        ([96], {}, OptionError),
        ([-1], {}, OptionError),
        (text(2000), {}, ContextError),
        (text(1000), {"max_tokens": 25}, ContextError),
        ([1], {"adapter": "none"}, OptionError),
    ],
)
def test_what_cannot_be_is_refused_at_once(ids: list[int], options: dict[str, Any], error: type[Exception]) -> None:
    engine = over(executor())
    with pytest.raises(error):
        ask(engine, ids, **options)
    run(engine)


def test_a_text_longer_than_memory_is_refused_with_both_numbers() -> None:
    engine = over(executor(), pages=(6, 6, 5))
    with pytest.raises(ContextError, match=r"400.*320"):
        ask(engine, text(400), max_tokens=5)
    full = ask(engine, text(300), temperature=0)
    run(engine)
    assert len(full.tokens) == 20 and full.pieces[-1].finish_reason == "length"


def test_kept_pages_survive(tmp_path: Path) -> None:
    model = executor()
    prompt = text(400)
    engine = Engine(runner := NativeRunner(model, STEP), keeper=Keeper(runner, tmp_path))
    first = ask(engine, prompt, max_tokens=4, temperature=0)
    run(engine)
    engine.close()
    pages = sorted(tmp_path.rglob("*.?"))
    assert len(pages) >= 6 and not list(tmp_path.rglob(".*"))

    engine = Engine(runner := NativeRunner(model, STEP), keeper=Keeper(runner, tmp_path))
    again = ask(engine, prompt, max_tokens=4, temperature=0)
    run(engine)
    assert again.tokens == first.tokens and again.ticket.usage.cached_tokens == 384

    for path in pages:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    engine = Engine(runner := NativeRunner(model, STEP), keeper=Keeper(runner, tmp_path))
    damaged = ask(engine, prompt, max_tokens=4, temperature=0)
    run(engine)
    assert damaged.tokens == first.tokens and damaged.ticket.usage.cached_tokens == 0
    assert not sorted(tmp_path.rglob("*.?"))


def test_other_weights_find_nothing_on_disk(tmp_path: Path) -> None:
    for seed in (0, 1):
        engine = Engine(runner := NativeRunner(executor(seed=seed), STEP), keeper=Keeper(runner, tmp_path))
        heard = ask(engine, text(400), max_tokens=4, temperature=0)
        run(engine)
        assert heard.ticket.usage.cached_tokens == 0
        engine.close()
    assert len(list(tmp_path.iterdir())) == 2


def test_the_oldest_files_go(tmp_path: Path) -> None:
    runner = NativeRunner(executor(), STEP)
    size = runner.cache.page_bytes(2)
    engine = Engine(runner, keeper=Keeper(runner, tmp_path, most=4 * size))
    ask(engine, text(900), max_tokens=4, temperature=0)
    run(engine)
    engine.close()
    assert 0 < sum(path.stat().st_size for path in tmp_path.rglob("*.?")) <= 4 * size


@pytest.mark.parametrize("seed", range(3))
def test_random_days(seed: int) -> None:
    """Requests of all kinds come and are given up at any time, in little memory; whoever stays is answered rightly."""
    rng, model = random.Random(seed), executor()
    engine = over(model, pages=(12, 16, 12), drafter=Lookup())
    prompts = crowd(count=10)
    expected = [alone(model, ids, max_tokens=25, **OPTIONS[i % 6]) for i, ids in enumerate(prompts)]
    asked: list[tuple[int, Heard]] = []
    futures: list[Any] = []
    for _ in range(150):
        i, kind = rng.randrange(10), rng.random()
        if kind < 0.3:
            fields = {"client": rng.choice("abc"), "priority": rng.randrange(2), "salt": rng.choice(["", "s"])}
            asked.append((i, ask(engine, prompts[i], max_tokens=25, **fields, **OPTIONS[i % 6])))
        elif kind < 0.35:
            futures.append(engine.embed(prompts[i], pooling=rng.choice(["mean", "last"])))
        elif kind < 0.4 and len(prompts[i]) > 1:
            futures.append(engine.score(prompts[i], rng.randrange(1, len(prompts[i]))))
        elif kind < 0.45 and asked:
            rng.choice(asked)[1].ticket.cancel()
        elif kind < 0.5 and futures:
            rng.choice(futures).cancel()
        engine.step()
        engine._scheduler.check()
        engine.runner.check()
    run(engine)
    whole = [(i, heard) for i, heard in asked if heard.over]
    assert whole and all(heard.error is None and heard.tokens == expected[i] for i, heard in whole)
    assert all(future.cancelled() or future.exception(0) is None for future in futures)


def test_higher_priorities_take_memory() -> None:
    model = executor()
    engine = over(model, pages=(9, 9, 7))
    low = ask(engine, text(300), max_tokens=60, temperature=0)
    for _ in range(12):
        engine.step()
    high = ask(engine, text(300, seed=9), max_tokens=5, temperature=0, priority=1)
    while not high.over:
        engine.step()
    assert not low.over and engine.stats().preemptions == 1
    run(engine)
    assert low.tokens == alone(model, text(300), max_tokens=60, temperature=0)


def test_open_chooses_its_parts(tmp_path: Path) -> None:
    model = executor()
    small = executor(seed=1)
    for draft in (None, small):
        engine = open_engine(model, memory=32 << 20, cache_dir=tmp_path, draft=draft)
        heard = ask(engine, text(100), max_tokens=30, temperature=0)
        run(engine)
        assert heard.tokens == alone(model, text(100), max_tokens=30, temperature=0)
        assert engine.adapters.names() == []
        engine.close()
    with pytest.raises(OptionError, match="different words"):
        open_engine(model, draft=executor(BLOCKY))


def test_the_plan_is_what_the_engine_does() -> None:
    model = executor()
    memory = 8 << 20
    found = plan(model.config, 1 << 20, model.kv_type, (1 << 20) + memory, 200, STEP)
    runner = NativeRunner(model, STEP, memory)
    assert found.pages == runner.store.counts and found.longest == runner.capacity
    assert 0.8 * memory < found.kv_bytes <= memory
    assert found.sequences == min(
        count // group.pages(200, STEP) for count, group in zip(found.pages, model.groups, strict=True)
    )
    with pytest.raises(CapacityError, match="do not hold"):
        plan(model.config, 1 << 20, model.kv_type, 1 << 20, 200, STEP)


@pytest.mark.parametrize("busy", [False, True])
def test_a_process_ends_with_its_engine_open(busy: bool) -> None:
    """Everything is let go of, so that nobody complains of leaks."""
    ends = "next(engine.stream(Request(ids=text(20), options=Options(max_tokens=40))))" if busy else ""
    script = f"""
from random_networks import BLOCKY, network, text
from geode import engine as engines
from geode.engine.request import Request
from geode.generate import Options
from geode.native import executor

engine = engines.open(executor.open(BLOCKY, network(BLOCKY, "Q8_0"), threads=1))
print(len(engine.generate(Request(ids=text(20), options=Options(max_tokens=4))).tokens))
{ends}
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")
