"""OpenAI's embeddings, POST /v1/embeddings, and POST /score: how alike texts are, how likely continuations.

How vectors are computed is not known here.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from ..errors import ContextError, OptionError
from .ask import Spent
from .http import Json, there
from .loan import models_of, promised, who
from .record import current
from .replies import head
from .schema import EmbeddingBody, ScoreBody, as_list

if TYPE_CHECKING:
    from .loading import Served

router = APIRouter()


@router.post("/v1/embeddings", tags=["OpenAI"])
async def embeddings(body: EmbeddingBody, request: Request) -> Response:
    """A vector of length 1 for each input: the hidden states pooled."""
    async with models_of(request).use(body.model) as served:
        _check_dimensions(body, served)
        work = embedded(request, served, as_list(body.input), body.truncate_prompt_tokens, body.pooling)
        vectors, count, lost = await there(request, work)
        data = [
            {"object": "embedding", "index": i, "embedding": _written(vector, body.encoding_format)}
            for i, vector in enumerate(vectors)
        ]
        spent = {"prompt_tokens": count, "total_tokens": count} | ({"truncated_tokens": lost} if lost else {})
        return Json({"object": "list", "data": data, "model": served.name, "usage": spent})


@router.post("/score", tags=["Geode"])
async def score(body: ScoreBody, request: Request) -> Response:
    """For text_1 and text_2 the cosine of their embeddings; for a context and continuations, log-probabilities."""
    async with models_of(request).use(body.model) as served:
        work = _alike(body, request, served) if body.text_1 is not None else _likely(body, request, served)
        data, count = await there(request, work)
        current().spent(Spent(count, 0))
        spent = {"prompt_tokens": count, "total_tokens": count}
        return Json({**head("score", "list", served).fields, "data": data, "usage": spent})


async def embedded(
    request: Request, served: Served, inputs: Sequence[Any], truncate: int | None, pooling: str = "mean"
) -> tuple[list[np.ndarray], int, int]:
    """A vector of length 1 for each text or list of ids, (D,); how many tokens were read, and how many left out.

    truncate  tokens of an input's beginning to keep, -1 as many as the context holds. Raises ContextError, OptionError.
    """
    ids = await asyncio.to_thread(lambda: [_ids(served, each, truncate) for each in inputs])
    vectors = await _vectors(request, served, [one for one, _ in ids], pooling)
    count, lost = sum(len(one) for one, _ in ids), sum(lost for _, lost in ids)
    current().spent(Spent(count, 0, truncated=lost))
    return vectors, count, lost


async def _alike(body: ScoreBody, request: Request, served: Served) -> tuple[list[dict[str, Any]], int]:
    """One text with each of several, or each of several with that at its place."""
    first, second = as_list(body.text_1), as_list(body.text_2)
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second) or not first:
        raise OptionError(f"text_1 must be one text, or as many as text_2 has; {len(first)} and {len(second)} came.")
    ids = await asyncio.to_thread(lambda: {text: _ids(served, text, None)[0] for text in (*first, *second)})
    texts = list(ids)
    vectors = dict(zip(texts, await _vectors(request, served, list(ids.values()), "mean"), strict=True))
    pairs = enumerate(zip(first, second, strict=True))
    data = [{"index": i, "object": "score", "score": float(vectors[a] @ vectors[b])} for i, (a, b) in pairs]
    return data, sum(map(len, ids.values()))


async def _likely(body: ScoreBody, request: Request, served: Served) -> tuple[list[dict[str, Any]], int]:
    """How likely each continuation is after the context: natural logarithms."""
    each = as_list(body.continuation)
    context: Any = body.context
    split = await asyncio.to_thread(lambda: [served.local.split(context, continuation) for continuation in each])
    scores = await promised(served.engine.score, split, adapter=served.adapter, **who(request))
    data = []
    for i, ((ids, start), said) in enumerate(zip(split, scores, strict=True)):
        found = {"index": i, "object": "score", "score": sum(said.logprobs), "is_greedy": all(said.greedy)}
        data.append({**found, "tokens": ids[start:], "token_logprobs": said.logprobs})
    return data, sum(len(ids) for ids, _ in split)


async def _vectors(request: Request, served: Served, inputs: Sequence[Sequence[int]], pooling: str) -> list[np.ndarray]:
    """One vector of length 1 for each input, (D,). None is computed further once the client is gone."""
    asked = {"adapter": served.adapter, "pooling": pooling, **who(request)}
    return [_unit(vector) for vector in await promised(served.engine.embed, ((ids,) for ids in inputs), **asked)]


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length > 0 else vector


def _ids(served: Served, given: Any, truncate: int | None) -> tuple[list[int], int]:
    """An input's ids, and how many were left out of them. Raises ContextError, OptionError."""
    ids, context = served.local.ids_of(given), served.context
    if not ids:
        raise OptionError("input must be a text or ids, at least one token; an empty one was given.")
    keep = len(ids) if truncate is None else context if truncate == -1 else truncate
    if keep > context and len(ids) > context:
        raise ContextError(f"An input has {len(ids)} tokens and the model's context holds {context}. Shorten it.")
    return ids[:keep], max(0, len(ids) - keep)


def _check_dimensions(body: EmbeddingBody, served: Served) -> None:
    width = served.local.config.width
    if body.dimensions not in (None, width):
        raise OptionError(
            f"dimensions must be left out, or {width}, which this model's vectors have: it was not trained to give "
            f"shorter ones; {body.dimensions} was given."
        )


def _written(vector: np.ndarray, form: str | None) -> Any:
    """A list of numbers, or the base64 of float32, little end first."""
    if form == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
    return vector.tolist()
