"""A Penstock of its own for one demonstration: servers, gateway and worker on free ports in a temporary folder."""

from __future__ import annotations

import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis

from benchmarks.processes import BenchError, Process, cpu_seconds, start
from benchmarks.servers import rabbit_server, redis_server
from benchmarks.shows.client import LOOPBACK
from benchmarks.shows.heavy import place_heavy
from benchmarks.sides import ROOT, START_S, check_alive, get
from jobs.connect import redis_client
from penstock.ports import free_port
from tests.servers import RedisServer
from tests.system import Figures

NAMESPACE: Final = "show"
EMPTY_S: Final = 120.0
"""How long what is queued may take to end."""
TWO: Final = 2


@dataclass(frozen=True)
class Stand:
    """What serves."""

    port: int
    metrics_port: int
    store: RedisServer
    gateway: Process
    worker: Process
    servers: dict[str, int]
    redis: redis.Redis
    facts: dict[str, object]
    """What belongs into the result: depth of the model, cores."""

    @property
    def namespace(self) -> str:
        """Prefix of its keys."""
        return NAMESPACE

    def worker_figures(self) -> Figures:
        """What the worker's /metrics say now."""
        return _figures(self.metrics_port)

    def gateway_figures(self) -> Figures:
        """What the gateway's /metrics say now."""
        return _figures(self.port)

    def gateway_rss_bytes(self) -> int:
        """Memory that the gateway holds."""
        status = Path(f"/proc/{self.gateway.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds used so far, by role; ``load`` is this process."""
        used = cpu_seconds({**self.servers, "gateway": self.gateway.pid, "worker": self.worker.pid})
        own = os.times()
        return {**used, "load": own.user + own.system}

    def waiting(self) -> int:
        """Jobs that have not ended."""
        return int(self.redis.zcard(f"{NAMESPACE}:deadlines"))

    def wait_until_empty(self) -> None:
        """Wait until every job has ended; BenchError where that takes too long."""
        until = time.monotonic() + EMPTY_S
        while self.waiting():
            check_alive((self.gateway, self.worker))
            if time.monotonic() > until:
                raise BenchError(f"{self.waiting()} jobs have not ended within {EMPTY_S:g} s")
            time.sleep(0.1)


@contextmanager
def stand(folder: Path, broker: str, *, apart: bool, **settings: str) -> Iterator[Stand]:
    """Start all of it, yield it ready, end it. ``apart``: the worker gets the last core, all others the rest.

    With two cores for everything, the work of answering a flood would else be taken from the worker, and measured as
    its lost capacity; a worker with a GPU or a machine of its own has no such neighbour.
    """
    models = folder / "models"
    shutil.copytree(ROOT / "models" / "tensor-demo", models / "tensor-demo")
    *others, last = cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        if apart and len(cores) >= TWO:
            stack.callback(os.sched_setaffinity, 0, cores)
            os.sched_setaffinity(0, others)
        facts: dict[str, object] = {"heavy_layers": place_heavy(models), "worker_apart": apart and len(cores) >= TWO}
        store = stack.enter_context(redis_server(folder / "redis"))
        rabbit = stack.enter_context(rabbit_server(folder / "rabbitmq")) if broker == "rabbitmq" else None
        port, metrics_port = free_port(LOOPBACK), free_port(LOOPBACK)
        env = {
            "PENSTOCK_NAMESPACE": NAMESPACE,
            "PENSTOCK_STORE_URL": store.url,
            "PENSTOCK_BROKER_URL": rabbit.url if rabbit else "",
            "PENSTOCK_MODELS": str(models),
            "PENSTOCK_DATA": str(folder),
            "PENSTOCK_PORT": str(port),
            "PENSTOCK_WORKER_METRICS_PORT": str(metrics_port),
            "PENSTOCK_LOG_LEVEL": "WARNING",
            "C_FORCE_ROOT": "1",
            "PYTHONPATH": str(ROOT),
            **settings,
        }
        worker_command = [sys.executable, "-m", "penstock", "worker"]
        worker = start("worker", worker_command, ROOT, folder / "worker.log", env)
        stack.callback(worker.stop)
        if apart and len(cores) >= TWO:
            os.sched_setaffinity(worker.pid, {last})
        gateway = start("gateway", [sys.executable, "-m", "penstock", "api"], ROOT, folder / "gateway.log", env)
        stack.callback(gateway.stop)
        servers = {"store": store.pid} | ({"broker": rabbit.pid} if rabbit else {})
        client = stack.enter_context(redis_client(store.url, 10.0))
        standing = Stand(port, metrics_port, store, gateway, worker, servers, client, facts)
        _wait_until_ready(standing)
        yield standing


def _wait_until_ready(standing: Stand) -> None:
    """Both models are ready, and the worker has slots."""
    until = time.monotonic() + START_S
    while not _is_ready(standing):
        check_alive((standing.gateway, standing.worker))
        if time.monotonic() > until:
            raise BenchError(f"not ready in time\n{standing.gateway.tail()}\n{standing.worker.tail()}")
        time.sleep(0.1)


def _is_ready(standing: Stand) -> bool:
    ready = all(get(standing.port, path)[0] == 200 for path in ("/readyz", "/models/heavy", "/models/tensor-demo"))  # noqa: PLR2004
    return ready and bool(standing.redis.hlen(f"{NAMESPACE}:slots:default"))


def _figures(port: int) -> Figures:
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=10) as page:
        return Figures([page.read().decode()])
