"""Many requests at once over one model: who runs, on which pages, in which step. HTTP is not known here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from ..formats import Checkpoint
    from ..generate import Executor
    from ..tokenizer import Tokenizer
    from .engine import Engine


def open(
    executor: Executor,
    *,
    tokenizer: Tokenizer | None = None,
    ends: frozenset[int] = frozenset(),
    slots: int | None = None,
    step_tokens: int = 512,
    memory: int | None = None,
    cache_dir: str | Path | None = None,
    max_waiting: int = 512,
    speculate: bool = True,
    draft: Executor | None = None,
    base: Checkpoint | None = None,
    lora_rank_max: int | None = None,
) -> Engine:
    """An engine over a model; `start` it, or use it as a context manager.

    slots        texts that run at a time at most; None: as many as the executor is good for
    step_tokens  tokens that one step runs at most: more are faster, fewer make others wait less
    memory       bytes for keys and values (native); None: half of what is free, as far as it is of use
    cache_dir    where prefixes are kept from one run to the next (native); None: nowhere
    max_waiting  requests that may wait; those beyond are refused
    base         the checkpoint that is run: adapters are read with its help
    speculate    whether tokens may be guessed, by prompt lookup or by `draft`, a smaller model of the same tokens

    Raises CapacityError, OptionError.
    """
    from .engine import Engine

    runner = _runner(executor, slots, step_tokens, memory)
    return Engine(
        runner,
        tokenizer=tokenizer,
        ends=ends,
        adapters=_adapters(executor, base, lora_rank_max),
        drafter=_drafter(executor, draft) if speculate and runner.rolls_back else None,
        keeper=_keeper(runner, cache_dir),
        max_waiting=max_waiting,
    )


def _runner(executor: Any, slots: int | None, step_tokens: int, memory: int | None) -> Any:
    if _is_native(executor):
        from .native import NativeRunner

        return NativeRunner(executor, step_tokens, memory, slots or 256)
    if hasattr(executor, "decoder"):
        from .slots import SlotRunner

        return SlotRunner(executor, slots or 8)
    from .singly import SinglyRunner

    return SinglyRunner(executor, step_tokens, slots or 16)


def _is_native(executor: Any) -> bool:
    return hasattr(executor, "kv_type")


def _adapters(executor: Any, base: Checkpoint | None, most_rank: int | None) -> Any:
    if not _is_native(executor):
        return None
    from .adapters import Adapters

    return Adapters(executor, base, most_rank)


def _drafter(executor: Any, draft: Any) -> Any:
    from .drafts import Lookup, Smaller, check_same

    if draft is None:
        return Lookup()
    check_same(executor, draft)
    return Smaller(_runner(draft, None, 512, None))


def _keeper(runner: Any, folder: str | Path | None) -> Any:
    if folder is None or not hasattr(runner, "store"):
        return None
    from .keep import Keeper

    return Keeper(runner, folder)
