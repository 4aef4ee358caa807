"""How a worker ends before its time: what it holds is given back, goodbye is said, the process exits at once.

Why it goes early: it was told to end and a stage takes too long; a stage hangs; the device is lost to this process;
its clock is wrong. Not promised: that anything is given back. The store may be away, and then the leases run out.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from jobs import commands
from jobs.clock import SKEW_S_MAX
from jobs.commands import Taken
from jobs.errors import EXIT_REPLACE, StageTimeoutError, StoreUnavailableError, WorkerLostError
from jobs.store import JobStore
from tasks.leases import Leases
from tasks.publisher import Publisher

log = logging.getLogger(__name__)

GIVE_BACK_S = 4.0
"""Time for giving back; a store or broker that hangs does not hold the exit up any longer."""
GRACE_S = 2.0
"""Time for a stage to end after it was asked to."""


class Departure:
    """Ends one worker process, once."""

    def __init__(
        self, store: JobStore, leases: Leases, publisher: Publisher, exit_now: Callable[[int], object] = os._exit
    ) -> None:
        self._store = store
        self._leases = leases
        self._publisher = publisher
        self._exit = exit_now
        self._once = threading.Lock()
        self._told = 0

    def hold_back(self) -> None:
        """Take nothing more in a process that is ending: the calling slot waits for the end."""
        if self._once.locked():
            threading.Event().wait()

    def drain(self, within_s: float) -> None:
        """Celery was told to end. What still runs after ``within_s``, or when told again, is given back."""
        self._told += 1
        why = "what it held took too long to drain"
        if self._told > 1:
            within_s, why = 0.0, "it was told a second time to end"
        timer = threading.Timer(within_s, self.now, (why, 0))
        timer.daemon = True
        timer.start()

    def watch(self) -> None:
        """Look for what must not go on: a clock that is wrong, a stage that hangs. Called at each sign of life."""
        if abs(self._leases.skew_s) > SKEW_S_MAX:
            self.now(f"its clock and the store's are {abs(self._leases.skew_s):.1f} s apart", EXIT_REPLACE)
        now = time.monotonic()
        for held in self._leases.held():
            if now > held.late_at + GRACE_S:
                self.now("a stage hangs", EXIT_REPLACE, guilty=held.taken, code=StageTimeoutError.code)
            elif now > held.late_at:
                held.halt.now(StageTimeoutError("The stage took longer than the model allows."))

    def now(self, why: str, exit_code: int, *, guilty: Taken | None = None, code: str = WorkerLostError.code) -> None:
        """Give back what is held and exit. The jobs of ``guilty`` come back as suspects, all others unharmed."""
        if not self._once.acquire(blocking=False):
            threading.Event().wait()  # another thread ends this process
        self._leases.silence()
        log.critical("the worker ends early", extra={"why": why, "exit_code": exit_code})
        giving = threading.Thread(target=self._give_back, args=(guilty, code), daemon=True)
        giving.start()
        giving.join(GIVE_BACK_S)
        self._exit(exit_code)

    def _give_back(self, guilty: Taken | None, code: str) -> None:
        try:
            for held in self._leases.held():
                how = commands.release(held.taken, "failed" if held.taken is guilty else "unharmed", code)
                self._publisher.publish(self._store.run(how).publish)
            self._store.run(commands.leave(self._leases.holder))
        except StoreUnavailableError:
            log.warning("nothing could be given back: the leases of this worker run out")
