"""What an objective is given besides tokens: references, a baseline, a teacher's answers.

What it does with them is `network`'s to know; steps and their order are not known here.

    dpo, ipo   `reference`  what the untuned network gives each answer; kept in the run's directory
    kto        the same, and `baseline`: how far the network has moved, from answers to other prompts, before each step
    distil     `teacher_ids`, `teacher_logprobs`
    others     nothing
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import batches, references
from .batches import Micro, Steps
from .documents import Item
from .recipe import Recipe

if TYPE_CHECKING:
    from ..network.distillation import Teacher
    from ..network.training import Trainer

Arrays = dict[str, np.ndarray]
REFERRING = ("dpo", "ipo", "kto")


class Besides:
    """Micro-batches as an objective takes them."""

    def training(self, step: int, micros: Iterable[Micro]) -> Iterator[Arrays]:
        """Those of a step. A generator: what it needs of the network it asks before the first one is used."""
        return map(self.arrays, micros)

    def validation(self, micros: Iterable[Micro]) -> Iterator[Arrays]:
        """Those of an evaluation."""
        return map(self.arrays, micros)

    def arrays(self, micro: Micro) -> Arrays:
        return micro.arrays()


class Referred(Besides):
    """With the untuned network's log-probabilities."""

    def __init__(self, found: Mapping[bytes, float]):
        self.found = found

    def arrays(self, micro: Micro) -> Arrays:
        return micro.arrays() | {"reference": references.reference(micro, self.found)}


class Taught(Besides):
    """With what a teacher finds likely."""

    def __init__(self, teacher: Teacher):
        self.teacher = teacher

    def arrays(self, micro: Micro) -> Arrays:
        arrays = micro.arrays()
        return arrays | self.teacher(arrays)


class Moved(Besides):
    """KTO's: with a baseline, the same for all micro-batches of a step, so that it does not depend on their number.

    training, validation: steps over mismatched answers, and all of them for evaluations.
    """

    def __init__(self, inner: Besides, trainer: Trainer, training: Steps, validation: Sequence[Micro], floor: bool):
        self.inner, self.trainer, self.floor = inner, trainer, floor
        self._training, self._validation = training, validation

    def training(self, step: int, micros: Iterable[Micro]) -> Iterator[Arrays]:
        baseline = self.baseline(self._training.at(step % self._training.count))
        return (self.inner.arrays(micro) | {"baseline": baseline} for micro in micros)

    def validation(self, micros: Iterable[Micro]) -> Iterator[Arrays]:
        baseline = self.baseline(self._validation)
        return (self.inner.arrays(micro) | {"baseline": baseline} for micro in micros)

    def baseline(self, micros: Iterable[Micro]) -> np.ndarray:
        """The mean of log p / p_reference of these answers, no gradient of which is taken. As an estimate of a
        divergence it is no less than 0; without a reference it is the mean of log p."""
        zero = np.zeros((), np.float32)
        moved = self.trainer.measure([self.inner.arrays(micro) | {"baseline": zero} for micro in micros])["drift"]
        return np.array(max(moved, 0) if self.floor else moved, np.float32)


def open(
    recipe: Recipe,
    trainer: Trainer,
    train: Sequence[Item],
    valid: Sequence[Item] | None,
    out: Path,
    *,
    fixed: bool = False,
    teacher: Teacher | None = None,
) -> Besides:
    """What a recipe's objective is given. References that `out` does not hold yet are computed with the network as it
    is, so before the first step and before a checkpoint is loaded.

    Raises FormatError where those that are there belong to other data, CapacityError.
    """
    options = recipe.objective
    if options.name == "distil":
        assert teacher is not None
        return Taught(teacher)
    if options.name not in REFERRING:
        return Besides()
    maker = _Maker(recipe, trainer, out, fixed)
    other = [[], []] if options.name != "kto" else [maker.mismatched(items) for items in (train, valid or [])]
    inner = maker.referred([train, valid or [], *other]) if options.reference else Besides()
    if options.name != "kto":
        return inner
    return Moved(inner, trainer, maker.steps(other[0]), maker.once(other[1]), options.reference)


class _Maker:
    def __init__(self, recipe: Recipe, trainer: Trainer, out: Path, fixed: bool):
        self.recipe, self.trainer, self.out = recipe, trainer, out
        self.form: dict[str, Any] = {"length": recipe.data.length, "rows": recipe.batch.rows}
        self.form |= {"packed": recipe.data.pack, "fixed": fixed}

    def referred(self, every: Iterable[Sequence[Item]]) -> Referred:
        found = references.load(self.out)
        if found is None:
            from ..network.answers import likelihoods

            likely = likelihoods(self.trainer.decoder)
            found = {}
            for items in every:
                found |= references.references(likely, self.once(items))
            references.save(self.out, found)
        return Referred(found)

    def mismatched(self, items: Sequence[Item]) -> list[Item]:
        return [*references.mismatched(items, self.recipe.data.length)]  # type: ignore[arg-type]

    def steps(self, items: Sequence[Item]) -> Steps:
        run = self.recipe.run
        return Steps(items, accumulate=self.recipe.batch.accumulate, seed=run.seed, epochs=run.epochs, **self.form)

    def once(self, items: Sequence[Item]) -> list[Micro]:
        return [*batches.each_once(items, **self.form)] if items else []
