"""The same again: equal inputs run once, a submit whose answer was lost can be repeated, tenants never share.

How often the model truly ran is counted at the worker: jobs that reached preprocess, and rows that reached the model.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.check import TOLERANCE, open_model
from benchmarks.inputs import inputs
from benchmarks.shows import drive
from benchmarks.shows.client import Answer, Client, submit
from benchmarks.shows.drive import Outcome, task_id
from benchmarks.shows.report import Report
from benchmarks.shows.stand import Stand
from benchmarks.sides import MODEL, MODEL_FILE
from jobs import apikeys

SECONDS = 0.0
"""It is counted, not timed."""
APART = False
SETTINGS: dict[str, str] = {}

SUBMITS: Final = 10_000
INPUTS: Final = 100
KEYED: Final = 1_000
SEED: Final = 6
CLIENTS: Final = 32
AT_ONCE: Final = 50
"""Keyed submits under way together."""
GONE_WITHIN_S: Final = 0.02
LEARN_S: Final = 3.0
WAYS: Final = ("closed", "reset", "closed-later", "reset-later")


def show(standing: Stand, seconds: float) -> Report:  # noqa: ARG001 - counted, not timed
    """Three counts, one after the other."""
    report = Report()
    rows = inputs(SEED, range(INPUTS))
    expected = open_model(MODEL_FILE)(rows)
    drive.run(_repeats(standing, report, rows, expected))
    drive.run(_lost_answers(standing, report, inputs(SEED + 1, range(KEYED))))
    drive.run(_tenants(standing, report, inputs(SEED + 2, range(INPUTS))))
    return report


async def _repeats(standing: Stand, report: Report, rows: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Many submits of few inputs: all at the beginning together, and later ones again."""
    order = [number % INPUTS for number in range(SUBMITS)]
    random.Random(SEED).shuffle(order)  # noqa: S311 - an order, not a secret
    runs = _Runs(standing)
    asked: list[int] = []
    requests = iter([(number, submit(MODEL, _body(rows[number]), wait_s=drive.WAIT_S)) for number in order])
    outcomes: list[Outcome] = []
    async with Client(standing.port) as client:

        async def work() -> None:
            for number, request in requests:
                asked.append(number)
                place = len(outcomes)
                outcomes.append(Outcome(0, 0, 0, 0, 0, None))
                outcomes[place] = await drive.follow(client, request, 0.0)

        await asyncio.gather(*(work() for _ in range(CLIENTS)))
    right = sum(_is_right(each, expected[number]) for number, each in zip(asked, outcomes, strict=True))
    report.exactly(f"jobs run for {SUBMITS} submits of {INPUTS} inputs", runs.jobs(), INPUTS)
    report.exactly("rows that the model saw", runs.rows(), INPUTS)
    report.exactly("right answers", right, SUBMITS)
    report.figures["repeats_statuses"] = dict(Counter(str(each.status) for each in outcomes))


async def _lost_answers(standing: Stand, report: Report, rows: NDArray[np.float32]) -> None:
    """Each submit is sent and its connection closed, in one of four ways; then it is sent again."""
    runs, records = _Runs(standing), _records(standing)
    draw = random.Random(SEED)  # noqa: S311 - when a client goes, not a secret
    requests = [
        submit(MODEL, _body(row, cache="off"), idempotency_key=f"lost-{number}") for number, row in enumerate(rows)
    ]
    room = asyncio.Semaphore(AT_ONCE)
    async with Client(standing.port) as client:

        async def one(request: bytes, way: str) -> Answer:
            async with room:
                wire = await client.connect()
                _ = wire.ask(request)
                if way.endswith("later"):
                    await asyncio.sleep(draw.random() * GONE_WITHIN_S)
                wire.close(reset=way.startswith("reset"))
                return await client.ask(request)

        answers = await asyncio.gather(*map(one, requests, itertools.cycle(WAYS)))
        again = [await client.ask(request) for request in requests]
    standing.wait_until_empty()
    report.exactly("jobs that they made", _records(standing) - records, KEYED)
    report.exactly("jobs of them that were run", runs.jobs(), KEYED)
    report.exactly("task ids that the repeats were told", len({task_id(each) for each in answers}), KEYED)
    report.exactly(
        "of these told alike the third time",
        sum(task_id(one) == task_id(other) for one, other in zip(answers, again, strict=True)),
        KEYED,
    )
    report.figures["repeats_that_found_the_first_stored"] = sum(each.is_replayed for each in answers)
    report.figures["lost_answers_statuses"] = dict(Counter(str(each.status) for each in answers))


async def _tenants(standing: Stand, report: Report, rows: NDArray[np.float32]) -> None:
    """Two tenants submit the same inputs, twice each, mixed."""
    keys = [
        apikeys.add(standing.redis, standing.namespace, name=name, tenant=name, role="user")
        for name in ("first", "second")
    ]
    await asyncio.sleep(LEARN_S)
    runs = _Runs(standing)
    async with Client(standing.port) as client:
        for _ in range(2):
            jobs = [
                drive.follow(client, submit(MODEL, _body(row), key=key, wait_s=drive.WAIT_S), 0.0, key=key)
                for row in rows
                for key in keys
            ]
            outcomes = await asyncio.gather(*jobs)
    report.exactly("jobs run for two tenants with equal inputs", runs.jobs(), 2 * INPUTS)
    report.exactly(
        "jobs of theirs that completed, the second time", sum(each.is_completed for each in outcomes), 2 * INPUTS
    )


class _Runs:
    """Counts what ran since it was made."""

    def __init__(self, standing: Stand) -> None:
        self._standing = standing
        self._jobs, self._rows = self._now()

    def jobs(self) -> float:
        """Jobs that reached preprocess."""
        return self._now()[0] - self._jobs

    def rows(self) -> float:
        """Rows that reached the model."""
        return self._now()[1] - self._rows

    def _now(self) -> tuple[float, float]:
        figures = self._standing.worker_figures()
        return figures.total("penstock_microbatch_size_sum"), figures.total("penstock_batch_rows_sum")


def _records(standing: Stand) -> int:
    return sum(1 for _ in standing.redis.scan_iter(f"{standing.namespace}:job:*", 1000))


def _body(row: NDArray[np.float32], **options: str) -> bytes:
    return msgspec.json.encode({"input": row.tolist(), **options})


def _is_right(outcome: Outcome, expected: Sequence[float] | NDArray[np.float32]) -> bool:
    if not outcome.is_completed or outcome.document is None:
        return False
    given = np.asarray(outcome.document.result.get("y", []), np.float64)
    return given.shape == np.shape(expected) and bool(np.abs(given - np.asarray(expected)).max() <= TOLERANCE)
