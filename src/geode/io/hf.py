"""Repositories of the Hugging Face hub: `hf:owner/repo[@revision][/file]` to checked files.

huggingface_hub finds the files, the token and the endpoint; the bytes travel by our own client, because that library
throws unfinished files away when it is interrupted. What the files mean is not known here.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DownloadError, MissingExtra, ModelNotFound, OptionError
from .catalogue import GEMMA_TERMS, Licence
from .download import Link, Refused, fetch, opener, present, room
from .progress import Progress, size

SITE = "https://huggingface.co"
MARGIN = 16_000_000  # bytes left free for everybody else
PATTERN = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")
SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")
TERMS = ("LICEN[SC]E*", "NOTICE*", "USE_POLICY*")
WEIGHTS = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
TOKENIZER = (
    *("tokenizer.json", "tokenizer.model", "*.tiktoken", "vocab.json", "merges.txt", "added_tokens.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
)
PRESET = (
    *("model*.weights.h5", "model.weights.json", "metadata.json", "task.json", "preprocessor.json"),
    "assets/tokenizer/*",
)
PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
OTHER_LAYOUTS = ((PRESET, ".weights.h5"), (PICKLES, ".bin"))  # Keras's, and what came before safetensors
SECOND_COPIES = ("consolidated*.safetensors",)  # Mistral's own layout beside the usual one


@dataclass(frozen=True)
class Reference:
    """What an `hf:` name says."""

    repo: str
    revision: str | None = None
    file: str | None = None

    @property
    def name(self) -> str:
        at = f"@{urllib.parse.quote(self.revision, safe='')}" if self.revision else ""
        return f"hf:{self.repo}{at}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True)
class Listed:
    """One file as the hub lists it; the hub knows a sha256 only of the large ones."""

    name: str
    size: int
    sha256: str | None


def parse(name: str) -> Reference:
    """Raises OptionError for what is not `hf:owner/repo[@revision][/file]`; a `/` in a revision is written %2F."""
    found = PATTERN.fullmatch(name)
    if not found or ".." in (found["file"] or "").split("/"):
        raise OptionError(
            f"'{name}' is not of the form hf:owner/repo[@revision][/file], as in hf:google/gemma-3-1b-it."
        )
    return Reference(found["repo"], found["revision"] and urllib.parse.unquote(found["revision"]), found["file"])


def bring(
    reference: Reference, folder: Path, ready: Path, say: Callable[[str], None], quiet: bool
) -> tuple[str, str, Licence | None]:
    """Downloads what a loader needs into `ready`; returns the source, the one weights file or "", and the licence.

    Raises MissingExtra, ModelNotFound, DownloadError (also where a licence gate says no), CapacityError.
    """
    hub = _library()
    info = _ask(reference, hub)
    listed = [_listed(file) for file in info.siblings]
    main, chosen = choose(reference, listed)
    _same_commit(info.sha, folder, ready)
    there = sum(present(ready / file.name) for file in chosen)
    room(folder, sum(file.size for file in chosen) - there + MARGIN)
    say(f"Downloading {len(chosen)} files, {size(sum(file.size for file in chosen))}, of {reference.repo}.")
    _download(reference, info.sha, chosen, ready, hub, quiet)
    return f"{SITE}/{reference.repo}/tree/{info.sha}", main, _licence(reference, info, chosen)


def choose(reference: Reference, listed: Iterable[Listed]) -> tuple[str, list[Listed]]:
    """The weights file ("" where the directory is the model) and the files to bring."""
    files = {file.name: file for file in listed}
    if reference.file:
        if reference.file not in files:
            raise ModelNotFound(f"{reference.repo} has no file '{reference.file}'. It has: {_some(files)}.")
        return reference.file, [*_parts(files, reference.file), *_matching(files, TERMS)]
    wanted = [file for file in _matching(files, (*WEIGHTS, *TOKENIZER, *TERMS)) if not _second_copy(file.name, files)]
    if any(file.name.endswith(".safetensors") for file in wanted):
        return "", wanted
    ggufs = [name for name in files if name.lower().endswith(".gguf") and _first_part(name)]
    if len(ggufs) == 1:
        return choose(Reference(reference.repo, reference.revision, ggufs[0]), files.values())
    if ggufs:
        raise ModelNotFound(
            f"{reference.repo} holds {len(ggufs)} GGUF files; name one of them, as in {reference.name}/{ggufs[0]}. "
            f"It has: {_some(ggufs)}."
        )
    for patterns, suffix in OTHER_LAYOUTS:
        found = _matching(files, patterns)
        if any(file.name.endswith(suffix) for file in found):
            return "", [*found, *_matching(files, ("config.json", "generation_config.json", *TOKENIZER, *TERMS))]
    raise ModelNotFound(
        f"{reference.repo} has no safetensors, GGUF, Keras or PyTorch weights, which Geode reads. "
        f"It has: {_some(files)}."
    )


def _same_commit(commit: str, folder: Path, ready: Path) -> None:
    """Files of an interrupted pull serve only the commit they are of."""
    mark = folder / "commit"
    if not mark.exists() or mark.read_text() != commit:
        shutil.rmtree(ready)
        ready.mkdir()
        mark.write_text(commit)


def _parts(files: dict[str, Listed], name: str) -> list[Listed]:
    """The file, or all parts of a GGUF that is split (the reader finds them beside the first)."""
    split = SPLIT.fullmatch(name)
    if not split:
        return [files[name]]
    names = [f"{split['stem']}-{i:05d}-of-{split['count']}.gguf" for i in range(1, int(split["count"]) + 1)]
    missing = [name for name in names if name not in files]
    if missing:
        raise ModelNotFound(f"The repository lacks parts of {name}: {_some(missing)}. Choose another file of it.")
    return [files[name] for name in names]


def _first_part(name: str) -> bool:
    split = SPLIT.fullmatch(name)
    return split is None or int(split["part"]) == 1


def _second_copy(name: str, files: Iterable[str]) -> bool:
    doubled = any(fnmatch.fnmatchcase(name, pattern) for pattern in SECOND_COPIES)
    return doubled and any(fnmatch.fnmatchcase(other, "model*.safetensors") for other in files)


def _matching(files: dict[str, Listed], patterns: Iterable[str]) -> list[Listed]:
    """Files that match; a pattern without a slash means the top directory."""
    return [
        file
        for name, file in files.items()
        if any(name.count("/") == p.count("/") and fnmatch.fnmatchcase(name, p) for p in patterns)
    ]


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtra("huggingface_hub", "hub", "A model of the Hugging Face hub (hf:owner/repo)") from None
    return huggingface_hub


def _ask(reference: Reference, hub: Any) -> Any:
    """The hub's own description of the repository: files with sizes and hashes, commit, licence."""
    try:
        return hub.HfApi().model_info(reference.repo, revision=reference.revision, files_metadata=True)
    except Exception as error:  # the library's classes have moved between its versions; the status has not
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise _said_no(reference, status, error) from None


