"""Who may ask, and how much: API keys and the limits that each has.

HTTP is not known here. A key itself is kept nowhere: only its digest is, and that is compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import OptionError

VARIABLE = "GEODE_API_KEYS"
SHORTEST = 8  # characters


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may ask for; None: no limit. Tokens are those of prompts and answers. Raises OptionError."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise OptionError(f"{one.name} must be an integer, 1 or more; got {value!r}.")

    def over(self, other: Limits) -> Limits:
        """These, and the other's where these say nothing."""
        chosen = {}
        for one in fields(self):
            mine = getattr(self, one.name)
            chosen[one.name] = getattr(other, one.name) if mine is None else mine
        return Limits(**chosen)


@dataclass(frozen=True)
class Key:
    """One API key, by its name, which logs may show, and its SHA-256. `priority`: higher goes first."""

    name: str
    digest: bytes
    limits: Limits = field(default_factory=Limits)
    priority: int = 0

    def __repr__(self) -> str:
        return f"Key({self.name})"


def key(name: str, text: str, limits: Limits | None = None, priority: int = 0) -> Key:
    """A key of a text. Raises OptionError for one that is too short, or cannot stand in a header."""
    if len(text) < SHORTEST or not text.isascii() or not text.isprintable() or " " in text:
        raise OptionError(
            f"The API key {name} must be at least {SHORTEST} ASCII letters, digits and signs, without spaces."
        )
    return Key(name, _digest(text), limits or Limits(), priority)


def find(keys: Iterable[Key], text: str) -> Key | None:
    """The key that a client has shown. All are compared, so that time tells nothing of which."""
    digest = _digest(text)
    found = None
    for each in keys:
        if hmac.compare_digest(each.digest, digest):
            found = each
    return found


def read(path: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[Key, ...]:
    """The keys of a TOML file, and those of GEODE_API_KEYS, which are separated by commas.

        [alice]
        key = "..."                  # or sha256 = "hex digits of its SHA-256"
        requests_per_minute = 60     # optional, as are tokens_per_minute, concurrent and priority

    Raises OptionError; no message shows a key.
    """
    texts = [text.strip() for text in environment.get(VARIABLE, "").split(",") if text.strip()]
    shown = [key(f"{VARIABLE}-{i + 1}", text) for i, text in enumerate(texts)]
    return (*shown, *(() if path is None else _file(path)))


def _file(path: Path) -> list[Key]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"The file of API keys {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):  # its message could show a line, and with it a key
        raise OptionError(f"{path} is no TOML file. Write a table for each key, as in [alice] and key = ...") from None
    if not tables:
        raise OptionError(f"{path} holds no API key. Write a table for each, as in [alice] and key = ...")
    return [_row(path, name, row) for name, row in tables.items()]


def _row(path: Path, name: str, row: Any) -> Key:
    known = ("key", "sha256", "priority", *(one.name for one in fields(Limits)))
    if not isinstance(row, dict) or ("key" in row) == ("sha256" in row):
        raise OptionError(f"In {path}, [{name}] must be a table with either key or sha256.")
    if unknown := [each for each in row if each not in known]:
        raise OptionError(f"In {path}, [{name}] has the unknown entry {unknown[0]}; known are {', '.join(known)}.")
    priority = row.get("priority", 0)
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise OptionError(f"In {path}, the priority of [{name}] must be an integer.")
    limits = Limits(**{each: row[each] for each in row if each not in ("key", "sha256", "priority")})
    if "key" in row:
        return key(name, str(row["key"]), limits, priority)
    if not re.fullmatch(r"[0-9a-fA-F]{64}", str(row["sha256"])):
        raise OptionError(f"In {path}, the sha256 of [{name}] must be 64 hexadecimal digits.")
    return Key(name, bytes.fromhex(row["sha256"]), limits, priority)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()
