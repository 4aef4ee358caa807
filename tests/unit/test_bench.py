"""The benchmark's load generator and its checker: what they send, what they wait for, what they flag."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is no installed package

from benchmarks.check import Ended, Row, count_wrong, is_right, judge, read_rows
from benchmarks.inputs import STEPS, VALUES, inputs
from benchmarks.measure import compile_load, figures
from benchmarks.summary import summarise

SEED = 7
POLL_MS = 20
POLLS = 2
"""How often the fake gateway answers 202 to a poll before the job is completed."""
WEIGHTS = np.random.default_rng(SEED).normal(size=(VALUES, 10)).astype(np.float32)


def model(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows @ WEIGHTS


class Gateway(BaseHTTPRequestHandler):
    """Just enough of submit and poll; what was asked is kept on the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Fake

    def do_POST(self) -> None:
        values = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        task_id = f"job-{counter_of(values)}"
        self.server.inputs[task_id] = values
        self.asked(task_id)
        self.answer(202, {"task_id": task_id, "status": "queued"})

    def do_GET(self) -> None:
        task_id = self.path.rpartition("/")[2]
        self.asked(task_id)
        if len(self.server.asked_at[task_id]) < POLLS + 2:
            self.answer(202, {"task_id": task_id, "status": "queued"})
            return
        (outputs,) = model(np.array([self.server.inputs[task_id]], np.float32)).tolist()
        self.answer(200, {"task_id": task_id, "status": "completed", "result": {"y": outputs}})

    def asked(self, task_id: str) -> None:
        self.server.asked_at[task_id].append(time.monotonic())

    def answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        """Say nothing."""


class Fake(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Gateway)
        self.inputs: dict[str, list[float]] = {}
        self.asked_at: defaultdict[str, list[float]] = defaultdict(list)


def counter_of(values: list[float]) -> int:
    """Read the counter that the first two numbers spell."""
    low, high = (round(value * 10_000) + STEPS // 2 for value in values[:2])
    return low + STEPS * high


@pytest.fixture
def gateway() -> Iterator[Fake]:
    with Fake() as fake:
        thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        fake.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("cc"):
        pytest.skip("the load generator needs a C compiler")
    return compile_load(tmp_path_factory.mktemp("load"))


def drive(program: Path, port: int, rows: Path, connections: int = 4) -> tuple[list[Row], dict[str, Any]]:
    arguments = [port, "tensor-demo", connections, 0.8, POLL_MS * 1000, SEED, rows]
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, check=True, timeout=30)
    return read_rows(rows), json.loads(done.stdout)


def test_the_load_generator_sends_the_inputs_that_the_checker_makes_again(
    program: Path, gateway: Fake, tmp_path: Path
) -> None:
    rows, _ = drive(program, gateway.server_port, tmp_path / "rows")
    counters = [row.counter for row in rows]
    sent = np.array([gateway.inputs[f"job-{counter}"] for counter in counters], np.float32)
    assert len(set(counters)) == len(counters) > 0
    np.testing.assert_array_equal(inputs(SEED, counters), sent)


def test_right_answers_are_found_right_and_every_job_is_accounted_for(
    program: Path, gateway: Fake, tmp_path: Path
) -> None:
    rows, counts = drive(program, gateway.server_port, tmp_path / "rows")
    verdict = judge(rows, {}, SEED, model)
    in_flight = sum(row.status == "in-flight" for row in rows)
    assert (verdict.wrong, counts["broken"]) == (0, 0)
    assert verdict.accepted == verdict.completed + in_flight
    assert {f"job-{row.counter}" for row in rows if row.accepted} <= gateway.inputs.keys()
    assert verdict.lost == in_flight <= 4
    assert counts["statuses"]["200"] == verdict.completed > 0


