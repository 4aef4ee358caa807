"""The queue as clients see it: place, estimate and reason while a job waits, and when there is no use in waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from jobs import pauses
from tests.end_to_end.reference import WIDTH
from tests.end_to_end.test_door import check_problem, stored
from tests.system import END_S, System
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize("shared_system", ["redis", "rabbitmq"], indirect=True)
"""What the embedded store does here differs in nothing from Redis's own."""

SEEN_S = 3.0
"""Many looks of a gateway."""
BACKLOG = 40
JOBS_MAX = 6


def _submit(
    system: System, model: str = "tensor-demo", value: list[float] | None = None, **rest: Any
) -> httpx.Response:
    return system.client.post(f"/predict/{model}", json={"input": value or [0.0] * WIDTH, **rest})


def _said(system: System, task_id: str) -> dict[str, Any]:
    said: dict[str, Any] = system.poll(task_id).json()
    return said


def _waits_for(system: System, task_id: str, reason: str) -> dict[str, Any]:
    """The job as it is told while it waits for this."""
    wait_until(lambda: _said(system, task_id)["waiting_reason"] == reason, SEEN_S, f"it waits for {reason}")
    return _said(system, task_id)


@contextmanager
def _paused(system: System, model: str = "tensor-demo") -> Iterator[None]:
    pauses.pause(system.redis, system.namespace, model)
    try:
        yield
    finally:
        pauses.resume(system.redis, system.namespace, model)


def _line(system: System, model: str = "tensor-demo", lane: str = "interactive") -> dict[str, Any] | None:
    lines = system.client.get("/capacity").json()["lines"]
    return next((line for line in lines if (line["model"], line["lane"]) == (model, lane)), None)


# --- Place and reason ---


def test_jobs_of_a_paused_model_wait_in_their_order_and_go_on_when_it_is_resumed(system: System) -> None:
    with _paused(system):
        task_ids = [system.submit() for _ in range(3)]
        for ahead, task_id in enumerate(task_ids):
            said = _waits_for(system, task_id, "paused")
            assert said["status"] == "queued"
            assert said["queue"] == {"position": ahead + 1, "ahead": ahead, "lane": "interactive"}
            assert "estimate" not in said
        assert system.client.post(f"/result/{task_ids[0]}/cancel").status_code == 200
        assert _said(system, task_ids[2])["queue"]["ahead"] == 1

    assert [system.ended(task_id)["status"] for task_id in task_ids[1:]] == ["completed"] * 2
    assert "queue" not in system.poll(task_ids[1]).json()


def test_another_model_goes_on_while_one_is_paused(system: System) -> None:
    with _paused(system):
        task_id = system.submit()
        assert system.ended(system.submit("fragile"))["status"] == "completed"
        assert _said(system, task_id)["status"] == "queued"


def test_a_job_waits_for_a_worker_where_there_is_none(system: System) -> None:
    system.stop_workers()
    task_id = system.submit()

    said = _waits_for(system, task_id, "no-worker")

    assert said["retry_after_s"] > 0
    assert "estimate" not in said
    system.start_roles()
    assert system.ended(task_id)["status"] == "completed"


# --- Estimates ---


@contextmanager
def _backlog(system: System) -> Iterator[list[str]]:
    """Jobs of about a quarter of a second each, which take some seconds together; what is left is cancelled."""
    turns = 1_000.0
    while (ran_s := _run_s(system, turns)) < 0.1:
        turns *= max(2.0, 0.25 / max(ran_s, 0.001))
    task_ids = [system.submit("spin", [turns + n, 0, 0, 0], ttl_s=600, admit="always") for n in range(BACKLOG)]
    try:
        yield task_ids
    finally:
        for task_id in task_ids:
            system.client.post(f"/result/{task_id}/cancel")


def _run_s(system: System, turns: float) -> float:
    document = system.ended(system.submit("spin", [turns, 0.0, 0.0, 0.0]))
    assert document["status"] == "completed", document
    return sum(float(stage["run_s"]) for stage in document["stages"])


