"""Queue depth, derived from the sets in the store when it is asked for: there is no counter that could drift."""

from __future__ import annotations

import math
from typing import Any

from redis.exceptions import RedisError

from api.gateway import Gateway
from jobs.ids import issued_at_ms
from jobs.records import LANES
from jobs.store import CACHE_ENTRY_BYTES


async def measure_depth(gateway: Gateway) -> None:
    """Set the depth figures; only the gateway that sweeps shows any, so that they are not summed twice."""
    metrics = gateway.metrics
    metrics.depth.clear()
    metrics.oldest.clear()
    metrics.to_drain.clear()
    metrics.dead_letters.set(0)
    metrics.cache_bytes.labels("gateway").set(gateway.results.bytes)
    metrics.cache_evictions.labels("gateway").set(gateway.results.evicted)
    if not gateway.sweeper.turn:
        return
    try:
        await _measure(gateway)
    except (RedisError, OSError):
        metrics.depth.clear()


async def _measure(gateway: Gateway) -> None:
    seen = gateway.capacity.seen
    gateway.metrics.cache_bytes.labels("store").set(seen.cached * CACHE_ENTRY_BYTES)
    gateway.metrics.cache_evictions.labels("store").set(seen.evicted)
    for lane in LANES:
        to_drain_s = gateway.capacity.to_drain_s(lane)
        gateway.metrics.to_drain.labels(lane).set(math.inf if to_drain_s is None else to_drain_s)
    client: Any = gateway.client  # redis-py's types do not say that answers are bytes
    prefix, metrics = gateway.store.prefix, gateway.metrics
    metrics.dead_letters.set(await client.zcard(f"{prefix}dead-letters"))
    for pool in sorted(each.decode() for each in await client.smembers(f"{prefix}pools")):
        metrics.depth.labels(pool, "", "window").set(await client.zcard(f"{prefix}live:{pool}"))
        for lane in LANES:
            lines = await client.zrange(f"{prefix}lines:{pool}:{lane}", 0, -1)
            keys = [f"{prefix}line:{line.decode()}" for line in lines]
            metrics.depth.labels(pool, lane, "waiting").set(sum([await client.zcard(key) for key in keys]))
            first = [each.decode() for key in keys for each in await client.zrange(key, 0, 0)]
            ages_s = [(gateway.clock.now_ms() - issued_at_ms(each)) / 1000 for each in first]
            metrics.oldest.labels(pool, lane).set(max(0.0, *ages_s, 0.0))
