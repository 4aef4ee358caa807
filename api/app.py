"""The composition root of the gateway: ``uvicorn api.app:create_app --factory``."""

from __future__ import annotations

import os
import sys

from api.broker import Broker
from api.gateway import Gateway
from api.hot import HotRoutes
from api.routes import cold_routes
from jobs.connect import async_redis_client, redis_client
from jobs.errors import EXIT_CONFIG, SetupError
from jobs.ids import KeyRing
from jobs.logs import log_json_lines
from jobs.selfcheck import check_gateway
from jobs.settings import Settings, settings
from jobs.store import AsyncJobStore, Flow
from tasks.app import GATEWAY_TIMEOUT_S, make_celery

STORE_TIMEOUT_S = 2.0
"""However the store hangs, a request is answered by then."""


def create_app() -> HotRoutes:
    """The gateway as an ASGI application, its settings taken from the environment.

    A setup that is not safe ends the process with one line.
    """
    try:
        config = settings()
        log_json_lines(config.log_level)
        check_gateway(config)
        return build(config)
    except SetupError as error:
        print(f"penstock: {error}", file=sys.stderr)  # noqa: T201 - the one line that says what to do
        sys.exit(EXIT_CONFIG)


def build(config: Settings) -> HotRoutes:
    """The gateway for these settings; connects when it starts to serve."""
    client = async_redis_client(config.store, GATEWAY_TIMEOUT_S, max_connections=16)
    store = AsyncJobStore(
        async_redis_client(config.store, None, connect_timeout_s=GATEWAY_TIMEOUT_S).connection_pool,
        config.namespace,
        Flow.of(config),
        STORE_TIMEOUT_S,
    )
    broker = Broker(make_celery(config, GATEWAY_TIMEOUT_S))
    gateway = Gateway(config, client, store, broker, _key_ring(config))
    return HotRoutes(gateway, cold_routes(gateway))


def _key_ring(config: Settings) -> KeyRing:
    """The keys of task ids, shared by all gateways through the store; the first gateway makes the first one."""
    with redis_client(config.store, GATEWAY_TIMEOUT_S) as client:
        name = f"{config.namespace}:key-ring"
        client.hsetnx(name, "1", os.urandom(32))
        stored: dict[bytes, bytes] = client.hgetall(name)
    return KeyRing({int(number): key for number, key in stored.items()})
