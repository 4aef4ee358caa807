"""The OpenAPI document tells the truth: schemathesis makes requests from it and holds the gateway to its answers."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.system import System

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ROUTES = {
    *(("/predict", "POST"), ("/predict/{model}", "POST"), ("/result/{task_id}", "GET")),
    *(("/models", "GET"), ("/models/{model}", "GET"), ("/problems/{code}", "GET")),
    *(("/result/{task_id}/cancel", "POST"), ("/result/{task_id}/retry", "POST")),
    *(("/dead-letters", "GET"), ("/dead-letters", "DELETE"), ("/dead-letters/replay", "POST")),
    *(("/dead-letters/{task_id}", "GET"), ("/dead-letters/{task_id}", "DELETE")),
    *(("/dead-letters/{task_id}/input", "GET"),),
    *(("/livez", "GET"), ("/readyz", "GET"), ("/metrics", "GET"), ("/capacity", "GET")),
}

one_system = pytest.mark.parametrize("shared_system", ["embedded"], indirect=True)


@one_system
@pytest.mark.parametrize(("path", "method"), sorted(ROUTES))
def test_an_operation_answers_as_the_document_says(system: System, path: str, method: str) -> None:
    schema = schemathesis.openapi.from_url(f"{system.url}/openapi.json")
    cases: Any = schema[path][method].as_strategy()

    @settings(
        max_examples=25,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def check(case: Any) -> None:
        if path == "/predict/{model}":
            case.path_parameters = {"model": "tensor-demo"}  # past the first refusal
        case.call_and_validate(checks=CHECKS)

    check()


@one_system
def test_a_real_submit_and_its_polls_answer_as_the_document_says(system: System) -> None:
    schema = schemathesis.openapi.from_url(f"{system.url}/openapi.json")
    submit: Any = schema["/predict/{model}"]["POST"]
    poll: Any = schema["/result/{task_id}"]["GET"]
    named = {"path_parameters": {"model": "tensor-demo"}, "media_type": "application/json"}
    body = {"input": [0.125] * 64}
    waiting = {"Prefer": "wait=20"}
    assert submit.Case(body=body, **named).call_and_validate(checks=CHECKS).status_code == 202
    assert submit.Case(body=body, headers=waiting, **named).call_and_validate(checks=CHECKS).status_code == 200
    system.stop_workers()
    task_id = system.submit(ttl_s=1)
    for wait_s, status in ((0, 202), (20, 200)):
        case = poll.Case(path_parameters={"task_id": task_id}, headers={"Prefer": f"wait={wait_s}"})
        assert case.call_and_validate(checks=CHECKS).status_code == status


@one_system
def test_the_document_lists_every_route_with_its_schemas(system: System) -> None:
    document = system.client.get("/openapi.json").json()
    found = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert found == ROUTES
    submit = document["paths"]["/predict/{model}"]["post"]
    assert {"application/json", "application/octet-stream", "image/png"} <= submit["requestBody"]["content"].keys()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["responses"]
            for status, response in operation["responses"].items():
                form = response.get("content")
                assert form, f"{operation['operationId']} {status} without content"
                assert all(each["schema"] for each in form.values()), f"{operation['operationId']} {status}"
                refused = int(status) >= 400 and (path, status) != ("/readyz", "503")  # says what is not ready
                assert ("application/problem+json" in form) == refused, operation["operationId"]
