"""What Vertex AI tells a container through its environment: where to listen, and where its model lies.

What a prediction is is not known here. The truth is
cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import DownloadError, MissingExtra, OptionError


@dataclass(frozen=True)
class Contract:
    """What Vertex AI has put into the environment."""

    port: int
    health: str
    predict: str
    storage: str | None = None


def contract(environment: Mapping[str, str] = os.environ) -> Contract | None:
    """The contract, where there is one. Raises OptionError for values that cannot be."""
    if "AIP_HTTP_PORT" not in environment:
        return None
    port = environment["AIP_HTTP_PORT"]
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise OptionError(f"AIP_HTTP_PORT must be a port, from 1 to 65535; got {port!r}.")
    routes = [environment.get(name) or usual for name, usual in ROUTES.items()]
    for name, route in zip(ROUTES, routes, strict=True):
        if not route.startswith("/") or "{" in route:
            raise OptionError(f"{name} must be a path, as in {ROUTES[name]}; got {route!r}.")
    return Contract(int(port), routes[0], routes[1], environment.get("AIP_STORAGE_URI") or None)


ROUTES = {"AIP_HEALTH_ROUTE": "/health", "AIP_PREDICT_ROUTE": "/predict"}


def model(uri: str) -> Path:
    """The model at AIP_STORAGE_URI: a local path, or a folder of Cloud Storage, which is copied for this process.

    Raises OptionError, MissingExtra, DownloadError.
    """
    if not uri.startswith("gs://"):
        if "://" in uri:
            raise OptionError(f"AIP_STORAGE_URI must be gs://BUCKET/FOLDER or a local path; got {uri!r}.")
        return _only(Path(uri))
    bucket, _, folder = uri.removeprefix("gs://").partition("/")
    if not bucket:
        raise OptionError(f"AIP_STORAGE_URI must be gs://BUCKET/FOLDER or a local path; got {uri!r}.")
    place = Path(tempfile.mkdtemp(prefix="geode-model-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    _copy(bucket, folder.rstrip("/"), place)
    return _only(place)


def _copy(bucket: str, folder: str, place: Path) -> None:
    try:
        from google.cloud import storage  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise MissingExtra("google-cloud-storage", "vertex", "Copying a model from Cloud Storage") from None
    before = f"{folder}/" if folder else ""
    try:
        blobs = [blob for blob in storage.Client().list_blobs(bucket, prefix=before) if not blob.name.endswith("/")]
        for blob in blobs:
            blob.download_to_filename(_inside(place, blob.name.removeprefix(before)))
    except OSError as error:
        raise DownloadError(f"gs://{bucket}/{folder} cannot be copied: {error.strerror or error}.") from None
    except Exception as error:  # the client's own errors have no common base that could be named without it
        said = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".:")
        raise DownloadError(f"gs://{bucket}/{folder} cannot be copied: {said}.") from None
    if not blobs:
        raise DownloadError(f"There are no files in the folder gs://{bucket}/{folder}.")


def _inside(place: Path, name: str) -> str:
    """Where one file goes. Raises OSError for a name that leads elsewhere."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/"):
        raise OSError(f"the name {name!r} leads out of its folder")
    path = place.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(path)


def _only(folder: Path) -> Path:
    """A folder that holds one folder or one .gguf file and nothing else stands for it."""
    inside = [each for each in folder.iterdir() if not each.name.startswith(".")] if folder.is_dir() else []
    if len(inside) == 1 and (inside[0].is_dir() or inside[0].suffix == ".gguf"):
        return _only(inside[0])
    return folder
