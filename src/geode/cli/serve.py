"""`geode serve`: models behind the APIs that applications speak, and a page.

What a request means is not known here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from . import screen

if TYPE_CHECKING:
    from ..serve.contract import Contract
    from ..serve.settings import Settings, Source

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
ASSISTANT = "assistant"


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "serve",
        help="answer requests over HTTP, with a page to chat",
        description="Serves models through the APIs of OpenAI, Anthropic and Ollama, and a page at /. Only this "
        "machine can reach it unless --host says otherwise.",
    )
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="*",
        help=f"a name (geode list), hf:owner/repo, a .gguf file, a directory, that of an adapter; NAME=MODEL gives it "
        f"another name (default {ASSISTANT})",
    )
    _add_models(parser.add_argument_group("models"))
    _add_network(parser.add_argument_group("network"))
    _add_work(parser.add_argument_group("limits", "Bytes take K, M, G; seconds take s, m, h."))
    _add_watch(parser.add_argument_group("watching"))


def main(args: argparse.Namespace) -> int:
    with _ends_at_sigterm():
        return _serve(args)


def _serve(args: argparse.Namespace) -> int:
    from ..serve import logs, run

    settings = _settings(args)
    if args.plan:
        return _plan(settings, args)
    run.check(settings)
    logs.setup(settings.log_format, settings.log_prompts)
    server = run.Server(settings)
    if not settings.loopback and not settings.keys:
        screen.note(f"Whoever can reach {settings.host} can use this server: it has no API keys (--api-keys FILE).")
    screen.note(f"Loading {', '.join(source.name for source in settings.models)} for {server.url}")
    server.run()
    return 0


@contextlib.contextmanager
def _ends_at_sigterm() -> Iterator[None]:
    """SIGTERM while models are fetched and loaded is as Ctrl-C: else the first process of a container, which the
    kernel shields, would not hear it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _add_models(group: Any) -> None:
    group.add_argument("--alias", action="append", default=[], metavar="NAME=MODEL", help="a further name of a model")
    group.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="NAME=DIR[@MODEL]",
        help="a LoRA adapter that requests name as a model; many run in one batch",
    )
    group.add_argument(
        "--adapter-dir",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="let requests load adapters that lie below it; whoever sits at this machine may load any without keys",
    )
    group.add_argument("--adapter", metavar="DIR", help="a LoRA adapter that is merged into the one model")
    group.add_argument("--draft", metavar="MODEL", help="a smaller model of the same tokens, to draft with")
    group.add_argument("--no-speculate", action="store_true", help="draft nothing, not even from the prompt")
    group.add_argument("--lazy", action="store_true", help="load other models than the first when they are asked for")
    group.add_argument("--idle", type=_seconds, metavar="TIME", help="unload a model unused so long (default never)")
    group.add_argument("--on", default="auto", metavar="BACKEND", help="native, torch, jax, tensorflow or auto")
    group.add_argument("--dtype", default="auto", help="float32, bfloat16 or auto")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    group.add_argument("--kv-type", metavar="TYPE", help="of keys and values: float32, float16, bfloat16, q8_0")
    group.add_argument("--quantize", metavar="TYPE", help="pack float weights while they load: q8_0, q4_0, q4_k_m ...")
    group.add_argument("--check", action="store_true", help="refuse weights that are not finite numbers")


def _add_network(group: Any) -> None:
    group.add_argument("--host", help="address to listen at (default 127.0.0.1: this machine only)")
    group.add_argument("--port", type=int, help="port to listen at; 0 takes a free one (default 8080)")
    group.add_argument(
        "--api-keys", type=Path, metavar="FILE", help="a TOML file of keys and their limits; also GEODE_API_KEYS"
    )
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="a certificate in PEM, and those above it")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its key in PEM")
    group.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="let pages of this origin call it; * is any"
    )
    group.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name by which it is called; * is any"
    )
    group.add_argument("--no-page", action="store_true", help="serve no page at /")


def _add_work(group: Any) -> None:
    group.add_argument("--memory", type=_bytes, metavar="BYTES", help="for all models together (default what is free)")
    group.add_argument("--kv-memory", type=_bytes, metavar="BYTES", help="for one model's keys and values")
    group.add_argument("--cache-dir", type=Path, metavar="DIR", help="keep prefixes here from one run to the next")
    group.add_argument("--running", type=int, metavar="N", help="requests that run together (default what fits)")
    group.add_argument("--waiting", type=int, default=256, metavar="N", help="requests that may wait (default 256)")
    group.add_argument("--step-tokens", type=int, default=512, metavar="N", help="tokens of one step (default 512)")
    group.add_argument("--timeout", type=_seconds, default=600.0, metavar="TIME", help="of an answer (default 10m)")
    group.add_argument("--patience", type=_seconds, default=30.0, metavar="TIME", help="for a request (default 30s)")
    group.add_argument("--drain", type=_seconds, default=30.0, metavar="TIME", help="at the end (default 30s)")
    group.add_argument("--body", type=_bytes, default=8 << 20, metavar="BYTES", help="of a request (default 8M)")
    group.add_argument("--truncate", action="store_true", help="cut prompts that are too long, and say so")
    for name in ("requests-per-minute", "tokens-per-minute", "concurrent"):
        group.add_argument(f"--{name}", type=int, metavar="N", help="of one client, where its key says nothing else")


