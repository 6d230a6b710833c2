"""The server beside llama.cpp's: same file, same requests, alternately in one run.

    python benchmarks/serve.py model.gguf --peer path/to/llama-server            # 1, 4, 8 and 16 clients
    python benchmarks/serve.py model.gguf --peer … --clients 8 --rounds 5
    python benchmarks/serve.py model.gguf --only prefix lookup                   # against itself

Each client sends a prompt, reads the stream to its end, waits a time that is exponentially distributed (so that
arrivals are Poisson's) and sends the next. Prompts are passages of this house's own documents with a question behind
them, 30 to 2,600 tokens; answers are greedy and all of one length (the end token is forbidden to both). Both servers
run all the while, on the same threads; the one that is not asked sleeps. A round asks one and then the other; ratios
are taken round by round and the median counts.

    tokens/s   of all clients together
    first      milliseconds to the first token, 95th percentile; next: between tokens, likewise
    prefix     time to the first token of 2,000 tokens seen before, as a share of the first time
    lookup     tokens/s with drafts from the prompt over those without: a text to be copied, other texts (greedy, so
               that a small model says much twice), and the same drawn at temperature 1

Build the peer for this CPU: llama.cpp with GGML_NATIVE, target llama-server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parents[1]
TOKENS = 64  # of each answer
THINK = 0.1  # seconds that a client waits on average
SPEED_GOAL, PREFIX_GOAL, COPY_GOAL, OTHER_GOAL = 2.0, 0.1, 1.5, 0.95


@dataclass
class Answer:
    """When a request was sent, and when each of its tokens came; seconds."""

    sent: float
    came: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def first(self) -> float:
        return self.came[0] - self.sent

    @property
    def between(self) -> list[float]:
        return [b - a for a, b in zip(self.came, self.came[1:], strict=False)]


class Server:
    """A contestant, running."""

    def __init__(self, name: str, command: Sequence[str], port: int):
        self.name, self.port = name, port
        self.said = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would stop it when it is full  # noqa: SIM115
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self.said)

    def ready(self, seconds: float = 120) -> None:
        for _ in range(int(seconds * 10)):
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended: {self.log()[-2000:]}")
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1),
            ):
                return
            time.sleep(0.1)
        raise SystemExit(f"{self.name} was not ready in {seconds:.0f} s")

    async def ask(self, prompt: str, tokens: int, bias: dict[str, float], temperature: float = 0) -> Answer:
        """One request over a bare socket: a client library would take the CPU that is measured."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": temperature, "seed": 1, "logit_bias": bias}
        more = {"model": "default", "stream": True, "stream_options": {"include_usage": True}}
        data = json.dumps(body | more).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        answer = Answer(time.perf_counter())
        writer.write(head.encode() + data)
        status = await reader.readline()
        if b" 200 " not in status:
            raise SystemExit(f"{self.name}: {status!r} {(await reader.read(2000))!r}")
        async for line in reader:
            if line.startswith(b"data: {"):
                self._read(answer, line)
        writer.close()
        return answer

    def _read(self, answer: Answer, line: bytes) -> None:
        now = time.perf_counter()
        if b'"usage":{' in line.replace(b" ", b""):
            answer.tokens = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens") or answer.tokens
        if b'"finish_reason":null' in line.replace(b" ", b"") or b'"text":' in line:
            answer.came.append(now)

    def log(self) -> str:
        self.said.seek(0)
        return self.said.read()

    def stop(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.process.kill()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def geode(args: argparse.Namespace, name: str = "geode", *more: str) -> Server:
    port = free_port()
    words = ["serve", f"default={args.model}", "--port", str(port), "--threads", str(args.threads), *more]
    return Server(name, [sys.executable, "-m", "geode", *words], port)


def llama(args: argparse.Namespace) -> Server:
    port, slots = free_port(), max(args.clients)
    words = f"--port {port} -t {args.threads} -tb {args.threads} -np {slots} -c {slots * 4096} -fa on --no-webui"
    return Server("llama.cpp", [args.peer, "-m", args.model, *words.split(), "--alias", "default"], port)


def documents() -> str:
    """Ours, without those that a program writes, whose tables are no reading."""
    files = sorted(set((HOUSE / "docs").glob("*.md")) - {HOUSE / "docs" / name for name in ("api.md", "cli.md")})
    return "\n\n".join(file.read_text("utf-8") for file in files)


def prompts(seed: int) -> Iterator[str]:
    """Passages of our documents and what is asked of them."""
    text = documents()
    questions = ["What is the main point?", "Summarise this in one sentence.", "What should a user do first?", "Why?"]
    chance = random.Random(seed)
    while True:
        length = int(chance.choice([100, 300, 800, 2000, 4000]) * chance.uniform(0.7, 1.3))
        start = chance.randrange(len(text) - length)
        yield f"{text[start : start + length]}\n\nQuestion: {chance.choice(questions)}\nAnswer:"


async def crowd(
    server: Server, clients: int, each: int, bias: dict[str, float], seed: int
) -> tuple[float, list[Answer]]:
    """Seconds and answers of `clients` that ask `each` times."""

    async def client(number: int) -> list[Answer]:
        chance, mine, found = random.Random(seed * 100 + number), prompts(seed * 100 + number), []
        await asyncio.sleep(chance.expovariate(1 / THINK))
        for _ in range(each):
            found.append(await server.ask(next(mine), TOKENS, bias))
            await asyncio.sleep(chance.expovariate(1 / THINK))
        return found

    begun = time.perf_counter()
    answers = await asyncio.gather(*(client(i) for i in range(clients)))
    return time.perf_counter() - begun, [answer for some in answers for answer in some]


def p95(values: Sequence[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))] * 1000


