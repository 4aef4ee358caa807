"""What can be known at the door is refused there, as problem+json with a request id, and never enters the queue."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.end_to_end.reference import WIDTH
from tests.servers import LOOPBACK
from tests.system import System

ROW = [0.0] * WIDTH
JSON = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}
GROWTH_BYTES_MAX = 5 * 1000 * 1000
MIB = 1024 * 1024


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


NAN = b64(struct.pack("<64f", *[float("nan")] * WIDTH))
INT8 = {"shape": [64], "dtype": "int8", "data": ROW}
REFUSED = [
    ("tensor-demo", b"{", 400, "malformed", None),
    ("tensor-demo", b"\xff\xfe", 400, "malformed", None),
    ("tensor-demo", b'{"input": [NaN]}', 400, "malformed", None),
    ("no-such-model", {"input": ROW}, 404, "model-not-found", None),
    ("tensor-demo", {"input": ROW, "version": 99}, 404, "model-not-found", None),
    ("tensor-demo", {}, 422, "invalid-input", "/input"),
    ("tensor-demo", {"input": ROW[:-1]}, 422, "invalid-input", "/input"),
    ("tensor-demo", {"input": [[ROW]]}, 422, "invalid-input", "/input"),
    ("tensor-demo", {"input": [*ROW[:-1], "a"]}, 422, "invalid-input", "/input/63"),
    ("tensor-demo", {"input": [*ROW[:-1], 1e300]}, 422, "invalid-input", "/input/63"),
    ("tensor-demo", {"input": {"x": ROW, "z": ROW}}, 422, "invalid-input", "/input/z"),
    ("tensor-demo", {"input": {"x": INT8}}, 422, "invalid-input", "/input/x/dtype"),
    ("tensor-demo", {"input": {"x": {"shape": [64], "base64": NAN}}}, 422, "invalid-input", "/input/x/base64"),
    ("tensor-demo", {"input": ROW, "ttl_s": -1}, 422, "invalid-input", "/ttl_s"),
    ("tensor-demo", {"input": ROW, "ttl_s": "soon"}, 422, "invalid-input", "/ttl_s"),
    ("tensor-demo", {"input": ROW, "lane": "fast"}, 422, "invalid-input", "/lane"),
    ("tensor-demo", {"input": ROW, "colour": 1}, 422, "invalid-input", "/colour"),
    ("digits", {"input": {"base64": b64(b"hello")}}, 422, "invalid-input", "/input/base64"),
    ("digits", {"input": {"base64": "?"}}, 422, "invalid-input", "/input/base64"),
    ("digits", {"input": {"base64": b64(bomb(1, 178_000_000))}}, 422, "invalid-input", "/input/base64"),
    ("digits", {"input": {"base64": b64(bomb(65_535, 65_535))}}, 422, "invalid-input", "/input/base64"),
    ("digits", {"input": ROW}, 422, "invalid-input", "/input"),
]


def check_problem(answer: httpx.Response, status: int, code: str, pointer: str | None = None) -> None:
    """The one form of every refusal."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    said = answer.json()
    assert said["type"] == f"/problems/{code}"
    assert said["status"] == status
    assert said["title"]
    assert said["detail"]
    assert said["retryable"] is (status in {429, 503})
    assert said["request_id"] == answer.headers["x-request-id"]
    assert [each["pointer"] for each in said.get("errors", [])] == ([] if pointer is None else [pointer])


def stored(system: System) -> tuple[int, float]:
    """What a refusal must not change: the records of the store, and the jobs that were accepted."""
    return system.records(), system.figures(system.gateway).total("penstock_submitted_total")


def test_every_wrong_json_body_is_refused_with_its_pointer_and_nothing_is_stored(system: System) -> None:
    before = stored(system)
    for number, (model, body, status, code, pointer) in enumerate(REFUSED):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = JSON | {"X-Request-ID": f"door-{number}"}
        answer = system.client.post(f"/predict/{model}", content=content, headers=headers)
        try:
            check_problem(answer, status, code, pointer)
        except AssertionError as error:
            raise AssertionError(f"{model} {content[:80]!r}: {answer.text}") from error
        assert answer.headers["x-request-id"] == f"door-{number}"
    assert stored(system) == before


