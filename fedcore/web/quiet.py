# SPDX-License-Identifier: Apache-2.0
"""How all of ours that answer HTTP run uvicorn."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["HEADER_SECONDS", "quiet_config"]

HEADER_SECONDS = 10.0
"""What a client has to send a request's head in: whoever takes a connection and says nothing gives it back."""


class _Punctual(H11Protocol):
    """Ends connections on which no whole request head has come in time."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._wait_no_more()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """See uvicorn."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._wait_no_more()

    def on_response_complete(self) -> None:
        """See uvicorn."""
        self._wait()
        super().on_response_complete()

    def _wait(self) -> None:
        self._wait_no_more()
        self._late = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def quiet_config(app: Any, *, most_connections: int, stop_seconds: int) -> uvicorn.Config:
    """Settings of a server that says nothing of its requests.

    Only faults of our own are logged: requests would let strangers write on the owner's terminal.

    Args:
        app: An ASGI application.
        most_connections: Beyond these, a client gets 503.
        stop_seconds: What answers that are under way have left once the server is to end.
    """
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=_Punctual,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=most_connections,
        timeout_graceful_shutdown=stop_seconds,
    )
