"""Tenants that call with keys of their own, beside those that the system serves without one."""

from __future__ import annotations

from jobs import apikeys
from tests.system import System
from tests.waiting import wait_until

REFRESH_S = 3.0


def add_callers(system: System, *tenants: str) -> list[dict[str, str]]:
    """The Authorization header of a key for each tenant, once the gateway knows them all."""
    keys = [apikeys.add(system.redis, system.namespace, name=each, tenant=each, role="user") for each in tenants]
    headers = [{"Authorization": f"Bearer {key}"} for key in keys]
    wait_until(lambda: all(_status(system, each) == 200 for each in headers), REFRESH_S, "the gateway knows the keys")
    wait_until(lambda: _status(system) == 401, REFRESH_S, "the gateway asks for a key")
    return headers


def _status(system: System, headers: dict[str, str] | None = None) -> int:
    return system.client.get("/models", headers=headers).status_code
