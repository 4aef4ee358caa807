"""HTTP/1.1 as plainly as it goes: for a client that must not be what is measured.

httpx looks at every connection of its pool with each request, and queues beyond the pool's end; with two hundred
answers outstanding it took seconds that were not the gateway's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from urllib.parse import urlsplit

HEAD_END = b"\r\n\r\n"
KEPT_S = 2.0
"""How long an idle connection is kept: less than the gateway keeps it, else a request races its end."""


class Wire:
    """Connections to one server; each carries one request at a time, and there are as many as are needed."""

    def __init__(self, url: str, *, keepalive: bool) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._keepalive = keepalive
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def request(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; OSError or EOFError: none came, ConnectionRefusedError: nothing was sent."""
        reader, writer = await self._connection()
        try:
            writer.write(_request(method, path, {"Host": f"{self._host}:{self._port}", **headers}, body) + body)
            status, fields = _head(await reader.readuntil(HEAD_END))
            content = await _content(reader, fields)
        except BaseException:
            writer.close()
            raise
        if self._keepalive and fields.get("connection") != "close":
            self._idle.append((time.monotonic(), reader, writer))
        else:
            writer.close()
        return status, content

    async def close(self) -> None:
        """Close what is idle."""
        for _, _, writer in self._idle:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        self._idle.clear()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.monotonic() - since < KEPT_S and not reader.at_eof() and reader.exception() is None:
                return reader, writer
            writer.close()
        try:
            return await asyncio.open_connection(self._host, self._port)
        except OSError as error:
            raise ConnectionRefusedError from error


def _request(method: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()


def _head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    fields = (line.partition(":") for line in lines)
    return int(first.split()[1]), {name.lower(): value.strip().lower() for name, _, value in fields}


async def _content(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if fields.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(fields.get("content-length", 0)))
    content = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        content += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return content
