# SPDX-License-Identifier: Apache-2.0
"""Taking an address to answer at, before anything else is started: a wrong one is told at once."""

from __future__ import annotations

import ipaddress
import socket

from fedcore.errors import ConfigError

__all__ = ["is_loopback", "listening", "url_of"]

_BACKLOG = 128


def listening(host: str, port: int, *, what: str, place: str, remedy: str) -> socket.socket:
    """A socket that listens.

    Args:
        host: Name or address.
        port: 0 for a free one.
        what: That will listen: of an error.
        place: What was typed: of an error.
        remedy: Of an error.

    Raises:
        ConfigError: There is no such address, or it cannot be had.

    Example:
        >>> with listening("127.0.0.1", 0, what="it", place="--port", remedy="another") as sock:
        ...     url_of(sock).startswith("http://127.0.0.1:"), is_loopback(sock)
        (True, True)
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"{what} has no such address: {error.strerror}", place=place, remedy=remedy) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        # Somebody may be listening all the same, where addresses can be shared: this is when it shows.
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(f"{what} cannot listen: {error.strerror}", place=place, remedy=remedy) from None
    return sock


def is_loopback(sock: socket.socket) -> bool:
    """Whether only this machine can reach a socket."""
    return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


def url_of(sock: socket.socket) -> str:
    """Where a socket listens: `http://HOST:PORT`."""
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
