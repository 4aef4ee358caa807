"""The test suite's own servers do what the other tests rely on."""

from __future__ import annotations

import signal
from pathlib import Path

import amqp
import pytest
import redis

from jobs.connect import redis_client
from tests.servers import RabbitServer, RedisServer


def test_redis_keeps_its_data_over_a_crash(tmp_path: Path) -> None:
    with RedisServer(tmp_path).start() as server, redis_client(server.url, 5.0) as client:
        client.set("a", "1")
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("a")
        server.start()
        assert client.get("a") == b"1"


def test_redis_hangs_while_it_is_stopped(tmp_path: Path) -> None:
    with RedisServer(tmp_path).start() as server, redis_client(server.url, 0.2) as client:
        server.send(signal.SIGSTOP)
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.send(signal.SIGCONT)
        assert client.ping()


def test_rabbitmq_keeps_confirmed_messages_over_a_crash(tmp_path: Path) -> None:
    with RabbitServer(tmp_path).start() as server:
        address = server.url.removeprefix("amqp://guest:guest@").removesuffix("//")
        with amqp.Connection(address) as connection:
            connection.channel().queue_declare("q", durable=True, auto_delete=False)
        server.stop()  # a queue's declaration, unlike a confirmed message, reaches the disk some time later
        server.start()
        with amqp.Connection(address, confirm_publish=True) as connection:
            channel = connection.channel()
            channel.basic_publish_confirm(amqp.Message(b"a", delivery_mode=2), routing_key="q")
        server.kill()
        server.start()
        with amqp.Connection(address) as connection:
            assert connection.channel().basic_get("q", no_ack=True).body == b"a"


def test_two_rabbitmqs_run_side_by_side(tmp_path: Path) -> None:
    with RabbitServer(tmp_path / "a").start() as first, RabbitServer(tmp_path / "b").start() as second:
        assert first.pid != second.pid
