"""The checker: after the fault, every accepted job has ended once, as it should, with its own right answer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.end_to_end.reference import outputs
from tests.faults.client import Answer, Client
from tests.faults.fault_system import TENANTS, FaultSystem
from tests.faults.watchers import Endings, Executions
from tests.faults.workload import Submit, Workload
from tests.waiting import wait_until

SETTLE_S: Final = 30.0
"""How long after the end of the fault a job may take."""
POLLERS: Final = 16
EXAMPLES: Final = 12
CLOSE: Final = 1e-5
ENDINGS: Final = {
    "good": {"completed"},
    "bad": {"failed"},
    "cancel": {"cancelled", "completed"},
    "poison": {"failed"},
}
CANCEL_ENDINGS: Final = {200: {"cancelled"}, 202: {"cancelled"}, 409: {"completed"}}


@dataclass
class Tally:
    """Figures of one case. The first block says what happened, the second must be 0."""

    submitted: int = 0
    accepted: int = 0
    unknown: int = 0
    """Submits that got no answer, though they may have been taken."""
    silence: dict[str, int] = field(default_factory=dict)
    """What the transport said of them."""
    orphans: int = 0
    """Jobs in the store whose submit got no answer."""
    repeated: int = 0
    """Submits that were sent again with their Idempotency-Key."""
    hits: int = 0
    """Submits that the result cache answered."""
    joined: int = 0
    """Jobs that got the answer of another one, which ran."""
    refused: dict[str, int] = field(default_factory=dict)
    cancels: dict[str, int] = field(default_factory=dict)
    """What cancels were answered."""
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    executions: int | None = None
    """Of all jobs, through inference; None where the store was away."""

    lost: int = 0
    """Accepted, and without a terminal state 30 s after the fault (or without a record)."""
    wrong: int = 0
    """Completed, or answered from the cache, with another answer than ONNX Runtime's for this input."""
    unexpected: int = 0
    """Ended otherwise than it should: a good job failed, a bad one completed, one cancelled completed after all."""
    doubled: int = 0
    """Ended a second time, or with a document that changed."""
    forked: int = 0
    """Sent again with its Idempotency-Key, and answered with another job."""
    faulty_answers: int = 0
    """5xx other than 503."""
    examples: list[str] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        """The promises that did not hold."""
        names = ("lost", "wrong", "unexpected", "doubled", "forked", "faulty_answers")
        return [f"{name} {getattr(self, name)}" for name in names if getattr(self, name)]

    def document(self) -> dict[str, Any]:
        """As it stands in a result file."""
        return asdict(self)

    def blame(self, name: str, what: str) -> None:
        """Count one breach."""
        setattr(self, name, getattr(self, name) + 1)
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{name}: {what}")


