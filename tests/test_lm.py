"""The face of a model: prompts of every kind, scores, logits, the fake, and what `open` checks before it loads."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import geode
from geode import lm as lms
from geode import memory
from geode.config import Config
from geode.errors import (
    BackendError,
    CapacityError,
    ChatError,
    ContextError,
    MissingExtra,
    OptionError,
    TensorError,
    TokenizerError,
)
from geode.generate import Usage
from geode.lm import Fake, Local
from geode.sampling import log_softmax

WORDS = ["<bos>", "<end>", "the", " capital", " of", " France", " is", " Paris", " ", "  ", ".", "a", "b", "ab"]
SIZE, VOCAB = len(WORDS), len(WORDS) + 2  # two rows of padding


class Words:
    """Longest match first over WORDS."""

    size, bos, ends = SIZE, 0, frozenset({1})
    adds_bos, adds_eos = True, False

    def encode(self, text: str, bos: bool | None = None, special: bool = False) -> list[int]:
        ids = [0] if (self.adds_bos if bos is None else bos) else []
        while text:
            best = max((word for word in WORDS[2:] if text.startswith(word)), key=len)
            ids.append(WORDS.index(best))
            text = text[len(best) :]
        return ids + [1] * (self.adds_eos and bos is None)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(WORDS[i] for i in ids if i > 1)

    def stream(self) -> Any:
        return SimpleNamespace(push=lambda token: self.decode([token]), flush=lambda: "")


class Wordless(Words):
    """The same without a BOS."""

    bos, adds_bos = None, False  # type: ignore[assignment]


class Bigrams:
    """An executor that looks at one token back; rows come two at a time. Padding rows are the likeliest."""

    def __init__(self, context: int = 64):
        self.config = Config(VOCAB, width=8, depth=1, heads=1, kv_heads=1, head_dim=8, ffn=8, context=context)
        self.table = np.random.default_rng(0).standard_normal((VOCAB, VOCAB)).astype(np.float32) * 2
        self.table[:, SIZE:] = 4
        self.batches: list[int] = []

    def rows(self, ids: Sequence[int], start: int = 0) -> Iterator[np.ndarray]:
        for i in range(start, len(ids), 2):
            yield self.table[list(ids[i : i + 2])]

    def prefill(self, prompts: Sequence[Sequence[int]], room: int, needs: Any = None) -> tuple[None, np.ndarray]:
        self.batches.append(len(prompts))
        return self.step(None, [prompt[-1] for prompt in prompts])

    def step(self, state: None, tokens: Sequence[int], needs: Any = None) -> tuple[None, np.ndarray]:
        return None, self.table[list(tokens)]


class Turns:
    """A chat template: every message behind a BOS."""

    def tokens(
        self, messages: list[dict[str, str]], add_generation_prompt: bool = True, tools: Any = None
    ) -> list[int]:
        ids = [i for message in messages for i in Words().encode(message["content"])]
        return ids + [10] * add_generation_prompt


def local(tokenizer: Any = "words", template: Any = None, context: int = 64, **more: Any) -> Any:
    return Local(Bigrams(context), Words() if tokenizer == "words" else tokenizer, template, **more)


def expected_logprobs(model: Any, ids: Sequence[int], start: int) -> list[float]:
    logprobs = log_softmax(model.executor.table)
    return [float(logprobs[ids[i - 1], ids[i]]) for i in range(start, len(ids))]


# Prompts


def test_text_ids_and_messages_are_three_ways_to_ask() -> None:
    model = local(template=Turns())
    text = model.generate("the capital", max_tokens=5, temperature=0)
    assert text.usage.prompt_tokens == 3
    assert model.generate([0, 2, 3], max_tokens=5, temperature=0).tokens == text.tokens
    assert model.generate(np.array([0, 2, 3]), max_tokens=5, temperature=0).tokens == text.tokens
    chat = model.generate([{"role": "user", "content": "the capital"}], max_tokens=5, temperature=0)
    assert chat.tokens == model.generate([0, 2, 3, 10], max_tokens=5, temperature=0).tokens


def test_several_prompts_give_several_results_each_as_if_alone() -> None:
    model = local(template=Turns(), batch=2)
    prompts: list[Any] = ["the", "the capital of", "a", [0, 5], [{"role": "user", "content": "b"}]]
    together = model.generate(prompts, max_tokens=6, seed=4, logprobs=1)
    assert model.executor.batches == [2, 2, 1]
    for prompt, result in zip(prompts, together, strict=True):
        alone = model.generate(prompt, max_tokens=6, seed=4, logprobs=1)
        assert (result.text, result.tokens, result.finish_reason) == (alone.text, alone.tokens, alone.finish_reason)
        assert result.logprobs == pytest.approx(alone.logprobs, abs=1e-6)


@pytest.mark.parametrize("prompt", [None, 3, {"role": "user"}, [1.5], [True], [None], object(), [[1], [2, "x"]], b"ab"])
def test_prompts_of_no_known_kind_are_refused(prompt: Any) -> None:
    with pytest.raises(OptionError, match="Expected a text, a list of messages"):
        local().generate(prompt)


def test_ids_outside_the_vocabulary_are_named() -> None:
    with pytest.raises(OptionError, match=rf"0 to {VOCAB - 1}; {VOCAB} was given"):
        local().generate([1, VOCAB])
    with pytest.raises(OptionError, match="-1 was given"):
        local().logits([1, -1])


def test_an_empty_prompt_needs_a_bos() -> None:
    assert local().generate("", max_tokens=1).usage.prompt_tokens == 1
    for prompt in ("", []):
        with pytest.raises(OptionError, match="empty"):
            local(Wordless()).generate(prompt)


def test_a_conversation_needs_a_template_and_a_tokenizer() -> None:
    with pytest.raises(ChatError, match="no chat template"):
        local().generate([{"role": "user", "content": "the"}])
    with pytest.raises(TokenizerError, match="without a tokenizer"):
        local(None).generate([{"role": "user", "content": "the"}])


def test_unknown_options_are_listed_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"Unknown options: temp, top_x\..*max_tokens.*temperature"):
        local().stream("the", temp=1, top_x=2)


def test_errors_come_before_the_first_piece_is_asked_for() -> None:
    with pytest.raises(ContextError, match=r"2 tokens.*100.*64"):
        local().stream("the", max_tokens=100)


def test_a_text_that_goes_on_gets_no_eos() -> None:
    class Closing(Words):
        adds_eos = True

    model, plain = local(Closing()), local()
    assert model.tokenize("the") == [0, 2, 1]
    assert model.generate("the", max_tokens=3, seed=0).tokens == plain.generate([0, 2], max_tokens=3, seed=0).tokens
    assert model.score("the", " capital") == plain.score("the", " capital")


# Answers


def test_a_stream_carries_pieces_usage_and_the_reason_of_its_end() -> None:
    model = local()
    stream = model.stream("the", max_tokens=4, temperature=0, logprobs=2)
    assert stream.finish_reason is None
    pieces = list(stream)
    assert stream.finish_reason == pieces[-1].finish_reason
    assert stream.usage.completion_tokens == len(pieces)
    assert stream.usage.total_tokens == len(pieces) + 2
    result = model.generate("the", max_tokens=4, temperature=0, logprobs=2)
    assert result.text == "".join(piece.text for piece in pieces)
    assert result.tokens == [piece.token for piece in pieces]
    assert result.logprobs == [piece.logprob for piece in pieces]
    assert result.top_logprobs == [piece.top_logprobs for piece in pieces]


def test_logprobs_are_absent_unless_asked_for() -> None:
    result = local().generate("the", max_tokens=2)
    assert (result.logprobs, result.top_logprobs) == (None, None)


def test_generated_logprobs_are_those_of_score() -> None:
    model = local()
    for temperature in (0, 1):
        result = model.generate([0, 2], max_tokens=6, temperature=temperature, seed=0, logprobs=0)
        score = model.score([0, 2], result.tokens)
        assert result.logprobs == pytest.approx(score.token_logprobs, abs=1e-5)
        assert score.is_greedy == (temperature == 0)


def test_both_kinds_of_end_tokens_end() -> None:
    script = [" is", "."]
    model = Fake(lambda prompt: "".join(script))
    assert model.generate("x", temperature=0).finish_reason == "stop"
    model.ends = model.ends | {ord(".")}
    assert model.generate("x", temperature=0).text == " is"
    assert local(ends={7}).ends == {1, 7}
    assert local(None, ends={7}).ends == {7}


def test_a_stream_may_be_closed_early() -> None:
    stream = local().stream("the", temperature=0)
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []
    assert stream.usage.completion_tokens == 1


def test_the_default_is_the_models_own_distribution() -> None:
    model = local()
    texts = {model.generate("the", max_tokens=8, seed=seed).text for seed in range(8)}
    assert len(texts) > 4
    assert model.generate("the", max_tokens=8, seed=3).text == model.generate("the", max_tokens=8, seed=3).text


def test_speed_is_counted() -> None:
    usage = local().generate("the", max_tokens=8, temperature=0).usage
    assert usage.prompt_seconds > 0
    assert usage.completion_seconds > 0
    assert usage.prompt_speed == usage.prompt_tokens / usage.prompt_seconds
    assert usage.speed == (usage.completion_tokens - 1) / usage.completion_seconds
    assert Usage().speed == Usage().prompt_speed == 0


def test_without_a_tokenizer_ids_go_in_and_come_out() -> None:
    model = local(None)
    result = model.generate([0, 2], max_tokens=3, temperature=0)
    assert (result.text, len(result.tokens)) == ("", 3)
    for ask in (lambda: model.generate("the"), lambda: model.tokenize("the"), lambda: model.detokenize([2])):
        with pytest.raises(TokenizerError, match="without a tokenizer"):
            ask()


def test_texts_and_ids() -> None:
    model = local()
    assert model.tokenize("the capital") == [0, 2, 3]
    assert model.tokenize("the capital", bos=False) == [2, 3]
    assert model.detokenize([0, 2, 3]) == "the capital"
    assert model.detokenize([]) == ""
    with pytest.raises(OptionError, match="needs a text; list"):
        model.tokenize([1])


# Scores and logits


def test_score_sums_the_continuations_tokens() -> None:
    model = local()
    score = model.score("the capital of France is", " Paris.")
    assert score.tokens == [7, 10]
    assert score.token_logprobs == pytest.approx(expected_logprobs(model, [0, 2, 3, 4, 5, 6, 7, 10], 6), abs=1e-5)
    assert score.logprob == pytest.approx(sum(score.token_logprobs))
    assert score == model.score([0, 2, 3, 4, 5, 6], [7, 10])


def test_spaces_that_end_the_context_count_to_the_continuation() -> None:
    model = local()
    assert model.score("the capital ", "a") == model.score("the capital", " a")
    assert model.score("the  ", "a").tokens == [9, 11]


def test_tokens_are_those_of_the_joined_text() -> None:
    score = local().score("the a", "b")  # "ab" is one token, and takes the place of the context's last
    assert score.tokens == [13]


def test_an_empty_context_is_bos_or_an_error() -> None:
    model = local()
    for score in (model.score("", "the"), model.score([], [2]), model.score([0], [2])):
        assert score.tokens == [2]
        assert score.token_logprobs == pytest.approx(expected_logprobs(model, [0, 2], 1), abs=1e-5)
    assert model.score("  ", "a").tokens == [9, 11]
    for ask in (lambda: local(Wordless()).score("", "the"), lambda: local(None).score([], [2])):
        with pytest.raises(OptionError, match="no BOS"):
            ask()


def test_score_refuses_what_it_cannot_score() -> None:
    model = local()
    for continuation in ("", []):
        with pytest.raises(OptionError, match="continuation is empty"):
            model.score("the" if continuation == "" else [2], continuation)
    with pytest.raises(OptionError, match="two texts or two lists"):
        model.score("the", [2])
    with pytest.raises(ContextError, match=r"65 tokens.*64"):
        model.score([2] * 60, [2] * 5)
    model.executor.table[2, 3] = np.nan
    with pytest.raises(TensorError, match="NaN"):
        model.score([2], [3, 4])


def test_is_greedy_passes_over_padding_rows() -> None:
    model = local()
    best = int(model.executor.table[2, :SIZE].argmax())
    assert model.score([2], [best]).is_greedy
    assert not model.score([2], [(best + 1) % SIZE]).is_greedy


def test_logits_are_raw_and_whole() -> None:
    model = local()
    logits = model.logits([2, 3, 4, 5, 6])
    assert (logits.shape, logits.dtype) == ((5, VOCAB), np.float32)
    np.testing.assert_array_equal(logits, model.executor.table[[2, 3, 4, 5, 6]])
    assert model.logits([2] * 64).shape == (64, VOCAB)
    with pytest.raises(ContextError, match=r"65 tokens.*64"):
        model.logits([2] * 65)
    with pytest.raises(OptionError, match="empty"):
        model.logits([])
    with pytest.raises(OptionError, match="Expected"):
        model.logits([[1, 2], [3, 4]])


def test_rows_are_logits_in_chunks_from_any_position() -> None:
    model = local()
    ids = [2, 3, 4, 5, 6]
    chunks = list(model.rows(ids))
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(chunks), model.logits(ids))
    np.testing.assert_array_equal(np.concatenate(list(model.rows(ids, 3))), model.logits(ids)[3:])
    for start in (-1, 5):
        with pytest.raises(OptionError, match=f"positions? of one of the 5 ids; {start} was given"):
            model.rows(ids, start)
    with pytest.raises(OptionError, match="one of the 0 ids"):
        model.rows([])
    with pytest.raises(ContextError, match=r"65 tokens.*64"):
        model.rows([2] * 65)


def test_close_tells_the_executor_if_it_can_be_told() -> None:
    model = local()
    model.close()
    closed: list[int] = []
    model.executor.close = lambda: closed.append(1)
    model.close()
    assert closed == [1]


# The fake


def test_fake_gives_its_answers_in_turn_at_any_temperature() -> None:
    fake = Fake(["Paris, café.", "Rome"])
    assert [fake.generate("?").text for _ in range(3)] == ["Paris, café.", "Rome", "Paris, café."]
    assert [result.text for result in fake.generate(["a", "b"])] == ["Rome", "Paris, café."]  # type: ignore[union-attr]


def test_fake_answers_by_the_prompt_and_echoes_without_answers() -> None:
    fake = Fake(lambda prompt: f"<{prompt}>")
    assert fake.generate([{"role": "user", "content": "Hi"}]).text == "<user: Hi\nassistant: >"  # type: ignore[union-attr]
    assert Fake().generate("echo").text == "echo"  # type: ignore[union-attr]


def test_fake_keeps_to_the_same_options_as_any_model() -> None:
    fake = Fake(["one two three"])
    assert fake.generate("x", stop=" t").text == "one"  # type: ignore[union-attr]
    assert fake.generate("x", max_tokens=3).finish_reason == "length"  # type: ignore[union-attr]
    assert [piece.text for piece in fake.stream("x")] == [*"one two three", ""]
    with pytest.raises(ContextError):
        Fake(context=4).generate("too long")


def test_fake_scores_its_own_answer_above_others() -> None:
    fake = Fake(["Paris"])
    good, bad = fake.score("The capital of France is", "Paris"), fake.score("The capital of France is", "London")
    assert good.logprob > -1e-6 > -50 > bad.logprob
    assert (good.is_greedy, bad.is_greedy) == (True, False)
    assert fake.generate("The capital of France is").text == "Paris"  # type: ignore[union-attr]


def test_local_and_fake_wear_the_face() -> None:
    wanted = {name for name in vars(lms.LM) if not name.startswith("_")}
    assert wanted == {"config", "stream", "generate", "score", "tokenize", "detokenize"}
    assert all(hasattr(model, name) for model in (local(), Fake()) for name in wanted)


# Opening


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    """A module of `contents` in the place of the real one."""
    module = ModuleType(name)
    module.__dict__.update(contents)
    parent, _, child = name.rpartition(".")
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(importlib.import_module(parent), child, module, raising=False)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand-ins for the rooms that `open` walks through; `asked` tells what the executor was asked for."""
    executor = Bigrams()
    found = SimpleNamespace(
        config=executor.config, tensors={}, stored=SimpleNamespace(nbytes=1000), tokenizer=Words(), template=None,
        chat="plain", ends=frozenset({10}),
    )  # fmt: skip
    calls: dict[str, Any] = {}

    def open_executor(config: Config, tensors: Any, **options: Any) -> Bigrams:
        calls.update(options)
        return executor

    def open_native(config: Config, tensors: Any, *options: Any) -> Bigrams:
        calls.update(on="native", native=options)
        return executor

    stand_in(monkeypatch, "geode.checkpoint", open=lambda path, *_, **__: calls.update(path=path) or found)
    stand_in(monkeypatch, "geode.io.hub", resolve=lambda name: Path("/models") / name)
    stand_in(monkeypatch, "geode.network.executor", open=open_executor)
    stand_in(monkeypatch, "geode.native.executor", open=open_native)
    stand_in(monkeypatch, "geode.native.extension", is_there=lambda: "native" not in calls.get("absent", ()))
    stand_in(monkeypatch, "geode.chat", Template=lambda *parts, check=True: (*parts, check), builtin=str.upper)
    monkeypatch.setattr(lms, "_installed", lambda package: package not in calls.get("absent", ()))
    monkeypatch.setattr(lms, "_active", lambda: calls.get("active"))
    monkeypatch.setattr(lms, "accelerated", lambda: calls.get("accelerated", False))
    return SimpleNamespace(found=found, calls=calls)


