"""What a gateway measures, on a registry of its own.

A gateway counts what it accepted and refused itself. What belongs to the whole system (queue depth, jobs expired by
the sweeper) is shown only by the gateway that holds the sweeper's lease, so that no figure is summed twice.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The figures of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.submitted = Counter("penstock_submitted", "Jobs accepted at the door", ("model", "version"), registry=r)
        self.refused = Counter("penstock_refused", "Requests refused, by code", ("code",), registry=r)
        self.gathered = Histogram(
            "penstock_submits_gathered", "Submits written in one round trip", buckets=SIZES, registry=r
        )
        self.jobs = Counter(
            "penstock_jobs",
            "Jobs ended by this gateway: expired, cancelled, or given up by its sweeper",
            ("model", "version", "outcome"),
            registry=r,
        )
        self.swept = Counter("penstock_swept", "What the sweeper mended, by kind", ("kind",), registry=r)
        self.depth = Gauge(
            "penstock_queue_depth",
            "Jobs waiting in the store, or micro-batches in the broker's window",
            ("pool", "lane", "stage"),
            registry=r,
        )
        self.oldest = Gauge(
            "penstock_queue_oldest_age_seconds", "Age of the oldest waiting job", ("pool", "lane"), registry=r
        )
        self.dead_letters = Gauge("penstock_dead_letters", "Failed jobs whose inputs are kept", registry=r)
        self.to_drain = Gauge(
            "penstock_seconds_to_drain",
            "Until what waits in a lane would be done, at the rate of now",
            ("lane",),
            registry=r,
        )
        self.cache_requests = Counter(
            "penstock_cache_requests",
            "Submits that the result cache had a part in: hit, joined, miss",
            ("result",),
            registry=r,
        )
        self.cache_bytes = Gauge(
            "penstock_cache_bytes",
            "Cached results in this gateway, and the index of all in the store",
            ("where",),
            registry=r,
        )
        self.cache_evictions = Gauge(
            "penstock_cache_evictions", "Cached results that went for want of room", ("where",), registry=r
        )
        self.waiters = Gauge("penstock_waiters", "Requests that wait for a result", registry=r)
        self.records_missing = Counter("penstock_records_missing", "Young authentic ids without a record", registry=r)
