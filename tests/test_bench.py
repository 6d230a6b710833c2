"""Speed on a clock that the tests turn: what is counted, what is not, the table and the document."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from geode import bench, generate, lm
from geode.cli import bench as verb
from geode.cli import main
from geode.config import Config
from geode.errors import ContextError, OptionError
from geode.tensors import flops_per_token, parameters

VOCAB, BOS, END = 50, 7, 9


class Clocked:
    """An executor that takes 10 ms a prompt token and 50 ms a step, ten times that in its first run."""

    def __init__(self, context=8192):
        self.config = Config(VOCAB, width=8, depth=1, heads=1, kv_heads=1, head_dim=8, ffn=8, context=context)
        self.now = 0.0
        self.runs = 0
        self.log = []

    def pass_time(self, seconds):
        self.now += seconds * (10 if self.runs == 1 else 1)

    def prefill(self, prompts, room, needs=None):
        self.runs += 1
        self.log.append([*map(len, prompts), 0])
        self.prompt = prompts[0]
        self.pass_time(0.01 * len(prompts[0]))
        return "state", self.logits()

    def step(self, state, tokens, needs=None):
        assert tokens == [END]
        self.log[-1][-1] += 1
        self.pass_time(0.05)
        return "state", self.logits()

    def logits(self):
        return np.eye(VOCAB, dtype=np.float32)[[END]]


@pytest.fixture
def model(monkeypatch):
    """A model whose likeliest token is always the end of the text, on its executor's clock."""
    executor = Clocked()
    tokenizer = SimpleNamespace(size=VOCAB - 10, bos=BOS, adds_bos=True, ends=frozenset({END}))
    monkeypatch.setattr(generate, "perf_counter", lambda: executor.now)
    return lm.Local(executor, tokenizer, ends={END})


def test_a_prompt_is_timed_to_its_last_logits(model):
    timing = bench.run(model, bench.Test("pp", 64), repeat=3)
    assert timing.samples == pytest.approx([100, 100, 100]) and timing.deviation == pytest.approx(0, abs=1e-6)
    assert model.executor.log == [[64, 0]] * 4, "one run more, to warm up"
    prompt = model.executor.prompt
    assert prompt[0] == BOS and max(prompt) < VOCAB - 10 and len(set(prompt)) > 10


@pytest.mark.parametrize(("depth", "before"), [(0, 1), (32, 32)])
def test_generation_is_so_many_steps_whatever_ends_the_text(model, depth, before):
    timing = bench.run(model, bench.Test("tg", 12, depth), repeat=2)
    assert timing.samples == pytest.approx([20, 20])
    assert model.executor.log == [[before, 12]] * 3


def test_prompts_are_the_same_every_time(model):
    prompts = []
    for seed in (0, 0, 1):
        bench.run(model, bench.Test("pp", 16), repeat=1, seed=seed)
        prompts.append(model.executor.prompt)
    assert prompts[0] == prompts[1] != prompts[2]


def test_mean_and_deviation_are_llama_benchs():
    timing = bench.Timing(bench.Test("tg", 4), (1.0, 2.0, 6.0))
    assert timing.speed == 3 and timing.deviation == pytest.approx(7**0.5)  # over n - 1
    assert bench.Timing(timing.test, (5.0,)).deviation == 0


def test_names():
    assert [bench.Test("pp", 512).name, bench.Test("tg", 128).name, bench.Test("tg", 128, 4096).name] == [
        *("pp512", "tg128", "tg128@4096")
    ]


def test_what_the_context_cannot_hold_is_refused_before_anything_runs(model):
    with pytest.raises(ContextError, match="pp9000 needs a context of 9001 tokens, and the model's holds 8192"):
        bench.check(model, [bench.Test("pp", 64), bench.Test("pp", 9000)])
    with pytest.raises(ContextError, match="tg192@8000 needs a context of 8193"):
        bench.check(model, [bench.Test("tg", 192, 8000)])
    bench.check(model, [bench.Test("tg", 191, 8000)])
    with pytest.raises(OptionError):
        bench.run(model, bench.Test("pp", 8), repeat=0)
    assert model.executor.log == []


def test_a_prompts_arithmetic_has_one_head_in_all(model):
    config = model.config
    whole = sum(flops_per_token(config, 5) for _ in range(10)) - 9 * 2 * config.vocab * config.width
    assert bench.prompt_flops(model, 10) * 10 == pytest.approx(whole)


def test_the_machine_is_measured_where_the_extension_is(monkeypatch):
    def missing(*_):
        raise ModuleNotFoundError

    monkeypatch.setattr(bench, "import_module", missing)
    assert bench.machine(2) == (None, None)
    found = SimpleNamespace(bandwidth=lambda threads: 1e9 * threads, peak=lambda threads: 1e12 * threads)
    monkeypatch.setattr(bench, "import_module", lambda *_: found)
    assert bench.machine(2) == (2e9, 2e12)


def test_peak_memory_grows_with_what_is_held():
    before = bench.peak_memory()
    if before is None:
        pytest.skip("this system does not tell how much memory a process had")
    block = np.ones(before + (1 << 20), np.uint8)
    assert bench.peak_memory() > before
    del block


