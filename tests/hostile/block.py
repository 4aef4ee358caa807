"""What a block of hostile input must leave as it was: processes, memory, answers, logs and the store."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.system import END_S, Role, System
from tests.waiting import wait_until

LIVE_S = 0.2
GROWTH_BYTES_MAX = 50 * 1000 * 1000
PROBES = 15
OF_A_JOB = re.compile(
    rb":(job:[0-9a-f]{56}|idempotency:[0-9a-f]{64}|dead-letters|dead-letter-bytes|cache|cache-ends"
    rb"|cost:[a-z-]+/\d+|paced|pace:[a-z]+/(interactive|bulk)/[a-z-]+/\d+)$"
)
"""What any job leaves for its retention, its key, its answer's place in the cache; cost and pace of a version."""


@contextmanager
def unharmed(system: System) -> Iterator[None]:
    """Run a block, and look whether it did harm."""
    settle(system)
    pids = [role.pid for role in system.roles]
    memory = [role.rss_bytes() for role in system.roles]
    said = [len(role.errors()) for role in system.roles]
    kinds = _kinds_of_keys(system)

    yield

    settle(system)
    assert [role.pid for role in system.roles] == pids
    assert all(role.running for role in system.roles)
    assert live_s(system) < LIVE_S
    for role, held, length in zip(system.roles, memory, said, strict=True):
        assert role.rss_bytes() - held < GROWTH_BYTES_MAX, f"{role.folder.name} grew"
        check_log(role, length)
    left = _kinds_of_keys(system) - kinds
    assert not left, f"keys left behind: {left}"
    assert system.ended(system.submit())["status"] == "completed"


def settle(system: System) -> None:
    """Wait until every job has ended; one is run first, so that all is warm."""
    assert system.ended(system.submit())["status"] == "completed"
    wait_until(lambda: system.redis.zcard(f"{system.namespace}:deadlines") == 0, END_S, "every job has ended")


def check_log(role: Role, length: int) -> None:
    """No traceback since ``length`` characters, and no line that is not a JSON object of ours."""
    text = role.errors()[length:]
    assert "Traceback" not in text, text[-4_000:]
    assert all(line.startswith('{"at":') for line in text.splitlines()), text[-4_000:]


def live_s(system: System) -> float:
    """The median time to `/livez`."""
    times = []
    for _ in range(PROBES):
        began = time.perf_counter()
        assert system.client.get("/livez").status_code == 200
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _kinds_of_keys(system: System) -> set[bytes]:
    """The names of all keys but those that any job leaves."""
    keys = (bytes(key) for key in system.redis.scan_iter(count=1_000))
    return {key for key in keys if not OF_A_JOB.search(key)}
