"""The one file that asks which framework is running.

Keras gives one spelling of nearly everything; here is the rest: choosing the framework, compiling a step, and the few
operations where a framework's own form is much faster. What a network is made of is not known here.

Shape letters: B batch, T queries, S key slots, K key/value heads, R queries of one such head, H head size, D/E widths.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import BackendError
from ..quant import QTensor, pieces, to_float32
from ..tensors import Array

Tensor = Any
NAMES = ("jax", "torch", "tensorflow")


def select(on: str) -> None:
    """Makes `on` this process's framework. Raises BackendError when another one already is."""
    if on not in NAMES:
        raise BackendError(f"on={on!r} is no framework here; expected one of {', '.join(NAMES)}.")
    keras = sys.modules.get("keras")
    active = keras.config.backend() if keras is not None else None
    if active not in (None, on):
        raise BackendError(
            f"This process already runs Keras on {active}, and a process has one backend: {on!r} cannot be had beside "
            f"it. Load with on={active!r}, or start another process."
        )
    os.environ["KERAS_BACKEND"] = on
    if on == "tensorflow" and "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        with _quiet_stderr():
            import tensorflow as tf

            tf.config.list_physical_devices()
        logging.getLogger("tensorflow").setLevel(logging.ERROR)  # a retrace for each new shape is what we mean


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Sends what C++ writes to stderr nowhere: TensorFlow greets every start with a page about missing accelerators."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def name() -> str:
    import keras

    return str(keras.config.backend())


def is_compiled() -> bool:
    """Whether steps are compiled for fixed shapes (JAX, TensorFlow) or run as they come (PyTorch)."""
    return name() != "torch"


def set_threads(threads: int) -> None:
    """CPU threads of the framework. Raises BackendError where it is too late or not offered."""
    if name() == "torch":
        import torch

        torch.set_num_threads(threads)
    elif name() == "tensorflow":
        import tensorflow as tf

        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        except RuntimeError:
            raise BackendError("TensorFlow has already started its threads; set threads on the first load.") from None
    else:
        raise BackendError(
            "JAX takes its CPU threads from the process: start it with `taskset -c 0-N`, or leave threads unset."
        )


def on_cpu() -> bool:
    """Whether the framework computes on this machine's CPU."""
    if name() == "torch":
        import torch

        return not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if name() == "jax":
        import jax

        return bool(jax.default_backend() == "cpu")
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU")


def multiplies_bfloat16() -> bool:
    """Whether products of bfloat16 are faster here than of float32."""
    if not on_cpu():
        return True
    if name() != "torch":
        return False  # XLA's CPU compiler widens both sides first
    import torch

    kinds = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, kind, bool)() for kind in kinds)


def tensor(array: Array, dtype: str) -> Tensor:
    """An array, packed or not, as a tensor of `dtype`."""
    from keras import ops

    if name() == "torch":
        return ops.convert_to_tensor(_tensor_torch(array, dtype))
    array = to_float32(array) if isinstance(array, QTensor) or array.dtype.kind not in "iu" else array
    own = array if array.flags.writeable and array.flags.c_contiguous else array.copy()  # not the file's own pages
    return cast(ops.convert_to_tensor(own), dtype)


def _tensor_torch(array: Array, dtype: str) -> Tensor:
    """Piece by piece: the numbers are never there as float32 beside what they become."""
    import torch

    made = torch.empty(array.shape, dtype=getattr(torch, dtype))
    flat, at = made.view(-1), 0
    for piece in pieces(array):
        own = piece.copy() if piece.dtype.kind in "iu" else piece.astype(np.float32)
        flat[at : at + own.size] = torch.from_numpy(own)
        at += own.size
    return made


def highest(positions_BT: Tensor) -> int | None:
    """The largest position, where shapes may follow it from step to step; None where they are compiled."""
    return None if is_compiled() else int(positions_BT.max())


def to_numpy(value: Tensor) -> np.ndarray:
    """A tensor as a float32 (or integer) array."""
    from keras import ops

    if name() == "torch":
        value = value.detach()
        return np.asarray(value.float().cpu() if value.is_floating_point() else value.cpu())
    return np.asarray(ops.convert_to_numpy(value))


