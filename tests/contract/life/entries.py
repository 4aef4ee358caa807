"""A job, a lease and a micro-batch as they must be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jobs.states import TERMINAL, Event, State, move

Place = Literal["line", "retries", "suspects", "window", "followers", "landed", "ended"]

RETURNS_MAX = 5


@dataclass(eq=False)
class Job:
    """A job as it must be. ``takes_left``: how often it may yet be given to a worker in preprocess."""

    task_id: str
    line: str
    deadline: int
    limit: int
    head: bytes
    tenant: str = ""
    cache: str = ""
    """Key of its answer; none in a later generation."""
    joined_at: int = 0
    """When it began to follow."""
    fresh_ms: int = 0
    generation: int = 1
    state: State = State.QUEUED
    place: Place = "line"
    number: str = ""
    attempt: int = 1
    promised: bool = False
    takes_left: int = 1
    takes: int = 0
    forgiven: int = 0
    """Times that it was lost as a suspect and not charged, because its holder lived."""
    due: float = 0
    """When its next attempt may begin."""
    ended_at: int = 0
    gone_at: int = 0
    """When its record's TTL ends."""
    forgotten: bool = False
    has_input: bool = True
    digest: str = ""
    """Of its record since it ended."""
    document: bytes = b""
    joined: str = ""
    """The job whose document it shares."""

    @property
    def is_open(self) -> bool:
        return self.state not in TERMINAL

    @property
    def follows(self) -> bool:
        return self.place in {"followers", "landed"}

    @property
    def can_replay(self) -> bool:
        return move(self.state, Event.REPLAY) is not None

    @property
    def takes_max(self) -> int:
        """How often it may be given to a worker in preprocess in one generation.

        An attempt has one micro-batch in company and one alone, and one more alone each time that it was forgiven;
        each micro-batch may come back unharmed RETURNS_MAX times.
        """
        return (2 * self.limit + self.forgiven) * (RETURNS_MAX + 1)


@dataclass(eq=False)
class Lease:
    holder: str
    until: int
    granted: int


@dataclass(eq=False)
class Batch:
    number: str
    line: str
    stage: str
    sequence: str
    published: int
    suspect: bool = False
    members: list[str] = field(default_factory=list)
    epoch: int = 0
    lease: Lease | None = None
    spared: int = 0
    """The epoch whose lease was spared once."""
    returned: int = 0
    all_cancelled: bool = False

    @property
    def pool(self) -> str:
        return self.line.split("/")[0]

    @property
    def queue(self) -> str:
        pool, lane, *_ = self.line.split("/")
        return f"{pool}.{self.stage}.{lane}"
