"""Who calls: the API key of a request, and the tenant and role it stands for."""

from __future__ import annotations

import functools
import ipaddress
import logging

import msgspec
import redis.asyncio
from redis.exceptions import RedisError

from jobs.apikeys import ApiKey, digest
from jobs.errors import UnauthorizedError

log = logging.getLogger(__name__)

EVERYBODY = "default"
"""The tenant of all while there are no keys."""


class Caller(msgspec.Struct, frozen=True):
    """A tenant, as text and as the bytes that ids are bound to, and a role."""

    tenant: str
    tenant_bytes: bytes
    role: str


_UNREADABLE = Caller("", b"", "user")
"""Stands for a key whose record is of a newer form: it opens nothing, and it counts as a key."""


class Access:
    """The keys of the store, kept in memory; a key that was revoked is refused from the next ``refresh`` on.

    Without any key all are the tenant ``EVERYBODY``, but only on connections to a loopback address, however the
    server was started.
    """

    def __init__(self, client: redis.asyncio.Redis, namespace: str) -> None:
        self._client = client
        self._name = f"{namespace}:api-keys"
        self._callers: dict[str, Caller] = {}
        self._anonymous = Caller(EVERYBODY, EVERYBODY.encode(), "admin")

    async def refresh(self) -> bool:
        """Read the keys again; False, and the old ones are kept, while the store is away."""
        try:
            stored: dict[bytes, bytes] = await self._client.hgetall(self._name)  # type: ignore[assignment]
        except (RedisError, OSError):
            log.warning("keys not refreshed: the store did not answer")
            return False
        self._callers = {field.decode(): _caller(raw) for field, raw in stored.items()}
        return True

    def caller(self, authorization: bytes | None, server: tuple[str, int | None] | None) -> Caller:
        """Whose request this is; ``server`` is the address that it was sent to.

        UnauthorizedError when no key, or an unknown one, came with it.
        """
        if not self._callers and server is not None and is_loopback(server[0]):
            return self._anonymous
        scheme, _, key = (authorization or b"").partition(b" ")
        if scheme.lower() == b"bearer" and key:
            found = self._callers.get(digest(key.strip().decode("latin-1")))
            if found is not None and found is not _UNREADABLE:
                return found
        raise UnauthorizedError("Send a known API key as 'Authorization: Bearer <key>'.")


def _caller(raw: bytes) -> Caller:
    try:
        key = msgspec.json.decode(raw, type=ApiKey)
    except msgspec.DecodeError:
        log.warning("the record of an API key cannot be read")
        return _UNREADABLE
    return Caller(key.tenant, key.tenant.encode(), key.role)


@functools.cache
def is_loopback(host: str) -> bool:
    """Whether ``host``, the address of a listening socket or the path of one, is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.startswith("/") or host == "localhost"
