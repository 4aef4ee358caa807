"""Every command to the store as a value: which script, which arguments, and how its reply reads.

Nothing here talks to a server, so gateways (asyncio) and workers (threads) share it whole: ``jobs.store`` runs
a command and hands back what ``read`` makes of the reply. The scripts themselves are in ``jobs/scripts``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Literal, TypeVar

import msgspec

from jobs.records import Head, StageName, decode_head, encode_head, next_generation
from jobs.states import Event

T = TypeVar("T")

IN_WINDOW, IN_RETRY = -1, -2
"""Places of a queued job that stands in no line: it left for the broker, or waits for its next attempt."""
DEAD_LETTERS_LOOK = 1_000
"""Dead letters that one call looks at: bounds how long the store is held."""


class Command(Generic[T]):
    """One call of a script."""

    __slots__ = ("arguments", "read", "script")

    def __init__(self, script: str, arguments: Sequence[Any], read: Callable[[Any], T]) -> None:
        self.script = script
        self.arguments = arguments
        self.read = read


class MicroBatch(msgspec.Struct, frozen=True):
    """A micro-batch that must be published: the chain from ``stage`` on."""

    number: str
    sequence: str
    stage: StageName
    line: str
    trace: str = ""

    @property
    def pool(self) -> str:
        """The pool of workers that serves it."""
        return self.line.split("/", 1)[0]

    @property
    def lane(self) -> str:
        """``interactive`` or ``bulk``."""
        return self.line.split("/", 2)[1]


class Member(msgspec.Struct, frozen=True):
    """A job of a micro-batch, as a stage gets it.

    ``place`` counts from 0 among the jobs that went on from the stage before, so it finds the job's intermediate;
    ``data`` is the input at preprocess, else empty.
    """

    place: int
    task_id: str
    head: Head
    attempt: int
    data: bytes


class Ended(msgspec.Struct, frozen=True):
    """A job that a command ended."""

    task_id: str
    state: str
    line: str


class Taken(msgspec.Struct, frozen=True):
    """The answer to a receipt. ``verdict`` is ``taken``, or why the message is to be dropped."""

    verdict: str
    publish: list[MicroBatch]
    number: str = ""
    stage: StageName = "preprocess"
    now_ms: int = 0
    epoch: int = 0
    reference: bytes = b""
    stages: bytes = b""
    members: tuple[Member, ...] = ()
    line: str = ""
    suspect: bool = False
    ended: list[Ended] = []


class Outcome(msgspec.Struct, frozen=True):
    """How one job leaves a stage: completed or failed with its document, or to be retried after a delay."""

    task_id: str
    event: Event
    document: bytes = b""
    code: str = ""
    delay_ms: int = 0


class Handover(msgspec.Struct, frozen=True):
    """What a stage leaves: who goes on to which stage, with what, and what each job cost in microseconds."""

    following: StageName | None
    going_on: Sequence[str]
    reference: bytes
    stages: bytes
    cost_us: int
    held: str = ""
    """How the estimates of jobs that complete here held: ``jobs.estimates.verdict``."""


class Committed(msgspec.Struct, frozen=True):
    """``held`` is False when the lease was lost: nothing was written, and nothing may follow."""

    held: bool
    publish: list[MicroBatch]
    ended: list[Ended]
    goes_on: bool


class Released(msgspec.Struct, frozen=True):
    """A micro-batch was given back, unless its lease was lost before."""

    publish: list[MicroBatch]
    ended: list[Ended]


class Beaten(msgspec.Struct, frozen=True):
    """The answer to a sign of life: the store's clock, leases that were lost, micro-batches wholly cancelled."""

    now_ms: int
    lost: list[str]
    cancelled: list[str]


class Cancelled(msgspec.Struct, frozen=True):
    """``verdict``: ``gone``, ``cancelled``, ``cancelling`` (a worker runs it) or ``ended`` (otherwise)."""

    verdict: str
    ended: list[Ended]


class DeadLetter(msgspec.Struct, frozen=True):
    """A job that was given up; ``stage`` and ``code`` say where and why."""

    task_id: str
    head: Head
    attempt: int
    stage: str
    ended_at_ms: int
    code: str
    input_bytes: int
    data: bytes = b""


class DeadLetters(msgspec.Struct, frozen=True):
    """Some dead letters, the youngest first; ``cursor`` leads on to older ones, "" where there are none."""

    cursor: str
    letters: list[DeadLetter]


