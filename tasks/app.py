"""The Celery app: one function makes it from the settings, for gateways, workers and Flower alike.

Each setting below is there for a reason found by measurement or in Celery's source; docs/celery.md tells them.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from kombu import Exchange, Queue, pools

from jobs.settings import Settings
from tasks.connection import EagerConnection, register
from tasks.names import queue_names

GATEWAY_TIMEOUT_S = 1.0
"""A gateway waits no longer for its broker; a publish that takes longer is unknown, and the sweeper settles it."""
WORKER_TIMEOUT_S = 4.0
"""A server that is silent for so long is taken for dead, its connection closed: it may be half open."""
HEARTBEAT_S = 5
"""How often RabbitMQ and we show each other signs of life, and how old an idle connection to Redis is trusted."""
_DELIVERY_LIMIT = 20
"""Deliveries of one message that a quorum queue makes before it sets it aside: a last net below our own."""
_VISIBILITY_TIMEOUT_S = 6 * 3600


class ConfirmingAMQP(AMQP):  # type: ignore[misc]  # celery has no types
    """Publisher confirms for tasks alone.

    Celery sends its events from the worker's threads over a connection that the consumer's loop reads. A thread that
    waits there for a confirm races that loop for the frames; the one that loses hangs, and RabbitMQ closes the
    connection after missed heartbeats. Messages lost so are only late, but by half a minute.
    """

    Connection = EagerConnection
    _producer_pool: Any = None

    @property
    def producer_pool(self) -> Any:
        """Producers whose connections confirm, where the settings say so."""
        if self._producer_pool is None:
            confirms = self.app.conf.broker_transport_options.get("confirm_timeout") is not None
            options = {"confirm_publish": True} if confirms else {}
            self._producer_pool = pools.producers[self.app.connection_for_write(transport_options=options)]
            self._producer_pool.limit = self.app.pool.limit
        return self._producer_pool


def make_celery(settings: Settings, timeout_s: float = WORKER_TIMEOUT_S) -> Celery:
    """The app for one process; opens no connection."""
    register()
    app = Celery("penstock", broker=settings.broker, amqp=ConfirmingAMQP, set_as_current=False)
    amqp = settings.broker.startswith("amqp")
    app.conf.update(
        # Messages are JSON and carry ids only; nothing is ever unpickled.
        task_serializer="json",
        accept_content=["json"],
        # The store holds the truth about jobs: no result backend, no retries but ours.
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_publish_retry=False,
        task_acks_late=True,
        task_acks_on_failure_or_timeout=True,
        task_reject_on_worker_lost=False,
        task_retry_on_worker_lost=False,
        task_queues=[queue_of(name, quorum=amqp) for name in queue_names(settings.pools)],
        task_default_queue=queue_names(settings.pools)[0],
        task_create_missing_queues=False,
        task_send_sent_event=False,
        broker_connection_max_retries=None,  # a worker waits for its broker however long that takes
        # Threads: ONNX Runtime releases the interpreter lock while it runs, and is never forked.
        worker_pool="threads",
        worker_concurrency=settings.worker_threads,
        worker_prefetch_multiplier=1,
        worker_disable_rate_limits=True,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=True,
        broker_connection_retry_on_startup=True,
        broker_channel_error_retry=True,
        broker_connection_timeout=timeout_s,
        broker_heartbeat=HEARTBEAT_S,
        broker_transport_options=_amqp(settings, timeout_s) if amqp else _redis(settings, timeout_s),
    )
    return app


def queue_of(name: str, *, quorum: bool) -> Queue:
    """The queue of this name, as every process declares it."""
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": _DELIVERY_LIMIT,
        "x-overflow": "reject-publish",
    }
    exchange = Exchange("penstock", type="direct", durable=True)
    return Queue(name, exchange, routing_key=name, durable=True, queue_arguments=arguments if quorum else None)


def _redis(settings: Settings, timeout_s: float) -> dict[str, Any]:
    return {
        "global_keyprefix": f"{settings.namespace}:broker:",
        "priority_steps": [0],
        "queue_order_strategy": "tasks.order:InteractiveFirst",
        # Recovery is ours (leases and the sweeper): what the broker gives again is dropped at its lease, so its own
        # clock is set far away.
        "visibility_timeout": _VISIBILITY_TIMEOUT_S,
        "ack_emulation": False,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "socket_keepalive": True,
        "health_check_interval": HEARTBEAT_S,
        "retry_on_timeout": False,
    }


def _amqp(settings: Settings, timeout_s: float) -> dict[str, Any]:
    return {
        **({"confirm_timeout": timeout_s} if settings.confirm_publish else {}),  # see ConfirmingAMQP
        "read_timeout": timeout_s,
        "write_timeout": timeout_s,
        "login_method": "PLAIN",
    }
