"""The workload of every case: jobs with known answers, submitted at a fixed rate whatever becomes of them.

In 100 jobs 5 fail on purpose (a cut-off PNG, which passes the door's look at its header) and 5 are cancelled as soon
as they are accepted; two tenants take turns; every fifth job is polled while the run goes on. One in ten has an
Idempotency-Key, and is sent once more whatever it was answered: it is one job all the same.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from jobs.faults import POISON
from tests.end_to_end.reference import inputs
from tests.faults.client import NO_ANSWER, Answer, Client
from tests.faults.fault_system import TENANTS, FaultSystem
from tests.system import ROOT

Kind = Literal["good", "bad", "cancel", "poison"]

RATE: Final = 50.0
EVERY: Final = 20
"""One in so many jobs fails on purpose, and one is cancelled."""
POLL_EVERY: Final = 5
REPEAT_EVERY: Final = 10
REPEAT_AT: Final = 4
"""Of ten, the one that has an Idempotency-Key; those that faults are aimed at have none."""
REPEAT_S: Final = 20.0
REPEAT_PAUSE_S: Final = 0.2
"""A repeat that nobody answers is sent again, for so long."""
PROBE_S: Final = 0.1
BAD_PNG: Final = (ROOT / "models" / "digits" / "samples" / "03-label-3.png").read_bytes()[:60]

_seeds = itertools.count(1000)


@dataclass
class Submit:
    """One job of the workload, and what it was answered."""

    number: int
    kind: Kind
    tenant: str
    key: str = ""
    """Its Idempotency-Key."""
    sent_at: float = 0.0
    answer: Answer | None = None
    """Of several, the first that said which job it is."""
    answers: list[Answer] = field(default_factory=list)
    """All of them, where it was repeated."""
    cancel: Answer | None = None
    seen: dict[str, Any] | None = None
    """The terminal document, where it was polled before the end."""

    @property
    def task_id(self) -> str:
        """Empty unless it was accepted."""
        return str(self.answer.body["task_id"]) if self.answer and self.answer.status == 202 else ""

    @property
    def hit(self) -> dict[str, Any] | None:
        """The document that answered it at once, from the result cache."""
        return self.answer.body if self.answer and self.answer.status == HTTPStatus.OK else None

    @property
    def is_unknown(self) -> bool:
        """Whether nobody told the client what became of it."""
        return self.answer is not None and self.answer.is_unknown

    @property
    def left_unknown(self) -> bool:
        """Whether a job may have been stored that this answer did not name."""
        return self.is_unknown or any(each.is_unknown for each in self.answers)


class Workload:
    """Submits ``jobs`` from a thread of its own; `join` waits for the last answer.

    Not ``mixed``, all are good. ``alike`` jobs in a row have one input. That of job ``poison`` is what the condition
    ``poison`` of a fault looks for.
    """

    def __init__(
        self,
        system: FaultSystem,
        jobs: int,
        *,
        rate: float = RATE,
        mixed: bool = True,
        alike: int = 1,
        poison: int | None = None,
        keepalive: bool = True,
        urls: list[str] | None = None,
        repeat: Literal["some", "all", "none"] = "some",
    ) -> None:
        distinct = inputs(math.ceil(jobs / alike), next(_seeds))
        self.rows: NDArray[np.float32] = np.repeat(distinct, alike, axis=0)[:jobs]
        self.submits = [
            Submit(number, _kind(number) if mixed else "good", TENANTS[number % len(TENANTS)])
            for number in range(jobs)
        ]
        for submit in self.submits:
            if repeat == "all" or (repeat == "some" and submit.number % REPEAT_EVERY == REPEAT_AT):
                submit.key = secrets.token_hex(8)
        if poison is not None:
            self.submits[poison].kind = "poison"
            self.rows[poison, 0] = POISON
        self.probes: list[Answer] = []
        """Answers of /livez, ten a second while it runs."""
        self._rate = rate
        self._keys = system.keys
        self._client = Client(urls or system.urls, keepalive=keepalive)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="workload")
        self._stopped = False
        self.started_at = 0.0
        self.ended_at = 0.0

    @property
    def answers(self) -> list[Answer]:
        """Every answer so far: of submits, cancels, polls and probes."""
        return self._client.answers

    @property
    def running(self) -> bool:
        """Whether it still submits."""
        return self._thread.is_alive()

    def accepted(self) -> list[Submit]:
        """Those that got a 202."""
        return [each for each in list(self.submits) if each.task_id]

    def accepted_ids(self) -> set[str]:
        """Their task ids."""
        return {each.task_id for each in self.accepted()}

    def start(self) -> Self:
        """Begin to submit."""
        self.started_at = time.monotonic()
        self._thread.start()
        return self

    def stop(self) -> None:
        """Submit no more: what was not sent yet is no part of it."""
        self._stopped = True

    def join(self) -> None:
        """Wait until the last submit was answered."""
        self._thread.join()
        self.ended_at = time.monotonic()

    async def _run(self) -> None:
        async with self._client, asyncio.TaskGroup() as group:
            probing = group.create_task(self._probe())
            async with asyncio.TaskGroup() as jobs:
                for submit in self.submits:
                    if self._stopped:
                        del self.submits[submit.number :]
                        break
                    await asyncio.sleep(self.started_at + submit.number / self._rate - time.monotonic())
                    jobs.create_task(self._one(submit))
            probing.cancel()

    async def _one(self, submit: Submit) -> None:
        headers = {"Authorization": self._keys[submit.tenant]}
        submit.sent_at = time.monotonic()
        submit.answer = await self._client.ask("submit", "POST", **self._request(submit, headers))
        if submit.key:
            await self._repeat(submit, headers)
        if not submit.task_id:
            return
        if submit.kind == "cancel":
            path = f"/result/{submit.task_id}/cancel"
            submit.cancel = await self._client.ask("cancel", "POST", path, headers=headers)
        elif submit.number % POLL_EVERY == 0:
            headers |= {"Prefer": "wait=1"}
            answer = await self._client.ask("poll", "GET", f"/result/{submit.task_id}", headers=headers)
            submit.seen = answer.body if answer.status == 200 else None

    async def _repeat(self, submit: Submit, headers: dict[str, str]) -> None:
        """Send it again with its key: once, or until somebody answers."""
        assert submit.answer is not None
        submit.answers = [submit.answer]
        give_up_at = time.monotonic() + REPEAT_S
        while len(submit.answers) == 1 or (submit.answers[-1].status == NO_ANSWER and time.monotonic() < give_up_at):
            if submit.answers[-1].status == NO_ANSWER:
                await asyncio.sleep(REPEAT_PAUSE_S)
            submit.answers.append(await self._client.ask("repeat", "POST", **self._request(submit, headers)))
        submit.answer = next((each for each in submit.answers if each.status == HTTPStatus.ACCEPTED), submit.answer)

    def _request(self, submit: Submit, headers: dict[str, str]) -> dict[str, Any]:
        if submit.key:
            headers = headers | {"Idempotency-Key": submit.key}
        if submit.kind == "bad":  # all with one input, and each is to run
            picture = {"Content-Type": "image/png", "Cache-Control": "no-store"}
            return {"path": "/predict/digits", "content": BAD_PNG, "headers": headers | picture}
        row = self.rows[submit.number].tolist()
        return {"path": "/predict/tensor-demo", "json": {"input": row}, "headers": headers}

    async def _probe(self) -> None:
        while True:
            self.probes.append(await self._client.ask("probe", "GET", "/livez"))
            await asyncio.sleep(PROBE_S)


def _kind(number: int) -> Kind:
    place = number % EVERY
    if place == EVERY // 2:
        return "bad"
    return "cancel" if place == EVERY - 1 else "good"
