"""The sides of a comparison: how each is started, and when it is ready."""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path

from benchmarks.processes import BenchError, Process, start
from benchmarks.servers import redis_server
from penstock.ports import free_port
from tests.servers import RabbitServer, RedisServer

ROOT = Path(__file__).resolve().parents[1]
MODEL = "tensor-demo"
MODEL_FILE = ROOT / "models" / MODEL / "1" / "model.onnx"
PLAIN = Path(__file__).resolve().parent / "baselines" / "plain_chain"
PLAIN_WEB = [
    "--host",
    "127.0.0.1",
    "--loop",
    "uvloop",
    "--http",
    "httptools",
    "--no-access-log",
    "--log-level",
    "warning",
]
"""uvicorn's options, as ``penstock api`` sets them too."""
START_S = 60.0
"""How long a side may take until it serves."""

Command = tuple[str, list[str], Path, dict[str, str]]
"""Role, module and arguments, folder to run in, environment."""


@dataclass(frozen=True)
class Servers:
    """What a side runs on; ``rabbit`` is None where Redis is the broker too."""

    redis: RedisServer
    rabbit: RabbitServer | None

    @property
    def broker_url(self) -> str:
        """Where tasks are queued."""
        return self.rabbit.url if self.rabbit else self.redis.url

    @property
    def roots(self) -> dict[str, int]:
        """Process id of each server, by role."""
        broker = {"broker": self.rabbit.pid} if self.rabbit else {}
        return {"store": self.redis.pid} | broker


@dataclass(frozen=True)
class Running:
    """A side that serves: the port of its gateway, its processes, and the ids of all whose CPU counts."""

    port: int
    processes: Sequence[Process]
    roots: dict[str, int]


@dataclass(frozen=True)
class Side:
    """``folder`` is the tree of Penstock to run; None for the plain chain."""

    name: str
    folder: Path | None

    @contextmanager
    def run(self, folder: Path, rabbit: RabbitServer | None) -> Iterator[Running]:
        """Start it on a Redis of its own (and on ``rabbit``), yield it warm, end it."""
        port = free_port("127.0.0.1")
        paths = ("/readyz", f"/models/{MODEL}") if self.folder else ()
        with redis_server(folder / "redis") as redis, ExitStack() as stack:
            servers = Servers(redis, rabbit)
            processes = []
            for role, command, tree, env in self._commands(port, folder, servers):
                process = start(role, [sys.executable, "-m", *command], tree, folder / f"{role}.log", env)
                stack.callback(process.stop)
                processes.append(process)
            _wait_until_serving(processes, port, paths)
            yield Running(port, processes, servers.roots | {each.role: each.pid for each in processes})

    def _commands(self, port: int, data: Path, servers: Servers) -> list[Command]:
        if self.folder:
            return _ours(self.folder, port, data, servers)
        return _plain(port, servers)


def _ours(tree: Path, port: int, data: Path, servers: Servers) -> list[Command]:
    models = tree / "models" if (tree / "models" / MODEL).exists() else ROOT / "models"
    env = {
        "PENSTOCK_STORE_URL": servers.redis.url,
        "PENSTOCK_BROKER_URL": servers.broker_url,
        "PENSTOCK_MODELS": str(models),
        "PENSTOCK_DATA": str(data),
        "PENSTOCK_PORT": str(port),
        "PENSTOCK_CACHE_BYTES_MAX": "0",
        "PENSTOCK_LOG_LEVEL": "WARNING",
        "PYTHONPATH": str(tree),
    }
    return [("worker", ["penstock", "worker"], tree, env), ("gateway", ["penstock", "api"], tree, env)]


def _plain(port: int, servers: Servers) -> list[Command]:
    env = {
        "PLAIN_BROKER_URL": servers.broker_url,
        "PLAIN_RESULT_URL": f"redis://127.0.0.1:{servers.redis.port}/1",
        "PLAIN_MODEL": str(MODEL_FILE),
    }
    web = ["uvicorn", "app:app", "--port", str(port), *PLAIN_WEB]
    worker = ["celery", "-A", "worker", "worker", "--concurrency", "2", "-l", "WARNING"]
    return [("worker", worker, PLAIN, env), ("gateway", web, PLAIN, env)]


def _wait_until_serving(processes: Sequence[Process], port: int, paths: Sequence[str]) -> None:
    """Ready: the given paths answer 200 and a first job came back."""
    for path in paths:
        _wait_for(partial(_answers, port, path), processes)
    submitted: list[str] = []

    def a_job_came_back() -> bool:
        if not submitted and (task_id := submit(port)):
            submitted.append(task_id)
        return bool(submitted) and _answers(port, f"/result/{submitted[0]}")

    _wait_for(a_job_came_back, processes)


def _wait_for(ready: Callable[[], bool], processes: Sequence[Process]) -> None:
    until = time.monotonic() + START_S
    while not ready():
        check_alive(processes)
        if time.monotonic() > until:
            raise BenchError("not ready in time\n" + "\n".join(process.tail() for process in processes))
        time.sleep(0.1)


def check_alive(processes: Sequence[Process]) -> None:
    """BenchError with the end of its log where a process has ended."""
    for process in processes:
        if not process.alive:
            raise BenchError(f"{process.role} ended:\n{process.tail()}")


def _answers(port: int, path: str) -> bool:
    return get(port, path)[0] == HTTPStatus.OK


def submit(port: int) -> str:
    """Submit one job; its task id, "" where the gateway is not there yet."""
    body = json.dumps({"input": [0.5] * 64})
    document = _ask(port, "POST", f"/predict/{MODEL}", body)[1]
    return str(document.get("task_id", ""))


def get(port: int, path: str) -> tuple[int, dict[str, object]]:
    """Status and JSON document of a GET; status 0 where nobody answers."""
    return _ask(port, "GET", path)


def _ask(port: int, method: str, path: str, body: str | None = None) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException):
        return 0, {}
    finally:
        connection.close()
    try:
        document = json.loads(text)
    except ValueError:
        document = {}
    return answer.status, document if isinstance(document, dict) else {}
