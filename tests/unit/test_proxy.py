"""The proxy that the fault tests put between us and our servers does to a connection what it says."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.proxy import Proxy
from tests.servers import LOOPBACK
from tests.waiting import wait_until

SILENCE_S = 0.3


class Echo:
    """A server that sends back what it gets."""

    def __init__(self) -> None:
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port = int(self._listener.getsockname()[1])
        self.closed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)
        self.closed += 1


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with _connect(proxy) as client:
        assert _ask(client, b"hello") == b"hello"
        yield client


def _connect(proxy: Proxy, timeout_s: float = 5.0) -> socket.socket:
    return socket.create_connection((LOOPBACK, proxy.port), timeout_s)


def _ask(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    got = b""
    while len(got) < len(data):
        more = client.recv(65536)
        if not more:
            break
        got += more
    return got


def _is_silent(client: socket.socket) -> bool:
    client.settimeout(SILENCE_S)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5.0)
    return False


def test_it_forwards_and_counts(proxy: Proxy, client: socket.socket) -> None:
    much = bytes(range(256)) * 4096
    threading.Thread(target=client.sendall, args=(much,)).start()
    got = b""
    while len(got) < len(much):
        got += client.recv(65536)
    assert got == much
    assert (proxy.accepted, proxy.connections) == (1, 1)
    client.close()
    wait_until(lambda: proxy.connections == 0, 5.0, "the end is forwarded")


def test_a_url_goes_through_it_with_user_and_path(proxy: Proxy) -> None:
    assert proxy.url("amqp://guest:guest@localhost:5672//") == f"amqp://guest:guest@127.0.0.1:{proxy.port}//"
    assert proxy.url("redis://127.0.0.1:6379/0") == f"redis://127.0.0.1:{proxy.port}/0"


def test_latency_is_met_each_way(proxy: Proxy, client: socket.socket) -> None:
    proxy.slow(0.15)
    started = time.monotonic()
    assert _ask(client, b"slow") == b"slow"
    assert 0.3 <= time.monotonic() - started < 1.0
    proxy.normal()
    started = time.monotonic()
    assert _ask(client, b"fast") == b"fast"
    assert time.monotonic() - started < 0.15


def test_in_a_blackhole_old_connections_are_silent_and_new_ones_hang(proxy: Proxy, client: socket.socket) -> None:
    proxy.blackhole()
    client.sendall(b"late")
    assert _is_silent(client)
    with pytest.raises(TimeoutError):
        _connect(proxy, SILENCE_S)
    proxy.normal()
    assert client.recv(4) == b"late", "TCP sends again what got no answer"
    with _connect(proxy) as other:
        assert _ask(other, b"new") == b"new"
    assert proxy.accepted <= 3, "what fills the queue is not counted"


def test_a_refusal_meets_new_connections_only(proxy: Proxy, client: socket.socket) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        _connect(proxy)
    assert _ask(client, b"old") == b"old"
    proxy.normal()
    with _connect(proxy) as other:
        assert _ask(other, b"new") == b"new"


def test_a_reset_meets_every_open_connection(proxy: Proxy, client: socket.socket) -> None:
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert proxy.connections == 0
    with _connect(proxy) as other:
        assert _ask(other, b"new") == b"new"


def test_a_half_open_connection_is_closed_at_its_server_and_silent_at_its_client(
    proxy: Proxy, client: socket.socket, echo: Echo
) -> None:
    proxy.half_open()
    wait_until(lambda: echo.closed == 1, 5.0, "the server sees the end")
    client.sendall(b"anybody?")
    assert _is_silent(client)
    with _connect(proxy) as other:
        assert _ask(other, b"new") == b"new"


def test_a_cut_comes_in_the_middle_of_what_is_sent(proxy: Proxy, client: socket.socket) -> None:
    proxy.cut_after(25)  # twenty bytes there, five of them back
    with pytest.raises(ConnectionResetError):
        _ask(client, b"0123456789" * 2)
    proxy.normal()
    with _connect(proxy) as other:
        assert _ask(other, b"0123456789" * 10) == b"0123456789" * 10


def test_a_server_that_is_gone_shows_as_a_reset(proxy: Proxy, echo: Echo) -> None:
    echo.close()
    with _connect(proxy) as client, pytest.raises(ConnectionResetError):
        client.recv(1)
