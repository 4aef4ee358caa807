"""What a worker's connection to a broker on Redis makes of bytes that are no message."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Queue
from kombu.exceptions import OperationalError

from jobs.connect import redis_client
from tasks.connection import PAUSE_MAX_S, EagerConnection, register
from tests.servers import RedisServer

QUEUE = "default.preprocess.interactive"
NO_MESSAGES = [b"\x00\xff\xfe", b"not json", b"[1, 2]", b"7", b"null", b"{}", b'{"body": 1}', b'"text"']


@pytest.fixture
def connection(server: RedisServer) -> Iterator[EagerConnection]:
    register()
    with redis_client(server.url, 5.0) as client:
        client.flushall()
    with EagerConnection(server.url) as connection:
        yield connection


@pytest.mark.parametrize("garbage", NO_MESSAGES)
def test_bytes_that_are_no_message_are_dropped_and_the_next_message_arrives(
    connection: EagerConnection, server: RedisServer, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    received: list[Any] = []
    with redis_client(server.url, 5.0) as client:
        client.lpush(QUEUE, garbage)
    with connection.Producer() as producer:
        producer.publish({"number": 1}, routing_key=QUEUE, serializer="json", declare=[Queue(QUEUE)])
    consumer = connection.Consumer(Queue(QUEUE), callbacks=[lambda body, _: received.append(body)])
    with caplog.at_level(logging.ERROR), consumer:
        while not received:
            connection.drain_events(timeout=5)
    assert received == [{"number": 1}]
    assert [record.message for record in caplog.records] == ["not a message, dropped"]


def test_a_lost_broker_is_looked_for_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = EagerConnection("redis://127.0.0.1:1/0")
    pauses: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", pauses.append)
    with pytest.raises(OperationalError):
        connection.ensure_connection(max_retries=6)
    assert pauses
    assert max(pauses) <= PAUSE_MAX_S