def _listed(file: Any) -> Listed:
    lfs = file.lfs
    sha256 = None if lfs is None else lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256
    return Listed(file.rfilename, file.size or 0, sha256)


def _download(reference: Reference, commit: str, chosen: list[Listed], ready: Path, hub: Any, quiet: bool) -> None:
    token = hub.get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    client = opener()
    total = sum(file.size for file in chosen)
    done = sum(present(ready / file.name) for file in chosen)
    with Progress(reference.name, total, done, quiet) as progress:
        for file in chosen:
            if (ready / file.name).exists():
                continue
            url = hub.hf_hub_url(reference.repo, file.name, revision=commit)
            try:
                fetch(Link(url, file.size, file.sha256, headers), ready / file.name, client, progress)
            except Refused as error:
                raise _said_no(reference, error.status, error) from None


def _said_no(reference: Reference, status: int | None, error: Exception) -> Exception:
    """The hub's answer as one of our errors."""
    page = f"{SITE}/{reference.repo}"
    if status in (401, 403):
        return DownloadError(
            f"The hub does not give {reference.repo} to this account (it answered {status}): the repository is gated, "
            f"private or not there. Open {page} signed in and accept its licence, make a read token at "
            f"{SITE}/settings/tokens, and set it: export HF_TOKEN=hf_... Then run the same command again."
        )
    if status == 404:
        at = f" at revision '{reference.revision}'" if reference.revision else ""
        return ModelNotFound(f"The hub has no model {reference.repo}{at}. Look for its exact name at {page}.")
    said = str(error).strip().splitlines() or [type(error).__name__]
    return DownloadError(
        f"The hub cannot be asked for {reference.repo}: {said[0].rstrip('.')}. "
        "Check the network, HTTPS_PROXY and HF_ENDPOINT; a model that is here already can be used by its path."
    )


def _licence(reference: Reference, info: Any, chosen: Iterable[Listed]) -> Licence | None:
    """The licence that the repository's card names."""
    card = getattr(info, "card_data", None)
    name = getattr(card, "license_name", None) or getattr(card, "license", None)
    if not name:
        return None
    files = tuple(file.name for file in _matching({file.name: file for file in chosen}, TERMS))
    if name == "gemma":
        return Licence(GEMMA_TERMS.name, GEMMA_TERMS.url, GEMMA_TERMS.notice, files)
    notice = f"The weights are {reference.repo}'s, under the licence '{name}' that its page names."
    return Licence(str(name), getattr(card, "license_link", None) or f"{SITE}/{reference.repo}", notice, files)
