"""The engine's threads and turns, over scripts: no network is needed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from geode import engine
from geode.engine.engine import Engine
from geode.engine.request import Request
from geode.engine.scheduler import Scheduler
from geode.errors import BackendError, CapacityError, ContextError, OptionError, TooMany
from geode.generate import Options, Piece
from geode.lm import Fake


def over(fake: Fake, **options: Any) -> Engine:
    return engine.open(fake.executor, tokenizer=fake.tokenizer, ends=fake.ends, **options)


def request(fake: Fake, text: str = "hi", **options: Any) -> Request:
    fields = {name: options.pop(name) for name in list(options) if name in Request.__dataclass_fields__}
    return Request(ids=fake.tokenize(text), options=Options(**options), **fields)


def test_answers_like_the_model_itself() -> None:
    fake = Fake(lambda prompt: prompt.upper())
    with over(fake) as running:
        answer = running.generate(request(fake, "hello", max_tokens=50))
        expected = fake.stream("hello", max_tokens=50).result()
        assert (answer.text, answer.tokens, answer.finish_reason) == ("HELLO", expected.tokens, "stop")
        assert "".join(piece.text for piece in running.stream(request(fake, "abc", stop="C"))) == "AB"
        assert answer.usage.prompt_tokens == 6 and answer.usage.queued_seconds >= 0
    with pytest.raises(BackendError, match="closed"):
        running.generate(request(fake))


def test_many_threads() -> None:
    fake = Fake(lambda prompt: prompt * 3)
    with over(fake) as running, ThreadPoolExecutor(8) as pool:
        texts = [f"text {i}" for i in range(40)]
        answers = list(pool.map(lambda text: running.generate(request(fake, text, max_tokens=100)), texts))
        assert [answer.text for answer in answers] == [text * 3 for text in texts]
        running.check()
        stats = running.stats()
        assert (stats.running, stats.waiting, stats.batch) == (0, 0, 0)
        assert stats.generated_tokens == sum(len(answer.tokens) for answer in answers)


def test_closing_the_iterator_cancels() -> None:
    fake = Fake(["endless " * 400])
    with over(fake) as running:
        pieces = running.stream(request(fake))
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        assert running.generate(request(fake, max_tokens=3)).text == "end"
        assert running.drain(60)
        running.check()
        assert running.stats().generated_tokens < 3000


def test_the_queue_has_an_end() -> None:
    fake = Fake(["answer"])
    full = over(fake, slots=1, max_waiting=3)
    told: list[Piece | Exception] = []
    for _ in range(3):
        full.submit(request(fake), told.append)
    with pytest.raises(CapacityError, match="3 requests wait") as problem:
        full.submit(request(fake), told.append)
    assert problem.value.retry_after is not None and problem.value.retry_after >= 1
    while full.step():
        pass
    full.submit(request(fake), told.append)


def test_without_a_queue_one_runs_and_the_next_is_refused() -> None:
    fake = Fake(["answer"])
    none = over(fake, slots=1, max_waiting=0)
    for _ in range(2):
        none.submit(request(fake), lambda _: None)
        with pytest.raises(TooMany):
            none.submit(request(fake), lambda _: None)
        while none.step():
            pass


def test_who_cancels_at_the_last_piece_ends_once() -> None:
    fake = Fake(["answer"])
    running = over(fake)

    def hear(piece: Piece | Exception) -> None:
        assert isinstance(piece, Piece)
        if piece.finish_reason:
            ticket.cancel()

    def breaks(piece: Piece | Exception) -> None:
        if isinstance(piece, Piece) and piece.finish_reason:
            raise RuntimeError("nobody listens")

    ticket = running.submit(request(fake), hear)
    running.submit(request(fake), breaks)
    while running.step():
        pass
    running.step()
    running.check()
    assert running.drain(0)


def test_what_is_promised_can_be_cancelled() -> None:
    fake = Fake(["answer"])
    running = over(fake, slots=1)
    asked = [running.score(fake.tokenize("hello"), 1) for _ in range(3)]
    running.step()
    assert asked[1].cancel()
    while running.step():
        pass
    running.check()
    assert [one.done() and not one.cancelled() for one in asked] == [True, False, True]
    assert running.stats().prompt_tokens == 2 * (len(fake.tokenize("hello")) - 1)


def test_books_are_checked_between_steps_while_it_runs() -> None:
    fake = Fake(["x" * 3000])
    with over(fake, slots=4) as running:
        for _ in range(8):
            running.submit(request(fake), lambda _: None)
        for _ in range(20):
            running.check()
        assert running.stats().running + running.stats().waiting == 8
        running._inside += 1
        with pytest.raises(AssertionError, match="9 requests are said to be here, and 8 are"):
            running.check()
        running._inside -= 1


def test_books_that_do_not_agree_after_an_error_end_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(["x" * 3000])
    with over(fake) as running:

        def breaks(*_: Any) -> Any:
            running._scheduler._waiting += 1
            raise RuntimeError("a bug")

        promised = running.score(fake.tokenize("hello"), 1)
        promised.result(60)
        monkeypatch.setattr(Scheduler, "plan", breaks)
        with pytest.raises(BackendError, match="a bug"):
            running.generate(request(fake))
        assert running._thread is not None
        running._thread.join(60)
        with pytest.raises(BackendError, match="has failed and stopped"):
            running.submit(request(fake), lambda _: None)
        with pytest.raises(AssertionError, match="has failed"):
            running.check()
        assert isinstance(running.failed, AssertionError) and running.drain(60)


def test_drain_lets_what_runs_finish() -> None:
    fake = Fake(["a long answer " * 20])
    running = over(fake)
    pieces: list[Piece | Exception] = []
    begun = threading.Event()

    def hear(piece: Piece | Exception) -> None:
        pieces.append(piece)
        begun.set()

    running.submit(request(fake), hear)
    running.start()
    assert begun.wait(60)
    assert running.drain(60)
    assert isinstance(pieces[-1], Piece) and pieces[-1].finish_reason == "stop"
    with pytest.raises(CapacityError, match="shutting down"):
        running.submit(request(fake), pieces.append)
    running.close()
    running.close()


def test_drain_says_when_time_is_up() -> None:
    fake = Fake(["answer"])
    running = over(fake)
    running.submit(request(fake), lambda _: None)
    assert not running.drain(0)
    running.close()


def test_close_tells_everybody() -> None:
    fake = Fake(["x" * 3000])
    running = over(fake, slots=1)
    told: list[list[Piece | Exception]] = [[], []]
    for heard in told:
        running.submit(request(fake), heard.append)
    future = running.score(fake.tokenize("hello"), 1)
    running.step()
    running.close()
    assert all(isinstance(heard[-1], BackendError) for heard in told)
    with pytest.raises(BackendError):
        future.result(0)


def test_a_step_that_breaks_ends_what_ran_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(["answer"])
    with over(fake) as running:
        plan = Scheduler.plan

        def once(self: Scheduler) -> Any:
            monkeypatch.setattr(Scheduler, "plan", plan)
            if self.waiting:
                raise RuntimeError("a bug")
            return plan(self)

        monkeypatch.setattr(Scheduler, "plan", lambda self: once(self) if self.waiting else plan(self))
        with pytest.raises(BackendError, match="a bug"):
            running.generate(request(fake))
        assert running.generate(request(fake)).text == "answer"
        running.check()


def test_without_hidden_states_there_are_no_embeddings() -> None:
    fake = Fake(["answer"])
    with over(fake) as running:
        with pytest.raises(OptionError, match="hidden"):
            running.embed([1, 2]).result(60)
        with pytest.raises(OptionError, match="adapter"):
            running.submit(request(fake, adapter="x"), print)
        logprobs, greedy, _ = running.score([*fake.tokenize("hi"), ord("a"), ord("x")], 3).result(60)
        assert greedy == [True, False] and logprobs[0] > -0.1 > logprobs[1]
        with pytest.raises(ContextError):
            running.embed([1] * 5000)


# whose turn it is


def order(fake: Fake, asked: Sequence[dict[str, Any]], slots: int = 1) -> list[int]:
    """In which order requests end; each `asked` may have client, priority, tokens."""
    running = over(fake, slots=slots)
    ended: list[int] = []

    def hear(number: int, piece: Piece | Exception) -> None:
        assert isinstance(piece, Piece), piece
        if piece.finish_reason:
            ended.append(number)

    for number, fields in enumerate(asked):
        options = {"max_tokens": 5, **fields}
        running.submit(request(fake, **options), partial(hear, number))
    while running.step():
        running.check()
    return ended


def test_clients_take_turns() -> None:
    fake = Fake(["x" * 50])
    asked: list[dict[str, Any]] = [{"client": "a"}] * 4 + [{"client": "b"}] * 2
    assert order(fake, asked) == [0, 4, 1, 5, 2, 3]


def test_who_was_given_much_waits_longer() -> None:
    fake = Fake(["x" * 200])
    asked: list[dict[str, Any]] = [{"client": "a", "max_tokens": 100}, {"client": "a"}, *[{"client": "b"}] * 4]
    assert order(fake, asked) == [0, 2, 3, 4, 5, 1]


def test_higher_priorities_go_first() -> None:
    fake = Fake(["x" * 50])
    asked: list[dict[str, Any]] = [{"priority": 0}, {"priority": 2, "client": "b"}, {"priority": 1}, {"priority": 2}]
    assert order(fake, asked) == [1, 3, 2, 0]


def test_who_comes_back_has_saved_nothing_up() -> None:
    """A client that was away does not go before the others for all the time it did not ask."""
    fake = Fake(["x" * 50])
    running = over(fake, slots=1)
    ended: list[str] = []

    def ask(client: str) -> None:
        def hear(piece: Piece | Exception) -> None:
            if isinstance(piece, Piece) and piece.finish_reason:
                ended.append(client)

        running.submit(request(fake, client=client, max_tokens=5), hear)

    for _ in range(6):
        ask("a")
    for _ in range(15):
        running.step()
    ended.clear()
    for _ in range(3):
        ask("b")
    while running.step():
        pass
    assert ended[:4] in (["a", "b", "a", "b"], ["b", "a", "b", "a"])
