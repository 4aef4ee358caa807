"""The process of `tests.proxy.Proxy`: forwards a port, and does what it is told on standard input, a line each.

    python proxy_process.py SERVER_PORT

It prints its port, then an answer to each line: the connections ever made and those now open. It ends with its
standard input, so it outlives nobody. A process of its own, lest forwarding slow down the test's client.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable

LOOPBACK = "127.0.0.1"
CHUNK_BYTES = 64 * 1024
CHUNKS_MAX = 256
"""Chunks under way in one direction; a sender that is further ahead is held up, as by a full socket."""
BACKLOG = 128
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Forwarder:
    """One forwarded port; its methods are the words of the lines."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._loop = asyncio.get_running_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._links: set[_Link] = set()
        self._forgotten: list[socket.socket] = []
        self._fillers: list[socket.socket] = []
        self._listener = _listen(0)
        self.port = int(self._listener.getsockname()[1])
        self._accepting: asyncio.Task[None] | None = None
        self.latency_s = 0.0
        self._cut_bytes: int | None = None
        self.accepted = 0

    @property
    def connections(self) -> int:
        """Connections that are open, those to nowhere not counted."""
        return len(self._links)

    async def open(self) -> None:
        """Listen."""
        if self._listener.fileno() < 0:
            self._listener = _listen(self.port)
        self._listener.listen(BACKLOG)
        if self._accepting is None:
            self._accepting = asyncio.create_task(self._accept())

    async def slow(self, latency_s: str) -> None:
        """Deliver what is sent from now on late, each way."""
        self.latency_s = float(latency_s)

    async def count(self) -> None:
        """Tell the counts alone."""

    async def _stop_accepting(self) -> None:
        task, self._accepting = self._accepting, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def refuse(self) -> None:
        """Refuse new connections."""
        await self._stop_accepting()
        self._listener.close()
        self._drop_fillers()

    async def blackhole(self) -> None:
        """Let nothing through, and answer no new connection."""
        self._flows.clear()
        await self._stop_accepting()
        self._listener.listen(0)  # one connection fills this queue, and the kernel drops further attempts
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex((LOOPBACK, self.port))
        self._fillers.append(filler)

    async def normal(self) -> None:
        """Forward as if nothing had been."""
        self.latency_s, self._cut_bytes = 0.0, None
        self._flows.set()
        await self.open()

    async def reset(self) -> None:
        """Reset every open connection."""
        for link in list(self._links):
            await link.end()
        self._links.clear()
        while self._forgotten:
            _reset(self._forgotten.pop())

    async def half_open(self) -> None:
        """Close every open connection at its server only."""
        for link in list(self._links):
            self._links.discard(link)
            await link.stop()
            link.server.close()
            self._forgotten.append(link.client)

    async def cut_after(self, count_bytes: str) -> None:
        """Reset each connection once it has carried so many bytes more."""
        self._cut_bytes = int(count_bytes)
        for link in self._links:
            link.carried = 0

    def _drop_fillers(self) -> None:
        while self._fillers:
            self._fillers.pop().close()

    async def _accept(self) -> None:
        fillers = {filler.getsockname() for filler in self._fillers}
        self._drop_fillers()
        while True:
            client, address = await self._loop.sock_accept(self._listener)
            client.setblocking(False)
            if address in fillers:
                client.close()
                continue
            self.accepted += 1
            await self._link(client)

    async def _link(self, client: socket.socket) -> None:
        server = socket.socket()
        server.setblocking(False)
        try:
            await self._loop.sock_connect(server, (LOOPBACK, self._server_port))
        except OSError:
            server.close()
            _reset(client)
            return
        link = _Link(client, server)
        self._links.add(link)
        link.start(self)

    # --- What a link asks ---

    async def may_flow(self) -> None:
        """Return when bytes are let through."""
        await self._flows.wait()

    def allowed(self, link: _Link, wanted: int) -> int:
        """How many of these bytes the link may still carry."""
        return wanted if self._cut_bytes is None else max(0, min(wanted, self._cut_bytes - link.carried))

    def over(self, link: _Link) -> None:
        """Forget a link that has ended."""
        self._links.discard(link)


class _Link:
    """One connection: two sockets and a pump each way."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.carried = 0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, proxy: Forwarder) -> None:
        """Begin to forward."""
        for sock in (self.client, self.server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tasks = [asyncio.create_task(self._carry(proxy))]

    async def stop(self) -> None:
        """Forward no more; the sockets stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def end(self) -> None:
        """Reset both ends."""
        await self.stop()
        _reset(self.client)
        _reset(self.server)

    async def _carry(self, proxy: Forwarder) -> None:
        ways = [_Way(self, proxy, self.client, self.server), _Way(self, proxy, self.server, self.client)]
        tasks = [asyncio.create_task(task) for way in ways for task in (way.read(), way.deliver_late())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        broken = any(task.exception() is not None for task in done)
        for sock in (self.client, self.server):
            _reset(sock) if broken else sock.close()
        proxy.over(self)


class _Way:
    """One direction of a connection; both methods end when the source has ended, and raise where it is cut."""

    def __init__(self, link: _Link, proxy: Forwarder, source: socket.socket, to: socket.socket) -> None:
        self._link, self._proxy, self._source, self._to = link, proxy, source, to
        self._late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_MAX)
        self._late_count = 0

    async def read(self) -> None:
        """Forward at once, or leave it to ``deliver_late``."""
        while True:
            data = await _receive(self._source)
            if self._proxy.latency_s or self._late_count:
                self._late_count += 1
                await self._late.put((time.monotonic() + self._proxy.latency_s, data))
                if not data:
                    await asyncio.Event().wait()  # the other task ends the link, when it comes to the end
            elif not await self._send(data):
                return

    async def deliver_late(self) -> None:
        """Forward what is due."""
        while True:
            due, data = await self._late.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if not await self._send(data):
                return
            self._late_count -= 1

    async def _send(self, data: bytes) -> bool:
        """Forward when bytes may flow; False at the end of them."""
        await self._proxy.may_flow()
        allowed = self._proxy.allowed(self._link, len(data))
        self._link.carried += allowed
        with contextlib.suppress(BrokenPipeError):
            await asyncio.get_running_loop().sock_sendall(self._to, data[:allowed])
        if allowed < len(data):
            raise ConnectionResetError
        return bool(data)


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setblocking(False)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((LOOPBACK, port))
    return listener


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


async def _receive(source: socket.socket) -> bytes:
    with contextlib.suppress(OSError):
        return await asyncio.get_running_loop().sock_recv(source, CHUNK_BYTES)
    return b""


async def _serve(server_port: int) -> None:
    forwarder = Forwarder(server_port)
    await forwarder.open()
    _say(forwarder.port)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := (await lines.readline()).decode():
        word, *arguments = line.split()
        act: Callable[..., Awaitable[None]] = getattr(forwarder, word)
        await act(*arguments)
        _say(forwarder.accepted, forwarder.connections)


def _say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
