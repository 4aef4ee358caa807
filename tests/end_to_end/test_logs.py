"""Logs are JSON lines that name task and request and hold no payload; the trace context travels in the message."""

from __future__ import annotations

import json

from tests.end_to_end.reference import WIDTH
from tests.end_to_end.test_images import noise_png
from tests.system import END_S, System
from tests.waiting import wait_until

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SECRET = 0.123456


def test_every_line_on_standard_error_is_a_json_object(system: System) -> None:
    system.ended(system.submit())
    for role in system.roles:
        lines = role.errors().splitlines()
        assert lines
        for line in lines:
            said = json.loads(line)
            assert {"at", "level", "logger", "event"} <= said.keys(), line


def test_a_failure_is_logged_with_its_task_and_request_and_without_its_payload(system: System) -> None:
    broken = noise_png(64)[:-2_000]  # its header is fine, so the door lets it in
    headers = {"Content-Type": "image/png", "X-Request-ID": "broken-1", "Prefer": "wait=20"}
    document = system.client.post("/predict/digits", content=broken, headers=headers).json()
    assert document["status"] == "failed"
    assert document["error"]["code"] == "invalid-input"
    assert document["error"]["stage"] == "preprocess"
    assert document["error"]["retryable"] is False
    assert document["attempt"] == 1

    def logged() -> list[dict[str, object]]:
        lines = [line for worker in system.workers for line in worker.lines()]
        return [line for line in lines if line.get("task_id") == document["task_id"]]

    wait_until(logged, END_S, "the failure is logged")
    assert [(line["request_id"], line["code"], line["stage"]) for line in logged()] == [
        ("broken-1", "invalid-input", "preprocess")
    ]


def test_no_payload_is_logged(system: System) -> None:
    system.ended(system.submit(value=[SECRET] * WIDTH))
    system.client.post("/predict/tensor-demo", json={"input": [SECRET] * 3})
    for role in system.roles:
        assert str(SECRET) not in role.errors()


def test_the_trace_context_of_a_request_travels_in_the_message(system: System) -> None:
    system.stop_workers()
    answer = system.client.post("/predict/tensor-demo", json={"input": [0.0] * WIDTH}, headers={"traceparent": TRACE})
    wait_until(lambda: system.waiting_messages() >= 1, END_S, "the message is published")
    headers = [message.headers for message in system.take_messages()]
    assert TRACE in [each.get("traceparent") for each in headers]
    system.start_roles()
    assert system.ended(answer.json()["task_id"])["status"] == "completed"


def test_a_malformed_trace_context_is_dropped(system: System) -> None:
    system.stop_workers()
    system.client.post("/predict/tensor-demo", json={"input": [0.0] * WIDTH}, headers={"traceparent": "evil\tthing"})
    wait_until(lambda: system.waiting_messages() >= 1, END_S, "the message is published")
    assert [message.headers.get("traceparent") for message in system.take_messages()] == [None]
