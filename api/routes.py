"""The routes that may take their time: models, health, metrics, problems, and the description of all."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from api import http, openapi, problems, views
from api.admin import add_dead_letters
from api.capacityview import capacity_view
from api.cold import answer_json, caller_of
from api.depth import measure_depth
from api.gateway import Gateway
from api.results import is_terminal, render
from jobs.commands import View
from jobs.errors import (
    InternalError,
    InvalidInputError,
    MalformedError,
    MethodNotAllowedError,
    NotFoundError,
    PenstockError,
    StoreUnavailableError,
)

_ERRORS: dict[int, type[PenstockError]] = {404: NotFoundError, 405: MethodNotAllowedError}


def cold_routes(gateway: Gateway) -> FastAPI:
    """The FastAPI application behind the hot routes."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(
        title="Penstock",
        version=openapi.VERSION,
        summary="Submit an input, get a task id at once, poll the result.",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    _handle_errors(app, gateway)
    _add_jobs(app, gateway)
    _add_models(app, gateway)
    _add_capacity(app, gateway)
    add_dead_letters(app, gateway)
    _add_health(app, gateway)
    openapi.describe(app)
    return app


def _add_models(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/models", tags=["models"], summary="Every model and its versions")
    async def models(request: Request) -> Response:
        caller_of(gateway, request)
        return answer_json(views.models_view(gateway.catalog))

    @app.get("/models/{model}", tags=["models"], summary="One model: versions, inputs, outputs, limits")
    async def one_model(model: str, request: Request) -> Response:
        caller_of(gateway, request)
        return answer_json(views.model_view(gateway.catalog, model))


def _add_capacity(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/capacity", tags=["models"], summary="What the system can do now, and what waits for it")
    async def capacity(request: Request) -> Response:
        caller_of(gateway, request)
        return answer_json(capacity_view(gateway.capacity, gateway.settings.queue_jobs_max))


def _add_jobs(app: FastAPI, gateway: Gateway) -> None:
    @app.post("/result/{task_id}/cancel", tags=["jobs"], summary="Cancel a job")
    async def cancel(task_id: str, request: Request) -> Response:
        caller = caller_of(gateway, request)
        async with gateway.store.at_once():
            view = await gateway.cancel(task_id, caller)
        return _job(task_id, view)

    @app.post("/result/{task_id}/retry", tags=["jobs"], summary="Run a failed or expired job again", status_code=202)
    async def retry(task_id: str, request: Request) -> Response:
        caller = caller_of(gateway, request)
        async with gateway.store.at_once():
            view = await gateway.retry(task_id, caller)
        return _job(task_id, view)


def _job(task_id: str, view: View) -> Response:
    """A job as a poll tells it."""
    if is_terminal(view):
        return Response(render(task_id, view), media_type="application/json")
    headers = {"retry-after": "1", "location": f"/result/{task_id}"}
    return Response(render(task_id, view), 202, headers, media_type="application/json")


def _add_health(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/livez", tags=["health"], summary="The process answers")
    async def livez() -> Response:
        return answer_json(views.LiveView())

    @app.get("/readyz", tags=["health"], summary="Store and broker answer, and a model is ready")
    async def readyz() -> Response:
        checks = {
            "store": await _store_answers(gateway),
            "broker": not gateway.broker.away,
            "clock": not gateway.clock.skewed,
            "models": any(gateway.catalog.active(name) for name in gateway.catalog.models()),
        }
        ready = all(checks.values())
        headers = None if ready else {"retry-after": "1"}
        workers = await gateway.workers() if checks["store"] else 0
        view = views.ReadyView("ready" if ready else "not ready", checks, workers)
        return answer_json(view, 200 if ready else 503, headers)

    @app.get("/metrics", tags=["health"], summary="Figures for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        gateway.metrics.waiters.set(len(gateway.waiters))
        await measure_depth(gateway)
        return Response(generate_latest(gateway.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/problems/{code}", tags=["health"], summary="What a problem type means")
    async def problem(code: str) -> Response:
        found = problems.known().get(code)
        if found is None:
            raise NotFoundError("There is no such problem type.")
        return answer_json(views.problem_view(found))


def _handle_errors(app: FastAPI, gateway: Gateway) -> None:
    def answered(request: Request, error: PenstockError) -> Response:
        gateway.metrics.refused.labels(error.code).inc()
        request_id = http.Request(request.scope).request_id
        said = problems.refusal(error, request.url.path, request_id)
        headers = {name.decode(): value.decode() for name, value in said.headers} | {"x-request-id": request_id}
        return Response(said.body, said.status, headers)

    @app.exception_handler(PenstockError)
    async def ours(request: Request, error: PenstockError) -> Response:
        return answered(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        pointer = "/" + "/".join(str(part) for part in first["loc"][1:])
        return answered(request, InvalidInputError(f"{first['msg']}.", pointer=pointer))

    @app.exception_handler(HTTPException)
    async def theirs(request: Request, error: HTTPException) -> Response:
        kind = _ERRORS.get(error.status_code, MalformedError)
        response = answered(request, kind(_DETAILS.get(error.status_code, "The request cannot be read.")))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, _: Exception) -> Response:
        return answered(request, InternalError("Something went wrong on our side."))


_DETAILS = {
    404: "There is no such route. GET /openapi.json lists them.",
    405: "This route does not take this method; Allow lists those that it takes.",
}


async def _store_answers(gateway: Gateway) -> bool:
    try:
        await gateway.ping_store()
    except StoreUnavailableError:
        return False
    return True
