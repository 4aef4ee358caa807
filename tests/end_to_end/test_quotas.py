"""Quotas: a tenant over its rate, or with too many open jobs, is told so at once and told when to come back."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from jobs import pauses, tenants
from jobs.tenants import Tenant
from tests.end_to_end.callers import add_callers
from tests.end_to_end.reference import WIDTH
from tests.end_to_end.test_door import check_problem, stored
from tests.system import CACHED, END_S, System
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize("shared_system", ["redis", "rabbitmq"], indirect=True)
"""What the embedded store does here differs in nothing from Redis's own."""

REFRESH_S = 5.0
BURST = 3
SLOW = 0.01
"""Jobs a second: none comes back within a test."""
FAST = {"rate": 1_000.0, "burst": 1_000}
"""No quota in practice, but it is counted: so the test sees that the gateway knows the tenant."""

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def forget_quotas(system: System) -> Iterator[None]:
    """Leave a gateway behind that knows of no quota."""
    yield
    system.redis.delete(*(f"{system.namespace}:{name}" for name in ("tenants", "paused", "api-keys")))

    def forgotten() -> bool:
        answer = _submit(system)
        return answer.status_code == 202 and "ratelimit" not in answer.headers

    wait_until(forgotten, REFRESH_S, "the gateway knows of no quota")
    system.redis.delete(f"{system.namespace}:rates")  # what was spent of one rate is owed at the next one too


def _submit(system: System, headers: dict[str, str] | None = None, value: float = 0.0) -> httpx.Response:
    return system.client.post("/predict/tensor-demo", json={"input": [value] * WIDTH}, headers=headers)


def _set(system: System, name: str = "default", caller: dict[str, str] | None = None, **quota: Any) -> httpx.Response:
    """Set a tenant; the answer to its first job that was counted."""
    tenants.put(system.redis, system.namespace, Tenant(name, **{**FAST, **quota}))
    answers: list[httpx.Response] = []

    def known() -> bool:
        answers.append(_submit(system, caller))
        counted = system.redis.hexists(f"{system.namespace}:rates", name)
        return bool(answers[-1].status_code == 202 and counted)

    wait_until(known, REFRESH_S, "the gateway knows the quota")
    return answers[-1]


def _left(answer: httpx.Response) -> int:
    found = re.fullmatch(r'"jobs";r=(\d+);t=\d+', answer.headers["ratelimit"])
    assert found, answer.headers["ratelimit"]
    return int(found[1])


def test_a_tenant_may_send_its_burst_and_is_then_told_when_to_come_back(system: System) -> None:
    accepted = [_set(system, rate=SLOW, burst=BURST)]
    accepted += [_submit(system) for _ in range(BURST - 1)]
    before = stored(system)

    refused = _submit(system)

    assert [answer.status_code for answer in accepted] == [202] * BURST
    assert [_left(answer) for answer in accepted] == [2, 1, 0]
    check_problem(refused, 429, "quota-exceeded")
    assert 75 <= int(refused.headers["retry-after"]) <= 125
    assert _left(refused) == 0
    assert {answer.headers["ratelimit-policy"] for answer in (*accepted, refused)} == {f'"jobs";q={BURST};w=300'}
    assert stored(system) == before


def test_a_quota_is_one_tenant_s_own(system: System) -> None:
    slow, other = add_callers(system, "slow", "other")
    _set(system, "slow", slow, rate=SLOW, burst=1)

    check_problem(_submit(system, slow), 429, "quota-exceeded")
    answer = _submit(system, other)
    assert answer.status_code == 202
    assert "ratelimit" not in answer.headers


def test_a_known_result_costs_nothing_of_a_quota(system: System) -> None:
    value = -next(_numbers) / 512
    known = _submit(system, CACHED | {"Prefer": "wait=25"}, value)
    assert known.json()["status"] == "completed"
    _set(system, rate=SLOW, burst=1)
    check_problem(_submit(system, value=value), 429, "quota-exceeded")

    for _ in range(3):
        hit = _submit(system, CACHED, value)
        if hit.status_code == 429:  # the store was not asked: it had refused this tenant a moment before
            wait_until(lambda: _submit(system, CACHED, value).status_code == 200, REFRESH_S, "the store is asked")
        else:
            assert hit.json()["cache"]["status"] == "hit"


def test_a_repeat_with_its_key_is_answered_over_the_quota_too_and_a_refused_one_stores_no_key(system: System) -> None:
    first = _submit(system, {"Idempotency-Key": "quota-1"})
    _set(system, rate=SLOW, burst=1)

    def again() -> httpx.Response:
        return _submit(system, {"Idempotency-Key": "quota-1"})

    check_problem(_submit(system, {"Idempotency-Key": "quota-2"}), 429, "quota-exceeded")
    wait_until(lambda: again().status_code == 202, REFRESH_S, "the store is asked")
    assert again().content == first.content
    tenants.remove(system.redis, system.namespace, "default")
    wait_until(lambda: _submit(system).status_code == 202, REFRESH_S, "the gateway knows of no quota")
    fresh = _submit(system, {"Idempotency-Key": "quota-2"})
    assert fresh.status_code == 202
    assert "idempotent-replayed" not in fresh.headers


@pytest.mark.parametrize("how", ["end", "are cancelled"])
def test_open_jobs_are_bounded_and_those_that_end_or_are_cancelled_make_room(system: System, how: str) -> None:
    _set(system, open_max=2)
    wait_until(lambda: system.redis.zcard(f"{system.namespace}:deadlines") == 0, END_S, "nothing is open")
    pauses.pause(system.redis, system.namespace, "tensor-demo")
    task_ids: list[str] = []

    def full() -> bool:
        answer = _submit(system)
        task_ids.extend([answer.json()["task_id"]] if answer.status_code == 202 else [])
        return len(task_ids) == 2

    wait_until(full, REFRESH_S, "two are open")

    refused = _submit(system)

    check_problem(refused, 429, "quota-exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    if how == "end":
        pauses.resume(system.redis, system.namespace, "tensor-demo")
        assert [system.ended(task_id)["status"] for task_id in task_ids] == ["completed"] * 2
    else:
        assert system.client.post(f"/result/{task_ids[0]}/cancel").status_code == 200
    wait_until(lambda: _submit(system).status_code == 202, REFRESH_S, "there is room again")
    pauses.resume(system.redis, system.namespace, "tensor-demo")
