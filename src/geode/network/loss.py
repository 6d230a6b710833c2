"""log Σ exp of all logits of the positions that are learnt, without the logits ever being there as a whole.

What is made of it (a loss, a preference) is `objectives`' to know.

    The vocabulary goes by in slices, as keys do in flash attention (arxiv.org/abs/2205.14135): a running maximum m, the
    sum l, and what the gradient for x will be, E = Σ softmax · W, scaled anew whenever m rises. So the gradient for x
    costs no second sweep; that for a trained W takes one, when the sum is known.

      W  ─┬─ slice 0 ─ x Wᵀ ─ m, l, E ─┐
          ├─ slice 1 ─ x Wᵀ ─ m, l, E ─┤        log Σ exp = m + log l      d/dx = E / l
          └─ …                         ┘        d/dW = softmaxᵀ · x, by slices

Shape letters: M positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from . import backend
from .backend import Tensor

SLICE = 4096  # rows of the head's matrix at a time: their logits stay in a CPU's cache
ROWS = 1024  # positions at a time


def logprobs(matrix: Any, x_MD: Tensor, targets: Tensor, cap: float | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities of targets (M,) or (M, K) after the hidden states x, and log Σ exp (M,); both float32."""
    whole = log_normaliser(matrix, x_MD, cap)
    at = x_MD if len(targets.shape) == 1 else x_MD[:, None, :]
    rows = matrix.rows(targets)
    chosen = ops.sum(backend.cast(at, "float32") * backend.cast(rows, "float32"), axis=-1)
    if cap is not None:
        chosen = ops.tanh(chosen / cap) * cap
    return chosen - (whole if len(targets.shape) == 1 else whole[:, None]), whole


def log_normaliser(matrix: Any, x_MD: Tensor, cap: float | None = None) -> Tensor:
    """log Σ_v exp(logit_v): float32 (M,). `matrix` is what a head keeps its numbers in; cap bends logits as
    cap · tanh(z / cap)."""
    count = x_MD.shape[0]
    parts = [_log_normaliser(matrix, x_MD[i : i + ROWS], cap) for i in range(0, count, ROWS)]
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=0)


def _log_normaliser(matrix: Any, x_MD: Tensor, cap: float | None) -> Tensor:
    pairs = matrix.factors(x_MD)
    kept = [factor for _, factor in pairs]
    arrays = [factor.arrays for factor in kept]
    trained = [i for i, factor in enumerate(kept) if hasattr(factor, "weight") and factor.weight.trainable]
    learns = backend.records_gradients()  # asked here: inside a custom gradient nothing records

    def forward(*given: Tensor) -> tuple[Tensor, Any]:
        xs, own = given[: len(pairs)], dict(zip(trained, given[len(pairs) :], strict=True))
        sweep = Sweep(xs, kept, [(own[i],) if i in own else one for i, one in enumerate(arrays)], cap)
        whole, toward = sweep.forward(learns)

        def gradient(dy: Tensor) -> tuple[Tensor, ...]:
            dx = [backend.cast(dy[:, None] * each, x.dtype) for each, x in zip(toward, xs, strict=True)]
            return (*dx, *sweep.backward(whole, dy, trained))

        return whole, gradient

    return backend.with_gradients((*(x for x, _ in pairs), *(arrays[i][0] for i in trained)), forward)


class Sweep:
    """One pass over the vocabulary for the factors of one head: logits = Σ xᵢ · Wᵢᵀ. What a factor's `cut` cuts from
    comes beside it."""

    def __init__(self, xs: Sequence[Tensor], kept: list[Any], arrays: list[Any], cap: float | None):
        self.xs, self.kept, self.arrays, self.cap = list(xs), kept, arrays, cap
        self.size = int(arrays[0][0].shape[0])

    def forward(self, learns: bool) -> tuple[Tensor, list[Tensor]]:
        """log Σ exp (M,), and for each x what its gradient is a multiple of: float32, as x."""
        m = self.xs[0].shape[0]
        zero = [ops.zeros(x.shape, "float32") for x in self.xs] if learns else []
        start = (ops.full((m, 1), -1e30, "float32"), ops.zeros((m, 1), "float32"), *zero)

        def step(at: Any, size: int, carry: Any) -> Any:
            most, total, *toward = carry
            cuts = self._cuts(at, size)
            z = backend.scores(self.xs, cuts)
            most, total, shrink, p = backend.exponentials(z, most, total, self.cap)
            every = zip(toward, cuts, strict=bool(toward))
            return (most, total, *(backend.blend(e, shrink, _product(p, w)) for e, w in every))

        most, total, *toward = self._over(step, start)
        return (most + ops.log(total))[:, 0], [e / total for e in toward]

    def backward(self, whole_M: Tensor, dy_M: Tensor, trained: list[int]) -> list[Tensor]:
        """The gradients of the trained matrices: float32, as they are."""
        if not trained:
            return []
        start = tuple(ops.zeros((self.size, self.xs[i].shape[1]), "float32") for i in trained)

        def step(at: Any, size: int, carry: Any) -> Any:
            z, slope = backend.capped(backend.scores(self.xs, self._cuts(at, size)), self.cap)
            p = ops.exp(z - whole_M[:, None]) * dy_M[:, None]
            p = ops.transpose(p if slope is None else p * slope)
            return tuple(
                backend.put_rows(into, at, backend.cast(_product(p, self.xs[i]), "float32"))
                for into, i in zip(carry, trained, strict=True)
            )

        return list(self._over(step, start))

    def _cuts(self, at: Any, size: int) -> list[Tensor]:
        """Rows of each matrix, in its x's dtype."""
        every = zip(self.kept, self.arrays, self.xs, strict=True)
        return [backend.cast(factor.cut(arrays, at, size), x.dtype) for factor, arrays, x in every]

    def _over(self, step: Any, carry: Any) -> Any:
        whole, rest = divmod(self.size, SLICE)
        carry = backend.loop(whole, lambda i, carry: step(i * SLICE, SLICE, carry), carry)
        return step(whole * SLICE, rest, carry) if rest else carry


def _product(p: Tensor, w: Tensor) -> Tensor:
    """p (M, S) · w (S, D), in w's dtype."""
    return ops.matmul(backend.cast(p, w.dtype), w)
