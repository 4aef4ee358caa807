"""The life of a job: every state, every event, and where each leads. This table is the only one.

Rules: a *delivery* (whatever a broker, a worker, the sweeper or a clock brings) never leaves a terminal state;
only a *command* of a person does, and it opens a new generation. An event that the table does not list for a
state is refused and changes nothing. The store's scripts are generated with ``ENDS`` in front, so that they end
jobs in these words and no others.

In the store a job that is ``processing`` is written as ``queued`` with a micro-batch; the stage and the lease
stand in the micro-batch's record, which is written at each stage, while the job's is not.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """What a job is, in the words of the wire."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Event(StrEnum):
    """What happens to a job."""

    START = "start"
    """A worker took the lease of its micro-batch."""
    COMPLETE = "complete"
    FAIL = "fail"
    """A permanent error, or the last attempt."""
    RETRY = "retry"
    """A transient error with attempts left."""
    LOSE = "lose"
    """The holder of the lease died."""
    EXPIRE = "expire"
    CANCEL = "cancel"
    REPLAY = "replay"
    """A person's command: a new generation."""


TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.QUEUED, Event.START): State.PROCESSING,
    (State.QUEUED, Event.EXPIRE): State.EXPIRED,
    (State.QUEUED, Event.CANCEL): State.CANCELLED,
    (State.PROCESSING, Event.START): State.PROCESSING,  # the next stage
    (State.PROCESSING, Event.COMPLETE): State.COMPLETED,
    (State.PROCESSING, Event.FAIL): State.FAILED,
    (State.PROCESSING, Event.RETRY): State.QUEUED,
    (State.PROCESSING, Event.LOSE): State.QUEUED,
    (State.PROCESSING, Event.EXPIRE): State.EXPIRED,
    (State.PROCESSING, Event.CANCEL): State.CANCELLED,
    (State.FAILED, Event.REPLAY): State.QUEUED,
    (State.EXPIRED, Event.REPLAY): State.QUEUED,
}

TERMINAL: Final = frozenset({State.COMPLETED, State.FAILED, State.EXPIRED, State.CANCELLED})

ENDS: Final[dict[Event, State]] = {
    event: after for (before, event), after in TRANSITIONS.items() if before is State.PROCESSING and after in TERMINAL
}
"""The event that ends a running job, and the state it ends in."""


def move(state: State, event: Event) -> State | None:
    """Where ``event`` leads from ``state``; None where it is refused."""
    return TRANSITIONS.get((state, event))
