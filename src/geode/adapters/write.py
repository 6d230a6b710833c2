"""An adapter written whole or not at all, in the format that is asked for.

How either format lies in its files is not known here.
"""

from __future__ import annotations

from pathlib import Path

from .. import artefact
from ..errors import OptionError
from .base import Adapter
from .gguf import write_gguf
from .peft import write_peft


def write(adapter: Adapter, path: str | Path, to: str | None = None, *, force: bool = False) -> str:
    """Writes a PEFT directory or a GGUF file: `to` is "peft" or "gguf", without it the suffix tells. Returns which.

    Raises OptionError where something is there already (without `force`) or the format cannot hold the adapter.
    """
    path = Path(path)
    to = to or ("gguf" if path.suffix == ".gguf" else "peft")
    if to not in ("peft", "gguf"):
        raise OptionError(f"Adapters are written as peft (a directory) or gguf (one file); got {to!r}.")
    if force and to == "peft" and (path / "adapter_config.json").is_file():
        return _into(adapter, path)
    source = Path(adapter.base) if adapter.base else path.absolute().parent
    artefact.check(path, source, to == "gguf", force)
    with artefact.workshop(path) as folder, artefact.disk(path):
        if to == "gguf":
            write_gguf(adapter, folder / path.name)
        else:
            write_peft(adapter, folder)
        artefact.publish(folder, path, to == "gguf")
    return to


def _into(adapter: Adapter, path: Path) -> str:
    """Replaces the two files of an adapter's directory, and leaves what else is there."""
    with artefact.disk(path):
        write_peft(adapter, path)
    return "peft"
