"""Private servers for tests: each on free ports, in a folder of its own, ended by pid.

A server may be killed and started again in place: port and files stay. The kernel kills it when the test
process dies, so nothing is left behind by an interrupted run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import amqp
import pytest

from penstock import embedded
from penstock.ports import free_port
from tests.waiting import wait_until

TETHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL))
os.execvp(sys.argv[1], sys.argv[1:])
"""
LOOPBACK = "127.0.0.1"
REDIS_START_S = 15.0
RABBIT_START_S = 90.0
STOP_S = 30.0
CONTROL_S = 60.0
RABBIT_PROGRAMS = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")
"""Debian's own path first: its `rabbitmq-server` on PATH insists on the user rabbitmq."""
RABBIT_CONFIG = """
loopback_users.guest = true
log.console = false
disk_free_limit.absolute = 10MB
vm_memory_high_watermark.relative = 0.8
"""


class Tmpfs:
    """A small file system in memory, mounted on a folder: a disk that a test can fill."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        self._size_bytes = size_bytes

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._size_bytes}", "tmpfs", str(self.folder)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        if mounted.returncode != 0:
            pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def fill(self) -> None:
        """Leave no byte free."""
        with self._ballast.open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(64 * 1024))

    def empty(self) -> None:
        """Give the space back."""
        self._ballast.unlink()

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"


class Server:
    """A process with its output in ``folder/output.log``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: subprocess.Popen[bytes] | None = None
        """The process that was asked to stop."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Pid of the running process."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def ask_to_stop(self) -> None:
        """Tell it to end in good order; once, for a second signal means: at once."""
        if self._process is not None and self._asked is not self._process:
            self._asked = self._process
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGCONT)
                os.kill(self._process.pid, signal.SIGTERM)

    def stop(self) -> None:
        """End it in good order; bounded."""
        self.ask_to_stop()
        self._reap()

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        self._reap()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal: SIGSTOP and SIGCONT make it hang and go on."""
        os.kill(self.pid, number)

    def output(self) -> str:
        """Read what it printed."""
        return (self.folder / "output.log").read_text(errors="replace")

    def _spawn(self, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        assert self._process is None, "the server runs already"
        with (self.folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                _tethered(command),
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _is_running(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            pytest.fail(f"{type(self).__name__} ended at start:\n{self.output()[-2000:]}")
        return True

    def _reap(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class RedisServer(Server):
    """A Redis as production wants it: append-only file, no eviction. Options of `start` are redis.conf's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port(LOOPBACK)
        self.url = f"redis://{LOOPBACK}:{self.port}/0"

    def start(self, **config: str) -> Self:
        """Start it and wait until it answers; ``maxmemory_policy="allkeys-lru"`` overrides a setting."""
        given = {name.replace("_", "-"): value for name, value in config.items()}
        options = {
            "port": str(self.port),
            "bind": LOOPBACK,
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        } | given
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._spawn([embedded.find_server(), *words])
        wait_until(lambda: self._is_running() and self._answers(), REDIS_START_S, "Redis answers")
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, self.port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        return False


class RabbitServer(Server):
    """A RabbitMQ node of its own: own epmd, ports, cookie and files; user guest, virtual host /."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._program = _rabbit_program()
        self.port = free_port(LOOPBACK)
        self.url = f"amqp://guest:guest@{LOOPBACK}:{self.port}//"
        self._dist_port = free_port(LOOPBACK)
        self._epmd_port = free_port(LOOPBACK)
        self._epmd: subprocess.Popen[bytes] | None = None
        self.config: dict[str, str] = {}
        """Lines of rabbitmq.conf that every start uses."""
        self.options = ""
        """Further arguments of Erlang: ``-rabbit key value`` for what rabbitmq.conf does not know."""

    def start(self, **config: str) -> Self:
        """Start it and wait until a client can connect; ``config`` is rabbitmq.conf's (``a__b``: a.b)."""
        given = "".join(f"{name.replace('__', '.')} = {value}\n" for name, value in (self.config | config).items())
        (self.folder / "rabbitmq.conf").write_text(RABBIT_CONFIG + given)
        (self.folder / "enabled_plugins").write_text("[].\n")
        self._start_epmd()
        self._spawn([self._program], self._environment())
        wait_until(lambda: self._is_running() and self._answers(), RABBIT_START_S, "RabbitMQ answers")
        return self

    def control(self, *words: str) -> str:
        """What `rabbitmqctl` says about this node."""
        program = Path(self._program).with_name("rabbitmqctl")
        command = [str(program), "--quiet", *words]
        environment = {**os.environ, **self._environment(), "RABBITMQ_CTL_ERL_ARGS": "+sbwt none"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=CONTROL_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _reap(self) -> None:
        super()._reap()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def _start_epmd(self) -> None:
        """Start epmd before Erlang does: its own would be a daemon that nobody knows the pid of."""
        with (self.folder / "epmd.log").open("ab") as output:
            self._epmd = subprocess.Popen(
                _tethered(["epmd", "-port", str(self._epmd_port), "-address", LOOPBACK]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: _listens(self._epmd_port), STOP_S, "epmd listens")

    def _environment(self) -> dict[str, str]:
        folder = self.folder.resolve()
        return {
            "HOME": str(folder),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "rabbit.pid"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_NODENAME": f"penstock-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"+sbwt none +sbwtdcpu none +sbwtdio none {self.options}",
            "ERL_CRASH_DUMP": str(folder / "erl_crash.dump"),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the broker: its pid is ours
        }

    def _answers(self) -> bool:
        if not _listens(self.port):
            return False
        try:
            with amqp.Connection(f"{LOOPBACK}:{self.port}", connect_timeout=2, read_timeout=5, write_timeout=5):
                return True
        except (OSError, amqp.AMQPError):
            return False


def _tethered(command: list[str]) -> list[str]:
    """Let the kernel kill ``command`` when we die. Not by ``preexec_fn``: a test process may have threads."""
    return [sys.executable, "-S", "-E", "-c", TETHER, *command]


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), 1):
        return True
    return False


def _rabbit_program() -> str:
    """Find the server; a machine without it skips the test, but in CI it is a failure."""
    if found := next(filter(None, map(shutil.which, RABBIT_PROGRAMS)), None):
        return found
    if os.environ.get("CI"):
        pytest.fail("rabbitmq-server is not installed, and in CI it must be")
    pytest.skip("rabbitmq-server is not installed")
