"""API keys: who may call, and that nobody reads another's job."""

from __future__ import annotations

import httpx

from jobs import apikeys
from tests.end_to_end.reference import WIDTH
from tests.end_to_end.test_door import check_problem
from tests.system import System
from tests.waiting import wait_until

REFRESH_S = 3.0


def _add(system: System, tenant: str) -> dict[str, str]:
    key = apikeys.add(system.redis, system.namespace, name=tenant, tenant=tenant, role="user")
    return {"Authorization": f"Bearer {key}"}


def _status(system: System, headers: dict[str, str] | None = None) -> int:
    return system.client.get("/models", headers=headers).status_code


def _submit(system: System, headers: dict[str, str] | None = None) -> httpx.Response:
    return system.client.post("/predict/tensor-demo", json={"input": [0.0] * WIDTH}, headers=headers)


def test_with_keys_only_their_holders_are_served_and_each_reads_only_his_own(system: System) -> None:
    anonymous = system.submit()
    mine, other = _add(system, "mine"), _add(system, "other")
    wait_until(lambda: _status(system) == 401, REFRESH_S, "the gateway asks for a key")
    wait_until(lambda: _status(system, other) == 200, REFRESH_S, "the gateway knows both keys")

    refused = _submit(system)
    check_problem(refused, 401, "unauthorized")
    assert refused.headers["www-authenticate"].startswith("Bearer")
    check_problem(_submit(system, {"Authorization": "Bearer psk_wrong"}), 401, "unauthorized")
    basic = mine["Authorization"].replace("Bearer", "Basic")
    check_problem(_submit(system, {"Authorization": basic}), 401, "unauthorized")

    task_id = _submit(system, mine).json()["task_id"]
    waiting = mine | {"Prefer": "wait=20"}
    assert system.client.get(f"/result/{task_id}", headers=waiting).json()["status"] == "completed"
    check_problem(system.client.get(f"/result/{task_id}", headers=other), 404, "not-found")
    check_problem(system.client.get(f"/result/{anonymous}", headers=mine), 404, "not-found")
    check_problem(system.client.get(f"/result/{task_id}"), 401, "unauthorized")
    assert system.client.get("/livez").status_code == 200


def test_a_revoked_key_is_refused_within_three_seconds(system: System) -> None:
    _add(system, "stays")
    gone = _add(system, "goes")
    wait_until(lambda: _status(system, gone) == 200 and _status(system) == 401, REFRESH_S, "the key is known")
    apikeys.revoke(system.redis, system.namespace, "goes")
    wait_until(lambda: _status(system, gone) == 401, REFRESH_S, "the revoked key is refused")
    check_problem(_submit(system, gone), 401, "unauthorized")


def test_keys_are_stored_hashed(system: System) -> None:
    key = _add(system, "hashed")["Authorization"].removeprefix("Bearer ")
    raw = system.redis.hgetall(f"{system.namespace}:api-keys")
    assert key not in str(raw)
