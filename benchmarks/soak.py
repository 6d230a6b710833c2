"""Twenty minutes of everything at once, and then: is all given back?

    python benchmarks/soak.py model.gguf [--minutes 20] [--adapter src/geode/assistant]

A server of its own, clients in processes of their own. They ask in mixed lengths and kinds (streams, whole answers,
several at a time, constrained, embeddings, scores), go away in the middle, send nonsense, load and unload adapters
under the feet of others; now and then a whole client process is killed with SIGKILL. Any answer that is neither good
nor the error that was asked for is a failure, and so is a traceback in the server's log. At the end, when the server is
idle, its engine's own books balance, no page is held, and the memory that the process has for itself is where it was
after five minutes (half of a shorter run), but for 5 %. Keys and values have so little room that all of it is in use by
then, and that texts are put off for others (`preemptions`).
Exit code 1 and a list where anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))
from serve import Server, free_port, passage  # noqa: E402

ERRORS_ASKED = {"nonsense": 400, "unknown": 404, "too_long": 400}


class Client:
    """Asks one thing after the other, and notes what became of it. One process has some of these."""

    def __init__(self, port: int, seed: int, adapters: list[str], until: float, notes: Path):
        self.port, self.chance, self.until, self.adapters = port, random.Random(seed), until, adapters
        self.notes = notes

    async def live(self) -> None:
        while time.time() < self.until:
            kind = self.chance.choices(*zip(*KINDS.items(), strict=True))[0]
            try:
                await asyncio.wait_for(getattr(self, kind)(), 180)
                self._note(kind)
            except Exception as error:
                self._note(f"{kind}: {type(error).__name__} {str(error)[:300]!r}")
            await asyncio.sleep(self.chance.expovariate(4))

    def _note(self, text: str) -> None:
        with self.notes.open("a") as file:  # at once: this process may be killed
            file.write(text + "\n")

    # Kinds of requests

    async def streamed(self) -> None:
        status, lines = await self._stream(self._chat() | {"stream": True})
        assert status == 200 and lines[-1] == "[DONE]", (status, lines[-1:])

    async def left(self) -> None:
        """Goes away in the middle of an answer."""
        await self._stream(self._chat(tokens=400) | {"stream": True}, leave=self.chance.randrange(1, 20))

    async def whole(self) -> None:
        status, answer = await self._ask("/v1/chat/completions", self._chat() | {"n": self.chance.choice([1, 1, 3])})
        assert status == 200 and answer["choices"], answer

    async def constrained(self) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99}}, "required": ["a"]}
        body = self._chat(tokens=60) | {
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        }
        status, answer = await self._ask("/v1/chat/completions", body)
        assert status == 200, answer
        if answer["choices"][0]["finish_reason"] == "stop":
            assert isinstance(json.loads(answer["choices"][0]["message"]["content"])["a"], int)

    async def embedded(self) -> None:
        status, answer = await self._ask("/v1/embeddings", {"model": "default", "input": [self._text(), "short"]})
        assert status == 200 and len(answer["data"]) == 2, answer

    async def scored(self) -> None:
        body = {"model": "default", "prompt": self._text(), "max_tokens": 0, "echo": True, "logprobs": 1}
        status, answer = await self._ask("/v1/completions", body)
        assert status == 200, answer

    async def adapted(self) -> None:
        """An adapter comes, answers, and goes while others use it."""
        if not self.adapters:
            return
        name = f"lora-{self.chance.randrange(3)}"
        status, said = await self._ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": self.adapters[0]})
        assert status == 200 or "is taken" in said["error"]["message"], said  # it may be there already
        status, answer = await self._ask("/v1/chat/completions", self._chat(tokens=16) | {"model": name})
        assert status in (200, 404), answer  # it may be gone already
        if self.chance.random() < 0.5:
            status, _ = await self._ask("/v1/unload_lora_adapter", {"lora_name": name})
            assert status in (200, 404), status

    async def nonsense(self) -> None:
        bad: list[Any] = [{"messages": 3}, {"cheese": 1}, {"messages": [], "model": "default"}, [], "x"]
        await self._refused("/v1/chat/completions", self.chance.choice(bad), 400)

    async def unknown(self) -> None:
        await self._refused("/v1/chat/completions", self._chat() | {"model": "nobody"}, 404)

    async def too_long(self) -> None:
        await self._refused("/v1/completions", {"model": "default", "prompt": [5] * 200_000, "max_tokens": 4}, 400)

    # Wires

    def _chat(self, tokens: int | None = None) -> dict[str, Any]:
        return {
            "model": "default",
            "messages": [{"role": "user", "content": self._text()}],
            "max_tokens": tokens or self.chance.choice([1, 8, 40, 120]),
            "temperature": self.chance.choice([0, 0.8]),
        }

    def _text(self) -> str:
        """Some passages come again and again: their pages are shared."""
        return passage(self.chance.randrange(12), self.chance.choice([40, 400, 800, 1500]))

    async def _refused(self, path: str, body: Any, wanted: int) -> None:
        status, answer = await self._ask(path, body)
        assert status in (wanted, 422) and "error" in answer, (status, answer)

    async def _open(self, path: str, body: Any) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        status = int((await reader.readline()).split()[1])
        while (await reader.readline()).strip():
            pass
        return status, reader, writer

    async def _ask(self, path: str, body: Any) -> tuple[int, Any]:
        """Asks; asks later again where the server is full."""
        while True:
            status, reader, writer = await self._open(path, body)
            text = (await reader.read()).decode()
            writer.close()
            if not await self._waited(status):
                break
        with contextlib.suppress(ValueError):
            return status, json.loads(text)
        start, end = text.find("{"), text.rfind("}")  # in chunks
        return status, json.loads(text[start : end + 1]) if start >= 0 else text

    async def _waited(self, status: int) -> bool:
        """Whether the server was full; then some time has passed."""
        if status == 429:
            self._note("told to wait")
            await asyncio.sleep(1)
        return status == 429

    async def _stream(self, body: Any, leave: int | None = None) -> tuple[int, list[str]]:
        while True:
            status, reader, writer = await self._open("/v1/chat/completions", body)
            if not await self._waited(status):
                break
            writer.close()
        lines: list[str] = []
        async for line in reader:
            if line.startswith(b"data: "):
                lines.append(line[6:].decode().strip())
            if leave is not None and len(lines) >= leave:
                break
        writer.transport.abort() if leave is not None else writer.close()
        return status, lines


KINDS = {"streamed": 8, "whole": 4, "left": 4, "constrained": 2, "embedded": 2, "scored": 1, "adapted": 1}
KINDS |= {"nonsense": 1, "unknown": 1, "too_long": 1}


async def clients(args: argparse.Namespace) -> None:
    """Some clients in this process."""
    adapters = [args.adapter] if args.adapter else []
    some = [Client(args.port, args.seed * 100 + i, adapters, args.until, args.notes) for i in range(args.each)]
    await asyncio.gather(*(client.live() for client in some))


def start(args: argparse.Namespace, port: int, seed: int, until: float) -> subprocess.Popen[bytes]:
    words = f"{args.model} --port {port} --seed {seed} --until {until} --each {args.each}".split()
    more = ["--notes", str(args.notes)] + (["--adapter", args.adapter] if args.adapter else [])
    return subprocess.Popen([sys.executable, __file__, *words, *more])


def status(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/status?check=true", timeout=30) as answer:
        return json.loads(answer.read())


def unload(port: int, name: str) -> None:
    body = json.dumps({"lora_name": name}).encode()
    where = f"http://127.0.0.1:{port}/v1/unload_lora_adapter"
    with contextlib.suppress(urllib.error.HTTPError):  # it is not there
        urllib.request.urlopen(urllib.request.Request(where, body, {"Content-Type": "application/json"}), timeout=30)


def memory(pid: int) -> float:
    """MB that a process has for itself: not pages of files, of which it keeps what the system has room for."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--each", type=int, default=4, help="clients of a process")
    parser.add_argument("--adapter", type=os.path.abspath)
    parser.add_argument("--kv-memory", default="56M")
    parser.add_argument("--waiting", default="8")
    for name, kind in (("--port", int), ("--seed", int), ("--until", float), ("--notes", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.port:
        asyncio.run(clients(args))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        args.notes = Path(folder) / "notes"
        args.notes.touch()
        return soak(args)


def soak(args: argparse.Namespace) -> int:
    port = free_port()
    words = ["serve", f"default={args.model}", "--port", str(port), "--kv-memory", args.kv_memory]
    words += ["--waiting", args.waiting]
    server = Server("geode", [sys.executable, "-m", "geode", *words], port)
    try:
        server.ready()
        begun, ends = time.time(), time.time() + 60 * args.minutes
        running = [start(args, port, seed, ends) for seed in range(args.processes)]
        grown: list[float] = []  # memory, as time goes on
        seed = args.processes
        while time.time() < ends:
            time.sleep(min(15, max(0.1, ends - time.time())))
            if time.time() - begun > min(300, 30 * args.minutes):  # by then malloc has grown to its size
                grown.append(memory(server.process.pid))
            victim = random.Random(seed).choice(running)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            running.remove(victim)
            running.append(start(args, port, seed, ends))
            seed += 1
        for process in running:
            process.wait(300)
        notes = [*args.notes.read_text().splitlines(), *["a client process was killed"] * (seed - args.processes)]
        return report(server, port, notes, grown)
    finally:
        server.stop()


def report(server: Server, port: int, notes: list[str], grown: list[float]) -> int:
    """What was done, and whether all was given back; 1 where not."""
    for number in range(3):
        unload(port, f"lora-{number}")
    for _ in range(100):
        found = status(port)
        stats = [model["stats"] for model in found["models"] if model.get("stats")]
        if all(one["running"] == one["waiting"] == 0 for one in stats):
            break
        time.sleep(0.3)
    late = memory(server.process.pid)
    wrong = [note for note in notes if ":" in note]
    wrong += [f"pages are still held: {one}" for one in stats if any(one["pages_used"])]
    wrong += [f"the engine's books: {model['check']}" for model in found["models"] if model.get("check", "ok") != "ok"]
    wrong += [f"in the log: {line}" for line in server.log().splitlines() if "Traceback" in line or "rror:" in line]
    if late > 1.05 * grown[0]:
        wrong.append(f"memory went from {grown[0]:.0f} to {late:.0f} MB")
    for what, count in sorted(collections.Counter(note for note in notes if ":" not in note).items()):
        print(f"{count:>7}  {what}")
    print(
        "MB after five minutes, or half of the time, and from then on:",
        *(round(size) for size in grown),
        "and idle:",
        round(late),
    )
    print(json.dumps(stats))
    for what, count in collections.Counter(wrong).most_common(40):
        print(f"WRONG, {count} x: {what}")
    print(f"{len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
