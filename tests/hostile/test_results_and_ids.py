"""Results and ids: whatever is no id of the caller's is not found, and costs the store nothing."""

from __future__ import annotations

import secrets
from urllib.parse import unquote

import pytest

from tests.hostile.commands import Commands
from tests.hostile.rows import Ask, Row, ask, check, check_refusal
from tests.hostile.rows import rows as table
from tests.system import System

RANDOM = secrets.token_hex(28)
JUNK = {
    "a random id": RANDOM,
    "a short id": RANDOM[:55],
    "a long id": RANDOM + "00",
    "an id of 5,000 digits": "0" * 5_000,
    "an id of zeros": "0" * 56,
    "an id of the highest digits": "f" * 56,
    "an id in capitals": RANDOM.upper(),
    "an id with blanks": "%20".join([RANDOM[:2]] * 19),
    "digits of another script": "%D9%A1" * 56,
    "a NUL": "%00",
    "an id and a NUL": RANDOM[:55] + "%00",
    "a pattern of all": "*",
    "a pattern of characters": "[0-9a-f]" * 7,
    "a pattern of 56 characters": "?" * 1 + "%3F" * 55,
    "a line feed": "%0d%0aFLUSHALL%0d%0a",
    "an id and a line feed": RANDOM + "%0a",
    "a command of the store": "%2A1%0d%0a%248%0d%0aFLUSHALL%0d%0a",
    "a key of the store": "penstock:key-ring",
    "a brace for a hash tag": "%7B" + RANDOM[:54] + "%7D",
    "a path": "..%5c..%5cetc%5cpasswd",
    "invalid UTF-8": "%ff%fe" * 28,
    "an emoji": "%F0%9F%98%80" * 14,
    "a script": "%3Cscript%3Ealert(1)%3C%2Fscript%3E".replace("%2F", ""),
    "a log line": "%22%7D%0a%7B%22at%22:%22now%22",
    "nothing": "",
    "a dot": "%2e",
    "a number": "-1",
    "a UUID": "8e03978e-40d5-43e8-bc93-6894a57f9324",
}


@table(*[Row(name, Ask(f"/result/{junk}", method="GET"), 404, "not-found") for name, junk in JUNK.items()])
def test_what_is_no_id_is_not_found(system: System, row: Row) -> None:
    check(system, row)


def test_ids_that_we_never_issued_cost_the_store_no_command(system: System) -> None:
    foreign = system.ids().issue(system.now_ms(), b"somebody-else")
    known = system.submit()
    system.ended(known)
    guessed = [secrets.token_hex(28) for _ in range(200)]
    forged = known[:-1] + ("0" if known[-1] != "0" else "1")
    junk = [*guessed, forged, foreign, *(junk for name, junk in JUNK.items() if len(junk) > 8)]

    with Commands(system) as commands:
        for each in junk:
            check_refusal(ask(system, Ask(f"/result/{each}", method="GET")), 404, "not-found")
        assert ask(system, Ask(f"/result/{known}", method="GET")).status == 200

    assert commands.naming(known), "what does cost a command is heard"
    assert commands.naming(*junk, *map(unquote, junk)) == []


@pytest.mark.parametrize("prefer", ["wait=1", "wait=999999999"])
def test_nobody_waits_for_what_is_not_there(system: System, prefer: str) -> None:
    answer = ask(system, Ask(f"/result/{RANDOM}", method="GET", headers={"Prefer": prefer}))
    check_refusal(answer, 404, "not-found")
    assert system.figures(system.gateway).total("penstock_waiters") == 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD"])
def test_a_result_is_only_read(system: System, method: str) -> None:
    task_id = system.submit()
    answer = ask(system, Ask(f"/result/{task_id}", method=method))
    assert (answer.status, answer.headers["allow"]) == (405, "GET")
    assert system.ended(task_id)["status"] == "completed"


def test_a_path_behind_an_id_is_not_found(system: System) -> None:
    task_id = system.submit()
    for path in (f"/result/{task_id}/", f"/result/{task_id}/x", f"/result//{task_id}", f"/result/{task_id}%2f"):
        check_refusal(ask(system, Ask(path, method="GET")), 404, "not-found")
    assert system.ended(task_id)["status"] == "completed"
