"""A run: a recipe's data and model brought together, steps taken, and everything kept that a kill could cost.

How a step is computed is `network.training`'s to know, what files hold `saving`'s and `output`'s.

    tune(recipe, out)  =  corpus → network → [ step → log → evaluate → save ] … → output
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .. import bench, manifest
from .. import checkpoint as checkpoints
from ..errors import OptionError, TuningError
from ..formats import Checkpoint
from ..io import hub
from ..io.lock import claim
from . import batches, besides, corpus, output, place, plan, preview, saving, schedule, setup, teacher
from .batches import Micro, Steps
from .corpus import Corpus
from .events import Evaluation, Finished, Sample, Saved, Started, Step
from .logs import Log, read
from .progress import Listener, Listeners, Silent
from .recipe import Recipe, check

if TYPE_CHECKING:
    from ..lm import Local
    from ..network.training import Trainer

__all__ = ["Result", "tune"]

LEFT = (
    *("checkpoints", "tensorboard", "log.jsonl", "loss.svg", "geode.json", "recipe.json", "references.npz"),
    *("adapter_config.json", "adapter_model.safetensors", "config.json", "model*.safetensors*"),
)
REMEMBERED = 20  # losses that a divergence is judged by
RISE = 2.0  # nats above the best of them, and twice as high: no learning recovers from that


@dataclass(frozen=True)
class Result:
    """What a run came to. `best` is None where nothing was evaluated."""

    out: Path
    reason: str  # "done", "early": no better loss for `patience` evaluations; "interrupted"
    steps: int
    loss: float  # of the last step
    best: float | None
    best_step: int | None


def tune(
    recipe: Recipe,
    out: str | Path,
    *,
    listeners: Sequence[Listener] = (),
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Runs a recipe into the directory `out`, or goes on with the run that was interrupted there: the same bits as if
    it had not been.

    listeners   are told of steps, evaluations, samples (`progress.Listener`); the log, TensorBoard and the picture of
                the losses are always written
    force       removes what an earlier run left in `out`
    say         is told what is chosen and found, a line at a time

    Raises OptionError, TuningError (another recipe's run is there; the loss is no number), what opening the model and
    reading the data raise, and CapacityError before the first step where memory will not do.
    """
    check(recipe)
    out = Path(out)
    is_lead = place.leads()
    with ExitStack() as stack:
        if is_lead:
            stack.enter_context(_workplace(out, force, say))
        stop = stack.enter_context(_signals())
        job = prepare(recipe, out, say if is_lead else lambda text: None, stack)
        every = Listeners([*_writers(out), *listeners] if is_lead else [], say)
        return _Loop(job, every, stop, is_lead).run()


@dataclass(frozen=True)
class Job:
    """A recipe with everything it names, ready for the first step or the next."""

    recipe: Recipe
    out: Path
    about: output.Made
    corpus: Corpus
    steps: Steps
    place: place.Place
    trainer: Trainer
    besides: besides.Besides
    position: saving.Position
    made_of: Mapping[str, Any]


def prepare(recipe: Recipe, out: Path, say: Callable[[str], None], stack: ExitStack) -> Job:
    """Opens model and data, takes the last checkpoint where there is one. Data are looked at before a framework is.
    `stack` keeps the place of the network until the run is over."""
    found = checkpoints.open(hub.resolve(recipe.model), exact=True)
    template, tokenizer = corpus.words(recipe, found)
    setup.chosen(recipe, found)
    with manifest.Sources(found.files()) as sources:
        texts = corpus.gather(recipe, tokenizer, template)
        say(f"{texts.text()}\n{preview.of_documents(texts.train.items, tokenizer, 1)}")
        choice = setup.choose(recipe)
        say(f"Tuning on {choice.why}.")
        _check_memory(recipe, found, choice, texts)
        here = place.find(recipe, found.config, choice.on)
        steps = batches.steps(texts.train, recipe, processes=here.count, fixed=choice.on != "torch")
        for note in filter(None, [steps.note, *here.notes]):
            say(note)
        stack.enter_context(here.scope())
        decoder, trained = setup.network(recipe, found, choice)
        trainer = setup.trainer(recipe, decoder, trained, here)
        given = _besides(recipe, out, found, choice, trainer, texts)
        files = sources.listed()
    made_of = {"model": [file["sha256"] for file in files], "data": [file.sha256 for file in texts.files]}
    about = output.Made(recipe, found, template, _base(recipe, out), files, texts.files, texts.counts, choice)
    position = _resumed(recipe, out, trainer, made_of, say)
    return Job(recipe, out, about, texts, steps, here, trainer, given, position, made_of)


