"""Something is full: memory, disk, connections. Refused honestly; all that was accepted ends once there is room."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.faults.case import Case, claim
from tests.faults.fault_system import BROKERS, FaultSystem
from tests.faults.outage import ANSWER_S, Footprint, check_outage
from tests.faults.workload import Workload
from tests.servers import LOOPBACK, Tmpfs
from tests.system import START_S
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

FULL_S = 15.0
BEFORE = 40
BEFORE_S = 10.0
RATE = 30.0
JOBS = 900
ROOM_BYTES = 8_000_000
"""What the store may still take, before the ballast takes it."""
BALLAST_BYTES = 20_000
DISK_BYTES = 32 * 1024 * 1024
CLIENTS_MAX = 20
CLIENTS_DEFAULT = 10_000


def _slowest(name: str, fault: str) -> pytest.MarkDecorator:
    return claim(name, fault, number="slowest POST", at_most=ANSWER_S)


def _under_way(workload: Workload) -> None:
    wait_until(lambda: len(workload.accepted()) >= BEFORE, BEFORE_S, "jobs are under way")


def _note_ends(case: Case, workload: Workload, from_at: float, until_at: float) -> None:
    """How many jobs ended while it was full: the workers went on with what they held."""
    case.notes["ended_meanwhile"] = sum(from_at < at <= until_at for at in case.endings.at.values())
    assert any(each.answer and each.answer.status == 503 for each in workload.submits), "it was never full"


@pytest.mark.parametrize("place", ["rabbitmq"], indirect=True)
@_slowest("memory-alarm", "RabbitMQ memory alarm, 15 s")
def test_a_broker_that_blocks_its_publishers_is_waited_for(case: Case) -> None:
    broker = case.system.rabbit
    assert broker is not None
    footprint = Footprint(case.system)
    with case.workload(JOBS, rate=RATE) as workload:
        _under_way(workload)
        broker.control("set_vm_memory_high_watermark", "absolute", "1")
        time.sleep(FULL_S)  # the outage's length
        broker.control("set_vm_memory_high_watermark", "0.8")
        over_at = case.over()
    check_outage(case, workload, over_at)
    footprint.check_back(case)


@_slowest("maxmemory", "Redis maxmemory (noeviction) reached, 15 s")
def test_a_store_whose_memory_is_full_keeps_what_it_has(case: Case) -> None:
    store = case.system.redis
    with case.workload(JOBS, rate=RATE) as workload:
        _under_way(workload)
        with _little_memory(store), _ballast(store) as keys:
            full_at = time.monotonic()
            time.sleep(FULL_S)  # the outage's length
            store.delete(*keys)
            over_at = case.over()
            workload.join()
    try:
        check_outage(case, workload, over_at)
    finally:
        _note_ends(case, workload, full_at, over_at)


@pytest.mark.parametrize("broker", BROKERS)
@_slowest("disk-full", "disk of 32 MB full under the append-only file, 15 s")
def test_a_store_whose_disk_is_full_writes_again_when_there_is_space(
    open_case: Callable[[FaultSystem], Case], tmp_path: Path, broker: str
) -> None:
    with Tmpfs(tmp_path / "store", DISK_BYTES) as disk, FaultSystem(broker, tmp_path) as system:
        case = open_case(system)
        with case.workload(JOBS, rate=RATE) as workload:
            _under_way(workload)
            disk.fill()
            full_at = time.monotonic()
            time.sleep(FULL_S)  # the outage's length
            disk.empty()
            over_at = case.over()
        try:
            check_outage(case, workload, over_at)
        finally:
            _note_ends(case, workload, full_at, over_at)


@_slowest("maxclients", "Redis maxclients 20, all taken, 15 s")
def test_a_store_that_takes_no_more_clients_is_told_honestly(case: Case) -> None:
    footprint = Footprint(case.system)
    with case.workload(JOBS, rate=RATE) as workload:
        _under_way(workload)
        with _squatters(case.system):
            full_at = time.monotonic()
            time.sleep(FULL_S)  # the outage's length
        over_at = case.over()
    try:
        check_outage(case, workload, over_at)
    finally:
        _note_ends(case, workload, full_at, over_at)
    footprint.check_back(case)


@contextmanager
def _little_memory(store: redis.Redis) -> Iterator[None]:
    """Let the store have a little more memory than it uses now."""
    used: Any = store.info("memory")
    store.config_set("maxmemory", int(used["used_memory"]) + ROOM_BYTES)
    try:
        yield
    finally:
        store.config_set("maxmemory", 0)


@contextmanager
def _ballast(store: redis.Redis) -> Iterator[list[str]]:
    """Keys that nobody needs, until the store says that its memory is full."""
    keys: list[str] = []
    try:
        with suppress(redis.exceptions.OutOfMemoryError):
            while True:
                keys.append(f"ballast:{len(keys)}")
                store.set(keys[-1], bytes(BALLAST_BYTES))
        yield keys
    finally:
        store.delete(*keys)


@contextmanager
def _squatters(system: FaultSystem) -> Iterator[None]:
    """Connections that do nothing, until the store takes no other."""
    store = system.redis
    squatters: dict[int, socket.socket] = {}
    mine = int(store.client_id())
    store.config_set("maxclients", CLIENTS_MAX)

    def all_taken() -> bool:
        for client in store.client_list():
            if int(client["id"]) not in (mine, *squatters):
                with suppress(redis.ResponseError):
                    store.client_kill_filter(_id=client["id"])
        while (squatter := _squat(store)) is not None:
            squatters[squatter[0]] = squatter[1]
        return len(squatters) == CLIENTS_MAX - 1

    try:
        wait_until(all_taken, START_S, "every connection is taken")
        yield
    finally:
        store.config_set("maxclients", CLIENTS_DEFAULT)
        for squatter in squatters.values():
            squatter.close()


def _squat(store: redis.Redis) -> tuple[int, socket.socket] | None:
    """Take a connection; its id, or None where there is no more."""
    port = store.connection_pool.connection_kwargs["port"]
    connection = socket.create_connection((LOOPBACK, port))
    connection.sendall(b"CLIENT ID\r\n")
    with suppress(OSError):
        answer = connection.recv(200)
        if answer.startswith(b":"):
            return int(answer[1:]), connection
    connection.close()
    return None
