"""The thread that looks at the models folder again and again while the worker runs."""

from __future__ import annotations

import logging
import threading

import redis

from inference.engine import Engine
from jobs.errors import SetupError
from jobs.models import ModelRecord
from tasks import metrics
from tasks.catalog import Catalog
from tasks.leases import Leases

log = logging.getLogger(__name__)

STOP_S = 2.0
"""How long the end of the worker waits for a poll; a trial load under way dies with this process."""


class ModelsWatch:
    """Refreshes the catalog every ``refresh_s``; loads a version, under longer leases, before it is served."""

    def __init__(
        self, catalog: Catalog, engine: Engine, leases: Leases, *, refresh_s: float, load_budget_s: float
    ) -> None:
        self._catalog = catalog
        self._engine = engine
        self._leases = leases
        self._refresh_s = refresh_s
        self._load_budget_s = load_budget_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="models", daemon=True)
        catalog.prepare, catalog.retire = self._load, self._drop

    def start(self) -> None:
        """Begin; Celery says "ready" again after each reconnection, which changes nothing."""
        if not self._thread.is_alive() and not self._stop.is_set():
            self._thread.start()

    def pause(self) -> None:
        """Take up nothing more: the worker drains."""
        self._stop.set()

    def stop(self) -> None:
        """Hold nothing any more."""
        self.pause()
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        try:
            self._catalog.leave()
        except (redis.RedisError, OSError):
            log.warning("goodbye failed: what this worker holds counts until it times out")

    def _watch(self) -> None:
        while not self._stop.wait(self._refresh_s):
            try:
                self._catalog.refresh()
            except (SetupError, redis.RedisError, OSError) as error:
                log.warning("models not refreshed: %s", error)
            except Exception:  # the other versions are served, and the next poll comes
                log.exception("models not refreshed")

    def _load(self, record: ModelRecord) -> None:
        with self._leases.extended(self._load_budget_s):
            self._engine.warm(record)
        metrics.model_loaded.labels(record.name, record.version).set(1)

    def _drop(self, record: ModelRecord) -> None:
        self._engine.drop(record)
        if not any(each.name == record.name and each.version == record.version for each in self._catalog.ready()):
            metrics.model_loaded.labels(record.name, record.version).set(0)