def _check_memory(recipe: Recipe, found: Checkpoint, choice: setup.Choice, texts: Corpus) -> None:
    """Raises CapacityError where the plan does not fit. What an accelerator has free, the system does not tell."""
    from ..network import backend

    if not backend.on_cpu():
        return
    names, report = setup.chosen(recipe, found), texts.train.report
    options = {"on": choice.on, "dtype": choice.dtype, "file": found.tensors.nbytes}

    def planned(recipe: Recipe) -> plan.Plan:
        share = min(1.0, report.learnt / max(1, report.tokens))
        return plan.plan(found.config, recipe, names.pairs, names.whole, learnt=share, **options)  # type: ignore[arg-type]

    plan.check_memory(planned(recipe), again=planned)


def _besides(
    recipe: Recipe, out: Path, found: Checkpoint, choice: setup.Choice, trainer: Trainer, texts: Corpus
) -> besides.Besides:
    """What the objective needs besides tokens; computed while the network is still the untuned one."""
    master = teacher.open(recipe.objective, found, choice.dtype) if recipe.objective.name == "distil" else None
    valid = texts.valid.items if texts.valid is not None else None
    return besides.open(recipe, trainer, texts.train.items, valid, out, fixed=choice.on != "torch", teacher=master)


def _resumed(
    recipe: Recipe, out: Path, trainer: Trainer, made_of: Mapping[str, Any], say: Callable[[str], None]
) -> saving.Position:
    path = saving.last(out)
    if path is None:
        return saving.Position(made_of=made_of)
    state, position = saving.load(path, recipe, made_of)
    trainer.load(state)
    say(f"Going on after step {position.step}, from {path}.")
    return position


def _base(recipe: Recipe, out: Path) -> str:
    """The model as somebody who opens the output finds it again: a path is told from there."""
    if not Path(recipe.model).expanduser().exists():
        return recipe.model
    return str(Path(recipe.model).expanduser().resolve())


# The place


@contextlib.contextmanager
def _workplace(out: Path, force: bool, say: Callable[[str], None]) -> Iterator[None]:
    """The output directory, held against a second run. Raises OptionError where it is not ours to fill."""
    if out.is_file():
        raise OptionError(f"{out} is a file, and a run fills a directory. Choose another --out.")
    strange = out.is_dir() and any(out.iterdir()) and not _is_ours(out)
    if strange:
        raise OptionError(f"{out} is a directory with other things in it. Choose a new one, or an empty one.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{out} cannot be made: {error.strerror}. Choose another --out.") from None
    with claim(out / ".lock", f"Another run is filling {out}. Wait for its end, or choose another --out."):
        if force:
            _clear(out)
        elif manifest.read(out) is not None and saving.last(out) is None:
            raise OptionError(f"{out} holds a run that is over. Choose another --out, or replace it with --force.")
        yield


def _is_ours(out: Path) -> bool:
    return any((out / name).exists() for name in (".lock", "log.jsonl", saving.FOLDER))


