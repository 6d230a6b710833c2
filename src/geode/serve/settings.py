"""What `geode serve` can be told, and that it makes sense: all of it is checked before a model is read.

How any of it is carried out is not known here, nor flags of a command line.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import MissingExtra, OptionError
from .contract import Contract
from .keys import Key, Limits

NAME = re.compile(r"[A-Za-z0-9][\w.:/@+-]{0,199}")


@dataclass(frozen=True)
class Source:
    """One model to be served.

    name      what requests call it
    path      what `lm.open` takes: a known name, hf:owner/repo, a file, a directory, that of an adapter
    aliases   further names
    adapters  LoRA adapters by the names under which requests ask for them, each as if it were a model
    adapter   one that is merged into the model while it loads
    """

    name: str
    path: str
    aliases: tuple[str, ...] = ()
    adapters: Mapping[str, str] = field(default_factory=dict)
    adapter: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases, *self.adapters)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that one server is told. Raises OptionError for what cannot be meant. Bytes, seconds, tokens.

    models        what is served; the first is meant where a request names none
    preload       load every model at once that fits, not when it is first asked for
    memory        for weights, keys and values of all models together; None: what is free at the start
    kv_memory     for keys and values of one model; None: a share of `memory`
    idle          unload a model that nobody has asked for so long; None: never
    waiting       requests that one model lets wait; more are refused with 429
    running       requests that are computed together; None: what memory allows
    timeout       the longest an answer may take as a whole
    patience      the longest a client may take to send its request
    drain         after SIGTERM, how long running answers have to finish
    body          the largest request
    keys          whoever holds none of them is refused; without any, everybody is served
    limits        what one client may ask for where its key says nothing else
    hosts         names by which this server is called, besides its address; "*": any
    cors          origins whose pages may call it; "*": any
    vertex        routes of Vertex AI's contract with a container
    truncate      cut prompts that are too long, and say so; else they are refused
    adapter_dirs  requests may load adapters that lie below these, and unload them; see `private`
    loading       further options of `lm.open`: on, dtype, threads, kv_type, quantize, check
    """

    models: tuple[Source, ...]
    host: str = "127.0.0.1"
    port: int = 8080
    preload: bool = True
    memory: int | None = None
    kv_memory: int | None = None
    cache_dir: Path | None = None
    idle: float | None = None
    waiting: int = 256
    running: int | None = None
    step_tokens: int = 512
    lora_rank: int = 64
    speculate: bool = True
    draft: str | None = None
    timeout: float = 600.0
    patience: float = 30.0
    drain: float = 30.0
    body: int = 8 << 20
    keys: tuple[Key, ...] = field(default=(), repr=False)
    limits: Limits = field(default_factory=Limits)
    hosts: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    page: bool = True
    truncate: bool = False
    adapter_dirs: tuple[Path, ...] = ()
    log_prompts: bool = False
    log_format: str = "text"
    traces: bool = False
    vertex: Contract | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_models(self.models)
        _check_numbers(self)
        _check_address(self)
        _check_tls(self)
        _check_keys(self.keys)
        _check_choices(self)
        _check_loading(self.loading)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    @property
    def private(self) -> bool:
        """Whether nobody but who sits at this machine can ask: then requests may name any of its files, and unload
        models. With keys, names and origins it is meant for others, though they may come by way of this machine."""
        return self.loopback and not (self.keys or self.cors or any(not is_loopback(host) for host in self.hosts))

    def may_load(self, path: str) -> bool:
        """Whether a request may name an adapter by this path: any on a private server, else one in `adapter_dirs`."""
        try:
            return self.private or _is_below(Path(path), self.adapter_dirs)
        except (OSError, ValueError):  # no path at all
            return False

    @property
    def url(self) -> str:
        host = self.host.strip("[]")
        shown = f"[{host}]" if ":" in host else host
        return f"http{'s' if self.tls_cert else ''}://{shown}:{self.port}"


def _is_below(path: Path, folders: tuple[Path, ...]) -> bool:
    """Whether a path leads, links followed, to something that exists below one of the folders."""
    place = path.resolve(strict=True)
    return any(place.is_relative_to(folder.resolve()) for folder in folders)


