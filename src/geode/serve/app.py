"""The application: all APIs, one beside the other, behind one gate.

Sockets and signals are not known here, nor what any one API means.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from .. import __version__
from . import (
    about,
    chat,
    completions,
    described,
    embeddings,
    messages,
    metrics,
    ollama,
    ollama_models,
    problems,
    responses,
    tokens,
    vertex,
)
from .models import Models
from .page import page_router
from .settings import Settings

ROUTERS: list[APIRouter] = [
    chat.router,
    completions.router,
    embeddings.router,
    responses.router,
    messages.router,
    tokens.router,
    about.router,
    metrics.router,
    ollama.router,
    ollama_models.router,
]


def create_app(settings: Settings, models: Models | None = None) -> FastAPI:
    """The whole server as an ASGI application, with models of its own where none are given."""
    served = Models(settings) if models is None else models
    app = FastAPI(
        title="Geode",
        version=__version__,
        summary="Open-weight language models behind the APIs that applications speak.",
        lifespan=_life,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.settings, app.state.models, app.state.draining = settings, served, lambda: False
    problems.install(app)
    described.install(app)
    for router in ROUTERS:
        app.include_router(router)
    if settings.vertex is not None:
        app.include_router(vertex.router(settings.vertex))
    if settings.page:
        app.include_router(page_router())
    return app


@asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    """Loads models before the first request, lets go of all after the last."""
    models: Models = app.state.models
    await models.preload()
    watching = asyncio.create_task(models.watch())
    yield
    watching.cancel()
    await asyncio.to_thread(models.close)
