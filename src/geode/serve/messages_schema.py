"""The bodies of Anthropic's API, field by field. What a field means is said in `messages`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .schema import Body


class CacheControl(Body):
    """Prefixes are kept for everybody, so there is nothing to be done for it."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Cached(Body):
    cache_control: CacheControl | None = None


class TextBlock(Cached):
    type: Literal["text"]
    text: str
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolUse(Cached):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: dict[str, Any] | None = None


class ToolResult(Cached):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool = False


Block = Annotated[TextBlock | ToolUse | ToolResult, Field(discriminator="type")]


class Turn(Body):
    role: Literal["user", "assistant"]
    content: str | list[Block]

    @property
    def blocks(self) -> list[Block]:
        if isinstance(self.content, str):
            return [TextBlock(type="text", text=self.content)]
        return self.content


class ToolSpec(Cached):
    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool = False
    eager_input_streaming: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    input_examples: Annotated[list[Any], Field(max_length=0)] | None = None


class Choice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Off(Body):
    type: Literal["disabled"]


class JsonFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class Output(Body):
    format: JsonFormat | None = None


class ContextEdits(Body):
    edits: Annotated[list[Any], Field(max_length=0)] | None = None


class Metadata(Body):
    user_id: str | None = None


class Talk(Body):
    """What a prompt is made of."""

    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: Choice | None = None
    thinking: Off | None = None
    output_config: Output | None = None
    cache_control: CacheControl | None = None
    mcp_servers: Annotated[list[Any], Field(max_length=0)] | None = None
    context_management: ContextEdits | None = None
    speed: Literal["standard"] | None = None


class MessagesBody(Talk):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    thread: None = None
    fallbacks: Annotated[list[Any], Field(max_length=0)] | None = None
