"""kombu's connection to the broker, corrected where it would end a worker or let it wait.

An eager connection looks for a lost broker every second, not after pauses that grow to half a minute. What is
no message (somebody else wrote into the queue on Redis) is dropped with a line in the log: kombu would let it end the
worker, and the next one the next worker.
"""

from __future__ import annotations

import logging
from typing import Any

from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES, redis

log = logging.getLogger(__name__)

PAUSE_S = 0.5
PAUSE_MAX_S = 1.0


class EagerConnection(Connection):  # type: ignore[misc]  # kombu has no types
    """A connection that is looked for without patience."""

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        """Connect, however often that takes; kombu's own, with shorter pauses."""
        pauses = {"interval_start": PAUSE_S, "interval_step": PAUSE_S, "interval_max": PAUSE_MAX_S}
        return super().ensure_connection(*args, **{**pauses, **options})


class ToleratingChannel(redis.Channel):  # type: ignore[misc]
    """A channel on Redis that survives what is no message."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, KeyError, TypeError) as error:
            log.error("not a message, dropped", extra={"error": type(error).__name__})  # noqa: TRY400 - bytes of others
            return True


class ToleratingTransport(redis.Transport):  # type: ignore[misc]
    """kombu's transport for Redis with our channel."""

    Channel = ToleratingChannel


def register() -> None:
    """Let kombu use ours for redis:// and rediss://."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{ToleratingTransport.__name__}"
