"""The OpenAPI document: FastAPI's own routes, and the hot routes with the schemas of their msgspec types."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import FastAPI

from api import views
from api.capacityview import CapacityView
from api.deadletters import Dropped, LettersView, LetterView, Replay, Replayed
from api.problems import Problem
from api.results import Accepted, Pending
from api.submit import ATTEMPTS_MAX, Options, Submit, SubmitTo
from jobs.records import Document

VERSION = version("penstock")
_RAW = ("application/octet-stream", "image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif", "text/plain")
_COLD: dict[tuple[str, str], type[msgspec.Struct]] = {
    ("/models", "get"): views.ModelsView,
    ("/models/{model}", "get"): views.ModelView,
    ("/capacity", "get"): CapacityView,
    ("/livez", "get"): views.LiveView,
    ("/readyz", "get"): views.ReadyView,
    ("/problems/{code}", "get"): views.ProblemView,
    ("/result/{task_id}/cancel", "post"): Document,
    ("/dead-letters", "get"): LettersView,
    ("/dead-letters", "delete"): Dropped,
    ("/dead-letters/replay", "post"): Replayed,
    ("/dead-letters/{task_id}", "get"): LetterView,
    ("/dead-letters/{task_id}", "delete"): Dropped,
}
_REF = "#/components/schemas/{name}"


def describe(app: FastAPI) -> None:
    """Make ``app.openapi()`` tell every route."""
    framework = app.openapi

    def whole() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = framework()
            types = [Submit, SubmitTo, Accepted, Pending, Problem, Replay, *dict.fromkeys(_COLD.values())]
            _, components = msgspec.json.schema_components(types, ref_template=_REF)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(components)
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{}, {"key": []}]
            document["paths"].update(_hot_paths())
            _refusals(document)
            _answers(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = whole  # type: ignore[method-assign]


def _hot_paths() -> dict[str, Any]:
    raw = {each: {"schema": {"type": "string", "format": "binary"}} for each in _RAW}
    named = {"application/json": {"schema": _ref("Submit")}, **raw}
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    task = {"name": "task_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        "/predict/{model}": {
            "post": _operation("submit", "Submit an input to a model", [model, *_queries(), *_SUBMIT_HEADERS], named)
        },
        "/predict": {
            "post": _operation(
                "submit_to",
                "Submit an input; the body names the model",
                list(_SUBMIT_HEADERS),
                {"application/json": {"schema": _ref("SubmitTo")}},
            )
        },
        "/result/{task_id}": {"get": _operation("result", "A job as it stands", [task, _PREFER], None)},
    }


_PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "wait=N: answer when the job ends, or after N seconds (at most 60)",
    "schema": {"type": "string"},
    "example": "wait=5",
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "1 to 255 visible ASCII characters, best in quotation marks: the same request with the same key "
    "is one job, and gets the first answer again",
    "schema": {"type": "string"},
    "example": '"8e03978e-40d5-43e8-bc93-6894a57f9324"',
}
_CACHE_CONTROL = {
    "name": "Cache-Control",
    "in": "header",
    "description": "no-cache: compute the result anew, as `cache` = `refresh`; no-store: as `cache` = `off`",
    "schema": {"type": "string"},
    "example": "no-cache",
}
_SUBMIT_HEADERS = (_PREFER, _IDEMPOTENCY_KEY, _CACHE_CONTROL)
_SUBMIT_ANSWER_HEADERS = {
    "Idempotent-Replayed": {
        "description": "true: this is the first answer to this Idempotency-Key again",
        "schema": {"type": "string"},
    },
    "RateLimit": {"description": "what is left of the tenant's rate", "schema": {"type": "string"}},
    "RateLimit-Policy": {"description": "the tenant's rate", "schema": {"type": "string"}},
}
_SUBMIT_REFUSALS = {
    408: "The body took too long",
    413: "Too large",
    415: "Media type",
    422: "Not valid; or the Idempotency-Key is not one, or came with another request before",
    429: "Your quota",
    503: "Our capacity: the queue is full, the deadline cannot be met, or store, broker or model are away",
}


def _operation(
    name: str, summary: str, parameters: list[dict[str, Any]], content: dict[str, Any] | None
) -> dict[str, Any]:
    pending = "Accepted" if content else "Pending"
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "tags": ["jobs"],
        "parameters": parameters,
        "responses": {
            "202": _response("Stored; under way", pending, headers=True),
            "200": _response("Ended: completed, failed, expired or cancelled", "Document"),
        },
    }
    if content is None:
        operation["responses"]["410"] = _problem("Past its retention")
        return operation
    if content:
        operation["requestBody"] = {"required": True, "content": content}
        # With Prefer: wait a job that is still under way is told as a poll tells it.
        operation["responses"]["202"]["content"]["application/json"]["schema"] = {
            "anyOf": [_ref("Accepted"), _ref("Pending")]
        }
        operation["responses"]["202"]["headers"] |= _SUBMIT_ANSWER_HEADERS
    return operation


def _queries() -> list[dict[str, Any]]:
    _, components = msgspec.json.schema_components([Options], ref_template=_REF)
    properties = components["Options"]["properties"]
    attempts = components["RetryOptions"]["properties"]["attempts_max"]
    properties = {ATTEMPTS_MAX if name == "retry" else name: schema for name, schema in properties.items()}
    properties[ATTEMPTS_MAX] = attempts
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": _plain(schema),
            "description": "for raw bodies",
        }
        for name, schema in properties.items()
    ]


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A query parameter is never null; it is left out."""
    options = [each for each in schema.get("anyOf", []) if each.get("type") != "null"]
    return options[0] if options else {key: value for key, value in schema.items() if key != "default"}


