"""Bytes from a URL into a file: resumed where they stopped, checked against their hash, renamed only when whole.

Which registry or hub the URL belongs to is not known here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import importlib.util
import os
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import IO

from ..errors import CapacityError, DownloadError
from .progress import Progress, size

CHUNK = 1 << 18
ATTEMPTS = 5  # without one new byte
PAUSE_SECONDS = 1.0  # before the second attempt; doubled before each one after
TIMEOUT_SECONDS = 60.0
BUSY = {408, 425, 429, 500, 502, 503, 504}  # statuses that a later try may not meet


class Refused(DownloadError):
    """The server answered, and its answer was no: `status` says which one."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Link:
    """Where bytes lie and what they must be."""

    url: str
    size: int | None = None
    sha256: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return urllib.parse.urlsplit(self.url).hostname or self.url


def fetch(link: Link, path: Path, opener: urllib.request.OpenerDirector, progress: Progress) -> None:
    """Brings `link` to `path` through `path`.part, which a later call goes on with.

    Raises Refused for an HTTP status, DownloadError for a network that fails or a wrong hash (the bytes are then
    removed), CapacityError for a full disk.
    """
    part = part_of(path)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _persist(link, part, opener, progress)
        if link.size is not None and _length(part) != link.size:
            raise _removed(part, link.host, f"{_length(part)} bytes", f"{link.size}")
        verify(part, link.sha256, link.host)
        os.replace(part, path)


def part_of(path: Path) -> Path:
    """Where the bytes of `path` gather until they are whole."""
    return path.with_name(path.name + ".part")


def present(path: Path) -> int:
    """Bytes of `path` that an earlier call brought."""
    return next((found.stat().st_size for found in (path, part_of(path)) if found.exists()), 0)


def verify(path: Path, sha256: str | None, source: str) -> None:
    """Raises DownloadError, and removes the file, where its sha256 is another one."""
    if sha256 is None or (found := digest(path)) == sha256:
        return
    raise _removed(path, source, f"sha256 {found}", sha256)


def _removed(path: Path, source: str, found: str, expected: str) -> DownloadError:
    path.unlink()
    return DownloadError(
        f"What came from {source} is not what was asked for: {path.name.removesuffix('.part')} has {found}, "
        f"expected {expected}. The file was removed. Try again; if it happens again, a mirror or a proxy on the way "
        "changes files."
    )


def digest(path: Path) -> str:
    """The sha256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def room(folder: Path, need: int) -> None:
    """Raises CapacityError where the disk of `folder` has less than `need` bytes free."""
    if free(folder) < need:
        raise CapacityError(
            f"The download needs {size(need)} of disk and {folder} has {size(free(folder))} free. "
            "Make room, or set GEODE_HOME to a folder on another disk."
        )


def free(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not be there yet."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Says in a Geode error that the disk is full or the folder cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(
                f"The disk is full: {folder} takes no more bytes. What came so far is kept and the next pull goes on "
                "from there. Make room, or set GEODE_HOME to a folder on another disk."
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DownloadError(
                f"{error.filename or folder} cannot be written ({error.strerror}). "
                "Set GEODE_HOME to a folder that you may write."
            ) from None
        raise


def opener(cert: str | None = None, proxy: str | None = None) -> urllib.request.OpenerDirector:
    """A client that trusts `cert` (file or folder; None: the system's), through `proxy` (None: the environment's)."""
    proxies = {"http": proxy, "https": proxy} if proxy else None
    return urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=_trust(cert)), _Redirects()
    )


def _trust(cert: str | None) -> ssl.SSLContext:
    cert = cert or os.environ.get("REQUESTS_CA_BUNDLE")
    try:
        if cert:
            folder = os.path.isdir(cert)
            return ssl.create_default_context(cafile=None if folder else cert, capath=cert if folder else None)
    except OSError as error:
        raise DownloadError(
            f"The certificates {cert}, named by pip's `cert` setting or REQUESTS_CA_BUNDLE, cannot be read ({error}). "
            "Name a PEM file that is there, or drop the setting."
        ) from None
    context = ssl.create_default_context()
    places = ssl.get_default_verify_paths()
    if not (places.cafile or places.capath) and importlib.util.find_spec("certifi"):  # python.org's build on macOS
        import certifi

        context.load_verify_locations(certifi.where())
    return context


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Tokens stay with the host they were meant for: stores behind a hub refuse them, and they are nobody else's."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if following is not None and urllib.parse.urlsplit(newurl).netloc != req.host:
            following.remove_header("Authorization")
        return following


def _persist(link: Link, part: Path, opener: urllib.request.OpenerDirector, progress: Progress) -> None:
    """Transfers until all is there; gives up after ATTEMPTS that brought nothing."""
    failures = 0
    while True:
        before = _length(part)
        try:
            return _transfer(link, part, opener, progress)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # what is here is longer than what is there
                progress.add(-before)
                part.unlink(missing_ok=True)
            elif error.code not in BUSY:
                raise Refused(f"{link.host} answered {error.code} {error.reason} for {link.url}.", error.code) from None
            reason = f"it answered {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 1 if _length(part) > before else failures + 1
        if failures >= ATTEMPTS:
            raise DownloadError(
                f"The download from {link.host} broke off {failures} times without a new byte ({reason}). "
                "What came so far is kept: run the same command again and it goes on from there. "
                "Check the network and the proxy settings (HTTPS_PROXY)."
            )
        time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))


def _transfer(link: Link, part: Path, opener: urllib.request.OpenerDirector, progress: Progress) -> None:
    """One request for the bytes that are missing."""
    offset = _length(part)
    if offset and offset == link.size:
        return
    headers = {"User-Agent": "geode", "Accept-Encoding": "identity", **link.headers}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with opener.open(urllib.request.Request(link.url, headers=headers), timeout=TIMEOUT_SECONDS) as response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if offset and not goes_on:
            progress.add(-offset)
            offset = 0
        expected = int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        with open(part, "ab" if offset else "wb") as file:
            came = _copy(response, file, progress)
    if expected is not None and came < expected:
        raise ConnectionError(f"the connection closed after {size(came)} of {size(expected)}")


def _copy(response: http.client.HTTPResponse, file: IO[bytes], progress: Progress) -> int:
    came = 0
    while chunk := response.read(CHUNK):
        file.write(chunk)
        came += len(chunk)
        progress.add(len(chunk))
    return came


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
