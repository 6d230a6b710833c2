"""The models on this disk: one directory each, with its files and a manifest that says what they are.

How they came here, and how they are run, is not known here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from .catalogue import Licence

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class File:
    """One file of a model as it was when it was checked."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Model:
    """A model that Geode pulled. `main` is its one weights file, or "" where the directory itself is the model."""

    name: str
    source: str
    main: str
    files: tuple[File, ...]
    licence: Licence | None
    time: str  # when it was pulled, ISO 8601, UTC
    folder: Path

    @property
    def path(self) -> Path:
        """What a loader opens."""
        return self.folder / self.main if self.main else self.folder

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @property
    def kind(self) -> str:
        return "gguf" if self.main.lower().endswith(".gguf") else "safetensors"


def home() -> Path:
    """Where Geode keeps files: GEODE_HOME, else the platform's cache directory."""
    chosen = os.environ.get("GEODE_HOME")
    return Path(chosen).expanduser().absolute() if chosen else _cache()


def _cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "geode"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "geode" / "cache"
    chosen = os.environ.get("XDG_CACHE_HOME", "")  # void where it is relative, says its standard
    return (Path(chosen) if os.path.isabs(chosen) else Path.home() / ".cache") / "geode"


def slug(name: str) -> str:
    """A name as the name of one file on every system; different names never meet."""
    plain = re.sub(r"[^A-Za-z0-9._:/-]", lambda found: "".join(f"%{byte:02x}" for byte in found[0].encode()), name)
    return plain.replace(":", "=", 1).replace(":", "%3a").replace("/", "=")


def place(name: str) -> Path:
    """The directory of a model that is here whole."""
    return home() / "models" / slug(name)


def workshop(name: str) -> Path:
    """The directory where a model is gathered."""
    return home() / "downloads" / slug(name)


def lock_file(name: str) -> Path:
    """Held by whoever changes the model's directories."""
    return home() / "downloads" / f"{slug(name)}.lock"


def record(name: str, source: str, main: str, licence: Licence | None, ready: Path) -> None:
    """Writes the manifest of the finished files in `ready`."""
    from .download import digest

    files = [
        File(path.relative_to(ready).as_posix(), path.stat().st_size, digest(path))
        for path in sorted(ready.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    ]
    time = datetime.now(UTC).isoformat(timespec="seconds")
    model = Model(name, source, main, tuple(files), licence, time, ready)
    fields = {key: value for key, value in asdict(model).items() if key != "folder"}
    (ready / MANIFEST).write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def install(name: str, ready: Path) -> Model:
    """Moves the finished directory into place in one step."""
    target = place(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # without a manifest, or with files of other sizes
        shutil.rmtree(target)
    os.replace(ready, target)
    return read(target)


def read(folder: Path) -> Model:
    """The model in `folder`. Raises OSError or ValueError where there is no manifest, or it is not one."""
    fields = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    try:
        licence = fields["licence"]
        fields["licence"] = licence and Licence(**{**licence, "files": tuple(licence["files"])})
        fields["files"] = tuple(File(**file) for file in fields["files"])
        return Model(**fields, folder=folder)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} is not a manifest: {error}") from None


def find(name: str) -> Model | None:
    """The model of this name, where it is here and all its files have the sizes that were checked."""
    try:
        model = read(place(name))
    except (OSError, ValueError):
        return None
    return model if all(_intact(model.folder / file.name, file.size) for file in model.files) else None


def models() -> Iterator[Model]:
    """All models that are here whole, by name."""
    for folder in sorted((home() / "models").glob("*/" + MANIFEST)):
        try:
            yield read(folder.parent)
        except (OSError, ValueError):
            continue


def _intact(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
