"""The bodies of OpenAI's Responses, field by field. What a field means is said in `responses`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from .ask import Tool, allowed, choice_of
from .schema import MOST_LIKELY, Body, Function, Neutral


class Part(Body):
    """A part of a message. Answers that clients send back have empty lists in them."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None


class Message(Body):
    type: Literal["message"] = "message"
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]
    status: str | None = None
    phase: str | None = None

    @property
    def text(self) -> str:
        return joined(self.content)


class FunctionCall(Body):
    type: Literal["function_call"]
    id: str | None = None
    call_id: str
    name: str
    arguments: str
    status: str | None = None


class FunctionOutput(Body):
    type: Literal["function_call_output"]
    id: str | None = None
    call_id: str
    output: str | list[Part]
    status: str | None = None


class Reference(Body):
    """An item of a response that was kept, by its id: clients send it for what was answered before."""

    type: Literal["item_reference"]
    id: str


def _kind(item: Any) -> str | None:
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


Item = Message | FunctionCall | FunctionOutput
Sent = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionOutput, Tag("function_call_output")]
    | Annotated[Reference, Tag("item_reference")],
    Discriminator(_kind),
]


class FlatFunction(Function):
    """A tool: here its type stands among its fields."""

    type: Literal["function"]
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class Named(Body):
    type: Literal["function"]
    name: str


class AllowedChoice(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[Named], Field(min_length=1)]


ToolChoice = Annotated[Named | AllowedChoice, Field(discriminator="type")]


class PlainFormat(Body):
    type: Literal["text", "json_object"]


class SchemaFormat(Body):
    type: Literal["json_schema"]
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextSettings(Body):
    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class StreamSettings(Body):
    include_obfuscation: Literal[False] | None = None


class NoReasoning(Body):
    """The models here do not think apart from their answer."""

    effort: Literal["none"] | None = None
    summary: None = None


class Talk(Body):
    """What a prompt is made of, and how the answer is to look."""

    model: str | None = None
    input: str | Annotated[list[Sent], Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[FlatFunction] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: NoReasoning | None = None
    conversation: None = None

    @property
    def choice(self) -> str:
        """`Ask.tool_choice`. Raises OptionError."""
        names, choice = [tool.name for tool in self.tools or ()], self.tool_choice
        if isinstance(choice, Named):
            return choice_of(names, None, choice.name)
        return choice_of(names, choice.mode if isinstance(choice, AllowedChoice) else choice)

    @property
    def offered(self) -> list[Tool]:
        """The tools that may be called. Raises OptionError."""
        tools = [tool.tool() for tool in self.tools or ()]
        if not isinstance(self.tool_choice, AllowedChoice):
            return tools
        return allowed(tools, [tool.name for tool in self.tool_choice.tools])


class TokensBody(Talk):
    """POST /v1/responses/input_tokens."""

    truncation: Literal["disabled"] | None = None


class ResponseBody(Talk, Neutral):
    """POST /v1/responses."""

    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELY)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    stream: bool | None = None
    stream_options: StreamSettings | None = None
    store: bool | None = None  # type: ignore[assignment]
    truncation: Literal["auto", "disabled"] | None = None
    background: Literal[False] | None = None
    prompt: None = None
    max_tool_calls: None = None

    @property
    def logprobs(self) -> bool:
        """Whether the answer's are asked for."""
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())


class ReadQuery(Body):
    """GET /v1/responses/{response_id}: from an address all comes as text."""

    model_config = ConfigDict(strict=False)

    api_version: str | None = Field(None, alias="api-version")


class ItemsQuery(ReadQuery):
    """GET /v1/responses/{response_id}/input_items."""

    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


def joined(content: str | list[Part]) -> str:
    """A content, or a call's output, as one text."""
    return content if isinstance(content, str) else "".join(part.text for part in content)
