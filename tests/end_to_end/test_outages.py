"""Store or broker away: a clear 503 in time, a gateway that stays alive, and all is well when they are back."""

from __future__ import annotations

import signal
import time

import httpx
import pytest

from tests.end_to_end.reference import WIDTH
from tests.end_to_end.test_door import check_problem
from tests.system import END_S, System
from tests.waiting import wait_until

ANSWER_S = 3.5
LIVE_S = 0.5


def _submit(system: System) -> tuple[httpx.Response, float]:
    started = time.monotonic()
    answer = system.client.post("/predict/tensor-demo", json={"input": [0.0] * WIDTH})
    return answer, time.monotonic() - started


def _accepted_until_refused(system: System, code: str) -> list[str]:
    """Submit until the gateway refuses: it may accept while it cannot know yet. The ids that it accepted."""
    accepted: list[str] = []
    give_up_at = time.monotonic() + END_S
    while time.monotonic() < give_up_at:
        answer, took_s = _submit(system)
        assert took_s < ANSWER_S
        if answer.status_code == 202:
            accepted.append(answer.json()["task_id"])
            continue
        check_problem(answer, 503, code)
        assert int(answer.headers["retry-after"]) >= 1
        return accepted
    pytest.fail(f"still accepts after {END_S:g} s")


def _is_live(system: System) -> None:
    started = time.monotonic()
    assert system.client.get("/livez").status_code == 200
    assert time.monotonic() - started < LIVE_S


def test_a_store_that_hangs_is_told_in_time_and_found_again(system: System) -> None:
    system.store.send(signal.SIGSTOP)
    answer, took_s = _submit(system)
    _is_live(system)
    ready = system.client.get("/readyz")
    system.store.send(signal.SIGCONT)

    check_problem(answer, 503, "store-unavailable" if "store" in answer.text else "broker-unavailable")
    assert took_s < ANSWER_S
    assert int(answer.headers["retry-after"]) >= 1
    assert ready.status_code == 503
    assert ready.json()["checks"]["store"] is False
    wait_until(lambda: _submit(system)[0].status_code == 202, END_S, "submits are accepted again")
    assert system.ended(system.submit())["status"] == "completed"


def test_a_store_that_is_gone_is_told_in_time_and_found_again(system: System) -> None:
    task_id = system.submit()
    document = system.ended(task_id)
    system.store.stop()
    answer, took_s = _submit(system)
    _is_live(system)
    assert answer.status_code == 503
    assert took_s < ANSWER_S
    check_problem(system.poll(task_id), 503, "store-unavailable")
    system.store.start()
    wait_until(lambda: _submit(system)[0].status_code == 202, END_S, "submits are accepted again")
    assert system.ended(task_id) == document
    assert system.ended(system.submit())["status"] == "completed"


def test_a_broker_that_hangs_is_told_in_time_and_what_was_accepted_completes(system: System) -> None:
    if system.rabbit is None:
        pytest.skip("store and broker are one server here: the test of the store is this test")
    system.rabbit.send(signal.SIGSTOP)
    accepted = _accepted_until_refused(system, "broker-unavailable")
    _is_live(system)
    checks = system.client.get("/readyz").json()["checks"]
    assert [name for name, is_well in checks.items() if not is_well] == ["broker"]
    system.rabbit.send(signal.SIGCONT)
    wait_until(lambda: _submit(system)[0].status_code == 202, END_S, "submits are accepted again")
    assert [system.ended(task_id, 60)["status"] for task_id in accepted] == ["completed"] * len(accepted)


def test_a_broker_that_died_is_found_again_and_what_was_accepted_completes(system: System) -> None:
    if system.rabbit is None:
        pytest.skip("store and broker are one server here: the test of the store is this test")
    system.rabbit.kill()
    accepted = _accepted_until_refused(system, "broker-unavailable")
    _is_live(system)
    system.rabbit.start()
    wait_until(lambda: _submit(system)[0].status_code == 202, END_S, "submits are accepted again")
    assert [system.ended(task_id, 60)["status"] for task_id in accepted] == ["completed"] * len(accepted)