class View(msgspec.Struct, frozen=True):
    """A job as a poll sees it; ``document`` when it ended with one, else the facts to make one from.

    A job that shares the document of another one that it joined has both, document and head. ``ended_here``: this
    very poll found the deadline passed. ``place``: how many jobs of its ``line`` are before it, ``IN_WINDOW`` or
    ``IN_RETRY``.
    """

    state: str
    document: bytes = b""
    head: Head | None = None
    attempt: int = 1
    stage: str = ""
    ended_at_ms: int = 0
    code: str = ""
    ended_here: bool = False
    place: int = IN_WINDOW
    line: str = ""


class Doubtful(msgspec.Struct, frozen=True):
    """A micro-batch that waits too long: lost only if the broker says that its queue is empty."""

    number: str
    sequence: str
    queue: str


class Swept(msgspec.Struct, frozen=True):
    """One pass of the sweeper; ``turn`` is False when another holds the sweeper's lease."""

    turn: bool
    publish: list[MicroBatch] = []
    ended: list[Ended] = []
    doubtful: list[Doubtful] = []
    recovered: int = 0
    published: int = 0
    retried: int = 0


def take(number: str, stage: StageName, sequence: str, holder: str, lease_ms: int) -> Command[Taken]:
    """Take the lease of a micro-batch for one stage, or learn why not."""

    def read(reply: list[Any]) -> Taken:
        verdict, publish, ended = reply[0].decode(), microbatches(reply[1]), _ended(reply[2])
        if verdict != "taken":
            return Taken(verdict, publish, ended=ended)
        now_ms, epoch, reference, stages, members, line, suspect = reply[3:]
        return Taken(
            *(verdict, publish, number, stage, now_ms, epoch, reference, stages),
            tuple(Member(m[0], m[1].decode(), decode_head(m[2]), m[3], m[4]) for m in members),
            line.decode(),
            bool(suspect),
            ended,
        )

    return Command("take", (number, stage, sequence, holder, lease_ms), read)


def commit(taken: Taken, handover: Handover, outcomes: Sequence[Outcome]) -> Command[Committed]:
    """Commit a stage under its lease: end or retry what leaves here, hand the rest to the next stage."""
    arguments: list[Any] = [
        *(taken.number, taken.epoch, taken.stage, handover.following or ""),
        *(handover.reference, handover.stages, handover.cost_us, " ".join(handover.going_on), handover.held),
    ]
    for each in outcomes:
        arguments += (each.task_id, each.event, each.document, each.code, each.delay_ms)
    return Command(
        "commit",
        arguments,
        lambda r: Committed(bool(r[0]), microbatches(r[1]), _ended(r[2]), bool(r[3])),
    )


def release(taken: Taken, how: Literal["unharmed", "failed"], code: str = "internal") -> Command[Released]:
    """Give a micro-batch back: ``unharmed`` it starts again, ``failed`` its jobs come back as suspects.

    Jobs that are charged their last attempt fail with ``code``.
    """
    arguments = (taken.number, taken.epoch, how, code)
    return Command("release", arguments, lambda r: Released(microbatches(r[1]), _ended(r[2])))


def beat(
    holder: str,
    description: bytes,
    lease_ms: int,
    slots: dict[str, int],
    held: Sequence[tuple[str, int]],
) -> Command[Beaten]:
    """A worker's sign of life: slots by pool, leases by (number, epoch)."""
    arguments: list[Any] = [holder, description, lease_ms, len(slots)]
    for pool, count in slots.items():
        arguments += (pool, count)
    for number, epoch in held:
        arguments += (number, epoch)
    return Command("beat", arguments, lambda r: Beaten(r[0], _texts(r[1]), _texts(r[2])))


def starting(holder: str, budget_ms: int) -> Command[None]:
    """A worker says that it loads its models, and will be ready within ``budget_ms``."""
    return Command("starting", (holder, budget_ms), lambda _: None)


def leave(holder: str) -> Command[None]:
    """A worker says goodbye."""
    return Command("leave", (holder,), lambda _: None)


def read(task_ids: Sequence[str]) -> Command[list[View | None]]:
    """Jobs as polls see them, in the order asked; None where there is no record."""
    return Command("read", task_ids, lambda reply: [_view(each) for each in reply])


