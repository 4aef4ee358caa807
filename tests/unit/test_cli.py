"""The command line: one line and exit code 78 for a fault of the set-up, and the tools' own commands else."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from jobs.connect import redis_client
from jobs.errors import SetupError
from jobs.settings import read_settings
from penstock import roles
from penstock.ports import check_port, free_port
from tests.servers import RedisServer


def penstock(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {f"PENSTOCK_{name.upper()}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "penstock", *words],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_setting_that_is_not_valid_is_one_line_and_exit_78() -> None:
    for command in ("up", "api", "worker", "flower"):
        ended = penstock(command, port="high")

        assert (ended.returncode, ended.stdout) == (78, "")
        assert ended.stderr.startswith("penstock: PENSTOCK_PORT: ")
        assert ended.stderr.count("\n") == 1


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    with RedisServer(tmp_path).start() as server:
        made = penstock("keys", "add", "ci", "--tenant", "acme", "--role", "admin", store_url=server.url)
        again = penstock("keys", "add", "ci", store_url=server.url)
        listed = penstock("keys", "list", store_url=server.url)
        missing = penstock("keys", "add", "ci", "--if-missing", store_url=server.url)
        revoked = penstock("keys", "revoke", "ci", store_url=server.url)

    assert made.stdout.startswith("psk_")
    assert (again.returncode, again.stdout) == (78, "")
    assert "acme" in listed.stdout
    assert made.stdout.strip() not in listed.stdout
    assert (missing.returncode, missing.stdout) == (0, "")
    assert (revoked.returncode, revoked.stderr) == (0, "")


def test_tenants_are_set_listed_and_removed(tmp_path: Path) -> None:
    with RedisServer(tmp_path).start() as server:
        set_ = penstock(
            *("tenants", "set", "acme", "--weight", "2", "--rate", "0.5", "--burst", "3", "--open-max", "7"),
            store_url=server.url,
        )
        plain = penstock("tenants", "set", "other", store_url=server.url)
        listed = penstock("tenants", "list", store_url=server.url)
        wrong = penstock("tenants", "set", "acme", "--weight", "0", store_url=server.url)
        removed = penstock("tenants", "remove", "acme", store_url=server.url)
        again = penstock("tenants", "remove", "acme", store_url=server.url)

    assert (set_.returncode, set_.stdout, set_.stderr) == (0, "", "")
    assert plain.returncode == 0
    rows = {
        cells[0]: cells[1:]
        for line in listed.stdout.splitlines()
        if len(cells := line.replace("\u2502", " ").split()) == 5
    }
    assert rows == {"acme": ["2", "0.5/s", "3", "7"], "other": ["1", "any", "1", "any"]}
    assert (wrong.returncode, wrong.stderr) == (78, "penstock: weight 0.0 is out of range: use 0.01 to 100\n")
    assert removed.returncode == 0
    assert again.returncode == 78
    assert again.stderr.startswith("penstock: nothing is set for tenant 'acme'")


def test_a_model_is_paused_and_resumed(tmp_path: Path) -> None:
    with RedisServer(tmp_path).start() as server, redis_client(server.url, 5.0) as client:
        client.hset("penstock:models", mapping={"digits/1": "{}", "digits/2": "{}", "a/b/1": "{}"})
        said = [
            penstock(*words, store_url=server.url).stdout
            for words in (("resume", "digits"), *[("pause", "digits")] * 2, *[("resume", "digits")] * 2)
        ]
        unknown = penstock("pause", "digit", store_url=server.url)

    assert said == [
        "digits was not paused\n",
        "digits is paused\n",
        "digits was paused before\n",
        "digits goes on\n",
        "digits was not paused\n",
    ]
    assert unknown.returncode == 78
    assert unknown.stderr == "penstock: there is no model 'digit'; there are a/b, digits\n"


def test_keys_without_a_store_say_which_one_is_away(tmp_path: Path) -> None:
    ended = penstock("keys", "list", data=str(tmp_path))

    assert ended.returncode == 78
    assert ended.stderr.startswith(f"penstock: the store at redis+socket://{tmp_path}/redis.sock does not answer")


def test_a_worker_of_some_stages_takes_their_queues_only() -> None:
    command = roles.worker_command(read_settings(pools=("gpu",)), ["inference"])

    assert command[1:6] == ["-m", "celery", "-A", "tasks.worker", "worker"]
    assert command[command.index("-Q") + 1] == "gpu.inference.interactive,gpu.inference.bulk"
    assert {"-E", "--without-gossip", "--without-mingle"} <= set(command)


def test_a_stage_that_is_not_one_is_refused() -> None:
    with pytest.raises(SetupError, match="'training' is not one of preprocess"):
        roles.worker_command(read_settings(), ["training"])


def test_two_workers_on_one_machine_have_two_names() -> None:
    commands = [roles.worker_command(read_settings(), ["inference"]) for _ in range(2)]

    assert len({command[command.index("-n") + 1] for command in commands}) == 2


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(SetupError, match="PENSTOCK_HOST"):
        check_port("192.0.2.1", free_port("127.0.0.1"), "PENSTOCK_PORT")


def test_a_host_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=socket.gaierror))

    with pytest.raises(SetupError, match="is no address of this machine: see PENSTOCK_FLOWER_HOST"):
        check_port("nowhere", 1, "PENSTOCK_FLOWER_PORT")
