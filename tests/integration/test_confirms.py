"""RabbitMQ: a publish returns only when the broker has confirmed it, and waits for that no longer than it may."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.commands import MicroBatch
from jobs.settings import read_settings
from tasks.app import make_celery
from tasks.names import queue_name
from tasks.publisher import Publisher
from tests.servers import RabbitServer

TIMEOUT_S = 1.0
BATCH = MicroBatch("1", "1", "preprocess", "default/interactive/m/1")


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    server = RabbitServer(Path(tmp_path_factory.mktemp("rabbit")))
    server.start()
    with server:
        yield server


def _publisher(rabbit: RabbitServer) -> Publisher:
    return Publisher(make_celery(read_settings(broker_url=rabbit.url), TIMEOUT_S))


def test_the_channel_that_publishes_tasks_is_in_confirm_mode(rabbit: RabbitServer) -> None:
    app = make_celery(read_settings(broker_url=rabbit.url), TIMEOUT_S)
    publisher = Publisher(app)

    publisher.publish([BATCH])

    with app.producer_pool.acquire(block=True) as producer:
        assert producer.channel._confirm_selected
    assert publisher.failed_at is None
    assert publisher.depth(queue_name("default", "preprocess", "interactive")) >= 1


def test_a_broker_that_hangs_is_given_up_and_taken_back(rabbit: RabbitServer) -> None:
    publisher = _publisher(rabbit)
    publisher.publish([BATCH])
    rabbit.send(signal.SIGSTOP)
    try:
        started = time.monotonic()
        publisher.publish([BATCH])
        waited_s = time.monotonic() - started
    finally:
        rabbit.send(signal.SIGCONT)

    assert publisher.failed_at is not None
    assert waited_s < 20 * TIMEOUT_S
    publisher.ping()
    publisher.publish([BATCH])
    assert publisher.failed_at is None
