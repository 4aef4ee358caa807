"""What the demonstrations are judged by, on made-up outcomes."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from benchmarks.shows import drive, estimates, overload, tenants
from benchmarks.shows.client import Answer, get, submit
from benchmarks.shows.drive import Document, Outcome, Stage
from benchmarks.shows.estimates import Told
from benchmarks.shows.report import Report, latencies_ms, percentile, recovered_after, render, share

START = datetime(2026, 11, 21, tzinfo=UTC)


def _document(took_s: float, status: str = "completed") -> Document:
    return Document("id", status, START, START + timedelta(seconds=took_s))


def _completed(due_at: float, took_s: float) -> Outcome:
    return Outcome(due_at, due_at, due_at + took_s, due_at + took_s, 200, _document(took_s))


def _refused(due_at: float, took_s: float, status: int = 503) -> Outcome:
    return Outcome(due_at, due_at, due_at + took_s, due_at + took_s, status, None)


def _held(report: Report) -> dict[str, bool]:
    return {check.what: check.held for check in report.checks}


def test_a_percentile_of_nothing_is_not_a_number_and_holds_no_bound() -> None:
    report = Report()
    report.below("below", percentile([], 99), 1.0)
    report.at_least("at least", share(0, 0), 0.0)
    report.between("between", percentile([], 50), 0.0, 1.0)
    assert not any(_held(report).values())


def test_percentiles_are_shown_in_milliseconds() -> None:
    assert latencies_ms([0.001, 0.002, 0.003]) == {
        "p50_ms": 2.0,
        "p95_ms": 2.9,
        "p99_ms": 2.98,
        "p100_ms": 3.0,
        "count": 3,
    }


def test_a_report_holds_only_if_every_bound_does() -> None:
    report = Report()
    report.at_least("enough", 0.9, 0.9)
    report.below("short", 0.1, 0.2)
    report.exactly("all", 10, 10)
    assert report.held
    report.below("not below", 0.2, 0.2)
    assert not report.held
    assert "A BOUND DID NOT HOLD" in render("name", report)


def test_recovery_begins_with_the_first_probe_of_five_fast_ones() -> None:
    slow, fast = 1.0, 0.03
    probes = [(10.0 + 0.2 * place, took) for place, took in enumerate([slow, fast, slow, *[fast] * 5])]
    assert recovered_after(probes, 0.05, ended_at=10.0) == pytest.approx(0.6)


def test_recovery_that_never_came_is_infinite() -> None:
    probes = [(float(place), math.inf if place % 4 == 3 else 0.01) for place in range(20)]
    assert recovered_after(probes, 0.05, ended_at=0.0) == math.inf


def test_goodput_counts_what_ended_in_time_and_while_the_load_lasted() -> None:
    in_time = [_completed(100 + place / 10, 0.5) for place in range(90)]
    late = [_completed(105, overload.TTL_S + 0.01)]
    after = [_completed(109.9, 1.0)]
    expired = [Outcome(100, 100, 105, 105, 200, _document(5.0, "expired"))]
    refused = [_refused(100, 0.01)] * 1000
    report = Report()
    overload.judge(report, [*in_time, *late, *after, *expired, *refused], capacity=10.0, seconds=10.0)
    found = {check.what: check.measured for check in report.checks}
    assert found["goodput by capacity"] == pytest.approx(0.9)
    assert found["accepted jobs completed in time"] == pytest.approx(91 / 93)
    assert found["refusals' p99 latency"] == pytest.approx(10)
    assert found["submits answered otherwise than by 200, 202, 503"] == 0


def test_an_answer_that_is_no_refusal_of_ours_is_seen() -> None:
    report = Report()
    overload.judge(report, [_completed(0, 0.1), _refused(0, 0.1, 0), _refused(0, 0.1, 500)], 1.0, 1.0)
    assert not _held(report)["submits answered otherwise than by 200, 202, 503"]


def test_where_a_jobs_time_went_adds_up_to_what_its_client_waited() -> None:
    stages = tuple(Stage(name, queued_s, 0.02) for name, queued_s in (("a", 0.032), ("b", 0.005), ("c", 0.003)))
    document = Document(
        "id", "completed", START, START + timedelta(seconds=0.1), START + timedelta(seconds=0.032), stages
    )
    outcome = Outcome(50.0, 50.0, 50.11, 50.11, 202, document)
    made = {"id": int((START + timedelta(seconds=0.02)).timestamp() * 1000)}
    places = tenants.where(outcome, made)
    assert places is not None
    assert places["line"] == pytest.approx(20)
    assert places["window"] == pytest.approx(12)
    assert sum(places.values()) == pytest.approx(110)


def test_a_job_that_was_not_seen_in_the_window_is_left_out() -> None:
    assert tenants.where(_completed(0, 0.1), {}) is None


def test_arrivals_are_in_order_and_the_same_each_time() -> None:
    jobs = list(estimates.arrivals(80.0, 30.0))
    assert jobs == list(estimates.arrivals(80.0, 30.0))
    assert all(one.at_s <= other.at_s for one, other in pairwise(jobs))
    assert {(job.model, job.lane) for job in jobs} >= {("heavy", "interactive"), ("heavy", "bulk")}
    assert 0.5 < len(jobs) / (80 * 30) < 1.2


def test_coverage_and_errors_of_what_was_told() -> None:
    told = [Told("line", 1.0, 2.0, took_s) for took_s in (0.5, 1.0, 2.0, 4.0)]
    assert estimates.covered(told) == 0.75
    assert estimates.errors(told) == {"median_error_s": 0.75, "median_relative_error": 0.625}


def test_no_two_bodies_are_alike() -> None:
    made = [body for body, _ in zip(drive.bodies(ttl_s=5.0), range(30_000), strict=False)]
    assert len(set(made)) == 30_000
    assert made[0].endswith(b',"ttl_s":5.0}')


def test_requests_say_what_they_should() -> None:
    sent = submit("m", b"{}", key="psk", wait_s=5, idempotency_key="k")
    assert sent.startswith(b"POST /predict/m HTTP/1.1\r\n")
    assert sent.endswith(b"Content-Length: 2\r\n\r\n{}")
    for field in (b"Authorization: Bearer psk", b"Prefer: wait=5", b'Idempotency-Key: "k"'):
        assert field + b"\r\n" in sent
    assert b"Prefer" not in get("/result/x")


def test_a_replay_is_known_by_its_field() -> None:
    assert Answer(202, 0.0, b"HTTP/1.1 202\r\nIdempotent-Replayed: true").is_replayed
    assert not Answer(202, 0.0, b"HTTP/1.1 202").is_replayed
