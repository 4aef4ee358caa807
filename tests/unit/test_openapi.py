"""The OpenAPI document tells every route, and nothing in it leads nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator

from api.gateway import Gateway
from api.routes import cold_routes
from jobs.records import LANES

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
HOT = {("post", "/predict"), ("post", "/predict/{model}"), ("get", "/result/{task_id}")}

SUBMIT = {"version", "ttl_s", "lane", "cache", "admit", "retry", "input"}


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return cold_routes(cast("Gateway", None))  # routes use it only when they are called


@pytest.fixture(scope="module")
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _schemas(node: Any) -> Iterator[dict[str, Any]]:
    """Every schema that stands under a ``schema`` key."""
    if isinstance(node, dict):
        if isinstance(node.get("schema"), dict):
            yield node["schema"]
        for value in node.values():
            yield from _schemas(value)
    elif isinstance(node, list):
        for value in node:
            yield from _schemas(value)


def test_every_route_is_told_hot_and_cold(app: FastAPI, document: dict[str, Any]) -> None:
    cold = {
        (method.lower(), route.path)
        for route in app.routes
        if getattr(route, "include_in_schema", False)
        for route in [cast("Any", route)]
        for method in route.methods
    }

    assert cold
    assert {(method, path) for method, path, _ in _operations(document)} == cold | HOT


def test_the_hot_routes_have_the_schemas_of_their_types(document: dict[str, Any]) -> None:
    body = document["paths"]["/predict/{model}"]["post"]["requestBody"]["content"]
    schemas = document["components"]["schemas"]

    assert body["application/json"]["schema"] == {"$ref": "#/components/schemas/Submit"}
    assert set(schemas["Submit"]["properties"]) == SUBMIT
    assert set(schemas["SubmitTo"]["properties"]) == SUBMIT | {"model"}
    assert schemas["Submit"]["additionalProperties"] is False
    assert {"task_id", "status", "links"} <= set(schemas["Accepted"]["required"])
    assert {"Pending", "Document", "Problem"} <= set(schemas)


def test_a_job_that_waits_is_told_with_its_place_its_estimate_and_its_reason(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    assert {"queue", "estimate", "waiting_reason"} <= set(schemas["Pending"]["properties"])
    assert not {"queue", "estimate", "waiting_reason"} & set(schemas["Pending"]["required"])
    assert set(schemas["Queue"]["properties"]) == {"position", "ahead", "lane"}
    assert set(schemas["EstimateView"]["properties"]) == {"finish_in_s", "p90_finish_in_s"}


def test_capacity_is_told_with_its_schemas(document: dict[str, Any]) -> None:
    content = document["paths"]["/capacity"]["get"]["responses"]["200"]["content"]
    schemas = document["components"]["schemas"]

    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/CapacityView"}
    assert {"WorkersView", "PoolView", "WindowView", "LineView"} <= set(schemas)


@pytest.mark.parametrize("path", ["/predict", "/predict/{model}"])
def test_a_submit_takes_a_key_and_cache_control_and_may_meet_a_quota(document: dict[str, Any], path: str) -> None:
    operation = document["paths"][path]["post"]
    headers = {each["name"] for each in operation["parameters"] if each["in"] == "header"}

    assert headers == {"Prefer", "Idempotency-Key", "Cache-Control"}
    assert {"408", "413", "415", "422", "429", "503"} <= set(operation["responses"])
    assert "Idempotency-Key" in operation["responses"]["422"]["description"]
    assert {"Idempotent-Replayed", "RateLimit", "RateLimit-Policy"} <= set(operation["responses"]["202"]["headers"])


def test_raw_bodies_have_their_options_in_the_query(document: dict[str, Any]) -> None:
    parameters = document["paths"]["/predict/{model}"]["post"]["parameters"]
    queries = {each["name"]: each["schema"] for each in parameters if each["in"] == "query"}

    assert queries["version"]["type"] == "integer"
    assert queries["ttl_s"]["type"] == "number"
    assert sorted(queries["lane"]["enum"]) == sorted(LANES)
    assert "application/octet-stream" in document["paths"]["/predict/{model}"]["post"]["requestBody"]["content"]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    references = set(_references(document))

    assert references
    for reference in references:
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_no_schema_is_left_that_nobody_refers_to(document: dict[str, Any]) -> None:
    named = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}

    assert named == set(_references(document))


def test_every_schema_is_a_json_schema(document: dict[str, Any]) -> None:
    for schema in [*document["components"]["schemas"].values(), *_schemas(document["paths"])]:
        Draft202012Validator.check_schema(schema)


def test_the_document_has_the_structure_of_openapi_3_1(document: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert {"title", "version"} <= set(document["info"])
    for method, path, operation in _operations(document):
        assert path.startswith("/")
        assert method in METHODS
        assert operation["responses"]
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d|default", status)
            assert response["description"]
        for parameter in operation.get("parameters", []):
            assert parameter["in"] in {"path", "query", "header", "cookie"}
            assert parameter["schema"]
            assert parameter["in"] != "path" or parameter["required"] is True


def test_every_parameter_of_a_path_is_told(document: dict[str, Any]) -> None:
    for _, path, operation in _operations(document):
        told = {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"}
        assert told == set(re.findall(r"{(\w+)}", path))


def test_no_two_operations_share_an_id(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in _operations(document)]

    assert len(ids) == len(set(ids))


def test_every_operation_may_refuse_with_a_problem_and_never_in_the_framework_s_form(
    document: dict[str, Any],
) -> None:
    for _, path, operation in _operations(document):
        for status in ("400", "401", "404", "422", "503"):
            if (path, status) == ("/readyz", "503"):  # says in its own form what is not ready
                continue
            content = operation["responses"][status]["content"]
            assert content == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_keys_are_told_and_may_be_missing(document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    assert document["security"] == [{}, {"key": []}]


def test_the_document_is_made_once(app: FastAPI) -> None:
    assert app.openapi() is app.openapi()
