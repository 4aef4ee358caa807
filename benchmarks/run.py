"""``make bench``: measure the sides of a comparison in one run, alternating, and write what was found.

python benchmarks/run.py                                  ours against the plain chain, Redis and RabbitMQ
python benchmarks/run.py --against HEAD~1 --pairs 7       two commits of ours
python benchmarks/run.py --table benchmarks/results/main.json
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: only this folder would be on the path

from benchmarks.check import Model, open_model
from benchmarks.measure import Load, compile_load, measure
from benchmarks.processes import BenchError
from benchmarks.provenance import git, provenance, worktree
from benchmarks.servers import rabbit_server
from benchmarks.sides import MODEL_FILE, ROOT, Side
from benchmarks.summary import ONE, summarise
from benchmarks.table import render
from tests.servers import RabbitServer

PAIRS = 3
PAIRS_AGAINST = 7
"""Two commits differ by little: more repetitions."""


@dataclass(frozen=True)
class Tools:
    """What every measurement needs: the load generator, the model called directly, the loads."""

    program: Path
    model: Model
    loads: list[Load]


def main() -> int:
    options = parse()
    if options.table:
        print(render(json.loads(options.table.read_text())))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers and worktree end with the run
    try:
        result = bench(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{render(result)}\n\nwritten to {options.out}")
    return 0 if all(run["lost"] + run["wrong"] == 0 for run in result["runs"]) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Submit-and-poll, closed loop: ours against another side.")
    parser.add_argument("--brokers", default="redis,rabbitmq")
    parser.add_argument("--connections", default="1,32,128", help="clients of each load; 1 is the client alone")
    parser.add_argument("--sides", default="", help="of ours, plain, before (default: ours,plain)")
    parser.add_argument("--against", default="", metavar="REV", help="compare with this commit of ours")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measured window")
    parser.add_argument("--pairs", type=int, default=0, help="repetitions, sides alternating")
    parser.add_argument("--poll-ms", type=float, default=50.0, help="wait before a poll (our retry_after_s)")
    parser.add_argument("--poll-alone-ms", type=float, default=1.0, help="the same for the client alone")
    parser.add_argument("--out", type=Path, help="result file (default: results/main.json or results/against.json)")
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="print the tables of a result file, measure nothing"
    )
    options = parser.parse_args()
    options.brokers = options.brokers.split(",")
    options.sides = (options.sides or ("ours,before" if options.against else "ours,plain")).split(",")
    options.pairs = options.pairs or (PAIRS_AGAINST if options.against else PAIRS)
    options.loads = [
        Load(count, options.seconds, options.poll_alone_ms if count == ONE else options.poll_ms)
        for count in map(int, options.connections.split(","))
    ]
    name = "against.json" if options.against else "main.json"
    options.out = options.out or ROOT / "benchmarks" / "results" / name
    if "before" in options.sides and not options.against:
        parser.error("the side 'before' needs --against REV")
    return options


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements of a run, with their summary."""
    meta = provenance() | {"pairs": options.pairs, "seconds": options.seconds}
    if options.against:
        meta["against"] = git("rev-parse", options.against)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        tools = Tools(compile_load(folder), open_model(MODEL_FILE), options.loads)
        sides = {"ours": Side("ours", ROOT), "plain": Side("plain", None)}
        if options.against:
            sides["before"] = Side("before", stack.enter_context(worktree(options.against, folder / "before")))
        runs = list(measure_all(options, [sides[side] for side in options.sides], folder, tools))
    return {"meta": meta, "runs": runs, "summary": summarise(runs)}


def measure_all(
    options: argparse.Namespace, sides: list[Side], folder: Path, tools: Tools
) -> Iterator[dict[str, Any]]:
    """Broker by broker within a repetition; the order of the sides turns round from one to the next."""
    for pair in range(options.pairs):
        for broker in options.brokers:
            place = folder / f"{pair}-{broker}"
            with broker_of(broker, place) as rabbit:
                for side in sides if pair % 2 == 0 else reversed(sides):
                    for run in measure_side(side, rabbit, place / side.name, pair, tools):
                        yield report({"pair": pair, "broker": broker, "side": side.name} | run)


@contextmanager
def broker_of(name: str, folder: Path) -> Iterator[RabbitServer | None]:
    """Run a RabbitMQ for one repetition; None where Redis, of which each side has its own, is the broker."""
    if name == "redis":
        yield None
        return
    with rabbit_server(folder / "rabbitmq") as rabbit:
        yield rabbit


def measure_side(
    side: Side, rabbit: RabbitServer | None, folder: Path, pair: int, tools: Tools
) -> Iterator[dict[str, Any]]:
    """Start a side once, put every load on it. Both sides of a repetition get the same inputs."""
    with side.run(folder, rabbit) as running:
        for load in tools.loads:
            seed = 1 + 1000 * pair + load.connections
            yield measure(running, load, seed, program=tools.program, folder=folder, model=tools.model)


def report(run: dict[str, Any]) -> dict[str, Any]:
    """One line on the terminal as it happens."""
    print(
        f"{run['pair'] + 1}. {run['broker']:8} {run['connections']:4} clients  {run['side']:6} "
        f"{run['jobs_s']:8.1f} jobs/s  p50 {run['p50_ms']:7.1f} ms  p99 {run['p99_ms']:7.1f} ms  "
        f"{run['polls']:5.1f} polls a job  lost {run['lost']}  wrong {run['wrong']}",
        flush=True,
    )
    return run


if __name__ == "__main__":
    sys.exit(main())
