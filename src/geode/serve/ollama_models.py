"""The models of Ollama's API, listed and shown, found by its names, and kept for as long as a request says.

What is asked of them is not known here.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from .. import __version__
from ..errors import ModelNotFound, OptionError
from .http import Json, Untyped
from .loan import models_of, settings_of
from .ollama_schema import ShowBody
from .ollama_writer import time_of

if TYPE_CHECKING:
    from .models import Models
    from .slots import Card

router = APIRouter(prefix="/api", tags=["Ollama"], route_class=Untyped)
SPOKEN = "0.12.0"  # whose API this is: clients compare it with what they need
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@router.get("/tags")
async def tags(request: Request) -> Response:
    """All models and adapters."""
    cards = await asyncio.to_thread(models_of(request).cards)
    return Json({"models": [_listed(card) for card in cards]})


@router.get("/ps")
async def running_models(request: Request) -> Response:
    """Those that are in memory."""
    cards = await asyncio.to_thread(models_of(request).cards)
    return Json({"models": [_listed(card) | {"size_vram": 0} for card in cards if card.loaded and card.base is None]})


@router.post("/show")
async def show(body: ShowBody, request: Request) -> Response:
    """What is known of one model."""
    if (body.model is None) == (body.name is None):
        raise OptionError("model must be the name of a model; `name` is its older spelling.")
    name = name_of(body.model or body.name or "", models_of(request))
    card = await asyncio.to_thread(models_of(request).card, name)
    return Json(await _shown(card, models_of(request)))


@router.get("/version")
async def version() -> Response:
    """Which version of Ollama's API this is, and of Geode."""
    return Json({"version": SPOKEN, "geode": __version__})


def kept(name: str, keep: str | float | None, request: Request) -> str:
    """The model that is meant, once it is noted how long it stays; 0 lets go of it after this request.

    A server that is not private keeps it no shorter than its own setting says.
    """
    models, settings = models_of(request), settings_of(request)
    found, seconds = name_of(name, models), settings.idle if keep is None else seconds_of(keep)
    if not settings.private:
        if seconds == 0 and keep is not None:
            raise HTTPException(403, "keep_alive must be more than 0: others use the model, too, and it stays.")
        seconds = None if seconds is None or settings.idle is None else max(seconds, settings.idle)
    models.keep(found, seconds)
    return found


def name_of(name: str, models: Models) -> str:
    """Ollama's clients add ":latest" to names that have no tag. Raises ModelNotFound."""
    try:
        models.find(name)
    except ModelNotFound:
        short = name.removesuffix(":latest")
        models.find(short)
        return short
    return name


def seconds_of(keep: str | float) -> float | None:
    """A duration as Go writes it, "1h30m", or seconds; None for a negative one: for good. Raises OptionError."""
    if isinstance(keep, str):
        parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", keep)
        if re.fullmatch(r"-?\d+(\.\d+)?", keep):
            keep = float(keep)
        elif not parts or "".join(number + unit for number, unit in parts) != keep.lstrip("-"):
            raise OptionError(f'keep_alive must be a duration, as in "5m", or seconds; {keep[:100]!r} was given.')
        else:
            keep = sum(float(number) * UNITS[unit] for number, unit in parts) * (-1 if keep.startswith("-") else 1)
    return None if keep < 0 else float(keep)


async def _shown(card: Card, models: Models) -> dict[str, Any]:
    async with models.use(card.name) as served:  # templates and tokenizers are read only with the model
        local = served.local
        source = getattr(local.template, "source", "")
        abilities = ["completion", *(["tools"] if local.template else []), "embedding"]
    config, kind = local.config, card.family or "unknown"
    return {
        "modelfile": f"FROM {card.name}\n",
        "parameters": "",
        "template": source,
        "details": _details(card),
        "model_info": {
            "general.architecture": kind,
            "general.parameter_count": _parameters(card),
            f"{kind}.context_length": card.context,
            f"{kind}.embedding_length": config.width,
            f"{kind}.block_count": config.depth,
            f"{kind}.attention.head_count": config.heads,
            f"{kind}.attention.head_count_kv": config.kv_heads,
            f"{kind}.feed_forward_length": config.ffn,
        },
        "capabilities": abilities,
        "modified_at": time_of(card.created),
    }


def _listed(card: Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "model": card.name,
        "modified_at": time_of(card.created),
        "size": card.size,
        "digest": hashlib.sha256(f"{card.name} {card.created} {card.size}".encode()).hexdigest(),
        "details": _details(card),
    }


def _details(card: Card) -> dict[str, Any]:
    count = _parameters(card)
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"
    return {
        "parent_model": card.base or "",
        "format": card.format,
        "family": card.family,
        "families": [card.family] if card.family else [],
        "parameter_size": size,
        "quantization_level": "",
    }


def _parameters(card: Card) -> int:
    from ..tensors import parameters

    return parameters(card.config)
