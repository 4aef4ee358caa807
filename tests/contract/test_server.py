"""The store's client and its server: lost scripts, broken connections, hangs. On the real servers."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from jobs import commands
from jobs.connect import async_redis_client, redis_client
from jobs.errors import StoreUnavailableError
from jobs.ids import KeyRing, TaskIds
from jobs.store import SHARED_TEXTS, AsyncJobStore, JobStore, digest, source
from jobs.submits import submit
from tests.contract.house import FLOW, NAMESPACE, House
from tests.servers import RedisServer
from tests.waiting import wait_until

T = TypeVar("T")

SCRIPTS = (
    *("submit", "take", "commit", "release", "beat", "leave", "read", "sweep", "republish"),
    *("cancel", "replay", "deadletters", "letters", "drop", "head", "keep", "kept", "look", "starting"),
)


def test_scripts_that_the_server_lost_are_given_again(house: House) -> None:
    task_id, _ = house.submit_one()
    house.client.script_flush()

    assert house.view(task_id).state == "queued"
    assert house.client.script_exists(digest("read", house.store._flow)) == [True]


def _as_gateway(server: RedisServer, scenario: Callable[[AsyncJobStore], Awaitable[T]], timeout_s: float = 5.0) -> T:
    """Run ``scenario`` with a gateway's store, and close it."""

    async def main() -> T:
        pool = async_redis_client(server.url, None, connect_timeout_s=timeout_s).connection_pool
        store = AsyncJobStore(pool, NAMESPACE, FLOW, timeout_s)
        try:
            return await scenario(store)
        finally:
            await store.close()

    return asyncio.run(main())


def test_a_gateway_gives_lost_scripts_again_too(house: House, server: RedisServer) -> None:
    async def submit_and_read(store: AsyncJobStore) -> list[str]:
        job = house.job()
        await store.run(submit([job], {}))
        house.client.script_flush()
        views = await store.run(commands.read([job.task_id]))
        return [view.state for view in views if view]

    assert _as_gateway(server, submit_and_read) == ["queued"]


def test_many_calls_of_a_gateway_at_once_get_their_own_answers(house: House, server: RedisServer) -> None:
    jobs = [house.job() for _ in range(20)]

    async def submit_and_read(store: AsyncJobStore) -> list[list[Any]]:
        await store.run(submit(jobs[:10], {}))
        return await asyncio.gather(*(store.run(commands.read([job.task_id])) for job in jobs))

    answers = _as_gateway(server, submit_and_read)

    assert [view is not None for (view,) in answers] == [True] * 10 + [False] * 10


def test_a_connection_that_broke_while_idle_costs_no_call(house: House, server: RedisServer) -> None:
    async def scenario(store: AsyncJobStore) -> list[Any]:
        await asyncio.gather(*(store.run(commands.read(["a"])) for _ in range(3)))
        house.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        return await asyncio.gather(*(store.run(commands.read(["a"])) for _ in range(3)))

    assert _as_gateway(server, scenario) == [[None]] * 3


def test_connections_that_a_burst_left_behind_are_let_go(
    house: House, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(store: AsyncJobStore) -> tuple[int, int]:
        before = len(house.client.client_list())
        await asyncio.gather(*(store.run(commands.read(["a"])) for _ in range(10)))
        left = len(house.client.client_list()) - before
        monkeypatch.setattr("jobs.store.IDLE_S", 0.0)
        for _ in range(12):
            await store.run(commands.read(["a"]))
        wait_until(lambda: len(house.client.client_list()) - before == 1, 5.0, "one connection is left")
        return left, len(store._idle)

    assert _as_gateway(server, scenario) == (10, 1)


def test_a_submit_that_is_asked_again_changes_nothing(house: House) -> None:
    job = house.job()
    first = house.store.run(submit([job], {}))
    taken = house.store.run(
        commands.take(first.publish[0].number, "preprocess", first.publish[0].sequence, "w", 6_000)
    )
    assert taken.verdict == "taken"

    assert house.store.run(submit([job], {})).publish == []
    (view,) = house.store.run(commands.read([job.task_id]))
    assert view is not None
    assert (view.state, view.stage) == ("processing", "preprocess")


def test_a_store_that_hangs_is_given_up_in_time_and_good_again_after(server: RedisServer) -> None:
    async def scenario(store: AsyncJobStore) -> list[Any]:
        await store.run(commands.read(["a"]))
        server.send(signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailableError):
                await store.run(commands.read(["a"]))
        finally:
            server.send(signal.SIGCONT)
        return await store.run(commands.read(["a", "b"]))  # the late answer to the call before is not this one's

    assert _as_gateway(server, scenario, timeout_s=0.5) == [None, None]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_ends_jobs_in_the_words_of_the_table(script: str) -> None:
    assert source(script, FLOW).startswith("local ENDS = {")
    assert "expire = 'expired'" in source(script, FLOW).splitlines()[0]


def test_the_list_of_scripts_is_whole() -> None:
    folder = Path(commands.__file__).parent / "scripts"

    assert {path.stem for path in folder.glob("*.lua")} == {*SCRIPTS, *SHARED_TEXTS}


def test_real_ids_are_taken_in_the_order_in_which_they_were_issued(house: House) -> None:
    task_ids = TaskIds(KeyRing({1: b"k" * 32}), 3600)
    house.fill_window("m")
    now_ms = house.now_ms
    issued = [task_ids.issue(now_ms, b"acme") for _ in range(20)]
    template = house.job()
    jobs = [type(template)(each, template.head, template.line, b"") for each in issued]
    house.submit(*jobs)

    (line,) = house.client.keys(house.key("line:*"))

    assert [each.decode() for each in house.client.zrange(line, 0, -1)] == issued


def test_a_server_that_is_away_leaves_the_fate_unknown(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "server").start() as gone:
        client = redis_client(gone.url, 1.0)
        gone.kill()
    with client, pytest.raises(StoreUnavailableError):
        JobStore(client, NAMESPACE, FLOW).run(commands.read(["a"]))


def test_several_calls_at_once_get_the_time_of_one(server: RedisServer) -> None:
    async def call_late(store: AsyncJobStore) -> None:
        async with store.at_once():
            await asyncio.sleep(0.4)  # what the calls before this one took
            await store.run(commands.read(["a"]))

    async def scenario(store: AsyncJobStore) -> float:
        server.send(signal.SIGSTOP)
        began_s = time.monotonic()
        try:
            with pytest.raises(StoreUnavailableError):
                await call_late(store)
        finally:
            server.send(signal.SIGCONT)
        return time.monotonic() - began_s

    assert _as_gateway(server, scenario, timeout_s=0.5) < 0.8  # each on its own: 0.9
