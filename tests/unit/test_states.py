"""The one table of states, walked pair by pair."""

from __future__ import annotations

import itertools

import pytest

from jobs.states import ENDS, TERMINAL, TRANSITIONS, Event, State, move

Q, P, C, F, X, N = State
"""queued, processing, completed, failed, expired, cancelled."""

EXPECTED: dict[State, dict[Event, State]] = {
    Q: {Event.START: P, Event.EXPIRE: X, Event.CANCEL: N},
    P: {
        Event.START: P,
        Event.COMPLETE: C,
        Event.FAIL: F,
        Event.RETRY: Q,
        Event.LOSE: Q,
        Event.EXPIRE: X,
        Event.CANCEL: N,
    },
    C: {},
    F: {Event.REPLAY: Q},
    X: {Event.REPLAY: Q},
    N: {},
}
COMMANDS = {Event.REPLAY}
"""What only a person does."""


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_event_leads_from_every_state_where_the_rules_say(state: State, event: Event) -> None:
    assert move(state, event) == EXPECTED[state].get(event)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(TERMINAL, set(Event) - COMMANDS)))
def test_no_delivery_leaves_a_terminal_state(state: State, event: Event) -> None:
    assert move(state, event) is None


def test_the_states_that_are_not_terminal_are_those_that_a_job_passes_through() -> None:
    assert set(State) - TERMINAL == {State.QUEUED, State.PROCESSING}


def test_every_open_state_can_expire_and_be_cancelled() -> None:
    for state in set(State) - TERMINAL:
        assert move(state, Event.EXPIRE) == State.EXPIRED
        assert move(state, Event.CANCEL) == State.CANCELLED


def test_every_state_can_be_reached_from_the_first() -> None:
    reached, before = {State.QUEUED}, set[State]()
    while reached != before:
        before = set(reached)
        reached |= {after for (state, _), after in TRANSITIONS.items() if state in reached}

    assert reached == set(State)


def test_every_event_is_used() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_what_ends_a_job_is_derived_from_the_table() -> None:
    assert {event: after for event, after in EXPECTED[P].items() if after in TERMINAL} == ENDS
    assert set(ENDS.values()) == TERMINAL


def test_the_words_are_those_of_the_wire() -> None:
    assert [str(state) for state in State] == ["queued", "processing", "completed", "failed", "expired", "cancelled"]
