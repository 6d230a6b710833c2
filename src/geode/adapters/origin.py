"""Which base model an adapter belongs to: the one that its options name, and the files that its manifest remembers.

How a base model is opened, or an adapter merged, is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import manifest
from ..errors import DownloadError, GeodeError, ModelNotFound
from ..formats.base import read_json
from .base import CONFIG

if TYPE_CHECKING:
    from ..formats import Checkpoint

NAME = "base_model_name_or_path"
WORDS = frozenset({"", ".json", ".jinja", ".txt", ".md", ".html", ".model"})
"""Suffixes of files that hold no weights, and may change with the tools that write them."""


def base_name(folder: Path) -> str:
    """The base model of a PEFT directory, as the hub spells it: a path, a known name, or hf:owner/repo.

    A path is the adapter's own neighbour, or lies in the working directory. Raises ModelNotFound where none is named.
    """
    options = read_json(folder / CONFIG)
    name = options.get(NAME)
    if not isinstance(name, str) or not name:
        raise ModelNotFound(
            f"{folder / CONFIG} does not name the model that the adapter is for ({NAME}). Name it: "
            "--base, or the model with --adapter (adapter=)."
        )
    near = next((place for place in (folder / name, Path(name).expanduser()) if place.exists()), None)
    return str(near) if near is not None else _spelt(name, options.get("revision"))


def _spelt(name: str, revision: Any) -> str:
    """transformers writes a repository of the hub as owner/repo."""
    if name.startswith(("hf:", "/", ".", "~")) or name.count("/") != 1:
        return name
    return f"hf:{name}@{revision.replace('/', '%2F')}" if isinstance(revision, str) and revision else f"hf:{name}"


def base_of(folder: Path, fetch: bool = True) -> Path:
    """The file or directory of that model; with `fetch` it is pulled where it is not here yet.

    Raises ModelNotFound, DownloadError, CapacityError, MissingExtra.
    """
    from ..io import hub

    name = base_name(folder)
    try:
        found = hub.resolve(name) if fetch else hub.find(name)
    except (ModelNotFound, DownloadError) as problem:
        raise type(problem)(f"The adapter {folder} was made for {name}. {problem} {_ELSE}") from None
    except GeodeError:
        if fetch:
            raise
        found = None
    if found is None:
        raise ModelNotFound(
            f"The adapter {folder} was made for {name}, which is not on this machine: `geode pull {name}`. {_ELSE}"
        )
    return found


_ELSE = "A copy that lies elsewhere can be named: --base, or the model with --adapter (adapter=)."


def other_base(path: Path, base: Checkpoint) -> str | None:
    """Why `base` is not what the adapter at `path` was made from, by the manifest's own list of files; None where it
    is, or where nothing tells. Sizes are compared, and digests where a pull has checked them.
    """
    from ..io import hub

    told = (manifest.read(path) or {}).get("base")
    listed = told.get("files") if isinstance(told, dict) else None
    known = hub.digests(base.path)
    here = {file.name: file for file in base.files()}
    for one in listed if isinstance(listed, list) else ():
        if isinstance(one, dict) and one.get("name") in here and Path(one["name"]).suffix not in WORDS:
            file = here[one["name"]]
            if (wrong := _differs(one, file, known)) is not None:
                return f"{path} was made from another {file.name}: {wrong}."
    return None


def _differs(one: Mapping[str, Any], file: Path, known: Mapping[str, str]) -> str | None:
    size, digest = file.stat().st_size, known.get(file.name)
    if one.get("size") not in (None, size):
        return f"that one had {one['size']:,} bytes, and {file} has {size:,}"
    if digest and one.get("sha256") not in (None, digest):
        return f"that one's sha256 began with {str(one['sha256'])[:12]}, and that of {file} with {digest[:12]}"
    return None
