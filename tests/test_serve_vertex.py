"""Vertex AI's contract with a container: its environment, its routes, its bodies."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import Live, scripted, serving

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")

from geode.errors import DownloadError, MissingExtra, OptionError  # noqa: E402
from geode.serve import contract, keys  # noqa: E402

AIP = {
    "AIP_HTTP_PORT": "8085",
    "AIP_HEALTH_ROUTE": "/v1/endpoints/1/health",
    "AIP_PREDICT_ROUTE": "/v1/endpoints/1:predict",
}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving(
        {"fake": scripted(lambda prompt: "Hello." if "user:" in prompt else "text")}, vertex=contract.contract(AIP)
    ) as found:
        yield found


def predict(live: Live, status: int = 200, **body: Any) -> Any:
    response = httpx.post(live.url + AIP["AIP_PREDICT_ROUTE"], json=body)
    assert response.status_code == status, response.text
    return response.json()


def test_the_environment() -> None:
    assert contract.contract({}) is None
    found = contract.contract(AIP | {"AIP_STORAGE_URI": "gs://b/m"})
    assert found == contract.Contract(8085, AIP["AIP_HEALTH_ROUTE"], AIP["AIP_PREDICT_ROUTE"], "gs://b/m")
    assert contract.contract({"AIP_HTTP_PORT": "80"}) == contract.Contract(80, "/health", "/predict")
    for bad in ({"AIP_HTTP_PORT": "x"}, {"AIP_HTTP_PORT": "99999"}, AIP | {"AIP_PREDICT_ROUTE": "predict"}):
        with pytest.raises(OptionError):
            contract.contract(bad)


def test_health(live: Live) -> None:
    assert httpx.get(live.url + AIP["AIP_HEALTH_ROUTE"]).status_code == 200
    assert httpx.get(live.url + "/health").status_code == 200


def test_health_needs_no_key() -> None:
    alice = (keys.key("alice", "secret-of-alice"),)
    with serving({"fake": scripted(["x"])}, vertex=contract.contract(AIP), keys=alice) as kept:
        assert httpx.get(kept.url + AIP["AIP_HEALTH_ROUTE"]).status_code == 200
        assert httpx.post(kept.url + AIP["AIP_PREDICT_ROUTE"], json={"instances": ["One"]}).status_code == 401


def test_a_prediction_for_each_instance(live: Live) -> None:
    instances = ["One", {"prompt": "Two"}, {"messages": [{"role": "user", "content": "Hi"}]}]
    found = predict(live, instances=instances)
    assert [each["text"] for each in found["predictions"]] == ["text", "text", "Hello."]
    assert {each["finish_reason"] for each in found["predictions"]} == {"stop"}


def test_parameters_by_either_name(live: Live) -> None:
    for parameters in ({"max_tokens": 2}, {"maxOutputTokens": 2}, {"stopSequences": ["x"]}, {"stop": "x"}):
        found = predict(live, instances=["One"], parameters=parameters)
        assert found["predictions"][0]["text"] == "te"
    predict(live, 400, instances=["One"], parameters={"max_tokens": 2, "maxOutputTokens": 2})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instances": []},
        {"instances": [{"text": "x"}]},
        {"instances": [{}]},
        {"instances": ["x"], "parameters": {"n": 2}},
    ],
    ids=["none", "empty", "unknown", "nothing", "parameter"],
)
def test_bad_bodies(live: Live, body: dict[str, Any]) -> None:
    assert predict(live, 400, **body)["error"]["message"]


def test_local_storage(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    assert contract.model(str(tmp_path)) == tmp_path / "a.gguf"
    (tmp_path / "b.json").touch()
    assert contract.model(str(tmp_path)) == tmp_path
    for uri in ("s3://bucket/model", "gs://", "gs:///model"):
        with pytest.raises(OptionError, match="gs://"):
            contract.model(uri)


class Blob:
    def __init__(self, name: str):
        self.name = name

    def download_to_filename(self, path: str) -> None:
        Path(path).write_text(self.name)


def _storage(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    """google-cloud-storage as far as it is used."""
    client = types.SimpleNamespace(
        list_blobs=lambda bucket, prefix: [Blob(name) for name in names if name.startswith(prefix)]
    )
    module: Any = types.ModuleType("google.cloud.storage")
    module.Client = lambda: client
    cloud: Any = types.ModuleType("google.cloud")
    cloud.storage = module
    google: Any = types.ModuleType("google")
    google.cloud = cloud
    for name, each in (("google", google), ("google.cloud", cloud), ("google.cloud.storage", module)):
        monkeypatch.setitem(sys.modules, name, each)


def test_cloud_storage_is_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends: list[Any] = []
    monkeypatch.setattr(contract.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(contract.atexit, "register", lambda work, *of, **named: ends.append((work, of, named)))
    _storage(monkeypatch, ["m/config.json", "m/sub/part.bin", "m/", "other/x"])
    place = contract.model("gs://bucket/m/")
    assert sorted(str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()) == [
        "config.json",
        str(Path("sub/part.bin")),
    ]
    _storage(monkeypatch, ["m/../../escaped"])
    with pytest.raises(DownloadError):
        contract.model("gs://bucket/m")
    assert not (tmp_path / "escaped").exists()
    with pytest.raises(DownloadError, match="no files"):
        contract.model("gs://bucket/empty")
    for work, of, named in ends:
        work(*of, **named)
    assert not list(tmp_path.iterdir())


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(contract.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    with pytest.raises(MissingExtra, match="google-cloud-storage"):
        contract.model("gs://bucket/m")
