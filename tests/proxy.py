"""A TCP proxy of our own, between a process and its server: what a network can do to them, on command.

A fault of the network is not one of the server: bytes come late, or never, or stop in the middle of a frame, while
the server is well. Each act is done when its call returns. ``normal`` takes back latency, blackhole, refusal and cut.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from tests.servers import LOOPBACK

PROGRAM = Path(__file__).with_name("proxy_process.py")
END_S = 5.0


class Proxy:
    """Forwards a port of its own to the port of a server."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        command = [sys.executable, "-S", "-E", str(PROGRAM), str(self._server_port)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.port = int(self._line())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def accepted(self) -> int:
        """Connections that were ever made through it."""
        return self._tell("count")[0]

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return self._tell("count")[1]

    def url(self, of: str) -> str:
        """A server's URL, through this proxy."""
        parts = urlsplit(of)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}{LOOPBACK}:{self.port}"))

    def slow(self, latency_s: float) -> None:
        """Deliver what is sent from now on late, each way."""
        self._tell("slow", latency_s)

    def blackhole(self) -> None:
        """Let nothing through: open connections are silent, new ones are not even answered.

        What was sent meanwhile arrives when it is over, as TCP would send it again; a closed end is heard of then.
        """
        self._tell("blackhole")

    def refuse(self) -> None:
        """Refuse new connections; open ones go on."""
        self._tell("refuse")

    def reset(self) -> None:
        """Reset every open connection."""
        self._tell("reset")

    def half_open(self) -> None:
        """Close every open connection at its server only: to its client it looks alive, and is silent for ever."""
        self._tell("half_open")

    def cut_after(self, count_bytes: int) -> None:
        """Reset each connection, old or new, once it has carried so many bytes more, both ways together."""
        self._tell("cut_after", count_bytes)

    def normal(self) -> None:
        """Forward as if nothing had been."""
        self._tell("normal")

    def close(self) -> None:
        """Drop what is open and end."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _tell(self, *words: object) -> tuple[int, int]:
        assert self._process is not None, "the proxy does not run"
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        accepted, connections = map(int, self._line().split())
        return accepted, connections

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the proxy has ended"
        return line


class Routes:
    """The four ways that a system's processes go to their servers, each through a proxy of its own."""

    def __init__(self, store_url: str, broker_url: str) -> None:
        self._urls = {"store": store_url, "broker": broker_url}
        self.gateway = {server: Proxy(_port(url)) for server, url in self._urls.items()}
        self.workers = {server: Proxy(_port(url)) for server, url in self._urls.items()}

    def __enter__(self) -> Self:
        for proxy in self.all:
            proxy.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self.all:
            proxy.close()

    @property
    def all(self) -> list[Proxy]:
        """Every proxy."""
        return [*self.gateway.values(), *self.workers.values()]

    def to(self, server: str) -> list[Proxy]:
        """The proxies to a server, ``store`` or ``broker``."""
        return [self.gateway[server], self.workers[server]]

    def environment(self, proxies: dict[str, Proxy]) -> dict[str, str]:
        """The URLs of the servers through these proxies."""
        return {f"PENSTOCK_{server.upper()}_URL": proxy.url(self._urls[server]) for server, proxy in proxies.items()}


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None, f"no port to forward to in {url}"
    return port
