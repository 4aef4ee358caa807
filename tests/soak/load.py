"""The load: clients that submit the mix and follow each job to its end, each answer judged as it comes.

Open loop: jobs are sent at their instants whatever becomes of the others, and latency counts from the instant at
which a job was due. Records are kept so briefly in a soak that nobody could ask for them afterwards: who follows a
job judges it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from array import array
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, Final, Self

import numpy as np
import uvloop

from tests.faults.checker import CANCEL_ENDINGS, CLOSE, Tally
from tests.faults.client import Answer, Client
from tests.faults.fault_system import TENANTS, FaultSystem
from tests.servers import LOOPBACK
from tests.soak.mix import SOAK_ENDINGS, Job, Mix

WAIT_S: Final = 10
FOLLOW_S: Final = 45.0
"""A job that has not ended so long after its submit is lost; a restart of the broker takes less."""
AGAIN_S: Final = 0.2
"""Pause after a 503."""
POLL_EVERY: Final = 5
"""One good job in so many is submitted and then polled; the others wait for the answer to their submit."""
GONE_AFTER_S: Final = 0.03
"""Clients that go do so within this time."""
OPEN_MAX: Final = 4_000
"""More jobs under way than this, and the load is not what the soak is about any more."""
CLIENTS: Final = 96
"""Of the closed loop."""


@dataclass
class SoakTally(Tally):
    """The checker's figures, and those of ways to end that only a soak has."""

    expired: int = 0
    gone: int = 0
    """Submits whose client went before the answer."""
    unsent: int = 0
    """Jobs that were not sent because too many were under way."""


@dataclass
class Ledger:
    """What the load has seen so far."""

    tally: SoakTally = field(default_factory=SoakTally)
    known: set[str] = field(default_factory=set)
    """Task ids of the jobs that a client followed."""
    due_at: array[float] = field(default_factory=lambda: array("d"))
    latency_s: array[float] = field(default_factory=lambda: array("d"))
    """Of the good jobs that completed: when they were due, and how long they took from there."""


