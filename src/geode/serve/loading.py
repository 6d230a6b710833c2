"""One model read from its files and put behind an engine, or let go of. Which models are held is `models`' to know."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Config
from ..lm import Local
from .settings import Settings, Source

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..engine.engine import Engine

Stamp = tuple[tuple[str, int, int, int], ...]
"""Of each file its path, when it was written, its size and its inode: what a replaced file cannot keep."""


@dataclass(eq=False)
class Served:
    """A model that answers. `adapter` is set where it is one of the engine's adapters under a name of its own.

    created  when its files were written, seconds since 1970
    size     bytes of the weights
    kept     what others make of this model once, by their own names: tables of tokens, spellings of tool calls
    """

    name: str
    local: Local
    engine: Engine
    adapter: str | None = None
    path: str = ""
    created: int = 0
    size: int = 0
    stamp: Stamp = ()
    kept: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def reserved(self) -> int:
        """Bytes of weights, and of all the keys and values that there is room for."""
        return self.size + self.engine.stats().kv_bytes

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return min(self.local.context, self.engine.context)

    def close(self) -> None:
        """Ends the engine, whatever it is doing, and frees the weights."""
        self.engine.close()
        self.local.close()


@dataclass(frozen=True)
class Facts:
    """What headers tell of a model: bytes of its weights once loaded, its network, its files as they are now.

    family  the name of its architecture; format  that of its files; kv_type  what native keeps keys and values in
    """

    size: int
    config: Config
    stamp: Stamp
    created: int
    family: str = ""
    format: str = ""
    kv_type: str = ""


def facts(source: Source, loading: Mapping[str, Any]) -> Facts:
    """Reads headers only. Raises what `checkpoint.open` raises; a name that is not here yet is pulled."""
    from .. import checkpoint, lm
    from ..io import hub

    adapter = None if source.adapter is None else hub.resolve(source.adapter)
    found = checkpoint.open(hub.resolve(source.path), adapter)
    dtype, quantize = loading.get("dtype", "auto"), loading.get("quantize")
    as_stored = dtype == "auto" and loading.get("on", "auto") in ("auto", "native")
    size = lm.memory_needed(
        found.config,
        dtype,
        tokens=0,
        stored=found.stored.nbytes if as_stored else None,
        quantize=None if as_stored else quantize,
    )
    files = found.files()
    marks, when = stamp(files), written(files)
    return Facts(size, found.config, marks, when, found.family.name, found.format, _kv_type(found, loading))


def _kv_type(found: Checkpoint, loading: Mapping[str, Any]) -> str:
    from ..native import extension
    from ..native.executor import kv_type_of

    if loading.get("on", "auto") not in ("auto", "native") or not extension.is_there():
        return ""
    return kv_type_of(found.config, found.tensors, loading.get("kv_type") or "auto", loading.get("dtype", "auto"))


def load(source: Source, settings: Settings, facts: Facts, kv_memory: int | None) -> Served:
    """Reads the weights and starts an engine. Raises what `lm.open` and `engine.open` raise."""
    from .. import checkpoint, lm
    from ..io import hub

    local = lm.open(source.path, adapter=source.adapter, **settings.loading)
    try:
        return served(source, local, settings, facts, kv_memory, checkpoint.open(hub.resolve(source.path)))
    except BaseException:
        local.close()
        raise


def served(
    source: Source,
    local: Local,
    settings: Settings,
    facts: Facts | None,
    kv_memory: int | None,
    base: Checkpoint | None = None,
) -> Served:
    """A model in memory, and its adapters, which are read with the help of `base`, behind an engine that runs."""
    from .. import engine, lm
    from . import grammar

    draft = lm.open(settings.draft, **settings.loading).executor if settings.draft else None
    cache = settings.cache_dir / source.name.replace("/", "--").replace(":", "-") if settings.cache_dir else None
    running = engine.open(
        local.executor,
        tokenizer=local.tokenizer,
        ends=local.ends,
        slots=settings.running,
        step_tokens=settings.step_tokens,
        memory=kv_memory,
        cache_dir=cache,
        max_waiting=settings.waiting,
        speculate=settings.speculate,
        draft=draft,
        base=base,
        lora_rank_max=settings.lora_rank,
    )
    size, created, marks = (facts.size, facts.created, facts.stamp) if facts else (0, int(time.time()), ())
    try:
        for name, path in source.adapters.items():
            running.adapters.load(name, place(path))
        running.start()
    except BaseException:
        running.close()
        raise
    grammar.warm(local.tokenizer, local.config.vocab, local.ends)
    return Served(source.name, local, running, None, source.path, created, size, marks)


def as_adapter(base: Served, name: str, path: str | None) -> Served:
    """A view of the base for the requests that name one of its adapters: with the adapter's own chat template."""
    created = written([place(path)]) if path else base.created
    return Served(name, _with_template(base, path), base.engine, name, path or "", created, base.size)


def _with_template(base: Served, path: str | None) -> Local:
    from .. import chat
    from ..formats.base import beside_template

    local = base.local
    folder = place(path) if path else None
    own = beside_template(folder) if folder is not None and folder.is_dir() else None
    if own is None or local.tokenizer is None:
        return local
    return Local(local.executor, local.tokenizer, chat.Template(own, local.tokenizer), local.ends, local.batch)


def place(path: str) -> Path:
    """Where the files of a name or a path lie."""
    from ..io import hub

    return hub.resolve(path)


def stamp(files: Iterable[Path]) -> Stamp:
    """How files are on the disk now; one that is gone has zeros."""
    return tuple((str(file), *_mark(file)) for file in files)


def fresh(marks: Stamp) -> Stamp:
    """The same files as they are now."""
    return stamp(Path(name) for name, *_ in marks)


def written(files: Iterable[Path]) -> int:
    """When the youngest was written, seconds since 1970."""
    return max((_mark(file)[0] // 10**9 for file in files), default=0) or int(time.time())


def _mark(file: Path) -> tuple[int, int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino
