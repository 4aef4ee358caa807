"""What a client that waits is told: where its job stands, when it will probably have ended, and what it waits for."""

from __future__ import annotations

import math

import msgspec

from api.capacity import RETRY_S_MAX, Capacity, WaitingReason
from jobs.commands import IN_RETRY, View
from jobs.records import Lane

RETRY_AFTER_S = 0.05
"""When to ask again at the earliest, for the impatient."""


class Queue(msgspec.Struct, frozen=True):
    """Where a queued job stands: ``position`` counts from 1, ``ahead`` is how many are before it in its line."""

    position: int
    ahead: int
    lane: Lane


class EstimateView(msgspec.Struct, frozen=True):
    """Seconds until the job has ended: half of all such jobs take longer, one in ten longer than the second."""

    finish_in_s: float
    p90_finish_in_s: float


class Outlook(msgspec.Struct, frozen=True):
    """All of it; only ``retry_after_s`` where the job is not queued."""

    retry_after_s: float = RETRY_AFTER_S
    queue: Queue | None = None
    estimate: EstimateView | None = None
    waiting_reason: WaitingReason | None = None

    @property
    def retry_after(self) -> int:
        """The header's whole seconds."""
        return max(1, math.ceil(self.retry_after_s))


PROCESSING = Outlook()


def outlook(view: View, capacity: Capacity) -> Outlook:
    """How things look for a job that has not ended."""
    if view.state != "queued" or view.head is None:
        return PROCESSING
    ahead = max(0, view.place)
    found = capacity.estimate(view.line, ahead) if view.place != IN_RETRY else None
    retry_s = RETRY_AFTER_S if found is None else min(RETRY_S_MAX, max(RETRY_AFTER_S, found.finish_in_s))
    return Outlook(
        round(retry_s, 3),
        Queue(ahead + 1, ahead, view.head.lane),
        EstimateView(round(found.finish_in_s, 3), round(found.p90_finish_in_s, 3)) if found else None,
        "retry-backoff" if view.place == IN_RETRY else capacity.waiting_reason(view.line),
    )
