"""A server on a socket: guarded, watched, started, and stopped so that nobody's answer is lost.

What requests mean is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import CapacityError, MissingExtra, OptionError
from . import loading, logs
from .record import Watches
from .settings import Settings

if TYPE_CHECKING:
    from .gate import Gate
    from .models import Models

BACKLOG = 2048  # connections that wait to be accepted
KEEP_ALIVE = 75  # seconds that a connection may rest between two requests
LOOK = 0.05  # seconds between two looks at whether the last answer has ended
PARTING = 1  # second for the last bytes of answers
log = logging.getLogger("geode.serve")


class Server:
    """One server. The socket is taken when this is made: a port that is in use is told before anything is loaded.

    Raises OptionError for an address that cannot be had, MissingExtra.
    """

    def __init__(self, settings: Settings, models: Models | None = None):
        self.settings = settings
        try:
            from . import app, gate, metrics
            from .models import Models as Made
            from .protocol import protocol
        except ModuleNotFoundError as missing:
            raise MissingExtra(str(missing.name), "serve", "Serving") from None
        import uvicorn

        self._socket = _bind(settings)
        self.models = Made(settings) if models is None else models
        inner = app.create_app(settings, self.models)
        inner.state.metrics = metrics.Metrics(self.models)
        self._traces = _traces(settings)
        watches = [inner.state.metrics, logs.Requests(settings.log_prompts), *([self._traces] if self._traces else [])]
        self.gate = gate.Gate(inner, settings, Watches(watches))
        inner.state.draining = lambda: self.gate.draining
        config = uvicorn.Config(
            _with_cors(self.gate, settings),
            http=protocol(settings),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=PARTING,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            lifespan="on",
        )
        self._server = uvicorn.Server(config)
        self._server.__dict__["capture_signals"] = contextlib.nullcontext  # uvicorn's own would end the process by them

    @property
    def port(self) -> int:
        """The port that it has, also where 0 was asked for."""
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.settings.host in ("0.0.0.0", "") else self.settings.host.strip("[]")
        host = "[::1]" if host == "::" else f"[{host}]" if ":" in host else host
        return f"http{'s' if self.settings.tls_cert else ''}://{host}:{self.port}"

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT; then takes nothing new, lets what runs end, and returns."""
        with asyncio.Runner(loop_factory=_loop()) as runner:
            runner.run(self.serve(signals=True))

    async def serve(self, signals: bool = False) -> None:
        """The same on this event loop. Raises what went wrong while models were loaded."""
        try:
            await self.models.preload()
        except BaseException:
            self.close()
            self.models.close()
            raise
        log.info("serving %s at %s", ", ".join(self.models.names()), self.url)
        with _signals(self) if signals else contextlib.nullcontext():
            try:
                await self._server.serve(sockets=[self._socket])
            finally:
                self.close()

    def stop(self) -> None:
        """Begins to end, from the event loop's thread: answers that run may end, nothing new is taken in."""
        if self.gate.draining:
            log.warning("stopped a second time: answers that run are cut")
            self._server.config.timeout_graceful_shutdown = 0
            self._server.should_exit = True
        else:
            log.info("stopping; %d requests are running", self.gate.running)
            self.gate.draining = True
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        """The socket stays until the last answer has ended: whoever asks meanwhile is told so, not turned away."""
        end = time.monotonic() + self.settings.drain
        while self.gate.running and time.monotonic() < end:
            await asyncio.sleep(LOOK)
        self._server.should_exit = True

    def close(self) -> None:
        self._socket.close()
        if self._traces is not None:
            self._traces.close()

    @contextlib.contextmanager
    def background(self) -> Iterator[str]:
        """Serves on a thread of its own while the block runs; its address."""
        loop = _loop()()
        failed: list[BaseException] = []

        def work() -> None:
            try:
                loop.run_until_complete(self.serve())
            except BaseException as problem:
                failed.append(problem)
            finally:
                loop.close()

        thread = threading.Thread(target=work, name="geode-serve")
        thread.start()
        try:
            while not self._server.started and thread.is_alive():
                thread.join(0.005)
            if failed:
                raise failed[0]
            yield self.url
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                loop.call_soon_threadsafe(self.stop)
            thread.join()


def check(settings: Settings) -> dict[str, loading.Facts]:
    """What headers tell of each model. Raises whatever is wrong with one, before any weight is read."""
    found = {source.name: loading.facts(source, settings.loading) for source in settings.models}
    for source in settings.models:
        _check_adapters(source.adapters)
        size = found[source.name].size
        if settings.memory is not None and size >= settings.memory:
            raise CapacityError(
                f"The weights of {source.name} take {size / 2**20:.0f} MiB, and all models together may take "
                f"{settings.memory / 2**20:.0f} MiB. Give the server more memory, or serve a smaller model."
            )
    return found


def _check_adapters(named: Any) -> None:
    from .. import adapters

    for name, path in named.items():
        place = loading.place(path)
        if not adapters.claims(place):
            raise OptionError(f"The adapter {name} is to be at {path}, and that is no LoRA adapter.")


def _loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes an event loop: uvloop, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    made: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return made


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        address = socket.getaddrinfo(settings.host.strip("[]"), settings.port, family, socket.SOCK_STREAM)[0]
        bound = socket.socket(address[0], address[1])
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address[4])
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise OptionError(
            f"{settings.host}:{settings.port} cannot be served at: {error.strerror or error}. "
            "Choose another --port, or an address of this machine as --host."
        ) from None
    bound.set_inheritable(False)
    return bound


def _traces(settings: Settings) -> Any:
    if not settings.traces:
        return None
    from .traces import Traces

    return Traces()


def _with_cors(gate: Gate, settings: Settings) -> Any:
    """Outside of the gate, so that pages can read why they were refused."""
    if not settings.cors:
        return gate
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        gate,
        allow_origins=list(settings.cors),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
        max_age=600,
    )


@contextlib.contextmanager
def _signals(server: Server) -> Iterator[None]:
    """SIGTERM and SIGINT stop the server; a second one does not wait for answers."""
    loop, here = asyncio.get_running_loop(), contextvars.copy_context()  # a signal comes in the midst of any request
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, _: Any) -> None:
        loop.call_soon_threadsafe(server.stop, context=here)

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
