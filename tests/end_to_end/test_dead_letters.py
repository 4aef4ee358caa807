"""What was given up is kept: listed, inspected, run again under its id, dropped; by its owner and by operators."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from typing import Any

import httpx
import numpy as np

from jobs import apikeys
from tests.end_to_end.test_door import check_problem
from tests.system import ROOT, System
from tests.waiting import wait_until

PNG = (ROOT / "models" / "digits" / "samples").glob("*.png")
TRUNCATED = next(iter(sorted(PNG))).read_bytes()[:-60]
"""Its header is fine, so that the door takes it; its pixels end too early."""


def _failed(system: System) -> str:
    answer = system.client.post("/predict/digits", content=TRUNCATED, headers={"Content-Type": "image/png"})
    task_id = str(answer.json()["task_id"])
    assert system.ended(task_id)["status"] == "failed"
    return task_id


def _ids(answer: httpx.Response) -> list[str]:
    return [each["task_id"] for each in answer.json()["dead_letters"]]


def _drop_all(system: System) -> None:
    assert system.client.delete("/dead-letters", params={"all": "true"}).status_code == 200


def test_a_failed_job_is_listed_with_its_error_and_input(system: System) -> None:
    _drop_all(system)
    first, second = _failed(system), _failed(system)

    assert _ids(system.client.get("/dead-letters")) == [second, first]
    assert _ids(system.client.get("/dead-letters", params={"model": "digits", "code": "invalid-input"})) == [
        second,
        first,
    ]
    assert _ids(system.client.get("/dead-letters", params={"stage": "inference"})) == []
    one = system.client.get(f"/dead-letters/{first}").json()
    assert (one["stage"], one["code"], one["attempt"], one["media_type"]) == (
        "preprocess",
        "invalid-input",
        1,
        "image/png",
    )
    assert one["error"] == system.ended(first)["error"]
    assert system.client.get(one["links"]["input"]).content == TRUNCATED


def test_pages_follow_each_other(system: System) -> None:
    _drop_all(system)
    failed = [_failed(system) for _ in range(3)]

    page = system.client.get("/dead-letters", params={"limit": 2}).json()
    rest = system.client.get("/dead-letters", params={"limit": 2, "cursor": page["cursor"]}).json()

    assert [each["task_id"] for each in page["dead_letters"] + rest["dead_letters"]] == failed[::-1]
    assert rest["cursor"] is None


def test_an_operator_runs_dead_letters_again_after_looking(system: System) -> None:
    _drop_all(system)
    failed = [_failed(system) for _ in range(2)]

    looked = system.client.post("/dead-letters/replay", json={"filter": {"model": "digits"}, "dry_run": True}).json()
    assert looked == {"dry_run": True, "replayed": failed[::-1], "refused": {}, "more": False}
    assert [system.poll(each).status_code for each in failed] == [200, 200]

    done = system.client.post("/dead-letters/replay", json={"task_ids": [*failed, "nonsense"]}).json()
    assert (done["replayed"], done["refused"]) == (failed, {"nonsense": "not-found"})
    documents = [system.ended(each) for each in failed]
    assert [(each["status"], each["generation"], each["attempt"]) for each in documents] == [("failed", 2, 1)] * 2


def test_the_owner_runs_an_expired_job_again_and_gets_its_result(system: System) -> None:
    system.stop_workers()
    task_id = system.submit(ttl_s=0.3)
    wait_until(lambda: system.poll(task_id).json()["status"] == "expired", 5, "the job expires")
    system.start_roles()

    answer = system.client.post(f"/result/{task_id}/retry")

    assert (answer.status_code, answer.json()["task_id"], answer.json()["generation"]) == (202, task_id, 2)
    assert system.ended(task_id)["status"] in {"completed", "expired"}  # it has 0.3 s again


def test_only_what_failed_or_expired_is_run_again(system: System) -> None:
    completed = system.submit()
    system.ended(completed)
    system.stop_workers()
    waiting = system.submit()

    check_problem(system.client.post(f"/result/{completed}/retry"), 409, "already-terminal")
    check_problem(system.client.post(f"/result/{waiting}/retry"), 409, "not-ended")
    check_problem(system.client.post("/result/nonsense/retry"), 404, "not-found")


def test_a_dropped_letter_is_gone_and_its_result_stays(system: System) -> None:
    task_id = _failed(system)

    assert system.client.delete(f"/dead-letters/{task_id}").json() == {"dropped": 1, "more": False}

    check_problem(system.client.get(f"/dead-letters/{task_id}"), 404, "not-found")
    assert system.ended(task_id)["status"] == "failed"
    check_problem(system.client.post(f"/result/{task_id}/retry"), 410, "result-gone")


def test_what_an_operator_asks_wrongly_is_told(system: System) -> None:
    check_problem(system.client.get("/dead-letters", params={"limit": "many"}), 422, "invalid-input", "/limit")
    check_problem(system.client.get("/dead-letters", params={"since": "yesterday"}), 422, "invalid-input", "/since")
    check_problem(system.client.get("/dead-letters", params={"cursor": "-1"}), 422, "invalid-input", "/cursor")
    check_problem(system.client.delete("/dead-letters"), 422, "invalid-input", "/all")
    check_problem(system.client.post("/dead-letters/replay", json={}), 422, "invalid-input", "/task_ids")
    check_problem(system.client.post("/dead-letters/replay", json={"ids": []}), 422, "invalid-input", "/ids")
    check_problem(system.client.post("/dead-letters/replay", content=b"{"), 400, "malformed")


def test_only_an_admin_s_key_sees_dead_letters(system: System) -> None:
    def key(role: apikeys.Role) -> dict[str, str]:
        made = apikeys.add(system.redis, system.namespace, name=role, tenant="acme", role=role)
        return {"Authorization": f"Bearer {made}"}

    user, admin = key("user"), key("admin")
    wait_until(lambda: system.client.get("/models", headers=admin).status_code == 200, 5, "the keys are known")
    wait_until(lambda: system.client.get("/models").status_code == 401, 5, "the gateway asks for a key")

    for path in ("/dead-letters", "/dead-letters/x", "/dead-letters/x/input"):
        check_problem(system.client.get(path, headers=user), 403, "forbidden")
    check_problem(system.client.delete("/dead-letters", params={"all": "true"}, headers=user), 403, "forbidden")
    check_problem(system.client.post("/dead-letters/replay", json={}, headers=user), 403, "forbidden")
    assert system.client.get("/dead-letters", headers=admin).status_code == 200


def test_the_kept_input_of_tensors_can_be_submitted_again(system: System) -> None:
    system.stop_workers()
    task_id = system.submit("spin", [2.0**40, 0.0, 0.0, 0.0], retry={"attempts_max": 1})
    system.start_roles()
    assert system.ended(task_id, 60)["error"]["attempt"] == 1

    kept = system.client.get(f"/dead-letters/{task_id}/input").json()

    tensor = np.frombuffer(base64.b64decode(kept["input"]["x"]["base64"]), kept["input"]["x"]["dtype"])
    assert tensor.tolist() == [2.0**40, 0.0, 0.0, 0.0]
    assert system.client.post("/predict/spin", json=kept | {"ttl_s": 1}).status_code == 202


def _penstock(system: System, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **system.environment()}
    command = [sys.executable, "-m", "penstock", "dead-letters", *words]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line_does_the_same(system: System) -> None:
    _drop_all(system)
    task_id = _failed(system)

    listed = _penstock(system, "list", "--json", "--code", "invalid-input")
    shown = _penstock(system, "show", task_id)
    looked = _penstock(system, "replay", "--all", "--dry-run")
    replayed = _penstock(system, "replay", task_id)
    wait_until(lambda: system.ended(task_id).get("generation") == 2, 20, "it ran again")
    dropped = _penstock(system, "drop", "--model", "digits")

    facts: dict[str, Any] = json.loads(listed.stdout)
    assert (facts["task_id"], facts["input_bytes"]) == (task_id, len(TRUNCATED))
    assert json.loads(shown.stdout)["error"]["code"] == "invalid-input"
    assert looked.stdout == f"{task_id} would be replayed\n"
    assert replayed.stdout == f"{task_id} replayed\n"
    assert dropped.stdout == f"{task_id} dropped\n"
    assert _penstock(system, "show", task_id).returncode == 1
    refused = _penstock(system, "drop")
    assert (refused.returncode, refused.stderr.count("\n")) == (78, 1)