@pytest.mark.parametrize(
    ("model", "media_type", "body", "status"),
    [
        ("digits", "image/png", b"not an image", 422),
        ("digits", "image/png", bomb(1, 178_000_000), 422),
        ("digits", "image/png", bomb(65_535, 65_535), 422),
        ("digits", "text/plain", b"hello", 415),
        ("digits", "application/octet-stream", b"hello", 415),
        ("tensor-demo", "image/png", b"hello", 415),
        ("tensor-demo", "application/octet-stream", b"\0" * 255, 422),
        ("tensor-demo", "application/octet-stream", base64.b64decode(NAN), 422),
    ],
)
def test_every_wrong_raw_body_is_refused(
    system: System, model: str, media_type: str, body: bytes, status: int
) -> None:
    before = stored(system)
    answer = system.client.post(f"/predict/{model}", content=body, headers={"Content-Type": media_type})
    check_problem(answer, status, {415: "unsupported-media-type", 422: "invalid-input"}[status])
    assert stored(system) == before


def test_a_body_without_a_model_is_refused(system: System) -> None:
    check_problem(system.client.post("/predict", json={"input": ROW}), 422, "invalid-input", "/model")


def test_a_route_or_a_method_that_is_not_there_is_told(system: System) -> None:
    check_problem(system.client.get("/nowhere"), 404, "not-found")
    check_problem(system.client.get("/models/nothing"), 404, "model-not-found")
    for method, path, allowed in (
        ("GET", "/predict/tensor-demo", "POST"),
        ("PUT", "/predict", "POST"),
        ("DELETE", f"/result/{'0' * 56}", "GET"),
        ("POST", "/models", "GET"),
    ):
        answer = system.client.request(method, path)
        check_problem(answer, 405, "method-not-allowed")
        assert allowed in answer.headers["allow"]


def test_an_id_that_never_was_a_forged_one_and_a_foreign_one_are_all_unknown(system: System) -> None:
    task_id = system.submit()
    forged = task_id[:-1] + ("0" if task_id[-1] != "0" else "1")
    foreign = system.ids().issue(system.now_ms(), b"somebody-else")
    for unknown in ("x", "0" * 56, task_id.upper(), forged, foreign, "%00", task_id + "00"):
        check_problem(system.client.get(f"/result/{unknown}"), 404, "not-found")
    assert system.ended(task_id)["status"] == "completed"


def _post(system: System, headers: dict[str, str], body: Iterator[bytes]) -> tuple[int, dict[str, Any]]:
    """Send a request by hand, as long as the server takes it; status and JSON of the answer."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((LOOPBACK, system.port), 10) as connection:
        connection.sendall(f"POST /predict/digits HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
        try:
            for part in body:
                connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered, and hung up
        with http.client.HTTPResponse(connection) as answer:
            answer.begin()
            return answer.status, json.loads(answer.read())


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_refused_and_takes_no_memory(system: System, *, declared: bool) -> None:
    before = stored(system)
    system.client.get("/livez")
    held = system.gateway.rss_bytes()
    system.gateway.forget_peak()
    if declared:
        status, said = _post(system, PNG | {"Content-Length": str(32 * MIB)}, iter(()))
    else:
        chunks = (b"10000\r\n" + b"\0" * 65_536 + b"\r\n" for _ in range(512))
        status, said = _post(system, PNG | {"Transfer-Encoding": "chunked"}, chunks)
    assert status == 413
    assert said["type"] == "/problems/payload-too-large"
    assert said["request_id"]
    assert system.gateway.rss_bytes("VmHWM") - held < GROWTH_BYTES_MAX
    assert stored(system) == before


def test_an_input_over_the_models_own_limit_is_refused(system: System) -> None:
    rows = b"\0" * (17 * WIDTH * 4)
    answer = system.client.post(
        "/predict/tensor-demo", content=rows, headers={"Content-Type": "application/octet-stream"}
    )
    check_problem(answer, 422, "invalid-input")


def test_every_problem_type_can_be_read_where_it_points(system: System) -> None:
    problem = system.client.post("/predict/tensor-demo", content=b"{", headers=JSON).json()
    meaning = system.client.get(problem["type"])
    assert meaning.status_code == 200
    assert meaning.json()["code"] == "malformed"
    check_problem(system.client.get("/problems/nothing"), 404, "not-found")
