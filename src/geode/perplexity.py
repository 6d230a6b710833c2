"""How well a model predicts a text, measured as llama-perplexity measures it, and how far two models differ.

How logits are computed is not known here; they come a few rows at a time and are never all there.

    text ─ ids ─┬─ chunk 1: BOS ······ | scored ─┐
                ├─ chunk 2: BOS ······ | scored ─┼─ negative log-probability of each ─ mean, exp: perplexity
                └─ …                             ┘   └ beside a reference's saved logits: KL divergence
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .errors import ContextError, OptionError, TensorError
from .io import logits as saved_logits
from .lm import Local
from .sampling import log_total

CONTEXT = 512  # llama.cpp's default, and so every published figure's
BLOCK = 1 << 20  # logits looked at together: what a core's caches hold
QUANTILES = (0.999, 0.99, 0.95, 0.9, 0.5)


class Mean(NamedTuple):
    """A mean and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Estimate:
    """What `done` of `chunks` chunks gave. `nll` float64 (N,): scored tokens' negative log-probabilities, in nats."""

    done: int
    chunks: int
    nll: np.ndarray

    @property
    def ppl(self) -> Mean:
        """Perplexity: exp of the mean of `nll`."""
        return _exp(mean(self.nll))


@dataclass(frozen=True)
class Divergence(Estimate):
    """An estimate beside a reference's. All (N,): `base` is the reference's `nll`, `kld` the divergence KL(reference ‖
    model) of the whole distribution, `same` whether both find the same token likeliest."""

    base: np.ndarray
    kld: np.ndarray
    same: np.ndarray

    @property
    def base_ppl(self) -> Mean:
        return _exp(mean(self.base))

    @property
    def log_ratio(self) -> Mean:
        """ln(perplexity / the reference's)."""
        return mean(self.nll - self.base)

    @property
    def ratio(self) -> Mean:
        """Perplexity / the reference's."""
        return _exp(self.log_ratio)

    @property
    def mean_kld(self) -> Mean:
        return mean(self.kld)

    @property
    def quantiles(self) -> dict[float, float]:
        """The divergence that a share of the positions does not exceed; the largest by 1."""
        return {share: float(np.quantile(self.kld, share)) for share in (1.0, *QUANTILES)}

    @cached_property
    def dp(self) -> np.ndarray:
        """Probability of the text's own token, less the reference's (N,)."""
        return np.asarray(np.exp(-self.nll) - np.exp(-self.base))

    @property
    def mean_dp(self) -> Mean:
        return mean(self.dp)

    @property
    def rms_dp(self) -> Mean:
        square = mean(self.dp**2)
        root = math.sqrt(square.value)
        return Mean(root, 0.5 * square.error / root if root else 0.0)

    @property
    def same_top(self) -> Mean:
        """Share of the positions where both find the same token likeliest."""
        return mean(self.same)


def mean(values: np.ndarray) -> Mean:
    """The mean of (N,), and its standard error as llama.cpp has it: √((mean of squares - squared mean) / (N - 1))."""
    return Mean(float(np.mean(values)), float(np.std(values)) / math.sqrt(max(len(values) - 1, 1)))


def _exp(log: Mean) -> Mean:
    value = float(np.exp(log.value))
    return Mean(value, value * log.error)


def measure(
    lm: Local,
    text: str | Sequence[int],
    *,
    context: int = CONTEXT,
    stride: int | None = None,
    chunks: int | None = None,
    save: str | Path | None = None,
    exact: bool = False,
) -> Iterator[Estimate]:
    """The perplexity of a text, better with every chunk: the last estimate is the answer. Checks before it returns.

    The text is tokenised once, as the model's reference does, and cut into chunks of `context` tokens; a chunk's first
    token gives way to BOS where the tokenizer begins texts with one, and its second half is scored. With `stride`,
    windows of context + stride // 2 tokens begin `stride` apart and the last `stride` of each are scored: every token
    once, with more before it. (llama.cpp means to put BOS there too and does so too late, so its own strided figures of
    such models are worse.) `chunks` ends sooner. `save` names a file for `compare`: llama.cpp's format, 16 bits a
    number, or with `exact` float32.

    Raises OptionError, ContextError, TokenizerError, CapacityError; TensorError for logits that are not numbers.
    """
    if save is not None and stride is not None:
        raise OptionError("Logits are saved of whole chunks, never with a stride. Leave one of the two out.")
    plan = _plan(lm, _ids(lm, text), context, stride, chunks)
    layout = saved_logits.Layout(exact, lm.config.vocab, plan.tokens) if save is not None else None
    return _measure(lm, plan, save, layout)


def compare(
    lm: Local, saved: str | Path, *, text: str | Sequence[int] | None = None, chunks: int | None = None
) -> Iterator[Divergence]:
    """How far the model is from the reference whose logits `measure` or llama.cpp saved; better with every chunk.

    The file brings the tokens. A `text` is only compared with them, to find a wrong file or tokenizer.
    Raises ModelNotFound, FormatError, OptionError, ContextError, TensorError; all but the last before it returns.
    """
    found = saved_logits.read(saved)
    layout = found.layout
    if layout.vocab != lm.config.vocab:
        raise OptionError(
            f"The logits in {found.path} are over {layout.vocab} tokens, and this model has {lm.config.vocab}. "
            "Two models are compared token by token: save the logits of one with the same vocabulary."
        )
    if text is not None:
        _check_same(found, _ids(lm, text))
    plan = _plan(lm, layout.tokens.reshape(-1), layout.context, None, chunks, least=1)
    return _compare(lm, plan, found)


