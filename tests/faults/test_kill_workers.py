"""No accepted job is lost and none is answered wrongly, though workers are killed while they hold it.

A kill always hits work: the worker is frozen, the store is asked whether it holds a micro-batch, and only then it
gets SIGKILL. Executions are counted from the store's own command stream (MONITOR): the members of every inference
that a worker brought to its commit, whether the commit was accepted or fenced off.
"""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.end_to_end.reference import inputs, outputs
from tests.servers import LOOPBACK
from tests.system import Role, System
from tests.waiting import wait_until

BROKERS = ("redis", "rabbitmq")
WORKERS = 2
THREADS = 2
MICROBATCH_JOBS_MAX = 8
LEASE_S = 1
HIT_S = 30.0
SAVED_S = 15.0
UNSAVED_S = 8.0
"""Longer than any lease, and than the 2 s after which an unleased micro-batch is looked at."""

_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')


class Executions:
    """Counts, on a connection of its own, how many jobs were carried through inference."""

    def __init__(self, system: System) -> None:
        port = int(system.store.url.rsplit(":", 1)[1].split("/")[0])
        self._connection = socket.create_connection((LOOPBACK, port))
        self._connection.sendall(b"MONITOR\r\n")
        self._thread = threading.Thread(target=self._count)
        self.jobs = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    def _count(self) -> None:
        with self._connection.makefile("rb") as lines:
            for line in lines:
                # EVALSHA sha 1 prefix, then of a commit: number epoch stage following reference stages cost ids...
                words = _WORD.findall(line)[4:]
                if words[2:4] == [b"inference", b"postprocess"]:
                    self.jobs += len(words[7].split())


def _system(kind: str, folder: Path, **environment: str) -> System:
    return System(
        kind,
        folder,
        workers=WORKERS,
        PENSTOCK_MICROBATCH_JOBS_MAX=str(MICROBATCH_JOBS_MAX),
        PENSTOCK_LEASE_S=str(LEASE_S),
        PENSTOCK_WORKER_THREADS=str(THREADS),
        **environment,
    )


def _holds(system: System, worker: Role) -> bool:
    """Whether the store says that this process holds a micro-batch."""
    mine = f":{worker.pid}:".encode()
    keys = list(system.redis.scan_iter(f"{system.namespace}:microbatch:*", 1000))
    holders = [system.redis.hget(key, "holder") for key in keys]
    return any(mine in bytes(holder) for holder in holders if holder)  # type: ignore[arg-type]


def _kill_at_work(system: System, worker: Role) -> bool:
    """Kill a worker while it holds a micro-batch; False where it did not come to hold one in time."""
    give_up_at = time.monotonic() + HIT_S
    while time.monotonic() < give_up_at:
        worker.send(signal.SIGSTOP)
        if _holds(system, worker):
            worker.kill_stopped()
            return True
        worker.send(signal.SIGCONT)
        time.sleep(0.001)  # lets it run on to another instant
    return False


@contextmanager
def _flood(system: System, rows: NDArray[np.float32]) -> Iterator[list[str]]:
    """Submit the rows beside what the block does; their task ids are there when it has ended."""
    task_ids: list[str] = []
    thread = threading.Thread(target=lambda: task_ids.extend(system.submit_all(rows.tolist())))
    thread.start()
    try:
        yield task_ids
    finally:
        thread.join()


def _run(system: System, jobs: int, kills: int) -> None:
    rows = inputs(jobs, seed=kills)
    task_ids: list[str] = []
    with Executions(system) as executions:
        for number, part in enumerate(np.array_split(rows, kills)):
            worker = system.workers[number % WORKERS]
            with _flood(system, part) as submitted:
                assert _kill_at_work(system, worker), "the kill hit no work"
            task_ids += submitted
            worker.start()
            wait_until(partial(worker.said, "ready"), HIT_S, "the worker is back")
        documents = [system.ended(task_id, 120) for task_id in task_ids]

    assert len(set(task_ids)) == jobs
    assert {document["status"] for document in documents} == {"completed"}
    got = np.array([document["result"]["y"] for document in documents], np.float32)
    expected = outputs(rows)
    assert (got.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert np.allclose(got, expected, atol=1e-5)
    # What a dead worker held runs again, and nothing else.
    assert jobs <= executions.jobs <= jobs + kills * THREADS * MICROBATCH_JOBS_MAX * WORKERS
    print(f"{system.kind}: {jobs} jobs, {kills} kills, {executions.jobs} executions")  # noqa: T201 -- for the record


@pytest.fixture(scope="module", params=BROKERS)
def shared_system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with _system(request.param, tmp_path_factory.mktemp(request.param)) as system:
        yield system


@pytest.fixture
def system(shared_system: System) -> System:
    return shared_system.mend()


def test_no_job_is_lost_when_workers_are_killed_at_work(system: System) -> None:
    _run(system, jobs=600, kills=3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_none_of_ten_thousand_jobs_is_lost_when_workers_are_killed_ten_times(system: System) -> None:
    _run(system, jobs=10_000, kills=10)


def test_without_the_sweeper_jobs_are_lost_so_it_is_what_saves_them(tmp_path: Path) -> None:
    rows = inputs(100, seed=9)
    with _system("redis", tmp_path, PENSTOCK_SWEEPER="false") as system:
        with _flood(system, rows) as task_ids:
            assert _kill_at_work(system, system.workers[0]), "the kill hit no work"
        system.workers[1].stop()
        late = system.submit(ttl_s=0.3)
        wait_until(lambda: system.poll(late).json()["status"] == "expired", 3, "a poll itself expires what is late")
        system.start_roles()
        time.sleep(UNSAVED_S)  # the claim is that nothing happens, so there is nothing to wait for

        states = [system.poll(task_id).json()["status"] for task_id in task_ids]
        lost = [state for state in states if state != "completed"]
        assert lost
        assert set(lost) <= {"queued", "processing"}

        # The same store, with a gateway that sweeps: every one of them is saved.
        system.gateway.stop()
        system.gateway.start(PENSTOCK_SWEEPER="true")
        system.wait_ready()
        assert {system.ended(task_id)["status"] for task_id in task_ids} == {"completed"}


def test_a_job_whose_message_the_broker_lost_completes(system: System) -> None:
    """So does one whose gateway was killed between the store's write and the publish: it looks the same."""
    system.stop_workers()
    task_id = system.submit()
    wait_until(lambda: system.waiting_messages() >= 1, HIT_S, "the message is published")
    assert system.take_messages()
    system.start_roles()
    assert system.ended(task_id, SAVED_S)["status"] == "completed"


def test_jobs_of_a_gateway_that_was_killed_complete(system: System) -> None:
    rows = inputs(50, seed=5)
    for worker in system.workers:
        worker.send(signal.SIGSTOP)
    task_ids = system.submit_all(rows.tolist())
    system.gateway.kill()
    for worker in system.workers:
        worker.send(signal.SIGCONT)
    system.gateway.start()
    system.wait_ready()
    results = [system.ended(task_id)["result"]["y"] for task_id in task_ids]
    assert np.allclose(results, outputs(rows), atol=1e-5)


def test_the_monitor_counts_what_runs(system: System) -> None:
    """The instrument itself: with nothing killed, as many executions as jobs."""
    with Executions(system) as executions:
        task_ids = system.submit_all(inputs(40, seed=6).tolist())
        assert {system.ended(task_id)["status"] for task_id in task_ids} == {"completed"}
        wait_until(lambda: executions.jobs == 40, HIT_S, "every execution is counted")
