"""Who is let in: the estimated wait, room, and the quotas that the store refused just now."""

from __future__ import annotations

from typing import Any, cast

import pytest
import redis.asyncio

from api.access import EVERYBODY, Access
from api.admission import HOLD_S_MAX, JITTER, MARGIN, OPEN_HOLD_S, Admission, Quota
from api.capacity import RETRY_S_MAX, Capacity
from api.tenants import Tenants
from jobs.errors import DeadlineUnreachableError, PenstockError, QueueFullError, QuotaExceededError
from jobs.estimates import Estimate
from jobs.looks import LineSeen, PoolSeen, Seen
from jobs.settings import read_settings
from jobs.store import AsyncJobStore, Flow
from jobs.submits import Left, Note
from jobs.tenants import Tenant
from tests.unit.clock import Clock

LINE = "default/interactive/m/1"
ONE_SLOT = {"default": PoolSeen(workers=1, slots=1, live=1, bulk=0)}
A_JOB_A_SECOND = {"n": 10.0, "t": 10_000.0, "service": 0.0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("api.admission.time", clock)
    return clock


def _seen(waiting: int = 0, **rest: Any) -> Seen:
    line = LineSeen(waiting, 0.0, {"busy": float(waiting)}, A_JOB_A_SECOND, [])
    return Seen(**{"lines": {LINE: line}, "pools": ONE_SLOT, **rest})


def _admission(seen: Seen | None = None, *tenants: Tenant, **settings: Any) -> Admission:
    capacity = Capacity(cast("AsyncJobStore", None), Flow.of(read_settings()))
    if seen:
        capacity.learn(seen)
    known = Tenants(cast("redis.asyncio.Redis", None), "t")
    known.known = {tenant.name: tenant for tenant in tenants}
    return Admission(read_settings(**settings), capacity, known)


def _refused(
    admission: Admission, tenant: str = "busy", ttl_s: float = 1e9, *, always: bool = False
) -> PenstockError:
    with pytest.raises(PenstockError) as refused:
        admission.judge(tenant, LINE, ttl_s, always=always)
    return refused.value


# --- The wait ---


def test_a_job_is_let_in_with_the_estimate_of_its_end() -> None:
    assert _admission(_seen(10)).judge("busy", LINE, 60, always=False) == Estimate(4, 10.0, 10.0, 20.0)


def test_a_job_whose_deadline_would_pass_is_refused_until_the_wait_is_short_enough() -> None:
    admission = _admission(_seen(10))

    refused = _refused(admission, ttl_s=20)

    assert isinstance(refused, DeadlineUnreachableError)
    assert (refused.status, refused.retryable) == (503, True)
    assert refused.retry_after_s == pytest.approx(20 * MARGIN - 20, rel=JITTER)
    assert "10.0 s" in refused.detail
    assert "20 s" in refused.detail


@pytest.mark.parametrize(("ttl_s", "let_in"), [(20 * MARGIN, True), (20 * MARGIN - 0.1, False)])
def test_the_90th_percentile_with_a_margin_must_be_before_the_deadline(ttl_s: float, let_in: Any) -> None:
    admission = _admission(_seen(10))

    if let_in:
        assert admission.judge("busy", LINE, ttl_s, always=False)
    else:
        _refused(admission, ttl_s=ttl_s)


def test_a_job_that_asks_for_it_is_let_in_whatever_the_wait() -> None:
    assert _admission(_seen(10)).judge("busy", LINE, 1, always=True) == Estimate(4, 10.0, 10.0, 20.0)


def test_a_tenant_with_nothing_in_the_line_is_let_in_where_another_s_backlog_is_too_long() -> None:
    admission = _admission(_seen(1_000))

    _refused(admission, "busy", ttl_s=60)
    assert admission.judge("other", LINE, 60, always=False) == Estimate(0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "seen",
    [None, _seen(10, pools={}), _seen(10, paused=frozenset({"m"})), _seen(10, lines={})],
    ids=["nothing was seen", "no worker", "paused", "the model never ran"],
)
def test_where_nothing_is_known_a_job_is_let_in_without_an_estimate(seen: Seen | None) -> None:
    assert _admission(seen).judge("busy", LINE, 0.001, always=False) is None


def test_where_nobody_waits_a_job_is_let_in_however_long_its_model_took_lately() -> None:
    """Else a model that was slow once, and is asked for with short deadlines only, would be refused for ever."""
    slow = LineSeen(0, 0.0, {}, A_JOB_A_SECOND | {"service": 60_000.0}, [])
    admission = _admission(_seen(lines={LINE: slow}))

    assert admission.judge("busy", LINE, 1, always=False) == Estimate(5, 60.0, 60.0, 120.0)
    admission.let_in("busy", LINE)
    assert isinstance(_refused(admission, ttl_s=1), DeadlineUnreachableError)


def test_what_was_let_in_since_the_last_look_makes_the_wait_longer() -> None:
    admission = _admission(_seen(10))
    for _ in range(5):
        admission.let_in("busy", LINE)

    assert admission.judge("busy", LINE, 60, always=False) == Estimate(4, 15.0, 15.0, 30.0)


# --- Room ---


@pytest.mark.parametrize("always", [False, True])
def test_beyond_the_bound_of_open_jobs_nobody_is_let_in(*, always: bool) -> None:
    admission = _admission(_seen(open_jobs=100, open_by_tenant={"busy": 100}), queue_jobs_max=100)

    for tenant in ("busy", "other"):
        refused = _refused(admission, tenant, always=always)
        assert isinstance(refused, QueueFullError)
        assert refused.retry_after_s is not None
        assert 1 <= refused.retry_after_s <= RETRY_S_MAX


def test_near_the_bound_a_tenant_gets_no_more_than_its_share() -> None:
    admission = _admission(_seen(open_jobs=90, open_by_tenant={"busy": 80, "other": 10}), queue_jobs_max=100)

    assert isinstance(_refused(admission, "busy"), QueueFullError)
    assert admission.judge("other", LINE, 60, always=False)
    assert admission.judge("new", LINE, 60, always=False)


def test_far_from_the_bound_a_tenant_may_have_more_than_its_share() -> None:
    admission = _admission(_seen(open_jobs=79, open_by_tenant={"busy": 78, "other": 1}), queue_jobs_max=100)

    assert admission.judge("busy", LINE, 60, always=False)


def test_a_share_goes_by_weight() -> None:
    seen = _seen(open_jobs=80, open_by_tenant={"busy": 60, "other": 20})

    assert _admission(seen, Tenant("busy", weight=4), queue_jobs_max=100).judge("busy", LINE, 60, always=False)
    assert isinstance(_refused(_admission(seen, queue_jobs_max=100), "busy"), QueueFullError)


def test_a_tenant_alone_is_refused_from_four_fifths_on_so_that_another_finds_room() -> None:
    admission = _admission(_seen(open_jobs=79, open_by_tenant={"busy": 79}), queue_jobs_max=100)

    assert admission.judge("busy", LINE, 1e9, always=False)
    admission.let_in("busy", LINE)
    assert isinstance(_refused(admission, "busy", always=True), QueueFullError)
    for _ in range(20):
        assert admission.judge("other", LINE, 1e9, always=False)
        admission.let_in("other", LINE)
    assert isinstance(_refused(admission, "other"), QueueFullError)


def test_a_tenant_alone_leaves_room_whatever_its_weight() -> None:
    admission = _admission(
        _seen(open_jobs=89, open_by_tenant={"busy": 89}), Tenant("busy", weight=9), queue_jobs_max=100
    )

    assert admission.judge("busy", LINE, 1e9, always=False)
    admission.let_in("busy", LINE)
    assert isinstance(_refused(admission, "busy"), QueueFullError)
    assert admission.judge("other", LINE, 1e9, always=False)


def test_where_nobody_else_can_come_the_tenant_of_all_may_fill_everything() -> None:
    admission = _admission(_seen(open_jobs=99, open_by_tenant={EVERYBODY: 99}), queue_jobs_max=100)

    assert admission.judge(EVERYBODY, LINE, 1e9, always=False)
    admission.let_in(EVERYBODY, LINE)
    assert isinstance(_refused(admission, EVERYBODY), QueueFullError)


def test_the_tenant_of_all_is_who_calls_while_there_are_no_keys() -> None:
    access = Access(cast("redis.asyncio.Redis", None), "t")

    assert access.caller(None, ("127.0.0.1", 8000)).tenant == EVERYBODY


def test_beside_another_the_tenant_of_all_gets_a_share_as_any() -> None:
    admission = _admission(_seen(open_jobs=80, open_by_tenant={EVERYBODY: 79, "other": 1}), queue_jobs_max=100)

    assert isinstance(_refused(admission, EVERYBODY), QueueFullError)
    assert admission.judge("other", LINE, 1e9, always=False)


@pytest.mark.parametrize(
    ("own", "most", "used", "full"),
    [
        (0, 0, 10**12, False),
        (0, 1_000, 900, False),
        (0, 1_000, 901, True),
        (500, 1_000, 501, True),
        (500, 0, 500, False),
        (2_000, 1_000, 1_500, False),
    ],
    ids=["no bound", "at nine tenths", "beyond", "beyond its own", "at its own", "its own counts"],
)
def test_a_store_near_its_memory_s_bound_takes_no_jobs(own: int, most: int, used: int, full: Any) -> None:
    admission = _admission(_seen(), store_bytes_max=own)
    admission.learn_memory(used, most)

    assert admission.store_full is full
    if full:
        assert isinstance(_refused(admission, always=True), QueueFullError)
    else:
        assert admission.judge("busy", LINE, 60, always=False)


# --- Quotas ---


def test_a_tenant_over_its_rate_is_told_when_its_next_job_may_come(clock: Clock) -> None:
    admission = _admission(_seen(), Tenant("busy", rate=0.1, burst=3))

    refused = admission.refusal("busy", Note("rate", wait_ms=8_000))

    assert isinstance(refused, QuotaExceededError)
    assert (refused.status, refused.retryable) == (429, True)
    assert refused.retry_after_s == pytest.approx(8, rel=JITTER)
    assert "0.1 jobs a second (and 3 at once)" in refused.detail
    assert clock.now_s == 1_000


def test_a_tenant_with_too_many_open_jobs_is_told_how_many_there_may_be(clock: Clock) -> None:
    refused = _admission(_seen(), Tenant("busy", open_max=7)).refusal("busy", Note("open"))

    assert isinstance(refused, QuotaExceededError)
    assert refused.detail.startswith("7 of your jobs")
    assert refused.retry_after_s is not None
    assert 1 <= refused.retry_after_s <= 1 + JITTER
    assert clock.now_s == 1_000


@pytest.mark.parametrize(
    ("note", "held_s"),
    [
        (Note("rate", wait_ms=8_000), HOLD_S_MAX),
        (Note("rate", wait_ms=200), 0.2),
        (Note("open"), OPEN_HOLD_S),
    ],
)
def test_who_was_refused_is_refused_again_for_a_moment_without_asking_the_store(
    clock: Clock, note: Note, held_s: float
) -> None:
    admission = _admission(_seen(), Tenant("busy", rate=0.1))
    said = admission.refusal("busy", note)

    clock.now_s += held_s - 0.01
    again = _refused(admission, "busy", always=True)
    assert isinstance(again, QuotaExceededError)
    assert again.detail == said.detail
    assert admission.judge("other", LINE, 60, always=False)

    clock.now_s += 0.02
    assert admission.judge("busy", LINE, 60, always=False)


def test_those_who_are_refused_together_are_not_told_to_come_back_together(clock: Clock) -> None:
    admission = _admission(_seen(), Tenant("busy", rate=0.1))
    admission.refusal("busy", Note("rate", wait_ms=100_000))

    told = {_refused(admission).retry_after_s for _ in range(20)}

    assert len(told) > 1
    assert all(each is not None and 75 <= each <= 125 for each in told)
    assert clock.now_s == 1_000


def test_nobody_is_sent_away_for_longer_than_five_minutes() -> None:
    assert _admission(_seen()).refusal("busy", Note("rate", wait_ms=10**9)).retry_after_s == RETRY_S_MAX


def test_a_tenant_with_a_rate_is_told_where_it_stands() -> None:
    admission = _admission(_seen(), Tenant("rated", rate=2, burst=10), Tenant("open", open_max=3))
    left = Left(4, 3_000)
    admission.learn({"rated": left, "gone": left})

    assert admission.quota("rated") == Quota(burst=10, window_s=5.0, left=left)
    assert admission.quota("open") is None
    assert admission.quota("gone") is None
    assert admission.quota("nobody") is None


def test_until_the_store_has_counted_nothing_is_told_of_a_rate() -> None:
    assert _admission(_seen(), Tenant("rated", rate=2, burst=10)).quota("rated") is None
