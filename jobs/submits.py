"""The submit command: many jobs in one round trip, and what became of each that was not simply written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from jobs.commands import Command, MicroBatch, microbatches
from jobs.records import Job, encode_head
from jobs.tenants import Tenant

Verdict = Literal["replayed", "hit", "joined", "rate", "open"]


class Note(msgspec.Struct, frozen=True):
    """What became of a job that was not simply written.

    ``replayed``: its Idempotency-Key came before, ``kept`` is what was kept then. ``hit``: job ``task_id`` has the
    answer, ``document``, for ``age_ms``. ``joined``: written, and waits for the answer to another. ``rate``,
    ``open``: refused, its tenant is over its quota; by rate for ``wait_ms``.
    """

    verdict: Verdict
    kept: bytes = b""
    task_id: str = ""
    document: bytes = b""
    age_ms: int = 0
    wait_ms: int = 0


class Left(msgspec.Struct, frozen=True):
    """What is left of a tenant's rate: jobs at once, and ms until it is whole again."""

    jobs: int
    whole_in_ms: int


class Submitted(msgspec.Struct, frozen=True):
    """The store's clock in ms; what the window had room for; notes by place; what is left of rates, by tenant."""

    now_ms: int
    publish: list[MicroBatch]
    notes: dict[int, Note]
    left: dict[str, Left]


def submit(jobs: Sequence[Job], tenants: Mapping[str, Tenant]) -> Command[Submitted]:
    """Write jobs and fill the window; tenants that are not in ``tenants`` have no quota."""
    names: list[str] = []
    places: dict[tuple[str, str, float], int] = {}
    written: list[Any] = []
    for job in jobs:
        where = (job.head.tenant, job.line, job.weight)
        place = places.get(where)
        if place is None:
            place = places[where] = len(places) + 1
            if where[0] not in names:
                names.append(where[0])
        written += _job(job, place)
    arguments: list[Any] = [len(names)]
    for name in names:
        arguments += _tenant(tenants.get(name) or Tenant(name))
    arguments.append(len(places))
    for name, line, weight in places:
        arguments += (names.index(name) + 1, line, 1 if weight == 1 else 1 / weight)
    arguments += (len(jobs), *written)

    def read(reply: list[Any]) -> Submitted:
        notes = {each[0]: _note(each[1].decode(), each[2:]) for each in reply[2]}
        left = {names[place]: Left(jobs, whole_in_ms) for place, jobs, whole_in_ms in reply[3]}
        return Submitted(reply[0], microbatches(reply[1]), notes, left)

    return Command("submit", arguments, read)


def kept(name: str) -> Command[bytes]:
    """What is kept under an Idempotency-Key, by its name in the store; empty where there is nothing."""
    return Command("kept", (name,), bytes)


def _tenant(tenant: Tenant) -> tuple[Any, ...]:
    every_ms = 1000 / tenant.rate if tenant.rate else ""
    return (tenant.name, 1 / tenant.weight, tenant.open_max or "", every_ms, tenant.burst)


def _job(job: Job, place: int) -> tuple[Any, ...]:
    head, idempotency, cache = job.head, job.idempotency, job.cache
    first = (job.task_id, place, encode_head(head), job.data, head.deadline_at_ms, head.attempts_max)
    if not (head.traceparent or idempotency or cache):
        return (*first, 0)
    kept = (idempotency.name, idempotency.kept) if idempotency else ("", "")
    terms = (cache.key, cache.fresh_ms, int(cache.refresh)) if cache else ("", "", "")
    return (*first, 1, head.traceparent, *kept, *terms)


def _note(verdict: Verdict, facts: list[Any]) -> Note:
    match verdict:
        case "replayed":
            return Note(verdict, kept=facts[0])
        case "hit":
            return Note(verdict, task_id=facts[0].decode(), document=facts[1], age_ms=facts[2])
        case "rate":
            return Note(verdict, wait_ms=facts[0])
        case _:
            return Note(verdict)
