"""The network between us and our servers goes bad in every way; the servers themselves are well.

Each system goes through proxies, so that a Redis which is store and broker in one is hurt in one of the two alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.faults.case import Case, claim
from tests.faults.conftest import Place
from tests.faults.fault_system import BROKERS
from tests.faults.outage import ANSWER_S, Footprint, check_outage, slowest_post_s
from tests.faults.workload import Workload
from tests.proxy import Proxy
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

BLACKHOLE_S = 30.0
BAD_S = 10.0
LATENCY_S = 0.3
RESET_EVERY_S = 0.5
CUT_BYTES = 1500
"""Less than most messages and replies have, so that the cut falls inside one."""
HALF_OPEN_S = 30.0
BEFORE = 40
BEFORE_S = 10.0
SLOW_RATE = 20.0


@pytest.fixture(scope="module", params=BROKERS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(request.param, tmp_path_factory, proxied=True)
    yield found
    found.close()


def _ways(case: Case, *servers: str) -> list[Proxy]:
    assert case.system.routes is not None
    return [proxy for server in servers or ("store", "broker") for proxy in case.system.routes.to(server)]


def _under_way(workload: Workload) -> None:
    wait_until(lambda: len(workload.accepted()) >= BEFORE, BEFORE_S, "jobs are under way")


def _slowest(name: str, fault: str) -> pytest.MarkDecorator:
    return claim(name, fault, number="slowest POST", at_most=ANSWER_S)


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(server, marks=_slowest(f"{server}-blackholed", f"{server} blackholed 30 s"))
        for server in ("store", "broker")
    ],
)
def test_a_server_that_cannot_be_reached_holds_up_no_answer(case: Case, server: str) -> None:
    footprint = Footprint(case.system)
    with case.workload(jobs=900, rate=SLOW_RATE) as workload:
        _under_way(workload)
        for way in _ways(case, server):
            way.blackhole()
        time.sleep(BLACKHOLE_S)  # the outage's length
        for way in _ways(case, server):
            way.normal()
        over_at = case.over()
    check_outage(case, workload, over_at)
    footprint.check_back(case)


@_slowest("store-slow", "store slow: 300 ms each way, 10 s")
def test_a_slow_store_is_waited_for(case: Case) -> None:
    with case.workload(jobs=900) as workload:
        _under_way(workload)
        for way in _ways(case, "store"):
            way.slow(LATENCY_S)
        time.sleep(BAD_S)  # the outage's length
        for way in _ways(case, "store"):
            way.normal()
        over_at = case.over()
    check_outage(case, workload, over_at)


@_slowest("connections-reset", "connections reset every 0.5 s, 10 s")
def test_connections_that_are_reset_again_and_again_are_made_again(case: Case) -> None:
    footprint = Footprint(case.system)
    with case.workload(jobs=900) as workload:
        _under_way(workload)
        until = time.monotonic() + BAD_S
        while time.monotonic() < until:
            for way in _ways(case):
                way.reset()
            time.sleep(RESET_EVERY_S)  # the fault's own pace
        over_at = case.over()
    check_outage(case, workload, over_at)
    footprint.check_back(case)


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(server, marks=_slowest(f"{server}-cut", f"{server} connection cut mid-frame, 10 s"))
        for server in ("store", "broker")
    ],
)
def test_a_connection_that_is_cut_inside_a_frame_tells_nobody_a_lie(case: Case, server: str) -> None:
    with case.workload(jobs=900) as workload:
        _under_way(workload)
        for way in _ways(case, server):
            way.cut_after(CUT_BYTES)
        time.sleep(BAD_S)  # the outage's length
        for way in _ways(case, server):
            way.normal()
        over_at = case.over()
    check_outage(case, workload, over_at)


@claim("half-open", "half-open: the servers forgot every connection", at_most=HALF_OPEN_S)
def test_connections_that_the_servers_forgot_are_given_up_in_time(case: Case) -> None:
    with case.workload(jobs=600, rate=SLOW_RATE) as workload:
        _under_way(workload)
        for way in _ways(case):
            way.half_open()
        case.over()
    case.check()
    assert slowest_post_s(workload) <= ANSWER_S
