"""Connections to Redis, made in one way by every role.

No automatic retries: a write that timed out is *unknown*, and repeating it blindly would do it twice. No
health checks either: they cost a round trip, and a dead connection shows itself at the next command.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
import redis.asyncio
import redis.asyncio.connection
import redis.asyncio.retry
from redis.backoff import NoBackoff
from redis.retry import Retry

SOCKET_SCHEME = "redis+socket"


def redis_client(
    url: str,
    socket_timeout_s: float | None,
    *,
    connect_timeout_s: float | None = None,
    max_connections: int | None = None,
    client_name: str | None = None,
) -> redis.Redis:
    """Client of the server at ``url`` (redis://, rediss://, redis+socket://); opens nothing yet.

    ``connect_timeout_s`` is ``socket_timeout_s`` where not given. Answers are bytes.
    """
    options = _options(socket_timeout_s, connect_timeout_s, max_connections, client_name)
    return redis.Redis.from_url(_native(url), retry=Retry(NoBackoff(), 0), **options)


def async_redis_client(
    url: str,
    socket_timeout_s: float | None,
    *,
    connect_timeout_s: float | None = None,
    max_connections: int | None = None,
    client_name: str | None = None,
) -> redis.asyncio.Redis:
    """`redis_client` for an event loop."""
    options = _options(socket_timeout_s, connect_timeout_s, max_connections, client_name)
    never = redis.asyncio.retry.Retry(NoBackoff(), 0)
    pool = redis.asyncio.ConnectionPool.from_url(_native(url), retry=never, **options)
    pool.connection_class = _MAPPED[pool.connection_class]
    return redis.asyncio.Redis.from_pool(pool)


class _Mapped(redis.asyncio.connection.AbstractConnection):
    """A connection that its peer has reset fails as any other: uvloop raises RuntimeError when one writes on it."""

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002 - theirs
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            await self.disconnect(nowait=True)
            raise redis.ConnectionError("the connection was reset") from error


class _Tcp(_Mapped, redis.asyncio.Connection):
    """TCP."""


class _Tls(_Mapped, redis.asyncio.SSLConnection):
    """TLS."""


class _Unix(_Mapped, redis.asyncio.UnixDomainSocketConnection):
    """A Unix socket."""


_MAPPED: dict[type[redis.asyncio.connection.AbstractConnection], type[_Mapped]] = {
    redis.asyncio.Connection: _Tcp,
    redis.asyncio.SSLConnection: _Tls,
    redis.asyncio.UnixDomainSocketConnection: _Unix,
}


def without_password(url: str) -> str:
    """``url`` as it may be shown to an operator: no user, no password, no query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _options(
    socket_timeout_s: float | None,
    connect_timeout_s: float | None,
    max_connections: int | None,
    client_name: str | None,
) -> dict[str, Any]:
    return {
        "socket_timeout": socket_timeout_s,
        "socket_connect_timeout": socket_timeout_s if connect_timeout_s is None else connect_timeout_s,
        "max_connections": max_connections,
        "client_name": client_name,
        "health_check_interval": 0,
        "decode_responses": False,
        "protocol": 2,  # one command fewer at connect, and the same answers from Redis 6.2 to 8
    }


def _native(url: str) -> str:
    """Translate kombu's ``redis+socket:///path?virtual_host=0`` to redis-py's ``unix:///path?db=0``."""
    parts = urlsplit(url)
    if parts.scheme != SOCKET_SCHEME:
        return url
    query = [("db" if name == "virtual_host" else name, value) for name, value in parse_qsl(parts.query)]
    return f"unix://{parts.netloc}{parts.path}?{urlencode(query)}"
