"""Events for Flower, sent in batches.

Celery buffers task events but asks its loop to send them after each one: three publishes a task, which cost more
than the task's own message. This step sends the buffer on a timer instead; Flower lags by that much.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps

FLUSH_INTERVAL_S = 0.5


class BatchedEvents(bootsteps.StartStopStep):  # type: ignore[misc]
    """Started again with the consumer after each reconnection, as the dispatcher is."""

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Send buffered events on the consumer's timer."""
        dispatcher = consumer.event_dispatcher
        if dispatcher is not None:
            dispatcher.on_send_buffered = None
            self._timer = consumer.timer.call_repeatedly(FLUSH_INTERVAL_S, _flush, (dispatcher,))

    def stop(self, _consumer: Any) -> None:
        """Send no more."""
        if self._timer is not None:
            self._timer.cancel()


def _flush(dispatcher: Any) -> None:
    """Send what is buffered; events are for people to look at, so a broker that is away costs some of them."""
    if dispatcher.enabled:
        dispatcher.flush(errors=False)
