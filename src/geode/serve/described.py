"""The OpenAPI document, as far as FastAPI cannot know it: what answers and errors look like, and in which types.

What requests look like is told by their schemas, and nothing is answered here.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from .problems import Problem, errors_of

JSON, EVENTS, LINES, TEXT = "application/json", "text/event-stream", "application/x-ndjson", "text/plain"
ANSWERS: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("post", "/v1/chat/completions"): ("id object created model choices usage", (JSON, EVENTS)),
    ("post", "/v1/completions"): ("id object created model choices usage", (JSON, EVENTS)),
    ("post", "/v1/embeddings"): ("object data model usage", (JSON,)),
    ("post", "/score"): ("id object created model data usage", (JSON,)),
    ("post", "/v1/responses"): ("id object created_at status model output usage", (JSON, EVENTS)),
    ("get", "/v1/responses/{response_id}"): ("id object created_at status model output usage", (JSON,)),
    ("delete", "/v1/responses/{response_id}"): ("id object deleted", (JSON,)),
    ("get", "/v1/responses/{response_id}/input_items"): ("object data first_id last_id has_more", (JSON,)),
    ("post", "/v1/responses/{response_id}/cancel"): ("", (JSON,)),
    ("post", "/v1/responses/input_tokens"): ("object input_tokens", (JSON,)),
    ("post", "/v1/messages"): ("id type role model content stop_reason stop_sequence usage", (JSON, EVENTS)),
    ("post", "/v1/messages/count_tokens"): ("input_tokens", (JSON,)),
    ("post", "/tokenize"): ("tokens count max_model_len", (JSON,)),
    ("post", "/detokenize"): ("prompt content", (JSON,)),
    ("post", "/apply-template"): ("prompt tokens", (JSON,)),
    ("get", "/v1/models"): ("object data", (JSON,)),
    ("get", "/v1/models/{model}"): ("id object created owned_by max_model_len loaded", (JSON,)),
    ("post", "/v1/load_lora_adapter"): ("", (TEXT,)),
    ("post", "/v1/unload_lora_adapter"): ("", (TEXT,)),
    ("get", "/health"): ("status", (JSON,)),
    ("get", "/ready"): ("status", (JSON,)),
    ("get", "/v1/status"): ("version python uptime_seconds default models", (JSON,)),
    ("get", "/metrics"): ("", (TEXT,)),
    ("post", "/api/chat"): ("model created_at message done", (JSON, LINES)),
    ("post", "/api/generate"): ("model created_at response done", (JSON, LINES)),
    ("post", "/api/embed"): ("model embeddings", (JSON,)),
    ("post", "/api/embeddings"): ("embedding", (JSON,)),
    ("get", "/api/tags"): ("models", (JSON,)),
    ("get", "/api/ps"): ("models", (JSON,)),
    ("post", "/api/show"): ("details model_info capabilities", (JSON,)),
    ("get", "/api/version"): ("version", (JSON,)),
}
"""For each operation the fields that its answer always has, and the types in which it may come: streams are another."""
STATES = frozenset({"/health", "/ready"})  # they have an answer where others have an error


def install(app: FastAPI) -> None:
    """Lets the app describe itself so."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(
                get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            )
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            names, types = ANSWERS.get((method, path), ("", (JSON,)))
            good = {"description": "What was asked for.", "content": {kind: _content(kind, names) for kind in types}}
            error = {"description": "What is wrong, in this API's shape.", "content": {JSON: {"schema": _error(path)}}}
            down = good | {"description": "Not now."} if path in STATES else error
            operation["responses"] = {"200": good, "4XX": error, "5XX": down}
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own errors, which nobody is told here
        document.get("components", {}).get("schemas", {}).pop(name, None)
    return document


def _content(kind: str, names: str) -> dict[str, Any]:
    whole = {"type": "object", "required": names.split()} if kind == JSON else {"type": "string"}
    return {"schema": {} if kind in (EVENTS, LINES) else whole}  # parts differ


def _error(path: str) -> dict[str, Any]:
    return _like(errors_of(path)(Problem(400, "")))


def _like(sample: Any) -> dict[str, Any]:
    """The schema of values like this one; where it has nothing, others may have a text or an object."""
    if isinstance(sample, dict):
        properties = {name: _like(value) for name, value in sample.items()}
        return {"type": "object", "required": [*sample], "properties": properties, "additionalProperties": False}
    return {"type": "string" if isinstance(sample, str) else ["string", "object", "null"]}
