"""The bodies of OpenAI's API, field by field: what a client may send, and nothing else.

A field that means nothing here is taken only at the value that asks for nothing; any other is refused by its name.
What a field means is said in `chat`, `completions` and `embeddings`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from types import NoneType
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import OptionError
from ..generate import Options
from .ask import Format, Grammar, JsonObject, JsonSchema, Regex, Tool, allowed, choice_of

MOST_LIKELY = 20  # alternatives of a token that may be asked for
Ids = list[Annotated[int, Field(ge=0, lt=1 << 31)]]
Count = Annotated[int, Field(ge=1, le=128)]


class Body(BaseModel):
    """No further fields, no conversions: "5" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _sent(cls, given: Any) -> Any:
        """Without what is null and could be left out: some clients write out every field that they know."""
        if not isinstance(given, dict) or None not in given.values():
            return given
        fields = cls.model_fields.items()
        takes = {name for name, field in fields if field.is_required() or NoneType in get_args(field.annotation)}
        return {name: value for name, value in given.items() if value is not None or name in takes}


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] | None = None


class Neutral(Body):
    """Fields of OpenAI's that keep accounts, or have nothing to do on one machine."""

    user: str | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in-memory", "in_memory"] | None = None


class Sampling(Body):
    """How tokens are chosen: the fields of `generate.Options`, and other names that llama.cpp has for them."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False

    @model_validator(mode="after")
    def _one_name(self) -> Sampling:
        if self.repeat_penalty is not None and self.repetition_penalty is not None:
            raise ValueError("repetition_penalty and repeat_penalty are the same; send one of them")
        return self

    def options(self, ends: frozenset[int], **more: Any) -> Options:
        """What was sent, as `Options`; what was not keeps its default. Raises OptionError."""
        given = {name: getattr(self, name) for name in _SHARED if getattr(self, name) is not None}
        if given.get("top_k") == -1:
            given["top_k"] = 0  # vLLM's word for off
        if self.repeat_penalty is not None:
            given["repetition_penalty"] = self.repeat_penalty
        bias = {int(token): value for token, value in (self.logit_bias or {}).items()}
        if self.ignore_eos:
            bias |= dict.fromkeys(ends, float("-inf"))
        return Options(**given, logit_bias=bias, **{name: value for name, value in more.items() if value is not None})


_SHARED = tuple(
    field.name for field in fields(Options) if field.name in Sampling.model_fields and field.name != "logit_bias"
)


class Elsewhere(Body):
    """Fields of vLLM's and llama.cpp's, at the values that ask for what is done here anyway."""

    min_tokens: Literal[0] | None = None
    length_penalty: Annotated[float, Field(ge=1, le=1)] | None = None
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: Literal[True] | None = None
    use_beam_search: Literal[False] | None = None
    include_stop_str_in_output: Literal[False] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=0)] | None = None
    cache_prompt: Literal[True] | None = None


class StructuredOutputs(Body):
    """vLLM's way to ask for a format: one of these."""

    json_: dict[str, Any] | bool | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)
    grammar: str | None = None
    json_object: Literal[True] | None = None


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]


class NamedSchema(Body):
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class RegexFormat(Body):
    type: Literal["regex"]
    regex: str


class GrammarFormat(Body):
    type: Literal["grammar"]
    grammar: str


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | GrammarFormat, Field(discriminator="type")
]


class Formatted(Body):
    """What shape the answer must have: by `response_format`, or by vLLM's or llama.cpp's names for the same."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None

    def format(self) -> Format | None:
        """The format that is asked for. Raises OptionError for more than one."""
        asked = {
            "response_format": None if self.response_format is None else _format(self.response_format),
            "structured_outputs": None if self.structured_outputs is None else _structured(self.structured_outputs),
            "json_schema": None if self.json_schema is None else JsonSchema(self.json_schema),
            "grammar": None if self.grammar is None else _grammar(self.grammar),
        }
        found = {name: format for name, format in asked.items() if format is not None}
        if len(found) > 1:
            raise OptionError(f"An answer has one format; {' and '.join(found)} were sent. Send one of them.")
        return next(iter(found.values()), None)


def _format(asked: ResponseFormat) -> Format | None:
    if isinstance(asked, JsonSchemaFormat):
        return JsonSchema(asked.json_schema.schema_, asked.json_schema.name)
    if isinstance(asked, RegexFormat):
        return Regex(asked.regex)
    if isinstance(asked, GrammarFormat):
        return _grammar(asked.grammar)
    return JsonObject() if isinstance(asked, JsonObjectFormat) else None


def _structured(asked: StructuredOutputs) -> Format | None:
    sent = [name for name in StructuredOutputs.model_fields if getattr(asked, name) is not None]
    if len(sent) != 1:
        names = ", ".join(name.rstrip("_") for name in StructuredOutputs.model_fields)
        raise OptionError(f"structured_outputs must be exactly one of {names}; {len(sent)} were sent.")
    if isinstance(asked.json_, dict):
        return JsonSchema(asked.json_)
    if asked.regex is not None:
        return Regex(asked.regex)
    if asked.choice is not None:
        return Grammar(_one_of(asked.choice))
    return _grammar(asked.grammar) if asked.grammar is not None else JsonObject()


def _grammar(source: str) -> Grammar:
    """Lark's notation as it is; llama.cpp's GBNF, which has ::=, put into it. Raises OptionError."""
    if "::=" not in source:
        return Grammar(source)
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return Grammar(gbnf_to_lark(source))
    except Exception as problem:
        raise OptionError(f"The grammar must be GBNF, as its ::= says, or Lark; it is neither: {problem}.") from None


def _one_of(texts: Sequence[str]) -> str:
    """A grammar of some texts; JSON's way to quote is Lark's."""
    return "start: " + " | ".join(json.dumps(text) for text in texts)


# Conversations


class Part(Body):
    type: Literal["text"]
    text: str


class CalledFunction(Body):
    name: str
    arguments: str


class ToolCall(Body):
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class Message(Body):
    """One turn. Of an assistant's the fields that clients send back with nothing in them are taken, too."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    provider_specific_fields: dict[str, None] | None = None

    def plain(self) -> dict[str, Any]:
        """As chat templates know messages."""
        found = self.model_dump(exclude_none=True, exclude={"annotations", "provider_specific_fields"})
        for call in found.get("tool_calls", ()):
            call.pop("index", None)
        return {"content": None, **found}