def compile(step: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
    """`step(cache, *arrays)` made fast: traced once for each combination of shapes where the framework compiles.

    `cache` is given away: the caller must use the one that comes back.
    """
    return {"jax": _compile_jax, "torch": _compile_torch, "tensorflow": _compile_tensorflow}[name()](step, variables)


def _compile_jax(step: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
    import jax
    import keras

    def pure(values: list[Tensor], cache: Any, *arrays: Tensor) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return step(cache, *arrays)

    jitted = jax.jit(pure, donate_argnums=1)
    return lambda cache, *arrays: jitted([variable.value for variable in variables], cache, *arrays)


def _compile_torch(step: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
    import torch
    from keras import ops

    def run(cache: Any, *arrays: np.ndarray) -> Any:
        with torch.inference_mode():
            return step(cache, *(ops.convert_to_tensor(array) for array in arrays))  # on the device of the weights

    return run


def _compile_tensorflow(step: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
    import tensorflow as tf

    compiled = tf.function(step, autograph=False, jit_compile=True)
    return lambda cache, *arrays: compiled(cache, *(tf.convert_to_tensor(array) for array in arrays))


def _type(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def cast(x: Tensor, dtype: Any) -> Tensor:
    """`x` in another dtype, given by name or as another tensor's."""
    if name() == "torch":
        import torch

        return x.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    from keras import ops

    return ops.cast(x, dtype)


def standardise(x: Tensor, eps: float, centred: bool) -> Tensor:
    """x / rms(x) over the last axis, or (x - mean) / std if `centred`: a norm before its weight."""
    if name() == "torch":
        import torch

        norm = torch.nn.functional.layer_norm if centred else torch.nn.functional.rms_norm
        return norm(x, x.shape[-1:], None, eps=eps)
    from keras import ops

    x = x - ops.mean(x, axis=-1, keepdims=True) if centred else x
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + eps)


def linear(x: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """x (..., D) · weightᵀ + bias -> (..., E) in x's dtype, whatever the weight's."""
    if name() == "torch":
        return _linear_torch(x, weight_ED.to(x.dtype), None if bias_E is None else bias_E.to(x.dtype))
    from keras import ops

    y = _matmul_jax(x, weight_ED) if name() == "jax" else ops.matmul(x, ops.transpose(ops.cast(weight_ED, x.dtype)))
    return y if bias_E is None else ops.add(y, ops.cast(bias_E, x.dtype))


def _matmul_jax(x: Tensor, weight_ED: Tensor) -> Tensor:
    """x · weightᵀ.

    The barrier keeps XLA's CPU compiler from computing the norm before anew inside every product. bfloat16 matrices it
    multiplies at a tenth of the memory's speed: widened to float32, as a sum for one row and as a product for more, it
    reads them as fast as it can (dev/LOG.md).
    """
    import jax

    x = jax.lax.optimization_barrier(x)
    if x.dtype == "bfloat16" and on_cpu():
        wide, weight = x.astype("float32"), weight_ED.astype("float32")
        if x.size == x.shape[-1] and weight_ED.dtype == "bfloat16":
            y = (wide.reshape(1, -1) * weight).sum(-1).reshape(*x.shape[:-1], -1)
        else:
            y = jax.lax.dot_general(wide, weight, (((x.ndim - 1,), (1,)), ((), ())))
        return y.astype(x.dtype)
    return jax.lax.dot_general(x, weight_ED.astype(x.dtype), (((x.ndim - 1,), (1,)), ((), ())))


STREAMED = 1 << 24  # bytes of a weight too large for any cache
SLICES = 8


def _linear_torch(x: Tensor, weight_ED: Tensor, bias_E: Tensor | None) -> Tensor:
    """One row of float32 against a weight that is read from memory goes in slices, which MKL spreads over its threads;
    the plain product it leaves to one, at half the speed (dev/LOG.md)."""
    import torch

    e, d = weight_ED.shape
    is_large = x.numel() == d and e % SLICES == 0 and 4 * weight_ED.numel() >= STREAMED
    is_plain = x.dtype == torch.float32 and x.device.type == "cpu" and weight_ED.is_contiguous()
    if not (is_large and is_plain) or torch.is_grad_enabled():
        return torch.nn.functional.linear(x, weight_ED, bias_E)
    slices = weight_ED.view(SLICES, e // SLICES, d).transpose(1, 2)
    y = torch.matmul(x.reshape(1, 1, d).expand(SLICES, 1, d), slices).reshape(*x.shape[:-1], e)
    return y if bias_E is None else y + bias_E


FEW = 16  # rows of x for which integers pay; for more, making floats of the matrix costs less


def linear_int8(x: Tensor, q_ED: Tensor) -> Tensor:
    """x (..., D) · qᵀ of an int8 matrix -> (..., E) in x's dtype, by floats."""
    rows = math.prod(x.shape[:-1])
    if name() != "torch" or rows > FEW or x.device.type != "cpu" or _type(x) != "bfloat16":
        return linear(x, after(x, cast(q_ED, "float32")) if is_compiled() else q_ED)
    import torch

    y = torch._weight_int8pack_mm(x.reshape(rows, -1), q_ED, x.new_ones(len(q_ED)))
    return y.reshape(*x.shape[:-1], -1)


def halves(q: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(q - 8) · scale, float32, for the low and for the high four bits of bytes."""
    if name() == "torch":
        return tuple(half.float().sub_(8).mul_(scale) for half in (q & 15, q >> 4))  # type: ignore[return-value]
    from keras import ops

    low, high = ops.bitwise_and(q, 15), ops.right_shift(q, 4)
    return (ops.cast(low, "float32") - 8) * scale, (ops.cast(high, "float32") - 8) * scale


def after(x: Tensor, value: Tensor) -> Tensor:
    """`value`, of floats, which a compiler cannot know before x.

    XLA's CPU scheduler would else make floats of all weights before the first product, so that they are all there at
    once; barriers it strips before it schedules (dev/LOG.md).
    """
    if not is_compiled():
        return value
    from keras import ops

    return value * (1 + 0 * ops.cast(ops.reshape(x, (-1,))[0] > 0, value.dtype))


def multiplies_integers(x: Tensor) -> bool:
    """Whether a product of int8 matrices is exact here and faster than `linear_int8`: on CPUs, of JAX and PyTorch."""
    if name() == "torch":
        return x.device.type == "cpu" and _type(x) == "float32" and _is_exact_torch()
    return name() == "jax" and on_cpu()


@functools.cache
def _is_exact_torch() -> bool:
    """Older CPUs add two products in 16 bits, which overflow at the ends; and the function is not a public one."""
    import torch

    most = torch.full((3, 64), 127, dtype=torch.int8)
    try:
        return all(bool((torch._int_mm(sign * most, most.t()) == sign * 127 * 127 * 64).all()) for sign in (1, -1))
    except (AttributeError, RuntimeError):
        return False


def integer_product(a_MD: Tensor, q_ED: Tensor) -> Tensor:
    """a · qᵀ of int8, exact: int32 (M, E)."""
    if name() == "torch":
        import torch

        return torch._int_mm(a_MD, q_ED.t())
    import jax

    a_MD = jax.lax.optimization_barrier(a_MD)  # as in `_matmul_jax`
    return jax.lax.dot_general(a_MD, q_ED, (((1,), (1,)), ((), ())), preferred_element_type="int32")


def with_gradient(x: Tensor, forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor]) -> Tensor:
    """forward(x), whose gradient is backward(the result's gradient)."""
    if name() == "torch":
        import torch

        if not torch.is_grad_enabled():
            return forward(x)
    from keras import ops

    def both(x: Tensor) -> tuple[Tensor, Callable[..., Tensor]]:
        def gradient(*given: Tensor, upstream: Tensor | None = None) -> Tensor:
            return backward(given[0] if upstream is None else upstream)

        return forward(x), gradient

    return ops.custom_gradient(both)(x)


def fused_attention(q_BKRH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask_B1RS: Tensor, scale: float) -> Tensor | None:
    """softmax(scale · q kᵀ, masked) v by the framework's own kernel; None where it has none that fits."""
    if name() != "torch":
        return None
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q_BKRH, k_BKSH, v_BKSH, attn_mask=mask_B1RS, scale=scale)


SEEN, ORDERED = 64, 128  # queries that share their keys in `spans`; compiled programs grow with their number


def spans(mask_BTS: Tensor, window: int | None, is_ordered: bool) -> list[tuple[slice, slice]] | None:
    """For some queries after the others the keys among which all those lie that any row sees; None where nothing would
    be saved. Compiled shapes cannot follow a mask: keys that come later, or before the window, are left out where the
    tokens `is_ordered`."""
    t = mask_BTS.shape[1]
    if is_compiled():
        return _ordered_spans(t, window) if is_ordered and t > ORDERED else None
    if t <= SEEN:
        return None
    found = []
    for start in range(0, t, SEEN):
        seen = mask_BTS[:, start : start + SEEN].any(dim=0).any(dim=0).nonzero()
        first, last = (int(seen[0]), int(seen[-1])) if len(seen) else (0, 0)
        found.append((slice(start, min(start + SEEN, t)), slice(first, last + 1)))
    return found


def _ordered_spans(t: int, window: int | None) -> list[tuple[slice, slice]]:
    ends = [(start, min(start + ORDERED, t)) for start in range(0, t, ORDERED)]
    return [(slice(a, b), slice(0 if window is None else max(0, a - window + 1), b)) for a, b in ends]


def write_slots(kept_BKSH: Tensor, new_BKTH: Tensor, slots_BT: Tensor) -> Tensor:
    """`kept` with `new` at the given slots of each row; in place where the framework works in place."""
    if name() == "torch":
        return _write_torch(kept_BKSH, new_BKTH, slots_BT)
    if name() == "jax":
        return _write_jax(kept_BKSH, new_BKTH, slots_BT)
    import tensorflow as tf

    b, k, t, _ = new_BKTH.shape
    rows, heads = np.arange(b)[:, None, None], np.arange(k)[None, :, None]
    slots = tf.broadcast_to(slots_BT[:, None, :], (b, k, t))
    rows, heads = (tf.broadcast_to(tf.constant(i, slots.dtype), (b, k, t)) for i in (rows, heads))
    return tf.tensor_scatter_nd_update(kept_BKSH, tf.stack([rows, heads, slots], -1), new_BKTH)


def _write_jax(kept_BKSH: Tensor, new_BKTH: Tensor, slots_BT: Tensor) -> Tensor:
    """Slices are updated in place; XLA's CPU compiler copies the whole cache for a scatter, so a step does without."""
    import jax

    rows, tokens = slots_BT.shape
    if tokens == 1:
        for row in range(rows):
            at = (row, 0, slots_BT[row, 0], 0)
            kept_BKSH = jax.lax.dynamic_update_slice(kept_BKSH, new_BKTH[row : row + 1], at)
        return kept_BKSH
    index = np.arange(rows)[:, None]
    return kept_BKSH.at[index, :, slots_BT].set(new_BKTH.swapaxes(1, 2), mode="promise_in_bounds")


def _write_torch(kept_BKSH: Tensor, new_BKTH: Tensor, slots_BT: Tensor) -> Tensor:
    slots_BT = slots_BT.long()
    if kept_BKSH.shape[0] == 1:
        kept_BKSH[0].index_copy_(1, slots_BT[0], new_BKTH[0])
    else:
        for kept, new, slots in zip(kept_BKSH, new_BKTH, slots_BT, strict=True):
            kept.index_copy_(1, slots, new)
    return kept_BKSH


# Training


def with_gradients(inputs: Sequence[Tensor], forward: Callable[..., tuple[Tensor, Callable[..., Any]]]) -> Tensor:
    """forward(*inputs) -> (y, gradient): y, whose gradients for the inputs are the tuple gradient(y's)."""
    if not records_gradients():
        return forward(*inputs)[0]
    from keras import ops

    def both(*inputs: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        y, gradient = forward(*inputs)

        def back(*given: Tensor, upstream: Tensor | None = None) -> Any:
            found = gradient(given[0] if upstream is None else upstream)
            return found if len(found) > 1 else found[0]

        return y, back

    return ops.custom_gradient(both)(*inputs)


def read(variable: Any) -> Tensor:
    """A variable's value as a plain tensor: TensorFlow's custom gradients take no variables."""
    if name() != "tensorflow":
        return variable.value
    import tensorflow as tf

    return tf.convert_to_tensor(variable.value)


def records_gradients() -> bool:
    """Whether what is computed now may be differentiated; compilers drop what nobody asks for."""
    if name() != "torch":
        return True
    import torch

    return bool(torch.is_grad_enabled())


def trains_eagerly() -> bool:
    """Whether gradients are recorded as operations run: then it counts what each of them keeps."""
    return name() == "torch" and records_gradients()


def rms(x: Tensor, weight_D: Tensor, eps: float, cast_first: bool) -> Tensor:
    """A norm that keeps only what came in for its gradient, where `trains_eagerly`."""
    from .gradients_torch import Rms

    return Rms.apply(x, weight_D, eps, cast_first)


def turn(x_BTNH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channels i and i + P turned against each other by angles (B, T, 1, P), likewise."""
    from .gradients_torch import Turned

    return Turned.apply(x_BTNH, cos, sin)


def attention_over(
    spans: Sequence[tuple[slice, slice]], q_BTNH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask_BTS: Tensor, scale: float
) -> Tensor | None:
    """Attention of some queries after the others, each span with its keys alone: (B, T, N·H); None but where the
    framework `trains_eagerly` on a CPU."""
    if not trains_eagerly() or q_BTNH.device.type != "cpu":
        return None
    from .gradients_torch import Attention

    return Attention.apply(q_BTNH, k_BKSH, v_BKSH, mask_BTS, scale, spans)


def gated(gate: Tensor, up: Tensor, act: str) -> Tensor:
    """act(gate) · up, likewise."""
    from .gradients_torch import Gated

    return Gated.apply(gate, up, act)


def rebuilt(h: Tensor, make: Callable[[], Tensor], wanted: bool = True) -> Any:
    """A context in which no operation keeps `h` for its gradient, where it is `wanted` and the framework
    `trains_eagerly`: `make` makes it again. Compilers choose for themselves."""
    if not wanted or not trains_eagerly():
        return contextlib.nullcontext()
    from .gradients_torch import rebuilt

    return rebuilt(h, make)


def loop(count: int, step: Callable[[Any, Any], Any], carry: Any) -> Any:
    """`carry` after step(i, carry) for i from 0; one compiled body where the framework compiles."""
    from keras import ops

    return ops.fori_loop(0, count, step, carry) if count else carry


def rows(value_ED: Tensor, start: Any, size: int) -> Tensor:
    """`size` rows from `start` on, which a loop may count."""
    if name() == "torch":
        return value_ED[start : start + size]
    from keras import ops

    return ops.slice(value_ED, (start, 0)[: len(value_ED.shape)], (size, *value_ED.shape[1:]))


def put_rows(into_ED: Tensor, start: Any, rows: Tensor) -> Tensor:
    """`into` with these rows from `start` on; in place where the framework works in place."""
    if name() == "torch":
        into_ED[start : start + len(rows)] = rows
        return into_ED
    from keras import ops

    return ops.slice_update(into_ED, (start, 0), rows)


def scores(xs_MD: Sequence[Tensor], weights_ED: Sequence[Tensor]) -> Tensor:
    """Σ x · weightᵀ (M, E): float32, but in x's dtype where `exponentials` takes it as it comes."""
    first, *rest = zip(xs_MD, weights_ED, strict=True)
    if name() == "torch" and _passes_fit(xs_MD[0]):
        return functools.reduce(lambda z, pair: add_product(z, *pair), rest, linear(*first))
    return functools.reduce(lambda z, pair: z + _scores(*pair), rest, _scores(*first))


def _scores(x_MD: Tensor, weight_ED: Tensor) -> Tensor:
    if name() == "jax":
        import jax

        return jax.lax.dot_general(x_MD, weight_ED, (((1,), (1,)), ((), ())), preferred_element_type="float32")
    return cast(linear(x_MD, weight_ED), "float32")


def capped(z: Tensor, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """Logits in float32, through cap · tanh(z / cap) if there is one, and then their slope."""
    from keras import ops

    z = cast(z, "float32")
    if cap is None:
        return z, None
    bent = ops.tanh(z / cap)
    return bent * cap, 1 - ops.square(bent)


def exponentials(
    z_MS: Tensor, most_M1: Tensor, total_M1: Tensor, cap: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A slice of logits after others, whose largest is `most` and whose Σ exp(z - most) is `total`: both with the
    slice, what sums before it are worth now, and exp(z - most) times the cap's slope. Given away where `_passes_fit`.
    """
    if name() == "torch" and _passes_fit(z_MS):
        from .kernels_torch import exponentials

        return exponentials(z_MS, most_M1, total_M1, cap)
    from keras import ops

    z, slope = capped(z_MS, cap)
    highest = ops.maximum(most_M1, ops.max(z, axis=-1, keepdims=True))
    shrink, p = ops.exp(most_M1 - highest), ops.exp(z - highest)
    total = total_M1 * shrink + ops.sum(p, axis=-1, keepdims=True)
    return highest, total, shrink, p if slope is None else p * slope


def blend(to_MD: Tensor, keep_M1: Tensor, x_MD: Tensor) -> Tensor:
    """to (float32) · keep + x; `to` is given away."""
    if name() == "torch" and _passes_fit(x_MD):
        from .kernels_torch import blend

        return blend(to_MD, keep_M1, x_MD)
    return to_MD * keep_M1 + cast(x_MD, "float32")


def _passes_fit(x: Tensor) -> bool:
    from .kernels_torch import fit

    return fit(x)


def add_product(y: Tensor, x: Tensor, weight_ED: Tensor) -> Tensor:
    """y (..., E) + x (..., R) · weightᵀ in y's dtype; in place where the framework works in place."""
    if name() != "torch":
        return y + linear(x, cast(weight_ED, x.dtype))
    from .gradients_torch import Added

    return Added.apply(y.contiguous(), x, weight_ED.to(x.dtype))


def differentiate(function: Callable[[Any], tuple[Tensor, Any]], trained: Sequence[Any], frozen: Sequence[Any]) -> Any:
    """`run(arrays, total) -> (metrics, total)`: function(arrays) is a loss and metrics; the loss's gradients for the
    trained variables are added to `total`, None at first, which is given away."""
    kinds = {"jax": _differentiate_jax, "torch": _differentiate_torch, "tensorflow": _differentiate_tensorflow}
    return kinds[name()](function, trained, frozen)


def _differentiate_jax(function: Any, trained: Sequence[Any], frozen: Sequence[Any]) -> Any:
    import jax
    import keras

    def pure(values: list[Tensor], others: list[Tensor], arrays: Any) -> Any:
        pairs = zip([*trained, *frozen], [*values, *others], strict=True)
        with keras.StatelessScope(state_mapping=list(pairs)):
            return function(arrays)

    def added(values: list[Tensor], others: list[Tensor], total: list[Tensor] | None, arrays: Any) -> Any:
        (_, metrics), found = jax.value_and_grad(pure, has_aux=True)(values, others, arrays)
        return metrics, found if total is None else [a + b for a, b in zip(total, found, strict=True)]

    jitted = jax.jit(added, donate_argnums=2)
    return lambda arrays, total: jitted([v.value for v in trained], [v.value for v in frozen], total, dict(arrays))


def _differentiate_torch(function: Any, trained: Sequence[Any], frozen: Sequence[Any]) -> Any:
    """PyTorch adds to `grad` itself; those are the total."""
    from keras import ops

    def run(arrays: Any, total: Any) -> Any:
        if total is None:
            for variable in trained:
                variable.value.grad = None
        loss, metrics = function({key: ops.convert_to_tensor(array) for key, array in arrays.items()})
        loss.backward()
        return {key: value.detach() for key, value in metrics.items()}, [v.value.grad for v in trained]

    return run


def _differentiate_tensorflow(function: Any, trained: Sequence[Any], frozen: Sequence[Any]) -> Any:
    import tensorflow as tf

    def found(arrays: Any) -> Any:
        with tf.GradientTape() as tape:
            loss, metrics = function(arrays)
        gradients = tape.gradient(loss, [variable.value for variable in trained])
        return metrics, [tf.convert_to_tensor(gradient) for gradient in gradients]

    found = tf.function(found, autograph=False, jit_compile=True)
    add = tf.function(lambda a, b: [x + y for x, y in zip(a, b, strict=True)], autograph=False)

    def run(arrays: Any, total: Any) -> Any:
        metrics, gradients = found({key: tf.convert_to_tensor(array) for key, array in arrays.items()})
        return metrics, gradients if total is None else add(total, gradients)

    return run


def application(apply: Callable[..., Tensor], trained: Sequence[Any], state: Sequence[Any]) -> Any:
    """`run(gradients, lr) -> y`: apply(gradients, lr), which assigns to these variables; gradients are given away."""
    if name() == "jax":
        return _application_jax(apply, [*trained, *state])
    if name() == "torch":
        import torch

        return lambda gradients, lr: torch.no_grad()(apply)(gradients, torch.tensor(lr))
    import tensorflow as tf

    compiled = tf.function(apply, autograph=False)
    return lambda gradients, lr: compiled(gradients, tf.constant(lr))


def _application_jax(apply: Callable[..., Tensor], variables: Sequence[Any]) -> Any:
    import jax
    import keras

    def pure(values: list[Tensor], gradients: list[Tensor], lr: Tensor) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))) as scope:
            y = apply(gradients, lr)
        return y, [scope.get_current_value(variable) for variable in variables]

    jitted = jax.jit(pure, donate_argnums=0)

    def run(gradients: list[Tensor], lr: Any) -> Tensor:
        y, values = jitted([variable.value for variable in variables], gradients, lr)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return y

    return run


def measurement(function: Callable[[Any], Any], variables: Sequence[Any]) -> Any:
    """`run(arrays) -> function(arrays)`, without gradients."""
    compiled = compile(lambda nothing, *values: function(dict(zip(keys, values, strict=True))), variables)
    keys: list[str] = []

    def run(arrays: Any) -> Any:
        keys[:] = list(arrays)
        return compiled((), *arrays.values())

    return run


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The length of all tensors as one vector."""
    from keras import ops

    if name() == "torch":
        import torch

        # Row by row: over all of a large tensor PyTorch's float32 sum is off by a thousandth.
        rows = [torch.linalg.vector_norm(x, dim=-1).reshape(-1) for x in tensors]
        return torch.linalg.vector_norm(torch.cat(rows))
    return ops.sqrt(sum(ops.sum(ops.square(x)) for x in tensors))


SLICE = 1 << 18  # numbers that an optimizer changes at a time, so that its temporaries stay small


def update(
    function: Callable[..., Sequence[Tensor]],
    variables: Sequence[Any],
    tensors: Sequence[Tensor],
    rows: int | None,
    allowed: Tensor,
) -> None:
    """Assigns to the variables function(*their values, *tensors), which gives one new value for each.

    With `rows` it is given all as matrices of so many rows, each of which it changes by itself; where nothing is
    compiled it gets some rows at a time. Compiled, nothing changes where `allowed` is false; else it is not asked.
    """
    from keras import ops

    if name() == "torch":
        return _update_torch(function, variables, tensors, rows)
    old = [ops.convert_to_tensor(variable.value) for variable in variables]

    def changed() -> list[Tensor]:
        given = [x if rows is None else ops.reshape(x, (rows, -1)) for x in (*old, *tensors)]
        return [ops.reshape(new, x.shape) for x, new in zip(old, function(*given), strict=True)]

    # A branch: with a choice for each number XLA's CPU compiler keeps what is new beside what is old (dev/LOG.md).
    for variable, new in zip(variables, ops.cond(allowed, changed, lambda: old), strict=True):
        variable.assign(new)


def _update_torch(function: Any, variables: Sequence[Any], tensors: Sequence[Tensor], rows: int | None) -> None:
    import torch

    with torch.no_grad():
        values = [variable.value for variable in variables]
        if rows is not None:
            values, tensors = [x.view(rows, -1) for x in values], [x.reshape(rows, -1) for x in tensors]
        size = max(1, SLICE * (rows or 1) // max(1, values[0].numel()))
        for start in range(0, rows or 1, size):
            parts = [x if rows is None else x[start : start + size] for x in (*values, *tensors)]
            for part, new in zip(parts, function(*parts)):  # noqa: B905 (tensors come after the values)
                part.copy_(new)


def adamw(
    variables: Sequence[Any],
    gradients: Sequence[Tensor],
    m: Sequence[Any],
    v: Sequence[Any],
    step: Tensor,
    lr: Tensor,
    factor: Tensor,
    betas: tuple[float, float],
    epsilon: float,
    decays: Sequence[float],
) -> bool:
    """AdamW's step by the framework's own kernel, in place, gradients times `factor`; False where it has none."""
    if name() != "torch":
        return False
    import torch

    options = {"lr": float(lr), "beta1": betas[0], "beta2": betas[1], "eps": epsilon, "grad_scale": 1 / factor}
    with torch.no_grad():
        for decay in set(decays):
            mine = [i for i, own in enumerate(decays) if own == decay]
            lists = [[every[i].value for i in mine] for every in (variables, m, v)]
            torch._fused_adamw_(
                lists[0], [gradients[i].contiguous() for i in mine], *lists[1:], [], [step] * len(mine),
                weight_decay=decay, amsgrad=False, maximize=False, **options,
            )  # fmt: skip
    return True


def with_row(kept: Tensor, at_1: Tensor, row: Tensor) -> Tensor:
    """`kept` (B, …) with one row (1, …) in the place `at`; in place where the framework works in place."""
    if name() == "torch":
        kept[int(at_1[0])] = row[0]
        return kept
    from keras import ops

    return ops.slice_update(kept, [at_1[0], *([0] * (len(kept.shape) - 1))], row)
