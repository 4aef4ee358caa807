"""Whether a port can be listened on, asked before anything is started."""

from __future__ import annotations

import errno
import socket

from jobs.errors import SetupError


def check_port(host: str, port: int, variable: str) -> None:
    """Refuse a port that cannot be listened on; ``variable`` is the setting's stem, as ``PENSTOCK_PORT``."""
    try:
        _listen(host, port).close()
    except (socket.gaierror, UnicodeError):
        raise SetupError(f"{host} is no address of this machine: see {_host_of(variable)}") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            line = f"port {port} on {host} is in use: stop what uses it, or set {variable} to a free one"
            raise SetupError(line) from None
        line = f"cannot listen on port {port} of {host} ({error.strerror}): see {variable}, {_host_of(variable)}"
        raise SetupError(line) from None


def free_port(host: str) -> int:
    """Name a port of ``host`` that is free now (the kernel avoids giving it again at once)."""
    with _listen(host, 0) as listener:
        return int(listener.getsockname()[1])


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def _host_of(variable: str) -> str:
    return variable.replace("PORT", "HOST")
