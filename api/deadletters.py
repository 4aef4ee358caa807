"""Dead letters as operators handle them: list, inspect, replay, drop."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import msgspec

from api.clock import StoreClock
from api.results import error_of
from jobs import commands
from jobs.commands import DeadLetter
from jobs.errors import InvalidInputError, NotFoundError
from jobs.payload import TENSORS
from jobs.records import JobError, instant
from jobs.store import AsyncJobStore
from jobs.tensors import unpack_item

PAGE = 100
REPLAYED_MAX = 1_000
"""Jobs that one call replays or drops: bounds the call; whoever wants more calls again."""
_ID = re.compile(r"[0-9a-f]{56}")


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which dead letters: all that is named must be so. ``since`` is an instant (RFC 3339) of their end."""

    model: str = ""
    stage: str = ""
    code: str = ""
    since: str = ""

    def terms(self) -> dict[str, Any]:
        """As the store takes them; InvalidInputError where ``since`` is not an instant."""
        return {"model": self.model, "stage": self.stage, "code": self.code, "since_ms": self._since_ms()}

    def _since_ms(self) -> int:
        if not self.since:
            return 0
        try:
            at = datetime.fromisoformat(self.since)
        except ValueError:
            at = datetime.min  # noqa: DTZ901 - stands for "not an instant", as one without a zone does
        if at.tzinfo is None:
            raise InvalidInputError("since must be an instant with its zone: 2026-11-21T05:30:00Z.", pointer="/since")
        return int(at.timestamp() * 1000)


class Replay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /dead-letters/replay``: either ids or a filter; ``dry_run`` changes nothing."""

    task_ids: list[str] | None = None
    filter: Filter | None = None
    dry_run: bool = False


class Replayed(msgspec.Struct, frozen=True):
    """What a replay did, or would do. ``more``: the filter matches others; call again."""

    dry_run: bool
    replayed: list[str]
    refused: dict[str, str]
    more: bool


class Dropped(msgspec.Struct, frozen=True):
    """How many dead letters were dropped; ``more``: the filter matches others."""

    dropped: int
    more: bool


class LetterView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A dead letter: what was given up, where, why, and what is kept of it."""

    task_id: str
    tenant: str
    model: str
    version: int
    lane: str
    stage: str
    code: str
    attempt: int
    generation: int
    queued_at: str
    ended_at: str
    media_type: str
    input_bytes: int
    input_sha256: str
    links: dict[str, str]
    request_id: str = ""
    traceparent: str = ""
    error: JobError | msgspec.UnsetType = msgspec.UNSET


class LettersView(msgspec.Struct, frozen=True):
    """A page of dead letters, the youngest first; ``cursor`` asks for the next, null at the end."""

    dead_letters: list[LetterView]
    cursor: str | None