class Checker:
    """Judges one workload on one system. ``known`` are the jobs that the store held before it."""

    def __init__(self, system: FaultSystem, known: set[str], endings: Endings, executions: Executions) -> None:
        self._system = system
        self._known = known
        self._endings = endings
        self._executions = executions
        self.tally = Tally()
        self.ended_at: dict[str, float] = {}
        """Monotonic instant of each job's end."""

    def judge(self, workloads: Sequence[Workload], over_at: float, settle_s: float = SETTLE_S) -> Tally:
        """Wait until every job has ended, at most until ``settle_s`` after ``over_at``; then look at each."""
        orphans = self._orphans(workloads)
        for workload in workloads:
            self._wait(workload, orphans, over_at + settle_s)
            self._count(workload)
            asyncio.run(self._look_at_all(workload))
        self._look_at_orphans(orphans, workloads)
        for task_id in self._endings.doubled:
            if task_id not in self._known:
                self.tally.blame("doubled", task_id)
        if self._executions.whole:
            self.tally.executions = self._executions.jobs
        return self.tally

    def _orphans(self, workloads: Sequence[Workload]) -> set[str]:
        """Jobs of these workloads in the store that no client knows."""
        named = {submit.task_id for workload in workloads for submit in workload.submits}
        return task_ids(self._system) - self._known - named if any(map(_has_unknown, workloads)) else set()

    def _wait(self, workload: Workload, orphans: set[str], until: float) -> None:
        wanted = {submit.task_id for submit in workload.accepted()} | orphans
        try:
            wait_until(lambda: wanted <= self._endings.at.keys(), max(0.0, until - time.monotonic()))
        except AssertionError:
            return  # what is missing was announced while nobody could hear it, or is lost: each is asked for

    def _count(self, workload: Workload) -> None:
        tally = self.tally
        tally.submitted += len(workload.submits)
        tally.accepted += len(workload.accepted())
        silent = Counter(_word(submit.answer) for submit in workload.submits if submit.is_unknown)
        tally.unknown += silent.total()
        tally.silence = dict(Counter(tally.silence) + silent)
        for submit in workload.submits:
            tally.repeated += bool(submit.answers)
            bodies = [answer.body for answer in submit.answers if answer.status == 202]
            if any(body != bodies[0] for body in bodies):
                tally.blame("forked", f"{submit.kind} job {submit.task_id}: {[body['task_id'] for body in bodies]}")
        refused = Counter(_word(submit.answer) for submit in workload.submits if _is_refusal(submit))
        tally.refused = dict(Counter(tally.refused) + refused)
        cancels = Counter(_word(submit.cancel) for submit in workload.submits if submit.cancel)
        tally.cancels = dict(Counter(tally.cancels) + cancels)
        for answer in workload.answers:
            if answer.is_fault:
                tally.blame("faulty_answers", f"{answer.what}: {answer.status} {answer.code}")

    # --- Each job ---

    async def _look_at_all(self, workload: Workload) -> None:
        expected = outputs(workload.rows)
        queue = iter(workload.accepted())
        for submit in workload.submits:
            if submit.hit:
                self.tally.hits += 1
                if not _is_right(submit.hit, expected[submit.number]):
                    self.tally.blame("wrong", f"from the cache: {submit.hit['task_id']}")

        async def work(client: Client) -> None:
            for submit in queue:
                headers = {"Authorization": self._system.keys[submit.tenant]}
                answer = await client.ask("result", "GET", f"/result/{submit.task_id}", headers=headers)
                self._look_at(submit, answer, expected[submit.number])

        async with Client(self._system.urls) as client, asyncio.TaskGroup() as group:
            for _ in range(POLLERS):
                group.create_task(work(client))

    def _look_at(self, submit: Submit, answer: Answer, expected: NDArray[np.float32]) -> None:
        if answer.is_fault:
            self.tally.blame("faulty_answers", f"result: {answer.status} {answer.code}")
        if answer.status != 200:
            said = answer.body.get("status", answer.code) if isinstance(answer.body, dict) else answer.code
            self.tally.blame("lost", f"{submit.kind} job {submit.task_id}: {answer.status} {said}")
            return
        document = answer.body
        status = str(document["status"])
        self._note_end(submit.task_id, document)
        self.tally.joined += document.get("cache", {}).get("status") == "joined"
        if status not in _endings(submit):
            why = document.get("error", {}).get("code", "")
            self.tally.blame("unexpected", f"{submit.kind} job {submit.task_id}: {status} {why}")
        if submit.seen is not None and submit.seen != document:
            self.tally.blame("doubled", f"the document of {submit.task_id} changed")
        if status == "completed" and not _is_right(document, expected):
            self.tally.blame("wrong", submit.task_id)

    def _look_at_orphans(self, orphans: set[str], workloads: Sequence[Workload]) -> None:
        """An orphan is read as its tenant would; a completed one has the answer of one of the unknown inputs."""
        rows = [each.rows[submit.number] for each in workloads for submit in each.submits if submit.is_unknown]
        for task_id in orphans:
            self.tally.orphans += 1
            answers = [self._system.poll(task_id, Authorization=self._system.keys[tenant]) for tenant in TENANTS]
            document = next((each.json() for each in answers if each.status_code == 200), None)
            if document is None:
                self.tally.blame("lost", f"job {task_id}, whose submit got no answer")
                continue
            self._note_end(task_id, document)
            if document["status"] == "completed" and not any(
                _is_right(document, each) for each in outputs(np.array(rows))
            ):
                self.tally.blame("wrong", task_id)

    def _note_end(self, task_id: str, document: dict[str, Any]) -> None:
        status = str(document["status"])
        if status in ("completed", "failed", "cancelled"):
            setattr(self.tally, status, getattr(self.tally, status) + 1)
        heard = self._endings.at.get(task_id)
        self.ended_at[task_id] = _monotonic(document["ended_at"]) if heard is None else heard


def task_ids(system: FaultSystem) -> set[str]:
    """Every job that the store holds."""
    prefix = f"{system.namespace}:job:"
    return {key.decode().removeprefix(prefix) for key in system.redis.scan_iter(f"{prefix}*", 1000)}


def _endings(submit: Submit) -> set[str]:
    """How this job may end; what a cancel was answered is a promise."""
    said = submit.cancel.status if submit.cancel is not None else 0
    return CANCEL_ENDINGS.get(said, ENDINGS[submit.kind])


def _is_right(document: dict[str, Any], expected: NDArray[np.float32]) -> bool:
    got = np.asarray(document["result"].get("y", []), np.float32)
    return got.shape == expected.shape and bool(np.allclose(got, expected, atol=CLOSE))


def _has_unknown(workload: Workload) -> bool:
    return any(submit.left_unknown for submit in workload.submits)


def _is_refusal(submit: Submit) -> bool:
    return not (submit.task_id or submit.hit or submit.is_unknown)


def _word(answer: Answer | None) -> str:
    return f"{answer.status} {answer.code}".removeprefix("0 ") if answer else "never sent"


def _monotonic(instant: str) -> float:
    """An instant of a document on this process's monotonic clock; one machine, so one wall clock."""
    return datetime.fromisoformat(instant).timestamp() - time.time() + time.monotonic()
