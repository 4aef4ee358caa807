"""Cancel, retry and dead letters, asked for what is finished, foreign, or no job at all."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest

from tests.hostile.commands import Commands
from tests.hostile.conftest import BODY_TIMEOUT_S
from tests.hostile.pictures import png
from tests.hostile.rows import Ask, Row, as_json, ask, check, check_refusal, connect, read, send
from tests.hostile.rows import rows as table
from tests.hostile.test_results_and_ids import JUNK
from tests.system import System

REPLAY = "/dead-letters/replay"
RANDOM = secrets.token_hex(28)


def _named(*task_ids: str) -> str:
    return json.dumps({"task_ids": task_ids})


def _page(name: str, query: str, pointer: str) -> Row:
    return Row(f"a page of {name}", Ask(f"/dead-letters?{query}", method="GET"), 422, "invalid-input", pointer)


def _dropped(name: str, query: str, pointer: str) -> Row:
    return Row(f"a drop of {name}", Ask(f"/dead-letters?{query}", method="DELETE"), 422, "invalid-input", pointer)


def _replay(name: str, text: str | bytes, pointer: str | None, status: int = 422, code: str = "invalid-input") -> Row:
    return Row(f"a replay of {name}", as_json(REPLAY, text), status, code, pointer)


QUERIES = [
    _page("a limit of zero", "limit=0", "/limit"),
    _page("a limit below zero", "limit=-1", "/limit"),
    _page("a limit of 10^18", f"limit={10**18}", "/limit"),
    _page("a limit of 5,000 digits", f"limit={'1' * 5_000}", "/limit"),
    _page("a limit of NaN", "limit=nan", "/limit"),
    _page("a cursor of words", "cursor=next", "/cursor"),
    _page("a cursor of digits of another script", "cursor=%D9%A1", "/cursor"),
    _page("a cursor below zero", "cursor=-1", "/cursor"),
    _page("a cursor of 30 digits", f"cursor={'9' * 30}", "/cursor"),
    _page("a cursor of 5,000 characters", f"cursor={'x' * 5_000}", "/cursor"),
    _page("a model of 5,000 characters", f"model={'x' * 5_000}", "/model"),
    _page("an instant of words", "since=yesterday", "/since"),
    _page("an instant without zone", "since=2026-11-21T05:30:00", "/since"),
    _page("an instant that is a number", "since=1e18", "/since"),
    _page("an instant with a NUL", "since=2026%00", "/since"),
    _dropped("nothing named", "", "/all"),
    _dropped("all and a filter", "all=true&model=digits", "/all"),
    _dropped("all that is no boolean", "all=perhaps", "/all"),
    _dropped("an instant of words", "since=yesterday", "/since"),
]
REPLAYS = [
    _replay("nothing", b"", None, 400, "malformed"),
    _replay("a truncated body", '{"task_ids": [', None, 400, "malformed"),
    _replay("invalid UTF-8", b'{"task_ids": ["\xff"]}', None, 400, "malformed"),
    _replay("NaN", '{"dry_run": NaN}', None, 400, "malformed"),
    _replay("a list", "[]", ""),
    _replay("neither ids nor filter", "{}", "/task_ids"),
    _replay("ids and a filter", '{"task_ids": [], "filter": {}}', "/task_ids"),
    _replay("an unknown field", '{"colour": 1}', "/colour"),
    _replay("an unknown field of a filter", '{"filter": {"tenant": "x"}}', "/filter/tenant"),
    _replay("ids that are numbers", '{"task_ids": [1]}', "/task_ids/0"),
    _replay("a string for a boolean", '{"filter": {}, "dry_run": "yes"}', "/dry_run"),
    _replay("an instant of words", '{"filter": {"since": "yesterday"}}', "/since"),
    _replay("1,001 ids", _named(*[RANDOM] * 1_001), "/task_ids"),
    _replay("lists nested 100,000 deep", "[" * 100_000, ""),
    _replay("300 kB", b" " * 300_000, None, 413, "payload-too-large"),
    Row(
        "a replay that is coded", as_json(REPLAY, "{}", **{"Content-Encoding": "gzip"}), 415, "unsupported-media-type"
    ),
]


@table(*QUERIES, *REPLAYS)
def test_a_wrong_request_of_an_operator_is_refused(system: System, row: Row) -> None:
    check(system, row)


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_what_is_no_id_is_neither_cancelled_nor_retried_and_costs_no_command(system: System, verb: str) -> None:
    foreign = system.ids().issue(system.now_ms(), b"somebody-else")
    junk = [foreign, *(secrets.token_hex(28) for _ in range(50)), *(each for each in JUNK.values() if len(each) > 8)]
    with Commands(system) as commands:
        for each in junk:
            check_refusal(ask(system, Ask(f"/result/{each}/{verb}")), 404, "not-found")
    assert commands.naming(*junk) == []


@pytest.mark.parametrize("junk", [junk for junk in JUNK.values() if junk.replace("%2e", "")], ids=ascii)
def test_what_is_no_id_is_no_dead_letter(system: System, junk: str) -> None:
    for method, path in (("GET", junk), ("DELETE", junk), ("GET", f"{junk}/input")):
        assert ask(system, Ask(f"/dead-letters/{path}", method=method)).status in {404, 405}


def test_a_job_that_has_ended_is_neither_cancelled_nor_run_again(system: System) -> None:
    task_id = system.submit()
    before = system.ended(task_id)
    check_refusal(ask(system, Ask(f"/result/{task_id}/cancel")), 409, "already-terminal")
    check_refusal(ask(system, Ask(f"/result/{task_id}/retry")), 409, "already-terminal")
    assert system.ended(task_id) == before


def test_ids_that_are_none_are_refused_by_name_and_bounded(system: System) -> None:
    names = [RANDOM, "x" * 5_000, "*", "", "\x00", "\r\nFLUSHALL\r\n"]
    said = ask(system, as_json(REPLAY, _named(*names))).json()
    assert said["replayed"] == []
    assert said["refused"] == {name[:64]: "not-found" for name in names}


@pytest.mark.parametrize("term", ["*", "%25", "[a-z]*", "d.gits", "digits%00", "%0d%0aFLUSHALL"])
def test_a_filter_is_a_word_and_no_pattern(system: System, term: str) -> None:
    _give_up(system)
    said: Any = ask(system, Ask(f"/dead-letters?model={term}", method="GET")).json()
    assert said == {"dead_letters": [], "cursor": None}
    dropped = ask(system, Ask(f"/dead-letters?model={term}", method="DELETE")).json()
    assert dropped == {"dropped": 0, "more": False}


@pytest.mark.parametrize(
    "since", ["0001-01-01T00:00:00%2B23:59", "9999-12-31T23:59:59-23:59", "1969-12-31T00:00:00Z", "2026-W47-6T00Z"]
)
def test_an_instant_at_the_end_of_time_is_an_instant(system: System, since: str) -> None:
    assert ask(system, Ask(f"/dead-letters?since={since}", method="GET")).status == 200


def test_an_order_that_does_not_arrive_is_given_up(system: System) -> None:
    with connect(system) as connection:
        send(connection, f"POST {REPLAY} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        connection.settimeout(BODY_TIMEOUT_S + 5)
        check_refusal(read(connection), 408, "request-timeout")


def test_an_order_whose_sender_goes_away_leaves_no_trace(system: System) -> None:
    for _ in range(20):
        with connect(system) as connection:
            send(connection, f"POST {REPLAY} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
    assert system.client.get("/livez").status_code == 200  # what it leaves stands in the log: the block looks there


def _give_up(system: System) -> None:
    """Make a dead letter of ``pixels``."""
    answer = ask(system, Ask("/predict/pixels", png(8, 8), headers={"Content-Type": "image/png"}))
    assert system.ended(answer.json()["task_id"])["status"] == "failed"
