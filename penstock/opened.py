"""The store, opened for one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from jobs import selfcheck
from jobs.connect import redis_client
from jobs.settings import settings


@contextmanager
def open_store() -> Iterator[redis.Redis]:
    """A client of the store. SetupError: it is away, or not one that is safe to use."""
    with redis_client(settings().store, selfcheck.SOCKET_TIMEOUT_S) as client:
        selfcheck.check_store(client, settings(), patience_s=0)
        yield client
