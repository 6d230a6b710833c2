"""What went wrong, in the shape of the API that was asked.

What an API's answers look like is not known here, nor how one is made.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from ..errors import (
    CapacityError,
    ChatError,
    ContextError,
    GeodeError,
    ModelNotFound,
    OptionError,
    TokenizerError,
    TooMany,
)
from .http import Json
from .record import current

BAD = "invalid_json"
NO_THREADS = "thread_unsupported_request"  # Anthropic's word, at which its client sends the whole conversation itself
log = logging.getLogger("geode.serve")


@dataclass(frozen=True)
class Problem:
    """What went wrong, before any API's shape: `code` as OpenAI has them, `param` the field that is meant."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def openai_shape(problem: Problem) -> dict[str, Any]:
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    name = kind.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
    return {"error": {"message": problem.message, "type": name, "param": problem.param, "code": problem.code}}


def anthropic_shape(problem: Problem) -> dict[str, Any]:
    kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
    kind |= {429: "rate_limit_error", 503: "overloaded_error", 529: "overloaded_error"}
    name = kind.get(problem.status, "invalid_request_error" if problem.status < 500 else "api_error")
    details = {"error_code": NO_THREADS} if problem.param == "thread" else None
    return {"type": "error", "error": {"type": name, "message": problem.message, "details": details}}


def ollama_shape(problem: Problem) -> dict[str, Any]:
    return {"error": problem.message}


SHAPES: dict[str, Callable[[Problem], dict[str, Any]]] = {
    "/v1/messages": anthropic_shape,
    "/api/": ollama_shape,
    "/": openai_shape,
}
"""By how a path begins; the first that fits counts."""


def errors_of(path: str) -> Callable[[Problem], dict[str, Any]]:
    """The shape that errors have below a path."""
    return next(shape for start, shape in SHAPES.items() if path.startswith(start))


def problem_of(error: BaseException) -> Problem:
    """Any error as a problem; what nobody raised on purpose is logged and told as such."""
    current().error = type(error).__name__
    if isinstance(error, GeodeError):
        return _geode_problem(error)
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return _http_problem(error)
    if isinstance(error, RecursionError):
        return Problem(400, "The request is nested too deeply. Flatten it.", "invalid_value")
    if isinstance(error, TimeoutError):
        return Problem(504, "The answer took too long. Ask for fewer tokens, or try again later.", "timeout")
    log.error("unexpected error", exc_info=error)
    return Problem(500, "Something went wrong inside the server; its log says what.", "internal_error")


def response_to(path: str, problem: Problem) -> Response:
    """The response that tells of a problem."""
    return Json(errors_of(path)(problem), problem.status, problem.headers)


def install(app: FastAPI) -> None:
    """Makes an app tell all errors in the shapes of its APIs."""

    async def tell(request: Request, error: Exception) -> Response:
        return response_to(request.url.path, problem_of(error))

    for kind in (GeodeError, RequestValidationError, HTTPException, RecursionError, TimeoutError, Exception):
        app.add_exception_handler(kind, tell)
    app.add_exception_handler(ClientDisconnect, _to_nobody)


async def _to_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # as nginx logs a client that went away


def _geode_problem(error: GeodeError) -> Problem:
    message = str(error)
    if isinstance(error, CapacityError):
        headers = {} if error.retry_after is None else {"retry-after": str(max(1, math.ceil(error.retry_after)))}
        status, code = (429, "rate_limit_exceeded") if isinstance(error, TooMany) else (503, "overloaded")
        return Problem(status, message, code, headers=headers)
    for kind, status, code in KINDS:
        if isinstance(error, kind):
            return Problem(status, message, code, _param(message))
    log.error("%s: %s", type(error).__name__, message)
    return Problem(500, message, "internal_error")


KINDS: tuple[tuple[type[GeodeError], int, str], ...] = (
    (ModelNotFound, 404, "model_not_found"),
    (ContextError, 400, "context_length_exceeded"),
    (ChatError, 400, "invalid_messages"),
    (TokenizerError, 400, "invalid_value"),
    (OptionError, 400, "invalid_value"),
)


