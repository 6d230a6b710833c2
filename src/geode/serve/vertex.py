"""Vertex AI's predictions, on the routes that a container is told of in its environment.

How answers are made is not known here. The truth is
cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements.

    {"instances": ["a text", {"prompt": "a text"}, {"messages": [...]}], "parameters": {"max_tokens": 32}}
    {"predictions": [{"text": "...", "finish_reason": "stop"}, ...]}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.responses import Response

from ..generate import Options
from .answer import gathered
from .ask import Ask
from .contract import ROUTES, Contract
from .http import Json, there
from .loan import begin, models_of, who
from .schema import Body, Message

if TYPE_CHECKING:
    from .loading import Served

MOST = 128  # instances of one request


class Prompt(Body):
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Prompt:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        return self


class Parameters(Body):
    """How all instances are answered: our names, and those that Vertex AI's own models have."""

    model: str | None = None
    max_tokens: int | None = None
    max_output_tokens: int | None = Field(None, alias="maxOutputTokens")
    temperature: float | None = None
    top_p: float | None = None
    top_p_: float | None = Field(None, alias="topP")
    top_k: int | None = None
    top_k_: int | None = Field(None, alias="topK")
    stop: str | list[str] | None = None
    stop_sequences: list[str] | None = Field(None, alias="stopSequences")
    seed: int | None = None

    @model_validator(mode="after")
    def _one_name(self) -> Parameters:
        for ours, theirs in PAIRS.items():
            if getattr(self, ours) is not None and getattr(self, theirs) is not None:
                raise ValueError(f"{ours} is there twice, by two names")
        return self

    def options(self) -> Options:
        names = ("max_tokens", "temperature", "top_p", "top_k", "stop", "seed")
        found = {name: getattr(self, name) for name in names}
        found |= {ours: getattr(self, theirs) for ours, theirs in PAIRS.items() if found[ours] is None}
        return Options(**{name: value for name, value in found.items() if value is not None})


PAIRS = {"max_tokens": "max_output_tokens", "top_p": "top_p_", "top_k": "top_k_", "stop": "stop_sequences"}


class PredictBody(Body):
    instances: Annotated[list[str | Prompt], Field(min_length=1, max_length=MOST)]
    parameters: Parameters | None = None


def router(found: Contract) -> APIRouter:
    """The two routes of a contract. One that is there already, such as /health, stays as it is."""
    made = APIRouter(tags=["Vertex AI"])
    made.add_api_route(found.predict, predict, methods=["POST"])
    if found.health != ROUTES["AIP_HEALTH_ROUTE"]:
        made.add_api_route(found.health, healthy, methods=["GET"])
    return made


async def predict(body: PredictBody, request: Request) -> Response:
    """A prediction for each instance, all at the same time."""
    parameters = body.parameters or Parameters.model_validate({})
    running = await begin(request, parameters.model, lambda served: _asks(body, parameters, request, served))
    async with running:
        said = await there(request, gathered(running.answer))
        return Json({"predictions": [{"text": one.text, "finish_reason": one.finish_reason} for one in said]})


async def healthy(request: Request) -> Response:
    """200 once a request would be answered."""
    ready = models_of(request).ready and not request.app.state.draining()
    return Json({"status": "ready" if ready else "loading"}, 200 if ready else 503)


def _asks(body: PredictBody, parameters: Parameters, request: Request, served: Served) -> list[Ask]:
    options = parameters.options()
    return [Ask(model=served.name, options=options, **_prompt(each), **who(request)) for each in body.instances]


def _prompt(instance: str | Prompt) -> dict[str, Any]:
    if isinstance(instance, str):
        return {"text": instance}
    if instance.messages is None:
        return {"text": instance.prompt}
    return {"messages": [message.plain() for message in instance.messages]}
