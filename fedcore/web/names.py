# SPDX-License-Identifier: Apache-2.0
"""Names that a request may be for.

A page of a stranger, open in a browser on this machine, can send requests to this machine. It cannot read answers of
another origin, unless its name is made to resolve to this machine (DNS rebinding): so requests for names that are not
ours are refused."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

__all__ = ["is_our_name", "is_our_page"]


def is_our_name(host: str, names: Iterable[str]) -> bool:
    """Whether a `Host` header can be meant for us: an address, which nobody can make resolve, this machine's name, or a
    name we were given.

    Example:
        >>> is_our_name("127.0.0.1:8080", ()), is_our_name("rebound.example:8080", ())
        (True, False)
        >>> is_our_name("fleet.example", ["fleet.example"])
        True
    """
    name = _name_of(host)
    if not name:
        return False
    if name == "localhost" or name.endswith(".localhost") or name in {given.lower() for given in names}:
        return True
    own = socket.gethostname().lower()
    if name in (own, own.partition(".")[0], f"{own.partition('.')[0]}.local"):
        return True
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def is_our_page(origin: str, host: str, names: Iterable[str]) -> bool:
    """Whether an `Origin` is the page that we served ourselves, directly or behind a proxy with one of our names.

    Example:
        >>> is_our_page("http://127.0.0.1:8080", "127.0.0.1:8080", ())
        True
        >>> is_our_page("http://10.0.0.9", "127.0.0.1:8080", ())
        False
        >>> is_our_page("https://fleet.example", "127.0.0.1:8080", ["fleet.example"])
        True
    """
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return False
    return parts.netloc.lower() == host.lower() or _name_of(parts.netloc) in {name.lower() for name in names}


def _name_of(host: str) -> str:
    try:
        parts = urlsplit(f"//{host}")
        # Reading the port checks it.
        return (parts.hostname or "") if parts.port is None or parts.port > 0 else ""
    except ValueError:
        return ""