def _param(message: str) -> str | None:
    """The field that a message begins with: "temperature must be ..."."""
    first, _, rest = message.partition(" ")
    return first if rest.startswith("must be ") and first[:1].islower() else None


def _http_problem(error: HTTPException) -> Problem:
    message, code = str(error.detail), None
    if error.status_code == 404 and message == "Not Found":
        message = "There is nothing at this address. GET /openapi.json lists what there is."
    elif error.status_code == 405:
        message = "This address does not know the request's method."
    elif message == "There was an error parsing the body":  # FastAPI's, where the json module gives up
        message, code = "The body is no JSON that can be read: it is nested too deeply, or a number is too long.", BAD
    return Problem(error.status_code, message, code, headers=dict(error.headers or {}))


def _invalid(error: RequestValidationError) -> Problem:
    """The first field that is wrong in a body; where it may be of several types, what is wrong within the nearest."""
    found = error.errors()
    first = found[0]
    if first["type"] == "json_invalid":
        return Problem(400, f"The body is no JSON: {first['ctx']['error']} at {first['loc'][-1]}.", BAD)
    if isinstance(error.body, bytes):  # FastAPI parses nothing else
        return Problem(415, "The body must be JSON, sent with 'content-type: application/json'.", BAD)
    sent = error.body if first["loc"][0] == "body" else {}
    paths = [(_path(each["loc"], sent), each) for each in found if each["loc"][:2] == first["loc"][:2]]
    path, first = max(paths, key=lambda pair: pair[0].count("."))
    if first["type"] == "extra_forbidden":
        return Problem(400, f"The field '{path}' is not supported here. Leave it out.", "unsupported_field", path)
    if first["type"] == "missing" and not path:
        return Problem(400, "The body is missing.", "missing_field")
    if first["type"] == "missing":
        return Problem(400, f"The field '{path}' is missing.", "missing_field", path)
    said = dict.fromkeys(_said(each) for where, each in paths if where == path)
    name = f"The field '{path}' is wrong" if path else "The body is wrong"
    return Problem(400, f"{name}: {'; or: '.join([*said][:4])}.", "invalid_value", path or None)


def _path(places: Sequence[Any], body: Any) -> str:
    """The places that exist in the body, or are the last: what lies between names alternatives of a type. The first
    says where all are: in the body, or in the address."""
    names: list[str] = []
    at = body
    rest = places[1:]
    for i, place in enumerate(rest):
        known = place in at if isinstance(at, Mapping) else isinstance(at, list) and isinstance(place, int)
        if known:
            at = at[place]
        if known or (
            isinstance(at, Mapping) and i == len(rest) - 1 and isinstance(place, str) and place.isidentifier()
        ):
            names.append(str(place))
    return ".".join(names)


def _said(error: Mapping[str, Any]) -> str:
    if error["type"] in ("model_attributes_type", "dict_type", "model_type"):
        return "it should be an object"
    if error["type"] == "too_long" and error["ctx"]["max_length"] == 0:
        return "it should be empty: nothing that could be in it is supported here"
    if error["type"] == "union_tag_invalid":
        return f"it should be one of {error['ctx']['expected_tags']}, not {error['ctx']['tag'][:100]!r}"
    if error["type"] == "literal_error":
        expected = str(error["ctx"]["expected"])
        return f"it should be {WORDS.get(expected, expected)}, not {_shown(error['input'])}"
    if error["type"] == "none_required":
        return f"it should be null or left out, not {_shown(error['input'])}; nothing else is supported here"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message.replace("Input should be", "it should be").rstrip(".")


WORDS = {"True": "true", "False": "false"}  # as JSON has them


def _shown(value: Any) -> str:
    """A value for a message: one that is large by its kind."""
    if isinstance(value, str):
        return repr(value[:100])
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return json.dumps(value)[:100]
