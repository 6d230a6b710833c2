"""Objectives on one framework, against their papers' formulas on transformers' network in float64; prints JSON.

python objectives_worker.py FRAMEWORK FOLDER. "torch" fills the folder with tiny models and what is expected, and looks
at what a run does; the others compare with what they find there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from objectives_cases import BASELINE, LENGTH, OPTIONS, TRAINED, documents, judged, pairs, reference_of

from geode import adapters, checkpoint
from geode.errors import GeodeError
from geode.network import backend
from geode.tune import besides, references
from geode.tune.batches import Steps, each_once
from geode.tune.recipe import Batch, Data, Objective, Optim, Recipe, Run


def opened(folder: Path, name: str) -> Any:
    from geode.network.decoder import Decoder

    found = checkpoint.open(folder / name)
    return Decoder(found.config, found.tensors.__getitem__)


# Formulas


def compare(folder: Path, packed: bool) -> dict[str, Any]:
    """How far figures are from what is expected, and gradients of the weighted sum, as a share of the largest."""
    from geode.network import lora
    from geode.network.distillation import Teacher
    from geode.network.score import attach

    expected, options = np.load(folder / "expected.npz"), OPTIONS["distil"]
    teacher = Teacher(opened(folder, "teacher"), 96, options.top, options.temperature)
    decoder = opened(folder, "student")
    trained = lora.freeze(decoder, TRAINED) | attach(decoder, expected["score"])
    frozen = [v for v in decoder.variables if not v.trainable]
    both = combined(expected)
    run = backend.differentiate(lambda batch: both(decoder, batch), list(trained.values()), frozen)
    total, sums = None, dict.fromkeys((name for name in expected if name.startswith((*OPTIONS,))), 0.0)
    for micro in each_once(pairs(), length=LENGTH, rows=4 if packed else 1, packed=packed):
        figures, total = run(given(micro, teacher), total)
        for name, value in figures.items():
            sums[name] += float(backend.to_numpy(value))
    gradients = dict(zip(trained, map(backend.to_numpy, total), strict=True))  # type: ignore[call-overload]
    return {
        "figures": {name: abs(sums[name] - float(expected[name])) for name in figures},
        "gradients": {name: distance(array, expected[name]) for name, array in gradients.items()},
    }


def combined(expected: Any) -> Any:
    """All objectives at once, over the same hidden states and log-probabilities: one small program to compile."""
    from geode.network.answers import hidden
    from geode.network.objectives import objective

    every = {name: objective(options) for name, options in OPTIONS.items()}

    def both(decoder: Any, batch: Any) -> Any:
        own = type(decoder)
        h = own.hidden(decoder, batch["tokens"], batch["positions"], batch["segments"])
        decoder.hidden = lambda *arguments: h
        logp = own.logprobs(decoder, hidden(decoder, batch), batch["targets"])
        decoder.logprobs = lambda *arguments: logp
        found = {name: one(decoder, batch) for name, one in every.items()}
        del decoder.hidden, decoder.logprobs
        total = sum(float(expected[f"{name}.weight"]) * loss for name, (loss, _) in found.items())
        return total, {f"{name}.{key}": value for name, (_, figures) in found.items() for key, value in figures.items()}

    return both


def given(micro: Any, teacher: Any) -> dict[str, np.ndarray]:
    """The arrays of a micro-batch with what all objectives take beside."""
    arrays = micro.arrays()
    known = {references.keys(next(each_once([one], length=LENGTH)))[0]: reference_of(one) for one in documents()}
    return arrays | teacher(arrays) | {"reference": references.reference(micro, known), "baseline": np.array(BASELINE)}


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


def odds() -> list[float]:
    """log p / (1 - p) for log p from all but certain to all but impossible."""
    from keras import ops

    from geode.network.preferences import _log_odds

    return [float(v) for v in backend.to_numpy(_log_odds(ops.convert_to_tensor(np.array(LOGP, np.float32))))]


LOGP = [0.0, -1e-4, -0.01, -0.5, -3.0, -40.0]

# Runs


def trainer(folder: Path, recipe: Recipe) -> Any:
    """A LoRA on some matrices of the student, and a score where one is trained."""
    from geode.network import lora, optimizers
    from geode.network.objectives import objective
    from geode.network.score import attach
    from geode.network.training import Trainer

    decoder = opened(folder, "student")
    trained = lora.freeze(decoder)
    trained |= lora.attach(decoder, ["blk.0.attn_q.weight", "blk.0.ffn_down.weight"], rank=4, scale=2.0)
    if recipe.objective.name == "reward":
        trained |= attach(decoder)
    return Trainer(decoder, trained, optimizers.make(recipe.optim, [*trained.values()]), objective(recipe.objective))


def recipe_of(objective: Objective, **batch: int) -> Recipe:
    data, run = Data(length=LENGTH, pack=False), Run(steps=COUNT)
    return Recipe("student", data, objective=objective, optim=Optim(lr=RATE), batch=Batch(**batch), run=run)


COUNT, RATE = 4, 1e-2


def steps_of(folder: Path, objective: Objective, rows: int, accumulate: int) -> list[dict[str, float]]:
    """The figures of a few steps over all items."""
    out = folder / f"{objective.name} {objective.reference} {rows}"
    out.mkdir()
    every = judged() if objective.name == "kto" else pairs()
    recipe = recipe_of(objective, rows=rows, accumulate=accumulate)
    one = trainer(folder, recipe)
    beside = besides.open(recipe, one, every, every[:2], out)
    steps = Steps(every, length=LENGTH, rows=rows, accumulate=accumulate, packed=False, count=COUNT)
    return [one.step(beside.training(i, steps.at(i)), RATE).metrics for i in range(COUNT)]


def runs(folder: Path) -> dict[str, Any]:
    """Figures of steps with all items in one micro-batch, and losses with one item in each."""
    found = {}
    for name in ("dpo", "dpo, no reference", "kto", "kto, no reference", "reward"):
        options, count = replace(OPTIONS[name], beta=None), 6 if name.startswith("kto") else 3
        parts = steps_of(folder, options, 1, count)
        found[name] = {"whole": steps_of(folder, options, count, 1), "parts": [one["loss"] for one in parts]}
    return found


def kept(folder: Path) -> dict[str, Any]:
    """References are those of the untuned network also when a run goes on."""
    from geode.network.answers import likelihoods

    out, recipe, every = folder / "kept", recipe_of(Objective("kto"), rows=6), judged()
    out.mkdir()
    one = trainer(folder, recipe)
    first: Any = besides.open(recipe, one, every, None, out)
    micros = [*each_once(every, length=LENGTH, rows=6)]
    before, still = first.inner.arrays(micros[0])["reference"], float(first.baseline(first._training.at(0)))
    one.step(first.training(0, micros), RATE)
    again: Any = besides.open(recipe, one, every, None, out)
    after = again.inner.arrays(micros[0])["reference"]
    now = references.reference(micros[0], references.references(likelihoods(one.decoder), micros))
    return {"same": bool((before == after).all()), "still": still, "moved": distance(now, after)}


# The reward model


def rewarded(folder: Path) -> dict[str, Any]:
    """One trained a little, written, and read by transformers with peft and by ourselves."""
    from objectives_formulas import by_peft

    from geode.network.score import NAME, scoring
    from geode.tensors import from_arrays

    one = trainer(folder, recipe_of(Objective("reward")))
    micros = [micro.arrays() for micro in each_once(pairs(), length=LENGTH, packed=False)]
    for _ in range(6):
        one.step(micros, RATE)
    found, weights = checkpoint.open(folder / "student"), one.weights()
    names = sorted({name.removesuffix(".lora_a") for name in weights if name.endswith(".lora_a")})
    changes = {name: adapters.Pair(weights[f"{name}.lora_a"], weights[f"{name}.lora_b"], 2.0) for name in names}
    base, score = str(folder / "student"), weights[NAME]
    made = adapters.Adapter(found.family, found.config, changes, from_arrays({}), base, score=score)
    adapters.write_peft(made, folder / "reward")
    again = adapters.open(folder / "reward")
    ours, theirs = scoring(one.decoder)(micros[0])[:6], by_peft(folder, documents())
    return {
        "apart": float(np.abs(ours - theirs).max()),
        "spread": float(np.ptp(theirs)),
        "score": again.score is not None and bool(np.array_equal(again.score, score)),
        "left_out": list(again.left_out),
        "gguf": refusal(lambda: adapters.write_gguf(again, folder / "a.gguf")),
    } | scored(folder)


def scored(folder: Path) -> dict[str, Any]:
    """Conversations, alone and together."""
    from geode.tune.reward import Reward

    model = Reward(folder / "reward", on="torch", dtype="float32")
    asked = {"role": "user", "content": "Hi"}
    talks = [[asked, {"role": "assistant", "content": text}] for text in ("yes", "no, go away")]
    wrong: list[Any] = [[asked], "Hi", []]
    return {
        "talks": [float(v) for v in model.scores(talks)],
        "alone": [model.score(talk) for talk in talks],
        "refusals": [refusal(lambda talk=talk: model.score(talk)) for talk in wrong]
        + [refusal(lambda: Reward(folder / "student", on="torch"))],
    }


def refusal(action: Any) -> str:
    try:
        action()
    except GeodeError as error:
        return str(error)
    return "nothing was refused"


if __name__ == "__main__":
    framework, folder = sys.argv[1], Path(sys.argv[2])
    backend.select(framework)
    found: dict[str, Any] = {}
    if framework == "torch":
        import objectives_formulas

        objectives_formulas.make(folder)
        found = {"alone": compare(folder, packed=False), "runs": runs(folder), "kept": kept(folder)}
        found["reward"] = rewarded(folder)
    found |= {"packed": compare(folder, packed=True), "odds": odds()}
    print(json.dumps(found))
