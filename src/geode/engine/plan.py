"""How many texts of what length fit: memory for keys and values cut into pages. Nothing is run or measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import Config
from ..errors import CapacityError
from ..native.pages import PAGE, Group, groups, page_bytes

SEQUENCES = 64  # texts that memory is cut for when nobody says how much
LENGTH = 4096  # and their tokens
STEP_TOKENS = 512


@dataclass(frozen=True)
class Plan:
    """What fits at a time. Bytes are those of the whole; `sequences` of `length` tokens each."""

    weights_bytes: int
    kv_bytes: int
    length: int
    sequences: int
    sequence_bytes: int  # of one such text
    longest: int  # tokens of the longest text that fits alone
    pages: tuple[int, ...]  # by group


def plan(
    config: Config,
    weights_bytes: int,
    kv_type: str,
    memory: int,
    length: int,
    step_tokens: int = STEP_TOKENS,
) -> Plan:
    """What fits `memory` bytes besides the weights. `kv_type` as in files: "F32", "F16", "BF16", "Q8_0".

    Raises CapacityError where not even a short text does.
    """
    counts = page_counts(config, kv_type, memory - weights_bytes, step_tokens)
    found, sizes = groups(config), [page_bytes(config, group, kv_type) for group in groups(config)]
    needs = [group.pages(min(length, config.context), step_tokens) for group in found]
    return Plan(
        weights_bytes=weights_bytes,
        kv_bytes=sum(n * size for n, size in zip(counts, sizes, strict=True)),
        length=min(length, config.context),
        sequences=min(n // need for n, need in zip(counts, needs, strict=True)),
        sequence_bytes=sum(n * size for n, size in zip(needs, sizes, strict=True)),
        longest=capacity(found, counts, step_tokens, config.context),
        pages=tuple(counts),
    )


def useful(config: Config, kv_type: str, step_tokens: int = STEP_TOKENS) -> int:
    """Bytes for keys and values beyond which more are hardly of use on one machine."""
    return SEQUENCES * _bytes_of(config, kv_type, step_tokens)


def page_counts(config: Config, kv_type: str, memory: int, step_tokens: int = STEP_TOKENS) -> list[int]:
    """How many pages each group of layers gets: in the proportion in which texts of `LENGTH` tokens use them.

    Raises CapacityError where not even a short text fits.
    """
    found, one = groups(config), _bytes_of(config, kv_type, step_tokens)
    counts = [max(0, int(group.pages(_length(config), step_tokens) * memory / one)) for group in found]
    if capacity(found, counts, step_tokens, config.context) < min(2 * PAGE, config.context):
        raise CapacityError(
            f"{max(memory, 0) / 2**20:.1f} MiB for keys and values do not hold a text of {2 * PAGE} tokens; one of "
            f"{_length(config)} takes {one / 2**20:.1f} MiB. Give more memory, or a narrower kv_type (q8_0)."
        )
    return counts


def capacity(groups: Sequence[Group], counts: Sequence[int], step_tokens: int, context: int) -> int:
    """Tokens that one text may have when it has all pages for itself."""
    pairs = zip(groups, counts, strict=True)
    return min([context, *(count * PAGE for group, count in pairs if group.pages(context, step_tokens) > count)])


def _length(config: Config) -> int:
    return min(config.context, LENGTH)


def _bytes_of(config: Config, kv_type: str, step_tokens: int) -> int:
    pages = ((group.pages(_length(config), step_tokens), group) for group in groups(config))
    return sum(count * page_bytes(config, group, kv_type) for count, group in pages)
