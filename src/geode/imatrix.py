"""The importance matrix: how much each column of each matrix counts, from the squares of what it is multiplied with.

How a type uses it is `blocks`'s to know, how a text is run the executor's. Files are llama.cpp's, its GGUF ones and the
older .dat ones, which a matrix's mean squares come out of alike:

    GGUF    <matrix>.in_sum2 F32 (columns,) | <matrix>.counts F32 (1,)       mean = in_sum2 / counts
    .dat    entries i32 | each: name, calls i32, columns i32, F32 (columns,) mean = value / calls
            calls i32 | the text's name                                      a name: length i32 | bytes

The truth is tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp in github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ContextError, FormatError, ModelNotFound, OptionError, TensorError
from .io import gguf
from .strings import StringArray
from .tensors import Array

if TYPE_CHECKING:
    from .lm import Local

CONTEXT = 512  # llama.cpp's default
FUSED = ".attn_qkv."  # a matrix that some families' files keep q, k and v in


@dataclass
class ImportanceMatrix:
    """Sums of squares by canonical name, float64 (columns,), over `counts` positions each; from `chunks` chunks of
    `texts`, which are names of files."""

    sums: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    chunks: int = 0
    chunk_size: int = CONTEXT
    texts: list[str] = field(default_factory=list)

    def weights(self, name: str) -> np.ndarray | None:
        """How much each column of a matrix counts: float32 (columns,); None where nothing was collected for it."""
        if not self.counts.get(name):
            return None
        return (self.sums[name] / self.counts[name]).astype(np.float32)

    def add(self, inputs: Mapping[str, np.ndarray], count: int) -> None:
        """Sums of squares over `count` more positions. Raises TensorError when they are not finite."""
        for name, squares in inputs.items():
            if not np.isfinite(squares).all():
                raise TensorError(
                    f"What {name} is multiplied with is not finite numbers, so nothing can be learnt from it. "
                    "Load the model with --check to look for damaged weights."
                )
            self.sums[name] = self.sums.get(name, 0) + squares
            self.counts[name] = self.counts.get(name, 0) + count

    def write(self, path: str | Path) -> None:
        """Writes llama.cpp's GGUF file, whole or not at all. Raises CapacityError when the disk is full."""
        tensors: dict[str, Array] = {}
        for name in sorted(_file_names(self.sums)):
            ours = name.replace(FUSED, ".attn_q.")
            tensors[f"{name}.in_sum2"] = self.sums[ours].astype(np.float32)
            tensors[f"{name}.counts"] = np.array([self.counts[ours]], np.float32)
        metadata = {
            "general.type": "imatrix",
            "imatrix.datasets": self.texts,
            "imatrix.chunk_count": self.chunks,
            "imatrix.chunk_size": self.chunk_size,
        }
        types = {"imatrix.datasets": "array[string]", "imatrix.chunk_count": "u32", "imatrix.chunk_size": "u32"}
        gguf.write(path, metadata, tensors, types)


def _file_names(names: Iterable[str]) -> list[str]:
    """The names, and those of fused tensors: a family's file has q, k and v apart or in one, and finds its own."""
    names = list(names)
    return [*names, *(name.replace(".attn_q.", FUSED) for name in names if ".attn_q." in name)]


def collect(
    lm: Local, text: str | Sequence[int], context: int = CONTEXT, chunks: int | None = None, *, head: bool = False
) -> ImportanceMatrix:
    """Runs a text, or ids, in chunks of `context` tokens and collects what every matrix is multiplied with.

    The chunks are llama-imatrix's: whole ones only, BOS instead of the first token where the tokenizer adds one.
    `chunks` ends sooner. `head` collects for the head, too, which llama.cpp leaves out unless asked. Needs the native
    engine. Raises OptionError, ContextError, TokenizerError, BackendError, TensorError.
    """
    *_, found = progress(lm, text, context, chunks, head=head)
    return found


def progress(
    lm: Local, text: str | Sequence[int], context: int = CONTEXT, chunks: int | None = None, *, head: bool = False
) -> Iterator[ImportanceMatrix]:
    """The same chunk by chunk: one matrix that grows, after each of them. Mistakes are raised before this returns."""
    inputs = _inputs_of(lm)
    parts = _chunks(lm, text, context, chunks)
    return _collected(inputs, parts, context, head)


def _collected(inputs: Any, parts: Sequence[list[int]], context: int, head: bool) -> Iterator[ImportanceMatrix]:
    found = ImportanceMatrix(chunk_size=context)
    for ids in parts:
        squares = inputs(ids)
        found.add({name: s for name, s in squares.items() if head or name.startswith("blk.")}, len(ids))
        found.chunks += 1
        yield found


def _inputs_of(lm: Local) -> Any:
    inputs = getattr(lm.executor, "inputs", None)
    if inputs is None:
        raise OptionError(
            "An importance matrix is collected by the native engine, and this model runs on another one. "
            'Open it with on="native" (--on native).'
        )
    return inputs


