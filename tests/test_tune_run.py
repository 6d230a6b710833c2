"""Runs, whole: the same losses on every framework, whatever way a step is cut, and through a kill; what they leave."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from geode.io import safetensors
from geode.tune.recipe import Batch, Data, Full, Lora, Optim, Recipe, Run, override, to_dict

HERE = Path(__file__).parent
FRAMEWORKS = ("torch", "jax", "tensorflow")
WORDS = "the cat sat on a mat and then it ran to the red house in the rain".split()


@pytest.fixture(scope="module")
def model(once) -> Path:
    return once("tune-gemma3", lambda folder: tiny.save("gemma3", folder))


@pytest.fixture(scope="module")
def data(once) -> Path:
    return once("tune-data", write_data) / "talk.jsonl"


def write_data(folder: Path) -> None:
    rng = random.Random(7)
    say = lambda most: " ".join(rng.choices(WORDS, k=rng.randint(2, most)))  # noqa: E731
    with (folder / "talk.jsonl").open("w") as file:
        for _ in range(60):
            turns = [{"role": "user", "content": say(6)}, {"role": "assistant", "content": say(8)}]
            file.write(json.dumps({"messages": turns}) + "\n")


def recipe(model: Path, data: Path, **run: Any) -> Recipe:
    """A run of few small steps, without an evaluation."""
    return Recipe(
        model=str(model),
        data=Data(train=(str(data),), holdout=0, length=128),
        method=Lora(rank=4),
        optim=Optim(lr=5e-3),
        batch=Batch(rows=2),
        run=Run(**{"dtype": "float32", "steps": 6, "evaluate_every": 0, "save_every": 0, **run}),
    )


def ran(on: str, asked: list[dict[str, Any]], kill_at: str | None = None) -> list[dict[str, Any]]:
    """What a worker answers to each question."""
    lines = "".join(json.dumps(one) + "\n" for one in asked)
    done = subprocess.run(
        [sys.executable, str(HERE / "tune_worker.py"), on],
        input=lines,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(HERE)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def ask(recipe: Recipe, out: Path, **more: Any) -> dict[str, Any]:
    return {"recipe": to_dict(recipe), "out": str(out), **more}


def changed(recipe: Recipe, *settings: str) -> Recipe:
    return override(recipe, settings)


# The same everywhere


@pytest.fixture(scope="module")
def everywhere(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Fifty steps of LoRA, and some of DoRA on integers and of all weights, on each framework."""
    out = tmp_path_factory.mktemp("everywhere")
    base = recipe(model, data, steps=50)
    short = recipe(model, data, steps=8)
    variants = [
        base,
        changed(short, "method.dora=true", "method.quantize=int8"),
        changed(short, "method=full", "optim.lr=1e-3", "run.remat=block", "objective.z_loss=1e-3"),
    ]
    return {on: ran(on, [ask(one, out / f"{on}{i}") for i, one in enumerate(variants)]) for on in FRAMEWORKS}


@pytest.mark.parametrize("case", [0, 1, 2], ids=["lora", "dora on int8", "full"])
def test_frameworks_learn_alike(everywhere: dict[str, list[dict[str, Any]]], case: int) -> None:
    curves = {on: np.array(answers[case]["losses"]) for on, answers in everywhere.items()}
    for on in FRAMEWORKS[1:]:
        np.testing.assert_allclose(curves[on], curves["torch"], atol=1e-3)
    assert curves["torch"][-3:].mean() < curves["torch"][:3].mean() - 0.05


# Ways to cut a step


