"""The test suite's own servers do what the other tests rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import amqp
import pytest
import redis

from jobs.connect import redis_client
from tests.clocks import Clock
from tests.servers import RabbitServer, RedisServer, Tmpfs


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


def test_rabbitmq_can_be_told_to_raise_its_memory_alarm(tmp_path: Path) -> None:
    with RabbitServer(tmp_path).start() as server:
        assert "resource_limit" not in server.control("status")
        server.control("set_vm_memory_high_watermark", "absolute", "1")
        assert "memory" in server.control("eval", "rabbit_alarm:get_alarms().")


def test_a_small_disk_is_full_until_space_is_given_back(tmp_path: Path) -> None:
    with Tmpfs(tmp_path / "disk", 1024 * 1024) as disk:
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (disk.folder / "more").write_bytes(bytes(4096))
        disk.empty()
        (disk.folder / "more").write_bytes(bytes(4096))


def test_a_clock_is_wrong_by_what_it_is_set_to_and_monotonic_time_is_true(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock", 3600)
    program = "import time; input(); print(time.time(), time.monotonic(), flush=True)\n" * 2
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, **clock.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for offset_s in (3600, -3600):
            clock.set(offset_s)
            process.stdin.write("\n")
            process.stdin.flush()
            wall_s, monotonic_s = map(float, process.stdout.readline().split())
            assert abs(wall_s - offset_s - time.time()) < 2
            assert abs(monotonic_s - time.monotonic()) < 2
