"""The page at `/`: files of this package, sent as they are, under a policy that lets them talk to this server only.

What the page asks of the server is not known here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response

FILES = Path(__file__).with_name("page")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# w3.org/TR/CSP3. Trusted types make a browser refuse whatever would parse text as HTML or run it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",  # kept, but asked about each time: a new version is never mixed with an old one
}


@dataclass(frozen=True)
class _File:
    content: bytes
    type: str
    etag: str


def page_router() -> APIRouter:
    """GET and HEAD of `/` and `/page/NAME`. All files are read now; no path is ever looked up on disk."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: _read(path) for path in sorted(FILES.iterdir()) if path.suffix in TYPES}

    @router.api_route("/", methods=["GET", "HEAD"])
    def index(request: Request) -> Response:
        return _answer(request, files["index.html"])

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    def file(request: Request, name: str) -> Response:
        found = files.get(name)
        return _answer(request, found) if found else Response(f"The page has no file {name!r}.", 404, _plain())

    return router


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _answer(request: Request, file: _File) -> Response:
    headers = {**HEADERS, "ETag": file.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "Content-Type": file.type})


def _plain() -> dict[str, str]:
    return {**HEADERS, "Content-Type": "text/plain; charset=utf-8"}
