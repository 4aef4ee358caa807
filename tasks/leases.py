"""The leases that a worker holds, and the thread that keeps them: its sign of life.

Every third of a lease one call tells the store what this worker holds and how many slots it has, and learns what it
has lost and what was cancelled. A worker that is killed stops telling, its leases run out, and the sweeper gives its
jobs to others. Before a session loads, ``extended`` takes a longer lease, because loading holds the interpreter lock
and with it this thread.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from inference.session import Halt
from jobs import commands
from jobs.clock import skew_s
from jobs.commands import Taken
from jobs.errors import CancelledError, InternalError, StoreUnavailableError
from jobs.store import JobStore

log = logging.getLogger(__name__)


@dataclass
class Held:
    """A micro-batch that a slot runs now. ``late_at`` (monotonic): when its stage function must have ended."""

    taken: Taken
    halt: Halt = field(default_factory=Halt)
    late_at: float = math.inf


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
        self.skew_s = 0.0
        """How far our clock was from the store's at the last sign of life, at the least."""
        self._store = store
        self._describe = describe
        self._interval_s = lease_s / 3
        self._held: dict[str, Held] = {}
        self._budgets_ms: list[int] = []
        """The longer leases that blocks under way asked for."""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="leases", daemon=True)
        self.on_beat: list[Callable[[], None]] = []
        """Called after each sign of life, answered or not."""

    def start(self) -> None:
        """Begin to send signs of life; Celery says "ready" again after each reconnection, which changes nothing."""
        if not self._thread.is_alive():
            self._thread.start()

    def silence(self) -> None:
        """Send no sign of life any more."""
        self._stop.set()

    def stop(self) -> None:
        """Say goodbye; what is still held runs out by itself."""
        self.silence()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=2.0)
        try:
            self._store.run(commands.leave(self.holder))
        except StoreUnavailableError:
            log.warning("goodbye failed: the slots of this worker count until they time out")

    def held(self) -> list[Held]:
        """What the slots run now."""
        with self._lock:
            return list(self._held.values())

    @contextmanager
    def holding(self, taken: Taken) -> Iterator[Held]:
        """Keep the lease of a micro-batch while the block runs."""
        held = Held(taken)
        with self._lock:
            self._held[taken.number] = held
        try:
            yield held
        finally:
            with self._lock:
                if self._held.get(taken.number) is held:
                    del self._held[taken.number]

    @contextmanager
    def extended(self, budget_s: float) -> Iterator[None]:
        """Hold everything for ``budget_s``, whoever beats, while the block may hold the interpreter lock."""
        budget_ms = int(budget_s * 1000)
        self._budgets_ms.append(budget_ms)
        try:
            self.beat()
            yield
        finally:
            self._budgets_ms.remove(budget_ms)
            self.beat()

    def beat(self) -> None:
        """One sign of life; what is void, because its lease is lost or all its jobs are cancelled, is ended."""
        held = {each.taken.number: each for each in self.held()}
        epochs = [(number, each.taken.epoch) for number, each in held.items()]
        lease_ms = max([self.lease_ms, *self._budgets_ms])
        command = commands.beat(self.holder, self._describe(), lease_ms, self.slots, epochs)
        asked_s = time.time()
        try:
            beaten = self._store.run(command)
        except StoreUnavailableError:
            log.warning("sign of life failed: the store did not answer")
            return
        self.skew_s = skew_s(beaten.now_ms / 1000, asked_s, time.time())
        for number in beaten.cancelled:
            held[number].halt.now(CancelledError("The client cancelled the job."))
        for number in beaten.lost:
            if held[number] in self.held():
                log.warning("lease lost", extra={"microbatch": number})
                held[number].halt.now(InternalError("The lease was lost."))

    def _keep(self) -> None:
        while not self._stop.wait(self._interval_s):
            for call in (self.beat, *self.on_beat):
                try:
                    call()
                except Exception:  # without this thread every lease of the worker would run out
                    log.exception("sign of life")
