"""The real servers that the scripts must behave the same on: the one that is installed, and the bundled Redis 6.2."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from jobs.connect import redis_client
from penstock import embedded
from tests.contract.house import House
from tests.servers import RedisServer

PROGRAMS = [found for found in (shutil.which("redis-server"), embedded._bundled_server()) if found]


@pytest.fixture(scope="module", params=PROGRAMS or ["redis-server"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with pytest.MonkeyPatch.context() as patch, RedisServer(tmp_path_factory.mktemp("redis") / "server") as server:
        patch.setattr(embedded, "find_server", lambda: request.param)
        yield server.start()


@pytest.fixture
def house(server: RedisServer) -> Iterator[House]:
    with redis_client(server.url, 5.0) as client:
        client.flushall()
        yield House(client)
