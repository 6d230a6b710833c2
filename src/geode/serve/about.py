"""What is served and how it is: models, adapters, health, the numbers that the page shows.

How models are loaded is not known here.
"""

from __future__ import annotations

import asyncio
import platform
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from .. import __version__
from .http import Json
from .loan import models_of, settings_of
from .schema import LoadAdapterBody, UnloadAdapterBody

if TYPE_CHECKING:
    from .loading import Served
    from .slots import Card

router = APIRouter()
BEGUN = time.time()
PATIENCE = 10.0  # seconds for a check
HOW = "Whoever runs the server chooses where: geode serve --adapter-dir DIR."


@router.get("/v1/models", tags=["OpenAI"])
async def list_models(request: Request) -> Response:
    """All models and adapters, loaded or not."""
    cards = await asyncio.to_thread(models_of(request).cards)
    ends = {"first_id": cards[0].name, "last_id": cards[-1].name, "has_more": False}
    return Json({"object": "list", "data": [*map(_model, cards)], **ends})


@router.get("/v1/models/{model:path}", tags=["OpenAI"])
async def one_model(model: str, request: Request) -> Response:
    """One of them, by name or alias."""
    return Json(_model(await asyncio.to_thread(models_of(request).card, model)))


@router.post("/v1/load_lora_adapter", tags=["Adapters"])
async def load_lora_adapter(body: LoadAdapterBody, request: Request) -> Response:
    """Serves an adapter, by a path on the server, under a name of its own from now on."""
    if not settings_of(request).may_load(body.lora_path):
        raise HTTPException(
            403, f"lora_path must be something below a directory that this server takes adapters from. {HOW}"
        )
    await models_of(request).load_adapter(body.lora_name, body.lora_path, body.model)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter", tags=["Adapters"])
async def unload_lora_adapter(body: UnloadAdapterBody, request: Request) -> Response:
    """Forgets an adapter; answers that use it are finished with it."""
    settings = settings_of(request)
    if not settings.private and not settings.adapter_dirs:
        raise HTTPException(403, f"Adapters come and go only where this server takes some from. {HOW}")
    await models_of(request).unload_adapter(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


@router.get("/health", tags=["Operation"])
async def health() -> Response:
    """Whether the process is alive. A model whose engine failed is loaded anew when it is asked for."""
    return Json({"status": "ok"})


@router.get("/ready", tags=["Operation"])
async def ready(request: Request) -> Response:
    """Whether a request would be answered now: models are loaded, or will be, and the server is not shutting down."""
    if request.app.state.draining():
        return Json({"status": "draining"}, 503)
    return Json({"status": "ready"}) if models_of(request).ready else Json({"status": "loading"}, 503)


@router.get("/v1/status", tags=["Operation"])
async def status(request: Request, check: bool = False) -> Response:
    """Version, uptime, and for each model what its engine is doing. Seconds, bytes, tokens. With `check` each engine's
    books are gone through as well: "ok", or what is wrong."""
    models = models_of(request)
    cards = await asyncio.to_thread(models.cards)
    engines = {served.name: await _engine(served, check) for served in models.loaded()}
    return Json(
        {
            "version": __version__,
            "python": platform.python_version(),
            "uptime_seconds": round(time.time() - BEGUN, 3),
            "default": models.default,
            "models": [_model(card) | engines.get(card.base or card.name, {"stats": None}) for card in cards],
        }
    )


async def _check(served: Served) -> str:
    """The engine looks between two of its steps: this loop only waits."""
    try:
        await asyncio.wait_for(asyncio.wrap_future(served.engine.checked()), PATIENCE)
    except TimeoutError:
        return f"the engine has not ended a step for {PATIENCE:g} seconds"
    except AssertionError as problem:
        return str(problem)
    return "ok"


def _model(card: Card) -> dict[str, Any]:
    """OpenAI's fields and Anthropic's, vLLM's for the context and an adapter's base, and what else is known."""
    return {
        "id": card.name,
        "object": "model",
        "type": "model",
        "display_name": card.name,
        "created": card.created,
        "created_at": datetime.fromtimestamp(card.created, UTC).isoformat(),
        "owned_by": "geode",
        "root": card.base or card.name,
        "parent": card.base,
        "max_model_len": card.context,
        "aliases": [*card.aliases],
        "loaded": card.loaded,
        "size": card.size,
    }


async def _engine(served: Served, check: bool) -> dict[str, Any]:
    """Statistics, what the executor tells of itself, and what the page offers: a chat, tokens."""
    facts: dict[str, Any] = getattr(served.local.executor, "facts", dict)()
    plain = {name: value for name, value in facts.items() if isinstance(value, str | int | float)}
    can = {"chat": served.local.template is not None, "tokens": served.local.tokenizer is not None}
    stats = served.engine.stats()
    sizes = {"bytes_held": served.size + stats.kv_used, "bytes_reserved": served.size + stats.kv_bytes}
    said = {"check": await _check(served)} if check else {}
    return {"stats": asdict(stats), "executor": plain, "can": can, **sizes, **said}
