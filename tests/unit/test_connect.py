"""Connections: which server a URL means, and that nothing is tried twice."""

from __future__ import annotations

import pytest
import redis.asyncio
from redis.backoff import NoBackoff

from jobs.connect import async_redis_client, redis_client, without_password


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host:7000/3", {"host": "host", "port": 7000, "db": 3}),
        ("redis+socket:///run/a/redis.sock?virtual_host=2", {"path": "/run/a/redis.sock", "db": 2}),
        ("redis+socket:///run/redis.sock", {"path": "/run/redis.sock"}),
        ("redis+socket://:secret@/run/redis.sock", {"path": "/run/redis.sock", "password": "secret"}),
    ],
)
def test_a_url_names_its_server_in_kombu_s_form_too(url: str, expected: dict[str, object]) -> None:
    for client in (redis_client(url, 1.0), async_redis_client(url, 1.0)):
        given = client.connection_pool.connection_kwargs

        assert {name: given[name] for name in expected} == expected


def test_nothing_is_tried_twice_and_every_wait_is_bounded() -> None:
    given = redis_client("redis://host", 1.5, connect_timeout_s=0.5).connection_pool.connection_kwargs

    assert (given["socket_timeout"], given["socket_connect_timeout"]) == (1.5, 0.5)
    assert given["retry"].get_retries() == 0
    assert isinstance(given["retry"]._backoff, NoBackoff)
    assert given["health_check_interval"] == 0


def test_the_event_loop_s_client_is_redis_py_s_own() -> None:
    assert isinstance(async_redis_client("redis://host", 1.0), redis.asyncio.Redis)


def test_a_url_is_shown_without_what_is_secret() -> None:
    assert without_password("redis://me:secret@host:1/2?x=secret") == "redis://host:1/2"
    assert without_password("redis+socket:///run/a.sock?virtual_host=1") == "redis+socket:///run/a.sock"
