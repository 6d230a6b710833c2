"""Data sets of the Hugging Face hub: `hf:owner/name[@revision][/config][:split]` to checked files on this disk.

huggingface_hub finds the files, the token and the endpoint; the bytes travel by our own client, as those of models do.
What the files say is not known here.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DownloadError, MissingExtra, ModelNotFound
from ..io.download import Link, Refused, digest, fetch, opener, present, room, writing
from ..io.lock import hold
from ..io.progress import Progress, size
from ..io.store import MANIFEST, home, slug
from .hub_names import Reference, choose, parse

SITE = "https://huggingface.co/datasets"
MARGIN = 16_000_000  # bytes left free for everybody else


def bring(place: str, quiet: bool = False) -> tuple[Path, list[str]]:
    """The folder and the names in it of a split's files; downloads those that are not here yet.

    What was brought once is what the name means from then on: to take a newer state, remove the folder. Raises
    OptionError, MissingExtra, ModelNotFound, DownloadError, CapacityError.
    """
    reference = parse(place)
    folder = home() / "datasets" / slug(reference.whole)
    found = _here(folder)
    if found is None:
        with writing(home()), hold(folder.with_name(folder.name + ".lock"), lambda: _say(f"Waiting for {place}.")):
            found = _here(folder) or _gather(reference, folder, quiet)
    return folder / "files", found


def _gather(reference: Reference, folder: Path, quiet: bool) -> list[str]:
    """Downloads what is meant; the manifest comes last, so that what is without one is not whole."""
    hub = _library()
    info = _ask(reference, hub)
    sizes = {file.rfilename: file for file in info.siblings}
    configs = getattr(info.card_data, "configs", None) or []
    chosen = choose(reference, sizes, [config for config in configs if isinstance(config, Mapping)])
    _same_commit(info.sha, folder)
    files = [sizes[name] for name in chosen]
    total = sum(file.size or 0 for file in files)
    room(folder, total - sum(present(folder / "files" / name) for name in chosen) + MARGIN)
    licence = getattr(info.card_data, "license", None)
    if not quiet:
        terms = f"its licence: {licence}" if licence else "which names no licence; look before you use it"
        _say(f"Downloading {len(files)} files, {size(total)}, of {SITE}/{reference.repo}, {terms}.")
    _download(reference, info.sha, files, folder / "files", hub, quiet)
    _record(reference, info.sha, licence, chosen, folder)
    return chosen


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtra("huggingface_hub", "hub", "A data set of the Hugging Face hub (hf:owner/name)") from None
    return huggingface_hub


def _ask(reference: Reference, hub: Any) -> Any:
    """The hub's own description of the repository: files with sizes and hashes, commit, card."""
    try:
        return hub.HfApi().dataset_info(reference.repo, revision=reference.revision, files_metadata=True)
    except Exception as error:  # the library's classes have moved between its versions; the status has not
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise _said_no(reference, status, error) from None


def _download(reference: Reference, commit: str, files: list[Any], folder: Path, hub: Any, quiet: bool) -> None:
    token = hub.get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    client = opener()
    done = sum(present(folder / file.rfilename) for file in files)
    with Progress(reference.whole, sum(file.size or 0 for file in files), done, quiet) as progress:
        for file in files:
            if (folder / file.rfilename).exists():
                continue
            url = hub.hf_hub_url(reference.repo, file.rfilename, repo_type="dataset", revision=commit)
            sha256 = file.lfs["sha256"] if file.lfs else None
            try:
                fetch(Link(url, file.size, sha256, headers), folder / file.rfilename, client, progress)
            except Refused as error:
                raise _said_no(reference, error.status, error) from None


def _said_no(reference: Reference, status: int | None, error: Exception) -> Exception:
    """The hub's answer as one of our errors."""
    page = f"{SITE}/{reference.repo}"
    if status in (401, 403):
        return DownloadError(
            f"The hub does not give the data set {reference.repo} to this account (it answered {status}): it is gated, "
            f"private or not there. Open {page} signed in and accept its terms, make a read token at "
            "https://huggingface.co/settings/tokens and set it: export HF_TOKEN=hf_... Then run the command again."
        )
    if status == 404:
        at = f" at revision '{reference.revision}'" if reference.revision else ""
        return ModelNotFound(f"The hub has no data set {reference.repo}{at}. Look for its exact name at {page}.")
    said = str(error).strip().splitlines() or [type(error).__name__]
    return DownloadError(
        f"The hub cannot be asked for the data set {reference.repo}: {said[0].rstrip('.')}. "
        "Check the network, HTTPS_PROXY and HF_ENDPOINT; data that is here already can be named by its path."
    )


# The folder


def _same_commit(commit: str, folder: Path) -> None:
    """Files of an interrupted download serve only the commit they are of."""
    mark = folder / "commit"
    if not mark.exists() or mark.read_text() != commit:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mark.write_text(commit)


def _record(reference: Reference, commit: str, licence: Any, names: list[str], folder: Path) -> None:
    paths = {name: folder / "files" / name for name in names}
    files = [{"name": name, "size": path.stat().st_size, "sha256": digest(path)} for name, path in paths.items()]
    source = f"{SITE}/{reference.repo}/tree/{commit}"
    fields = {"name": reference.whole, "source": source, "licence": licence, "files": files}
    part = folder / f"{MANIFEST}.part"
    part.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, folder / MANIFEST)


def _here(folder: Path) -> list[str] | None:
    """The files that the manifest names, where all of them have the sizes that were checked."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        whole = all((folder / "files" / file["name"]).stat().st_size == file["size"] for file in files)
        return [file["name"] for file in files] if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
