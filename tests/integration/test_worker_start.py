"""A worker that cannot start ends at once: one that stayed would take messages that it cannot run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from jobs.errors import EXIT_CONFIG
from tests.servers import LOOPBACK, RedisServer

ROOT = Path(__file__).parents[2]
START_S = 60


def _worker(server: RedisServer, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"PENSTOCK_STORE_URL": server.url, "PENSTOCK_MODELS": str(ROOT / "models"), **environment}
    return subprocess.run(
        [sys.executable, "-m", "penstock", "worker"],
        env={**os.environ, **given},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )


@pytest.fixture
def server(tmp_path: Path) -> RedisServer:
    return RedisServer(tmp_path / "redis")


def test_a_busy_metrics_port_stops_it_with_one_line(server: RedisServer) -> None:
    with server.start(), socket.create_server((LOOPBACK, 0)) as busy:
        ended = _worker(server, PENSTOCK_WORKER_METRICS_PORT=str(busy.getsockname()[1]))

    assert ended.returncode == EXIT_CONFIG
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("penstock:")]
    assert "PENSTOCK_WORKER_METRICS_PORT" in line


def test_an_unforeseen_fault_stops_it_too(server: RedisServer) -> None:
    with server.start():
        redis.Redis.from_url(server.url).set("penstock:models", "not a hash")
        ended = _worker(server)

    assert ended.returncode == 1
    assert "the worker cannot start" in ended.stderr
