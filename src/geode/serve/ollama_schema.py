"""The bodies of Ollama's API, field by field. What a field means is said in `ollama`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ..errors import OptionError
from ..generate import Options
from .ask import Format, JsonObject, JsonSchema, as_call
from .schema import MOST_LIKELY, Body, FunctionTool

if TYPE_CHECKING:
    from .loading import Served

Float = Annotated[float, BeforeValidator(lambda value: float(value) if type(value) is int else value)]


class Sampling(Body):
    """Ollama's `options`. Those that say how a model is run belong to the server, and are refused."""

    num_predict: Annotated[int, Field(ge=-2)] | None = None
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    temperature: Float | None = None
    top_k: int | None = None
    top_p: Float | None = None
    min_p: Float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: Float | None = None
    repeat_last_n: Literal[-1] | None = None
    presence_penalty: Float | None = None
    frequency_penalty: Float | None = None
    typical_p: Annotated[Float, Field(ge=1, le=1)] | None = None
    mirostat: Literal[0] | None = None

    def options(self, served: Served, logprobs: int | None = None) -> Options:
        """As `Options`; what was not sent is what Ollama has it. Raises OptionError."""
        if self.num_ctx is not None and self.num_ctx > served.context:
            raise OptionError(
                f"num_ctx must be at most {served.context}, the context of {served.name}; {self.num_ctx} was given."
            )
        limit = self.num_predict if self.num_predict is not None and self.num_predict > 0 else None
        sent = {ours: getattr(self, theirs) for ours, theirs in NAMES.items()}
        given = {name: value for name, value in sent.items() if value is not None}
        return Options(max_tokens=limit, logprobs=logprobs, **{**DEFAULTS, **given})


NAMES = {name: name for name in ("temperature", "top_k", "top_p", "min_p", "seed", "stop")}
NAMES |= {name: name for name in ("presence_penalty", "frequency_penalty")}
NAMES |= {"repetition_penalty": "repeat_penalty"}
DEFAULTS: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}


class Asked(Body):
    """What every request for an answer may have."""

    model: str
    options: Sampling | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    stream: bool = True
    keep_alive: str | int | Float | None = None
    think: Literal[False] | None = None
    truncate: bool | None = None
    shift: Literal[False] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELY)] | None = None

    def asked(self) -> Format | None:
        if isinstance(self.format, dict):
            return JsonSchema(self.format)
        return JsonObject() if self.format == "json" else None


class CalledFunction(Body):
    name: str
    arguments: dict[str, Any]
    index: int | None = None


class ToolCall(Body):
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction

    def plain(self, number: int) -> dict[str, Any]:
        """As chat templates know calls; `number` names one that has no id."""
        return as_call(self.id or f"call_{number}", self.function.name, json.dumps(self.function.arguments))


class Message(Body):
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    images: Annotated[list[Any], Field(max_length=0)] | None = None
    thinking: Literal[""] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    name: str | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """As chat templates know messages."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if name := self.tool_name or self.name:
            found["name"] = name
        if self.tool_call_id:
            found["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            found["tool_calls"] = [call.plain(i) for i, call in enumerate(self.tool_calls)]
        return found


class ChatBody(Asked):
    """POST /api/chat."""

    messages: list[Message] = Field(default_factory=list)
    tools: list[FunctionTool] | None = None


class GenerateBody(Asked):
    """POST /api/generate."""

    prompt: str = ""
    system: str | None = None
    raw: bool = False
    suffix: Literal[""] | None = None
    template: Literal[""] | None = None
    context: Annotated[list[int], Field(max_length=0)] | None = None
    images: Annotated[list[Any], Field(max_length=0)] | None = None


class EmbedBody(Body):
    """POST /api/embed."""

    model: str
    input: str | Annotated[list[str], Field(min_length=1, max_length=2048)]
    truncate: bool = False
    options: Sampling | None = None
    keep_alive: str | int | Float | None = None
    dimensions: int | None = None


class OldEmbedBody(Body):
    """POST /api/embeddings."""

    model: str
    prompt: str
    options: Sampling | None = None
    keep_alive: str | int | Float | None = None


class ShowBody(Body):
    """POST /api/show."""

    model: str | None = None
    name: str | None = None
    verbose: bool = False