class Load:
    """Runs in a thread of its own; what it saw is in ``ledger``."""

    def __init__(self, system: FaultSystem, mix: Mix) -> None:
        self._system, self._mix = system, mix
        self._numbers = itertools.count()
        self._draw = random.Random(3)  # noqa: S311 -- when a client goes
        self._open = 0
        self._stopped = False
        self._thread: Thread | None = None
        self.ledger = Ledger()
        self.error: BaseException | None = None

    def closed(self, seconds: float, clients: int = CLIENTS) -> float:
        """As fast as ``clients`` can, each one job at a time; jobs a second that ended."""
        before, started = self._ended, time.monotonic()
        _run(self._closed_loop(clients, started + seconds))
        return (self._ended - before) / (time.monotonic() - started)

    def start(self, rate: float) -> Self:
        """Begin to submit ``rate`` jobs a second, until `stop`."""
        self._thread = Thread(target=self._guarded, args=(rate,), name="load")
        self._thread.start()
        return self

    def stop(self) -> None:
        """Submit no more, and wait until the last job was followed to its end; raises what went wrong in the load."""
        assert self._thread is not None
        self._stopped = True
        self._thread.join()
        if self.error is not None:
            raise self.error

    @property
    def _ended(self) -> int:
        tally = self.ledger.tally
        return tally.completed + tally.failed + tally.cancelled + tally.expired

    def _guarded(self, rate: float) -> None:
        try:
            _run(self._open_loop(rate))
        except BaseException as error:  # noqa: BLE001 -- raised again by `stop`
            self.error = error

    async def _closed_loop(self, clients: int, until: float) -> None:
        async def work(client: Client) -> None:
            while time.monotonic() < until:
                await self._one(client, next(self._numbers), time.monotonic())

        async with Client(self._system.urls) as client, asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(work(client))

    async def _open_loop(self, rate: float) -> None:
        started = time.monotonic()
        async with Client(self._system.urls) as client, asyncio.TaskGroup() as group:
            for place in itertools.count():
                due = started + place / rate
                await asyncio.sleep(due - time.monotonic())
                if self._stopped:
                    break
                if self._open >= OPEN_MAX:
                    self.ledger.tally.unsent += 1
                    continue
                group.create_task(self._one(client, next(self._numbers), due))

    async def _one(self, client: Client, number: int, due: float) -> None:
        job, tenant = self._mix.job(number), TENANTS[number % len(TENANTS)]
        self._open += 1
        try:
            if job.kind == "gone":
                await self._go(job, tenant)
            else:
                await _Following(self.ledger, client, job, self._system.keys[tenant], due).run(
                    waits=job.kind != "cancel" and number % POLL_EVERY != 0
                )
        finally:
            self._open -= 1
            client.answers.clear()

    async def _go(self, job: Job, tenant: str) -> None:
        """Ask to wait for the result, and go before it is there: closed in order or reset, by turns."""
        tally = self.ledger.tally
        with suppress(OSError):
            _, writer = await asyncio.open_connection(LOOPBACK, self._system.port)
            headers = {**_headers(job, self._system.keys[tenant], waits=True), "Host": LOOPBACK}
            lines = [f"POST {job.request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
            head = "\r\n".join([*lines, f"Content-Length: {len(job.request.body)}", "", ""]).encode()
            writer.write(head + job.request.body)
            await writer.drain()
            tally.gone += 1
            await asyncio.sleep(self._draw.random() * GONE_AFTER_S)
            if self._draw.random() < 0.5:
                writer.transport.abort()
            writer.close()


class _Following:
    """One job, from its submit to its end."""

    def __init__(self, ledger: Ledger, client: Client, job: Job, key: str, due: float) -> None:
        self._ledger, self._tally = ledger, ledger.tally
        self._client, self._job, self._key, self._due = client, job, key, due
        self._cancel: Answer | None = None

    async def run(self, *, waits: bool) -> None:
        """Submit, cancel where the job is one to be cancelled, follow it to its end."""
        request = self._job.request
        headers = _headers(self._job, self._key, waits=waits)
        self._tally.submitted += 1
        answer = await self._ask("submit", "POST", request.path, headers=headers, content=request.body)
        if answer.status not in (200, 202):
            self._note_refusal(answer)
            return
        self._tally.accepted += 1
        task_id = str(answer.body["task_id"])
        self._ledger.known.add(task_id)
        if self._job.kind == "cancel":
            authorization = {"Authorization": self._key}
            path = f"/result/{task_id}/cancel"
            self._cancel = await self._ask("cancel", "POST", path, headers=authorization)
            _count(self._tally.cancels, self._cancel)
        document = answer.body if answer.status == 200 else await self._end(task_id)
        if document is not None:
            self._judge(task_id, document)

    async def _end(self, task_id: str) -> dict[str, Any] | None:
        """The terminal document; None, and blamed, where the job is lost."""
        headers = {"Authorization": self._key, "Prefer": f"wait={WAIT_S}"}
        while True:
            answer = await self._ask("poll", "GET", f"/result/{task_id}", headers=headers)
            if answer.status == 200:
                return dict(answer.body)
            is_away = answer.status in (0, 503) and answer.code != "record-missing"
            if time.monotonic() > self._due + FOLLOW_S or not (answer.status == 202 or is_away):
                self._tally.blame("lost", f"{self._job.kind} job {task_id}: {answer.status} {_state(answer)}")
                return None
            if is_away:
                await asyncio.sleep(AGAIN_S)

    def _judge(self, task_id: str, document: dict[str, Any]) -> None:
        status = str(document["status"])
        setattr(self._tally, status, getattr(self._tally, status) + 1)
        said = self._cancel.status if self._cancel is not None else 0
        if status not in CANCEL_ENDINGS.get(said, SOAK_ENDINGS[self._job.kind]):
            why = document.get("error", {}).get("code", "")
            self._tally.blame("unexpected", f"{self._job.kind} job {task_id}: {status} {why}")
        if status != "completed":
            return
        if not self._is_right(document):
            self._tally.blame("wrong", task_id)
        if self._job.kind == "good":
            self._ledger.due_at.append(self._due)
            self._ledger.latency_s.append(time.monotonic() - self._due)

    def _is_right(self, document: dict[str, Any]) -> bool:
        expected = self._job.request.expected
        got = np.asarray(document["result"].get("y", []), np.float32)
        return expected is not None and got.shape == expected.shape and bool(np.allclose(got, expected, atol=CLOSE))

    def _note_refusal(self, answer: Answer) -> None:
        if answer.is_unknown:
            self._tally.unknown += 1
            _count(self._tally.silence, answer)
        else:
            _count(self._tally.refused, answer)

    async def _ask(self, what: str, method: str, path: str, **options: Any) -> Answer:
        answer = await self._client.ask(what, method, path, **options)
        if answer.is_fault:
            self._tally.blame("faulty_answers", f"{what}: {answer.status} {answer.code}")
        return answer


def _headers(job: Job, key: str, *, waits: bool) -> dict[str, str]:
    headers = {"Authorization": key, "Content-Type": job.request.media_type, "Cache-Control": "no-store"}
    return headers | ({"Prefer": f"wait={WAIT_S}"} if waits else {})


def _state(answer: Answer) -> str:
    return str(answer.body.get("status", answer.code)) if isinstance(answer.body, dict) else answer.code


def _count(counts: dict[str, int], answer: Answer) -> None:
    word = f"{answer.status} {answer.code}".removeprefix("0 ").strip()
    counts[word] = counts.get(word, 0) + 1


def _run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)
