"""The one file that asks which framework is running.

Keras gives one spelling of nearly everything; here is the rest: choosing the framework, compiling a step, and the few
operations where a framework's own form is much faster. What a network is made of is not known here.

Shape letters: B batch, T queries, S key slots, K key/value heads, R queries of one such head, H head size, D/E widths.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import BackendError

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
            f"This process already runs Keras on {active}, and a process has one backend: {on!r} cannot be had beside it. "
            f"Load with on={active!r}, or start another process."
        )
    os.environ["KERAS_BACKEND"] = on
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


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


def tensor(array: np.ndarray, dtype: str) -> Tensor:
    """A float32 array as a tensor of `dtype`."""
    from keras import ops

    if name() == "torch":
        import torch
        from keras.src.backend.torch.core import get_device

        own = array if array.flags.writeable and array.flags.c_contiguous else array.copy()  # not the file's own pages
        return torch.from_numpy(own).to(get_device()).to(getattr(torch, dtype))
    return ops.cast(ops.convert_to_tensor(array), dtype)


def to_numpy(value: Tensor) -> np.ndarray:
    """A tensor as a float32 (or integer) array."""
    from keras import ops

    if name() == "torch":
        value = value.detach()
        return np.asarray(value.float().cpu() if value.is_floating_point() else value.cpu())
    return np.asarray(ops.convert_to_numpy(value))


def compile(step: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:  # noqa: A001
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

    def run(cache: Any, *arrays: np.ndarray) -> Any:
        with torch.inference_mode():
            return step(cache, *(torch.from_numpy(array) for array in arrays))

    return run


def _compile_tensorflow(step: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
    import tensorflow as tf

    compiled = tf.function(step, autograph=False, jit_compile=True)
    return lambda cache, *arrays: compiled(cache, *(tf.constant(array) for array in arrays))


def linear(x: Tensor, weight_ED: Tensor, bias_E: Tensor | None) -> Tensor:
    """x (..., D) · weightᵀ + bias -> (..., E)."""
    if name() == "torch":
        import torch

        return torch.nn.functional.linear(x, weight_ED, bias_E)
    from keras import ops

    y = ops.matmul(x, ops.transpose(weight_ED))
    return y if bias_E is None else ops.add(y, bias_E)


def fused_attention(q_BKRH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask_B1RS: Tensor, scale: float) -> Tensor | None:
    """softmax(scale · q kᵀ, masked) v by the framework's own kernel; None where it has none that fits."""
    if name() != "torch":
        return None
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q_BKRH, k_BKSH, v_BKSH, attn_mask=mask_B1RS, scale=scale)


def write_slots(kept_BKSH: Tensor, new_BKTH: Tensor, slots_BT: Tensor) -> Tensor:
    """`kept` with `new` at the given slots of each row; in place where the framework works in place."""
    if name() == "torch":
        return _write_torch(kept_BKSH, new_BKTH, slots_BT)
    if name() == "jax":
        rows = np.arange(kept_BKSH.shape[0])[:, None]
        return kept_BKSH.at[rows, :, slots_BT].set(new_BKTH.swapaxes(1, 2))
    import tensorflow as tf

    b, k, t, _ = new_BKTH.shape
    rows, heads = np.arange(b)[:, None, None], np.arange(k)[None, :, None]
    slots = tf.broadcast_to(slots_BT[:, None, :], (b, k, t))
    rows, heads = (tf.broadcast_to(tf.constant(i, slots.dtype), (b, k, t)) for i in (rows, heads))
    return tf.tensor_scatter_nd_update(kept_BKSH, tf.stack([rows, heads, slots], -1), new_BKTH)


def _write_torch(kept_BKSH: Tensor, new_BKTH: Tensor, slots_BT: Tensor) -> Tensor:
    if kept_BKSH.shape[0] == 1:
        kept_BKSH[0].index_copy_(1, slots_BT[0], new_BKTH[0])
    else:
        for kept, new, slots in zip(kept_BKSH, new_BKTH, slots_BT, strict=True):
            kept.index_copy_(1, slots, new)
    return kept_BKSH
