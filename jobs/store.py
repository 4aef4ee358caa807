"""The job store: runs commands on Redis, from threads (``JobStore``) and from asyncio (``AsyncJobStore``).

Each command is one EVALSHA, so one round trip. A server that has lost its scripts (a restart) is given them again.
Whatever Redis says beyond that is mapped here, and only here, to ``StoreUnavailableError``: the fate of the command
is then unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import deque
from collections.abc import AsyncIterator
from functools import cache
from importlib import resources
from typing import Any, NamedTuple, TypeVar

import redis
import redis.asyncio
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError, ResponseError

from jobs.commands import Command
from jobs.errors import QueueFullError, StoreUnavailableError, shared_failures
from jobs.settings import Settings
from jobs.states import ENDS

T = TypeVar("T")

IDLE_S = 15.0
"""How long a gateway keeps a connection that a burst of calls left behind."""
CALLS_MAX = 16
FULL_RETRY_S = 5.0
CACHE_ENTRY_BYTES = 320
"""What an entry of the result cache needs, without its document, measured (benchmarks/store_bytes.py)."""
SLICE_US = 50_000
"""What one stage of a micro-batch should take at most, so that a slow model still spreads over its workers."""

SHARED_TEXTS = ("lib", "ends", "window")
"""What every script begins with."""


class Flow(NamedTuple):
    """The bounds that every script knows, by the same names in capitals: window, micro-batches, retention."""

    per_slot: int
    jobs_max: int
    bytes_max: int
    slice_us: int
    retention_ms: int
    dead_letter_retention_ms: int
    dead_letters_max: int
    dead_letters_bytes_max: int
    idempotency_ms: int
    cache_max: int

    @classmethod
    def of(cls, settings: Settings) -> Flow:
        """From the settings."""
        return cls(
            per_slot=settings.window_per_slot,
            jobs_max=settings.microbatch_jobs_max,
            bytes_max=settings.microbatch_bytes_max,
            slice_us=SLICE_US,
            retention_ms=settings.retention_s * 1000,
            dead_letter_retention_ms=max(settings.dead_letter_retention_s, settings.retention_s) * 1000,
            dead_letters_max=settings.dead_letters_max,
            dead_letters_bytes_max=settings.dead_letters_bytes_max,
            idempotency_ms=settings.idempotency_s * 1000,
            cache_max=settings.cache_bytes_max // CACHE_ENTRY_BYTES,
        )


class JobStore:
    """For workers: blocking, safe to share between threads."""

    def __init__(self, client: redis.Redis, namespace: str, flow: Flow) -> None:
        self.client = client
        self.prefix = f"{namespace}:"
        self._flow = flow

    def run(self, command: Command[T]) -> T:
        """Run a command; StoreUnavailableError when its fate is unknown."""
        try:
            return command.read(self._evaluate(command))
        except (RedisError, OSError) as error:
            # What broke one connection broke the idle ones too; each would cost its timeout before that is known.
            self.client.connection_pool.disconnect(inuse_connections=False)
            raise _unavailable() from error

    def _evaluate(self, command: Command[T]) -> Any:
        arguments = (1, self.prefix, *command.arguments)
        try:
            return self.client.evalsha(digest(command.script, self._flow), *arguments)
        except NoScriptError:
            return self.client.eval(source(command.script, self._flow), *arguments)


class AsyncJobStore:
    """For gateways: each call on a connection of its own, kept for the next one, and one timeout around it all.

    At most ``CALLS_MAX`` calls are under way; the others wait, within their timeout.

    redis-py's client costs three times as much a call: it takes a connection from a pool, probes it, and sets two
    timers. Here a connection that met any error is thrown away instead.
    """

    def __init__(self, pool: redis.asyncio.ConnectionPool, namespace: str, flow: Flow, timeout_s: float) -> None:
        self.prefix = f"{namespace}:"
        self._pool = pool
        self._flow = flow
        self._timeout_s = timeout_s
        self._calls = asyncio.Semaphore(CALLS_MAX)
        self._idle: deque[tuple[float, redis.asyncio.Connection]] = deque()
        """Since when, on the monotonic clock; the last one is taken first, so the first lay idle for longest."""

    async def run(self, command: Command[T]) -> T:
        """Run a command; StoreUnavailableError when its fate is unknown, QueueFullError when nothing was done."""
        arguments = (1, self.prefix, *command.arguments)
        try:
            async with asyncio.timeout(self._timeout_s), self._calls:
                try:
                    reply = await self._call("EVALSHA", digest(command.script, self._flow), *arguments)
                except NoScriptError:
                    reply = await self._call("EVAL", source(command.script, self._flow), *arguments)
            return command.read(reply)
        except OutOfMemoryError:
            raise QueueFullError("The job store is full; nothing was stored.", retry_after_s=FULL_RETRY_S) from None
        except (RedisError, OSError) as error:  # among them TimeoutError
            raise _unavailable() from error

    @contextlib.asynccontextmanager
    async def at_once(self) -> AsyncIterator[None]:
        """Around what takes several calls: all of them together get the time of one; StoreUnavailableError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as error:
            raise _unavailable() from error

    async def close(self) -> None:
        """Close what is idle; calls under way close their own."""
        while self._idle:
            await self._idle.pop()[1].disconnect()

    async def _call(self, *words: Any) -> Any:
        """The reply of the first connection that works: an idle one may have died with a server since restarted.

        Asking again is safe, because what a gateway asks does nothing the second time.
        """
        while self._idle:
            with contextlib.suppress(ConnectionError, redis.ConnectionError):
                return await self._ask(self._idle.pop()[1], *words)
        return await self._ask(self._new_connection(), *words)

    async def _ask(self, connection: redis.asyncio.Connection, *words: Any) -> Any:
        try:
            # At once when it is connected.
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_packed_command(connection.pack_command(*words), check_health=False)
            reply = await connection.read_response()
        except ResponseError:
            await self._keep(connection)  # it answered, and what it said was read whole
            raise
        except BaseException:
            await connection.disconnect(nowait=True)
            await self.close()  # what broke one connection broke the idle ones too
            raise
        await self._keep(connection)
        return reply

    async def _keep(self, connection: redis.asyncio.Connection) -> None:
        """Keep a connection for the next call, and let go of one that was not needed for long."""
        now = time.monotonic()
        self._idle.append((now, connection))
        if now - self._idle[0][0] > IDLE_S:
            await self._idle.popleft()[1].disconnect(nowait=True)

    def _new_connection(self) -> redis.asyncio.Connection:
        connection: redis.asyncio.Connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        return connection


@cache
def source(script: str, flow: Flow) -> str:
    """A script's text: the tables of ends and of shared failures, the bounds, what the scripts share, its own."""
    folder = resources.files("jobs") / "scripts"
    ends = ", ".join(f"{event} = '{state}'" for event, state in ENDS.items())
    shared = ", ".join(f"['{code}'] = {str(cached).lower()}" for code, cached in shared_failures().items())
    bounds = "\n".join(f"local {name.upper()} = {value}" for name, value in flow._asdict().items())
    parts = ((folder / f"{name}.lua").read_text() for name in (*SHARED_TEXTS, script))
    return "\n".join((f"local ENDS = {{{ends}}}", f"local SHARED = {{{shared}}}", bounds, *parts))


@cache
def digest(script: str, flow: Flow) -> str:
    """The name that Redis knows a script by."""
    return hashlib.sha1(source(script, flow).encode(), usedforsecurity=False).hexdigest()


def _unavailable() -> StoreUnavailableError:
    return StoreUnavailableError("The job store did not answer in time; try again.", retry_after_s=1.0)
