"""The private servers of the tests, for a run: what they say to pytest becomes a ``BenchError``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from benchmarks.processes import BenchError
from tests.servers import RabbitServer, RedisServer

S = TypeVar("S", RedisServer, RabbitServer)
COMPLAINTS = (pytest.fail.Exception, pytest.skip.Exception, AssertionError)


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """Run a Redis with an append-only file and no eviction."""
    with _started(RedisServer, folder) as server:
        yield server


@contextmanager
def rabbit_server(folder: Path) -> Iterator[RabbitServer]:
    """Run a RabbitMQ node that does not spin while it waits: the cores belong to all."""
    with _started(RabbitServer, folder) as server:
        yield server


@contextmanager
def _started(make: type[S], folder: Path) -> Iterator[S]:
    try:
        server = make(folder)
        with server:
            server.start()
            yield server
    except COMPLAINTS as error:
        raise BenchError(str(error)) from None
