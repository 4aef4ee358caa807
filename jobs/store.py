"""The job store: runs commands on Redis, from threads (``JobStore``) and from asyncio (``AsyncJobStore``).

Each command is one EVALSHA, so one round trip. A server that has lost its scripts (a restart) is given them again.
Whatever Redis says beyond that is mapped here, and only here, to ``StoreUnavailableError``: the fate of the command
is then unknown.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.exceptions import NoScriptError, RedisError

from jobs.commands import Command
from jobs.errors import StoreUnavailableError
from jobs.settings import Settings
from jobs.states import ENDS

T = TypeVar("T")

SLICE_US = 50_000
"""What one stage of a micro-batch should take at most, so that a slow model still spreads over its workers."""


class Flow(tuple[int, int, int, int, int]):
    """The bounds that every script gets: window, jobs and bytes in a micro-batch, slice, retention."""

    __slots__ = ()

    @classmethod
    def of(cls, settings: Settings) -> Flow:
        """From the settings."""
        return cls(
            (
                settings.window_per_slot,
                settings.microbatch_jobs_max,
                settings.microbatch_bytes_max,
                SLICE_US,
                settings.retention_s * 1000,
            )
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
            raise _unavailable() from error

    def _evaluate(self, command: Command[T]) -> Any:
        arguments = (1, self.prefix, *self._flow, *command.arguments)
        try:
            return self.client.evalsha(digest(command.script), *arguments)
        except NoScriptError:
            return self.client.eval(source(command.script), *arguments)


class AsyncJobStore:
    """For gateways."""

    def __init__(self, client: redis.asyncio.Redis, namespace: str, flow: Flow) -> None:
        self.client = client
        self.prefix = f"{namespace}:"
        self._flow = flow

    async def run(self, command: Command[T]) -> T:
        """Run a command; StoreUnavailableError when its fate is unknown."""
        try:
            return command.read(await self._evaluate(command))
        except (RedisError, OSError) as error:
            raise _unavailable() from error

    async def _evaluate(self, command: Command[T]) -> Any:
        arguments = (1, self.prefix, *self._flow, *command.arguments)
        try:
            return await self.client.execute_command("EVALSHA", digest(command.script), *arguments)  # type: ignore[no-untyped-call]
        except NoScriptError:
            return await self.client.execute_command("EVAL", source(command.script), *arguments)  # type: ignore[no-untyped-call]


@cache
def source(script: str) -> str:
    """A script's text: the table of ends, what the scripts share, its own."""
    folder = resources.files("jobs") / "scripts"
    ends = ", ".join(f"{event} = '{state}'" for event, state in ENDS.items())
    parts = ((folder / f"{name}.lua").read_text() for name in ("lib", script))
    return "\n".join((f"local ENDS = {{{ends}}}", *parts))


@cache
def digest(script: str) -> str:
    """The name that Redis knows a script by."""
    return hashlib.sha1(source(script).encode(), usedforsecurity=False).hexdigest()


def _unavailable() -> StoreUnavailableError:
    return StoreUnavailableError("The job store did not answer in time; try again.", retry_after_s=1.0)
