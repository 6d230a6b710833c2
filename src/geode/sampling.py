"""Choosing the next token: pure functions over one row of logits, and the `Sampler` that strings them together.

Which model the logits came from, and what the ids spell, is not known here.

    logits (V,) ── penalties ── bias ── mask ── temperature ── top-k ── top-p ── min-p ── draw
                                          └── temperature 0: the largest logit, the lowest id among equals

The order is the one that transformers and vLLM users know (llama.cpp puts the temperature last); top-p measures the
distribution that top-k left over. Nothing here sorts a whole vocabulary unless a flat distribution leaves no other way.

Most choices depend on few logits. `Sampler.need` says on which, so that an executor may leave out the others and hand
over `Candidates` instead of a row of logits; what is chosen, and what is drawn from the seed, is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from .errors import OptionError, TensorError

GREEDY_BELOW = 1e-5  # colder than this, float32 leaves one token anyway
FEW = 64  # a choice that depends on more than this share of all logits asks for all of them


@dataclass(frozen=True, kw_only=True)
class Params:
    """How to choose among the logits. The defaults are OpenAI's: the model's own distribution, every filter off.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 keep every token. `repetition_penalty` counts the
    prompt too (CTRL, arxiv.org/abs/1909.05858), `presence_penalty` and `frequency_penalty` only what was generated
    (OpenAI's). `logit_bias` maps ids to what is added to their logits. `seed` None draws a fresh one. `logprobs` n
    reports each token's log-probability and the n likeliest alternatives, before any filter; None computes none.
    Raises OptionError.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _number(self, "temperature", "0 (greedy) or more", lambda x: x >= 0)
        _integer(self, "top_k", "0 (off) or more")
        _number(self, "top_p", "more than 0 and at most 1 (off)", lambda x: 0 < x <= 1)
        _number(self, "min_p", "from 0 (off) to 1", lambda x: 0 <= x <= 1)
        _number(self, "repetition_penalty", "more than 0 (1 is off)", lambda x: x > 0)
        _number(self, "presence_penalty", "from -2 to 2 (0 is off)", lambda x: -2 <= x <= 2)
        _number(self, "frequency_penalty", "from -2 to 2 (0 is off)", lambda x: -2 <= x <= 2)
        _integer(self, "seed", "0 or more, or None for a fresh one", optional=True)
        _integer(self, "logprobs", "0 (the chosen token only) or more alternatives, or None for off", optional=True)
        _check_bias(self.logit_bias)

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def adjusts(self) -> bool:
        """Whether any logit is changed before the filters."""
        return bool(
            self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty or len(self.logit_bias)
        )


class Choice(NamedTuple):
    """One chosen token; `logprob` and the likeliest `top` (id, logprob) are the model's own, before any filter."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


class Need(NamedTuple):
    """The logits that a choice depends on: the `k` largest of the ids below `size` (0: all of them) as far as they are
    at most `gap` below the largest, ties included; and those of `ids`, ascending int32, which count for neither.
    """

    k: int
    gap: float
    ids: np.ndarray
    size: int


class Candidates(NamedTuple):
    """Some logits, float32 (C,), of ids below `size`, ascending int32 (C,): all that were needed, perhaps more."""

    ids: np.ndarray
    logits: np.ndarray
    size: int


class Sampler:
    """Chooses tokens by `params`; the same seed and the same logits give the same tokens.

    Rows of the logits from `size` on belong to no token (padding of the vocabulary) and are never chosen.
    """

    def __init__(self, params: Params, size: int | None = None):
        self.params = params
        self.size = size
        self._plain: dict[int, Need | None] = {}  # by the number of logits, where it does not depend on the context

    @cached_property
    def _random(self) -> np.random.Generator:
        """Made when something is drawn: numpy's generators take 7 MB and some milliseconds to import."""
        return np.random.default_rng(self.params.seed)

    def need(self, vocab: int, context: Sequence[int] | np.ndarray = (), given: int = 0) -> Need | None:
        """What `pick` without a mask must know of the `vocab` logits after `context`; None: all of them."""
        if self.params.adjusts:
            return self._need(vocab, context, given)
        if vocab not in self._plain:  # asked for every token: the same each time
            self._plain[vocab] = self._need(vocab, (), 0)
        return self._plain[vocab]

    def _need(self, vocab: int, context: Sequence[int] | np.ndarray, given: int) -> Need | None:
        p = self.params
        size = vocab if self.size is None else min(self.size, vocab)
        k = 1 if p.greedy else p.top_k if p.top_k < size else 0
        gap = math.inf if p.greedy or p.top_p < 1 else _gap(p)
        if p.logprobs is not None or (k == 0 and gap == math.inf):
            return None
        ids = self._adjusted(size, context, given)
        few = FEW * max(k, ids.size) <= size and not (ids.size and ids[-1] >= size)
        return Need(k, gap, ids, size) if few else None

    def pick(
        self,
        logits: np.ndarray | Candidates,
        context: Sequence[int] | np.ndarray = (),
        given: int = 0,
        mask: np.ndarray | None = None,
    ) -> Choice:
        """The token after `context`, whose first `given` ids are the prompt; `logits` float32 (V,) stay as they are.

        `mask`, bool (V,), allows only the ids where it is true. Raises TensorError on logits that are not finite,
        OptionError when a bias names an id that the model lacks or the mask allows nothing. Without a mask, the
        `Candidates` that `need` asked for with the same context do as well, and give the same choice.
        """
        if isinstance(logits, Candidates):
            return self._pick_candidate(logits, context, given)
        adjusted = self._adjust(logits[: self.size], context, given, mask)
        best = int(adjusted.argmax())  # the first NaN if there is one, and so the check costs nothing
        if not math.isfinite(adjusted[best]):
            raise _no_choice(logits, len(context) - given)
        token = best if self.params.greedy else self._draw(adjusted, float(adjusted[best]), adjusted.size)
        return self._report(logits, token)

    def _pick_candidate(self, found: Candidates, context: Sequence[int] | np.ndarray, given: int) -> Choice:
        """As `pick`; of two ids the lower has the lower place, so equals and draws come out as among all logits."""
        logits = found.logits
        if self.params.adjusts:
            logits = logits.copy()
            self._penalise(logits, context, given, found.size, lambda ids: np.searchsorted(found.ids, ids))
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):
            raise _no_choice(logits, len(context) - given)
        place = best if self.params.greedy else self._draw(logits, float(logits[best]), found.size)
        return Choice(int(found.ids[place]), None, ())

    def _adjusted(self, size: int, context: Sequence[int] | np.ndarray, given: int) -> np.ndarray:
        """The ids whose logits `_penalise` changes, ascending int32."""
        p = self.params
        ids = np.asarray(context, np.int64)
        parts = [np.fromiter(p.logit_bias, np.int64, len(p.logit_bias))]
        if p.presence_penalty or p.frequency_penalty:
            parts.append(ids[given:])
        if p.repetition_penalty != 1:
            parts.append(ids[ids < size])
        return np.unique(np.concatenate(parts)).astype(np.int32)

    def _adjust(
        self, logits: np.ndarray, context: Sequence[int] | np.ndarray, given: int, mask: np.ndarray | None
    ) -> np.ndarray:
        if self.params.adjusts:
            logits = logits.copy()
            self._penalise(logits, context, given, logits.size, lambda ids: ids)
        return logits if mask is None else np.where(mask[: self.size], logits, np.float32(-np.inf))

    def _penalise(
        self,
        logits: np.ndarray,
        context: Sequence[int] | np.ndarray,
        given: int,
        size: int,
        places: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        """In place; `places` tells where the logits of ids are."""
        p = self.params
        ids = np.asarray(context, np.int64)
        penalise_repetition(logits, places(ids[ids < size]), p.repetition_penalty)  # a prompt may hold padding
        penalise_counts(logits, places(ids[given:]), p.presence_penalty, p.frequency_penalty)
        biased = places(np.fromiter(p.logit_bias, np.int64, len(p.logit_bias)))
        add_bias(logits, dict(zip(biased.tolist(), p.logit_bias.values(), strict=True)))

    @np.errstate(over="ignore")  # what overflows is -inf, and weighs nothing
    def _draw(self, logits: np.ndarray, peak: float, size: int) -> int:
        """A place among `logits`, which are all of `size` or the candidates among them."""
        p = self.params
        ids = top_k(logits, p.top_k) if 0 < p.top_k < size else None
        weights = (logits if ids is None else logits[ids]) - np.float32(peak)
        weights *= np.float32(1 / p.temperature)
        np.exp(weights, out=weights)  # in place: a fresh megabyte costs more than the arithmetic
        if p.top_p < 1:
            ids, weights = _keep(ids, weights, top_p(weights, p.top_p))
        if p.min_p > 0:
            ids, weights = _keep(ids, weights, np.flatnonzero(weights >= p.min_p * weights.max()))
        position = draw(weights, self._random.random())
        return position if ids is None else int(ids[position])

    def _report(self, logits: np.ndarray, token: int) -> Choice:
        count = self.params.logprobs
        if count is None:
            return Choice(token, None, ())
        total = float(log_total(logits))
        likeliest = top_k(logits[: self.size], count) if count else ()
        return Choice(token, float(logits[token]) - total, tuple((int(i), float(logits[i]) - total) for i in likeliest))


def log_total(logits: np.ndarray) -> np.ndarray:
    """log Σ exp over the last axis, in float64: (..., V) -> (...)."""
    peak = logits.max(axis=-1, keepdims=True)
    weights = logits - peak
    np.exp(weights, out=weights)
    return np.asarray(peak[..., 0] + np.log(weights.sum(axis=-1, dtype=np.float64)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis: float32, any shape (..., V)."""
    return np.asarray(logits - log_total(logits)[..., None], np.float32)


def penalise_repetition(logits: np.ndarray, seen: np.ndarray, penalty: float) -> None:
    """In place: positive logits of `seen` ids divided by `penalty`, negative ones multiplied by it."""
    if penalty == 1 or not len(seen):
        return
    found = logits[seen]
    logits[seen] = np.where(found > 0, found / np.float32(penalty), found * np.float32(penalty))


def penalise_counts(logits: np.ndarray, generated: np.ndarray, presence: float, frequency: float) -> None:
    """In place: each generated id loses `presence` once and `frequency` for every time it was generated."""
    if not (presence or frequency) or not len(generated):
        return
    ids, counts = np.unique(generated, return_counts=True)
    logits[ids] -= (presence + frequency * counts).astype(np.float32)


def add_bias(logits: np.ndarray, bias: Mapping[int, float]) -> None:
    """In place: `bias[id]` added to the logit of each id. Raises OptionError for an id that is not there."""
    if not bias:
        return
    ids = np.fromiter(bias.keys(), np.int64, len(bias))
    if ids.max() >= logits.size:
        raise OptionError(
            f"logit_bias names the token {ids.max()}, but this model's tokens are 0 to {logits.size - 1}. "
            "Use ids of this model's own tokenizer."
        )
    logits[ids] += np.fromiter(bias.values(), np.float32, len(bias))


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k largest scores, largest first, the lower position first among equals."""
    k = min(k, scores.size)
    kept = np.flatnonzero(scores >= _bound(scores, k))
    return kept[np.argsort(-scores[kept], kind="stable")[:k]]


def _bound(scores: np.ndarray, k: int) -> np.float32:
    """A number that at least k scores reach, and not many more.

    The k-th largest of the columns' maxima is such a number: k columns hold a score that large. Far cheaper than
    partitioning all scores, since the maxima of 64 long rows are taken with vector instructions.
    """
    columns = scores.size // 64
    if columns >= 4 * k:
        scores = scores[: columns * 64].reshape(64, columns).max(axis=0)
    bound: np.float32 = np.partition(scores, scores.size - k)[scores.size - k]
    return bound


def top_p(weights: np.ndarray, p: float) -> np.ndarray:
    """Positions of the fewest largest weights that hold the share `p` of their sum, largest first; at least one.

    Looks at the 128 largest first and at eight times as many each time these do not suffice.
    arxiv.org/abs/1904.09751
    """
    goal = p * float(weights.sum(dtype=np.float64))
    count = 128
    while True:
        likeliest = top_k(weights, count)
        reached = int(np.searchsorted(np.cumsum(weights[likeliest], dtype=np.float64), goal))
        if reached < likeliest.size or likeliest.size == weights.size:
            return likeliest[: reached + 1]
        count *= 8


def draw(weights: np.ndarray, u: float) -> int:
    """The position at which the running sum of the weights passes the share `u` in [0, 1) of their total."""
    starts = np.arange(0, weights.size, 512)
    blocks = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    goal = u * blocks[-1]
    block = _passing(blocks, goal)
    inside = np.cumsum(weights[starts[block] : starts[block] + 512], dtype=np.float64)
    return int(starts[block]) + _passing(inside, goal - (blocks[block - 1] if block else 0.0))


def _passing(sums: np.ndarray, goal: float) -> int:
    """First position whose running sum exceeds the goal; where rounding leaves none, the last that adds to the sum."""
    return min(int(np.searchsorted(sums, goal, side="right")), int(np.searchsorted(sums, sums[-1])))


def _keep(ids: np.ndarray | None, weights: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return kept if ids is None else ids[kept], weights[kept]


def _gap(params: Params) -> float:
    """How far below the largest logit a token may lie that `min_p` keeps, rounding included; inf: any distance."""
    if params.min_p < 1e-30:  # weights that small are no longer exact
        return math.inf
    return params.temperature * (1e-4 - 1.0001 * math.log(params.min_p))


def _no_choice(logits: np.ndarray, step: int) -> Exception:
    bad = int(logits.size - np.isfinite(logits).sum() - np.isneginf(logits).sum())
    if bad:
        return TensorError(
            f"The model's logits at step {step} hold {bad} values of {logits.size} that are not numbers (NaN or "
            "infinite). The weights may be damaged (load with check=True to see), or the dtype too narrow: "
            "try dtype='float32'."
        )
    return OptionError(f"At step {step} no token is left to choose from: the mask and the biases forbid all of them.")


def _number(params: Params, name: str, allowed: str, good: Callable[[float], bool]) -> None:
    value = getattr(params, name)
    if not _is_number(value) or not good(value):
        raise _out_of_range(name, value, f"a number {allowed}")


def _integer(params: Params, name: str, allowed: str, *, optional: bool = False) -> None:
    value = getattr(params, name)
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise _out_of_range(name, value, f"an integer, {allowed}")


def _check_bias(bias: object) -> None:
    if not isinstance(bias, Mapping):
        raise _out_of_range("logit_bias", bias, "a mapping from token id to a number")
    for key, value in bias.items():
        if isinstance(key, bool) or not isinstance(key, Integral) or not 0 <= int(key) < 2**31:
            raise _out_of_range("logit_bias", key, "a mapping whose keys are token ids, integers from 0")
        if not _is_number(value) and value != -math.inf:
            raise _out_of_range(f"logit_bias[{key}]", value, "a number from -1e9 to 1e9, or -inf to forbid the token")


def _is_number(value: Any) -> bool:
    """Whether float32 can hold it with room to spare; NaN, infinities and truth values are no numbers here."""
    return isinstance(value, Real) and not isinstance(value, bool) and bool(abs(value) <= 1e9)  # type: ignore[operator]


def _out_of_range(name: str, value: object, allowed: str) -> OptionError:
    return OptionError(f"{name} must be {allowed}; {value!r} was given.")
