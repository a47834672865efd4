# SPDX-License-Identifier: Apache-2.0
"""An answer on its way out: collected into one text, or event by event as it comes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edge_client.serving.refusals import Refusal
from edge_client.serving.replies import DONE, Completion, event
from edge_client.serving.ticket import ClientLeft
from fedcore.worker.serving import Classified, Generated, Token

__all__ = ["EventStream", "streamed", "whole"]

_Part = Token | Generated | Classified


async def whole(first: _Part, rest: AsyncIterator[_Part]) -> tuple[str, Generated]:
    """All of an answer's text, and how it ended."""
    texts, part = [], first
    while isinstance(part, Token):
        texts.append(part.text)
        part = await anext(rest)
    assert isinstance(part, Generated)
    return "".join(texts), part


async def streamed(
    completion: Completion, include_usage: bool, first: _Part, rest: AsyncIterator[_Part]
) -> AsyncIterator[bytes]:
    """An answer as server-sent events; one that breaks off ends with an error, and without the last event."""
    yield event(completion.begins())
    part = first
    try:
        while isinstance(part, Token):
            if part.text:
                yield event(completion.more(part.text))
            part = await anext(rest)
    except Refusal as refusal:
        # Too late for a status.
        yield event(refusal)
        return
    assert isinstance(part, Generated)
    yield event(completion.ends(part))
    if include_usage:
        yield event(completion.counts(part))
    yield DONE


class EventStream(Response):
    """Server-sent events, until they end or the client is gone.

    Args:
        events: As bytes.
        leaving: Closed at the end, however it comes.
    """

    def __init__(self, events: AsyncIterator[bytes], leaving: contextlib.ExitStack) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._events, self._leaving = events, leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        with self._leaving, contextlib.suppress(ClientLeft):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for part in self._events:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