def cancel(task_id: str) -> Command[Cancelled]:
    """Cancel a job, at once or at the next boundary of a stage."""
    return Command("cancel", (task_id,), lambda r: Cancelled(r[0].decode(), _ended(r[1])))


def replay(jobs: Iterable[tuple[str, Head]], now_ms: int) -> Command[list[str]]:
    """Run failed and expired jobs again, each under its id with a new generation of its head.

    A verdict for each: ``replayed``, ``gone``, or the state that forbids it.
    """
    arguments: list[Any] = []
    for task_id, head in jobs:
        again = next_generation(head, now_ms)
        arguments += (task_id, encode_head(again), again.deadline_at_ms, again.attempts_max)
    return Command("replay", arguments, _texts)


def keep(name: str, data: bytes, ttl_s: int) -> Command[int]:
    """Keep intermediates under a name that is never used twice."""
    return Command("keep", (name, ttl_s, data), int)


def dead_letters(
    *, most: int, cursor: str = "", since_ms: int = 0, model: str = "", stage: str = "", code: str = ""
) -> Command[DeadLetters]:
    """At most ``most`` dead letters that match, the youngest first, from ``cursor`` on."""
    arguments = (DEAD_LETTERS_LOOK, most, cursor, since_ms, model, stage, code)
    return Command("deadletters", arguments, lambda r: DeadLetters(r[0].decode(), [_letter(each) for each in r[1]]))


def dead_letters_of(task_ids: Sequence[str], *, with_input: bool = False) -> Command[list[DeadLetter]]:
    """The dead letters of these ids, in their order, without those that are none."""
    return Command("letters", (int(with_input), *task_ids), lambda reply: [_letter(each) for each in reply])


def drop(task_ids: Sequence[str]) -> Command[int]:
    """Drop dead letters and their inputs; how many there were."""
    return Command("drop", task_ids, int)


def head_of(task_id: str) -> Command[Head | None]:
    """The head of a job that failed or expired, and so can be run again; None of any other."""
    return Command("head", (task_id,), lambda reply: decode_head(reply) if reply else None)


def sweep(sweeper: str, lease_ms: int, most: int, *, after_outage: bool = False) -> Command[Swept]:
    """One bounded pass of the sweeper, if it is its turn.

    ``after_outage``: the broker is back, so what waits in the window is looked at now.
    """

    def read(reply: list[Any]) -> Swept:
        if not reply[0]:
            return Swept(turn=False)
        doubtful = [Doubtful(*(part.decode() for part in each)) for each in reply[3]]
        return Swept(True, microbatches(reply[1]), _ended(reply[2]), doubtful, *reply[4])

    return Command("sweep", (sweeper, lease_ms, most, int(after_outage)), read)


def republish(lost: Iterable[Doubtful]) -> Command[list[MicroBatch]]:
    """New sequence numbers for micro-batches whose messages are lost."""
    arguments = [part for each in lost for part in (each.number, each.sequence)]
    return Command("republish", arguments, microbatches)


def microbatches(reply: list[list[bytes]]) -> list[MicroBatch]:
    """Micro-batches to publish, as every script replies them."""
    return [MicroBatch(*(part.decode() for part in each)) for each in reply]  # type: ignore[arg-type]


def _texts(reply: list[bytes]) -> list[str]:
    return [each.decode() for each in reply]


def _letter(reply: list[Any]) -> DeadLetter:
    task_id, head, attempt, stage, ended, code, size, *data = reply
    facts = (decode_head(head), attempt, stage.decode(), ended, code.decode(), size)
    return DeadLetter(task_id.decode(), *facts, *data)


def _ended(reply: list[list[bytes]]) -> list[Ended]:
    return [Ended(*(part.decode() for part in each)) for each in reply]


def _view(reply: Any) -> View | None:
    if not reply:
        return None
    if reply[1] and len(reply) == 2:  # noqa: PLR2004 - its own
        return View(reply[0].decode(), reply[1])
    if len(reply) == 3:  # noqa: PLR2004 - of the job that it joined
        state, document, head = reply
        return View(state.decode(), document, decode_head(head), ended_here=False)
    state, document, head, attempt, stage, ended, code, here, place, line = reply
    facts = (decode_head(head), attempt, stage.decode(), ended, code.decode())
    return View(state.decode(), document, *facts, bool(here), place, line.decode())
