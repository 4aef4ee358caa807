"""Submit and poll, ahead of the framework: a bare ASGI callable that hands everything else on.

Through FastAPI's stack these two routes cost twice as much as all that they do: docs/decisions/0005-hot-routes.md.
"""

from __future__ import annotations

import logging
from typing import Any

from api.gateway import Gateway
from api.http import Header, Receive, Request, Scope, Send, answer
from api.problems import refusal
from jobs.errors import InternalError, MethodNotAllowedError, PenstockError

log = logging.getLogger(__name__)

_PREDICT, _RESULT = "/predict/", "/result/"


class HotRoutes:
    """``POST /predict[/{model}]`` and ``GET /result/{task_id}``; ``cold`` is the FastAPI application."""

    def __init__(self, gateway: Gateway, cold: Any) -> None:
        self.gateway = gateway
        self.cold = cold

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] == "http":
            path, method = scope["path"], scope["method"]
            if path == "/predict" or (path.startswith(_PREDICT) and "/" not in path[len(_PREDICT) :]):
                if method != "POST":
                    await self._refuse_method(Request(scope), b"POST", send)
                else:
                    model = None if path == "/predict" else path[len(_PREDICT) :]
                    await self._submit(Request(scope), model, receive, send)
                return
            if path.startswith(_RESULT) and "/" not in path[len(_RESULT) :]:
                if method != "GET":
                    await self._refuse_method(Request(scope), b"GET", send)
                else:
                    await self._result(Request(scope), path[len(_RESULT) :], send)
                return
        await self.cold(scope, receive, send)

    async def _submit(self, request: Request, model: str | None, receive: Receive, send: Send) -> None:
        try:
            await self.gateway.submit(request, model, receive, send)
        except PenstockError as error:
            await self._refuse(request, error, send)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            await self._fail(request, error, send)

    async def _result(self, request: Request, task_id: str, send: Send) -> None:
        try:
            await self.gateway.result(request, task_id, send)
        except PenstockError as error:
            await self._refuse(request, error, send)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            await self._fail(request, error, send)

    async def _refuse_method(self, request: Request, allowed: bytes, send: Send) -> None:
        error = MethodNotAllowedError("This route does not take this method; Allow lists those that it takes.")
        await self._refuse(request, error, send, (b"allow", allowed))

    async def _refuse(self, request: Request, error: PenstockError, send: Send, *headers: Header) -> None:
        self.gateway.metrics.refused.labels(error.code).inc()
        said = refusal(error, request.path, request.request_id)
        said.headers.extend(((b"x-request-id", request.request_id.encode()), *headers))
        await answer(send, said.status, said.headers, said.body)

    async def _fail(self, request: Request, error: Exception, send: Send) -> None:
        log.error("request failed", exc_info=error, extra={"request_id": request.request_id})
        await self._refuse(request, InternalError("Something went wrong on our side."), send)
