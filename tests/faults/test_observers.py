"""Those who only look on: Flower dies, metrics are asked for without pause, and no job notices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from penstock.ports import free_port
from tests.faults.case import Case, claim
from tests.faults.fault_system import flower_command
from tests.servers import LOOPBACK
from tests.system import END_S, START_S, Role, metrics_url
from tests.waiting import wait_until

SCRAPES_MIN = 100
BOUND = {"number": "errors", "unit": "", "at_most": 0}


@pytest.mark.faults
@claim("flower-killed", "kill -9 Flower", **BOUND)
def test_nobody_misses_a_flower_that_was_killed(case: Case) -> None:
    system = case.system
    port = free_port(LOOPBACK)
    environment = system.environment() | {"FLOWER_UNAUTHENTICATED_API": "true"}
    flower = Role(system.folder / f"flower-{port}", flower_command(port), environment).start()
    try:
        wait_until(lambda: _answers(f"http://{LOOPBACK}:{port}/workers"), START_S, "Flower answers")
        with case.workload() as workload:
            wait_until(lambda: len(workload.accepted()) > len(workload.submits) // 3, END_S, "there is load")
            flower.kill()
            case.fault()
    finally:
        flower.kill()
    case.check(_errors(case))


@pytest.mark.faults
@claim("metrics-scraped", "every metrics page scraped without pause", **BOUND)
def test_nobody_notices_metrics_that_are_asked_for_without_pause(case: Case) -> None:
    system = case.system
    urls = [f"{system.url}/metrics", *(metrics_url(worker) for worker in system.workers)]
    case.fault()
    with _scraping(urls) as statuses, case.workload():
        pass
    case.notes["scrapes"] = len(statuses)
    case.check(_errors(case) + sum(status != 200 for status in statuses))
    assert len(statuses) >= SCRAPES_MIN


def _errors(case: Case) -> int:
    """Lines of gateway and workers that are errors."""
    lines = [line for role in case.system.roles for line in role.lines()]
    return sum(line["level"] in ("error", "critical") for line in lines)


@contextmanager
def _scraping(urls: list[str]) -> Iterator[list[int]]:
    """Ask for each page again and again, a thread each; the statuses of the answers."""
    stop, statuses = threading.Event(), list[int]()

    def scrape(url: str) -> None:
        with httpx.Client(timeout=END_S) as client:
            while not stop.is_set():
                statuses.append(client.get(url).status_code)

    threads = [threading.Thread(target=scrape, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=END_S).status_code == 200
    except httpx.TransportError:
        return False
