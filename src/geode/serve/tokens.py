"""Texts to ids, ids to texts, conversations to the texts that models see: /tokenize, /detokenize, /apply-template.

What a model answers is not known here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from .answer import prompt
from .ask import Ask
from .chat import known_to_template
from .http import Json
from .loan import models_of
from .replies import Tokens
from .schema import DetokenizeBody, Talk, TokenizeBody

if TYPE_CHECKING:
    from .loading import Served

router = APIRouter(tags=["Tokens"])


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: Request) -> Response:
    """The ids of a text, or of a conversation as the model sees it."""
    async with models_of(request).use(body.model) as served:
        ids = await asyncio.to_thread(_encoded, body, served)
        found: dict[str, Any] = {"count": len(ids), "max_model_len": served.engine.context, "tokens": ids}
        if body.return_token_strs:
            found["token_strs"] = [*map(Tokens(served).text, ids)]
        return Json(found)


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request) -> Response:
    """The text of ids: `prompt`, and the same again as `content`, llama.cpp's name for it."""
    async with models_of(request).use(body.model) as served:
        text = await asyncio.to_thread(served.local.detokenize, body.tokens)
        return Json({"prompt": text, "content": text})


@router.post("/apply-template")
async def apply_template(body: Talk, request: Request) -> Response:
    """The text of a conversation as the model sees it, control tokens shown, and its ids."""
    async with models_of(request).use(body.model) as served:
        ids = await asyncio.to_thread(_rendered, served, body)
        tokens = Tokens(served)
        return Json({"prompt": b"".join(map(tokens.raw, ids)).decode("utf-8", "replace"), "tokens": ids})


def _encoded(body: TokenizeBody, served: Served) -> list[int]:
    if body.messages is None:
        text = body.prompt if body.prompt is not None else body.content or ""
        return served.local.tokenize(text, bos=None if body.add_special_tokens else False)
    talk = Talk(messages=body.messages, tools=body.tools, chat_template_kwargs=body.chat_template_kwargs)
    return _rendered(served, talk)


def _rendered(served: Served, talk: Talk) -> list[int]:
    asked = talk.asked()
    known_to_template(served, asked["template_options"])
    return prompt(served, Ask(model=served.name, **asked))
