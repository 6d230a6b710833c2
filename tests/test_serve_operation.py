"""A server in operation: settings, keys, limits, sizes, models that come and go, logs, metrics, traces, the end."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live import Gated, Live, scripted, serving

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")

from geode.errors import CapacityError, FormatError, ModelNotFound, OptionError, TooMany  # noqa: E402
from geode.lm import Fake  # noqa: E402
from geode.serve import keys, loading, logs  # noqa: E402
from geode.serve.limits import Meter  # noqa: E402
from geode.serve.models import Models  # noqa: E402
from geode.serve.record import Record  # noqa: E402
from geode.serve.run import Server  # noqa: E402
from geode.serve.settings import Settings, Source, source  # noqa: E402

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def chat(live: Live, headers: dict[str, str] | None = None, **more: Any) -> Any:
    return httpx.post(f"{live.url}/v1/chat/completions", json=CHAT | more, headers=headers or {}, timeout=30)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving({"fake": scripted(["Hello."])}, body=4096) as found:
        yield found


# Settings


A = Source("a", "a")


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": ()},
        {"models": (A, A)},
        {"models": (Source("a b", "x"),)},
        {"models": (Source("../x", "x"),)},
        {"models": (Source("a", "x", aliases=("b",)), Source("b", "y"))},
        {"port": 70_000},
        {"port": "80"},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"memory": 5},
        {"memory": 1 << 20, "kv_memory": 1 << 21},
        {"host": "http://x"},
        {"hosts": ("https://x",)},
        {"cors": ("example.org",)},
        {"cors": ("https://example.org/path",)},
        {"tls_cert": Path("x")},
        {"tls_cert": Path("none"), "tls_key": Path("none")},
        {"cache_dir": Path(__file__)},
        {"cache_dir": Path(__file__) / "below"},
        {"log_format": "xml"},
        {"loading": {"adapters": 1}},
        {"keys": (keys.key("a", "12345678"), keys.key("b", "12345678"))},
    ],
    ids=str,
)
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Settings(**({"models": (A,)} | wrong))


def test_only_this_machine_by_default() -> None:
    settings = Settings(models=(A,))
    assert settings.host == "127.0.0.1" and settings.loopback and not settings.cors
    assert not Settings(models=(A,), host="0.0.0.0").loopback
    assert Settings(models=(A,), host="::1").url == "http://[::1]:8080"


def test_models_on_a_command_line(tmp_path: Path) -> None:
    (tmp_path / "my model.gguf").touch()
    assert source(str(tmp_path / "my model.gguf")).name == "my-model"
    assert source("mine=some.gguf") == Source("mine", "some.gguf")
    assert source("gemma3") == Source("gemma3:270m", "gemma3", ("gemma3",))
    assert source("hf:owner/repo").name == "owner/repo"
    assert source("assistant").name == "assistant"


def test_a_port_in_use_is_told_before_anything_is_loaded(live: Live) -> None:
    def load(*_: Any) -> Any:
        raise AssertionError("loaded")

    settings = Settings(models=(A,), port=live.server.port)
    with pytest.raises(OptionError, match="--port"):
        Server(settings, Models(settings, load))


# Keys


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    digest = hashlib.sha256(b"secret-of-bob").hexdigest()
    file.write_text(f'[alice]\nkey = "secret-of-alice"\nconcurrent = 2\n[bob]\nsha256 = "{digest}"\npriority = 5\n')
    found = keys.read(file, {"GEODE_API_KEYS": "from-the-environment, another-one"})
    assert [key.name for key in found] == ["GEODE_API_KEYS-1", "GEODE_API_KEYS-2", "alice", "bob"]
    assert keys.find(found, "secret-of-bob") is found[3] and found[3].priority == 5
    assert keys.find(found, "secret-of-alice") is found[2] and found[2].limits.concurrent == 2
    assert keys.find(found, "from-the-environment") is found[0]
    for wrong in ("", "secret", "secret-of-alice ", digest):
        assert keys.find(found, wrong) is None
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[a]\n",
        '[a]\nkey="12345678"\nsha256="x"',
        '[a]\nkey="short"',
        '[a]\nkey="with space"',
        "[a\nkey=SECRETS!",
        '[a]\nkey="SECRETS!"\nother=1',
        '[a]\nsha256="SECRETS!"',
        '[a]\nkey="SECRETS!"\nconcurrent=0',
        '[a]\nkey="SECRETS!"\npriority="high"',
        'a = "SECRETS!"',
    ],
)
def test_bad_keys_are_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(OptionError) as caught:
        keys.read(file, {})
    assert "SECRETS!" not in str(caught.value)


@pytest.fixture(scope="module")
def locked() -> Iterator[Live]:
    both = (keys.key("alice", "secret-of-alice"), keys.key("bob", "secret-of-bob", keys.Limits(requests_per_minute=2)))
    with serving({"fake": scripted(["Hello."])}, keys=both) as found:
        yield found


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Bearer secret-of-alice"}, {"x-api-key": "secret-of-alice"}, {"api-key": "secret-of-alice"}],
    ids=["bearer", "x-api-key", "api-key"],
)
def test_whoever_has_a_key_is_served(locked: Live, headers: dict[str, str]) -> None:
    assert chat(locked, headers).status_code == 200


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions", "/api/chat", "/v1/models", "/metrics"])
def test_whoever_has_none_is_refused_in_the_apis_own_shape(locked: Live, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic c2VjcmV0"}, {"x-api-key": "é"}):
        sent = {name: value.encode() for name, value in headers.items()}
        found = httpx.request("GET" if "chat" not in path else "POST", locked.url + path, headers=sent)
        assert found.status_code == 401 and "www-authenticate" in found.headers
        error = found.json()["error"]
        assert isinstance(error, str) if path.startswith("/api/") else error["type"] == "authentication_error"


def test_health_needs_no_key(locked: Live) -> None:
    for path in ("/health", "/ready", "/"):
        assert httpx.get(locked.url + path).status_code == 200


def test_a_keys_own_limit(locked: Live) -> None:
    bob = {"authorization": "Bearer secret-of-bob"}
    assert [chat(locked, bob).status_code for _ in range(3)] == [200, 200, 429]
    last = chat(locked, bob)
    error, wait = last.json()["error"], int(last.headers["retry-after"])
    assert wait >= 1 and error["type"] == "rate_limit_error" and f"Try again in {wait} s." in error["message"]
    assert httpx.get(f"{locked.url}/v1/models", headers=bob).status_code == 200  # looking costs nothing
    assert chat(locked, {"x-api-key": "secret-of-alice"}).status_code == 200


# Limits


def test_buckets_fill_again() -> None:
    now = [0.0]
    meter, limits = Meter(lambda: now[0]), keys.Limits(requests_per_minute=60, tokens_per_minute=600, concurrent=2)
    meter.enter("a", limits)
    meter.enter("a", limits)
    with pytest.raises(TooMany, match="2 at a time"):
        meter.enter("a", limits)
    meter.leave("a", limits, 100)
    meter.leave("a", limits, 1100)  # twice of what there is
    with pytest.raises(TooMany) as caught:
        meter.enter("a", limits)
    assert caught.value.retry_after == pytest.approx(60.1)
    assert "Try again in 61 s." in str(caught.value)  # whole seconds, as `retry-after` has them, and not too few
    meter.enter("b", limits)  # which is another client
    now[0] = 61
    meter.enter("a", limits)
    meter.leave("a", limits, 0)
    now[0] = 1000
    for _ in range(60):
        meter.enter("a", limits)
        meter.leave("a", limits, 0)
    with pytest.raises(TooMany, match="60 requests"):
        meter.enter("a", limits)
    assert meter.running("a") == 0


def test_tokens_are_counted_over_http() -> None:
    with serving({"fake": scripted(["Hello."])}, limits=keys.Limits(tokens_per_minute=10)) as live:
        assert [chat(live).status_code for _ in range(2)] == [200, 429]


def test_too_many_at_a_time() -> None:
    gated = Gated()
    with serving({"gated": gated}, limits=keys.Limits(concurrent=1)) as live, ThreadPoolExecutor(1) as pool:
        first = pool.submit(chat, live, max_tokens=5)
        while live.server.gate.running == 0:
            pass
        refused = chat(live, max_tokens=5)
        while refused.status_code == 200:  # it came before the other
            refused = chat(live, max_tokens=5)
        gated.gate.set()
        assert refused.status_code == 429 and "retry-after" in refused.headers
        assert first.result().status_code == 200


def test_a_full_queue_is_told() -> None:
    """One runs and cannot go on, one waits; whoever else comes is answered at once."""
    gated = Gated()
    with serving({"gated": gated}, waiting=1, running=1) as live, ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(chat, live, max_tokens=3) for _ in range(6)]
        first = [each.result() for _, each in zip(range(4), as_completed(asked), strict=False)]
        gated.gate.set()
        assert {each.status_code for each in first} == {429}
        assert all(int(each.headers["retry-after"]) >= 1 for each in first)
        assert {each.result().status_code for each in asked} == {200, 429}


# Sizes, hosts, origins


def test_large_bodies(live: Live) -> None:
    found = chat(live, messages=[{"role": "user", "content": "x" * 5000}])
    assert found.status_code == 413 and "4096" in found.json()["error"]["message"]

    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    chunked = httpx.post(f"{live.url}/v1/messages", content=parts())
    assert chunked.status_code == 413 and chunked.json()["error"]["type"] == "request_too_large"


def test_slow_bodies_and_headers() -> None:
    with serving({"fake": scripted(["Hello."])}, patience=0.2) as live:
        address = ("127.0.0.1", live.server.port)
        with socket.create_connection(address) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{")
            assert b" 408 " in slow.recv(4096)
        with socket.create_connection(address) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nhost: loc")
            assert slow.recv(4096) == b""
        with socket.create_connection(address) as endless:
            endless.sendall(b"GET /health HTTP/1.1\r\n")
            said = b""
            try:
                for _ in range(100):
                    endless.sendall(b"a: " + b"x" * 2000 + b"\r\n")
                said = endless.recv(100)
            except OSError:
                pass  # it is closed while we write
            assert said in (b"",) or b" 431 " in said
        assert chat(live).status_code == 200


def test_only_its_own_name_is_answered_to(live: Live) -> None:
    port = live.server.port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil"):
        assert httpx.get(f"{live.url}/health", headers={"host": host}).status_code == 421, host
    for host in (f"localhost:{port}", "127.0.0.1", f"[::1]:{port}", "LOCALHOST", "geode.localhost"):
        assert httpx.get(f"{live.url}/health", headers={"host": host}).status_code == 200, host
    with serving({"fake": scripted(["Hello."])}, hosts=("geode.example",)) as named:
        assert httpx.get(f"{named.url}/health", headers={"host": "geode.example:99"}).status_code == 200


def test_pages_of_other_origins_may_not_ask(live: Live) -> None:
    for origin in ("https://evil.example", "null", f"https://127.0.0.1:{live.server.port + 1}"):
        assert chat(live, {"origin": origin}).status_code == 403, origin
    same = chat(live, {"origin": live.url})
    assert same.status_code == 200 and "access-control-allow-origin" not in same.headers


def test_cors_where_it_is_asked_for() -> None:
    with serving(
        {"fake": scripted(["Hello."])}, cors=("https://app.example",), keys=(keys.key("a", "12345678"),)
    ) as live:
        asks = {"origin": "https://app.example", "access-control-request-method": "POST"}
        before = httpx.options(f"{live.url}/v1/chat/completions", headers=asks)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == "https://app.example"
        found = chat(live, {"origin": "https://app.example", "x-api-key": "12345678"})
        assert found.status_code == 200 and found.headers["access-control-allow-origin"] == "https://app.example"
        assert chat(live, {"origin": "https://app.example"}).headers["access-control-allow-origin"]  # of the 401
        assert chat(live, {"origin": "https://evil.example", "x-api-key": "12345678"}).status_code == 403


def test_request_ids(live: Live) -> None:
    assert chat(live, {"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for wild in ("a b", "x" * 500, "<script>", ""):
        assert chat(live, {"x-request-id": wild}).headers["x-request-id"].startswith("req_")
    assert httpx.get(f"{live.url}/nothing").headers["x-request-id"]


def test_odd_paths(live: Live) -> None:
    for path in (
        "/../etc/passwd",
        "/page/..%2f..%2fetc%2fpasswd",
        "/%00",
        "/page/%0d%0aset-cookie:x",
        "/" + "x" * 3000,
    ):
        with socket.create_connection(("127.0.0.1", live.server.port)) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
            said = raw.makefile("rb").read()
            assert said.split()[1] in (b"400", b"404") and b"set-cookie" not in said.split(b"\r\n\r\n")[0], path


# Models


class World:
    """Models that are not read from anywhere, and a clock of our own."""

    def __init__(self, sizes: dict[str, int], **options: Any):
        self.now = 0.0
        self.sizes = sizes
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.stamps: dict[str, loading.Stamp] = {}
        self.problem: Exception | None = None
        settings = Settings(models=tuple(Source(name, name) for name in sizes), kv_memory=1 << 16, **options)
        self.models = Models(settings, self.load, self.read, lambda: self.now)

    def read(self, source: Source, _: Any) -> loading.Facts:
        if self.problem:
            raise self.problem
        return loading.Facts(self.sizes[source.name], Fake().config, self.stamps.get(source.name, ()), 1)

    def load(self, source: Source, settings: Settings, facts: loading.Facts, kv: int | None) -> loading.Served:
        self.opened.append(source.name)
        local = Fake(["Hello."])
        local.close = lambda: self.closed.append(source.name)  # type: ignore[method-assign]
        return loading.served(source, local, settings, facts, kv)


MIB = 1 << 20


async def use(world: World, name: str) -> None:
    async with world.models.use(name) as served:
        assert served.name == name


def test_models_are_loaded_when_they_are_asked_for() -> None:
    world = World({"a": MIB, "b": MIB})

    async def many() -> None:
        await asyncio.gather(*(use(world, "b") for _ in range(20)))

    asyncio.run(many())
    assert world.opened == ["b"]
    with pytest.raises(ModelNotFound, match="a, b"):
        asyncio.run(use(world, "c"))
    world.models.close()
    assert world.closed == ["b"]


def test_an_answer_that_outlives_the_server_harms_nothing() -> None:
    world = World({"a": MIB})
    lease = asyncio.run(world.models.acquire("a"))
    world.models.close()
    assert world.closed == ["a"]
    lease.release()
    lease.release()
    assert world.closed == ["a"]


def test_the_longest_unused_makes_room() -> None:
    world = World({"a": 4 * MIB, "b": 4 * MIB, "c": 4 * MIB}, memory=10 * MIB)

    async def work() -> None:
        for name in ("a", "b", "a"):
            world.now += 1
            await use(world, name)
        await use(world, "c")
        assert (world.opened, world.closed) == (["a", "b", "c"], ["b"])
        async with world.models.use("a"), world.models.use("c"):
            with pytest.raises(CapacityError) as caught:
                await use(world, "b")
            assert caught.value.retry_after > 0  # type: ignore[attr-defined]
        await use(world, "b")

    asyncio.run(work())
    world.models.close()
    assert sorted(world.closed) == sorted(world.opened)


def test_one_that_can_never_fit_is_told() -> None:
    world = World({"a": 40 * MIB}, memory=10 * MIB)
    with pytest.raises(CapacityError, match="40 MiB"):
        asyncio.run(use(world, "a"))
    world.models.close()


def test_idle_models_are_let_go_of() -> None:
    world = World({"a": MIB}, idle=60.0)

    async def work() -> None:
        async with world.models.use("a"):
            world.now = 100.0
            world.models.sweep()
            assert world.models.loaded()
        world.models.sweep()
        assert world.models.loaded()
        world.now = 161.0
        world.models.sweep()
        assert not world.models.loaded()
        await use(world, "a")

    asyncio.run(work())
    world.models.close()
    assert world.opened == ["a", "a"] and world.closed == ["a", "a"]


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_text("one")
    world = World({"a": MIB})
    world.stamps["a"] = loading.stamp([file])

    async def work() -> None:
        async with world.models.use("a") as old:
            new = tmp_path / "new"
            new.write_text("two")
            os.replace(new, file)
            world.stamps["a"] = loading.stamp([file])
            world.now += 2
            async with world.models.use("a") as served:
                assert served is not old and world.closed == []
            old.engine.check()  # who has it goes on with it
        world.now += 2
        await use(world, "a")
        assert world.opened == ["a", "a"]
        file.write_text("three, and damaged")
        world.problem = FormatError("It is damaged.")
        for _ in range(3):
            world.now += 2
            await use(world, "a")  # what was there before goes on
        assert world.opened == ["a", "a"]

    asyncio.run(work())
    world.models.close()
    assert world.closed == ["a", "a"]


def test_a_model_that_cannot_be_loaded_is_told_and_tried_again() -> None:
    world = World({"a": MIB})
    world.problem = FormatError("It is damaged.")
    with pytest.raises(FormatError, match="damaged"):
        asyncio.run(use(world, "a"))
    world.problem = None
    asyncio.run(use(world, "a"))
    world.models.close()


def test_adapters_come_and_go_one_after_the_other_with_their_models(tmp_path: Path) -> None:
    """One that is loaded while its model is read anew is there when the new one is, and one that went is not."""
    file = tmp_path / "model"
    file.write_text("one")
    world = World({"a": MIB})
    world.stamps["a"] = loading.stamp([file])
    there: list[set[str]] = []  # of each engine, by name
    reading, go_on = threading.Event(), threading.Event()

    class Adapters:
        def __init__(self) -> None:
            self.mine: set[str] = set()
            there.append(self.mine)

        def load(self, name: str, _: Path) -> None:
            self.mine.add(name)

        def unload(self, name: str) -> None:
            self.mine.remove(name)

    def load(source: Source, settings: Settings, facts: loading.Facts, kv: int | None) -> loading.Served:
        served = world.load(replace(source, adapters={}), settings, facts, kv)
        served.engine._adapters = Adapters()  # type: ignore[assignment]
        for name in source.adapters:
            served.engine.adapters.load(name, tmp_path)
        if len(world.opened) == 2:
            reading.set()
            assert go_on.wait(30)
        return served

    world.models._load = load

    async def work() -> None:
        await world.models.load_adapter("first", str(tmp_path))
        file.write_text("another")
        world.stamps["a"] = loading.stamp([file])
        world.now += 2
        again = asyncio.create_task(use(world, "a"))
        await asyncio.to_thread(reading.wait, 30)
        second = asyncio.create_task(world.models.load_adapter("second", str(tmp_path)))
        gone = asyncio.create_task(world.models.unload_adapter("first"))
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(again, second, gone)
        assert there[-1] == {"second"} and world.models.names() == ["a", "second"]
        with pytest.raises(OptionError, match="is taken"):
            await world.models.load_adapter("second", str(tmp_path))
        with pytest.raises(ModelNotFound):
            await world.models.unload_adapter("first")

    asyncio.run(work())
    world.models.close()
    assert len(there) == 2


def test_memory_that_is_short_and_queues_that_are_full_have_their_own_statuses() -> None:
    from geode.serve.problems import problem_of

    for error, status, wait in (
        (TooMany("Too many.", 2.4), 429, "3"),
        (CapacityError("No room now.", 5), 503, "5"),
        (CapacityError("No room ever."), 503, None),
    ):
        found = problem_of(error)
        assert (found.status, found.headers.get("retry-after")) == (status, wait)


def test_a_plan_is_what_is_served(tmp_path: Path) -> None:
    """The keys and values that a plan promises are those that the engine gets."""
    from random_networks import write_gguf

    from geode.serve import plan

    names = [str(write_gguf(tmp_path / f"{i}.gguf", seed=i)) for i in (1, 2)]
    one, two = (tuple(Source(f"m{i}", name) for i, name in enumerate(names[:count])) for count in (1, 2))
    for models, options in (
        (one, {}),
        (one, {"memory": 2 * MIB}),
        (one, {"memory": 1 << 40}),
        (one, {"kv_memory": MIB}),
        (two, {"memory": 3 * MIB}),
    ):
        settings = Settings(models=models, loading={"on": "native", "threads": 1}, **options)
        facts = {source.name: loading.facts(source, settings.loading) for source in models}
        served = Models(settings)

        async def loaded(served: Models = served) -> list[loading.Served]:
            await served.preload()
            return served.loaded()

        found = asyncio.run(loaded())
        planned = {row.name: row.kv_bytes for row in plan.plans(settings, facts)}
        assert {one.name: one.engine.stats().kv_bytes for one in found} == planned, options
        assert all(one.reserved == one.size + planned[one.name] for one in found)
        if settings.memory is not None:
            assert sum(one.reserved for one in found) <= settings.memory
        served.close()


def test_names_of_one_model(live: Live) -> None:
    fake = scripted(["Hello."])
    settings = Settings(models=(Source("a", "a", aliases=("other",)),))
    read = lambda *_: loading.Facts(0, fake.config, (), 1)  # noqa: E731
    models = Models(settings, lambda s, t, f, k: loading.served(s, fake, t, f, k), read)

    async def work() -> None:
        for name in ("a", "other", None):
            async with models.use(name) as served:
                assert served.name == "a"
        assert models.card("other").name == "a" and [card.name for card in models.cards()] == ["a"]

    asyncio.run(work())
    models.close()


# Logs, metrics, traces


def test_a_log_tells_of_requests_and_never_what_was_asked() -> None:
    out, secret = io.StringIO(), "MY-PRIVATE-QUESTION"
    logs.setup("json", False, out)
    try:
        with serving({"fake": scripted(["MY-PRIVATE-ANSWER"])}, keys=(keys.key("alice", "secret-of-alice"),)) as live:
            body = {"messages": [{"role": "user", "content": secret}]}
            headers = {"authorization": "Bearer secret-of-alice", "x-request-id": "id-1"}
            httpx.post(f"{live.url}/v1/chat/completions?key={secret}", json=body, headers=headers)
            httpx.post(f"{live.url}/v1/chat/completions", json={"messages": [{"role": secret}]}, headers=headers)
            httpx.post(f"{live.url}/v1/chat/completions", json=body, headers={"x-api-key": "wrong-key-1"})
    finally:
        logging.getLogger("geode.serve").handlers = []
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    first, second, third = [line for line in lines if line["event"] == "request"]
    assert (first["id"], first["client"], first["status"], first["model"]) == ("id-1", "alice", 200, "fake")
    assert first["completion_tokens"] == len("MY-PRIVATE-ANSWER") + 1 and first["first_token"] <= first["seconds"]
    assert second["status"] == 400 and second["error"] and third["status"] == 401
    assert "PRIVATE" not in out.getvalue() and "secret" not in out.getvalue() and "wrong-key" not in out.getvalue()


def test_prompts_are_logged_where_it_is_asked_for() -> None:
    record = Record("r", path="/x", body=b'{"prompt": "Hi"}', status=200)
    assert "body" not in logs.fields(record) and "Hi" in logs.fields(record, prompts=True)["body"]


def test_a_line_stays_a_line() -> None:
    out, asked = io.StringIO(), "-".join(["MY", "PRIVATE", "QUESTION"])
    logs.setup("text", False, out)
    try:
        logging.getLogger("geode.serve").info("x", extra={"fields": {"path": "/a\nINFO forged"}})
        try:
            int(asked)
        except ValueError:
            logging.getLogger("geode.serve").exception("failed")
    finally:
        logging.getLogger("geode.serve").handlers = []
    assert "forged" in out.getvalue().splitlines()[0] and "PRIVATE" not in out.getvalue()
    assert "ValueError" in out.getvalue()


def test_metrics() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    with serving({"fake": scripted(["Hello."])}) as live:
        chat(live)
        chat(live, stream=True)
        chat(live, model="none")
        text = httpx.get(f"{live.url}/metrics").text
    found = {family.name: family for family in text_string_to_metric_families(text)}
    route = "/v1/chat/completions"
    requests = {
        (s.labels["model"], s.labels["status"]): s.value
        for s in found["geode_requests"].samples
        if s.name.endswith("_total") and s.labels["route"] == route
    }
    assert requests == {("fake", "200"): 2, ("", "404"): 1}

    def value(family: str, name: str) -> float:
        (sample,) = [s for s in found[family].samples if s.name == name and s.labels.get("route", route) == route]
        return float(sample.value)

    assert value("geode_generated_tokens", "geode_generated_tokens_total") == 2 * (len("Hello.") + 1)
    for name in ("geode_time_to_first_token_seconds", "geode_queue_seconds"):
        assert value(name, f"{name}_count") == 2
    assert {"geode_pages_used", "geode_requests_waiting", "geode_steps", "geode_batch_rows"} <= set(found)


def test_traces() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from geode.serve.traces import Traces

    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    record = Record("r", "POST", "/v1/x", route="/v1/x", status=200, model="m", parent=parent)
    record.prompt_tokens, record.first, record.last = 3, record.begun + 1, record.begun + 2
    record.ended, record.body = record.begun + 2, b"PRIVATE"
    traces.ends(record)
    traces.ends(replace(record, route=""))
    traces.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"POST /v1/x", "queue", "prompt", "answer"}
    whole = spans["POST /v1/x"]
    assert whole.attributes["gen_ai.usage.input_tokens"] == 3
    assert whole.context.trace_id == int("a" * 32, 16) and whole.end_time - whole.start_time == pytest.approx(
        2e9, rel=1e-3
    )
    assert "PRIVATE" not in "".join(span.to_json() for span in spans.values())


def test_a_receiver_of_traces_that_is_away_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export import SpanExporter

    from geode.serve import traces

    away, tried, names = threading.Event(), threading.Event(), []

    class Away(SpanExporter):
        def export(self, spans: Any) -> Any:
            names.extend(span.resource.attributes["service.name"] for span in spans)
            tried.set()
            away.wait()

    monkeypatch.setattr(traces, "PARTING", 0.01)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    watch = traces.Traces(Away())
    watch.ends(Record("r", "POST", "/v1/x", route="/v1/x", status=200))
    watch.close()
    assert tried.wait(30) and names == ["mine"]
    away.set()


# The end


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from live import Gated
from geode.serve.models import fixed
from geode.serve.run import Server
from geode.serve.settings import Settings, Source
gated = Gated()
models = fixed({{"gated": gated}}, Settings(models=(Source("gated", "gated"),), port=0))
server = Server(models.settings, models)
print(server.port, flush=True)
import threading
threading.Thread(target=lambda: (sys.stdin.readline(), gated.gate.set()), daemon=True).start()
server.run()
print("over", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to be caught")
def test_what_runs_is_finished_and_nothing_new_begins() -> None:
    program = PROGRAM.format(tests=str(Path(__file__).parent))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as process:  # type: ignore[call-overload]
        port = int(process.stdout.readline())
        url = f"http://127.0.0.1:{port}"
        while not _ready(url):
            assert process.poll() is None, process.stderr.read()
        with httpx.Client(timeout=30) as kept:
            kept.get(f"{url}/health")  # a connection that is open already
            body = CHAT | {"stream": True, "max_tokens": 5}
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as answer:
                lines = answer.iter_lines()
                first = next(lines)
                process.send_signal(signal.SIGTERM)
                while kept.get(f"{url}/ready").status_code != 503:
                    pass
                refused = httpx.post(f"{url}/v1/chat/completions", json=CHAT)  # on a new connection
                assert refused.status_code == 503 and refused.headers["retry-after"]
                process.stdin.write("\n")
                process.stdin.flush()
                rest = list(lines)
        out, problems = process.communicate(timeout=60)
    assert first.startswith("data: ") and "data: [DONE]" in rest
    assert (process.returncode, out.strip()) == (0, "over"), problems


def _ready(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/ready").status_code == 200)
    except httpx.TransportError:
        return False


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to be caught")
def test_sigterm_ends_what_loads() -> None:
    from geode.cli.serve import _ends_at_sigterm

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), _ends_at_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_that_is_closing_refuses(live: Live) -> None:
    live.server.gate.draining = True
    try:
        found = chat(live)
        assert found.status_code == 503 and found.headers["retry-after"]
        assert httpx.get(f"{live.url}/ready").status_code == 503 and httpx.get(f"{live.url}/health").status_code == 200
    finally:
        live.server.gate.draining = False


def test_a_plan_loads_nothing(capsys: pytest.CaptureFixture[str], once: Any) -> None:
    from tiny import save

    from geode.cli.app import main

    pytest.importorskip("torch")
    folder = once("tiny-llama", lambda place: save("llama", place))
    assert main(["serve", f"mine={folder}", "--plan", "--json", "--memory", "64M"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["name"] == "mine" and found["rows"][0]["sequences"] >= 1 and found["weights_bytes"] > 0
    assert main(["serve", str(folder), "--plan"]) == 0
    assert "sequences of" in capsys.readouterr().out


def test_bad_commands_are_refused_before_loading(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from geode.cli.app import main

    for words in (
        ["nowhere.gguf"],
        ["x=gemma3", "--lora", "bad"],
        ["x=gemma3", "--alias", "y=z"],
        ["x=gemma3", "--port", "99999"],
        ["x=gemma3", "--api-keys", str(tmp_path / "none.toml")],
        ["x=gemma3", "--tls-cert", "none.pem"],
        ["x=gemma3", "--memory", "lots"],
    ):
        assert main(["serve", *words]) == 2, words
        assert capsys.readouterr().err