class DeadLetters:
    """The dead letters of every tenant."""

    def __init__(self, store: AsyncJobStore, clock: StoreClock) -> None:
        self._store = store
        self._clock = clock

    async def page(self, wanted: Filter, cursor: str, most: int) -> LettersView:
        """One page. InvalidInputError: a cursor that is none of ours."""
        if cursor and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 20):  # noqa: PLR2004 - 64 bits
            raise InvalidInputError("cursor must be one that a page gave.", pointer="/cursor")
        found = await self._store.run(commands.dead_letters(most=most, cursor=cursor, **wanted.terms()))
        return LettersView([view_of(each) for each in found.letters], found.cursor or None)

    async def one(self, task_id: str) -> LetterView:
        """One, with its error; NotFoundError."""
        letter = await self._letter(task_id)
        (view,) = await self._store.run(commands.read([task_id]))
        return msgspec.structs.replace(view_of(letter), error=error_of(task_id, view))

    async def input(self, task_id: str) -> tuple[str, bytes]:
        """The input that was kept, and its media type; tensors as the JSON that a submit takes. NotFoundError."""
        letter = await self._letter(task_id, with_input=True)
        data = letter.data
        if letter.head.media_type != TENSORS:
            return letter.head.media_type, data
        tensors = {
            name: {
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "base64": b64encode(array.tobytes()).decode(),
            }
            for name, array in unpack_item(data).items()
        }
        return "application/json", msgspec.json.encode({"input": tensors})

    async def replay(self, order: Replay) -> Replayed:
        """Run again what the order names. InvalidInputError: neither ids nor a filter, or both."""
        if (order.task_ids is None) == (order.filter is None):
            raise InvalidInputError("Give either task_ids or filter.", pointer="/task_ids")
        refused: dict[str, str] = {}
        if order.filter is not None:
            letters, more = await self._matching(order.filter)
        else:
            letters, more = await self._named(order.task_ids or [], refused), False
        replayed = [each.task_id for each in letters]
        if not order.dry_run and letters:
            jobs = [(each.task_id, each.head) for each in letters]
            verdicts = await self._store.run(commands.replay(jobs, self._clock.now_ms()))
            refused |= {task_id: said for task_id, said in zip(replayed, verdicts, strict=True) if said != "replayed"}
            replayed = [task_id for task_id in replayed if task_id not in refused]
        return Replayed(order.dry_run, replayed, refused, more)

    async def drop(self, wanted: Filter) -> Dropped:
        """Drop what matches."""
        letters, more = await self._matching(wanted)
        count = await self._store.run(commands.drop([each.task_id for each in letters])) if letters else 0
        return Dropped(count, more)

    async def drop_one(self, task_id: str) -> Dropped:
        """Drop one; NotFoundError."""
        await self._letter(task_id)
        return Dropped(await self._store.run(commands.drop([task_id])), more=False)

    async def _letter(self, task_id: str, *, with_input: bool = False) -> DeadLetter:
        if _ID.fullmatch(task_id):
            letters = await self._store.run(commands.dead_letters_of([task_id], with_input=with_input))
            if letters:
                return letters[0]
        raise NotFoundError("There is no such dead letter.")

    async def _named(self, task_ids: Sequence[str], refused: dict[str, str]) -> list[DeadLetter]:
        """The dead letters of these ids; ids that are none are put into ``refused``."""
        if len(task_ids) > REPLAYED_MAX:
            raise InvalidInputError(f"At most {REPLAYED_MAX} task_ids in one call.", pointer="/task_ids")
        wanted = [task_id for task_id in dict.fromkeys(task_ids) if _ID.fullmatch(task_id)]
        letters = await self._store.run(commands.dead_letters_of(wanted)) if wanted else []
        found = {each.task_id for each in letters}
        refused.update({task_id[:64]: "not-found" for task_id in task_ids if task_id not in found})
        return letters

    async def _matching(self, wanted: Filter) -> tuple[list[DeadLetter], bool]:
        """What matches, bounded; whether there may be more."""
        letters: list[DeadLetter] = []
        async for page in self._pages(wanted):
            letters += page
            if len(letters) >= REPLAYED_MAX:
                return letters[:REPLAYED_MAX], True
        return letters, False

    async def _pages(self, wanted: Filter) -> AsyncIterator[list[DeadLetter]]:
        cursor = ""
        while True:
            found = await self._store.run(commands.dead_letters(most=PAGE, cursor=cursor, **wanted.terms()))
            yield found.letters
            cursor = found.cursor
            if not cursor:
                return


def view_of(letter: DeadLetter) -> LetterView:
    """A dead letter as operators are shown it, without its error."""
    head, path = letter.head, f"/dead-letters/{letter.task_id}"
    return LetterView(
        task_id=letter.task_id,
        tenant=head.tenant,
        model=head.model,
        version=head.version,
        lane=head.lane,
        stage=letter.stage,
        code=letter.code,
        attempt=letter.attempt,
        generation=head.generation,
        queued_at=instant(head.queued_at_ms),
        ended_at=instant(letter.ended_at_ms),
        media_type=head.media_type,
        input_bytes=letter.input_bytes,
        input_sha256=head.input_sha256.hex(),
        links={"self": path, "input": f"{path}/input", "result": f"/result/{letter.task_id}"},
        request_id=head.request_id,
        traceparent=head.traceparent,
    )