def _chunks(lm: Local, text: str | Sequence[int], context: int, chunks: int | None) -> list[list[int]]:
    if context < 1 or (chunks is not None and chunks < 1):
        raise OptionError(f"Context and chunks are numbers from 1 on; {context} and {chunks} were given.")
    if context > lm.context:
        raise ContextError(
            f"Chunks would have {context} tokens and the model's context holds {lm.context}. Give a smaller context."
        )
    bos = lm.tokenizer.bos if lm.tokenizer is not None and lm.tokenizer.adds_bos else None
    ids = list(lm.tokenize(text, bos=bos is not None) if isinstance(text, str) else text)
    found = [ids[at : at + context] for at in range(0, len(ids) - context + 1, context)][:chunks]
    if not found:
        raise OptionError(
            f"The text has {len(ids)} tokens, and chunks of {context} need as many. "
            "Give a longer text or a smaller context."
        )
    return found if bos is None else [[bos, *part[1:]] for part in found]


def read(path: str | Path) -> ImportanceMatrix:
    """Reads a file of `write`, of llama-imatrix, or one in its older .dat format.

    Raises ModelNotFound for a file that is not there, FormatError for one that is none of these.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelNotFound(f"There is no importance matrix at {path}. Make one with `geode imatrix`.")
    with path.open("rb") as file:
        magic = file.read(4)
    found = _read_gguf(path) if magic == gguf.MAGIC else _read_dat(path)
    for name in [name for name in found.sums if FUSED in name]:
        squares, count = found.sums.pop(name), found.counts.pop(name)
        for part in "qkv":
            ours = name.replace(FUSED, f".attn_{part}.")
            found.sums.setdefault(ours, squares)
            found.counts.setdefault(ours, count)
    return found


def _read_gguf(path: Path) -> ImportanceMatrix:
    file = gguf.read(path)
    if file.metadata.get("general.type") != "imatrix":
        raise FormatError(
            f"{path} is a GGUF file, but no importance matrix (its general.type is not imatrix). "
            "Give a file that `geode imatrix` or llama-imatrix made."
        )
    texts = file.metadata.get("imatrix.datasets")
    found = ImportanceMatrix(
        chunks=_number(file, "imatrix.chunk_count", 0),
        chunk_size=_number(file, "imatrix.chunk_size", CONTEXT),
        texts=list(texts) if isinstance(texts, StringArray) else [],
    )
    for name in (name.removesuffix(".in_sum2") for name in file.tensors if name.endswith(".in_sum2")):
        found.sums[name], found.counts[name] = _entry(path, file, name)
    return found


def _number(file: gguf.GGUF, key: str, otherwise: int) -> int:
    value = file.metadata.get(key)
    return value if isinstance(value, int) else otherwise


def _entry(path: Path, file: gguf.GGUF, name: str) -> tuple[np.ndarray, int]:
    sums, counts = (file.tensors.entries.get(f"{name}.{part}") for part in ("in_sum2", "counts"))
    good = sums is not None and counts is not None and sums.type == counts.type == "F32"
    if not good or int(np.prod(counts.shape)) != 1:  # type: ignore[union-attr]
        raise FormatError(
            f"{path}: {name} has no in_sum2 and counts of one F32 number for each column and one in all. "
            "Matrices of experts are not known here; collect the importance matrix anew with `geode imatrix`."
        )
    values = np.asarray(file.tensors[f"{name}.in_sum2"], np.float64).reshape(-1)
    return values, round(float(np.asarray(file.tensors[f"{name}.counts"]).reshape(-1)[0]))


def _read_dat(path: Path) -> ImportanceMatrix:
    found = ImportanceMatrix()
    try:
        cursor = _Dat(path.read_bytes())
        for _ in range(cursor.number()):
            name, calls, columns = cursor.name(), cursor.number(), cursor.number()
            found.sums[name] = cursor.floats(columns) * CONTEXT  # a call was a chunk, and its sum a mean
            found.counts[name] = max(calls, 1) * CONTEXT
        if not cursor.at_end:
            found.chunks, found.texts = cursor.number(), [cursor.name()]
    except (struct.error, ValueError):
        raise FormatError(
            f"{path} is no importance matrix: neither GGUF nor llama.cpp's older .dat format can be read from it. "
            "Give a file that `geode imatrix` or llama-imatrix made."
        ) from None
    return found


class _Dat:
    """Walks over the bytes of a .dat file; struct.error or ValueError where they end or cannot be."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._data)

    def number(self) -> int:
        (value,) = struct.unpack_from("<i", self._data, self._at)
        self._at += 4
        if value < 0:
            raise ValueError
        return int(value)

    def name(self) -> str:
        length = self.number()
        (raw,) = struct.unpack_from(f"{length}s", self._data, self._at)
        self._at += length
        return str(raw, "utf-8")

    def floats(self, count: int) -> np.ndarray:
        values = np.frombuffer(self._data, "<f4", count, self._at)
        self._at += values.nbytes
        return values.astype(np.float64)
