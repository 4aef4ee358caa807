"""Natural batching: what arrives while a call is under way goes into the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from api.gather import Gather


class Flush:
    """Answers ten times the item, a call at a time, when it is let."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.let = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, items: list[int]) -> list[int]:
        self.calls.append(items)
        await self.let.wait()
        if self.error:
            raise self.error
        return [10 * item for item in items]


def _run(scenario: Callable[[Flush], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario(Flush())

    asyncio.run(main())


async def _turn() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_arrives_together_is_one_call_and_each_gets_its_own_answer() -> None:
    async def scenario(flush: Flush) -> None:
        flush.let.set()
        gather = Gather(flush, 100)

        assert await asyncio.gather(*(gather.ask(item) for item in (1, 2, 3))) == [10, 20, 30]
        assert flush.calls == [[1, 2, 3]]

    _run(scenario)


def test_what_arrives_during_a_call_goes_into_the_next_one() -> None:
    async def scenario(flush: Flush) -> None:
        gather = Gather(flush, 100)
        first = gather.ask(1)
        await _turn()
        rest = [gather.ask(item) for item in (2, 3)]
        await _turn()
        assert flush.calls == [[1]]

        flush.let.set()

        assert await asyncio.gather(first, *rest) == [10, 20, 30]
        assert flush.calls == [[1], [2, 3]]

    _run(scenario)


def test_a_call_has_no_more_items_than_allowed() -> None:
    async def scenario(flush: Flush) -> None:
        flush.let.set()
        gather = Gather(flush, 2)

        assert await asyncio.gather(*(gather.ask(item) for item in range(5))) == [0, 10, 20, 30, 40]
        assert flush.calls == [[0, 1], [2, 3], [4]]

    _run(scenario)


def test_an_error_reaches_each_that_asked_and_nobody_else() -> None:
    async def scenario(flush: Flush) -> None:
        flush.let.set()
        flush.error = RuntimeError("away")
        gather = Gather(flush, 2)
        asked = [gather.ask(item) for item in (1, 2)]

        assert [type(each) for each in await asyncio.gather(*asked, return_exceptions=True)] == [RuntimeError] * 2

        flush.error = None
        assert await gather.ask(3) == 30

    _run(scenario)


def test_an_error_of_one_call_does_not_stop_the_next() -> None:
    async def main() -> None:
        async def flush(items: list[int]) -> list[int]:
            if 1 in items:
                raise RuntimeError("away")
            return items

        gather = Gather(flush, 1)
        first, second = gather.ask(1), gather.ask(2)

        with pytest.raises(RuntimeError):
            await first
        assert await second == 2

    asyncio.run(main())


def test_one_that_went_away_does_not_disturb_the_others() -> None:
    async def scenario(flush: Flush) -> None:
        gather = Gather(flush, 100)
        gone, stays = gather.ask(1), gather.ask(2)
        await _turn()
        gone.cancel()

        flush.let.set()

        assert await stays == 20
        assert gone.cancelled()
        assert await gather.ask(3) == 30

    _run(scenario)


def test_an_error_does_not_trouble_one_that_went_away() -> None:
    async def scenario(flush: Flush) -> None:
        flush.error = RuntimeError("away")
        gather = Gather(flush, 100)
        gone, stays = gather.ask(1), gather.ask(2)
        gone.cancel()
        flush.let.set()

        with pytest.raises(RuntimeError):
            await stays
        assert gone.cancelled()

    _run(scenario)


def test_after_a_pause_it_starts_again() -> None:
    async def scenario(flush: Flush) -> None:
        flush.let.set()
        gather = Gather(flush, 100)
        await gather.ask(1)
        await _turn()
        assert gather._drain is None

        assert await gather.ask(2) == 20

    _run(scenario)
