"""No accepted job is lost and none is answered wrongly, though workers are killed while they hold it.

A kill at work always hits: the worker is frozen, the store is asked whether it holds a micro-batch, and only then it
gets SIGKILL.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.faults.case import Case, claim
from tests.faults.fault_system import FaultSystem
from tests.system import END_S, Role
from tests.waiting import wait_until

SAVED_S = 15.0
UNSAVED_S = 8.0
"""Longer than any lease, and than the 2 s after which an unleased micro-batch is looked at."""
FLOOD_RATE = 200.0
STORM_JOBS = 4_000
STORM_KILLS = 30
STORM_EVERY_S = (2.0, 3.0)
STORM_S = 240.0


def _kill_at_work(system: FaultSystem, worker: Role) -> None:
    """Kill a worker while it holds a micro-batch."""
    give_up_at = time.monotonic() + END_S
    while time.monotonic() < give_up_at:
        worker.send(signal.SIGSTOP)
        if system.held_by(worker):
            worker.kill_stopped()
            return
        worker.send(signal.SIGCONT)
        time.sleep(0.001)  # lets it run on to another instant
    pytest.fail("the kill hit no work")


def _kill(case: Case, jobs: int, kills: int, alike: int = 1) -> None:
    """Kill one worker after the other, at work."""
    workers = case.system.workers
    for number in range(kills):
        worker = workers[number % len(workers)]
        with case.workload(jobs // kills, rate=FLOOD_RATE, alike=alike):
            _kill_at_work(case.system, worker)
            case.fault()
        worker.start()
        wait_until(partial(worker.said, "ready"), END_S, "the worker is back")


def _kill_in_turn(case: Case, jobs: int, kills: int) -> None:
    _kill(case, jobs, kills)
    tally = case.check()
    assert tally.executions is not None
    assert tally.executions <= tally.completed + tally.cancelled + kills * case.system.in_flight_max


@claim("workers-killed-at-work", "kill -9 a worker at work, twice", at_most=10.0)
def test_no_job_is_lost_when_workers_are_killed_at_work(case: Case) -> None:
    _kill_in_turn(case, jobs=400, kills=2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@claim("workers-killed-at-work-long", "kill -9 a worker at work, 10 times, 10,000 jobs", at_most=10.0)
def test_none_of_ten_thousand_jobs_is_lost_when_workers_are_killed_ten_times(case: Case) -> None:
    _kill_in_turn(case, jobs=10_000, kills=10)


@claim("workers-killed-joined", "kill -9 a worker at work while other jobs wait for the answers to its own, twice",
       at_most=10.0)  # fmt: skip
def test_no_joined_job_is_lost_when_the_worker_of_its_leader_is_killed(case: Case) -> None:
    kills, alike, tenants = 2, 20, 2
    _kill(case, jobs=400, kills=kills, alike=alike)
    tally = case.check()
    assert tally.joined > 0
    assert tally.executions is not None
    computed = tally.submitted / alike * tenants + tally.cancelled  # a leader's end by itself lets the next one lead
    assert tally.executions <= computed + kills * case.system.in_flight_max


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(600)
@claim("workers-killed-at-random", "kill -9 a worker at random every 2 to 3 s, 30 times", number="lost", unit="",
       at_most=0)  # fmt: skip
def test_no_job_is_lost_in_a_storm_of_kills(case: Case) -> None:
    system, chance = case.system, random.Random(STORM_KILLS)  # noqa: S311 -- which worker dies, not a secret
    with case.workload(STORM_JOBS):
        for _ in range(STORM_KILLS):
            due = time.monotonic() + chance.uniform(*STORM_EVERY_S)
            system.supervise(lambda due=due: time.monotonic() > due and _running(system), STORM_S)  # type: ignore[misc]
            chance.choice(_running(system)).kill()
            case.fault()
        system.start_roles()
    case.check(case.measure().lost)


def _running(system: FaultSystem) -> list[Role]:
    return [worker for worker in system.workers if worker.running]


@claim("sweeper-off", "kill -9 a worker with the sweeper switched off: must lose", number="lost", unit="", at_least=1)
@pytest.mark.parametrize("broker", ["redis"])
def test_without_the_sweeper_jobs_are_lost_so_it_is_what_saves_them(
    open_case: Callable[[FaultSystem], Case], broker: str, tmp_path: Path
) -> None:
    with FaultSystem(broker, tmp_path, PENSTOCK_SWEEPER="false", PENSTOCK_LEASE_S="2") as system:
        case = open_case(system)
        worker = system.workers[0]
        with case.workload(100):
            _kill_at_work(system, worker)
            case.fault()
        system.stop_workers()
        late = system.submit(ttl_s=0.3, admit="always")
        wait_until(lambda: system.poll(late).json()["status"] == "expired", 3, "a poll itself expires what is late")
        system.start_roles()

        lost = case.measure(settle_s=UNSAVED_S)
        case.number = float(lost.lost)
        assert lost.lost >= 1, "this checker sees what is lost"
        assert lost.broken == [f"lost {lost.lost}"]

        # The same store, with a gateway that sweeps: every one of them is saved.
        system.gateway.stop()
        system.gateway.start(PENSTOCK_SWEEPER="true")
        system.wait_ready()
        case.fault()
        assert not case.measure().broken
        case.tally = lost


def test_a_job_whose_message_the_broker_lost_completes(system: FaultSystem) -> None:
    """So does one whose gateway was killed between the store's write and the publish: it looks the same."""
    system.stop_workers()
    task_id = system.submit()
    wait_until(lambda: system.waiting_messages() >= 1, END_S, "the message is published")
    assert system.take_messages()
    system.start_roles()
    assert system.ended(task_id, SAVED_S)["status"] == "completed"


@claim("nothing", "nothing happens: the instruments themselves", number="runs of one job", unit="", at_most=1)
def test_without_a_fault_each_job_runs_once(case: Case) -> None:
    with case.workload(40, mixed=False, rate=FLOOD_RATE):
        pass
    case.measure()
    tally = case.check(max(case.executions.times.values()))
    assert tally.executions == tally.completed == 40
