"""A reward model in use: how good an answer is, as a number that only means something beside another answer's.

How it was trained is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import checkpoint
from ..errors import ChatError, OptionError
from ..formats import Checkpoint
from ..io import hub
from ..merge.adapted import Adapted
from . import corpus, setup
from .batches import each_once
from .documents import Judged, prepare
from .examples import Labelled, Messages
from .recipe import Recipe, Run

__all__ = ["Reward"]


class Reward:
    """The reward model of a directory: an adapter with a score, and the base model that it names.

    on, dtype   as in a recipe's `run`
    rows        conversations that are read at a time

    Raises OptionError where the directory has no score, BackendError, what opening a model raises.
    """

    def __init__(
        self,
        path: str | Path,
        on: Literal["auto", "jax", "torch", "tensorflow"] = "auto",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        rows: int = 4,
    ):
        found = checkpoint.open(hub.resolve(str(path)), exact=True)
        weight, choice = _head(found, path), setup.choose(Recipe(run=Run(on=on, dtype=dtype)))
        from ..network import score
        from ..network.decoder import Decoder

        decoder = Decoder(found.config, found.tensors.__getitem__, choice.dtype)
        score.attach(decoder, weight)
        self._scores = score.scoring(decoder)
        self._template, self._tokenizer = corpus.words(Recipe(), found)
        self.length, self.rows = found.config.context, rows

    def score(self, messages: Messages) -> float:
        """How good the last message is, an answer of the assistant to those before. Raises ChatError, OptionError."""
        return float(self.scores([messages])[0])

    def scores(self, conversations: Sequence[Messages]) -> np.ndarray:
        """The same of many: float32 (N,). Their order, and what stands beside them, change nothing but rounding."""
        if not conversations:
            return np.zeros(0, np.float32)
        items = self._items(conversations)
        longest = max(len(item.document) for item in items)
        micros = each_once(items, length=longest, rows=self.rows, packed=False)
        return np.concatenate([self._scores(micro.arrays())[: len(micro.sources)] for micro in micros])

    def _items(self, conversations: Sequence[Messages]) -> Sequence[Judged]:
        """As examples to learn from were made, so that the score is read where it was trained."""
        talks = [_checked(talk, i) for i, talk in enumerate(conversations, 1)]
        examples = (Labelled(talk[:-1], talk[-1:], True, f"conversation {i}") for i, talk in enumerate(talks, 1))
        made = prepare(examples, self._tokenizer, self._template, length=self.length, long="error")
        if made.report.dropped:
            raise ChatError(f"Not all conversations can be scored: {made.report.reasons()}.")
        return made.items  # type: ignore[return-value]


def _head(found: Checkpoint, path: str | Path) -> np.ndarray:
    weight = found.adapter.score if isinstance(found, Adapted) else None
    if weight is None or len(weight) != 1:
        what = "no score" if weight is None else f"a score for {len(weight)} labels, which is a classifier's"
        raise OptionError(
            f"{path} has {what}, so it is no reward model. Expected an adapter that `geode tune` made with "
            "objective.name=reward, or PEFT with task_type SEQ_CLS and one label."
        )
    return weight


def _checked(talk: Any, place: int) -> list[Mapping[str, Any]]:
    last = talk[-1] if isinstance(talk, Sequence) and not isinstance(talk, str) and talk else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise ChatError(
            f"Conversation {place} should be a list of messages, the last of which is the assistant's: that is what is "
            f"scored. Got {talk!r:.80}."
        )
    return [*talk]
