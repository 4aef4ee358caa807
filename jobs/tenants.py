"""Tenants: their share of a busy system, and their quotas.

A tenant that nobody set has weight 1 and no quota. Settings lie in the hash ``{namespace}:tenants`` (field: the
tenant; value: `Tenant` as JSON), which has no TTL; gateways learn of a change within two seconds.
"""

from __future__ import annotations

import math
from typing import cast

import msgspec
import redis

from jobs.apikeys import NAME
from jobs.errors import SetupError

WEIGHT_MIN, WEIGHT_MAX = 0.01, 100.0


class Tenant(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was set for a tenant.

    ``weight``: turns beside other tenants. ``rate``: jobs a second, 0 for any; ``burst``: how many of them at once.
    ``open_max``: jobs that may be queued or processing at once, 0 for any.
    """

    name: str
    weight: float = 1.0
    rate: float = 0.0
    burst: int = 1
    open_max: int = 0


_decoder = msgspec.json.Decoder(Tenant)


def put(client: redis.Redis, namespace: str, tenant: Tenant) -> None:
    """Set a tenant. SetupError: a value that is out of range."""
    if not NAME.fullmatch(tenant.name):
        raise SetupError(f"tenant {tenant.name!r} is not valid: 1-63 of a-z, 0-9, _ and -, not beginning with _ or -")
    if not WEIGHT_MIN <= tenant.weight <= WEIGHT_MAX:
        raise SetupError(f"weight {tenant.weight} is out of range: use {WEIGHT_MIN:g} to {WEIGHT_MAX:g}")
    if not (math.isfinite(tenant.rate) and tenant.rate >= 0) or tenant.burst < 1 or tenant.open_max < 0:
        raise SetupError("rate and open-max are at least 0 (0: no quota), burst at least 1")
    client.hset(_hash(namespace), tenant.name, msgspec.json.encode(tenant).decode())


def remove(client: redis.Redis, namespace: str, name: str) -> None:
    """Forget what was set for a tenant. SetupError: nothing was."""
    if not client.hdel(_hash(namespace), name):
        raise SetupError(f"nothing is set for tenant {name!r}: `penstock tenants list` shows who has what")


def load_all(client: redis.Redis, namespace: str) -> dict[str, Tenant]:
    """Every tenant that was set, by name."""
    return read_all(cast("dict[bytes, bytes]", client.hgetall(_hash(namespace))))


def read_all(stored: dict[bytes, bytes]) -> dict[str, Tenant]:
    """The hash as it lies in the store, read."""
    return {name.decode(): _decoder.decode(value) for name, value in sorted(stored.items())}


def _hash(namespace: str) -> str:
    return f"{namespace}:tenants"
