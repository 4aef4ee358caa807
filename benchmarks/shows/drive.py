"""Loads: open loop (jobs are sent at their instants, whatever becomes of the others) and closed loop."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import uvloop

from benchmarks.inputs import VALUES
from benchmarks.shows.client import Answer, Client, get, submit

WAIT_S: Final = 30
CLIENTS: Final = 64
"""Of a closed loop that saturates."""
RAMP_S: Final = 3.0
FINE: Final = 10_000

T = TypeVar("T")


class Stage(msgspec.Struct, frozen=True):
    """A stage of a job's journey."""

    name: str
    queued_s: float
    run_s: float


class Document(msgspec.Struct, frozen=True):
    """What a demonstration reads of a terminal document."""

    task_id: str
    status: str
    queued_at: datetime
    ended_at: datetime
    started_at: datetime | None = None
    stages: tuple[Stage, ...] = ()
    result: dict[str, Any] = {}

    @property
    def took_s(self) -> float:
        """From submit to end, by the store's clock."""
        return (self.ended_at - self.queued_at).total_seconds()


class _Named(msgspec.Struct, frozen=True):
    task_id: str


class Outcome(NamedTuple):
    """One submit: when it was due and sent, when its first and its last answer were there (monotonic)."""

    due_at: float
    sent_at: float
    answered_at: float
    ended_at: float
    status: int
    """Of the submit's own answer."""
    document: Document | None

    @property
    def is_accepted(self) -> bool:
        """Whether the job was taken."""
        return self.status in {HTTPStatus.OK, HTTPStatus.ACCEPTED}

    @property
    def is_completed(self) -> bool:
        """Whether it ended with a result."""
        return self.document is not None and self.document.status == "completed"

    @property
    def took_s(self) -> float:
        """From the instant it was due to its end, as its client sees it."""
        return self.ended_at - self.due_at


One = Callable[[bytes, float], Coroutine[Any, Any, Outcome]]
"""What is done with a request and the instant at which it was due."""

read_document = msgspec.json.Decoder(Document).decode
_read_named = msgspec.json.Decoder(_Named).decode


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a load on a loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def bodies(**options: Any) -> Iterator[bytes]:
    """Bodies of submits, no two inputs alike; made cheaply, since they are made while the load runs."""
    tail = ",".join(["0.5"] * (VALUES - 2)) + "]"
    tail += "".join(f',"{name}":{msgspec.json.encode(value).decode()}' for name, value in options.items()) + "}"
    for number in itertools.count():
        yield f'{{"input":[{number % FINE / FINE},{number // FINE / FINE},{tail}'.encode()


def submits(model: str, *, key: str = "", wait_s: int = WAIT_S, **options: Any) -> Iterator[bytes]:
    """Submits as they are sent, no two inputs alike."""
    return (submit(model, body, key=key, wait_s=wait_s) for body in bodies(**options))


async def follow(
    client: Client, request: bytes, due_at: float, *, key: str = "", told: Callable[[str], None] | None = None
) -> Outcome:
    """Submit a job and wait for its end; ``told`` gets the task id of one that did not end at once."""
    sent_at = time.monotonic()
    first = answer = await client.ask(request)
    if told is not None and first.status == HTTPStatus.ACCEPTED:
        told(task_id(first))
    while answer.status == HTTPStatus.ACCEPTED:
        answer = await client.ask(get(f"/result/{task_id(answer)}", key=key, wait_s=WAIT_S))
    document = read_document(answer.body) if answer.status == HTTPStatus.OK else None
    return Outcome(due_at, sent_at, first.at, answer.at, first.status, document)


async def send(client: Client, request: bytes, due_at: float) -> Outcome:
    """Submit a job and leave it."""
    sent_at = time.monotonic()
    answer = await client.ask(request)
    return Outcome(due_at, sent_at, answer.at, answer.at, answer.status, None)


def task_id(answer: Answer) -> str:
    """The task id that an answer names."""
    return _read_named(answer.body).task_id


async def open_loop(one: One, requests: Iterator[bytes], rate: float, seconds: float) -> list[Outcome]:
    """``rate`` requests a second, each done by ``one``; every outcome, once the last has one."""
    started = time.monotonic()
    tasks = []
    for place in range(int(rate * seconds)):
        due_at = started + place / rate
        left_s = due_at - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(left_s)
        tasks.append(asyncio.create_task(one(next(requests), due_at)))
    return list(await asyncio.gather(*tasks))


async def closed_loop(one: One, requests: Iterator[bytes], seconds: float, clients: int = CLIENTS) -> list[Outcome]:
    """``clients``, each with one request at a time; every outcome."""
    until = time.monotonic() + seconds
    outcomes: list[Outcome] = []

    async def work() -> None:
        while (now := time.monotonic()) < until:
            outcomes.append(await one(next(requests), now))

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(work())
    return outcomes


async def capacity(client: Client, model: str, seconds: float, key: str = "") -> float:
    """Jobs a second that end under a closed loop which saturates."""
    opened_at = time.monotonic() + RAMP_S
    closed_at = opened_at + seconds
    outcomes = await closed_loop(partial(follow, client, key=key), submits(model, key=key), RAMP_S + seconds)
    return sum(each.is_completed and opened_at <= each.ended_at < closed_at for each in outcomes) / seconds