@pytest.fixture(scope="module")
def cuts(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("cuts")
    base = changed(recipe(model, data), "data.limit=24", "run.steps=5")
    variants = {
        "whole": changed(base, "batch.rows=64"),
        "unpacked": changed(base, "batch.rows=64", "data.pack=false"),
        "1 x 8": changed(base, "batch.rows=8"),
        "4 x 2": changed(base, "batch.rows=2", "batch.accumulate=4"),
    }
    answers = ran("torch", [ask(one, out / str(i)) for i, one in enumerate(variants.values())])
    return dict(zip(variants, answers, strict=True))


def test_packed_is_unpacked(cuts: dict[str, dict[str, Any]]) -> None:
    np.testing.assert_allclose(cuts["whole"]["losses"], cuts["unpacked"]["losses"], rtol=2e-5)
    np.testing.assert_allclose(cuts["whole"]["norms"], cuts["unpacked"]["norms"], rtol=2e-4)


def test_accumulated_is_at_once(cuts: dict[str, dict[str, Any]]) -> None:
    assert cuts["4 x 2"]["tokens"] == cuts["1 x 8"]["tokens"]
    np.testing.assert_allclose(cuts["4 x 2"]["losses"], cuts["1 x 8"]["losses"], rtol=2e-5)
    np.testing.assert_allclose(cuts["4 x 2"]["norms"], cuts["1 x 8"]["norms"], rtol=2e-4)


def test_peft_learns_alike(model: Path, data: Path, tmp_path: Path) -> None:
    """Fifty steps of transformers + PEFT + torch.optim.AdamW, the trainer's arithmetic of TRL, in the same order."""
    peft, torch, transformers = (pytest.importorskip(name) for name in ("peft", "torch", "transformers"))
    one = changed(recipe(model, data, steps=50), "data.pack=false", "optim.weight_decay=0.01", "optim.final=0")
    (ours,) = ran("torch", [ask(one, tmp_path / "out")])
    base = transformers.AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    net = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules=linears, task_type="CAUSAL_LM"))
    begin_alike(net, torch)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3, weight_decay=0.01)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 2, 50)
    theirs = []
    for micro in micros_of(one):
        labels = np.full(micro.tokens_BT.shape, -100)
        places = micro.at_M[micro.weights_M > 0] + 1
        labels.reshape(-1)[places] = micro.tokens_BT.reshape(-1)[places]
        given = {"input_ids": micro.tokens_BT, "attention_mask": micro.segments_BT, "labels": labels}
        loss = net(**{name: torch.as_tensor(array).long() for name, array in given.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        theirs.append(float(loss.detach()))
    np.testing.assert_allclose(ours["losses"], theirs, atol=1e-3)


def begin_alike(net: Any, torch: Any) -> None:
    """PEFT's A are given the numbers that ours begin with."""
    from geode.network.lora import first

    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down"}
    for theirs, parameter in net.named_parameters():
        if "lora_A" in theirs:
            layer, module = theirs.split("layers.")[1].split(".lora_A")[0].split(".", 1)
            array = first(f"blk.{layer}.{names[module]}.weight", *parameter.shape, 0)
            parameter.data.copy_(torch.as_tensor(array))


def micros_of(one: Recipe) -> list[Any]:
    from geode import checkpoint
    from geode.tune import batches, corpus

    template, tokenizer = corpus.words(one, checkpoint.open(one.model))
    steps = batches.steps(corpus.gather(one, tokenizer, template).train, one)
    return [steps.at(i)[0] for i in range(steps.count)]


# Through a kill


@pytest.mark.parametrize("on", ["torch", "jax"])
def test_goes_on_bit_by_bit(on: str, model: Path, data: Path, tmp_path: Path) -> None:
    one = changed(
        recipe(model, data, steps=40, save_every=3, evaluate_every=7), "data.holdout=0.2", "optim.name=adam8bit"
    )
    whole = ran(on, [ask(one, tmp_path / "whole")])[0]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, str(HERE / "tune_worker.py"), on],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(HERE)},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(ask(one, killed)).encode() + b"\n")
    process.stdin.close()
    while not list(killed.glob("checkpoints/step-*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    answer = ran(on, [ask(one, killed)])[0]
    assert any("Going on after step" in line for line in answer["said"])
    assert answer["losses"] == whole["losses"]
    assert answer["measured"] == whole["measured"]
    name = "adapter_model.safetensors"
    assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (killed / "checkpoints").exists()


def test_ctrl_c_saves_and_goes_on(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "geode", "tune", str(model), str(data), "--out", str(out), "--on", "torch"]
    command += ["--set", "run.dtype=float32", "--set", "run.steps=400", "--set", "data.length=64", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not _steps(out) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    told, said = process.communicate()
    assert process.returncode == 130, said
    done = json.loads(told)["steps"]
    assert 0 < done < 400
    assert (out / "adapter_model.safetensors").exists()
    assert [path.name for path in (out / "checkpoints").glob("step-*")][-1].endswith(f"{done:08d}")


def _steps(out: Path) -> int:
    log = out / "log.jsonl"
    return log.read_text().count('"event": "step"') if log.exists() else 0


# What a run leaves


@pytest.fixture(scope="module")
def tuned(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("left") / "out"
    one = changed(recipe(model, data, samples=["the cat"], evaluate_every=3), "data.holdout=0.2", "run.sample_tokens=6")
    (answer,) = ran("torch", [ask(one, out)])
    assert answer["reason"] == "done", answer
    return out


def test_output_serves_as_it_is(tuned: Path, model: Path) -> None:
    import geode

    lm, base = geode.load(str(tuned), on="native"), geode.load(str(model), on="native")
    ids = lm.tokenize("the cat sat on a mat")
    assert np.abs(lm.logits(ids) - base.logits(ids)).max() > 1e-2
    assert lm.generate([{"role": "user", "content": "the cat"}], max_tokens=4).tokens


def test_peft_computes_the_same(tuned: Path, model: Path) -> None:
    peft, torch, transformers = (pytest.importorskip(name) for name in ("peft", "torch", "transformers"))
    import geode

    ids = geode.load(str(model), on="native").tokenize("the red house in the rain")
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(base, str(tuned))(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(geode.load(str(tuned), on="native").logits(ids), theirs, atol=2e-4)


def test_merged_file_answers_alike(tuned: Path, tmp_path: Path) -> None:
    import geode

    geode.convert(str(tuned), tmp_path / "merged.gguf", dtype="float32", quiet=True)
    lm, merged = geode.load(str(tuned), on="native", dtype="float32"), geode.load(tmp_path / "merged.gguf", on="native")
    ids = lm.tokenize("then it ran to the red house")
    np.testing.assert_allclose(merged.logits(ids), lm.logits(ids), atol=1e-4)
    talk = [{"role": "user", "content": "the cat"}]
    assert (
        merged.generate(talk, max_tokens=5, temperature=0).tokens
        == lm.generate(talk, max_tokens=5, temperature=0).tokens
    )


def test_output_tells_what_it_is_made_of(tuned: Path) -> None:
    made = json.loads((tuned / "geode.json").read_text())
    assert made["recipe"]["method"]["rank"] == 4 and made["result"]["steps"] == 6
    assert [file["name"] for file in made["data"]] == ["talk.jsonl"] and made["data"][0]["sha256"]
    assert made["base"]["files"][0]["sha256"]
    card = (tuned / "README.md").read_text()
    assert "library_name: peft" in card and "Gemma" in (tuned / "NOTICE").read_text()
    assert (tuned / "loss.svg").read_text().startswith("<svg") and list((tuned / "tensorboard").iterdir())


def test_whole_model_is_written_whole(everywhere: Any, tmp_path: Path, model: Path, data: Path) -> None:
    out = tmp_path / "full"
    one = dataclasses.replace(recipe(model, data, steps=2), method=Full(), optim=Optim(lr=1e-3))
    (answer,) = ran("torch", [ask(one, out)])
    assert "error" not in answer, answer
    import geode

    names = set(safetensors.read(out / "model.safetensors"))
    assert names == set(safetensors.read(model / "model.safetensors"))
    lm = geode.load(str(out), on="native")
    assert lm.generate("the cat", max_tokens=3).tokens


# Other objectives


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Preferences and labels: better answers speak of the cat, worse ones of rain."""
    rng, folder = random.Random(3), tmp_path_factory.mktemp("judged")
    files = {"pairs": folder / "pairs.jsonl", "labels": folder / "labels.jsonl"}
    with files["pairs"].open("w") as pairs, files["labels"].open("w") as labels:
        for number in range(24):
            prompt = " ".join(rng.choices(WORDS, k=4))
            good, bad = f"the cat {rng.choice(WORDS)}", f"rain in {rng.choice(WORDS)}"
            pairs.write(json.dumps({"prompt": prompt, "chosen": good, "rejected": bad}) + "\n")
            row = {"prompt": prompt, "completion": bad if number % 2 else good, "label": number % 2 == 0}
            labels.write(json.dumps(row) + "\n")
    return files


def test_every_objective_runs(model: Path, data: Path, judged: dict[str, Path], tmp_path: Path) -> None:
    learns = {"dpo": "pairs", "orpo": "pairs", "reward": "pairs", "kto": "labels", "distil": ""}
    asked = []
    for name, kind in learns.items():
        one = recipe(model, judged.get(kind, data), steps=8, evaluate_every=4)
        settings = [f"objective.name={name}", "data.holdout=0.2", "optim.lr=5e-3"]
        settings += [f'objective.teacher="{model}"', "objective.temperature=2"] if name == "distil" else []
        asked.append(ask(changed(one, *settings), tmp_path / name))
    for name, answer in zip(learns, ran("torch", asked), strict=True):
        assert answer.get("reason") == "done", (name, answer)
        assert len(answer["measured"]) == 3 and np.isfinite(answer["losses"]).all()
        if name != "distil":  # which begins as its own teacher, at the least loss that there is
            assert answer["measured"][-1] < answer["measured"][0], name
    talk = lambda words: [{"role": "user", "content": "a mat"}, {"role": "assistant", "content": words}]  # noqa: E731
    better, worse = _in_a_process(tmp_path / "reward", [talk("the cat sat"), talk("rain in house")])
    assert better > worse


def _in_a_process(folder: Path, talks: list[Any]) -> list[float]:
    code = "import json, sys; from geode.tune.reward import Reward\n"
    code += "print(json.dumps(Reward(sys.argv[1], on='torch').scores(json.loads(sys.argv[2])).tolist()))"
    done = subprocess.run([sys.executable, "-c", code, str(folder), json.dumps(talks)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


# What cannot be


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["method.rank=0"], "method.rank should be 1 or more"),
        (['method.targets=["qq_proj"]'], "means no tensor of this model. Its tensors are"),
        (['method.targets=["lm_head"]'], "Its head is its embedding"),
        (["data.template=nothing"], "data.template should be"),
        (['data.train=["missing.jsonl"]'], "missing.jsonl"),
        (["objective.name=dpo"], "learns from pairs of answers"),
    ],
)
def test_complains(settings: list[str], words: str, model: Path, data: Path, tmp_path: Path) -> None:
    from geode.errors import GeodeError
    from geode.tune import tune

    with pytest.raises(GeodeError, match=words):
        tune(changed(recipe(model, data), *settings), tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_another_recipe_or_data_is_told(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    own = tmp_path / "own.jsonl"
    own.write_bytes(data.read_bytes())
    one = recipe(model, own, steps=3, save_every=1)
    asked = [
        ask(one, out),
        ask(one, out),
        ask(changed(one, "optim.lr=1e-4"), out, force=True),
    ]
    first, again, forced = ran("torch", asked)
    assert first["reason"] == "done" and forced["reason"] == "done"
    assert again["error"] == "OptionError" and "--force" in again["message"]


def test_a_half_run_of_another_recipe_is_told(model: Path, data: Path, tmp_path: Path) -> None:
    from geode.errors import TuningError
    from geode.tune import saving

    one = recipe(model, data)
    made_of = {"model": ["a"], "data": ["b"]}
    position = saving.Position(step=2, made_of=made_of)
    path = saving.save(tmp_path, {"x": np.ones(3, np.float32), "q": np.zeros((), np.uint8)}, position, one, keep=1)
    state, found = saving.load(path, one, made_of)
    assert found == position and state["x"].tolist() == [1, 1, 1] and state["q"].shape == ()
    with pytest.raises(TuningError, match=r"optim.lr: 0.005, 0.001"):
        saving.load(path, changed(one, "optim.lr=1e-3"), made_of)
    with pytest.raises(TuningError, match="another data"):
        saving.load(path, one, {"model": ["a"], "data": ["c"]})


def test_divergence_names_the_rows(model: Path, data: Path, tmp_path: Path) -> None:
    one = changed(recipe(model, data, steps=60), "method=full", "optim.lr=1e30", "optim.clip=null")
    (answer,) = ran("torch", [ask(one, tmp_path / "out")])
    assert answer["error"] == "TuningError"
    assert "talk.jsonl:" in answer["message"] and "optim.lr" in answer["message"]
