# SPDX-License-Identifier: Apache-2.0
"""Who may speak to the dashboard: the names it answers to, and the operators' tokens.

A page of a stranger, open in the operator's browser, can send requests to this machine. It cannot read answers of
another origin, unless its name is made to resolve to this machine (DNS rebinding): so requests for names that are not
ours are refused. It can send commands blindly, unless they need what only our page knows: so commands need a token in a
header and JSON, and there are no cookies."""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedcore.errors import ConfigError

__all__ = ["Guard", "Tokens", "is_our_name", "is_our_page", "load_tokens"]

_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_LEAST_CHARACTERS = 16
_TOKEN = re.compile(r"[\x21-\x7e]+")
_OPERATOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


class Tokens:
    """Operators by token.

    Args:
        operators: Name by token.
    """

    def __init__(self, operators: dict[str, str]) -> None:
        self._operators = [(token.encode(), name) for token, name in operators.items()]

    def __bool__(self) -> bool:
        return bool(self._operators)

    def operator(self, header: str) -> str | None:
        """Who sends this `Authorization` header; None for nobody we know. Takes the same time whatever of a token is
        right."""
        scheme, _, given = header.partition(" ")
        secret = given.strip().encode("utf-8", "replace")
        found = [name for token, name in self._operators if hmac.compare_digest(token, secret)]
        return found[0] if found and scheme.lower() == "bearer" else None


def load_tokens(path: Path) -> Tokens:
    """A file of tokens: one a line, after its operator's name if it has one. `#` begins a comment.

    Raises:
        ConfigError: It cannot be read, others can read it, or a line of it is no token.
    """
    place = str(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        readable_by_others = path.stat().st_mode & 0o077
    except (OSError, UnicodeDecodeError) as error:
        remedy = f"openssl rand -hex 24 > {path}; chmod 600 {path}"
        raise ConfigError(f"the token file cannot be read: {error}", place=place, remedy=remedy) from None
    if readable_by_others:
        raise ConfigError("others can read this token file", place=place, remedy=f"chmod 600 {path}")
    operators: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        name, token = (words[0], words[1]) if len(words) == 2 else ("operator", words[0])
        if len(words) > 2 or not _OPERATOR.fullmatch(name) or not _TOKEN.fullmatch(token):
            raise ConfigError("not TOKEN or NAME TOKEN", place=f"{place}:{number}")
        if len(token) < _LEAST_CHARACTERS:
            raise ConfigError(
                f"a token has at least {_LEAST_CHARACTERS} characters",
                place=f"{place}:{number}",
                remedy="openssl rand -hex 24",
            )
        if token in operators:
            raise ConfigError("this token is there twice", place=f"{place}:{number}")
        operators[token] = name
    if not operators:
        raise ConfigError("no token in this file", place=place, remedy=f"openssl rand -hex 24 > {path}")
    return Tokens(operators)


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


class Guard:
    """Around the whole application: refuses foreign names, and gives every answer its headers.

    Args:
        app: What is guarded.
        names: Names that a reverse proxy gives us.
    """

    def __init__(self, app: ASGIApp, names: tuple[str, ...]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        host = Headers(scope=scope).get("host", "")
        if is_our_name(host, self._names):
            await self._app(scope, receive, with_headers)
            return
        text = "this dashboard does not answer to that name: use its address, or start it with --dashboard-name NAME"
        await JSONResponse({"error": text}, 421)(scope, receive, with_headers)