def test_open_puts_the_rooms_together(house: SimpleNamespace) -> None:
    model = geode.load("gemma3:270m", on="jax", dtype="float32", threads=3)
    options = {"on": "jax", "dtype": "float32", "threads": 3, "quantize": None}
    assert house.calls == {"path": Path("/models/gemma3:270m")} | options
    assert model.tokenizer is house.found.tokenizer
    assert model.template == ("PLAIN", house.found.tokenizer, False)
    assert not model.own_template
    assert model.ends == {1, 10}
    house.found.template = "own"
    own = geode.load("x")
    assert (own.template, own.own_template) == (("own", house.found.tokenizer, True), True)
    house.found.tokenizer = None
    assert (geode.load("x").template, geode.load("x").own_template) == (None, False)


def test_native_gets_its_own_options(house: SimpleNamespace) -> None:
    geode.load("x", threads=3)
    assert house.calls["native"] == ("auto", 3, "auto", None)
    geode.load("x", on="native", kv_type="q8_0", quantize="q4_0")
    assert house.calls["native"] == ("auto", None, "q8_0", "q4_0")
    with pytest.raises(OptionError, match="native engine's; this model runs on torch"):
        geode.load("x", on="torch", kv_type="q8_0")
    with pytest.raises(OptionError, match="natively 'q4_0' is its like"):
        geode.load("x", on="native", quantize="int4")