# --- the verb ----------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(model, monkeypatch):
    """What `open` was asked for; a file of 2 MiB, memory of 10 GB/s and a peak of 1 TFLOP/s a thread."""
    asked = []

    def open_it(name, **how):
        asked.append((name, how))
        return model

    monkeypatch.setattr(lm, "open", open_it)
    monkeypatch.setattr(verb, "_stored", lambda name: 2 << 20)
    monkeypatch.setattr(bench, "machine", lambda threads: (1e10 * threads, 1e12 * threads) if threads else (None, None))
    return asked


def tell(model, threads=2):
    """Gives the executor facts as a native one has them."""
    model.executor.facts = lambda: {
        "backend": "native",
        "isa": "avx2",
        "threads": threads,
        "weights_bytes": 3_000_000,
        "bytes_per_token": lambda depth: 1_000_000 + 1000 * depth,
    }


WORDS = ["bench", "some/stone.gguf", "--on", "torch", "--prompt", "16", "--generate", "8"]


def test_the_document_keeps_its_contract(opened, model, capsys):
    tell(model)
    assert main([*WORDS, "--depth", "0,100", "--repeat", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    ((name, how),) = opened
    assert (name, how["on"], how["threads"]) == ("some/stone.gguf", "torch", None)
    assert document["model"] == "some/stone.gguf" and document["backend"] == "native" and document["isa"] == "avx2"
    assert document["threads"] == 2 and document["load_seconds"] >= 0 and document["weights_bytes"] == 3_000_000
    assert document["bytes_per_token"] == 1_000_000 and document["parameters"] == parameters(model.config)
    assert document["bandwidth"] == 2e10 and document["peak_flops"] == 2e12
    if sys.platform == "linux":
        assert document["peak_rss"] > 1_000_000
    pp, tg, deep = document["tests"]
    assert (pp["test"], pp["tokens"], pp["stddev"]) == ("pp16", 16, pytest.approx(0, abs=1e-6))
    assert pp["tokens_per_second"] == pytest.approx(100) and len(pp["samples"]) == 2
    assert pp["of_peak"] == pytest.approx(100 * bench.prompt_flops(model, 16) / 2e12)
    assert (tg["test"], tg["tokens_per_second"]) == ("tg8", pytest.approx(20))
    assert (deep["test"], deep["depth"], deep["bytes_per_token"]) == ("tg8@100", 100, 1_104_000)
    assert deep["of_bandwidth"] == pytest.approx(20 * 1_104_000 / 2e10)


def test_what_the_executor_does_not_tell_is_null(opened, capsys):
    assert main([*WORDS, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    unknown = ("isa", "threads", "bytes_per_token", "bandwidth", "peak_flops")
    assert [document[name] for name in unknown] == [None] * 5
    assert document["backend"] == "torch" and document["weights_bytes"] == document["size"] == 2 << 20
    assert document["tests"][1]["of_bandwidth"] is None and document["tests"][0]["of_peak"] is None


def test_several_thread_counts_are_several_documents(opened, capsys):
    assert main([*WORDS, "--threads", "1,2", "--kv-type", "q8_0", "--repeat", "1", "--json"]) == 0
    assert [document["threads"] for document in json.loads(capsys.readouterr().out)] == [1, 2]
    assert [(how["threads"], how["kv_type"]) for _, how in opened] == [(1, "q8_0"), (2, "q8_0")]


def test_the_table_is_llama_benchs(opened, model, capsys):
    tell(model)
    assert main([*WORDS, "--depth", "0,4000", "--repeat", "2"]) == 0
    table, remarks = capsys.readouterr().out.split("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0] == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert all(set(cell) <= {"-", ":"} for cell in rows[1])
    shared = ["stone.gguf", "2.00 MiB", f"{parameters(model.config) / 1e6:.2f} M", "native", "2"]
    assert rows[2:] == [
        [*shared, "pp16", "100.00 ± 0.00"],
        [*shared, "tg8", "20.00 ± 0.00"],
        [*shared, "tg8 @ d4000", "20.00 ± 0.00"],
    ]
    assert len({len(line) for line in table.splitlines()}) == 1, "the columns are crooked"
    lines = remarks.splitlines()
    assert lines[0].startswith("threads 2 · avx2 · loaded in ") and "3.0 MB of weights" in lines[0]
    assert lines[1].startswith("pp16: ") and "% of the matrix units' 2,000.0" in lines[1]
    assert lines[3] == "tg8@4000: 5.0 MB a token, 0.1 GB/s, 1% of the memory's 20.0 GB/s"


def test_zero_tokens_are_no_test(opened, capsys):
    assert main([*WORDS, "--prompt", "0", "--repeat", "1", "--json"]) == 0
    assert [test["test"] for test in json.loads(capsys.readouterr().out)["tests"]] == ["tg8"]
    assert main([*WORDS, "--prompt", "0", "--generate", "0"]) == 2
    assert "both 0" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--prompt", "--threads", "--depth"])
@pytest.mark.parametrize("value", ["x", "1,,2", "-1", "1.5"])
def test_lists_are_numbers_with_commas(opened, capsys, flag, value):
    assert main(["bench", "m", f"{flag}={value}"]) == 2
    assert "numbers of 0 or more" in capsys.readouterr().err and opened == []


def test_a_repetition_at_least(opened, capsys):
    assert main(["bench", "m", "--repeat", "0"]) == 2
    assert "1 or more" in capsys.readouterr().err and opened == []
