"""The tenants that were set, kept in memory and read again every second."""

from __future__ import annotations

import logging

import msgspec
import redis.asyncio
from redis.exceptions import RedisError

from jobs.tenants import Tenant, read_all

log = logging.getLogger(__name__)


class Tenants:
    """Weights and quotas by tenant."""

    def __init__(self, client: redis.asyncio.Redis, namespace: str) -> None:
        self._client = client
        self._name = f"{namespace}:tenants"
        self.known: dict[str, Tenant] = {}

    async def refresh(self) -> bool:
        """Read them again; False, and the old ones are kept, while the store is away."""
        try:
            self.known = read_all(await self._client.hgetall(self._name))  # type: ignore[arg-type]
        except (RedisError, OSError):
            log.warning("tenants not refreshed: the store did not answer")
            return False
        except msgspec.DecodeError:  # of a newer Penstock: better the old ones than none
            log.exception("the settings of a tenant cannot be read")
        return True

    def weight(self, tenant: str) -> float:
        """Its turns beside other tenants."""
        known = self.known.get(tenant)
        return known.weight if known else 1.0
