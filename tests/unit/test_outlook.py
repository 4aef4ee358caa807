"""What a job that waits is told: its place, what it waits for, and when to ask again."""

from __future__ import annotations

from typing import Any, cast

import pytest

from api.capacity import RETRY_S_MAX, Capacity
from api.outlook import PROCESSING, RETRY_AFTER_S, EstimateView, Outlook, Queue, outlook
from jobs.commands import IN_RETRY, IN_WINDOW, View
from jobs.looks import LineSeen, PoolSeen, Seen
from jobs.records import SCHEMA, Head, Lane
from jobs.settings import read_settings
from jobs.store import AsyncJobStore, Flow

SERVED = {"default": PoolSeen(workers=1, slots=1, live=1, bulk=0)}
PACED = {"n": 10.0, "t": 10_000.0, "service": 0.0}
"""A job a second, at one slot."""


def _view(place: int = 3, lane: Lane = "interactive", state: str = "queued") -> View:
    head = Head(SCHEMA, "acme", "m", 2, lane, 1, 2, 3, "a/b", b"sha")
    return View(state, b"", head, place=place, line=f"default/{lane}/m/2")


def _capacity(waiting: int = 0, lane: Lane = "interactive", **rest: Any) -> Capacity:
    capacity = Capacity(cast("AsyncJobStore", None), Flow.of(read_settings()))
    lines = {"default/interactive/m/2": LineSeen(waiting, 0.0, {}, PACED, [])}
    if lane == "bulk":
        lines["default/bulk/m/2"] = LineSeen(0, 0.0, {}, PACED, [])
    capacity.learn(Seen(**{"lines": lines, "pools": SERVED, **rest}))
    return capacity


# --- Where it stands ---


@pytest.mark.parametrize("place", [0, 1, 41])
def test_a_position_counts_from_1_and_says_how_many_are_ahead(place: int) -> None:
    assert outlook(_view(place), _capacity()).queue == Queue(place + 1, place, "interactive")


@pytest.mark.parametrize("place", [IN_WINDOW, IN_RETRY])
def test_a_job_that_stands_in_no_line_has_nobody_ahead(place: int) -> None:
    assert outlook(_view(place), _capacity()).queue == Queue(1, 0, "interactive")


def test_a_job_that_runs_is_only_told_when_to_ask_again() -> None:
    assert outlook(_view(state="processing"), _capacity()) is PROCESSING
    assert Outlook(RETRY_AFTER_S, None, None, None) == PROCESSING


# --- What it waits for ---


@pytest.mark.parametrize(
    ("reason", "view", "known"),
    [
        ("ahead-in-queue", _view(), {}),
        ("ahead-in-queue", _view(IN_WINDOW), {}),
        ("no-worker", _view(), {"pools": {}}),
        ("worker-starting", _view(), {"pools": {}, "starting": 1}),
        ("retry-backoff", _view(IN_RETRY), {}),
        ("paused", _view(), {"paused": frozenset({"m"})}),
        ("bulk-window", _view(lane="bulk"), {"waiting": 1}),
        ("ahead-in-queue", _view(lane="bulk"), {"waiting": 0}),
        ("ahead-in-queue", _view(), {"waiting": 1}),
    ],
)
def test_a_queued_job_is_told_what_it_waits_for(reason: str, view: View, known: dict[str, Any]) -> None:
    assert outlook(view, _capacity(**known)).waiting_reason == reason


@pytest.mark.parametrize(
    ("reason", "view", "known"),
    [
        ("retry-backoff", _view(IN_RETRY), {"paused": frozenset({"m"}), "pools": {}}),
        ("paused", _view(), {"paused": frozenset({"m"}), "pools": {}, "starting": 1}),
        ("no-worker", _view(lane="bulk"), {"waiting": 1, "pools": {}}),
    ],
)
def test_of_several_reasons_the_one_that_holds_longest_is_told(
    reason: str, view: View, known: dict[str, Any]
) -> None:
    assert outlook(view, _capacity(**known)).waiting_reason == reason


def test_a_pool_without_slots_has_no_worker() -> None:
    empty = {"default": PoolSeen(workers=0, slots=0, live=0, bulk=0)}

    assert outlook(_view(), _capacity(pools=empty)).waiting_reason == "no-worker"


# --- When to ask again ---


def test_it_is_asked_again_when_half_of_such_jobs_have_ended() -> None:
    told = outlook(_view(7), _capacity())

    assert told.estimate == EstimateView(7.0, 14.0)
    assert (told.retry_after_s, told.retry_after) == (7.0, 7)


@pytest.mark.parametrize(("place", "header"), [(0, 1), (1, 1), (2, 2), (10_000, 300)])
def test_the_header_has_whole_seconds_from_1_to_300(place: int, header: int) -> None:
    assert outlook(_view(place), _capacity()).retry_after == header


def test_a_second_that_has_begun_counts_whole_in_the_header() -> None:
    assert Outlook(retry_after_s=2.001).retry_after == 3


@pytest.mark.parametrize("place", [0, 10_000])
def test_when_to_ask_again_is_bounded(place: int) -> None:
    assert RETRY_AFTER_S <= outlook(_view(place), _capacity()).retry_after_s <= RETRY_S_MAX


@pytest.mark.parametrize("known", [{"pools": {}}, {"paused": frozenset({"m"})}, {"lines": {}}])
def test_what_cannot_be_known_is_not_told(known: dict[str, Any]) -> None:
    told = outlook(_view(7), _capacity(**known))

    assert told.estimate is None
    assert (told.retry_after_s, told.retry_after) == (RETRY_AFTER_S, 1)
    assert told.queue == Queue(8, 7, "interactive")


def test_between_two_attempts_nothing_is_estimated() -> None:
    assert outlook(_view(IN_RETRY), _capacity()).estimate is None
