"""A model's files opened: the format that claims them says configuration, canonical tensors, tokenizer, all lazily.

An adapter's files are a model as well: its base model with the adapter merged in. What a network computes is not known
here, nor where files come from.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from . import formats
from .errors import ConfigError, OptionError
from .formats import Checkpoint

__all__ = ["Checkpoint", "open"]


def open(path: str | Path, adapter: str | Path | None = None, *, exact: bool = False) -> Checkpoint:
    """Opens whatever format a path is of: a .gguf file, a Hugging Face directory … (`formats.every()` lists them).

    adapter  a PEFT directory or a GGUF adapter that is merged into the model. The path of such a directory alone opens
             the base model that it names, which is pulled where it is not here yet.
    exact    matrices that an adapter changes become float32; else they keep the base's type, but for Q8_0 where that
             has fewer bits, which would swallow the change

    Reads headers, and adapters. Raises ModelNotFound, FormatError, ConfigError; TensorError for an adapter that does
    not fit; for a base that is pulled DownloadError, CapacityError, MissingExtra. Warns where a base that is named is
    not the one that the adapter's manifest remembers.
    """
    path = Path(path)
    opened = _adapted(path, exact) if _is_adapter(path) else _plain(path)
    return opened if adapter is None else _with(opened, Path(adapter), exact)


def _is_adapter(path: Path) -> bool:
    """Whether a path is a PEFT directory. A GGUF adapter does not tell its base, so it is no model by itself."""
    from .adapters import CONFIG

    return path.name == CONFIG or (path / CONFIG).is_file()


def _plain(path: Path) -> Checkpoint:
    try:
        return formats.open(path)
    except ConfigError:
        from . import adapters

        if path.is_file() and adapters.claims(path):
            raise OptionError(
                f"{path} is a GGUF adapter, which does not tell its base model. Name that one, and this file as "
                "--adapter (adapter=)."
            ) from None
        raise


def _adapted(path: Path, exact: bool) -> Checkpoint:
    """An adapter's directory by itself."""
    from . import adapters

    path = path if path.is_dir() else path.parent
    below = adapters.base_of(path)
    if below.resolve() == path.resolve():
        raise ConfigError(f"{path} names itself as its base model. Name the one it is for with --base or --adapter.")
    base = open(below, exact=exact)  # which may be an adapter itself, that was tuned further
    if (other := adapters.other_base(path, base)) is not None:
        raise ConfigError(
            f"{other} The base model has changed since. Bring the old one back, or name the one that is meant: "
            "geode.load(model, adapter=...), --adapter."
        )
    return _merged(base, path, exact)


def _with(base: Checkpoint, path: Path, exact: bool) -> Checkpoint:
    """A model that was named, and an adapter for it."""
    from . import adapters

    merged = _merged(base, path, exact)
    if (other := adapters.other_base(path, base)) is not None:
        warnings.warn(f"{other} Its answers may be worse than its author's.", stacklevel=3)
    return merged


def _merged(base: Checkpoint, path: Path, exact: bool) -> Checkpoint:
    from . import merge

    return merge.adapted(base, path, merge.exact if exact else merge.roomy)
