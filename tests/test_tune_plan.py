"""The planner: exact where numbers are exact, beside what PyTorch really keeps, and what it says when memory is short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import worker

from geode.config import Attn, Config
from geode.errors import CapacityError
from geode.network.axes import Mesh
from geode.tensors import parameters, shapes
from geode.tune import kept
from geode.tune.plan import Machine, Plan, check_memory, plan
from geode.tune.recipe import Batch, Data, Full, Lora, Objective, Optim, Recipe, Run

TINY = Config(
    96, width=64, depth=2, heads=4, kv_heads=2, head_dim=16, ffn=128, context=512, block="sandwich", tied=True
)
MATRICES = tuple(name for name, shape in shapes(TINY).items() if len(shape) == 2 and name.startswith("blk."))
GB = 10**9
LORA = Lora(rank=4)


def made(method: Any = LORA, rows: int = 2, on: str = "torch", dtype: str = "float32", **more: Any) -> Plan:
    run = Run(remat=more.pop("remat", "none"), mesh=more.pop("mesh", {}))
    batch = Batch(rows, more.pop("accumulate", 1))
    optim, objective = Optim(name=more.pop("optim", "adamw")), Objective(name=more.pop("objective", "sft"))
    data = Data(train=("-",), length=more.pop("length", 128))
    recipe = Recipe("tiny", data, method, objective=objective, optim=optim, batch=batch, run=run)
    return again(recipe, on=on, dtype=dtype, **more)


def again(recipe: Recipe, on: str = "torch", dtype: str = "float32", **more: Any) -> Plan:
    is_full = isinstance(recipe.method, Full)
    pairs, whole = ((), tuple(shapes(TINY))) if is_full else (MATRICES, ())
    return plan(TINY, recipe, pairs, whole, on=on, dtype=dtype, **more)


def test_counts_by_hand() -> None:
    """64·64 + 2·32·64 + 64·64 + 3·128·64 a block; four matrices of attention and three of the ffn."""
    inside = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 128 * 64)
    norms = (2 * 4 + 1) * 64
    full, lora = made(Full()), made()
    assert full.parameters == full.trained == parameters(TINY) == inside + norms + 96 * 64
    assert full.memory["weights"] == full.memory["gradients"] == 4 * full.trained
    assert full.memory["optimizer"] == 4 + 8 * full.trained
    pairs = 2 * 4 * (2 * 128 + 2 * 96 + 3 * 192)
    assert lora.trained == pairs
    assert lora.memory["weights"] == 4 * (full.trained + pairs)
    assert lora.memory["gradients"] == 4 * pairs
    assert made(dtype="bfloat16").memory["weights"] == 2 * (inside + 96 * 64) + 4 * (norms + pairs)
    assert lora.tokens == lora.learnt == 256


def test_integers_take_what_they_take() -> None:
    rows = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64)
    numbers = parameters(TINY) - 96 * 64 - 9 * 64
    beside = 4 * (9 * 64 + made().trained)
    assert made(Lora(rank=4, quantize="int8")).memory["weights"] == numbers + 4 * rows + 96 * 68 + beside
    assert made(Lora(rank=4, quantize="int4")).memory["weights"] == numbers * 18 // 32 + 96 * 68 + beside


def test_operations() -> None:
    """Frozen matrices have no gradients of their own; a head whose gradient nobody wants costs no second sweep."""
    lora, full, again = made(), made(Full()), made(remat="block")
    matrices = 2 * 256 * (parameters(TINY) - 96 * 64 - 9 * 64)
    head = 2 * 256 * 96 * 64
    scores = 2 * 4 * 64 * 2 * kept.spans(128, None)
    assert full.flops["forward"] == matrices + scores + 2 * head
    assert full.flops["backward"] == 2 * matrices + scores * 5 // 2 + 2 * head
    low = 2 * 256 * made().trained
    assert lora.flops["forward"] == full.flops["forward"] + low
    assert lora.flops["backward"] == matrices + 2 * low + scores * 5 // 2
    assert again.flops["once more"] == matrices + low + scores
    assert made(accumulate=3).flops == {name: 3 * count for name, count in lora.flops.items()}
    assert made(learnt=0.5).flops["forward"] == lora.flops["forward"] - head


def test_spans_are_those_of_the_network() -> None:
    assert kept.spans(64, None) == 64 * 64
    assert kept.spans(128, None) == 64 * 64 + 64 * 128
    assert kept.spans(100, None) == 64 * 64 + 36 * 100
    assert kept.spans(256, 1) == 4 * 64 * 64


@pytest.mark.parametrize("on", ["torch", "jax"])
def test_more_takes_more(on: str) -> None:
    def most(**more: Any) -> int:
        return made(on=on, **more).memory["activations"]

    assert most(rows=1) < most(rows=2) < most(rows=4)
    assert most(length=128) < most(length=256)
    assert most(remat="block") < most()
    assert most(dtype="bfloat16") < most()
    assert most(objective="dpo") == most(rows=4)
    assert made(on=on, optim="adam8bit", method=Full()).total < made(on=on, method=Full()).total


def test_a_mesh_shares_it_out() -> None:
    one = made(Full(), rows=8, on="jax")
    for mesh in ({"fsdp": 8}, {"tensor": 2, "fsdp": 4}):
        each = made(Full(), rows=8, on="jax", mesh=mesh)
        assert each.devices == 8 and each.trained == one.trained and each.flops == one.flops
        for name in ("weights", "gradients", "optimizer"):
            assert one.memory[name] / 8 <= each.memory[name] < one.memory[name] / 7
    data = made(Full(), rows=8, on="jax", mesh={"data": 8})
    assert data.memory["weights"] == one.memory["weights"]
    assert data.memory["activations"] < one.memory["activations"] / 4
    assert made(Full(), rows=8, on="jax", mesh={"tensor": 4}).notes  # two heads of keys for four devices
    assert again(one.recipe, on="jax", mesh=Mesh(fsdp=2)).memory["weights"] < one.memory["weights"]


def test_time_and_text() -> None:
    machine = Machine(1e12, 1e10)
    said = made(machine=machine)
    assert said.seconds == pytest.approx(sum(said.flops.values()) / 1e12 + said.traffic / 1e10)
    assert said.mfu is not None and 0 < said.mfu < 1
    text = said.text()
    for words in ("parameters", "256 tokens a step", "weights", "activations", "at the peak", "tokens/s"):
        assert words in text
    assert "tokens/s" not in made().text() and made().seconds is None and made().mfu is None
    values = said.as_dict()
    assert values["total"] == said.total and values["mfu"] == said.mfu and values["memory"]["file"] == 0


def test_the_peak_may_be_while_weights_are_read() -> None:
    wide, recipe = TINY.replace(vocab=50_000), made(rows=1, length=8).recipe
    short = plan(wide, recipe, MATRICES, (), on="jax", dtype="bfloat16", file=7)
    assert "while weights are read" in short.text()
    assert short.total == short.memory["framework"] + 7 + short.loading
    assert "while weights are read" not in made(rows=64).text()


def test_what_does_not_fit_is_refused_with_what_helps() -> None:
    said = made(rows=64)
    check_memory(said, said.growth)
    with pytest.raises(CapacityError) as told:
        check_memory(said, said.growth - 1, again)
    message = str(told.value)
    for words in ("activations", "batch.rows=32 batch.accumulate=2", "run.remat=block", "data.length=64", "which fits"):
        assert words in message
    with pytest.raises(CapacityError, match="method=lora"):
        check_memory(made(Full(), rows=1, length=64), 1)


def test_memory_that_nobody_tells_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geode.memory.available", lambda: None)
    check_memory(made(rows=10**6))


@pytest.fixture(scope="module")
def real(once: Callable[..., Any]) -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("keras")
    import json

    folder = once("plan", lambda folder: (folder / "f.json").write_text(json.dumps(worker("plan_worker.py"))))
    return json.loads((folder / "f.json").read_text())


def test_it_counts_as_the_network_does(real: Any) -> None:
    for name, run in real["runs"].items():
        for part in ("weights", "gradients", "optimizer", "trained"):
            assert run[f"plan {part}"] == run[part], (name, part)
    for name, run in real["optims"].items():
        assert run["plan optimizer"] == run["optimizer"], name


def test_it_knows_what_autograd_keeps(real: Any) -> None:
    """Within 5 % of the tensors that PyTorch saves, and the head's gradient, which the loss keeps for itself."""
    for name, run in real["runs"].items():
        if "remat" in name:
            assert run["kept"] < run["plan activations"]  # and one block, when its time comes
        else:
            assert run["plan activations"] == pytest.approx(run["kept"] + run["aside"], rel=0.05), name


def test_other_recipes_keep_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is trained, and what comes after it, is kept."""
    last = tuple(name for name in MATRICES if name.startswith("blk.1."))
    recipe = made().recipe
    late = plan(TINY, recipe, last, (), on="torch", dtype="float32")
    assert late.memory["activations"] < 0.6 * made().memory["activations"]
    assert late.flops["backward"] < made().flops["backward"]
    windowed = plan(TINY.replace(pattern=(Attn(8),)), replace(recipe), MATRICES, (), on="torch", dtype="float32")
    assert windowed.memory["activations"] <= made().memory["activations"]
    assert made().growth < GB
