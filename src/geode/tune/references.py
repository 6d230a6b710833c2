"""What the untuned network gives each answer: computed once before the first step, and kept beside the run.

Which network that is, and what is made of the numbers, is not known here.

A sequence is known by its tokens and by which of them are learnt, so that order and packing are of no matter.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ..errors import FormatError
from ..io.files import explained
from .batches import Micro
from .documents import Document, Judged

NAME = "references.npz"
Found = Mapping[bytes, float]
Likelihoods = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def references(likelihoods: Likelihoods, micros: Iterable[Micro]) -> dict[bytes, float]:
    """The log-probability of every sequence of these micro-batches. `likelihoods` is `network.answers.likelihoods` of a
    network before its first step; a LoRA pair changes nothing then, as its B is 0."""
    found: dict[bytes, float] = {}
    for micro in micros:
        # strict=False: padding follows the sequences
        found |= {key: float(value) for key, value in zip(keys(micro), likelihoods(micro.arrays()), strict=False)}
    return found


def reference(micro: Micro, found: Found) -> np.ndarray:
    """The references of a micro-batch's sequences: float32 (S,), 0 as padding. Raises FormatError where one is not
    there."""
    values = np.zeros(len(micro.shares_S), np.float32)
    for owner, key in enumerate(keys(micro)):
        if key not in found:
            raise FormatError(
                f"The kept references do not have {micro.sources[owner]}: they were computed for other data, or for "
                f"rows of another length. Remove {NAME} from the run's directory, and start the run anew."
            )
        values[owner] = found[key]
    return values


def keys(micro: Micro) -> list[bytes]:
    """What each sequence of a micro-batch is known by."""
    width = micro.tokens_BT.shape[1]
    at, owners = micro.at_M[: micro.learnt], micro.owners_M[: micro.learnt]
    return [_key(micro, *divmod(at[owners == owner], width)) for owner in range(len(micro.sources))]


def _key(micro: Micro, lines: np.ndarray, columns: np.ndarray) -> bytes:
    line = lines[0]
    inside = micro.segments_BT[line] == micro.segments_BT[line, columns[0]]
    learnt = (columns - np.argmax(inside)).astype(np.int32)
    digest = hashlib.blake2b(micro.tokens_BT[line][inside].astype(np.int32).tobytes(), digest_size=16)
    digest.update(b"learnt" + learnt.tobytes())
    return digest.digest()


def save(out: Path, found: Found) -> None:
    """Writes them into a run's directory, whole or not at all. Raises CapacityError."""
    part = out / f".{NAME}.part"
    names = np.frombuffer(b"".join(found), np.uint8).reshape(-1, 16)
    try:
        with part.open("wb") as file:
            np.savez(file, keys=names, values=np.array([*found.values()], np.float32))
        os.replace(part, out / NAME)
    except OSError as error:
        raise explained(error, out) from None
    finally:
        part.unlink(missing_ok=True)


def load(out: Path) -> dict[bytes, float] | None:
    """What `save` wrote, the same bits; None where nothing is. Raises FormatError where it is damaged."""
    if not (out / NAME).is_file():
        return None
    try:
        with np.load(out / NAME) as file:
            names, values = file["keys"], file["values"]
            return {name.tobytes(): float(value) for name, value in zip(names, values, strict=True)}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        raise FormatError(
            f"{out / NAME} is damaged. It holds what the untuned model gives each answer, which the tuned one cannot "
            "tell any more: start the run anew."
        ) from None


# Answers to other prompts


def mismatched(items: Sequence[Judged], length: int) -> list[Judged]:
    """Each prompt with the answer to the next prompt that is another one, cut where a row ends: by these KTO measures
    how far a network has moved. arxiv.org/abs/2402.01306"""
    prompts = [item.document.ids[: _first(item.document)].tobytes() for item in items]
    others = _others(prompts)
    return [replace(item, document=_joined(item.document, items[other].document, length))
            for item, other in zip(items, others, strict=True)]  # fmt: skip


def _others(prompts: Sequence[bytes]) -> list[int]:
    """For each place the next one, round the end, that has another prompt; the next one where all are the same."""
    count = len(prompts)
    others = [(place + 1) % count for place in range(count)]
    for place in reversed(range(2 * count)):
        here, following = place % count, (place + 1) % count
        others[here] = following if prompts[here] != prompts[following] else others[following]
    return others if len(set(prompts)) > 1 else [(place + 1) % count for place in range(count)]


def _joined(prompt: Document, answer: Document, length: int) -> Document:
    first, start = _first(prompt), _first(answer)
    ids = np.concatenate([prompt.ids[:first], answer.ids[start:]])[:length]
    loss = np.concatenate([np.zeros(first, bool), answer.loss[start:]])[:length]
    end = int(np.flatnonzero(loss)[-1]) + 1
    return Document(ids[:end], loss[:end], answer.source)


def _first(document: Document) -> int:
    """Where the answer begins."""
    return int(np.argmax(document.loss))
