"""The routes of operators: dead letters. They take a key with the role ``admin``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response

from api import http
from api.cold import admin_of, answer_json
from api.deadletters import PAGE, Filter, Replay
from api.gateway import Gateway
from api.submit import invalid
from jobs.errors import InvalidInputError, MalformedError

BODY_BYTES_MAX = 256 * 1024
Word = Annotated[str, Query(max_length=200)]


def add_dead_letters(app: FastAPI, gateway: Gateway) -> None:
    """Add them to the application."""

    @app.get("/dead-letters", tags=["dead letters"], summary="Jobs that were given up, the youngest first")
    async def page(
        *,
        request: Request,
        model: Word = "",
        stage: Word = "",
        code: Word = "",
        since: Word = "",
        cursor: Word = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = PAGE,
    ) -> Response:
        admin_of(gateway, request)
        async with gateway.store.at_once():
            return answer_json(await gateway.dead_letters.page(Filter(model, stage, code, since), cursor, limit))

    @app.delete(
        "/dead-letters", tags=["dead letters"], summary="Drop the dead letters that match; `all` for every one"
    )
    async def drop(
        *,
        request: Request,
        model: Word = "",
        stage: Word = "",
        code: Word = "",
        since: Word = "",
        every: Annotated[bool, Query(alias="all")] = False,
    ) -> Response:
        admin_of(gateway, request)
        wanted = Filter(model, stage, code, since)
        if (wanted == Filter()) != every:
            raise InvalidInputError("Name a filter, or all=true to drop every dead letter; not both.", pointer="/all")
        async with gateway.store.at_once():
            return answer_json(await gateway.dead_letters.drop(wanted))

    @app.post("/dead-letters/replay", tags=["dead letters"], summary="Run dead letters again, under their ids")
    async def replay(request: Request) -> Response:
        admin_of(gateway, request)
        order = await _order(gateway, request)
        async with gateway.store.at_once():
            return answer_json(await gateway.dead_letters.replay(order))

    @app.get("/dead-letters/{task_id}", tags=["dead letters"], summary="One dead letter, with its error")
    async def one(task_id: str, request: Request) -> Response:
        admin_of(gateway, request)
        async with gateway.store.at_once():
            return answer_json(await gateway.dead_letters.one(task_id))

    @app.get("/dead-letters/{task_id}/input", tags=["dead letters"], summary="The input that was kept")
    async def kept(task_id: str, request: Request) -> Response:
        admin_of(gateway, request)
        media_type, data = await gateway.dead_letters.input(task_id)
        return Response(data, media_type=media_type)

    @app.delete("/dead-letters/{task_id}", tags=["dead letters"], summary="Drop one dead letter")
    async def drop_one(task_id: str, request: Request) -> Response:
        admin_of(gateway, request)
        async with gateway.store.at_once():
            return answer_json(await gateway.dead_letters.drop_one(task_id))


async def _order(gateway: Gateway, request: Request) -> Replay:
    body = await gateway.arrivals.bounded(http.Request(request.scope).body(request.receive, BODY_BYTES_MAX))
    try:
        return msgspec.json.decode(body, type=Replay)
    except msgspec.ValidationError as error:
        raise invalid(error, "body", Replay) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedError("The body is not valid JSON in UTF-8.") from None
