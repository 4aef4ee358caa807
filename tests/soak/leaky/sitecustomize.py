"""Python imports this at its start where its folder is on PYTHONPATH: the process has the defect SOAK_DEFECT.

These are the negative controls of the soak, in real processes and outside of the product: it must see each of them.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

LEAKED_BYTES = 1024
KEY_EVERY = 50
DROP_EVERY = 5_000

_kept: list[bytes] = []
_submits = itertools.count(1)
_completed = itertools.count(1)


def _leak_in(owner: Any, name: str) -> None:
    """Keep 1 kB for ever at each call of ``owner.name``."""
    inner: Callable[..., Any] = getattr(owner, name)

    def leaking(*arguments: Any, **options: Any) -> Any:
        _kept.append(os.urandom(LEAKED_BYTES))
        return inner(*arguments, **options)

    setattr(owner, name, leaking)


def _leave_keys() -> None:
    """Set a key without TTL at every 50th submit."""
    import redis  # noqa: PLC0415 -- only the gateway has this defect

    from api.gateway import Gateway  # noqa: PLC0415

    inner = Gateway.submit

    async def leaving(self: Gateway, *arguments: Any) -> None:
        number = next(_submits)
        if number % KEY_EVERY == 0:
            with suppress(redis.RedisError, OSError):  # the store may be away
                await self.client.set(f"{self.store.prefix}left:{number}", b"1")
        await inner(self, *arguments)

    Gateway.submit = leaving  # type: ignore[method-assign, assignment]


def _drop_jobs() -> None:
    """Forget every 5,000th job that completes: nobody is told what became of it."""
    from jobs import commands  # noqa: PLC0415 -- beside the other defects
    from jobs.states import Event  # noqa: PLC0415

    inner = commands.commit

    def dropping(taken: Any, handover: Any, outcomes: Any) -> Any:
        kept = [each for each in outcomes if each.event != Event.COMPLETE or next(_completed) % DROP_EVERY]
        return inner(taken, handover, kept)

    commands.commit = dropping


def _leak() -> None:
    """Leak in the gateway at each submit, in a worker at each job that completes."""
    if "celery" in sys.orig_argv:
        from tasks import stages  # noqa: PLC0415 -- the gateway never loads it

        _leak_in(stages, "_completed")
    else:
        from api.gateway import Gateway  # noqa: PLC0415 -- a worker never loads it

        _leak_in(Gateway, "submit")


def _begin(defect: str) -> None:
    is_worker, is_gateway = "celery" in sys.orig_argv, sys.orig_argv[-2:] == ["penstock", "api"]
    if defect == "leak" and (is_worker or is_gateway):
        _leak()
    elif defect == "keys" and is_gateway:
        _leave_keys()
    elif defect == "drop" and is_worker:
        _drop_jobs()


_begin(os.environ["SOAK_DEFECT"])