def test_a_client_polls_no_sooner_than_its_interval_and_counts_its_polls(
    program: Path, gateway: Fake, tmp_path: Path
) -> None:
    rows, _ = drive(program, gateway.server_port, tmp_path / "rows")
    pauses = np.concatenate([np.diff(asked) for asked in list(gateway.asked_at.values())])
    assert min(pauses) >= POLL_MS / 1000
    assert {POLLS + 1} == {row.polls for row in rows if row.status == "completed"}


def test_a_lost_a_refused_a_failed_and_a_late_job_are_told_apart() -> None:
    late = model(inputs(SEED, [2]))[0].tolist()
    rows = [
        Row(0, 1, 0, 1, "in-flight", "never-ends"),
        Row(1, 1, 2, 0, "refused", ""),
        Row(2, 1, 0, 1, "in-flight", "ends-late"),
        Row(3, 1, 2, 1, "failed", ""),
        Row(4, 1, 2, 1, "gone", ""),
        Row(5, 1, 0, 1, "in-flight", "fails-late"),
    ]
    drained = {"ends-late": Ended("completed", json.dumps(late)), "fails-late": Ended("failed", "null")}
    verdict = judge(rows, drained, SEED, model)
    assert (verdict.accepted, verdict.completed, verdict.late) == (5, 1, 1)
    assert (verdict.lost, verdict.failed, verdict.wrong) == (2, 2, 0)


def test_answers_swapped_between_two_jobs_are_wrong() -> None:
    first, second = (json.dumps(outputs) for outputs in model(inputs(SEED, [0, 1])).tolist())
    assert count_wrong({0: first, 1: second}, SEED, model) == 0
    assert count_wrong({0: second, 1: first}, SEED, model) == 2


@pytest.mark.parametrize(
    "answer", ["", "null", "[]", "[0.1, 0.9]", "[0.3, 0.2, 0.1]", "[NaN, 0.2, 0.3]", "[[0.1, 0.2, 0.3]]"]
)
def test_an_answer_of_another_form_or_argmax_is_wrong(answer: str) -> None:
    assert not is_right(answer, [0.1, 0.2, 0.3])


def test_rounding_of_another_batch_size_is_right() -> None:
    assert is_right("[0.10001, 0.2, 0.29999]", [0.1, 0.2, 0.3])


def test_figures_count_only_what_completed_inside_the_window() -> None:
    ms = 1_000_000
    rows = [Row(n, ended - 10 * ms, ended, 2, "completed", "") for n, ended in enumerate((999, 1000 * ms, 1500 * ms))]
    rows += [Row(3, 0, 1600 * ms, 9, "failed", ""), Row(4, 0, 2000 * ms, 9, "completed", "")]
    found = figures(rows, 1000 * ms, 2000 * ms)
    assert found == {"jobs_s": 2.0, "p50_ms": 10.0, "p90_ms": 10.0, "p99_ms": 10.0, "polls": 2.0}


def test_ratios_are_taken_within_a_repetition() -> None:
    runs = [
        measured(pair, broker, side, jobs_s)
        for pair, broker, side, jobs_s in (
            (0, "redis", "ours", 300.0),
            (0, "redis", "plain", 10.0),
            (0, "rabbitmq", "ours", 240.0),
            (1, "redis", "ours", 100.0),
            (1, "redis", "plain", 2.0),
        )
    ]
    found = {ratio["what"]: (ratio["median"], ratio["repetitions"]) for ratio in summarise(runs)["ratios"]}
    assert found == {"ours / plain": (40.0, 2), "rabbitmq / redis": (0.8, 1)}


def measured(pair: int, broker: str, side: str, jobs_s: float) -> dict[str, Any]:
    counts = dict.fromkeys(("accepted", "completed", "late", "lost", "failed", "wrong", "broken"), 0)
    latency = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "polls"), 1.0)
    place = {"pair": pair, "broker": broker, "side": side, "connections": 128, "poll_ms": 10.0}
    return {**place, "jobs_s": jobs_s, **latency, **counts, "statuses": {"200": 1}, "cores": {"load": 0.1}}
