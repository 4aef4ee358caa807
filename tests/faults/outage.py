"""What clients saw of an outage, and what it left behind."""

from __future__ import annotations

from typing import Final

from tests.faults.case import Case
from tests.faults.client import Answer
from tests.faults.fault_system import FaultSystem
from tests.faults.workload import Submit, Workload
from tests.system import END_S
from tests.waiting import wait_until

ANSWER_S: Final = 3.5
"""Every POST is answered within it, whatever is away."""
LIVE_S: Final = 0.2
NORMAL_S: Final = 5.0
PROMPT_S: Final = 2.0
"""A job that takes longer was held up: by an outage, or by what an outage left."""
WARM_UP_JOBS: Final = 150
BASELINE_S: Final = 30.0
GROWTH_BYTES: Final = 50_000_000


def slowest_post_s(workload: Workload) -> float:
    """The longest that a submit waited for its answer."""
    return max(answer.seconds for answer in _submits(workload))


def livez_p99_s(workload: Workload) -> float:
    """How long the slowest of a hundred probes of /livez took; one that failed counts as for ever."""
    taken = sorted(probe.seconds if probe.status == 200 else float("inf") for probe in workload.probes)
    return taken[int(len(taken) * 0.99) - 1]


def normal_s(case: Case, workload: Workload, over_at: float) -> float:
    """After the end of the outage, the last submit that was not accepted and completed promptly."""
    held_up = [each.sent_at for each in workload.submits if each.sent_at > over_at and not _is_prompt(case, each)]
    return max(held_up, default=over_at) - over_at


def check_outage(case: Case, workload: Workload, over_at: float) -> None:
    """Judge the case by its slowest POST; /livez answered throughout, and all was normal soon after the end."""
    try:
        case.check(slowest_post_s(workload))
    finally:
        live_s, back_s = livez_p99_s(workload), normal_s(case, workload, over_at)
        case.notes |= {"livez_p99_s": round(live_s, 3), "normal_s": round(back_s, 2)}
    assert live_s < LIVE_S
    assert back_s <= NORMAL_S


class Footprint:
    """What a system holds after a load: connections at its servers, and its gateway's memory."""

    def __init__(self, system: FaultSystem) -> None:
        Workload(system, WARM_UP_JOBS).start().join()
        wait_until(lambda: system.redis.zcard(f"{system.namespace}:deadlines") == 0, END_S, "every job has ended")
        self._system = system
        self.connections = _connections(system)
        self.gateway_bytes = system.gateway.rss_bytes()

    def check_back(self, case: Case) -> None:
        """Assert that it returns to what it was."""
        try:
            wait_until(lambda: _connections(self._system) <= self.connections, BASELINE_S)
        finally:
            grown_bytes = self._system.gateway.rss_bytes() - self.gateway_bytes
            now = _connections(self._system)
            case.notes |= {"connections": [self.connections, now], "gateway_grown_mb": round(grown_bytes / 1e6, 1)}
        assert grown_bytes < GROWTH_BYTES


def _connections(system: FaultSystem) -> int:
    """Connections to store and broker, the tests' own among them."""
    at_store = len(system.redis.client_list())
    if system.rabbit is None:
        return at_store
    return at_store + len(system.rabbit.control("list_connections", "pid", "--no-table-headers").splitlines())


def _submits(workload: Workload) -> list[Answer]:
    return [answer for answer in workload.answers if answer.what == "submit"]


def _is_prompt(case: Case, submit: Submit) -> bool:
    ended_at = case._ended_at.get(submit.task_id)
    return ended_at is not None and ended_at - submit.sent_at <= PROMPT_S
