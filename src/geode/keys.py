"""Configuration keys of other projects, read into a Config and written back by one table.

A table is a list of `Key`, `Fixed` and larger objects that have the same two methods. Which keys a family has is
data in `families`; this file knows no model.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from .config import Config
from .errors import ConfigError

Draft = dict[str, Any]  # fields of a Config, filled key by key; "norm.eps" stands for a field of `norm`
_REQUIRED = object()
_ABSENT = object()
MAX_DEPTH = 10_000


class Source:
    """Somebody's keys, remembering which were asked for."""

    def __init__(self, values: Mapping[str, Any], what: str, tensors: Mapping[str, tuple[int, ...]] | None = None):
        self.values = values
        self.what = what
        self.tensors = tensors or {}  # names and shapes in the same file, which some formats imply settings by
        self.asked: set[str] = set()

    def take(self, names: str | Sequence[str], default: Any = None) -> Any:
        """The first of `names` that is there and not null, else `default`."""
        names = (names,) if isinstance(names, str) else tuple(names)
        self.asked.update(names)
        return next((self.values[name] for name in names if self.values.get(name) is not None), default)

    def says_null(self, names: str | Sequence[str]) -> bool:
        """Whether one of `names` is there and null, and none has a value."""
        names = (names,) if isinstance(names, str) else names
        return self.take(names) is None and any(name in self.values for name in names)

    def finish(self, ignore: Iterable[str]) -> None:
        """Raises ConfigError listing every key that nobody asked for."""
        left = sorted(set(self.values) - self.asked - set(ignore))
        if left:
            shown = ", ".join(f"{name}={str(self.values[name])[:60]}" for name in left)
            raise ConfigError(
                f"{self.what} has keys that this family does not handle: {shown}. Ignoring them could compute "
                "something else than the model's authors meant. Remove a key only if you know that it changes nothing."
            )