def is_loopback(host: str) -> bool:
    """Whether a name or address, without a port, is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def source(text: str) -> Source:
    """A model as it is named on a command line: NAME=PATH, or a PATH that gives the name."""
    from ..io import catalogue

    name, _, path = text.partition("=")
    if path and NAME.fullmatch(name) and not Path(text).exists():
        return Source(name, path)
    item = catalogue.find(text) or catalogue.packaged(text)
    if item is not None and not Path(text).exists():
        return Source(item.name, text, tuple(alias for alias in item.aliases if alias != item.name))
    return Source(_name_of(text), text)


def _name_of(path: str) -> str:
    """A file's name without its ending, a directory's, or a repository's."""
    if path.startswith("hf:"):
        return path.removeprefix("hf:")
    place = Path(path).expanduser()
    last = place.resolve().name if place.exists() else place.name
    return re.sub(r"[^\w.:@+-]+", "-", last.removesuffix(".gguf")).lstrip("-._:@+") or "model"


def _check_models(models: tuple[Source, ...]) -> None:
    if not models:
        raise OptionError("There is no model to serve. Name at least one.")
    names = [name for source in models for name in source.names]
    for name in names:
        if not NAME.fullmatch(name) or ".." in name:
            raise OptionError(
                f"A model's name has letters, digits and . _ - : / @ +, begins with one of the first two and is at "
                f"most 200 long; {name!r} is none. Name it as in NAME=PATH."
            )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise OptionError(
            f"The name {twice[0]} stands for more than one model. Give each a name of its own, as in NAME=PATH."
        )


def _check_numbers(settings: Settings) -> None:
    least = {"timeout": 0.001, "patience": 0.001, "drain": 0, "body": 1024, "step_tokens": 1, "waiting": 0}
    least |= {"memory": 1 << 20, "kv_memory": 1 << 16, "idle": 0, "running": 1, "lora_rank": 1, "port": 0}
    for name, low in least.items():
        value = getattr(settings, name)
        whole = name not in ("timeout", "patience", "drain", "idle")
        optional = name in ("memory", "kv_memory", "idle", "running")
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value >= low:
            raise OptionError(
                f"{name} must be {'a whole number' if whole else 'a number'} from {low} on; got {value!r}."
            )
    if settings.port > 65535:
        raise OptionError(f"port must be at most 65535; got {settings.port}.")
    if settings.memory is not None and (settings.kv_memory or 0) >= settings.memory:
        raise OptionError(
            f"kv_memory ({settings.kv_memory}) is a part of memory ({settings.memory}), which must also hold the "
            "weights. Give less, or leave it out."
        )


def _check_address(settings: Settings) -> None:
    if not settings.host or any(sign in settings.host for sign in "/ @"):
        raise OptionError(f"host must be an address or a name of this machine; got {settings.host!r}.")
    for host in settings.hosts:
        if host != "*" and not re.fullmatch(r"\[?[\w.:-]+\]?", host):
            raise OptionError(f"A host is a name without scheme and port, as in geode.example.org; got {host!r}.")
    for origin in settings.cors:
        parts = urlsplit(origin)
        whole = parts.scheme in ("http", "https") and parts.netloc and origin == f"{parts.scheme}://{parts.netloc}"
        if origin != "*" and not whole:
            raise OptionError(f"A CORS origin is a scheme and a host, as in https://app.example.org; got {origin!r}.")


def _check_tls(settings: Settings) -> None:
    cert, key = settings.tls_cert, settings.tls_key
    if (cert is None) != (key is None):
        raise OptionError("TLS needs both a certificate and its key. Give tls_cert and tls_key.")
    if cert is None or key is None:
        return
    from . import certificate

    certificate.check(cert, key)


def _check_keys(keys: tuple[Key, ...]) -> None:
    for what in ("name", "digest"):
        found = Counter(getattr(key, what) for key in keys)
        if any(count > 1 for count in found.values()):
            raise OptionError(f"Two API keys have the same {what if what == 'name' else 'text'}. Each needs its own.")


def _check_choices(settings: Settings) -> None:
    if settings.log_format not in ("text", "json"):
        raise OptionError(f"log_format must be text or json; got {settings.log_format!r}.")
    if settings.cache_dir is not None and not _can_be_written(settings.cache_dir):
        raise OptionError(f"cache_dir {settings.cache_dir} is no directory that can be written.")
    for folder in settings.adapter_dirs:
        if not folder.is_dir():
            raise OptionError(f"There is no directory {folder} to take adapters from.")
    if settings.traces:
        from importlib.util import find_spec

        if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
            raise MissingExtra("opentelemetry-sdk", "traces", "Writing traces")


def _can_be_written(folder: Path) -> bool:
    """Whether a directory, or the nearest one above it that there is, takes files."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def _check_loading(loading: Mapping[str, Any]) -> None:
    known = ("on", "dtype", "threads", "kv_type", "quantize", "check")
    for name in loading:
        if name not in known:
            raise OptionError(f"A model is loaded with {', '.join(known)}; there is no option {name!r}.")
