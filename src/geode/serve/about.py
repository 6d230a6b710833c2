"""What is served and how it is: models, adapters, health, the numbers that the page shows.

How models are loaded is not known here.
"""

from __future__ import annotations

import asyncio
import platform
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from .. import __version__
from .http import Json, models_of
from .schema import LoadAdapterBody, UnloadAdapterBody

if TYPE_CHECKING:
    from .models import Card, Served

router = APIRouter()
BEGUN = time.time()


@router.get("/v1/models", tags=["OpenAI"])
async def list_models(request: Request) -> Response:
    """All models and adapters, loaded or not."""
    cards = await asyncio.to_thread(models_of(request).cards)
    return Json({"object": "list", "data": [*map(_model, cards)]})


@router.get("/v1/models/{model:path}", tags=["OpenAI"])
async def one_model(model: str, request: Request) -> Response:
    """One of them, by name or alias."""
    return Json(_model(await asyncio.to_thread(models_of(request).card, model)))


@router.post("/v1/load_lora_adapter", tags=["Adapters"])
async def load_lora_adapter(body: LoadAdapterBody, request: Request) -> Response:
    """Serves an adapter, by a path on the server, under a name of its own from now on."""
    await models_of(request).load_adapter(body.lora_name, body.lora_path, body.model)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter", tags=["Adapters"])
async def unload_lora_adapter(body: UnloadAdapterBody, request: Request) -> Response:
    """Forgets an adapter; answers that use it are finished with it."""
    await models_of(request).unload_adapter(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


@router.get("/health", tags=["Operation"])
async def health(request: Request) -> Response:
    """Whether the process is alive, and no loaded engine has died."""
    dead = [served.name for served in models_of(request).loaded() if getattr(served.engine, "failed", None) is not None]
    return Json({"status": "failed", "models": dead}, 503) if dead else Json({"status": "ok"})


@router.get("/ready", tags=["Operation"])
async def ready(request: Request) -> Response:
    """Whether a request would be answered now: models are loaded, or will be, and the server is not shutting down."""
    if request.app.state.draining():
        return Json({"status": "draining"}, 503)
    return Json({"status": "ready"}) if models_of(request).ready else Json({"status": "loading"}, 503)


@router.get("/v1/status", tags=["Operation"])
async def status(request: Request) -> Response:
    """Version, uptime, and for each model what its engine is doing. Seconds, bytes, tokens."""
    models = models_of(request)
    cards = await asyncio.to_thread(models.cards)
    loaded = {served.name: served for served in models.loaded()}
    return Json(
        {
            "version": __version__,
            "python": platform.python_version(),
            "uptime_seconds": round(time.time() - BEGUN, 3),
            "default": models.default,
            "models": [_model(card) | _engine(loaded.get(card.base or card.name)) for card in cards],
        }
    )


def _model(card: Card) -> dict[str, Any]:
    """OpenAI's fields, vLLM's for the context and an adapter's base, and what else is known."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "geode",
        "root": card.base or card.name,
        "parent": card.base,
        "max_model_len": card.context,
        "aliases": [*card.aliases],
        "loaded": card.loaded,
        "size": card.size,
    }


def _engine(served: Served | None) -> dict[str, Any]:
    """Statistics, what the executor tells of itself, and what the page offers: a chat, tokens."""
    if served is None:
        return {"stats": None}
    facts: dict[str, Any] = getattr(served.local.executor, "facts", dict)()
    plain = {name: value for name, value in facts.items() if isinstance(value, str | int | float)}
    can = {"chat": served.local.template is not None, "tokens": served.local.tokenizer is not None}
    return {"stats": asdict(served.engine.stats()), "executor": plain, "can": can, "bytes_held": served.held}
