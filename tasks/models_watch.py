"""The threads that look at the models folder, and at the store that it follows, while the worker runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

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
    """Refreshes the catalog every ``refresh_s``; loads a version, under longer leases, before it is served.

    ``sync`` fills the folder from elsewhere. It has a thread of its own: a large fetch must not hold up what tells
    the other workers that this one is there.
    """

    def __init__(
        self,
        catalog: Catalog,
        engine: Engine,
        leases: Leases,
        *,
        refresh_s: float,
        load_budget_s: float,
        sync: Callable[[], None] | None = None,
    ) -> None:
        self._catalog = catalog
        self._engine = engine
        self._leases = leases
        self._refresh_s = refresh_s
        self._load_budget_s = load_budget_s
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(call,), name="models", daemon=True)
            for call in (catalog.refresh, sync)
            if call is not None
        ]
        catalog.prepare, catalog.retire = self._load, self._drop

    def start(self) -> None:
        """Begin; Celery says "ready" again after each reconnection, which changes nothing."""
        if not self._stop.is_set() and not any(each.is_alive() for each in self._threads):
            for each in self._threads:
                each.start()

    def pause(self) -> None:
        """Take up nothing more: the worker drains."""
        self._stop.set()

    def stop(self) -> None:
        """Hold nothing any more."""
        self.pause()
        for each in self._threads:
            if each.is_alive():
                each.join(STOP_S)
        try:
            self._catalog.leave()
        except (redis.RedisError, OSError):
            log.warning("goodbye failed: what this worker holds counts until it times out")

    def _repeat(self, call: Callable[[], None]) -> None:
        while not self._stop.wait(self._refresh_s):
            try:
                call()
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