def test_frameworks_get_integers(house: SimpleNamespace) -> None:
    geode.load("x", on="torch", quantize="int8")
    assert house.calls["quantize"] == "int8"
    geode.load("x", on="torch")
    assert house.calls["quantize"] is None
    with pytest.raises(OptionError, match=r"'q4_0' is no storage of torch's.*int8 or int4"):
        geode.load("x", on="torch", quantize="q4_0")


def test_auto_takes_the_active_backend_else_native_else_a_framework(house: SimpleNamespace) -> None:
    def chosen(**calls: Any) -> str:
        house.calls |= {"absent": (), "accelerated": False, "active": None} | calls
        geode.load("x")
        return str(house.calls["on"])

    assert chosen() == "native"
    assert chosen(active="tensorflow") == "tensorflow"
    assert chosen(accelerated=True) == "torch"
    assert chosen(accelerated=True, absent=("torch",)) == "jax"
    assert chosen(accelerated=True, absent=("torch", "jax", "tensorflow")) == "native"
    assert chosen(accelerated=True, absent=("keras",)) == "native"
    assert chosen(absent=("native",)) == "torch"
    assert chosen(absent=("native", "torch", "jax")) == "tensorflow"


def test_accelerators_are_files_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lms, "ACCELERATORS", (str(tmp_path / "device"),))
    assert not lms.accelerated()
    (tmp_path / "device").touch()
    assert lms.accelerated()