def test_a_job_in_a_backlog_is_told_when_it_will_have_ended_and_to_ask_again_then(system: System) -> None:
    with _backlog(system) as task_ids:
        last = task_ids[-1]
        wait_until(lambda: "estimate" in _said(system, last), SEEN_S, "there is an estimate")
        answer = system.poll(last)
        said = answer.json()

        assert said["waiting_reason"] == "ahead-in-queue"
        assert said["queue"]["ahead"] > 0
        assert 0 < said["estimate"]["finish_in_s"] <= said["estimate"]["p90_finish_in_s"]
        assert said["retry_after_s"] == said["estimate"]["finish_in_s"]
        assert int(answer.headers["retry-after"]) >= said["retry_after_s"]
        nearer = _said(system, task_ids[len(task_ids) // 2])
        if nearer["status"] == "queued":
            assert nearer["queue"]["ahead"] < said["queue"]["ahead"]


def test_a_job_that_would_be_late_is_refused_at_the_door_unless_it_insists(system: System) -> None:
    with _backlog(system):
        wait_until(lambda: ((_line(system, "spin") or {}).get("waiting") or 0) > 10, SEEN_S, "the backlog is seen")
        before = stored(system)

        refused = _submit(system, "spin", [1.0, 0, 0, 0], ttl_s=0.2)

        check_problem(refused, 503, "deadline-unreachable")
        assert int(refused.headers["retry-after"]) >= 1
        assert stored(system) == before
        insists = _submit(system, "spin", [1.0, 0, 0, 0], ttl_s=0.2, admit="always")
        assert insists.status_code == 202
        assert system.ended(insists.json()["task_id"])["status"] == "expired"
        patient = _submit(system, "spin", [2.0, 0, 0, 0], ttl_s=600)
        assert patient.status_code == 202


def test_a_full_queue_still_knows_the_keys_of_those_that_it_let_in(narrow: System) -> None:
    def keyed(key: str) -> httpx.Response:
        headers = {"Idempotency-Key": f'"{key}"'}
        return narrow.client.post("/predict/tensor-demo", json={"input": [0.0] * WIDTH}, headers=headers)

    with _paused(narrow):
        first = keyed("early")
        task_ids = [narrow.submit() for _ in range(JOBS_MAX - 1)]
        check_problem(keyed("late"), 503, "queue-full")

        again = keyed("early")

        assert (again.status_code, again.content) == (202, first.content)
        assert again.headers["idempotent-replayed"] == "true"
        check_problem(keyed("late"), 503, "queue-full")
    for task_id in (first.json()["task_id"], *task_ids):
        narrow.ended(task_id)


# --- Room ---


@pytest.fixture
def narrow(system: System) -> Iterator[System]:
    """The system with room for few jobs."""
    system.gateway.stop()
    system.gateway.start(PENSTOCK_QUEUE_JOBS_MAX=str(JOBS_MAX))
    system.wait_ready()
    yield system
    system.gateway.stop()


def test_a_full_queue_says_so_at_once_and_takes_jobs_again_when_some_have_ended(narrow: System) -> None:
    with _paused(narrow):
        task_ids = [narrow.submit() for _ in range(JOBS_MAX)]
        before = stored(narrow)
        for _ in range(3):
            refused = _submit(narrow)
            check_problem(refused, 503, "queue-full")
            assert 1 <= int(refused.headers["retry-after"]) <= 300
        assert stored(narrow) == before
        assert narrow.client.get("/capacity").json()["open_jobs_max"] == JOBS_MAX

    assert [narrow.ended(task_id)["status"] for task_id in task_ids] == ["completed"] * JOBS_MAX
    wait_until(lambda: _submit(narrow).status_code == 202, SEEN_S, "there is room again")


# --- GET /capacity ---


def test_capacity_tells_workers_window_and_lines(system: System) -> None:
    system.ended(system.submit())
    with _paused(system):
        for _ in range(3):
            system.submit()
        wait_until(lambda: (_line(system) or {}).get("paused"), SEEN_S, "the line is seen")
        said = system.client.get("/capacity").json()

    assert said["workers"] == {"ready": 2, "starting": 0}
    assert [(pool["pool"], pool["workers"], pool["slots"]) for pool in said["pools"]] == [("default", 2, 4)]
    assert said["open_jobs"] >= 3
    line = next(each for each in said["lines"] if (each["model"], each["lane"]) == ("tensor-demo", "interactive"))
    assert (line["version"], line["pool"], line["waiting"], line["paused"]) == (1, "default", 3, True)
    assert line["service_s"] > 0
    assert set(said["seconds_to_drain"]) == {"interactive", "bulk"}
    wait_until(lambda: system.client.get("/capacity").json()["open_jobs"] == 0, END_S, "all have ended")


def test_capacity_tells_that_nobody_works(system: System) -> None:
    system.stop_workers()
    task_id = system.submit()
    wait_until(
        lambda: system.client.get("/capacity").json()["workers"] == {"ready": 0, "starting": 0},
        SEEN_S,
        "the workers are gone",
    )
    system.start_roles()
    assert system.ended(task_id)["status"] == "completed"
