"""The supervisor over real processes: it keeps them alive, gives up loudly, ends them in order, leaves none."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.errors import SetupError
from penstock import child, supervisor
from penstock.datafolder import DataFolder
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
LIVES = 'echo $$ >> "$0.pids"; exec sleep 600'
ON_TERM = 'trap "echo $(basename $0) >> $(dirname $0)/order; exit 0" TERM'
ENDS_WELL = f'{ON_TERM}; echo $$ >> "$0.pids"; while :; do sleep 0.02; done'
IGNORES_TERM = 'trap "" TERM; sleep 600 & echo $$ $! | tr " " "\\n" >> "$0.pids"; wait; wait'


class Supervised:
    """A supervisor process over shell scripts; a script's ``$0`` is its role's path in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._roles: list[dict[str, object]] = []
        self._process: subprocess.Popen[str] | None = None

    def role(self, name: str, script: str, **fields: object) -> None:
        command = ["/bin/sh", "-c", script, str(self.folder / name)]
        self._roles.append({"name": name, "command": command, **fields})

    def start(self) -> None:
        (self.folder / "roles.json").write_text(json.dumps(self._roles))
        with (self.folder / "said").open("w") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.supervise", str(self.folder)],
                cwd=ROOT,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
            )

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def pids(self, name: str) -> list[int]:
        path = self.folder / f"{name}.pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def ends(self, timeout_s: float = 20) -> int:
        return self.process.wait(timeout_s)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path)
    yield supervised
    supervised.close()


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that init has not collected yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def started(supervised: Supervised, name: str, times: int = 1) -> Callable[[], bool]:
    return lambda: len(supervised.pids(name)) >= times


def test_a_child_that_is_killed_comes_back(supervised: Supervised) -> None:
    supervised.role("a", LIVES)
    supervised.start()
    wait_until(started(supervised, "a"), 10, "a starts")

    os.kill(supervised.pids("a")[0], signal.SIGKILL)

    wait_until(started(supervised, "a", 2), 10, "a comes back")
    assert is_alive(supervised.pids("a")[1])
    assert "a ended with signal 9" in supervised.said()


def test_a_child_that_says_its_set_up_is_wrong_is_not_started_again(supervised: Supervised) -> None:
    supervised.role("a", LIVES)
    supervised.role("b", "echo 'penstock: set PENSTOCK_X' >&2; exit 78")
    supervised.start()

    assert supervised.ends() == 78
    assert "giving up: b ended with code 78 (penstock: set PENSTOCK_X)" in supervised.said()
    assert f"log: {supervised.folder}/b.log" in supervised.said()
    assert not any(map(is_alive, supervised.pids("a")))


def test_a_child_that_keeps_dying_makes_it_give_up(supervised: Supervised) -> None:
    supervised.role("a", LIVES)
    supervised.role("b", 'echo $$ >> "$0.pids"; echo no luck; exit 3')
    supervised.start()

    assert supervised.ends() == 1
    assert len(supervised.pids("b")) == supervisor.DEATHS_MAX
    assert "giving up: b ended with code 3 (no luck)" in supervised.said()
    assert not any(map(is_alive, supervised.pids("a")))


def test_pauses_between_starts_grow_up_to_a_bound() -> None:
    assert [supervisor.backoff_s(deaths) for deaths in (1, 2, 3, 4, 5, 6, 60)] == [0.5, 1, 2, 4, 8, 10, 10]


def test_even_kill_9_leaves_no_orphan(supervised: Supervised) -> None:
    for name in ("a", "b"):
        supervised.role(name, LIVES)
    supervised.start()
    wait_until(lambda: supervised.pids("a") and supervised.pids("b"), 10, "both start")

    supervised.process.kill()

    orphans = supervised.pids("a") + supervised.pids("b")
    wait_until(lambda: not any(map(is_alive, orphans)), 5, "all are gone")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_children_are_ended_in_the_reverse_of_their_order(supervised: Supervised, number: signal.Signals) -> None:
    for name in ("store", "worker", "gateway"):
        supervised.role(name, ENDS_WELL)
    supervised.start()
    wait_until(lambda: "all answer" in supervised.said(), 10, "all start")
    wait_until(lambda: all(supervised.pids(name) for name in ("store", "worker", "gateway")), 10, "all run")

    supervised.process.send_signal(number)

    assert supervised.ends() == 0
    assert (supervised.folder / "order").read_text().split() == ["gateway", "worker", "store"]


def test_a_child_that_does_not_end_is_killed_with_all_that_it_started(supervised: Supervised) -> None:
    supervised.role("a", IGNORES_TERM, drain_s=0.3)
    supervised.start()
    wait_until(started(supervised, "a", 2), 10, "a and its own child start")

    supervised.process.terminate()

    assert supervised.ends() == 0
    assert "a had not ended: killed" in supervised.said()
    wait_until(lambda: not any(map(is_alive, supervised.pids("a"))), 5, "both are gone")