def _clear(out: Path) -> None:
    """Removes what a run goes on from and what a model is told by; the rest is written over, or is not ours."""
    for pattern in LEFT:
        for path in out.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _writers(out: Path) -> list[Any]:
    from .curve import NAME, Picture
    from .tensorboard import TensorBoard

    log = Log(out / "log.jsonl")
    return [log, TensorBoard(out / "tensorboard"), Picture(out / NAME, lambda: read(log.path))]


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set: a step is never cut in two. A second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def asked(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# The loop


class _Loop:
    """Steps, evaluations and checkpoints of one run."""

    def __init__(self, job: Job, listener: Silent, stop: threading.Event, is_lead: bool = True):
        self.job, self.listener, self.stop, self.is_lead = job, listener, stop, is_lead
        self.recipe, self.trainer, self.steps = job.recipe, job.trainer, job.steps
        self.position = job.position
        self.optim = replace(job.recipe.optim, lr=setup.learning_rate(job.recipe))
        self.begun = perf_counter()

    def run(self) -> Result:
        """All steps that are left, and the output."""
        about = self.job.about
        trained = sum(math.prod(v.shape) for v in self.trainer.trained.values())
        words = f"{about.choice.on}, {about.choice.dtype}"
        self.listener.started(
            Started(self.position.step, self.steps.count, self.recipe, words, trained, about.parameters)
        )
        if self.position.step == 0 and self.recipe.run.evaluate_every:
            self._evaluate()
        reason = "done"
        while self.position.step < self.steps.count and reason == "done":
            self._step()
            reason = self._between()
        return self._finish(reason)

    def _step(self) -> None:
        number, start = self.position.step, perf_counter()
        micros = self.steps.at(number, self.job.place.index)
        rate = schedule.rate(self.optim, number, self.steps.count)
        outcome = self.trainer.step(self.job.besides.training(number, micros), rate)
        seconds = perf_counter() - start
        self._check(number + 1, outcome.loss, outcome.norm, micros)
        recent = (*self.position.recent, outcome.loss)[-REMEMBERED:]
        self.position = replace(self.position, step=number + 1, recent=recent, seconds=self.position.seconds + seconds)
        self.listener.step(
            Step(
                step=number + 1,
                steps=self.steps.count,
                epoch=self.steps.epoch(number + 1),
                loss=outcome.loss,
                lr=rate,
                norm=outcome.norm,
                tokens=sum(micro.tokens for micro in micros),
                learnt=sum(micro.learnt for micro in micros),
                seconds=seconds,
                memory=bench.peak_memory() or 0,
                sources=_sources(micros),
                metrics={name: value for name, value in outcome.metrics.items() if name != "loss"},
            )
        )

    def _check(self, step: int, loss: float, norm: float, micros: Sequence[Micro]) -> None:
        """Raises TuningError where the loss is no number or has run away; the state before stays on the disk."""
        recent = self.position.recent
        away = len(recent) == REMEMBERED and statistics.median(recent[-5:]) > 2 * min(recent) + RISE
        if math.isfinite(loss) and math.isfinite(norm) and not away:
            return
        what = f"rose to {loss:.3g} from {min(recent):.3g}" if away else f"is {loss}, the gradient's length {norm}"
        message = (
            f"The loss {what} at step {step}, so the run was stopped; nothing of this step was kept. It learnt from "
            f"{', '.join(_sources(micros))}. Look at these rows, or lower optim.lr ({self.optim.lr:g})."
        )
        self.listener.finished(Finished("failed", step - 1, perf_counter() - self.begun, loss, None, message))
        raise TuningError(message)

    def _between(self) -> str:
        """What is due after a step; why the run ends, or "done" while it goes on."""
        run, step, last = self.recipe.run, self.position.step, self.position.step == self.steps.count
        reason = "interrupted" if self.stop.is_set() and not last else "done"
        if reason == "done" and (last or _due(step, run.evaluate_every)):
            self._evaluate()
            if run.patience is not None and self.position.waited >= run.patience and not last:
                reason = "early"
        if reason == "interrupted" or last or _due(step, run.save_every):
            self._save()
        return reason

    def _evaluate(self) -> None:
        if self.job.corpus.valid is not None:
            with self.trainer.averaged():
                metrics = self._measured()
            self._note(metrics)
        self._sample()

    def _measured(self) -> dict[str, float]:
        data, valid = self.recipe.data, self.job.corpus.valid
        assert valid is not None
        micros = batches.each_once(
            valid.items,
            length=data.length,
            rows=self.recipe.batch.rows,
            packed=data.pack,
            fixed=self.job.about.choice.on != "torch",
        )
        return self.trainer.measure(self.job.besides.validation(micros))

    def _note(self, metrics: Mapping[str, float]) -> None:
        assert self.job.corpus.valid is not None
        loss, step, best = metrics["loss"], self.position.step, self.position.best
        better = best is None or loss < best
        if better and step:  # the untouched model is there to compare with; it is no result
            self.position = replace(self.position, best=loss, best_step=step, waited=0)
            self._keep_best(step)
        elif step:
            self.position = replace(self.position, waited=self.position.waited + 1)
        others = {name: value for name, value in metrics.items() if name != "loss"}
        self.listener.evaluated(Evaluation(step, loss, self.job.corpus.valid.report.learnt, better, others))

    def _keep_best(self, step: int) -> None:
        weights = self.trainer.weights()
        if self.is_lead:
            saving.save_best(self.job.out, weights, step)

    def _sample(self) -> None:
        run = self.recipe.run
        if not run.samples:
            return
        with self.trainer.averaged():
            for prompt in run.samples:
                self.listener.sampled(Sample(self.position.step, prompt, self._answer(prompt)))

    def _answer(self, prompt: str) -> str:
        """What the network says now, greedily: through the chat template where there is one."""
        asked: Any = prompt if self.job.about.template is None else [{"role": "user", "content": prompt}]
        options = {"max_tokens": self.recipe.run.sample_tokens, "temperature": 0}
        text: str = self._lm.stream(asked, **options).result().text
        return text

    @cached_property
    def _lm(self) -> Local:
        """The network in training as a model that answers; made once, as compiled programs are."""
        from ..lm import Local
        from ..network.executor import Executor

        about = self.job.about
        found = about.checkpoint
        return Local(Executor(self.trainer.decoder), found.tokenizer, about.template, found.ends)

    def _save(self) -> None:
        position = replace(self.position, made_of=self.job.made_of)
        state = self.trainer.state()
        if self.is_lead:
            path = saving.save(self.job.out, state, position, self.recipe, self.recipe.run.keep)
            self.listener.saved(Saved(self.position.step, path))

    def _finish(self, reason: str) -> Result:
        """The best weights, or the last where nothing was evaluated, as a model that serves."""
        out, position = self.job.out, self.position
        loss = position.recent[-1] if position.recent else math.nan
        own, done = self.trainer.weights(), Result(out, reason, position.step, loss, position.best, position.best_step)
        if not self.is_lead:
            return done
        weights, step = saving.best(out) or (own, position.step)
        result = {
            "ended": reason,
            "steps": position.step,
            "loss": loss,
            "weights_of_step": step,
            "validation_loss": position.best,
            "seconds": round(position.seconds, 1),
        }
        output.write(out, weights, self.job.about, result)
        best = None
        if position.best is not None and self.job.corpus.valid is not None:
            best = Evaluation(step, position.best, self.job.corpus.valid.report.learnt, True)
        self.listener.saved(Saved(position.step, out))
        self.listener.finished(Finished(reason, position.step, perf_counter() - self.begun, loss, best))  # type: ignore[arg-type]
        output.describe(out, self.job.about, read(out / "log.jsonl"))
        if reason != "interrupted":
            saving.clear(out)
        return done


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _sources(micros: Iterable[Micro]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(source for micro in micros for source in micro.sources))