class Function(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self) -> Tool:
        more = {} if self.parameters is None else {"parameters": self.parameters}
        return Tool(self.name, self.description or "", strict=bool(self.strict), **more)


class FunctionTool(Body):
    type: Literal["function"]
    function: Function

    def tool(self) -> Tool:
        return self.function.tool()


class FunctionName(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class AllowedChoice(Body):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Annotated[NamedTool | AllowedChoice, Field(discriminator="type")]


class Talk(Body):
    """A conversation, and how the template is to write it."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    @model_validator(mode="after")
    def _sound(self) -> Talk:
        _ = self.choice, self.offered  # they raise what is wrong with them
        if self.continue_final_message and self.tools:
            raise ValueError("continue_final_message goes with no tools")
        return self

    @property
    def choice(self) -> str:
        """`Ask.tool_choice`. Raises OptionError, and so does whoever makes such a body."""
        names = [tool.function.name for tool in self.tools or ()]
        if isinstance(self.tool_choice, NamedTool):
            return choice_of(names, None, self.tool_choice.function.name)
        if isinstance(self.tool_choice, AllowedChoice):
            return choice_of(names, self.tool_choice.allowed_tools.mode)
        return choice_of(names, self.tool_choice)

    @property
    def offered(self) -> list[Tool]:
        """The tools that may be called. Raises OptionError, as `choice`."""
        tools = [tool.tool() for tool in self.tools or ()]
        if not isinstance(self.tool_choice, AllowedChoice):
            return tools
        return allowed(tools, [tool.function.name for tool in self.tool_choice.allowed_tools.tools])

    def asked(self) -> dict[str, Any]:
        """The fields of an `Ask` that it gives."""
        return {
            "messages": [message.plain() for message in self.messages],
            "tools": self.offered,
            "tool_choice": self.choice,
            "parallel_calls": self.parallel_tool_calls is not False,
            "continue_last": self.continue_final_message,
            "template_options": self.chat_template_kwargs or {},
        }


class ChatBody(Talk, Sampling, Formatted, Neutral, Elsewhere):
    """POST /v1/chat/completions."""

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELY)] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    cache_salt: str | None = None
    reasoning_effort: str | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None
    audio: None = None
    prediction: None = None
    moderation: None = None
    web_search_options: None = None
    functions: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _agrees(self) -> ChatBody:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are the same limit and differ here; send one")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true only")
        if not self.add_generation_prompt and not self.continue_final_message:
            raise ValueError("add_generation_prompt can be false only where continue_final_message is true")
        return self


class CompletionBody(Sampling, Formatted, Neutral, Elsewhere):
    """POST /v1/completions."""

    model: str | None = None
    prompt: str | Ids | Annotated[list[str] | list[Ids], Field(min_length=1, max_length=128)]
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    n: Count | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELY)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    cache_salt: str | None = None

    @model_validator(mode="after")
    def _agrees(self) -> CompletionBody:
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of can only be what n is: all answers are returned")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true only")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens can be 0 only with echo")
        return self


class EmbeddingBody(Neutral):
    """POST /v1/embeddings."""

    model: str | None = None
    input: str | Ids | Annotated[list[str] | list[Ids], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    pooling: Literal["mean", "last"] = "mean"
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None


# Tokens


class TokenizeBody(Body):
    """POST /tokenize: a text by vLLM's name or llama.cpp's, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[FunctionTool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one(self) -> TokenizeBody:
        if sum(each is not None for each in (self.prompt, self.content, self.messages)) != 1:
            raise ValueError("send exactly one of prompt, content and messages")
        if self.messages is None and (self.tools or self.chat_template_kwargs):
            raise ValueError("tools and chat_template_kwargs go with messages")
        return self


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: Ids


class ScoreBody(Body):
    """POST /score: how alike two texts are, or how likely a continuation is."""

    model: str | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    context: str | Ids | None = None
    continuation: str | Ids | list[str] | list[Ids] | None = None

    @model_validator(mode="after")
    def _pairs(self) -> ScoreBody:
        alike = (self.text_1 is not None, self.text_2 is not None)
        likely = (self.context is not None, self.continuation is not None)
        if {alike, likely} != {(True, True), (False, False)}:
            raise ValueError("send text_1 and text_2, or context and continuation")
        return self


class LoadAdapterBody(Body):
    """POST /v1/load_lora_adapter. `model`: the base model, where there are several."""

    lora_name: str
    lora_path: str
    model: str | None = None


class UnloadAdapterBody(Body):
    """POST /v1/unload_lora_adapter."""

    lora_name: str


def as_list(value: Any) -> list[Any]:
    """One text, one list of ids, or several of either, as several."""
    many = isinstance(value, list) and bool(value) and not isinstance(value[0], int)
    return value if many else [value]
