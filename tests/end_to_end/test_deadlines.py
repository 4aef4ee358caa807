"""Deadlines and retention: a late job expires though nobody works and nobody looks, and never runs afterwards."""

from __future__ import annotations

from tests.end_to_end.test_door import check_problem
from tests.system import END_S, System
from tests.waiting import wait_until

HOUR_MS = 3_600_000


def test_a_job_expires_within_a_second_of_its_deadline_with_no_worker_and_nobody_looking(system: System) -> None:
    system.stop_workers()
    expired = system.figures(system.gateway).total("penstock_jobs_total", outcome="expired")
    task_id = system.submit(ttl_s=1)
    deadline_ms = int(system.job(task_id, "deadline") or 0)
    wait_until(lambda: system.job(task_id, "state") == "expired", END_S, "the job expires")
    ended_ms = int(system.job(task_id, "ended") or 0)

    assert 0 <= ended_ms - deadline_ms <= 1_000
    assert system.figures(system.gateway).total("penstock_jobs_total", outcome="expired") == expired + 1
    document = system.ended(task_id)
    assert document["status"] == "expired"
    assert document["error"].keys() == {"code", "message", "retryable", "stage", "attempt"}
    assert (document["error"]["code"], document["error"]["retryable"]) == ("deadline-passed", False)
    assert document["error"]["attempt"] == document["attempt"] == 1

    system.start_roles()  # and it never runs afterwards
    assert system.ended(system.submit())["status"] == "completed"
    assert system.ended(task_id) == document
    assert "stages" not in document
    assert "started_at" not in document


def test_a_job_past_its_deadline_is_told_expired_by_a_poll_that_waits(system: System) -> None:
    system.stop_workers()
    document = system.ended(system.submit(ttl_s=0.5))
    assert document["status"] == "expired"


def test_a_job_past_its_retention_is_gone_and_a_young_one_without_a_record_is_our_fault(system: System) -> None:
    old = system.ids().issue(system.now_ms() - 2 * HOUR_MS, b"default")
    young = system.ids().issue(system.now_ms() - HOUR_MS // 2, b"default")
    missing = system.figures(system.gateway).total("penstock_records_missing_total")

    check_problem(system.client.get(f"/result/{old}"), 410, "result-gone")
    answer = system.client.get(f"/result/{young}")
    check_problem(answer, 503, "record-missing")
    assert int(answer.headers["retry-after"]) >= 1
    assert system.figures(system.gateway).total("penstock_records_missing_total") == missing + 1


def test_an_ended_job_is_kept_for_the_retention(system: System) -> None:
    task_id = system.submit()
    system.ended(task_id)
    ttl_ms = system.redis.pttl(f"{system.namespace}:job:{task_id}")
    assert 3_500_000 < ttl_ms <= 3_600_000
