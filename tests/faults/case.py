"""One case: the workload beside a fault, the checker after it, the result file at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Self

import pytest

from tests.faults import results
from tests.faults.checker import SETTLE_S, Checker, Tally, task_ids
from tests.faults.fault_system import FaultSystem
from tests.faults.results import Claim
from tests.faults.watchers import Endings, Executions
from tests.faults.workload import Workload

JOBS: Final = int(os.environ.get("FAULT_JOBS", "300"))
"""Jobs of a case; 2,000 for a long look."""


def claim(name: str, fault: str, **own: Any) -> pytest.MarkDecorator:
    """Mark a test as a case; see `Claim`."""
    return pytest.mark.claim(Claim(name, fault, **own))


class Case:
    """What a test of a fault works with. In order: `workload`, in it `fault` (and `over`), then `check`."""

    def __init__(self, claim: Claim, system: FaultSystem) -> None:
        self.claim = claim
        self.system = system
        self.endings = Endings(system)
        self.executions = Executions(system)
        self.tally = Tally()
        self.number: float | None = None
        self.notes: dict[str, Any] = {}
        """More figures for the result file."""
        self._known = task_ids(system)
        self._workloads: list[Workload] = []
        self.faults: list[float] = []
        """Monotonic instants of the faults so far."""
        self._over_at = 0.0
        self._ended_at: dict[str, float] = {}
        self._stack = ExitStack()
        self._began_at = time.monotonic()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.endings)
        self._stack.enter_context(self.executions)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def workload(self, jobs: int = JOBS, **options: Any) -> Iterator[Workload]:
        """Submit beside what the block does; the last answer is there when it has ended."""
        workload = Workload(self.system, jobs, **options).start()
        self._workloads.append(workload)
        try:
            yield workload
        finally:
            workload.join()

    def fault(self) -> float:
        """Mark this instant: recovery counts from here."""
        self.faults.append(time.monotonic())
        return self.faults[-1]

    def over(self) -> float:
        """Mark the end of an outage: what counts is how long the system takes from here."""
        self._over_at = time.monotonic()
        return self._over_at

    def recovery_s(self) -> float | None:
        """The longest that a job, in flight at the instant of a fault, took to end after it.

        Of an outage: the longest that any job which was accepted before its end took after its end.
        """
        marks = [self._over_at] if self._over_at else self.faults
        taken = [self._recovery_s(mark) for mark in marks]
        return round(max(taken), 2) if taken else None

    def measure(self, settle_s: float = SETTLE_S) -> Tally:
        """Wait until all is settled and judge it, asserting nothing."""
        ends = [workload.ended_at for workload in self._workloads]
        checker = Checker(self.system, self._known, self.endings, self.executions)
        self.tally = checker.judge(self._workloads, max([self._over_at, *self.faults, *ends]), settle_s)
        self._ended_at = checker.ended_at
        return self.tally

    def check(self, number: float | None = None) -> Tally:
        """Assert the promises and the case's own number, which is the worst recovery where none is given."""
        tally = self.measure()
        self.number = self.recovery_s() if number is None else round(number, 3)
        assert not tally.broken, f"{', '.join(tally.broken)}\n" + "\n".join(tally.examples)
        own = self.claim
        assert own.holds(self.number), (
            f"{own.number}: {self.number} {own.unit}; at most {own.at_most}, at least {own.at_least}"
        )
        return tally

    def write(self, *, passed: bool) -> None:
        """Write the result file."""
        result = {
            "passed": passed,
            "value": self.number,
            "worst_recovery_s": self.recovery_s(),
            "took_s": round(time.monotonic() - self._began_at, 1),
            **self.tally.document(),
            "notes": self.notes,
        }
        results.write(self.claim, self.system.kind, result)

    def _recovery_s(self, mark: float) -> float:
        sent = {each.task_id: each.sent_at for load in self._workloads for each in load.accepted()}
        affected = [ended for task_id, ended in self._ended_at.items() if sent.get(task_id, 0.0) <= mark < ended]
        return max(affected, default=mark) - mark