class Part(Protocol):
    """A piece of a key table, in both directions."""

    def read(self, source: Source, draft: Draft) -> None: ...

    def write(self, config: Config, out: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Key:
    """One key of theirs for one field (or several equal fields) of ours.

    `theirs`: name, or names of which the first is written.  `default`: value of ours, or a function of the draft.
    `null`: what an explicit null means, where it is not the default.  `values`: their spelling -> ours.
    `when`: written only if this holds.  `spell`: ours -> what the file's readers insist on.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    default: Any = _REQUIRED
    values: Mapping[Any, Any] | None = None
    when: Callable[[Config], bool] = lambda config: True
    null: Any = _ABSENT
    spell: Callable[[Any], Any] = lambda value: value

    @property
    def name(self) -> str:
        return self.theirs if isinstance(self.theirs, str) else self.theirs[0]

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def read(self, source: Source, draft: Draft) -> None:
        value = source.take(self.theirs)
        value = self._default(source, draft) if value is None else self._checked(value, source)
        draft.update(dict.fromkeys(self.fields, value))

    def write(self, config: Config, out: dict[str, Any]) -> None:
        if self.when(config):
            value = get_field(config, self.fields[0])
            out[self.name] = self.spell(value) if self.values is None else inverse(self.values)[value]

    def _default(self, source: Source, draft: Draft) -> Any:
        if self.null is not _ABSENT and source.says_null(self.theirs):
            return self.null
        if self.default is _REQUIRED:
            raise ConfigError(f"{source.what} lacks the key '{self.name}', without which the network is not known.")
        return self.default(draft) if callable(self.default) else self.default

    def _checked(self, value: Any, source: Source) -> Any:
        if self.values is not None:
            if not isinstance(value, str | bool) or value not in self.values:
                known = ", ".join(map(repr, self.values))
                raise ConfigError(f"{source.what}: {self.name} is {reprlib.repr(value)}; this family knows {known}.")
            return self.values[value]
        return FIELD_READERS[self.fields[0]](value, self.name, source.what)


@dataclass(frozen=True)
class Fixed:
    """A key that may only have the values whose mathematics the family has; the first is what absence means."""

    theirs: str
    allowed: tuple[Any, ...]
    written: bool = True

    def read(self, source: Source, draft: Draft) -> None:
        value = source.take(self.theirs)
        if value is None:
            return
        if not isinstance(value, str | int | float) or value not in self.allowed:
            known = " or ".join(map(repr, self.allowed))
            raise ConfigError(f"{source.what}: {self.theirs} is {reprlib.repr(value)}; here only {known} is known.")

    def write(self, config: Config, out: dict[str, Any]) -> None:
        if self.written:
            out[self.theirs] = self.allowed[0]


@dataclass(frozen=True)
class Derived:
    """A field of ours that the file does not spell but implies: `rule(source, draft)`."""

    ours: str
    rule: Callable[[Source, Draft], Any]

    def read(self, source: Source, draft: Draft) -> None:
        draft[self.ours] = self.rule(source, draft)

    def write(self, config: Config, out: dict[str, Any]) -> None:
        return None


@dataclass(frozen=True)
class Implied:
    """A field that the format has no key for: readers take `rule(draft)`, so no other value can be written."""

    ours: str
    rule: Callable[[Draft], Any]

    def read(self, source: Source, draft: Draft) -> None:
        draft[self.ours] = self.rule(draft)

    def write(self, config: Config, out: dict[str, Any]) -> None:
        meant = self.rule(vars(config))
        if getattr(config, self.ours) not in (meant, None):
            raise ConfigError(
                f"GGUF has no key for {self.ours}={getattr(config, self.ours)}: every reader would take {meant} for a "
                "network of this family and size. Write the model as safetensors instead."
            )


def override(table: Sequence[Part], *changes: Part) -> tuple[Part, ...]:
    """A table with some parts replaced (the same key, or the same kind of larger part) and others added."""
    changed = {_identity(part): part for part in changes}
    kept = [changed.pop(_identity(part), part) for part in table]
    return (*kept, *changed.values())


def _identity(part: Part) -> str:
    if isinstance(part, Key):
        return part.name
    if isinstance(part, Fixed):
        return part.theirs
    return part.ours if isinstance(part, Derived | Implied) else type(part).__name__


def read(table: Iterable[Part], source: Source, constants: Mapping[str, Any], ignore: Iterable[str]) -> Config:
    """A Config from `source`; raises ConfigError for what is missing, unknown, or impossible."""
    draft: Draft = dict(constants)
    for part in table:
        part.read(source, draft)
    source.finish(ignore)
    config = _build(draft)
    _check(config, source.what)
    return config


def write(table: Iterable[Part], config: Config) -> dict[str, Any]:
    """The keys that read back as `config`."""
    out: dict[str, Any] = {}
    for part in table:
        part.write(config, out)
    return out


def _build(draft: Draft) -> Config:
    nested = {path.split(".")[1]: value for path, value in draft.items() if path.startswith("norm.")}
    plain = {path: value for path, value in draft.items() if "." not in path}
    return Config(**plain | {"norm": dataclasses.replace(plain["norm"], **nested)})


def _check(c: Config, what: str) -> None:
    names = ("vocab", "width", "depth", "heads", "kv_heads", "head_dim", "ffn", "context")
    bad = [f"{name}={getattr(c, name)}" for name in names if not 0 < getattr(c, name) < 2**31]
    if bad:
        raise ConfigError(f"{what}: sizes must be between 1 and 2^31, but {', '.join(bad)}.")
    if c.depth * c.heads > 2**20 or c.q_width > 2**20:
        raise ConfigError(
            f"{what}: {c.depth} layers of {c.heads} heads, {c.head_dim} channels each; no model has so many. "
            "The file is probably corrupt."
        )
    if c.heads % c.kv_heads:
        raise ConfigError(f"{what}: {c.heads} heads cannot share {c.kv_heads} key/value heads evenly.")
    for layer in c.pattern:
        dims = layer.rope.dims(c.head_dim)
        if dims % 2 or not 0 < dims <= c.head_dim:
            raise ConfigError(f"{what}: {dims} rotary channels in a head of {c.head_dim}; an even number is needed.")
        if layer.rope.theta <= 1:
            raise ConfigError(f"{what}: the rotary base is {layer.rope.theta}; it must be above 1.")


def whole(value: Any, name: str, what: str, least: int = 1, most: int = 2**31 - 1) -> int:
    """`value` as a whole number from `least` to `most`; true is none, and 3.5 is none. Raises ConfigError."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value <= most or int(value) != value:
        raise ConfigError(f"{what}: {name} should be a whole number {least} … {most}, but it is {reprlib.repr(value)}.")
    return int(value)


def positive(value: Any, name: str, what: str) -> float:
    """`value` as a number above zero, of a size that float32 holds. Raises ConfigError."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 1e-30 < value < 1e30:
        raise ConfigError(f"{what}: {name} should be a number above zero, but it is {reprlib.repr(value)}.")
    return float(value)


def truth(value: Any, name: str, what: str) -> bool:
    """`value` if it is true or false. Raises ConfigError."""
    if not isinstance(value, bool):
        raise ConfigError(f"{what}: {name} should be true or false, but it is {reprlib.repr(value)}.")
    return value


FIELD_READERS: dict[str, Callable[[Any, str, str], Any]] = {
    **dict.fromkeys(("vocab", "width", "heads", "kv_heads", "head_dim", "ffn", "context"), whole),
    # Checked before any loop over the layers runs.
    "depth": partial(whole, most=MAX_DEPTH),
    **dict.fromkeys(("norm.eps", "query_scalar", "attn_softcap", "final_softcap", "clip_qkv"), positive),
    **dict.fromkeys(("qkv_bias", "out_bias", "ffn_bias", "tied"), truth),
}


def get_field(config: Config, path: str) -> Any:
    """A field of a Config by dotted path."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def inverse(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Ours -> their first spelling."""
    return {ours: theirs for theirs, ours in reversed(list(values.items()))}
