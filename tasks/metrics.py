"""What a worker measures. Each worker shows its own figures on its own port; nothing is counted twice.

Whoever ends a job counts it: a worker what it completed or failed, the sweeping gateway what it expired.
"""

from __future__ import annotations

import bisect
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs.models import ModelRecord

STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
END_TO_END_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Tally(Collector):
    """A histogram that takes the values of a whole micro-batch under one lock.

    prometheus_client's own takes a lock for each value and each bucket, which cost a tenth of a worker's time.
    """

    def __init__(self, name: str, documentation: str, buckets: Sequence[float]) -> None:
        self._name, self._documentation = name, documentation
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()
        REGISTRY.register(self)

    def observe(self, values: Iterable[float]) -> None:
        """Count each value in its bucket."""
        given = list(values)
        places = [bisect.bisect_left(self._bounds, value) for value in given]
        with self._lock:
            self._sum += sum(given)
            for place in places:
                self._counts[place] += 1

    def collect(self) -> Iterator[Metric]:
        """The histogram as Prometheus reads it: counts up to each bound."""
        with self._lock:
            counts, total = list(itertools.accumulate(self._counts)), self._sum
        names = (*(str(float(bound)) for bound in self._bounds), "+Inf")
        buckets = list(zip(names, counts, strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=total)


jobs_total = Counter("penstock_jobs", "Jobs that ended, by outcome", ("model", "version", "outcome"))
stage_seconds = Histogram(
    "penstock_stage_seconds", "Seconds that a stage ran on a micro-batch", ("stage",), buckets=STAGE_BUCKETS
)
queue_wait_seconds = Tally(
    "penstock_queue_wait_seconds", "Seconds from submit to the first stage", END_TO_END_BUCKETS
)
end_to_end_seconds = Tally(
    "penstock_end_to_end_seconds", "Seconds from submit to the end of a job", END_TO_END_BUCKETS
)
estimate_error_seconds = Tally(
    "penstock_estimate_error_seconds",
    "How far the estimate at submit was from the end of the job",
    END_TO_END_BUCKETS,
)
estimates_total = Counter(
    "penstock_estimates",
    "Completed jobs, at most 16 of a micro-batch, by whether their 90th percentile at submit held",
    ("p90_held",),
)
microbatch_size = Histogram("penstock_microbatch_size", "Jobs in a micro-batch at preprocess", buckets=SIZE_BUCKETS)
batch_rows = Histogram("penstock_batch_rows", "Rows of a micro-batch in inference", buckets=SIZE_BUCKETS)
retries_total = Counter("penstock_retries", "Attempts that will be repeated", ("stage", "code"))
dropped_total = Counter("penstock_messages_dropped", "Messages dropped at the lease, by verdict", ("verdict",))
model_loaded = Gauge("penstock_model_loaded", "1 while a session of the version is open", ("model", "version"))
model_provider = Gauge(
    "penstock_model_provider",
    "1 for the execution provider that runs the version",
    ("model", "version", "provider"),
)


def loaded(record: ModelRecord, provider: str) -> None:
    """Show that a session of the version is open, and where it runs."""
    model_loaded.labels(record.name, record.version).set(1)
    model_provider.labels(record.name, record.version, provider).set(1)