@dataclass(frozen=True)
class _Plan:
    """Which tokens are scored after which: `count` windows, `step` apart, each scored after row `first` and on."""

    ids: np.ndarray
    window: int
    first: int
    step: int
    count: int
    bos: int | None

    @property
    def tokens(self) -> np.ndarray:
        """The chunks' own tokens (count, window), where windows do not overlap."""
        return self.ids[: self.count * self.window].reshape(self.count, self.window)

    def rows(self, lm: Local, number: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Scored rows of one window in small blocks: how many came before, logits (t, V), and the true tokens (t,)."""
        ids = self.ids[number * self.step :][: self.window]
        fed = [int(ids[0]) if self.bos is None else self.bos, *ids[1:-1].tolist()]
        targets = ids[self.first + 1 :]
        done = 0
        for chunk in lm.executor.rows(fed, start=self.first):
            some = max(BLOCK // chunk.shape[1], 1)
            for block in (chunk[i : i + some] for i in range(0, len(chunk), some)):
                yield done, block, targets[done : done + len(block)]
                done += len(block)


def _plan(lm: Local, ids: np.ndarray, context: int, stride: int | None, chunks: int | None, least: int = 2) -> _Plan:
    _check_integer("context", context, 4)
    window = context if stride is None else context + _check_integer("stride", stride, 1) // 2
    if stride is not None and stride > context:
        raise OptionError(f"The stride is {stride} and the context {context}: give a stride of at most the context.")
    if window > lm.context:
        raise ContextError(
            f"Each chunk would have {window} tokens and the model's context holds {lm.context}. Give a smaller context."
        )
    if len(ids) < least * window:
        raise OptionError(
            f"The text has {len(ids)} tokens, and chunks of {window} need at least {least * window}. "
            "Give a longer text or a smaller context."
        )
    most = len(ids) // window if stride is None else -(-(len(ids) - window) // stride)
    count = most if chunks is None else min(_check_integer("chunks", chunks, 1), most)
    first = window // 2 if stride is None else window - stride - 1
    tokenizer = lm.tokenizer
    bos = tokenizer.bos if tokenizer is not None and tokenizer.adds_bos else None
    return _Plan(ids, window, first, stride or window, count, bos)


def _measure(lm: Local, plan: _Plan, save: str | Path | None, layout: saved_logits.Layout | None) -> Iterator[Estimate]:
    nll: list[np.ndarray] = []
    with saved_logits.writing(save, layout) if save and layout else nullcontext() as add:
        for number in range(plan.count):
            for _, logits, targets in plan.rows(lm, number):
                total = log_total(logits)
                nll.append(_nll(logits, total, targets))
                if add is not None:
                    add(_logprobs(logits, total))
            nll = [np.concatenate(nll)]
            if number + 1 < plan.count:
                yield Estimate(number + 1, plan.count, nll[0])
    yield Estimate(plan.count, plan.count, nll[0])  # when the file is whole


def _compare(lm: Local, plan: _Plan, saved: saved_logits.Saved) -> Iterator[Divergence]:
    columns: list[tuple[np.ndarray, ...]] = []
    for number in range(plan.count):
        for done, logits, targets in plan.rows(lm, number):
            base = saved.rows(number, done, done + len(logits))
            columns.append(_differences(logits, base, targets, saved.layout.floor))
        columns = [tuple(np.concatenate(parts) for parts in zip(*columns, strict=True))]
        yield Divergence(number + 1, plan.count, *columns[0])


@np.errstate(invalid="ignore", under="ignore")  # 0 × inf where the reference is certain, and it is not looked at
def _differences(logits: np.ndarray, base: np.ndarray, targets: np.ndarray, floor: float) -> tuple[np.ndarray, ...]:
    """nll, the reference's nll, KL divergence, same likeliest token: each (t,)."""
    total = log_total(logits)
    gap = base - _logprobs(logits, total)
    gap *= np.exp(base)
    kld = gap.sum(axis=1, dtype=np.float64, where=base > floor)
    theirs = -base[np.arange(len(base)), targets].astype(np.float64)
    return _nll(logits, total, targets), theirs, kld, logits.argmax(axis=1) == base.argmax(axis=1)


def _logprobs(logits: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.asarray(logits - total[:, None], np.float32)


def _nll(logits: np.ndarray, total: np.ndarray, targets: np.ndarray) -> np.ndarray:
    nll = total - logits[np.arange(len(logits)), targets]
    if np.isnan(nll).any():
        raise TensorError("The model's logits are not numbers (NaN). Load with check=True to look for damaged weights.")
    return np.asarray(nll, np.float64)


def _ids(lm: Local, text: str | Sequence[int]) -> np.ndarray:
    """Ids of a whole text as llama.cpp begins it: BOS where the tokenizer adds one, never an EOS."""
    if isinstance(text, str):
        bos = lm.tokenizer.adds_bos if lm.tokenizer is not None else None
        text = lm.tokenize(text, bos=bos)
    ids = np.asarray(text, np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < lm.config.vocab:
        raise OptionError(
            f"Token ids of this model are 0 to {lm.config.vocab - 1}; these are {ids.min()} to {ids.max()}."
        )
    return ids


def _check_same(saved: saved_logits.Saved, ids: np.ndarray) -> None:
    theirs = saved.layout.tokens.reshape(-1)
    mine = ids[: theirs.size]
    differ = np.flatnonzero(mine != theirs[: mine.size])
    if mine.size < theirs.size or differ.size:
        where = int(differ[0]) if differ.size else int(mine.size)
        raise OptionError(
            f"The text is not the one that the logits in {saved.path} were saved for: their tokens differ from number "
            f"{where} on. Give the same text, or none: the file holds its tokens."
        )


def _check_integer(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name} must be an integer, {least} or more; {value!r} was given.")
    return value
