"""The writer: submits that arrived together, stored in one round trip, and their micro-batches published."""

from __future__ import annotations

import asyncio
from collections import Counter

from api.admission import Admission
from api.broker import Broker
from api.gather import GATHER_MOST, Gather
from api.metrics import Metrics
from api.tenants import Tenants
from jobs.faults import faults
from jobs.records import Job
from jobs.store import AsyncJobStore
from jobs.submits import Note, kept, submit


class Writer:
    """One gateway's."""

    def __init__(
        self, store: AsyncJobStore, broker: Broker, tenants: Tenants, admission: Admission, metrics: Metrics
    ) -> None:
        self._store = store
        self._broker = broker
        self._tenants = tenants
        self._admission = admission
        self._metrics = metrics
        self._asked: Gather[Job, Note | None] = Gather(self._write, GATHER_MOST)

    def write(self, job: Job) -> asyncio.Future[Note | None]:
        """What became of a job; None where it was simply written. StoreUnavailableError, QueueFullError."""
        return self._asked.ask(job)

    async def kept(self, name: str) -> bytes:
        """What is kept under an Idempotency-Key. StoreUnavailableError."""
        return await self._store.run(kept(name))

    async def _write(self, jobs: list[Job]) -> list[Note | None]:
        submitted = await self._store.run(submit(jobs, self._tenants.known))
        if faults:
            faults.reach("gateway.stored")
        self._broker.publish(submitted.publish)
        if faults:
            faults.reach("gateway.published")
        self._admission.learn(submitted.left)
        self._metrics.gathered.observe(len(jobs))
        if not submitted.notes:
            self._count(jobs, "miss")
            return [None] * len(jobs)
        notes = [submitted.notes.get(place) for place in range(len(jobs))]
        self._count([job for job, note in zip(jobs, notes, strict=True) if note is None], "miss")
        self._count(
            [job for job, note in zip(jobs, notes, strict=True) if note and note.verdict == "joined"], "joined"
        )
        return notes

    def _count(self, stored: list[Job], how: str) -> None:
        for job in stored:
            self._admission.let_in(job.head.tenant, job.line, waits=how == "miss")
        for version, count in Counter((job.head.model, job.head.version) for job in stored).items():
            self._metrics.submitted.labels(*version).inc(count)
        self._metrics.cache_requests.labels(how).inc(sum(job.cache is not None for job in stored))
