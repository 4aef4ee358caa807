"""The leases that a worker holds, and the thread that keeps them: its sign of life.

Every third of a lease one call tells the store what this worker holds and how many slots it has. A worker that is
killed stops telling, its leases run out, and the sweeper gives its jobs to others. Before a session loads,
``extended`` takes a longer lease, because loading holds the interpreter lock and with it this thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs import commands
from jobs.commands import Taken
from jobs.errors import StoreUnavailableError
from jobs.store import JobStore

log = logging.getLogger(__name__)


class Leases:
    """What one worker process holds."""

    def __init__(
        self,
        store: JobStore,
        holder: str,
        lease_s: float,
        describe: Callable[[], bytes],
    ) -> None:
        self.holder = holder
        self.lease_ms = int(lease_s * 1000)
        self.slots: dict[str, int] = {}
        """Slots by pool, as the window counts them; empty until the worker consumes."""
        self._store = store
        self._describe = describe
        self._interval_s = lease_s / 3
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="leases", daemon=True)
        self.on_beat: list[Callable[[], None]] = []
        """Called after each sign of life."""

    def start(self) -> None:
        """Begin to send signs of life; Celery says "ready" again after each reconnection, which changes nothing."""
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        """Say goodbye; what is still held runs out by itself."""
        self._stop.set()
        self._thread.join(timeout=2.0)
        try:
            self._store.run(commands.leave(self.holder))
        except StoreUnavailableError:
            log.warning("goodbye failed: the slots of this worker count until they time out")

    @contextmanager
    def holding(self, taken: Taken) -> Iterator[None]:
        """Keep the lease of a micro-batch while the block runs."""
        with self._lock:
            self._held[taken.number] = taken.epoch
        try:
            yield
        finally:
            with self._lock:
                self._held.pop(taken.number, None)

    @contextmanager
    def extended(self, budget_s: float) -> Iterator[None]:
        """Hold everything for ``budget_s`` while the block may hold the interpreter lock."""
        self.beat(int(budget_s * 1000))
        try:
            yield
        finally:
            self.beat()

    def beat(self, lease_ms: int | None = None) -> None:
        """One sign of life."""
        with self._lock:
            held = list(self._held.items())
        command = commands.beat(self.holder, self._describe(), lease_ms or self.lease_ms, self.slots, held)
        try:
            lost = self._store.run(command)
        except StoreUnavailableError:
            log.warning("sign of life failed: the store did not answer")
            return
        for number in lost:
            with self._lock:
                still = number in self._held
            if still:
                log.warning("lease lost", extra={"microbatch": number})

    def _keep(self) -> None:
        while not self._stop.wait(self._interval_s):
            for call in (self.beat, *self.on_beat):
                try:
                    call()
                except Exception:  # without this thread every lease of the worker would run out
                    log.exception("sign of life")
