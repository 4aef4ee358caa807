"""Which queue a worker looks into first, where Redis is the broker: interactive first, then later stages first.

Celery's own order is round robin. A job that has begun is worth more than one that has not: what is nearly done
frees the window. Nothing starves by it, because the window bounds what the broker holds.
"""

from __future__ import annotations

from kombu.utils.scheduling import priority_cycle

from jobs.records import LANES, STAGES


def rank(queue: str) -> tuple[int, int, str]:
    """Where a queue stands: by lane, then by how near its stage is to the end; queues of others last."""
    pool, _, rest = queue.partition(".")
    stage, _, lane = rest.partition(".")
    if stage not in STAGES or lane not in LANES:
        return len(LANES), 0, queue
    return LANES.index(lane), -STAGES.index(stage), pool


class InteractiveFirst(priority_cycle):  # type: ignore[misc]  # kombu has no types
    """kombu's cycle of queues, in our order."""

    def consume(self, n: int) -> list[str]:
        """At most ``n`` queues, in the order in which they are looked into."""
        return sorted(self.items[:n], key=rank)