def test_a_second_signal_ends_all_at_once(supervised: Supervised) -> None:
    supervised.role("a", IGNORES_TERM, drain_s=600)
    supervised.start()
    wait_until(started(supervised, "a", 2), 10, "a starts")

    supervised.process.send_signal(signal.SIGINT)
    wait_until(lambda: "stopping" in supervised.said(), 10, "it drains")
    supervised.process.send_signal(signal.SIGINT)

    assert supervised.ends(10) == 0
    wait_until(lambda: not any(map(is_alive, supervised.pids("a"))), 5, "both are gone")


def test_a_terminal_s_signal_does_not_reach_the_children(supervised: Supervised) -> None:
    supervised.role("a", LIVES)
    supervised.start()
    wait_until(started(supervised, "a"), 10, "a starts")

    (pid,) = supervised.pids("a")
    assert os.getsid(pid) == pid != os.getsid(supervised.process.pid)


def test_a_role_starts_when_what_it_needs_answers(supervised: Supervised) -> None:
    answers = supervised.folder / "answers"
    supervised.role("store", LIVES, answers=str(answers))
    supervised.role("worker", LIVES, needs=["store"])
    supervised.start()
    wait_until(started(supervised, "store"), 10, "the store starts")
    assert supervised.pids("worker") == []

    answers.touch()

    wait_until(started(supervised, "worker"), 10, "the worker starts")


@pytest.mark.parametrize("end", ["kill -9 $$", "exit 75"])
def test_a_role_that_jobs_may_kill_is_started_again_however_often(supervised: Supervised, end: str) -> None:
    supervised.role("worker", f'echo $$ >> "$0.pids"; {end}', replaced=True)
    supervised.start()

    wait_until(lambda: len(supervised.pids("worker")) > supervisor.DEATHS_MAX, 20, "it is started again and again")
    assert supervised.process.poll() is None


def test_a_vital_role_that_never_answered_is_not_tried_again(supervised: Supervised) -> None:
    supervised.role("store", "echo cannot read the file; exit 1", answers="/nonexistent", vital=True)
    supervised.role("worker", LIVES, needs=["store"])
    supervised.start()

    assert supervised.ends() == 1
    assert "giving up: store ended with code 1 (cannot read the file)" in supervised.said()
    assert supervised.pids("worker") == []


def test_a_role_that_is_late_is_said_to_be_and_kept(supervised: Supervised) -> None:
    supervised.role("gateway", LIVES, answers="/nonexistent", start_s=0.1)
    supervised.start()

    wait_until(lambda: "gateway is not ready after 0.1 s" in supervised.said(), 10, "it is said")
    assert is_alive(supervised.pids("gateway")[0])


def test_a_large_log_is_set_aside_at_the_next_start(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("wb") as large:
        large.truncate(child.LOG_BYTES_MAX + 1)

    child.rotate(log)

    assert not log.exists()
    assert (tmp_path / "a.log.1").exists()


def test_a_data_folder_is_held_by_one_process_only(tmp_path: Path) -> None:
    held = DataFolder(tmp_path)

    with pytest.raises(SetupError, match=f"in use by the `penstock up` with pid {os.getpid()}"):
        DataFolder(tmp_path)

    held.close()
    DataFolder(tmp_path).close()


def up(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    (folder / "models" / "m").mkdir(parents=True, exist_ok=True)
    (folder / "models" / "m" / "model.toml").touch()
    given = {"data": str(folder / "data"), "models": str(folder / "models"), "port": "0", "flower_port": "0"}
    environment = {f"PENSTOCK_{name.upper()}": value for name, value in (given | settings).items()}
    return subprocess.run(
        [sys.executable, "-m", "penstock", "up"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_second_up_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    held = DataFolder(tmp_path / "data")
    ended = up(tmp_path)
    held.close()

    assert (ended.returncode, ended.stdout) == (78, "")
    assert ended.stderr == (
        f"penstock: {tmp_path}/data is in use by the `penstock up` with pid {os.getpid()}:"
        " stop it, or set PENSTOCK_DATA to another folder\n"
    )


@pytest.mark.parametrize("variable", ["PENSTOCK_PORT", "PENSTOCK_FLOWER_PORT"])
def test_a_port_in_use_is_refused_with_the_variable_to_set(tmp_path: Path, variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = up(tmp_path, **{variable.removeprefix("PENSTOCK_").lower(): str(port)})

    assert (ended.returncode, ended.stdout) == (78, "")
    assert ended.stderr == (
        f"penstock: port {port} on 127.0.0.1 is in use: stop what uses it, or set {variable} to a free one\n"
    )


def test_a_model_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    ended = up(tmp_path, models=str(tmp_path / "none"))

    assert ended.returncode == 78
    assert ended.stderr.startswith(f"penstock: the model folder {tmp_path}/none is not there")
    assert not (tmp_path / "data").exists()
