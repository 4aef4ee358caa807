"""The result cache: what was answered once is told again, and what is asked for twice at once is run once."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import pytest

from jobs import pauses
from tests.end_to_end.callers import add_callers
from tests.end_to_end.reference import WIDTH
from tests.end_to_end.test_dead_letters import TRUNCATED
from tests.end_to_end.test_door import stored
from tests.system import CACHED, System

pytestmark = pytest.mark.parametrize("shared_system", ["redis", "rabbitmq"], indirect=True)
"""What the embedded store does here differs in nothing from Redis's own."""

MISS = b'"cache":{"status":"miss"}'
TWINS = 5

_numbers = itertools.count(1)


def _input() -> list[float]:
    """One that nobody asked for before."""
    return [next(_numbers) / 1024] * WIDTH


def _ask(
    system: System, value: list[Any], model: str = "tensor-demo", headers: dict[str, str] | None = None, **rest: Any
) -> httpx.Response:
    """Ask for a result and take it from the cache if it is there."""
    given = {**CACHED, **(headers or {})}
    return system.client.post(f"/predict/{model}", json={"input": value, **rest}, headers=given)


def _computed(system: System, value: list[float], **given: Any) -> str:
    """The id of the job that ran for this input."""
    answer = _ask(system, value, **given)
    assert answer.status_code == 202, answer.text
    task_id = str(answer.json()["task_id"])
    assert system.poll(task_id, Prefer="wait=25", **given.get("headers", {})).json()["status"] == "completed"
    return task_id


def _is_hit(answer: httpx.Response, task_id: str) -> bool:
    said = answer.json()
    return answer.status_code == 200 and said["task_id"] == task_id and said["cache"]["status"] == "hit"


def _counted(system: System, result: str) -> float:
    return system.figures(system.gateway).total("penstock_cache_requests_total", result=result)


def test_a_hit_is_the_first_document_byte_by_byte_but_for_its_age(system: System) -> None:
    value = _input()
    task_id = _computed(system, value)
    document = system.poll(task_id).content
    before = stored(system)

    from_store, from_memory = _ask(system, value), _ask(system, value)

    for hit in (from_store, from_memory):
        assert _is_hit(hit, task_id)
        head, _, tail = document.partition(MISS)
        assert hit.content.startswith(head + b'"cache":{"status":"hit","age_s":')
        assert hit.content.endswith(b"}" + tail)
        assert hit.headers["content-type"] == "application/json"
        assert hit.headers["x-request-id"]
    assert 0 <= from_store.json()["cache"]["age_s"] <= from_memory.json()["cache"]["age_s"] < 60
    assert stored(system) == before


def test_the_same_input_in_another_form_is_a_hit(system: System) -> None:
    value = _input()
    task_id = _computed(system, value)
    assert _is_hit(_ask(system, [value], lane="bulk", ttl_s=9), task_id)
    named = {"model": "tensor-demo", "input": value}
    assert _is_hit(system.client.post("/predict", json=named, headers=CACHED), task_id)
    assert not _is_hit(_ask(system, [value, value]), task_id)


@pytest.mark.parametrize(
    "anew", [{"cache": "refresh"}, {"headers": {"Cache-Control": "no-cache"}}], ids=["refresh", "no-cache"]
)
def test_a_result_is_computed_anew_and_is_the_answer_from_then_on(system: System, anew: dict[str, Any]) -> None:
    value = _input()
    first = _computed(system, value)

    second = _computed(system, value, **anew)

    assert second != first
    assert _is_hit(_ask(system, value), second)


@pytest.mark.parametrize(
    "without", [{"cache": "off"}, {"headers": {"Cache-Control": "no-store"}}], ids=["off", "no-store"]
)
def test_without_the_cache_each_job_runs_and_none_is_kept(system: System, without: dict[str, Any]) -> None:
    value = _input()
    ran = [_computed(system, value, **without) for _ in range(2)]

    assert "cache" not in system.poll(ran[0]).json()
    known = _computed(system, value)
    assert _computed(system, value, **without) not in {known, *ran}


def test_a_model_whose_results_are_not_kept_runs_each_time(system: System) -> None:
    value = _input()
    ran = {_computed(system, value, model="patient") for _ in range(2)}

    assert len(ran) == 2
    assert all("cache" not in system.poll(task_id).json() for task_id in ran)


def test_a_tenant_never_gets_another_s_result(system: System) -> None:
    value = _input()
    mine, other = add_callers(system, "mine", "other")
    task_id = _computed(system, value, headers=mine)

    theirs = _computed(system, value, headers=other)

    assert theirs != task_id
    assert _is_hit(_ask(system, value, headers=mine), task_id)
    assert _is_hit(_ask(system, value, headers=other), theirs)


def test_hits_and_misses_are_counted(system: System) -> None:
    before = {result: _counted(system, result) for result in ("hit", "miss")}
    value = _input()
    _computed(system, value)
    _ask(system, value)
    _ask(system, value)

    assert {result: _counted(system, result) - before[result] for result in before} == {"hit": 2, "miss": 1}


