# SPDX-License-Identifier: Apache-2.0
"""Who may ask: whoever uses one of our names, comes from no foreign page, and, where there are tokens, has one."""

from __future__ import annotations

import math

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from edge_client.serving.refusals import Refusal
from fedcore.web.entrance import Entrance, TooManyGuesses
from fedcore.web.names import is_our_name, is_our_page

__all__ = ["Guard"]

_OPEN = ("/health",)
"""Says without a token whether it is up, and no more."""


class Guard:
    """Around the whole application.

    Args:
        app: What is guarded. It finds in `scope["state"]["known"]` whether the client may know everything.
        entrance: Of tokens; without any, everybody who reaches us may ask.
        names: Names that a reverse proxy gives us.
    """

    def __init__(self, app: ASGIApp, entrance: Entrance, names: tuple[str, ...] = ()) -> None:
        self._app, self._entrance, self._names = app, entrance, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        address, header = (scope.get("client") or ("",))[0], headers.get("authorization", "")
        try:
            known = not self._entrance or self._entrance.operator(address, header) is not None
            refusal = self._refusal(headers, scope["path"], known=known)
        except TooManyGuesses as error:
            known, refusal = False, Refusal(429, str(error), retry_after_seconds=math.ceil(error.seconds))
        if refusal is not None:
            await JSONResponse(refusal.body(), refusal.status, refusal.headers)(scope, receive, send)
            return
        scope.setdefault("state", {})["known"] = known
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers, path: str, *, known: bool) -> Refusal | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_our_name(host, self._names):
            return Refusal(421, "this server does not answer to that name: use its address, or start it with --name")
        if origin is not None and not is_our_page(origin, host, self._names):
            return Refusal(403, "pages of other origins may not ask this server")
        if not known and path not in _OPEN:
            return Refusal(401, "the token is missing or wrong: Authorization: Bearer TOKEN", code="invalid_api_key")
        return None
