"""What the result cache saves: requests a second that it answers, beside submits that make a job, by turns.

A hit is a whole answer (200 with the result); a plain submit is only taken (202), and its job still has to be run,
which happens meanwhile, as it would.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from benchmarks.processes import BenchError
from benchmarks.shows.client import LOOPBACK
from benchmarks.shows.report import Report
from benchmarks.shows.stand import Stand
from benchmarks.sides import MODEL
from benchmarks.summary import spread

SECONDS = 5.0
APART = False
SETTINGS: dict[str, str] = {}

ROUNDS: Final = 6
CONNECTIONS: Final = 32
WARM_S: Final = 1
TIMES: Final = 1.0
"""A hit must at least not cost more than what it saves."""
INPUT: Final = [0.5] * 64
_RATE: Final = re.compile(r"^Requests/sec:\s+([\d.]+)$", re.MULTILINE)


def show(standing: Stand, seconds: float) -> Report:
    """Rounds of both, in turns, the first one changing."""
    if shutil.which("wrk") is None:
        raise BenchError("this one needs wrk: apt-get install wrk")
    hit = msgspec.json.encode({"input": INPUT})
    plain = msgspec.json.encode({"input": INPUT, "cache": "off"})
    rates: dict[str, list[float]] = {"hit": [], "plain": []}
    with tempfile.TemporaryDirectory(prefix="penstock-wrk-") as name:
        scripts = {what: _script(Path(name), what, body) for what, body in (("hit", hit), ("plain", plain))}
        for script in scripts.values():
            _wrk(standing, script, WARM_S)
            standing.wait_until_empty()
        hits_before, used = _hits(standing), standing.cpu_s()
        for turn in range(ROUNDS):
            for what in sorted(scripts, reverse=turn % 2 == 1):
                rates[what].append(_wrk(standing, scripts[what], max(1, round(seconds))))
                standing.wait_until_empty()
        hits, after = _hits(standing) - hits_before, standing.cpu_s()
    ratios = [one / other for one, other in zip(rates["hit"], rates["plain"], strict=True)]
    report = Report()
    report.at_least("requests a second, hits by plain submits", median(ratios), TIMES)
    report.at_least("hits that the gateway counted, by answers", hits / (sum(rates["hit"]) * round(seconds)), 0.98)
    report.figures = {
        "hits_s": spread(rates["hit"]),
        "plain_submits_s": spread(rates["plain"]),
        "ratio": spread(ratios),
        "rounds": ROUNDS,
        "connections": CONNECTIONS,
        "cpu_s": {role: after[role] - used[role] for role in after},
    }
    return report


def _script(folder: Path, what: str, body: bytes) -> Path:
    file = folder / f"{what}.lua"
    file.write_text(
        f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [[{body.decode()}]]\n'
    )
    return file


def _wrk(standing: Stand, script: Path, seconds: int) -> float:
    """Requests a second; BenchError where any answer was not one of success."""
    url = f"http://{LOOPBACK}:{standing.port}/predict/{MODEL}"
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _RATE.search(said)
    if found is None or "Non-2xx" in said or "Socket errors" in said:
        raise BenchError(f"wrk met errors:\n{said}")
    return float(found[1])


def _hits(standing: Stand) -> float:
    return standing.gateway_figures().total("penstock_cache_requests_total", result="hit")
