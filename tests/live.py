"""A server of our own on a free port, on a thread, for as long as a block runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from random_networks import SMALL, network
from test_chat import tokenizer

from geode.chat import Template
from geode.lm import Fake, Local
from geode.native import executor as native
from geode.serve.models import Models, fixed
from geode.serve.run import Server
from geode.serve.settings import Settings, Source


@dataclass
class Live:
    url: str
    models: Models
    server: Server


@contextmanager
def serving(locals: Mapping[str, Local], **options: Any) -> Iterator[Live]:
    """`serving({"name": local}, timeout=5)`: settings by their names."""
    settings = Settings(models=tuple(Source(name, name) for name in locals), port=0, **options)
    models = fixed(locals, settings)
    server = Server(settings, models)
    with server.background() as url:
        yield Live(url, models, server)


# Models to be served


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}{% if shout %}!{% endif %}"
)


def scripted(answers: Sequence[str] | Callable[[str], str]) -> Fake:
    """`lm.Fake` with a whole tokenizer and a template: a prompt reads "<s>user: Hi", then "assistant: "."""
    fake = Fake(answers)
    fake.tokenizer = tokenizer()
    fake.template = Template(TEMPLATE, fake.tokenizer)
    return fake


WEATHER = {
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


class Forecaster:
    """What a scripted model says: of the weather, once a call of WEATHER has told it; JSON; else always the same."""

    def __init__(self, hello: str = "Hello."):
        self.hello = hello
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if "weather" in prompt:
            return "It rains." if "Rain" in prompt.rsplit("user:", 1)[1] else CALL
        return '{"a": 1}' if "JSON" in prompt else self.hello


def tiny(seed: int = 0) -> Local:
    """A native network of random weights, whose tokens are bytes: what it says means nothing, and is always the same."""
    words = tokenizer("<|im_start|>", "<|im_end|>")
    config = replace(SMALL, context=1024)
    executor = native.open(config, network(config, seed=seed), threads=1, quiet=True)
    return Local(executor, words, Template(TEMPLATE, words))


class Gated(Fake):
    """One that says "a" until it is told to stop, a token whenever the gate is open."""

    def __init__(self) -> None:
        super().__init__(["a" * 4000])
        self.gate = threading.Event()
        inner = self.executor.step

        def step(*given: Any) -> Any:
            self.gate.wait()
            return inner(*given)

        self.executor.step = step  # type: ignore[method-assign]


def idle(live: Live, name: str) -> None:
    """Waits until an engine has nothing to do, and checks its books."""
    (engine,) = [served.engine for served in live.models.loaded() if served.name == name]
    end = time.monotonic() + 30
    while engine.stats().running or engine.stats().waiting:
        assert time.monotonic() < end, engine.stats()
        time.sleep(0.002)
    engine.check()