def test_a_repeat_with_a_key_is_told_the_result_that_the_first_was_told(system: System) -> None:
    value = _input()
    task_id = _computed(system, value)
    key = {"Idempotency-Key": f"cached-{task_id}"}

    first, again = _ask(system, value, headers=key), _ask(system, value, headers=key)
    assert _is_hit(first, task_id)
    assert _is_hit(again, task_id)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"

    _computed(system, value, cache="refresh")
    assert _is_hit(_ask(system, value, headers=key), task_id)


def test_a_keyed_repeat_of_a_cached_failure_that_runs_again_is_told_how_it_stands(system: System) -> None:
    failing: dict[str, Any] = {"content": _broken(), "headers": {**CACHED, "Content-Type": "image/png"}}
    task_id = system.client.post("/predict/digits", **failing).json()["task_id"]
    assert system.ended(task_id)["status"] == "failed"
    failing["headers"]["Idempotency-Key"] = f"failed-{task_id}"
    assert _is_hit(system.client.post("/predict/digits", **failing), task_id)
    pauses.pause(system.redis, system.namespace, "digits")

    assert system.client.post(f"/result/{task_id}/retry").status_code == 202
    again = system.client.post("/predict/digits", **failing)

    assert (again.status_code, again.json()["status"], again.json()["task_id"]) == (202, "queued", task_id)
    assert again.headers["idempotent-replayed"] == "true"
    pauses.resume(system.redis, system.namespace, "digits")


# --- Asked for twice at once ---


def _twins(system: System, value: list[float]) -> list[str]:
    """Ids of jobs that wait for one and the same result; the first leads."""
    pauses.pause(system.redis, system.namespace, "tensor-demo")
    answers = [_ask(system, value, ttl_s=120) for _ in range(TWINS)]
    assert {answer.status_code for answer in answers} == {202}
    task_ids = [str(answer.json()["task_id"]) for answer in answers]
    assert len(set(task_ids)) == TWINS
    return task_ids


def _go_on(system: System, *task_ids: str) -> list[dict[str, Any]]:
    pauses.resume(system.redis, system.namespace, "tensor-demo")
    return [system.ended(task_id) for task_id in task_ids]


def test_jobs_that_ask_for_one_result_at_once_run_once_and_each_completes_as_its_own(system: System) -> None:
    value = _input()
    joined = _counted(system, "joined")
    task_ids = _twins(system, value)
    pending = [system.poll(task_id).json() for task_id in task_ids]
    leader, *followers = _go_on(system, *task_ids)

    assert [each["status"] for each in pending] == ["queued"] * TWINS
    assert leader["cache"] == {"status": "miss"}
    for task_id, before, document in zip(task_ids[1:], pending[1:], followers, strict=True):
        own = {"task_id": task_id, "queued_at": before["queued_at"], "cache": {"status": "joined"}}
        assert document == leader | own
    assert _counted(system, "joined") == joined + TWINS - 1
    assert _is_hit(_ask(system, value), task_ids[0])


def test_cancelling_one_of_them_leaves_the_others(system: System) -> None:
    task_ids = _twins(system, _input())
    gone = task_ids[2]
    assert system.client.post(f"/result/{gone}/cancel").json()["status"] == "cancelled"

    documents = _go_on(system, *task_ids)

    statuses = [document["status"] for document in documents]
    assert statuses == ["cancelled" if task_id == gone else "completed" for task_id in task_ids]


def test_cancelling_the_one_that_leads_lets_another_lead(system: System) -> None:
    task_ids = _twins(system, _input())
    assert system.client.post(f"/result/{task_ids[0]}/cancel").json()["status"] == "cancelled"

    cancelled, *documents = _go_on(system, *task_ids)

    assert cancelled["status"] == "cancelled"
    assert {document["status"] for document in documents} == {"completed"}
    assert sorted(document["cache"]["status"] for document in documents) == ["joined"] * (TWINS - 2) + ["miss"]
    assert [document["task_id"] for document in documents] == task_ids[1:]


def _broken() -> bytes:
    """A picture whose header is good and whose pixels are not, as nobody sent it before."""
    return TRUNCATED + b"%d" % next(_numbers)


def test_a_failure_that_the_input_is_to_blame_for_is_shared_and_told_again(system: System) -> None:
    picture: dict[str, Any] = {"content": _broken(), "headers": {**CACHED, "Content-Type": "image/png"}}
    pauses.pause(system.redis, system.namespace, "digits")
    task_ids = [system.client.post("/predict/digits", **picture).json()["task_id"] for _ in range(TWINS)]
    pauses.resume(system.redis, system.namespace, "digits")
    leader, *followers = (system.ended(task_id) for task_id in task_ids)

    hit = system.client.post("/predict/digits", **picture)

    assert (leader["status"], leader["error"]["code"]) == ("failed", "invalid-input")
    for task_id, document in zip(task_ids[1:], followers, strict=True):
        assert (document["task_id"], document["status"], document["error"]) == (task_id, "failed", leader["error"])
        assert document["cache"] == {"status": "joined"}
    assert _is_hit(hit, task_ids[0])
    assert hit.json()["error"] == leader["error"]
