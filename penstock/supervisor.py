"""Keeps a handful of processes alive, and ends them in order. What they are is `penstock.up`'s business.

Start: each role is started when the roles that it needs answer. Run: a role that dies is started again
after a growing pause; one that keeps dying, that says its set-up is wrong (exit 78), or that is vital and
never answered makes the supervisor give up and say so. Drain: the roles are ended in the reverse of their
order, each with SIGTERM and, after its own bound, SIGKILL; a second signal kills all at once. Everything
happens in one thread, in steps of ``TICK_S``.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from jobs.errors import EXIT_CONFIG, EXIT_REPLACE
from penstock.child import Child, Role, rotate

TICK_S = 0.1
DEATHS_MAX = 5
DEATHS_WINDOW_S = 60.0
BACKOFF_BASE_S = 0.5
BACKOFF_MAX_S = 10.0
PROBE_S = 0.5
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Say = Callable[[str], None]


class GivenUpError(Exception):
    """A role cannot be kept alive; the text says which and why, ``code`` is our exit code."""

    def __init__(self, line: str, code: int = 1) -> None:
        super().__init__(line)
        self.code = code


def backoff_s(deaths: int) -> float:
    """Pause before the next start, after ``deaths`` deaths (from 1) within the window."""
    return float(min(BACKOFF_MAX_S, BACKOFF_BASE_S * 2 ** (deaths - 1)))


class Post:
    """A role's place in the supervisor: the child that fills it now, and how often one died lately."""

    def __init__(self, role: Role, log: Path) -> None:
        self.role = role
        self.log = log
        self.child: Child | None = None
        self.due_at = 0.0
        self.deaths: list[float] = []
        self.answered = False
        self.ever_answered = False
        self._late_at = 0.0
        self._probed_at = 0.0

    def start(self, now: float) -> None:
        """Fill the place."""
        rotate(self.log)
        self.child = Child(self.role, self.log)
        self.answered = self.role.answers is None
        self._late_at = now + self.role.start_s
        self._probed_at = 0.0

    def probe(self, now: float) -> str | None:
        """Learn whether the role answers, at most once in ``PROBE_S``; say when it is late. GivenUpError."""
        if self.child is None or self.answered or self.role.answers is None or now < self._probed_at + PROBE_S:
            return None
        self._probed_at = now
        self.answered = self.role.answers()
        self.ever_answered |= self.answered
        if self.answered or now < self._late_at:
            return None
        self._late_at = math.inf
        late = f"{self.role.name} is not ready after {self.role.start_s:g} s; log: {self.log}"
        if self.role.vital and not self.ever_answered:
            raise GivenUpError(late)
        return late

    def bury(self, child: Child, code: int, now: float) -> str:
        """Empty the place of a dead child and say what happened. GivenUpError: not worth another start."""
        child.kill()
        death = f"{self.role.name} ended with {_how(child, code)}; log: {self.log}"
        self.child = None
        self.answered = False
        if code == EXIT_CONFIG:
            raise GivenUpError(death, EXIT_CONFIG)
        if self.role.vital and not self.ever_answered:
            raise GivenUpError(death)
        self.deaths = [*(at for at in self.deaths if now - at < DEATHS_WINDOW_S), now]
        if len(self.deaths) >= DEATHS_MAX and not (self.role.replaced and (code < 0 or code == EXIT_REPLACE)):
            raise GivenUpError(f"{death}; that was death {len(self.deaths)} within {DEATHS_WINDOW_S:g} s")
        pause_s = backoff_s(len(self.deaths))
        self.due_at = now + pause_s
        return f"{death}; starting it again in {pause_s:g} s"


def _how(child: Child, code: int) -> str:
    """Tell how a child ended; a log tells nothing of a SIGKILL."""
    if code == -signal.SIGKILL:
        return "signal 9"
    return f"{f'signal {-code}' if code < 0 else f'code {code}'} ({child.complaint()})"


class Supervisor:
    """Roles, in the order of their start. `run` returns the exit code once every child has ended."""

    def __init__(self, roles: Sequence[Role], logs: Path, *, say: Say = print) -> None:
        self._posts = {role.name: Post(role, logs / f"{role.name}.log") for role in roles}
        self._say = say
        self._signals = 0

    def run(self, on_ready: Callable[[], None]) -> int:
        """Start, run until a signal, drain; ``on_ready`` is called once, when every role answers."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._hear)
        try:
            self._start()
            if not self._signals:
                on_ready()
            self._watch()
        except GivenUpError as lost:
            self._say(f"penstock: giving up: {lost}")
            return lost.code
        finally:
            self._drain()
        return 0

    @property
    def _in_haste(self) -> bool:
        return self._signals > 1

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _start(self) -> None:
        while not self._signals and not all(post.child and post.answered for post in self._posts.values()):
            self._step()

    def _watch(self) -> None:
        while not self._signals:
            self._step()

    def _drain(self) -> None:
        self._say("penstock: stopping" + (" (again Ctrl-C: at once)" if self._signals else ""))
        for post in reversed(self._posts.values()):
            self._end(post)
        self._say("penstock: stopped")

    def _step(self) -> None:
        """Bury what died, start what is due, ask what does not answer yet; then pause."""
        for post in self._posts.values():
            if news := self._attend(post, time.monotonic()):
                self._say(f"penstock: {news}")
        time.sleep(TICK_S)

    def _attend(self, post: Post, now: float) -> str | None:
        if post.child is None:
            if now >= post.due_at and self._has_what_it_needs(post):
                post.start(now)
            return None
        code = post.child.ended()
        return post.probe(now) if code is None else post.bury(post.child, code, now)

    def _has_what_it_needs(self, post: Post) -> bool:
        return all(self._posts[name].answered for name in post.role.needs if name in self._posts)

    def _end(self, post: Post) -> None:
        if post.child is None:
            return
        if not self._in_haste:
            post.child.terminate()
        end_at = time.monotonic() + post.role.drain_s
        while post.child.ended() is None and time.monotonic() < end_at and not self._in_haste:
            time.sleep(TICK_S / 2)
        if post.child.ended() is None:
            self._say(f"penstock: {post.role.name} had not ended: killed")
        post.child.kill()
        while post.child.ended() is None:  # SIGKILL was sent: this ends
            time.sleep(TICK_S / 10)
        post.child = None
