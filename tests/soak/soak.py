"""One soak: measure what the system can do, load it with 60 % of that, disturb it once, let it drain, judge it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from tests.faults.watchers import Endings
from tests.soak import judge
from tests.soak.judge import Growth, Latency, Level, Trend
from tests.soak.keys import Census, census
from tests.soak.load import Ledger, Load
from tests.soak.mix import Mix
from tests.soak.soak_system import RETENTION_S, SoakSystem
from tests.soak.vitals import Sample, Vitals, Who, look_at
from tests.waiting import wait_until

SHARE: Final = 0.6
"""Of the measured capacity."""
QUIET_S: Final = 60.0
"""How long after the last job its record, and what workers that ended left, may stay; retention included."""
REST_S: Final = 8.0
"""After this every connection that a client left open has been closed by the gateway."""
TRANSIENT: Final = (
    "job:",
    "line:",
    "lines:",
    "suspects",
    "retries",
    "dead-letters",
    "deadlines",
    "microbatch:",
    "live:",
)
"""Keys that are gone when nothing is under way and nothing is kept."""


class Plan(NamedTuple):
    """The phases of a soak of ``seconds`` of load."""

    seconds: float

    @property
    def capacity_s(self) -> float:
        """How long its capacity is measured."""
        return min(15.0, max(5.0, self.seconds / 40))

    @property
    def disturbed_at_s(self) -> float:
        """When broker and workers are restarted, one after another."""
        return self.seconds / 6

    @property
    def judged_from_s(self) -> float:
        """From when on memory is judged, where the last restart is over for `warm_up_s`."""
        return self.seconds / 3

    @property
    def warm_up_s(self) -> float:
        """How long a process may still be finding its size."""
        return self.seconds / 10

    @property
    def sample_s(self) -> float:
        """How often the processes are looked at."""
        return min(5.0, max(0.5, self.seconds / 600))

    @property
    def window_s(self) -> float:
        """The windows whose p95s are compared."""
        return min(10.0, max(1.0, self.seconds / 60))


class Disturbance(msgspec.Struct, frozen=True):
    """What was restarted, and when: seconds since the load began."""

    what: str
    begin_s: float
    end_s: float


class Verdict(msgspec.Struct):
    """What a soak found: figures, and by promise what broke it."""

    breaches: dict[str, list[str]]
    figures: dict[str, Any]

    def __str__(self) -> str:
        return "\n".join(f"{name}: {each}" for name, found in self.breaches.items() for each in found)


class Soak:
    """Runs once, from the main thread (the kernel ends a process with the thread that started it)."""

    def __init__(self, system: SoakSystem, seconds: float) -> None:
        self.plan = Plan(seconds)
        self._system = system
        self._mix = Mix()
        self._vitals = Vitals(system, self.plan.sample_s)
        self._endings = Endings(system)
        self._disturbances: list[Disturbance] = []
        self._breaches: defaultdict[str, list[str]] = defaultdict(list)
        self._started = self._ended = 0.0
        """When the open loop began and ended, monotonic."""

    def run(self) -> Verdict:
        """All phases; the verdict."""
        capacity = self._capacity()
        self._wait_quiet()
        rest, keys = self._at_rest(), census(self._system.redis, self._system.namespace)
        with self._endings, self._vitals:
            load = Load(self._system, self._mix).start(SHARE * capacity)
            self._started = time.monotonic()
            self._disturb()
            self._wait_for_the_end()
            load.stop()
        self._vitals.write(self._system.folder / "vitals.json")
        ledger = load.ledger
        self._look_for_left(ledger)
        self._wait_quiet()
        figures = {
            "seconds": round(self._ended - self._started, 1),
            "capacity_jobs_s": round(capacity, 1),
            "rate_jobs_s": round(SHARE * capacity, 1),
            "disturbances": [msgspec.to_builtins(each) for each in self._disturbances],
            "processes": self._judge_processes(),
            "store_connections": self._judge_connections(),
            "at_rest": self._judge_rest(rest, self._at_rest()),
            "latency": self._judge_latency(ledger),
            "keys": self._judge_keys(keys, census(self._system.redis, self._system.namespace)),
            **self._judge_jobs(ledger),
        }
        return Verdict(dict(self._breaches), figures)

    # --- Phases ---

    def _capacity(self) -> float:
        """What the same mix reaches in a closed loop, once it is warm; jobs a second."""
        load = Load(self._system, self._mix)
        load.closed(self.plan.capacity_s / 3)
        return load.closed(self.plan.capacity_s)

    def _disturb(self) -> None:
        """Restart the broker, then each worker."""
        workers = [(each.folder.name, partial(self._system.restart, each)) for each in self._system.workers]
        steps: list[tuple[str, Callable[[], None]]] = [("broker", self._system.restart_broker), *workers]
        time.sleep(self.plan.disturbed_at_s)
        for what, restart in steps:
            begin = time.monotonic()
            restart()
            self._disturbances.append(
                Disturbance(what, self._since_start(begin), self._since_start(time.monotonic()))
            )

    def _wait_for_the_end(self) -> None:
        """Where restarts took long for a short soak, it becomes longer: half of it is there to be judged."""
        self._ended = max(self._started + self.plan.seconds, self._judged_from + self.plan.seconds / 2)
        time.sleep(self._ended - time.monotonic())

    def _since_start(self, at: float) -> float:
        return round(at - self._started, 2)

    def _wait_quiet(self) -> None:
        """Wait until what ends has ended and what is kept is gone; what stays is found by the judgement of keys."""
        try:
            wait_until(lambda: not self._transient(), QUIET_S)
        except AssertionError:
            return
        time.sleep(REST_S)

    def _transient(self) -> bool:
        prefix = f"{self._system.namespace}:"
        names = (key.decode().removeprefix(prefix) for key in self._system.redis.scan_iter(f"{prefix}*", 1000))
        workers = int(self._system.redis.zcard(f"{prefix}workers-seen"))
        return workers > len(self._system.workers) or any(name.startswith(TRANSIENT) for name in names)

    def _at_rest(self) -> dict[str, Sample]:
        port = self._system.port
        return {role.folder.name: look_at(role.pid, port) for role in self._system.roles}

    def _look_for_left(self, ledger: Ledger) -> None:
        """Jobs whose clients went are followed by nobody; they must end too, and soon."""
        deadlines = f"{self._system.namespace}:deadlines"
        try:
            wait_until(lambda: self._system.redis.zcard(deadlines) == 0, RETENTION_S)
        except AssertionError:
            left: Any = self._system.redis.zrange(deadlines, 0, -1)
            for task_id in {each.decode() for each in left} - ledger.known:
                ledger.tally.blame("lost", f"job {task_id}, whose client went")

    # --- Judgements ---

    @property
    def _calm_until(self) -> float:
        return self._started + self.plan.disturbed_at_s

    @property
    def _judged_from(self) -> float:
        over = self._started + self._disturbances[-1].end_s + self.plan.warm_up_s
        return max(self._started + self.plan.judged_from_s, over)

    @property
    def _last_third(self) -> float:
        return self._ended - self.plan.seconds / 3

    def _judge_processes(self) -> dict[str, Any]:
        """Memory, descriptors and threads of each process that lived to the end."""
        living = [Who(role.folder.name, role.pid) for role in self._system.roles]
        return {who.role: self._judge_process(who) for who in living}

    def _judge_process(self, who: Who) -> dict[str, Any]:
        samples = self._vitals.samples[who]
        judged = [each for each in samples if self._judged_from <= each.at <= self._ended]
        grown = judge.growth([each.at for each in judged], [each.own_bytes for each in judged])
        if grown.is_leak:
            self._breaches["memory"].append(f"{who.role} {_megabytes(grown)}")
        at = [each.at for each in judged]
        trends = {
            "descriptors": judge.trend(at, [each.descriptors for each in judged]),
            "threads": judge.trend(at, [each.threads for each in judged]),
        }
        for name, found in trends.items():
            self._judge_trend(name, who.role, found)
        return {
            "samples": len(judged),
            "memory": {**msgspec.to_builtins(grown), "unnoticed_bytes_s": grown.unnoticed_bytes_s},
            **msgspec.to_builtins(trends),
        }

    def _judge_trend(self, what: str, whose: str, found: Trend) -> None:
        if not found.is_flat:
            self._breaches[what].append(f"{whose}: {found.median:g}, rose by more than {found.rose:.1f}")

    def _judge_connections(self) -> dict[str, Any]:
        """How many the store has, under load; at rest they show as descriptors of the processes."""
        seen = [each for each in self._vitals.connections if self._judged_from <= each[0] <= self._ended]
        found = judge.trend([at for at, _ in seen], [count for _, count in seen])
        self._judge_trend("connections", "the store's clients", found)
        return dict(msgspec.to_builtins(found))

    def _judge_level(self, what: str, whose: str, found: Level) -> None:
        if not found.is_flat:
            self._breaches[what].append(f"{whose}: {found.before:g}, at the end {found.after:g}")

    def _judge_rest(self, before: dict[str, Sample], after: dict[str, Sample]) -> dict[str, Any]:
        """Without load, each role holds what it held before it."""
        for role, sample in after.items():
            for name in ("descriptors", "threads", "clients"):
                self._judge_level(name, f"{role} at rest", Level(getattr(before[role], name), getattr(sample, name)))
        names = ("own_bytes", "descriptors", "threads", "clients")
        return {
            role: {name: [getattr(before[role], name), getattr(sample, name)] for name in names}
            for role, sample in after.items()
        }

    def _judge_latency(self, ledger: Ledger) -> dict[str, Any]:
        at, seconds, window_s = ledger.due_at, ledger.latency_s, self.plan.window_s
        first = judge.window_p95s(at, seconds, self._started, self._calm_until, window_s)
        last = judge.window_p95s(at, seconds, self._last_third, self._ended, window_s)
        found: Latency = judge.latency(first, last)
        if found.is_worse:
            self._breaches["latency"].append(
                f"p95 {found.first_s * 1000:.1f} ms, at the end {found.last_s * 1000:.1f} ms: "
                f"{found.ratio:.2f} times, surely more than {found.low:.2f}"
            )
        return {**msgspec.to_builtins(found), "window_s": window_s, "windows": [len(first), len(last)]}

    def _judge_keys(self, before: Census, after: Census) -> dict[str, Any]:
        if found := judge.key_breaches(before.sizes, after.sizes, after.without_ttl):
            self._breaches["keys"] += [f"{len(found)} in all", *found[:12]]
        return {
            "before": before.kinds(),
            "after": after.kinds(),
            "without_ttl": len(after.without_ttl),
            "used_bytes": [before.used_bytes, after.used_bytes],
        }

    def _judge_jobs(self, ledger: Ledger) -> dict[str, Any]:
        tally = ledger.tally
        for task_id in self._endings.doubled:
            tally.blame("doubled", task_id)
        tally.orphans = len(self._endings.at.keys() - ledger.known)
        for name in ("lost", "wrong", "unexpected", "doubled", "faulty_answers", "unsent"):
            if count := getattr(tally, name):
                examples = [each for each in tally.examples if each.startswith(name)]
                self._breaches[name] += [str(count), *examples]
        return tally.document()


def _megabytes(grown: Growth) -> str:
    day = judge.DAY_S / 1e6
    return (
        f"of {grown.median_bytes / 1e6:.1f} MB: {grown.slope_bytes_s * day:.0f} MB a day, surely more than "
        f"{grown.low_bytes_s * day:.0f} (allowed {grown.allowed_bytes / 1e6:.0f}); "
        f"rose by {grown.rise_bytes / 1e6:.1f} MB in {grown.seconds:.0f} s"
    )
