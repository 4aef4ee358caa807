"""Store or broker killed, stopped or restarted, again and again: refused honestly, nothing lost, found again soon."""

from __future__ import annotations

import signal
import time

import pytest

from tests.faults.case import Case, claim
from tests.faults.fault_system import FaultSystem
from tests.faults.outage import ANSWER_S, Footprint, check_outage
from tests.servers import RabbitServer, RedisServer
from tests.system import EmbeddedServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

DOWN_S = 5.0
HANGS_S = 30.0
BEFORE = 40
"""Submits answered before the fault begins."""
AGAIN_S = 10.0
RESTARTS = 10
SLOW_RATE = 20.0


def _ends_a_job(system: FaultSystem) -> bool:
    answer = system.client.post("/predict/tensor-demo", json={"input": [0.0] * 64}, headers={"Prefer": "wait=5"})
    return answer.status_code == 200


def _kill_and_restart(case: Case, server: RabbitServer | RedisServer | EmbeddedServer) -> None:
    server.kill()
    time.sleep(DOWN_S)  # the outage's length
    server.start()
    case.over()


@claim("store-killed", "kill -9 Redis, restart after 5 s", at_most=10.0)
def test_a_store_that_is_killed_loses_nothing_it_acknowledged(case: Case) -> None:
    with case.workload(jobs=700) as workload:
        wait_until(lambda: len(workload.accepted()) >= BEFORE, AGAIN_S, "jobs are under way")
        _kill_and_restart(case, case.system.store)
    case.check()


@pytest.mark.parametrize("place", ["rabbitmq"], indirect=True)
@claim("broker-killed", "kill -9 RabbitMQ while publishing, restart after 5 s", at_most=10.0)
def test_a_broker_that_is_killed_while_it_is_published_to_loses_nothing(case: Case) -> None:
    broker = case.system.rabbit
    assert broker is not None
    with case.workload(jobs=1000) as workload:
        wait_until(lambda: len(workload.accepted()) >= BEFORE, AGAIN_S, "jobs are under way")
        _kill_and_restart(case, broker)
    case.check()


@claim("broker-restarted-ten-times", "restart the broker 10 times", number="consuming again", at_most=AGAIN_S)
def test_a_broker_that_is_restarted_ten_times_is_consumed_from_again(case: Case) -> None:
    system = case.system
    broker = system.rabbit or system.store
    footprint = Footprint(system)
    taken: list[float] = []
    for _ in range(RESTARTS):
        with case.workload(jobs=100) as workload:
            wait_until(workload.accepted, AGAIN_S, "jobs are under way")
            broker.stop()
            broker.start()
            back_at = case.over()
            wait_until(lambda: _ends_a_job(system), AGAIN_S * 3, "a job ends again")
            taken.append(time.monotonic() - back_at)
    case.notes["consuming_again_s"] = [round(each, 2) for each in taken]
    case.check(max(taken))
    footprint.check_back(case)


def _hangs(case: Case, server: RabbitServer | RedisServer | EmbeddedServer) -> None:
    footprint = Footprint(case.system)
    with case.workload(jobs=900, rate=SLOW_RATE) as workload:
        wait_until(lambda: len(workload.accepted()) >= BEFORE, AGAIN_S, "jobs are under way")
        server.send(signal.SIGSTOP)
        time.sleep(HANGS_S)  # the outage's length
        server.send(signal.SIGCONT)
        over_at = case.over()
    check_outage(case, workload, over_at)
    footprint.check_back(case)


@claim("store-stopped", "store SIGSTOP 30 s", number="slowest POST", at_most=ANSWER_S)
def test_a_store_that_hangs_holds_up_no_answer(case: Case) -> None:
    _hangs(case, case.system.store)


@pytest.mark.parametrize("place", ["rabbitmq"], indirect=True)
@claim("broker-stopped", "broker SIGSTOP 30 s", number="slowest POST", at_most=ANSWER_S)
def test_a_broker_that_hangs_holds_up_no_answer(case: Case) -> None:
    assert case.system.rabbit is not None
    _hangs(case, case.system.rabbit)