def _response(text: str, schema: str, *, headers: bool = False) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": text,
        "content": {"application/json": {"schema": _ref(schema)}},
    }
    if headers:
        response["headers"] = {
            "Location": {"description": "where to poll", "schema": {"type": "string"}},
            "Retry-After": {"description": "seconds until it is worth asking", "schema": {"type": "integer"}},
        }
    return response


def _refusals(document: dict[str, Any]) -> None:
    """Every operation may refuse; a 422 of FastAPI's own form is never sent."""
    common = {
        400: "Cannot be read",
        401: "No valid key",
        404: "Unknown",
        422: "Not valid",
        503: "Our capacity",
    }
    for path in document["paths"].values():
        for operation in path.values():
            for status, text in common.items():
                operation["responses"][str(status)] = _problem(text)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _answers(document: dict[str, Any]) -> None:
    """What the cold routes answer; a gateway that is not ready says so in the same form."""
    paths = document["paths"]
    for (path, method), form in _COLD.items():
        responses = paths[path][method]["responses"]
        responses["200"] = _response(responses["200"]["description"], form.__name__)
    for path in ("/predict", "/predict/{model}"):
        for status, text in _SUBMIT_REFUSALS.items():
            paths[path]["post"]["responses"][str(status)] = _problem(text)
    for verb in ("cancel", "retry"):
        responses = paths[f"/result/{{task_id}}/{verb}"]["post"]["responses"]
        responses["202"] = _response("Under way", "Pending", headers=True)
        responses["409"] = _problem("The job's state forbids it")
        responses["410"] = _problem("Past its retention")
    kept = paths["/dead-letters/{task_id}/input"]["get"]["responses"]["200"]
    kept["content"] = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
    order = {"application/json": {"schema": _ref("Replay")}}
    paths["/dead-letters/replay"]["post"]["requestBody"] = {"required": True, "content": order}
    for path in ("/dead-letters", "/dead-letters/replay", "/dead-letters/{task_id}", "/dead-letters/{task_id}/input"):
        for operation in paths[path].values():
            operation["responses"]["403"] = _problem("Not an admin's key")
    document["paths"]["/readyz"]["get"]["responses"]["503"] = _response("Not ready", views.ReadyView.__name__)


def _problem(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/problem+json": {"schema": _ref("Problem")}}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(name=name)}
