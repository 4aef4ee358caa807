"""What is not safe to run with stops a role at its start, while the others serve on: exit 78 and one line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.errors import EXIT_CONFIG
from penstock.ports import free_port
from tests.clocks import Clock
from tests.faults.case import Case, claim
from tests.faults.fault_system import FaultSystem
from tests.servers import LOOPBACK
from tests.system import START_S, Role, gateway_command
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

REFUSED_S = 5.0
HOUR_S = 3600
ROLES = ("gateway", "worker")
WRONG = {"ahead": HOUR_S, "behind": -HOUR_S}


def _role(system: FaultSystem, kind: str) -> Role:
    """A role that does not run yet: a second gateway, or the second worker."""
    if kind == "worker":
        system.workers[1].stop()
        return system.workers[1]
    port = free_port(LOOPBACK)
    return Role(system.folder / f"gateway-{port}", gateway_command(port), system.environment())


def _refusal_s(role: Role, **environment: str) -> float:
    """How long it took to refuse, in one line."""
    started = time.monotonic()
    role.start(**environment)
    process = role._process
    assert process is not None
    try:
        wait_until(lambda: process.poll() is not None, START_S, "it refuses to start")
        took_s = time.monotonic() - started
    finally:
        role.kill()
    lines = [line for line in role.errors().splitlines() if line.strip()]
    assert process.returncode == EXIT_CONFIG, role.errors()
    assert len(lines) == 1, role.errors()
    return took_s


@contextmanager
def _evicting(system: FaultSystem) -> Iterator[None]:
    system.redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        yield
    finally:
        system.redis.config_set("maxmemory-policy", "noeviction")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind,
            marks=claim(
                f"evicting-{kind}", "Redis with allkeys-lru: start refused", number="slowest refusal", at_most=5.0
            ),
        )
        for kind in ROLES
    ],
)
def test_a_store_that_may_evict_is_refused(case: Case, kind: str) -> None:
    role = _role(case.system, kind)
    with case.workload(), _evicting(case.system):
        case.fault()
        took_s = _refusal_s(role)
    case.check(took_s)


@pytest.mark.parametrize(
    ("kind", "offset_s"),
    [
        pytest.param(
            kind,
            offset_s,
            marks=claim(
                f"clock-{way}-{kind}",
                f"{kind} clock ± 3600 s: start refused",
                number="slowest refusal",
                at_most=REFUSED_S,
            ),
        )
        for kind in ROLES
        for way, offset_s in WRONG.items()
    ],
)
def test_a_clock_that_is_wrong_is_refused_and_expires_nothing(
    case: Case, tmp_path: Path, kind: str, offset_s: int
) -> None:
    role = _role(case.system, kind)
    with case.workload():
        case.fault()
        took_s = _refusal_s(role, **Clock(tmp_path / "clock", offset_s).environment)
    case.check(took_s)
