"""What a tenant may, on the ledger's side: its rate as one instant, in whole milliseconds."""

from __future__ import annotations

from jobs.submits import Left, Note
from jobs.tenants import Tenant


class Quotas:
    """As they must be; rates here have whole milliseconds between two jobs."""

    def __init__(self) -> None:
        self._whole_at: dict[str, int] = {}
        """By tenant: when its burst will be whole again."""

    def refusal(self, tenant: Tenant, open_jobs: int, now: int) -> Note | None:
        """Why a job is over its tenant's quota, or None, and then it counts."""
        if tenant.rate:
            wait_ms = self._spent_ms(tenant, now) - (tenant.burst - 1) * _every_ms(tenant)
            if wait_ms > 0:
                return Note("rate", wait_ms=wait_ms)
        if tenant.open_max and open_jobs >= tenant.open_max:
            return Note("open")
        if tenant.rate:
            self._whole_at[tenant.name] = now + self._spent_ms(tenant, now) + _every_ms(tenant)
        return None

    def left(self, tenant: Tenant, now: int) -> Left:
        """What it is told that it may still submit at once."""
        spent_ms = self._spent_ms(tenant, now)
        return Left(tenant.burst - -(-spent_ms // _every_ms(tenant)), spent_ms)

    def _spent_ms(self, tenant: Tenant, now: int) -> int:
        """At most a whole burst: what was spent of a smaller rate before is forgiven."""
        spent_ms = max(0, self._whole_at.get(tenant.name, 0) - now)
        return min(spent_ms, tenant.burst * _every_ms(tenant))


def _every_ms(tenant: Tenant) -> int:
    return int(1000 / tenant.rate)
