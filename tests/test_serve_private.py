"""What only those may ask for who sit at the machine itself: files by their paths, models that go for everybody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import Live, scripted, serving

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")

from geode.errors import OptionError  # noqa: E402
from geode.serve import keys  # noqa: E402
from geode.serve.settings import Settings, Source  # noqa: E402

KEY = {"x-api-key": "secret-of-alice"}
ALICE = (keys.key("alice", KEY["x-api-key"]),)
A = Source("a", "a")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some adapters, one of them a link to what lies elsewhere."""
    for name in ("mine/one", "mine-too/one", "theirs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mine/link").symlink_to(tmp_path / "theirs", target_is_directory=True)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "private"),
    [
        ({}, True),
        ({"host": "::1", "hosts": ("localhost",)}, True),
        ({"host": "0.0.0.0"}, False),
        ({"keys": ALICE}, False),
        ({"hosts": ("geode.example",)}, False),
        ({"hosts": ("*",)}, False),
        ({"cors": ("https://app.example",)}, False),
    ],
    ids=str,
)
def test_who_is_alone_with_a_server(folder: Path, options: dict[str, Any], private: bool) -> None:
    settings = Settings(models=(A,), **options)
    assert settings.private == private
    assert settings.may_load(str(folder / "theirs")) == private


def test_only_what_is_below_the_directories(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dirs = (folder / "mine", folder / "mine-too")
    settings = Settings(models=(A,), keys=ALICE, adapter_dirs=dirs)
    for good in ("mine/one", "mine/../mine-too/one"):
        assert settings.may_load(str(folder / good)), good
    for bad in ("theirs", "mine/../theirs", "mine/link", "mine/none", "mine-to", "min", "", "mine/\0"):
        assert not settings.may_load(str(folder / bad) if bad else ""), bad
    monkeypatch.chdir(folder / "mine")
    assert settings.may_load("one")
    for bad in ("hf:owner/one", "assistant", "../theirs", "~"):
        assert not settings.may_load(bad), bad
    with pytest.raises(OptionError, match="no directory"):
        Settings(models=(A,), adapter_dirs=(folder / "none",))


@pytest.fixture
def locked(folder: Path) -> Iterator[Live]:
    with serving({"fake": scripted(["Hello."])}, keys=ALICE, adapter_dirs=(folder / "mine",)) as found:
        yield found


def load(live: Live, path: Path) -> Any:
    body = {"lora_name": "x", "lora_path": str(path)}
    return httpx.post(f"{live.url}/v1/load_lora_adapter", json=body, headers=KEY)


def test_a_client_names_no_file_of_the_servers(locked: Live, folder: Path) -> None:
    for path in (folder / "theirs", folder / "none", Path("/etc/passwd")):
        refused = load(locked, path)
        assert refused.status_code == 403 and refused.json()["error"]["type"] == "permission_error"
        assert "--adapter-dir" in refused.json()["error"]["message"], "the same, whether or not it is there"
    taken = load(locked, folder / "mine/one")  # as far as the engine, which has none
    assert taken.status_code == 400 and "native" in taken.json()["error"]["message"]
    gone = httpx.post(f"{locked.url}/v1/unload_lora_adapter", json={"lora_name": "x"}, headers=KEY)
    assert gone.status_code == 404


def test_without_directories_nothing_comes_or_goes(folder: Path) -> None:
    with serving({"fake": scripted(["Hello."])}, keys=ALICE) as live:
        gone = httpx.post(f"{live.url}/v1/unload_lora_adapter", json={"lora_name": "x"}, headers=KEY)
        assert load(live, folder / "mine/one").status_code == gone.status_code == 403


def test_one_client_sends_no_model_away(locked: Live) -> None:
    def chat(keep: Any) -> Any:
        body = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "stream": False, "keep_alive": keep}
        return httpx.post(f"{locked.url}/api/chat", json=body, headers=KEY)

    (slot,) = locked.models.slots.every
    for keep in (0, "0s"):
        refused = chat(keep)
        assert refused.status_code == 403 and "keep_alive" in refused.json()["error"]
    for owner, keep, wanted in ((None, "1ms", None), (60.0, "5m", 300.0), (60.0, 1, 60.0), (60.0, -1, None)):
        locked.server.settings.__dict__["idle"] = owner
        assert chat(keep).status_code == 200
        assert slot.idle == wanted
