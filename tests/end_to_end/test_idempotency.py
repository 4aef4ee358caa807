"""Idempotency-Key: a submit may be repeated, and is one job."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.end_to_end.callers import add_callers
from tests.end_to_end.reference import WIDTH
from tests.end_to_end.test_dead_letters import TRUNCATED
from tests.end_to_end.test_door import check_problem, stored
from tests.system import System

AT_ONCE = 50
ROW = [0.75] * WIDTH


def _submit(system: System, key: str, value: list[float] | None = None, **rest: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key, **rest.pop("headers", {})}
    return system.client.post("/predict/tensor-demo", json={"input": value or ROW, **rest}, headers=headers)


def _is_replay(answer: httpx.Response) -> bool:
    return bool(answer.headers.get("idempotent-replayed") == "true")


def _keys(system: System) -> int:
    return sum(1 for _ in system.redis.scan_iter(f"{system.namespace}:idempotency:*", 1_000))


def test_fifty_requests_at_once_are_one_job_and_get_one_answer(system: System) -> None:
    records, submitted = stored(system)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda _: _submit(system, '"fifty"'), range(AT_ONCE)))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert sum(map(_is_replay, answers)) == AT_ONCE - 1
    assert stored(system) == (records + 1, submitted + 1)
    assert system.ended(answers[0].json()["task_id"])["status"] == "completed"


def test_the_first_answer_is_told_again_when_the_job_has_ended_and_the_gateway_is_a_new_one(system: System) -> None:
    first = _submit(system, "restart")
    system.ended(first.json()["task_id"])
    system.gateway.stop()
    system.start_roles()

    again = _submit(system, "restart")

    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert (_is_replay(first), _is_replay(again)) == (False, True)


def test_a_key_is_the_same_with_and_without_quotation_marks(system: System) -> None:
    first, again = _submit(system, "quoted"), _submit(system, '"quoted"')

    assert again.content == first.content
    assert _is_replay(again)


def test_another_request_with_the_same_key_is_refused_and_nothing_is_stored(system: System) -> None:
    first = _submit(system, "other")
    system.ended(first.json()["task_id"])
    before = stored(system)

    check_problem(_submit(system, "other", [0.5] * WIDTH), 422, "idempotency-key-reused")
    check_problem(_submit(system, "other", ttl_s=30), 422, "idempotency-key-reused")
    octets = {"Content-Type": "application/octet-stream", "Idempotency-Key": "raw"}
    raw: dict[str, Any] = {"content": bytes(4 * WIDTH), "headers": octets}
    assert system.client.post("/predict/tensor-demo", **raw).status_code == 202
    with_query = system.client.post("/predict/tensor-demo", params={"ttl_s": 30}, **raw)
    check_problem(with_query, 422, "idempotency-key-reused")
    assert stored(system) == (before[0] + 1, before[1] + 1)
    assert _submit(system, "other").content == first.content


def test_a_key_of_another_route_is_another_key(system: System) -> None:
    first = _submit(system, "route")
    body = {"model": "tensor-demo", "input": ROW}
    other = system.client.post("/predict", json=body, headers={"Idempotency-Key": "route"})

    assert (other.status_code, _is_replay(other)) == (202, False)
    assert other.json()["task_id"] != first.json()["task_id"]


def test_a_key_of_another_tenant_is_another_key(system: System) -> None:
    mine, other = add_callers(system, "mine", "other")

    first = _submit(system, "tenant", headers=mine)
    theirs = _submit(system, "tenant", headers=other)
    again = _submit(system, "tenant", headers=mine)

    assert (theirs.status_code, _is_replay(theirs)) == (202, False)
    assert theirs.json()["task_id"] != first.json()["task_id"]
    assert again.content == first.content
    assert _submit(system, "tenant", [0.5] * WIDTH, headers=other).status_code == 422


def test_a_repeat_that_waits_gets_the_end_of_the_first_job(system: System) -> None:
    waiting = {"Prefer": "wait=25"}
    first = _submit(system, "waits", headers=waiting)
    again = _submit(system, "waits", headers=waiting)
    at_once = _submit(system, "waits")

    assert (first.status_code, first.json()["status"]) == (200, "completed")
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["preference-applied"] == "wait=25"
    assert (_is_replay(first), _is_replay(again)) == (False, True)
    assert (at_once.status_code, at_once.json()["task_id"]) == (202, first.json()["task_id"])


def test_a_repeat_of_a_job_that_waits_does_not_wait_for_longer_than_it_asks_for(system: System) -> None:
    system.stop_workers()
    first = _submit(system, "stuck", ttl_s=60)

    again = _submit(system, "stuck", ttl_s=60, headers={"Prefer": "wait=1"})

    assert (again.status_code, again.json()["task_id"]) == (202, first.json()["task_id"])


def test_a_refused_request_stores_neither_a_job_nor_its_key(system: System) -> None:
    before = stored(system), _keys(system)

    check_problem(_submit(system, "refused", [0.75] * 3), 422, "invalid-input", "/input")
    check_problem(_submit(system, "refused", version=99), 404, "model-not-found")
    check_problem(_submit(system, "refused", lane="fast"), 422, "invalid-input", "/lane")
    check_problem(_submit(system, "k" * 256), 422, "invalid-idempotency-key")
    assert (stored(system), _keys(system)) == before

    accepted = _submit(system, "refused")
    assert (accepted.status_code, _is_replay(accepted)) == (202, False)
    assert _keys(system) == before[1] + 1


def test_a_key_is_kept_for_a_day(system: System) -> None:
    before = set(system.redis.scan_iter(f"{system.namespace}:idempotency:*"))
    _submit(system, "a-day")
    (key,) = set(system.redis.scan_iter(f"{system.namespace}:idempotency:*")) - before
    assert 86_300_000 < system.redis.pttl(key) <= 86_400_000


def test_a_job_with_a_key_that_is_run_again_keeps_its_key(system: System) -> None:
    picture: dict[str, Any] = {
        "content": TRUNCATED,
        "headers": {"Content-Type": "image/png", "Idempotency-Key": "run"},
    }
    first = system.client.post("/predict/digits", **picture)
    task_id = first.json()["task_id"]
    assert system.ended(task_id)["status"] == "failed"

    assert system.client.post(f"/result/{task_id}/retry").status_code == 202
    assert system.ended(task_id)["generation"] == 2
    again = system.client.post("/predict/digits", **picture)
    assert (again.status_code, again.content, _is_replay(again)) == (202, first.content, True)