def _add_watch(group: Any) -> None:
    group.add_argument("--plan", action="store_true", help="tell how many sequences of what length fit, and leave")
    group.add_argument("--json", action="store_true", help="the plan as JSON")
    group.add_argument("--log", choices=("text", "json"), default="text", help="form of the log (default text)")
    group.add_argument("--log-prompts", action="store_true", help="log what is asked, which may be private")
    group.add_argument("--traces", action="store_true", help="send OpenTelemetry traces (OTEL_EXPORTER_OTLP_ENDPOINT)")


def _settings(args: argparse.Namespace) -> Settings:
    """Flags, keys and Vertex AI's environment as settings. Raises OptionError."""
    from ..serve import contract, keys
    from ..serve.settings import Settings

    found = contract.contract()
    limits = keys.Limits(
        requests_per_minute=args.requests_per_minute,
        tokens_per_minute=args.tokens_per_minute,
        concurrent=args.concurrent,
    )
    same: tuple[str, ...] = (
        "idle",
        "waiting",
        "running",
        "step_tokens",
        "timeout",
        "patience",
        "drain",
        "body",
        "truncate",
    )
    same += ("memory", "kv_memory", "cache_dir", "tls_cert", "tls_key", "draft", "traces", "log_prompts")
    loading = {name: getattr(args, name) for name in ("on", "dtype", "threads", "kv_type", "quantize", "check")}
    return Settings(
        models=_models(args, found),
        **{name: getattr(args, name) for name in same},
        **_place(args, found),
        preload=not args.lazy,
        speculate=not args.no_speculate,
        keys=keys.read(args.api_keys),
        limits=limits,
        adapter_dirs=tuple(args.adapter_dir),
        hosts=tuple(args.allow_host),
        cors=tuple(args.cors),
        page=not args.no_page,
        log_format=args.log,
        vertex=found,
        loading=loading,
    )


def _place(args: argparse.Namespace, found: Contract | None) -> dict[str, Any]:
    """Where to listen: as the flags say, else as Vertex AI does, which asks from outside."""
    host = args.host or ("0.0.0.0" if found else "127.0.0.1")
    port = args.port if args.port is not None else found.port if found else 8080
    return {"host": host, "port": port}


def _models(args: argparse.Namespace, found: Contract | None) -> tuple[Source, ...]:
    """Models with their further names and adapters."""
    from ..serve.settings import Source, source

    sources = [source(word) for word in args.models]
    if not sources and found is not None and found.storage is not None:
        from ..serve import contract

        screen.note(f"Taking the model from {found.storage}")
        sources = [Source("model", str(contract.model(found.storage)))]
    if not sources:
        sources = [source(ASSISTANT)]
    if args.adapter is not None:
        if len(sources) > 1:
            raise OptionError("--adapter is merged into the one model that is served; here are several. Use --lora.")
        sources[0] = dataclasses.replace(sources[0], adapter=args.adapter)
    for word in args.alias:
        name, model = _pair(word, "--alias NAME=MODEL")
        _change(sources, model, lambda one, name=name: dataclasses.replace(one, aliases=(*one.aliases, name)))
    for word in args.lora:
        name, path = _pair(word, "--lora NAME=DIR")
        path, model = _of_which(path, sources)
        _change(sources, model, lambda one, n=name, p=path: dataclasses.replace(one, adapters={**one.adapters, n: p}))
    return tuple(sources)


def _pair(word: str, shape: str) -> tuple[str, str]:
    name, equals, rest = word.partition("=")
    if not (name and equals and rest):
        raise OptionError(f"Expected {shape}; got {word!r}.")
    return name, rest


def _of_which(path: str, sources: Sequence[Source]) -> tuple[str, str]:
    """An adapter's path, and the model that it is for: the one after an @, or the only one."""
    before, at, name = path.rpartition("@")
    if at and any(name in one.names for one in sources):
        return before, name
    if len(sources) > 1:
        raise OptionError(f"Which model is the adapter {path} for? Say it: --lora NAME={path}@{sources[0].name}.")
    return path, sources[0].name


def _change(sources: list[Source], name: str, change: Any) -> None:
    for i, one in enumerate(sources):
        if name in (one.name, *one.aliases, one.path):
            sources[i] = change(one)
            return
    raise OptionError(f"There is no model {name!r} here; there are {', '.join(one.name for one in sources)}.")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected bytes, as in 512M or 4G; got {text!r}")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a time, as in 30s or 10m; got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


# The plan


def _plan(settings: Settings, args: argparse.Namespace) -> int:
    """What would fit, from headers alone: nothing is loaded."""
    from ..serve import run
    from ..serve.plan import plans

    found = plans(settings, run.check(settings))
    if args.json:
        screen.dump([dataclasses.asdict(each) for each in found])
        return 0
    for each in found:
        print(each.text())
    return 0
