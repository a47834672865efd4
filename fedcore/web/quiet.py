# SPDX-License-Identifier: Apache-2.0
"""How all of ours that answer HTTP run uvicorn."""

from __future__ import annotations

from typing import Any

import uvicorn

__all__ = ["quiet_config"]


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
        http="h11",
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
