"""What a gateway knows of the system between two looks, and whose turn comes before whose."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.capacity import LOOK_S, Capacity, Line
from api.capacityview import LineView, PoolView, WindowView, WorkersView, capacity_view
from jobs.errors import StoreUnavailableError
from jobs.estimates import Pace, pace_of
from jobs.looks import LineSeen, PoolSeen, Seen
from jobs.settings import read_settings
from jobs.store import AsyncJobStore, Flow

LINE, BULK = "default/interactive/m/1", "default/bulk/m/1"
PACE = Pace(10.0, 0.5, 1.0, ((1.0, 2.0),) * 6)
WEIGHTS = {"a": 1.0, "b": 1.0, "c": 4.0, "d": 0.5}
FLOW = Flow.of(read_settings())
MEASURED = {"n": 100.0, "t": 1_000.0, "service": 40.0, "fill": 3.0}
"""A hundred jobs in a slot-second."""

Step: TypeAlias = tuple[str, int]
STEPS = st.lists(st.tuples(st.sampled_from([*WEIGHTS, ""]), st.integers(1, 5)), max_size=30)
"""A tenant submits so many jobs; "": the window takes so many."""


class Turns:
    """A line of the store, job by job: the turns of lib.lua and window.lua, in the plainest form."""

    def __init__(self, steps: Sequence[Step] = ()) -> None:
        self.now = 0.0
        self.next: dict[str, float] = {}
        self.waiting: list[tuple[float, int]] = []
        self._submitted = 0
        for tenant, count in steps:
            for _ in range(count):
                if tenant:
                    self.submit(tenant)
                else:
                    self.serve()

    def submit(self, tenant: str) -> tuple[float, int]:
        turn = max(self.now, self.next.get(tenant, 0.0))
        self.next[tenant] = turn + 1 / WEIGHTS[tenant]
        self._submitted += 1
        self.waiting.append((turn, self._submitted))
        return self.waiting[-1]

    def serve(self) -> None:
        if self.waiting:
            self.waiting.sort()
            self.now = max(self.now, self.waiting.pop(0)[0])
        if not self.waiting:
            self.next = {}

    def ahead_of_next(self, tenant: str) -> int:
        """How many go before the next job of ``tenant``: it is submitted, and all are served until its turn."""
        mine = self.submit(tenant)
        return sorted(self.waiting).index(mine)

    def seen(self) -> LineSeen:
        return LineSeen(len(self.waiting), self.now, dict(self.next), {}, [])


def _line(turns: Turns) -> Line:
    return Line("default/interactive/m/1", turns.seen(), PACE, paused=False)


def _capacity(seen: Seen | None = None) -> Capacity:
    capacity = Capacity(cast("AsyncJobStore", None), FLOW)
    if seen:
        capacity.learn(seen)
    return capacity


def _seen(**rest: Any) -> Seen:
    lines = {LINE: LineSeen(4, 0.0, {"a": 4.0}, MEASURED, []), BULK: LineSeen(2, 0.0, {"a": 2.0}, {}, [])}
    pools = {"default": PoolSeen(workers=2, slots=4, live=3, bulk=1)}
    return Seen(**{"lines": lines, "pools": pools, **rest})


# --- Whose turn comes before whose ---


def test_in_an_empty_line_nobody_is_ahead() -> None:
    assert _line(Turns()).ahead_of("a", WEIGHTS.__getitem__) == 0


@pytest.mark.parametrize("count", [1, 2, 10])
def test_a_tenant_alone_is_served_first_in_first_out(count: int) -> None:
    line = _line(Turns([("a", count)]))

    assert line.ahead_of("a", WEIGHTS.__getitem__) == count


def test_a_newcomer_does_not_wait_for_all_of_another_s_backlog() -> None:
    line = _line(Turns([("a", 100), ("", 20)]))

    assert line.ahead_of("b", WEIGHTS.__getitem__) <= 1
    assert line.ahead_of("a", WEIGHTS.__getitem__) == 80


def test_who_has_more_weight_has_fewer_ahead() -> None:
    line = _line(Turns([("a", 20), ("c", 4)]))

    assert line.ahead_of("c", WEIGHTS.__getitem__) < line.ahead_of("a", WEIGHTS.__getitem__)


@given(STEPS, st.sampled_from(list(WEIGHTS)))
def test_the_place_of_the_next_job_is_that_of_a_simulation_to_within_a_job_a_tenant(
    steps: list[Step], tenant: str
) -> None:
    turns = Turns(steps)

    estimated = _line(turns).ahead_of(tenant, WEIGHTS.__getitem__)
    tenants = len(turns.next.keys() | {tenant})
    assert estimated == pytest.approx(turns.ahead_of_next(tenant), abs=tenants)


@given(STEPS, st.sampled_from(list(WEIGHTS)))
def test_nobody_has_more_ahead_than_wait(steps: list[Step], tenant: str) -> None:
    turns = Turns(steps)

    assert 0 <= _line(turns).ahead_of(tenant, WEIGHTS.__getitem__) <= len(turns.waiting)


@given(STEPS, st.lists(st.sampled_from(list(WEIGHTS)), max_size=20), st.sampled_from(list(WEIGHTS)))
def test_what_is_let_in_between_looks_counts_as_the_next_look_will_see_it(
    steps: list[Step], since: list[str], tenant: str
) -> None:
    turns = Turns(steps)
    carried_on = _line(turns)
    for each in since:
        carried_on.let_in(each, WEIGHTS[each])
        turns.submit(each)

    looked_again = _line(turns)
    assert carried_on.waiting == looked_again.waiting
    assert carried_on.turns == pytest.approx(looked_again.turns)
    assert carried_on.ahead_of(tenant, WEIGHTS.__getitem__) == pytest.approx(
        looked_again.ahead_of(tenant, WEIGHTS.__getitem__)
    )


def test_a_look_is_not_changed_by_what_is_let_in_after_it() -> None:
    seen = LineSeen(1, 0.0, {"a": 1.0}, {}, [])
    Line("default/interactive/m/1", seen, PACE, paused=False).let_in("a", 1.0)

    assert (seen.waiting, seen.turns) == (1, {"a": 1.0})


# --- Lines, pools and tenants ---


def test_before_the_first_look_nothing_is_known() -> None:
    capacity = _capacity()

    assert capacity.open_jobs == 0
    assert capacity.estimate(LINE, 0) is None
    assert capacity.slots(LINE) == 0
    assert capacity.to_drain_s("interactive") == 0.0


def test_a_job_that_is_let_in_counts_until_the_next_look() -> None:
    capacity = _capacity(_seen(open_jobs=6, open_by_tenant={"a": 6}))

    capacity.let_in(LINE, "a", 1.0, waits=True)
    capacity.let_in("default/interactive/new/1", "b", 1.0, waits=True)
    assert capacity.open_jobs == 8
    assert capacity.open_by_tenant == {"a": 7, "b": 1}
    assert capacity.lines[LINE].waiting == 5

    capacity.learn(_seen(open_jobs=5, open_by_tenant={"a": 5}))
    assert (capacity.open_jobs, capacity.open_by_tenant) == (5, {"a": 5})
    assert capacity.lines[LINE].waiting == 4


def test_an_estimate_takes_the_pace_of_the_line_and_the_slots_of_its_pool() -> None:
    capacity = _capacity(_seen())

    found = capacity.estimate(LINE, 40)

    assert capacity.lines[LINE].pace == pace_of(MEASURED, [], 4, FLOW.jobs_max, FLOW.slice_us)
    assert found is not None
    assert found.finish_in_s == pytest.approx(40 / 400 + 0.04)


def test_a_paused_line_and_one_that_nobody_knows_have_no_estimate() -> None:
    capacity = _capacity(_seen(paused=frozenset({"m"})))

    assert capacity.is_paused(LINE)
    assert capacity.estimate(LINE, 0) is None
    assert capacity.estimate("default/interactive/other/1", 0) is None
    assert not capacity.is_paused("default/interactive/other/1")


def test_interactive_jobs_of_another_pool_do_not_hold_back_bulk() -> None:
    slots = PoolSeen(workers=1, slots=1, live=0, bulk=0)
    capacity = _capacity(_seen(pools=dict.fromkeys(("default", "gpu", "def"), slots)))

    assert capacity.waiting_reason("default/bulk/m/1") == "bulk-window"
    assert capacity.waiting_reason("gpu/bulk/m/1") == "ahead-in-queue"
    assert capacity.waiting_reason("def/bulk/m/1") == "ahead-in-queue"


def test_a_lane_has_drained_when_its_slowest_line_has() -> None:
    slow = LineSeen(4, 0.0, {}, {"n": 10.0, "t": 20_000.0}, [])
    capacity = _capacity(_seen(lines={LINE: LineSeen(4, 0.0, {}, MEASURED, []), "default/interactive/s/1": slow}))

    assert capacity.to_drain_s("interactive") == pytest.approx(2.0)
    assert capacity.to_drain_s("bulk") == 0.0


def test_a_lane_with_a_line_that_stands_still_never_drains() -> None:
    assert _capacity(_seen()).to_drain_s("bulk") is None
    assert _capacity(_seen(pools={})).to_drain_s("interactive") is None


class Looked:
    """A store that answers looks, or fails them."""

    def __init__(self, *answers: Seen | BaseException) -> None:
        self._answers = list(answers)

    async def run(self, _: object) -> Seen:
        answer = self._answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def test_while_the_store_is_away_the_last_look_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[tuple[float, int]] = []
    store = Looked(Seen(open_jobs=1), StoreUnavailableError("away"), Seen(open_jobs=3), asyncio.CancelledError())
    capacity = Capacity(cast("AsyncJobStore", store), FLOW)

    async def pause(seconds: float) -> None:
        pauses.append((seconds, capacity.open_jobs))

    monkeypatch.setattr(asyncio, "sleep", pause)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(capacity.watch())

    assert pauses == [(LOOK_S, 1), (LOOK_S, 1), (LOOK_S, 3)]


# --- GET /capacity ---


def test_the_view_tells_all_of_it() -> None:
    view = capacity_view(_capacity(_seen(open_jobs=6, starting=1)), 100)

    assert (view.open_jobs, view.open_jobs_max) == (6, 100)
    assert view.workers == WorkersView(ready=2, starting=1)
    assert view.pools == [PoolView("default", 2, 4, WindowView(3, 1))]
    assert view.lines == [
        LineView("m", 1, "bulk", "default", 2, False, None, 0.02, 0.0, None),
        LineView("m", 1, "interactive", "default", 4, False, 400.0, 0.04, 3.0, 0.01),
    ]
    assert view.jobs_per_s == 400.0
    assert view.seconds_to_drain == {"interactive": 0.01, "bulk": None}


def test_a_line_in_which_nobody_waits_has_drained() -> None:
    idle = {LINE: LineSeen(0, 0.0, {}, {}, [])}
    view = capacity_view(_capacity(_seen(lines=idle, pools={})), 100)

    assert view.lines[0].seconds_to_drain == 0.0
    assert view.jobs_per_s == 0.0


def test_a_paused_line_is_told_so() -> None:
    view = capacity_view(_capacity(_seen(paused=frozenset({"m"}))), 100)

    assert all(line.paused for line in view.lines)