def test_backends_that_are_not_there(house: SimpleNamespace) -> None:
    for name in ("numpy", "gpu", ""):
        with pytest.raises(BackendError, match="native, torch, jax, tensorflow"):
            geode.load("x", on=name)
    house.calls["active"] = "openvino"
    with pytest.raises(BackendError, match=r"'openvino' was asked for .by KERAS_BACKEND"):
        geode.load("x")
    house.calls["active"] = None
    house.calls["absent"] = ("native", "torch", "jax", "tensorflow")
    with pytest.raises(MissingExtra, match=r"without the native engine.*geode\[torch\]"):
        geode.load("x")
    with pytest.raises(MissingExtra, match=r"geode\[jax\]"):
        geode.load("x", on="jax")
    house.calls["absent"] = ("keras",)
    with pytest.raises(MissingExtra, match=r"'keras'.*geode\[tensorflow\]"):
        geode.load("x", on="tensorflow")


def test_the_active_backend_is_keras_own_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert lms._active() == "jax"
    monkeypatch.setenv("KERAS_BACKEND", "")
    assert lms._active() is None
    monkeypatch.setitem(sys.modules, "keras", SimpleNamespace(config=SimpleNamespace(backend=lambda: "tensorflow")))
    assert lms._active() == "tensorflow"


