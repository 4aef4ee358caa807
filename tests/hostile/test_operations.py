"""Operations: what is logged, counted and allowed cannot be forged or made to grow from outside."""

from __future__ import annotations

import json
import secrets
import string
from random import Random

import httpx
import pytest

from tests.hostile.rows import Ask, as_json, ask, check_refusal, check_silence, connect, read, send
from tests.system import System

PATHS = 10_000
PIPELINED = 50
FORGED = '{"at":"forged","level":"error"}'
ROW = json.dumps([0.0] * 64)
HEADS = ("", "predict/", "result/", "models/", "problems/", "metrics/", "result/x/", ".git/", "docs/", "v2/models/")


def test_10000_random_paths_make_no_new_series(system: System) -> None:
    for path, method in (
        ("/nowhere", "GET"),
        ("/predict/nothing", "POST"),
        ("/livez", "PUT"),
        ("/predict/a", "POST"),
    ):
        ask(system, Ask(path, method=method))
    before = _series(system)
    random = Random(11)  # noqa: S311 -- the same paths every time, no secret
    paths = ["/" + random.choice(HEADS) + _word(random) for _ in range(PATHS)]

    for at in range(0, PATHS, PIPELINED):
        _ask_at_once(system, paths[at : at + PIPELINED])

    assert _series(system) == before


@pytest.mark.parametrize(
    "path",
    [
        f"/result/{FORGED}%0a{FORGED}",
        f"/predict/%0a{FORGED}%0a",
        f"/models/%0d%0a{FORGED}%0d%0a",
        f"/nowhere%0a{FORGED}",
        "/result/%1b[2J%1b]0;owned%07",
        "/models/%e2%80%a8" + FORGED,
    ],
)
def test_a_log_line_cannot_be_forged_by_a_path(system: System, path: str) -> None:
    for method in ("GET", "POST"):
        answer = ask(system, Ask(path, method=method))
        assert answer.status in {404, 405}
        check_silence(answer)
    _check_lines(system)


def test_a_log_line_cannot_be_forged_by_a_header_or_a_body(system: System) -> None:
    headers = {"X-Request-Id": FORGED, "User-Agent": FORGED, "Referer": FORGED, "traceparent": FORGED}
    ask(system, as_json("/predict/tensor-demo", f'{{"input": {ROW}, "lane": "\\n{FORGED!a}"}}', **headers))
    broken = Ask("/predict/pixels", b"\x89PNG\r\n\x1a\n" + FORGED.encode(), headers=headers)
    ask(system, broken)
    with connect(system) as connection:
        send(connection, b"\n" + FORGED.encode() + b"\nGET / HTTP/1.1\r\n\r\n")
        check_refusal(read(connection), 400, "malformed")
    _check_lines(system)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "203.0.113.9"},
        {
            "X-Forwarded-For": "127.0.0.1, 203.0.113.9",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "evil.example",
        },
        {"Forwarded": "for=203.0.113.9;host=evil.example;proto=https"},
        {"X-Real-IP": "203.0.113.9", "X-Original-URL": "/metrics", "X-Rewrite-URL": "/metrics"},
        {"Host": "evil.example"},
        {"X-HTTP-Method-Override": "DELETE"},
        {"X-Forwarded-For": "x" * 10_000},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_what_a_proxy_would_say_changes_nothing(system: System, headers: dict[str, str]) -> None:
    answer = ask(system, as_json("/predict/tensor-demo", f'{{"input": {ROW}}}', **headers))
    assert answer.status == 202
    assert answer.headers["location"] == answer.json()["links"]["self"] == f"/result/{answer.json()['task_id']}"
    assert b"evil" not in answer.body
    assert system.ended(answer.json()["task_id"])["status"] == "completed"
    logs = system.gateway.errors()
    assert "203.0.113.9" not in logs
    assert "evil" not in logs


@pytest.mark.parametrize("path", ["/predict/tensor-demo", "/result/nothing", "/models", "/nowhere"])
def test_other_origins_are_given_no_leave(system: System, path: str) -> None:
    preflight = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    for method, headers in (
        ("OPTIONS", preflight),
        ("GET", {"Origin": "https://evil.example"}),
        ("GET", {"Origin": "null"}),
    ):
        answer = ask(system, Ask(path, method=method, headers=headers))
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        if method == "OPTIONS":
            check_refusal(answer, *((404, "not-found") if path == "/nowhere" else (405, "method-not-allowed")))


def test_an_answer_does_not_name_the_server_or_its_parts(system: System) -> None:
    for path in ("/livez", "/models", "/nowhere", "/result/nothing"):
        answer = ask(system, Ask(path, method="GET"))
        assert not {"server", "x-powered-by", "via"} & answer.headers.keys()
        check_silence(answer._replace(body=answer.body[:4_000]))


def test_figures_and_documents_hold_no_secret_and_no_id(system: System) -> None:
    task_id = system.submit()
    system.ended(task_id)
    for path in ("/metrics", "/openapi.json", "/readyz"):
        text = ask(system, Ask(path, method="GET")).body.decode()
        assert task_id not in text
        assert system.store.url not in text
        assert str(system.folder) not in text


def _word(random: Random) -> str:
    """A random word; no two are the same."""
    return "".join(random.choices(string.ascii_letters + string.digits + "._~-", k=12)) + secrets.token_hex(8)


def _ask_at_once(system: System, paths: list[str]) -> None:
    """Send GETs down one connection and read every answer."""
    requests = [f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths[:-1]]
    last = f"GET {paths[-1]} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with connect(system) as connection:
        send(connection, "".join([*requests, last]).encode())
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert received.count(b"HTTP/1.1 404 ") + received.count(b"HTTP/1.1 405 ") == len(paths)


def _series(system: System) -> set[str]:
    """Every series of the gateway, by name and labels."""
    lines = httpx.get(f"{system.url}/metrics").text.splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def _check_lines(system: System) -> None:
    """Every line of every log is an object of ours, and none is the forged one."""
    for role in system.roles:
        for line in role.errors().splitlines():
            assert {"at", "level", "logger", "event"} <= json.loads(line).keys(), line
