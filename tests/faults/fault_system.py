"""A system that is broken on purpose: two tenants, roles armed with faults, gateways beside the first."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx

from jobs import apikeys
from jobs.settings import Settings
from penstock.ports import free_port
from tests.servers import LOOPBACK
from tests.system import START_S, Role, System, gateway_command
from tests.waiting import STEP_S, wait_until

BROKERS = ("redis", "rabbitmq")
TENANTS = ("alpha", "beta")
WORKERS = 2
STUCK_S = 1.0
RESTART_S = 1.0
"""How long whoever supervises a process waits before it starts it again."""


class FaultSystem(System):
    """Two workers with the lease that users get; ``keys`` holds an Authorization header for each tenant."""

    def __init__(self, kind: str, folder: Path, *, workers: int = WORKERS, **environment: str) -> None:
        defaults = {"PENSTOCK_LEASE_S": f"{Settings.model_fields['lease_s'].default:g}"}
        super().__init__(kind, folder, workers=workers, **(defaults | environment))
        self.keys: dict[str, str] = {}
        self.more_gateways: list[tuple[str, Role]] = []
        self._armed: dict[int, Role] = {}

    @property
    def urls(self) -> list[str]:
        """Where gateways listen."""
        return [self.url, *(url for url, _ in self.more_gateways)]

    @property
    def in_flight_max(self) -> int:
        """Most jobs that one worker holds at once."""
        slots = int(self.environment()["PENSTOCK_WORKER_THREADS"])
        return slots * int(Settings.model_fields["microbatch_jobs_max"].default)

    def start(self) -> Self:
        """Start everything, then make a key for each tenant and wait until the gateway knows both."""
        super().start()
        for tenant in TENANTS:
            key = apikeys.add(self.redis, self.namespace, name=tenant, tenant=tenant, role="user")
            self.keys[tenant] = f"Bearer {key}"
        self.client.headers["Authorization"] = self.keys[TENANTS[0]]
        self.wait_ready()
        wait_until(lambda: not self._serves_anybody(), START_S, "the gateway asks for a key")
        return self

    def arm(self, role: Role, faults: str) -> Role:
        """Start ``role`` anew with faults in its environment; wait for it with `wait_ready`."""
        role.stop()
        return self._start(role, faults)

    def add_gateway(self) -> tuple[str, Role]:
        """Start one more gateway, until the system is mended; its URL, and the process."""
        port = free_port(LOOPBACK)
        role = Role(self.folder / f"gateway-{port}", gateway_command(port), self.environment()).start()
        url = f"http://{LOOPBACK}:{port}"
        self.more_gateways.append((url, role))
        wait_until(partial(self.is_ready_at, url), START_S, "the other gateway is ready")
        return url, role

    def is_ready_at(self, url: str) -> bool:
        """Whether a gateway is ready and knows our keys."""
        with contextlib.suppress(httpx.TransportError), httpx.Client(base_url=url, timeout=5.0) as client:
            ready = client.get("/readyz").status_code == 200
            models = client.get("/models", headers=dict(self.client.headers))
            return ready and models.status_code == 200 and bool(models.json()["models"])
        return False

    def held_by(self, worker: Role) -> set[str]:
        """The micro-batches that a worker holds, as the store has it."""
        mine, held = f":{worker.pid}:".encode(), set()
        for key in self.redis.scan_iter(f"{self.namespace}:microbatch:*", 1000):
            holder: Any = self.redis.hget(key, "holder")
            if holder and mine in holder:
                held.add(key.decode())
        return held

    def wait_stuck(self, worker: Role, timeout_s: float) -> None:
        """Wait until a worker has held one micro-batch for a second."""
        since: dict[str, float] = {}

        def is_stuck() -> bool:
            now = time.monotonic()
            held = self.held_by(worker)
            since.update(dict.fromkeys(held - since.keys(), now))
            return any(now - since[each] > STUCK_S for each in held)

        wait_until(is_stuck, timeout_s, "a worker is stuck")

    def supervise(self, done: Callable[[], object], timeout_s: float, faults: str = "") -> list[float]:
        """Start each role that dies again after a second, with ``faults``, until ``done()``; when they died.

        From the main thread: the kernel ends a child with the thread that started it.
        """
        died: list[float] = []
        due: dict[Role, float] = {}
        give_up_at = time.monotonic() + timeout_s
        while not done():
            now = time.monotonic()
            assert now < give_up_at, f"not within {timeout_s:g} s under supervision"
            for role in self.roles:
                if role.running:
                    continue
                if role not in due:
                    due[role] = now + RESTART_S
                    died.append(now)
                elif now >= due[role]:
                    del due[role]
                    self._start(role, faults if role in self.workers else "")
            time.sleep(STEP_S)
        return died

    def mend(self) -> Self:
        """Make whole what a case broke: clean processes, one gateway, no job left."""
        for _, role in self.more_gateways:
            role.kill()
        self.more_gateways.clear()
        for role in self.roles:
            if role.running and role.pid in self._armed:
                role.kill()
            elif role.running:
                role.send(signal.SIGCONT)
        self._armed.clear()
        super().mend()
        return self

    def forget_keys(self) -> None:
        """Keep the tenants' keys from case to case."""

    def _start(self, role: Role, faults: str) -> Role:
        role.start(PENSTOCK_FAULTS=faults)
        if faults:
            self._armed[role.pid] = role
        return role

    def _serves_anybody(self) -> bool:
        with httpx.Client(base_url=self.url) as client:
            return client.get("/models").status_code != 401


def flower_command(port: int) -> list[str]:
    """Flower on a port of its own."""
    options = [f"--port={port}", f"--address={LOOPBACK}"]
    return [sys.executable, "-m", "celery", "-A", "tasks.worker", "flower", *options]
