"""Parquet and Arrow files to rows, batch by batch, through pyarrow.

What the columns mean is not known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from ...errors import FormatError, MissingExtra, ModelNotFound
from .lines import Input, Row

BATCH_ROWS = 1000


def parquet(file: Input) -> Iterator[Row]:
    library = _library(file)
    with _errors(file, library), library.parquet.ParquetFile(file.path) as table:
        yield from _batches(file, table.iter_batches(BATCH_ROWS))


def arrow(file: Input) -> Iterator[Row]:
    """An Arrow file (Feather, too) or an Arrow stream, which is what the library `datasets` saves."""
    library = _library(file)
    with _errors(file, library), library.memory_map(str(file.path)) as raw:
        try:
            reader = library.ipc.open_file(raw)
        except library.ArrowInvalid:
            raw.seek(0)
            yield from _batches(file, library.ipc.open_stream(raw))
        else:
            yield from _batches(file, map(reader.get_batch, range(reader.num_record_batches)))


def _batches(file: Input, batches: Iterable[Any]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            yield Row(values, f"{file.name}:{number}")


def _library(file: Input) -> Any:
    try:
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError:
        raise MissingExtra("pyarrow", "tune", f"Reading {file.name}") from None


@contextlib.contextmanager
def _errors(file: Input, library: Any) -> Iterator[None]:
    try:
        yield
    except (library.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ModelNotFound(
                f"{file.name} cannot be read: {error.strerror}. Check the path and its rights."
            ) from None
        what = str(error).splitlines()[0].rstrip(".")
        raise FormatError(f"{file.name} is truncated, or not what its name says: {what}. Fetch it again.") from None
