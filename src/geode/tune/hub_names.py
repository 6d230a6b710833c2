"""Which files of a data set on the Hugging Face hub a name means: hf:owner/name[@revision][/config][:split].

How to ask the hub and to download is not known here.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ModelNotFound, OptionError
from . import splits

PATTERN = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/:]+))?(?:/(?P<config>[^:]+))?(?::(?P<split>[\w.-]+))?"
)
WILD = {"**/": r"(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}  # docs.python.org/3/library/glob.html, recursive


@dataclass(frozen=True)
class Reference:
    """What an `hf:` name says. `config` is one of the card's configurations, a folder, or one file."""

    repo: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    @property
    def name(self) -> str:
        """The name without its split."""
        at = f"@{urllib.parse.quote(self.revision, safe='')}" if self.revision else ""
        return f"hf:{self.repo}{at}" + (f"/{self.config}" if self.config else "")

    @property
    def whole(self) -> str:
        return self.name + (f":{self.split}" if self.split else "")


def parse(place: str) -> Reference:
    """Raises OptionError for what is not of the form; a `/` in a revision is written %2F."""
    found = PATTERN.fullmatch(place)
    if not found or {"", ".."} & {*(found["config"] or "it").split("/")}:
        raise OptionError(
            f"'{place}' is not of the form hf:owner/name[@revision][/config][:split], as in hf:openai/gsm8k/main:train."
        )
    revision = found["revision"] and urllib.parse.unquote(found["revision"])
    return Reference(found["repo"], revision, found["config"], found["split"])


def choose(reference: Reference, names: Iterable[str], configs: Iterable[Mapping[str, Any]] = ()) -> list[str]:
    """The files that a reference means: its one file, those that the card says, or those whose names tell.

    `configs` is what the repository's card says of its files:
    huggingface.co/docs/hub/datasets-manual-configuration. Raises ModelNotFound.
    """
    names = sorted(names)
    if reference.config in names:
        return [reference.config]
    described = {str(config.get("config_name", "default")): config for config in configs}
    inside = [name for name in names if reference.config and name.startswith(f"{reference.config.strip('/')}/")]
    if reference.config and reference.config not in described:
        if not inside:
            raise _no_config(reference, described, names)
        return splits.choose(inside, reference.split, reference.name)
    config = described.get(reference.config) if reference.config else _default(reference, described)
    if config is None or not (config.get("data_files") or config.get("data_dir")):
        return splits.choose(names, reference.split, reference.name)
    return _described(reference, config, names)


def _default(reference: Reference, described: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The configuration that is meant where none is named."""
    chosen = [name for name, config in described.items() if config.get("default")] or [
        name for name in described if name == "default" or len(described) == 1
    ]
    if chosen or not described:
        return described[chosen[0]] if chosen else None
    raise ModelNotFound(
        f"{reference.repo} has {len(described)} configurations; name one of them, as in "
        f"{reference.name}/{next(iter(described))}. It has: {splits.some(described)}."
    )


def _described(reference: Reference, config: Mapping[str, Any], names: list[str]) -> list[str]:
    """The files of a split by the patterns of the card."""
    below = str(config.get("data_dir") or "").strip("/")
    under = [name for name in names if not below or name.startswith(f"{below}/")]
    patterns = dict(_patterns(config.get("data_files")))
    if not patterns:
        return splits.choose(under, reference.split, reference.name)
    wanted = reference.split or "train"
    if wanted not in patterns:
        raise ModelNotFound(
            f"{reference.name} has no split '{wanted}'. Its splits are {splits.some(patterns)}: "
            f"name one after a colon, as in {reference.name}:{next(iter(patterns))}."
        )
    prefix = f"{below}/" if below else ""
    chosen = [name for name in under if any(_matches(name, prefix + pattern) for pattern in patterns[wanted])]
    chosen = splits.data_files(chosen)
    if not chosen:
        raise ModelNotFound(
            f"The card of {reference.repo} says that '{wanted}' is {', '.join(patterns[wanted])}, and no file that "
            f"Geode reads matches. It has: {splits.some(names)}. Name one file, as in {reference.name}/FILE."
        )
    return chosen


def _patterns(said: Any) -> Iterator[tuple[str, list[str]]]:
    """Splits and their patterns, from any of the forms in which a card may give `data_files`."""
    if isinstance(said, Mapping):
        yield from ((str(split), _listed(path)) for split, path in said.items())
    elif isinstance(said, list) and said and all(isinstance(each, Mapping) for each in said):
        yield from ((str(each.get("split", "train")), _listed(each.get("path"))) for each in said)
    elif said:
        yield "train", _listed(said)


def _listed(paths: Any) -> list[str]:
    return [str(path).removeprefix("./") for path in (paths if isinstance(paths, list) else [paths])]


def _matches(name: str, pattern: str) -> bool:
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern)
    spelt = "".join(WILD.get(part, part if part.startswith("[") else re.escape(part)) for part in parts)
    return re.fullmatch(spelt, name) is not None


def _no_config(reference: Reference, described: Iterable[str], names: list[str]) -> ModelNotFound:
    folders = {name.rpartition("/")[0] for name in splits.data_files(names)} - {""}
    there = splits.some({*described, *folders}) or "none"
    return ModelNotFound(
        f"{reference.repo} has no configuration, folder or file '{reference.config}'. Configurations and folders: "
        f"{there}; files: {splits.some(names)}."
    )
