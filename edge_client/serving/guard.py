# SPDX-License-Identifier: Apache-2.0
"""Who may ask: whoever uses one of our names, comes from no foreign page, and, where there are tokens, has one."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from edge_client.serving.refusals import Refusal
from fedcore.web.guesses import Guesses
from fedcore.web.names import is_our_name, is_our_page
from fedcore.web.tokens import Tokens

__all__ = ["Guard"]

_OPEN = ("/health",)
"""Says without a token whether it is up, and no more."""


class Guard:
    """Around the whole application.

    Args:
        app: What is guarded. It finds in `scope["state"]["known"]` whether the client may know everything.
        tokens: Empty: everybody who reaches us may ask.
        guesses: Slows and tells of whoever sends a wrong token.
        names: Names that a reverse proxy gives us.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens, guesses: Guesses, names: tuple[str, ...] = ()) -> None:
        self._app, self._tokens, self._guesses, self._names = app, tokens, guesses, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        known = not self._tokens or self._tokens.operator(headers.get("authorization", "")) is not None
        if not known and "authorization" in headers:
            # Also where nobody needs one: an open page must not tell whether a guess was right any sooner.
            client = scope.get("client")
            await self._guesses.wrong(client[0] if client else "an unknown address")
        refusal = self._refusal(headers, scope["path"], known=known)
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
