# SPDX-License-Identifier: Apache-2.0
"""Who may speak to the dashboard: requests for its own names, answered with headers that shut a page in.

A page of a stranger, open in the operator's browser, can send requests to this machine. It cannot read answers of
another origin, unless its name is made to resolve to this machine (DNS rebinding): so requests for names that are not
ours are refused. It can send commands blindly, unless they need what only our page knows: so commands need a token in a
header and JSON, and there are no cookies."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedcore.web.names import is_our_name

__all__ = ["Guard"]

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