@pytest.mark.parametrize(("dtype", "says"), [("float16", "65504"), ("int8", "auto, float32, bfloat16; 'int8'")])
def test_dtypes_that_are_refused(house: SimpleNamespace, dtype: str, says: str) -> None:
    with pytest.raises(BackendError, match=says):
        geode.load("x", dtype=dtype)
    assert "path" not in house.calls


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_are_counted_from_one(house: SimpleNamespace, threads: Any) -> None:
    with pytest.raises(OptionError, match="threads"):
        geode.load("x", threads=threads)


def test_check_names_the_damaged_tensors(house: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    bad: list[str] = []
    stand_in(monkeypatch, "geode.quant", find_nonfinite=lambda tensors: bad)
    geode.load("x", check=True)
    bad += [f"blk.{i}.attn_q.weight" for i in range(10)]
    geode.load("x")
    with pytest.raises(TensorError, match=r"10 tensors.*blk\.0\.attn_q\.weight.*and 2 more"):
        geode.load("x", check=True)


BIG = Config(256_000, width=3072, depth=28, heads=16, kv_heads=16, head_dim=256, ffn=24576, context=8192, tied=True)


def test_a_model_larger_than_memory_is_refused_before_it_is_loaded(
    house: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.found.config = BIG
    monkeypatch.setattr(memory, "available", lambda: 20 * 2**30)
    geode.load("x", on="torch", dtype="bfloat16")
    house.calls.pop("on")
    for on in ("torch", "native"):
        with pytest.raises(CapacityError, match=r"35\.3 GiB.*20\.0 GiB.*bfloat16.*smaller"):
            geode.load("x", on=on, dtype="float32")
    assert "on" not in house.calls


def test_native_needs_what_the_file_has(house: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    house.found.config, house.found.stored = BIG, SimpleNamespace(nbytes=5 * 2**30)
    monkeypatch.setattr(memory, "available", lambda: 8 * 2**30)
    geode.load("x")
    monkeypatch.setattr(memory, "available", lambda: 6 * 2**30)
    house.calls.pop("on")
    with pytest.raises(CapacityError, match=r"6\.8 GiB.*6\.0 GiB.*fewer bits.*--quantize"):
        geode.load("x")
    assert "on" not in house.calls


def test_memory_needed_is_weights_and_cache() -> None:
    config = Bigrams().config
    count = 2 * VOCAB * 8 + 4 * 64 + 3 * 64 + 3 * 8  # embedding and head, attention, gate/up/down, three norms
    assert lms.memory_needed(config, "float32", 10) == 4 * (count + 10 * 2 * 8)
    assert lms.memory_needed(config, "bfloat16", 1000) == 2 * (count + 64 * 2 * 8)
    assert lms.memory_needed(config, tokens=10, stored=7) == 7 + 2 * 10 * 2 * 8


def test_available_memory_heeds_the_machine_and_both_kinds_of_cgroup(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert memory.available(tmp_path) == 8000 * 1024
    write("sys/fs/cgroup/memory.stat", "anon 1\nfile 500\n")
    write("sys/fs/cgroup/memory.current", "3000\n")
    write("sys/fs/cgroup/memory.max", "max\n")
    assert memory.available(tmp_path) == 8000 * 1024
    write("sys/fs/cgroup/memory.max", "10000\n")
    assert memory.available(tmp_path) == 7500
    write("sys/fs/cgroup/memory/memory.stat", "total_cache 50\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "900\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n")
    assert memory.available(tmp_path) == 150


def test_this_machine_has_memory() -> None:
    free = memory.available()
    assert free is None or free > 2**20


# The package


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_geode_imports_nothing_heavy() -> None:
    found = run("import geode, sys; print(geode.__version__, *sys.modules)").split()
    assert found[0] == geode.__version__
    assert not {"numpy", "keras", "torch", "jax", "tensorflow"} & set(found)


def test_the_face_imports_no_framework() -> None:
    found = run("import geode, sys; geode.Fake(['Hi']).generate('x'); print(*sys.modules)").split()
    assert "numpy" in found
    assert not {"keras", "torch", "jax", "tensorflow", "transformers"} & set(found)


def test_the_public_names_are_there() -> None:
    assert set(geode.__all__) == set.union(*geode._ROOMS.values()) | {"__version__"}
    for name in geode.__all__:
        assert name in dir(geode)
        assert getattr(geode, name)
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = geode.nothing_like_that
