"""One measurement: drive a running side, count what ended inside the window, check every answer."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.check import Ended, Model, Row, judge, read_rows
from benchmarks.processes import BenchError, cpu_seconds, start
from benchmarks.sides import MODEL, Running, check_alive, get

RAMP_S = 2.0
"""Load before the window opens: caches fill, batches find their size."""
DRAIN_S = 30.0
"""How long jobs in flight at the end may take before they count as lost."""


@dataclass(frozen=True)
class Load:
    """``connections`` clients for ``seconds``, each polling again after ``poll_ms``."""

    connections: int
    seconds: float
    poll_ms: float


def compile_load(folder: Path) -> Path:
    """Build the load generator with the machine's C compiler."""
    program = folder / "load"
    source = Path(__file__).parent / "load.c"
    try:
        built = subprocess.run(["cc", "-O2", "-o", program, source], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BenchError("the load generator needs a C compiler: apt-get install gcc libc6-dev") from None
    if built.returncode:
        raise BenchError(f"load.c does not compile:\n{built.stderr}")
    return program


def load_command(program: Path, port: int, load: Load, seed: int, rows: Path) -> list[str]:
    """Command line of ``load.c``; the ramp and a little more are added to the window."""
    seconds = RAMP_S + load.seconds + 0.2
    numbers = [load.connections, seconds, round(load.poll_ms * 1000), seed]
    return [str(program), str(port), MODEL, *map(str, numbers), str(rows)]


def measure(side: Running, load: Load, seed: int, *, program: Path, folder: Path, model: Model) -> dict[str, Any]:
    """Run the load; the figures of the window, the verdict on all jobs."""
    folder.mkdir(parents=True, exist_ok=True)
    rows_path, log = folder / f"rows-{load.connections}", folder / f"load-{load.connections}.log"
    generator = start("load", load_command(program, side.port, load, seed, rows_path), folder, log, {})
    try:
        roots = side.roots | {generator.role: generator.pid}
        time.sleep(RAMP_S)
        opened_at, before = time.monotonic_ns(), cpu_seconds(roots)
        time.sleep(load.seconds)
        closed_at, after = time.monotonic_ns(), cpu_seconds(roots)
        generator.popen.wait(DRAIN_S)
    finally:
        generator.stop()
    check_alive(side.processes)
    if generator.popen.returncode:
        raise BenchError(f"load failed:\n{generator.tail()}")
    rows = read_rows(rows_path)
    drained = drain(side.port, [row.detail for row in rows if row.status == "in-flight"])
    window_s = (closed_at - opened_at) / 1e9
    return {
        "connections": load.connections,
        "poll_ms": load.poll_ms,
        "seed": seed,
        **figures(rows, opened_at, closed_at),
        **asdict(judge(rows, drained, seed, model)),
        **json.loads(log.read_text().splitlines()[-1]),
        "cores": {role: (after[role] - before[role]) / window_s for role in after},
    }


def figures(rows: Iterable[Row], opened_at: int, closed_at: int) -> dict[str, float]:
    """Throughput, latency in milliseconds and polls a job, of the jobs that completed inside the window."""
    inside = [row for row in rows if row.status == "completed" and opened_at <= row.ended_at < closed_at]
    if not inside:
        return {"jobs_s": 0.0, "p50_ms": 0.0, "p90_ms": 0.0, "p99_ms": 0.0, "polls": 0.0}
    latency = np.array([row.ended_at - row.submitted_at for row in inside]) / 1e6
    p50, p90, p99 = np.percentile(latency, (50, 90, 99))
    return {
        "jobs_s": len(inside) / ((closed_at - opened_at) / 1e9),
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "polls": float(np.mean([row.polls for row in inside])),
    }


def drain(port: int, task_ids: Sequence[str]) -> dict[str, Ended]:
    """Poll jobs until all have ended, at most ``DRAIN_S``; how each that did has ended."""
    ended: dict[str, Ended] = {}
    left = set(task_ids)
    until = time.monotonic() + DRAIN_S
    while left and time.monotonic() < until:
        for task_id in sorted(left):
            status, document = get(port, f"/result/{task_id}")
            if status == HTTPStatus.OK:
                result = document.get("result")
                values = result.get("y") if isinstance(result, dict) else None
                ended[task_id] = Ended(str(document.get("status")), json.dumps(values))
        left -= ended.keys()
        time.sleep(0.05)
    return ended