def figures(seconds: float, answers: Sequence[Answer]) -> dict[str, float]:
    return {
        "speed": sum(answer.tokens or len(answer.came) for answer in answers) / seconds,
        "first": p95([answer.first for answer in answers]),
        "next": p95([gap for answer in answers for gap in answer.between]),
    }


def against_peer(args: argparse.Namespace, bias: dict[str, float]) -> None:
    pair = [geode(args), llama(args)]
    try:
        for server in pair:
            server.ready()
            asyncio.run(crowd(server, 2, 1, bias, 999))
        print(f"{'clients':>7}{'geode':>10}{'peer':>10}{'ratio':>8}   {'first, p95 ms':>18}{'next, p95 ms':>18}")
        for clients in args.clients:
            rounds = [
                [figures(*asyncio.run(crowd(server, clients, args.each, bias, seed))) for server in pair]
                for seed in range(args.rounds)
            ]
            print(line(clients, rounds), flush=True)
    finally:
        for server in pair:
            server.stop()


def line(clients: int, rounds: Sequence[Sequence[dict[str, float]]]) -> str:
    middle = [{key: statistics.median(one[side][key] for one in rounds) for key in rounds[0][0]} for side in (0, 1)]
    ratio = statistics.median(one[0]["speed"] / one[1]["speed"] for one in rounds)
    mark = f" (goal {SPEED_GOAL:g})" if clients == 8 else ""
    text = f"{clients:>7}{middle[0]['speed']:>10.1f}{middle[1]['speed']:>10.1f}{ratio:>8.2f}   "
    for key in ("first", "next"):
        text += f"{middle[0][key]:>8.0f} /{middle[1][key]:>8.0f}"
    return text + mark


def prefix(args: argparse.Namespace, bias: dict[str, float]) -> None:
    """2,000 tokens once, and again with another end."""
    server = geode(args)
    try:
        server.ready()
        asyncio.run(crowd(server, 1, 1, bias, 999))
        shares = []
        for seed in range(args.rounds):
            text = passage(seed, 8000)
            cold, warm = (asyncio.run(server.ask(f"{text}\n\nQuestion {i}: Why?", 2, bias)).first for i in (1, 2))
            shares.append(warm / cold)
        share = statistics.median(shares)
        print(f"a prefix of 2,000 tokens seen before: {share:.3f} of the time to the first token (goal {PREFIX_GOAL})")
    finally:
        server.stop()


def passage(seed: int, length: int) -> str:
    text = documents()
    start = random.Random(seed).randrange(len(text) - length)
    return text[start : start + length]


def lookup(args: argparse.Namespace, bias: dict[str, float]) -> None:
    """With drafts from the prompt and without."""
    pair = [geode(args, "drafting"), geode(args, "plain", "--no-speculate")]
    try:
        for server in pair:
            server.ready()
            asyncio.run(crowd(server, 1, 1, bias, 999))
        for what, goal in (("copied", COPY_GOAL), ("other", OTHER_GOAL), ("drawn", OTHER_GOAL)):
            ratios = [one_lookup(pair, what, seed, bias) for seed in range(3 * args.rounds)]
            print(f"drafts from the prompt, {what} text: {statistics.median(ratios):.2f} × (goal {goal})", flush=True)
    finally:
        for server in pair:
            server.stop()


def one_lookup(pair: Sequence[Server], what: str, seed: int, bias: dict[str, float]) -> float:
    text = passage(seed, 700)
    prompt = f"{text}\n\n{text}\n\n{text[:80]}" if what == "copied" else next(prompts(seed))
    speeds = []
    for server in pair:
        answer = asyncio.run(server.ask(prompt, 96, bias, 1.0 if what == "drawn" else 0))
        speeds.append(((answer.tokens or len(answer.came)) - 1) / (answer.came[-1] - answer.came[0]))
    return speeds[0] / speeds[1]


def forbidden(model: str) -> dict[str, float]:
    """The end tokens, so that all answers are of one length."""
    from geode import checkpoint

    found = checkpoint.open(Path(model))
    ends: set[int] = set(found.ends) | set(found.tokenizer.ends if found.tokenizer else ())
    return {str(token): -100.0 for token in ends}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--peer", help="llama-server, built for this CPU")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--each", type=int, default=4, help="requests of each client in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=("peer", "prefix", "lookup"), default=["peer", "prefix", "lookup"])
    args = parser.parse_args()
    bias: dict[str, Any] = forbidden(args.model)
    if "peer" in args.only and args.peer:
        against_peer(args, bias)
    if "prefix" in args.only:
        prefix(args, bias)
    if "lookup" in args.only:
        lookup(args, bias)


if __name__ == "__main__":
    main()
