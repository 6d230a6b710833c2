"""The engine: requests in from any thread, steps on one of its own, pieces out.

How a step is planned and run is its neighbours' to know; HTTP, and what text means, are nobody's here.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BackendError, CapacityError, ContextError, OptionError, TooMany
from ..generate import Piece
from .request import Deliver, Request, Scores, Stats, Ticket
from .scheduler import Scheduler
from .sequence import ENDED, Embedding, Generation, Progress, Scoring, gathered
from .step import Stepper, tell

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer
    from .keep import Keeper
    from .request import Counts
    from .runner import Adapter, Adapters, Drafter, Runner

IDLE = 2.0  # seconds without work after which kept pages are written
log = logging.getLogger("geode.engine")


@dataclass(frozen=True)
class Answer:
    """One whole answer; `tokens` are all that were generated."""

    text: str
    tokens: list[int]
    finish_reason: str | None
    usage: Counts


class Engine:
    """Many requests over one runner. See `geode.engine.open`.

    Without `start` nothing runs by itself: `step` runs what there is, for tests and for loops of one's own. `failed`
    is what went wrong where the engine's thread could not go on: then nothing is taken in any more.
    """

    failed: BaseException | None = None

    def __init__(
        self,
        runner: Runner,
        *,
        tokenizer: Tokenizer | None = None,
        ends: frozenset[int] = frozenset(),
        adapters: Adapters | None = None,
        drafter: Drafter | None = None,
        keeper: Keeper | None = None,
        max_waiting: int = 512,
    ):
        self.runner = runner
        self.tokenizer = tokenizer
        self.ends = ends
        self.max_waiting = max_waiting
        self._adapters = adapters
        self._keeper = keeper
        self._scheduler = Scheduler(runner, drafter)
        self._stepper = Stepper(runner, self._scheduler, drafter, self._has_ended)
        self._changes: deque[Progress | Future[None]] = deque()  # new ones, cancelled ones, checks that were asked for
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._inside = 0  # requests that came and have not ended
        self._pace = 1.0  # seconds that a request took lately
        self._draining = self._closed = False
        if keeper is not None:
            keeper.read()

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together: the model's, or fewer where memory holds no more."""
        return min(self.runner.config.context, self.runner.capacity)

    # requests

    def submit(self, request: Request, deliver: Deliver) -> Ticket:
        """Takes a request in; `deliver` is given its pieces, and the last has a finish_reason.

        Raises OptionError, ContextError, TokenizerError, ModelNotFound for an unknown adapter; TooMany, with
        `retry_after`, when too many wait; CapacityError when the engine shuts down; BackendError when it has failed.
        """
        self._check(request.ids)
        adapter = self._adapter(request.adapter)
        sequence = Generation(request, deliver, self.context, self.ends, self.tokenizer, adapter, changed=self._changed)
        self._enter(sequence)
        return sequence

    def stream(self, request: Request) -> Iterator[Piece]:
        """Pieces as they are made; closing the iterator cancels. Starts the engine. Raises what `submit` raises."""
        pieces: queue.SimpleQueue[Piece | Exception] = queue.SimpleQueue()
        ticket = self.submit(request, pieces.put)
        self.start()
        return _pieces(pieces, ticket)

    def generate(self, request: Request) -> Answer:
        """The whole answer. Raises what `submit` raises, and the error that ended the request, if one did."""
        pieces: queue.SimpleQueue[Piece | Exception] = queue.SimpleQueue()
        ticket = self.submit(request, pieces.put)
        self.start()
        return Answer(*gathered(_pieces(pieces, ticket)), ticket.usage)

    def embed(
        self,
        ids: Sequence[int],
        *,
        adapter: str | None = None,
        pooling: str = "mean",
        client: str = "",
        priority: int = 0,
    ) -> Future[np.ndarray]:
        """Final hidden states of a text, pooled ("mean", "last"): float32 (D,), of no particular length."""
        self._check(ids, longest=self.context)
        sequence = Embedding(ids, pooling, client, priority, self._adapter(adapter))
        return self._promised(sequence)

    def score(
        self,
        ids: Sequence[int],
        start: int,
        *,
        top: int = 0,
        adapter: str | None = None,
        client: str = "",
        priority: int = 0,
        salt: str = "",
    ) -> Future[Scores]:
        """For the ids from `start` on: log-probability, whether each was the likeliest, and the `top` likeliest."""
        self._check(ids, longest=self.context)
        if not 0 < start < len(ids):
            raise OptionError(f"start must be from 1 to {len(ids) - 1}, the last of the ids; {start} was given.")
        size = self.tokenizer.size if self.tokenizer else None
        sequence = Scoring(ids, start, size, top, client, priority, self._adapter(adapter), salt)
        return self._promised(sequence)

    @property
    def adapters(self) -> Adapters:
        """Loads and unloads by name. Raises OptionError where the model runs without adapters."""
        if self._adapters is None:
            raise OptionError("This model runs where adapters cannot be loaded beside it. Load it with on='native'.")
        return self._adapters

    # looking

    def stats(self) -> Stats:
        s = self._stepper
        used, kept, every = self.runner.pages()
        sizes = self.runner.page_bytes
        return Stats(
            waiting=max(0, self._inside - len(self._scheduler.running)),
            running=len(self._scheduler.running),
            pages_used=used,
            pages_kept=kept,
            pages=every,
            kv_used=sum((u + k) * size for u, k, size in zip(used, kept, sizes, strict=False)),
            kv_bytes=sum(n * size for n, size in zip(every, sizes, strict=False)),
            steps=s.steps,
            prompt_tokens=s.prompt_tokens,
            cached_tokens=s.cached_tokens,
            generated_tokens=s.generated_tokens,
            drafted_tokens=s.drafted_tokens,
            accepted_tokens=s.accepted_tokens,
            preemptions=self._scheduler.preemptions,
            batch=s.batch if self._scheduler.running else 0,
        )

    def check(self) -> None:
        """Raises AssertionError where the books do not agree."""
        self.checked().result()

    def checked(self) -> Future[None]:
        """`check` between two steps, whatever runs: settled at once where no thread runs."""
        asked: Future[None] = Future()
        with self._wake:
            if self._thread is not None and self.failed is None:
                self._changes.append(asked)
                self._wake.notify()
                return asked
        self._settle(asked)
        return asked

    # running

    def start(self) -> None:
        """Runs on a thread of its own from now on; harmless twice. Raises BackendError once closed.

        What is still open when the interpreter ends is closed then.
        """
        with self._wake:
            if self._closed:
                raise _closed()
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="geode-engine", daemon=True)
                self._thread.start()
                atexit.register(self.close)  # a thread that the interpreter cuts off never lets go of the weights

    def step(self) -> bool:
        """One step, on this thread; False where there was nothing to do. Not while `start`'s thread runs."""
        self._take_changes()
        return self._stepper.step()

    def drain(self, timeout: float | None = None) -> bool:
        """Takes in no more, and waits for what is there; False where some are left after `timeout` seconds."""
        with self._wake:
            self._draining = True
            done = self._wake.wait_for(lambda: self._inside == 0 or self._thread is None, timeout)
        return done and self._inside == 0

    def close(self) -> None:
        """Ends what is left with BackendError, writes kept pages, stops the thread. Harmless twice."""
        atexit.unregister(self.close)
        with self._wake:
            self._draining = self._closed = True
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None
        if self.failed is not None:
            return
        self._take_changes()
        self._end_all(_closed())
        if self._keeper is not None:
            self._keeper.write()

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _loop(self) -> None:
        try:
            while not self._closed:
                self._go_on()
        except BaseException as error:  # nothing here can be relied upon any more
            self._fail(error)

    def _go_on(self) -> None:
        try:
            self._take_changes()
            if not self._stepper.step():
                self._rest()
        except Exception as error:  # not one request's fault, or it would have ended it
            log.exception("a step failed")
            self._end_all(BackendError(f"The engine failed and ended all that ran: {error!r}. Ask again."))
            self._check_books()

    def _fail(self, error: BaseException) -> None:
        """Tells everybody; from now on nothing is taken in."""
        log.critical("the engine has failed and takes nothing in any more", exc_info=error)
        with self._wake:
            self.failed = error
            left = [*self._changes, *self._scheduler.sequences()]
            self._changes.clear()
            self._inside = 0
            self._wake.notify_all()
        for one in left:
            self._settle(one) if isinstance(one, Future) else tell(one, _failed(error))

    def _rest(self) -> None:
        """Sleeps until something comes; writes what is kept when nothing comes for long."""
        with self._wake:
            if self._wake.wait_for(lambda: self._changes or self._closed, IDLE if self._keeper else None):
                return
        assert self._keeper is not None
        self._keeper.write(stop=lambda: self._changes or self._closed)
        with self._wake:
            self._wake.wait_for(lambda: self._changes or self._closed)

    def _enter(self, sequence: Progress) -> None:
        sequence.text = self.runner.text(sequence.ids, sequence.adapter, sequence.salt)
        with self._wake:
            if self.failed is not None:
                raise _failed(self.failed)
            if self._closed:
                raise _closed()
            if self._draining:
                raise CapacityError("The engine is shutting down and takes nothing in. Ask another.", self._pace)
            self._check_queue()
            self._inside += 1
            self._changes.append(sequence)
            self._wake.notify()

    def _check_queue(self) -> None:
        """Raises TooMany where a request would have to wait and too many do."""
        running, begins = len(self._scheduler.running), self._inside < self.runner.most and not self._scheduler.waiting
        waiting = self._inside - running
        if waiting >= self.max_waiting and not begins:
            wait = math.ceil(min(60.0, max(1.0, self._pace * waiting / max(1, running))))
            raise TooMany(f"{waiting} requests wait already. Ask again in {wait} s.", wait)

    def _promised(self, sequence: Embedding | Scoring) -> Future[Any]:
        """What is asked for, once it is there; cancelled, nothing more is run for it."""
        self._enter(sequence)
        sequence.future.add_done_callback(lambda done: self._changed(sequence) if done.cancelled() else None)
        return sequence.future

    def _changed(self, sequence: Progress) -> None:
        with self._wake:
            self._changes.append(sequence)
            self._wake.notify()

    def _take_changes(self) -> None:
        """Lets in who came, and out who does not want to wait."""
        while self._changes:
            one = self._changes.popleft()
            if isinstance(one, Future):
                self._settle(one)
            elif not one.number and not one.unwanted:
                self._scheduler.add(one)
            elif not one.number:
                one.number = ENDED
                self._has_ended(one)
            elif one.unwanted:
                self._stepper.drop(one)

    def _settle(self, asked: Future[None]) -> None:
        if not asked.set_running_or_notify_cancel():
            return
        try:
            assert self.failed is None, f"the engine has failed: {self.failed!r}"
            self._check_books()
        except Exception as problem:
            asked.set_exception(problem)
        else:
            asked.set_result(None)

    def _check_books(self) -> None:
        """Raises AssertionError where they do not agree. Between two steps."""
        self._scheduler.check()
        self.runner.check()
        with self._wake:
            new = {id(one) for one in self._changes if isinstance(one, Progress) and not one.number}
            inside = self._scheduler.waiting + len(self._scheduler.running) + len(new)
            assert self._inside == inside, f"{self._inside} requests are said to be here, and {inside} are"
        held = self.runner.pages()[0]
        assert self._scheduler.running or not any(held), f"pages are held by nobody: {held}"

    def _has_ended(self, sequence: Progress) -> None:
        if sequence.admitted is not None:
            self._pace += 0.1 * (perf_counter() - sequence.admitted - self._pace)
        with self._wake:
            self._inside -= 1
            if not self._inside:
                self._wake.notify_all()

    def _end_all(self, error: Exception) -> None:
        for sequence in list(self._scheduler.sequences()):
            with contextlib.suppress(Exception):
                self._stepper.drop(sequence, error)

    def _adapter(self, name: str | None) -> Adapter | None:
        return None if name is None else self.adapters.get(name)

    def _check(self, ids: Sequence[int], longest: int | None = None) -> None:
        vocab = self.runner.config.vocab
        if not len(ids):
            raise OptionError("The prompt is empty. Give at least one token.")
        bad = next((i for i in (min(ids), max(ids)) if not 0 <= i < vocab), None)
        if bad is not None:
            raise OptionError(f"Token ids of this model are 0 to {vocab - 1}; {bad} was given.")
        if longest is not None and len(ids) > longest:
            raise ContextError(f"{len(ids)} tokens were given and the model's context holds {longest}. Give fewer.")


def _pieces(pieces: queue.SimpleQueue[Piece | Exception], ticket: Ticket) -> Iterator[Piece]:
    try:
        while True:
            piece = pieces.get()
            if isinstance(piece, Exception):
                raise piece
            yield piece
            if piece.finish_reason is not None:
                return
    finally:
        ticket.cancel()


def _failed(error: BaseException) -> BackendError:
    return BackendError(
        f"The engine has failed and stopped: {error!r}. Open it anew; a server does so when asked again."
    )


def _closed() -> BackendError:
    return BackendError("The engine was closed. Open it again.")
