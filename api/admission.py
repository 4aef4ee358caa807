"""Who is let in: said at once, before a job is stored, and without asking the store.

429 is the tenant's own quota, 503 is our capacity. Three things are bounded: open jobs (nobody is let in beyond
``queue_jobs_max``, and near it only tenants that are below their share), the store's memory, and the wait: a job
whose deadline would pass, by all that is known of its line, is refused now instead of expiring later. Where nothing
is known (no worker, a paused model, a model that never ran) the job is let in: its deadline is its bound. So it is
where nobody waits: what its model took lately may hold no more, and only jobs that run can tell.

Quotas themselves are counted in the store, with the submit, so they hold across gateways. Here is only remembered
whom the store refused just now, so that a flood of refusals costs no round trips.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping

import msgspec

from api.access import EVERYBODY
from api.capacity import RETRY_S_MAX, Capacity
from api.tenants import Tenants
from jobs.errors import (
    DeadlineUnreachableError,
    PenstockError,
    QueueFullError,
    QuotaExceededError,
)
from jobs.estimates import Estimate
from jobs.settings import Settings
from jobs.submits import Left, Note

NEAR_FULL = 0.8
"""From here on a tenant gets no more than its share of the open jobs."""
MARGIN = 1.5
"""A job is let in if its 90th percentile, times this, is before its deadline: nine in ten are not enough."""
STORE_SHARE = 0.9
STORE_RETRY_S = 5.0
"""What memory takes to become free is not known: results go by their retention."""
HOLD_S_MAX = 1.0
OPEN_HOLD_S = 0.1
JITTER = 0.25


class Quota(msgspec.Struct, frozen=True):
    """A tenant's rate as the RateLimit fields tell it: jobs at once, seconds that they come back in, jobs left."""

    burst: int
    window_s: float
    left: Left


class _Held(msgspec.Struct, frozen=True):
    """A tenant that the store refused: what it is told, and until when (monotonic) the store need not be asked."""

    until_s: float
    text: str
    wait_s: float

    def error(self) -> QuotaExceededError:
        return QuotaExceededError(self.text, retry_after_s=_jittered(self.wait_s))


class Admission:
    """The judge of one gateway."""

    def __init__(self, settings: Settings, capacity: Capacity, tenants: Tenants) -> None:
        self._jobs_max = settings.queue_jobs_max
        self._store_bytes_max = settings.store_bytes_max
        self._capacity = capacity
        self._tenants = tenants
        self._held: dict[str, _Held] = {}
        self._left: dict[str, Left] = {}
        self.store_full = False

    def judge(self, tenant: str, line: str, ttl_s: float, *, always: bool) -> Estimate | None:
        """Let a job in, with the estimate of its end where there is one.

        QuotaExceededError, QueueFullError; DeadlineUnreachableError unless ``always``.
        """
        self._check_quota(tenant)
        self._check_room(tenant)
        known = self._capacity.lines.get(line)
        if known is None:
            return None
        found = self._capacity.estimate(line, known.ahead_of(tenant, self._tenants.weight))
        if found and known.waiting and not always and found.p90_finish_in_s * MARGIN > ttl_s:
            raise DeadlineUnreachableError(
                f"The job would end in about {found.finish_in_s:.1f} s, and its deadline is in {ttl_s:g} s. "
                'Send a longer ttl_s, or "admit": "always".',
                retry_after_s=_jittered(found.p90_finish_in_s * MARGIN - ttl_s),
            )
        return found

    def let_in(self, tenant: str, line: str, *, waits: bool = True) -> None:
        """A job was stored; one that joined another does not wait in its line."""
        self._capacity.let_in(line, tenant, self._tenants.weight(tenant), waits=waits)

    def refusal(self, tenant: str, note: Note) -> PenstockError:
        """What a job over its tenant's quota is told; the next ones are told the same without asking for a moment."""
        set_ = self._tenants.known.get(tenant)
        if note.verdict == "rate":
            wait_s, hold_s = note.wait_ms / 1000, min(HOLD_S_MAX, note.wait_ms / 1000)
            text = f"More than {set_.rate if set_ else 0:g} jobs a second (and {set_.burst if set_ else 0} at once)."
        else:
            wait_s, hold_s = 1.0, OPEN_HOLD_S
            text = f"{set_.open_max if set_ else 0} of your jobs are queued or processing, as many as may be."
        self._held[tenant] = _Held(time.monotonic() + hold_s, text, wait_s)
        return self._held[tenant].error()

    def learn(self, left: Mapping[str, Left]) -> None:
        """What is left of the tenants' rates, as the store counted it."""
        self._left.update(left)

    def learn_memory(self, used: int, most: int) -> None:
        """The store's memory in bytes; ``most`` 0 where the server has no bound."""
        bound = self._store_bytes_max or most * STORE_SHARE
        self.store_full = bool(bound) and used > bound

    def quota(self, tenant: str) -> Quota | None:
        """Where a tenant with a rate stands."""
        known, left = self._tenants.known.get(tenant), self._left.get(tenant)
        if known is None or not known.rate or left is None:
            return None
        return Quota(known.burst, known.burst / known.rate, left)

    def _check_quota(self, tenant: str) -> None:
        held = self._held.get(tenant)
        if held:
            if time.monotonic() < held.until_s:
                raise held.error()
            del self._held[tenant]

    def _check_room(self, tenant: str) -> None:
        open_jobs = self._capacity.open_jobs
        if self.store_full:
            raise QueueFullError(
                "The job store is near its memory's bound; nothing was stored.",
                retry_after_s=_jittered(STORE_RETRY_S),
            )
        if open_jobs < NEAR_FULL * self._jobs_max:
            return
        if open_jobs >= self._jobs_max or self._capacity.open_by_tenant.get(tenant, 0) >= self._share(tenant):
            raise QueueFullError(
                f"{open_jobs} jobs are queued or processing, of {self._jobs_max} that may be; nothing was stored.",
                retry_after_s=_jittered(self._capacity.to_drain_s("interactive") or STORE_RETRY_S),
            )

    def _share(self, tenant: str) -> float:
        """Open jobs a tenant may have when room is short: by weight, beside all who have some and one who may come.

        Without the latter a tenant alone would fill the queue, and the next to come would find no room.
        """
        others = self._capacity.open_by_tenant.keys() | {tenant}
        newcomer = 0.0 if others == {EVERYBODY} else 1.0  # while there are no keys nobody else can come
        return self._jobs_max * self._tenants.weight(tenant) / (sum(map(self._tenants.weight, others)) + newcomer)


def _jittered(seconds: float) -> float:
    """So that those who were refused together do not come back together."""
    draw = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - jitter, not a secret
    return min(RETRY_S_MAX, max(1.0, seconds * draw))
