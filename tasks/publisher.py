"""Publishes micro-batches: one message each, the chain of the stages that are left whole inside it.

A publish that fails is *unknown*, never *not sent*: nobody is told, and the sweeper publishes again what did not
arrive. ``Publisher`` is used by gateways from one thread of their own and by workers from their slots.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from jobs.commands import MicroBatch
from jobs.records import SCHEMA, STAGES, StageName
from tasks.app import queue_of
from tasks.names import queue_name, queue_names, task_name

log = logging.getLogger(__name__)

BROKER_ERRORS: tuple[type[Exception], ...] = (OSError, KombuError, AMQPError, RedisError)


class Publisher:
    """Sends micro-batches to their queues and remembers whether the broker took the last one."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._quorum = app.conf.broker_url.startswith("amqp")
        # Bounds the wait for RabbitMQ's confirm; py-amqp takes it with each publish only.
        confirm_timeout_s = app.conf.broker_transport_options.get("confirm_timeout")
        self._bounds = {"confirm_timeout": confirm_timeout_s} if confirm_timeout_s else {}
        self._pools: set[str] = set()
        self.failed_at: float | None = None
        """Monotonic instant of the first failure since the last success; None while the broker takes messages."""
        self.returns = 0
        """How often the broker took messages again after a failure."""

    def publish(self, microbatches: list[MicroBatch]) -> None:
        """Send each; a failure is logged and left to the sweeper."""
        if not microbatches:
            return
        try:
            with self._app.producer_pool.acquire(block=True, timeout=1.0) as producer:
                for microbatch in microbatches:
                    self._send(producer, microbatch)
        except BROKER_ERRORS as error:
            self.failed_at = self.failed_at or time.monotonic()
            log.warning("publish failed", extra={"error": type(error).__name__, "count": len(microbatches)})
        else:
            self._took()

    def depth(self, queue: str) -> int:
        """Messages that wait in a queue; raises one of BROKER_ERRORS when the broker is away."""
        with self._app.connection_for_read() as connection, connection.channel() as channel:
            return int(queue_of(queue, quorum=self._quorum)(channel).queue_declare(passive=False).message_count)

    def ping(self) -> None:
        """Learn whether the broker answers."""
        try:
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=1.0)
        except BROKER_ERRORS:
            self.failed_at = self.failed_at or time.monotonic()
        else:
            self._took()

    def _took(self) -> None:
        if self.failed_at is not None:
            self.returns += 1
            self.failed_at = None

    def _send(self, producer: Any, microbatch: MicroBatch) -> None:
        self._declare(producer, microbatch.pool)
        first, *rest = STAGES[STAGES.index(microbatch.stage) :]
        headers = {"traceparent": microbatch.trace} if microbatch.trace else None
        self._app.send_task(
            task_name(first),
            args=[microbatch.number, microbatch.sequence, SCHEMA],
            chain=[self._link(microbatch, stage, headers) for stage in reversed(rest)],
            queue=queue_name(microbatch.pool, first, microbatch.lane),
            headers=headers,
            producer=producer,
            argsrepr="-",
            kwargsrepr="-",
            ignore_result=True,
            retry=False,
            **self._bounds,
        )

    def _link(self, microbatch: MicroBatch, stage: StageName, headers: dict[str, str] | None) -> dict[str, Any]:
        """The signature of a later stage, as Celery keeps it inside a message."""
        return {
            "task": task_name(stage),
            "args": [microbatch.number, microbatch.sequence, SCHEMA],
            "kwargs": {},
            "options": {
                "task_id": str(uuid.uuid4()),
                "queue": queue_name(microbatch.pool, stage, microbatch.lane),
                "argsrepr": "-",
                "kwargsrepr": "-",
                **({"headers": headers} if headers else {}),
                **self._bounds,
            },
            "subtask_type": None,
            "immutable": True,
        }

    def _declare(self, producer: Any, pool: str) -> None:
        """Make the queues of a pool known once, so that no message is published to a queue that is not there."""
        if pool in self._pools:
            return
        for name in queue_names([pool]):
            queue = queue_of(name, quorum=self._quorum)
            if name not in self._app.amqp.queues:
                self._app.amqp.queues.add(queue)
            queue(producer.channel).declare()
        self._pools.add(pool)
