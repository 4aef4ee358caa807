"""``python -m benchmarks.shows NAME``: one demonstration, its tables, and benchmarks/results/show-NAME.json."""

from __future__ import annotations

import argparse
import gc
import json
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

from benchmarks.processes import BenchError
from benchmarks.provenance import provenance
from benchmarks.shows import estimates, hits, lanes, overload, repeats, tenants
from benchmarks.shows.report import Report, render
from benchmarks.shows.stand import Stand, stand
from benchmarks.sides import ROOT


class Show(Protocol):
    """A module that shows something."""

    __doc__: str | None
    SECONDS: float
    """Length of its main load."""
    APART: bool
    """Whether the worker gets a core of its own."""
    SETTINGS: dict[str, str]

    def show(self, standing: Stand, seconds: float) -> Report:
        """Put the load on, say what was found."""


SHOWS: Final[dict[str, Show]] = {
    "overload": overload,
    "tenants": tenants,
    "lanes": lanes,
    "repeats": repeats,
    "estimates": estimates,
    "hits": hits,
}


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end with the run
    gc.disable()  # a pause of ours would look like one of the gateway's
    show = SHOWS[options.name]
    seconds = options.seconds or show.SECONDS
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-show-") as name:
            meta = provenance() | {"show": options.name, "broker": options.broker, "seconds": seconds}
            with stand(Path(name), options.broker, apart=show.APART, **show.SETTINGS) as standing:
                report = show.show(standing, seconds)
                meta |= standing.facts
    except BenchError as error:
        print(f"show: {error}", file=sys.stderr)
        return 1
    write(options.out or ROOT / "benchmarks" / "results" / f"show-{options.name}.json", meta, report)
    print(render(options.name, report))
    return 0 if report.held else 1


def parse() -> argparse.Namespace:
    told = "\n".join(f"{name:10} {(show.__doc__ or '').splitlines()[0]}" for name, show in SHOWS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shows", epilog=told, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=SHOWS)
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="length of the main load (default: the show's own)"
    )
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/show-NAME.json)")
    return parser.parse_args()


def write(file: Path, meta: dict[str, Any], report: Report) -> None:
    """Write what was found, for whoever looks closer."""
    file.parent.mkdir(parents=True, exist_ok=True)
    found = {"meta": meta, "held": report.held, "checks": [asdict(each) for each in report.checks]}
    file.write_text(json.dumps(found | {"figures": report.figures}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
