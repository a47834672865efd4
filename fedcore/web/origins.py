# SPDX-License-Identifier: Apache-2.0
"""Servers of HTTP that somebody names in a file, and addresses there that others hand us: an address counts where its
origin is one of those that were named, and nowhere else."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from fedcore.errors import ConfigError

__all__ = ["MAX_ADDRESS", "Origin", "origin_of", "split_address"]

MAX_ADDRESS: Final = 2048
"""Characters of an address at most; a presigned one of S3 has some 300 to 1,500."""
_PORTS: Final = {"http": 80, "https": 443}
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,252})\Z")


@dataclass(frozen=True)
class Origin:
    """A server: scheme, host and port, as browsers tell one from another.

    Attributes:
        scheme: `https`; `http` only where no name has to be looked up.
        host: A name, or an IP address without brackets.
        port: From 1 up.
    """

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == _PORTS[self.scheme] else f":{self.port}")


def split_address(address: str) -> tuple[Origin, str]:
    """An address's origin, and the path and query to ask for there.

    Without TLS a host must be an IP address or `localhost`: whoever answers for a name could lead to any other machine
    that can be reached from here.

    Args:
        address: From a file or from the wire.

    Raises:
        ValueError: It is none, has a login or a fragment, or is too long.

    Example:
        >>> origin, target = split_address("https://s3.example.org:8333/runs/a?X-Amz-Expires=600")
        >>> str(origin), target
        ('https://s3.example.org:8333', '/runs/a?X-Amz-Expires=600')
    """
    if len(address) > MAX_ADDRESS:
        raise ValueError(f"more than {MAX_ADDRESS} characters")
    if not address.isascii() or not address.isprintable() or set(address) & set(' \\"<>#'):
        raise ValueError("a character that no address has")
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port
    if parts.scheme not in _PORTS or not host or port == 0:
        raise ValueError("no address of HTTP")
    if "@" in parts.netloc:
        raise ValueError("an address has no login in it")
    if parts.scheme == "http" and host != "localhost" and not _is_number(host):
        raise ValueError("without TLS, a host is an IP address or localhost")
    if not _is_number(host) and not _NAME.match(host):
        raise ValueError("no name of a host")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Origin(parts.scheme, host, port or _PORTS[parts.scheme]), target


def origin_of(text: str, place: str) -> Origin:
    """A server that a file names.

    Args:
        text: `https://host` or `https://host:port`.
        place: The key, for errors.

    Raises:
        ConfigError: It is none.
    """
    try:
        origin, target = split_address(text)
    except ValueError as error:
        wrong = str(error)
    else:
        if target == "/":
            return origin
        wrong = "a path, where a server alone is meant"
    remedy = "https://HOST or https://HOST:PORT; http:// with an IP address or localhost alone"
    raise ConfigError(f"{text[:80]!r}: {wrong}", place=place, remedy=remedy)


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
