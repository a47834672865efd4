# SPDX-License-Identifier: Apache-2.0
"""The dashboard as an ASGI application: every request in one short function. docs/dashboard.md tells the interface."""

from __future__ import annotations

import asyncio
import gzip
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from coordinator.dashboard.assets import Asset, load_assets
from coordinator.dashboard.board import Board
from coordinator.dashboard.guard import Guard
from coordinator.dashboard.metrics import exposition
from coordinator.run.control import Command, Commander, Report, command_of
from coordinator.store.places import read_events
from fedcore.errors import ConfigError, RunError
from fedcore.web.bodies import json_body
from fedcore.web.entrance import Entrance, TooManyGuesses
from fedcore.web.names import is_our_page
from fedcore.web.tokens import Tokens

__all__ = ["Wiring", "answer_asset", "make_app"]

"""Asks the coordinator's loop to obey somebody."""
_ANSWER_SECONDS = 30.0
# A large model's sum takes a while, and so does a merge.
_SILENT_SECONDS = 60.0
_MOST_BODY_BYTES = 4096
_EVENTS, _MOST_EVENTS = 200, 1000


class _CommandBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    command: str
    node: str = ""


@dataclass
class Wiring:
    """What the application is connected to."""

    board: Board
    ledger: Path
    """The run's, for its event log."""
    turned_at: Callable[[], float]
    """When the coordinator's loop was last heard of, on the monotonic clock."""
    command: Commander
    tokens: Tokens
    """Empty: read-only."""
    names: tuple[str, ...] = ()
    """Of a reverse proxy."""
    answer_seconds: float = _ANSWER_SECONDS
    silent_seconds: float = _SILENT_SECONDS


def make_app(wiring: Wiring) -> ASGIApp:
    """The application, guarded."""
    api, assets = _Api(wiring), load_assets()

    async def page(request: Request) -> Response:
        return answer_asset(assets.get("index.html"), request)

    async def static(request: Request) -> Response:
        return answer_asset(assets.get(request.path_params["path"]), request)

    routes = [
        Route("/", page),
        Route("/nodes/{node}", page),
        Route("/static/{path:path}", static),
        Route("/api/run", api.run),
        Route("/api/stream", api.stream),
        Route("/api/nodes/{node}", api.node),
        Route("/api/events", api.events),
        Route("/api/session", api.session),
        Route("/api/commands", api.commands, methods=["POST"]),
        Route("/metrics", api.metrics),
        Route("/healthz", api.healthz),
    ]
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {HTTPException: _refusal, 500: _failure}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), wiring.names)


class _Api:
    def __init__(self, wiring: Wiring) -> None:
        self._wiring, self._board = wiring, wiring.board
        self._entrance = Entrance(wiring.tokens, lambda text: _report(wiring.command, text))

    async def run(self, request: Request) -> Response:
        """The view."""
        board = self._board
        headers = {"etag": board.etag, "cache-control": "no-cache", "vary": "accept-encoding"}
        if _holds(request, board.etag):
            return Response(status_code=304, headers=headers)
        if _takes_gzip(request):
            data = board.made("gzip", lambda: gzip.compress(board.data, 1, mtime=0))
            return Response(data, headers=headers | {"content-encoding": "gzip"}, media_type="application/json")
        return Response(board.data, headers=headers, media_type="application/json")

    async def stream(self, request: Request) -> Response:
        """The view whenever it changes; with `?changes=1` what is new in it."""
        if self._board.full:
            raise HTTPException(503, "too many viewers: close one, or look at /api/run")
        headers = {"cache-control": "no-store", "x-accel-buffering": "no", "vary": "accept-encoding"}
        gzipped = _takes_gzip(request)
        if gzipped:
            headers["content-encoding"] = "gzip"
        frames = self._board.frames(gzip=gzipped, changes=request.query_params.get("changes") == "1")
        return StreamingResponse(frames, headers=headers, media_type="text/event-stream")

    async def node(self, request: Request) -> Response:
        """A node and its history."""
        found = self._board.node(request.path_params["node"])
        if found is None:
            raise HTTPException(404, "no such node in this run")
        return _json(found)

    async def events(self, request: Request) -> Response:
        """Lines of the event log."""
        after = _number(request, "after", 0, 2**53)
        most = _number(request, "most", _EVENTS, _MOST_EVENTS)
        try:
            # In another thread: a busy disk makes nobody else wait.
            rows = await asyncio.to_thread(read_events, self._wiring.ledger, after, max(1, most))
        except RunError as error:
            raise HTTPException(503, error.one_line()) from None
        return _json({"events": rows, "last": rows[-1].number if rows else after})

    async def session(self, request: Request) -> Response:
        """What whoever asks may do."""
        name = self._operator(request)
        return _json({"control": bool(self._wiring.tokens), "authorized": name is not None, "name": name or ""})

    async def commands(self, request: Request) -> Response:
        """Obey an operator."""
        command, by = await self._command(request)
        asked = self._wiring.command(command, by)
        try:
            answer = await asyncio.wait_for(asyncio.wrap_future(asked), self._wiring.answer_seconds)
        except asyncio.TimeoutError:
            seconds = self._wiring.answer_seconds
            raise HTTPException(
                503, f"the coordinator has not answered for {seconds:.0f} s: look whether it is done"
            ) from None
        if not answer.done:
            raise HTTPException(409, answer.text)
        return _json({"said": answer.text}, 202)

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        board = self._board
        data = board.made("metrics", lambda: exposition(board.view))
        return Response(data, headers={"cache-control": "no-store", "content-type": CONTENT_TYPE_LATEST})

    async def healthz(self, request: Request) -> Response:
        """Whether the coordinator's loop turns."""
        silent, view = time.monotonic() - self._wiring.turned_at(), self._board.view
        word = {"run": view.run, "phase": view.phase, "round": view.round, "loop_turned_seconds_ago": round(silent, 1)}
        if silent > self._wiring.silent_seconds:
            return _json(
                {"status": "stuck", "error": f"the coordinator's loop has not turned for {silent:.0f} s", **word}, 503
            )
        return _json({"status": "ok", **word})

    def _operator(self, request: Request) -> str | None:
        address = request.client.host if request.client is not None else ""
        try:
            return self._entrance.operator(address, request.headers.get("authorization", ""))
        except TooManyGuesses as error:
            raise HTTPException(429, str(error), {"retry-after": str(math.ceil(error.seconds))}) from None

    async def _command(self, request: Request) -> tuple[Command, str]:
        """A command and who gives it, of a request that may give one."""
        origin = request.headers.get("origin")
        if origin is not None and not is_our_page(origin, request.headers.get("host", ""), self._wiring.names):
            raise HTTPException(403, "commands come from the dashboard's own page only")
        if not self._wiring.tokens:
            raise HTTPException(403, "read-only: start with --dashboard-token-file")
        by = self._operator(request)
        if by is None:
            raise HTTPException(401, "the token is missing or wrong", {"www-authenticate": "Bearer"})
        body = await json_body(
            request,
            _MOST_BODY_BYTES,
            not_json=HTTPException(415, "a command is JSON: Content-Type: application/json"),
            too_large=HTTPException(413, "a command is shorter"),
        )
        try:
            wanted = msgspec.json.decode(body, type=_CommandBody)
            return command_of(wanted.command, wanted.node), by
        except msgspec.DecodeError as error:
            raise HTTPException(400, f"not a command: {error}") from None
        except ConfigError as error:
            raise HTTPException(400, error.one_line()) from None


def _report(command: Commander, text: str) -> None:
    command(Report(text), "dashboard")


def answer_asset(asset: Asset | None, request: Request) -> Response:
    """A file of the page, or that its reader has it already.

    Raises:
        HTTPException: There is none.
    """
    if asset is None:
        raise HTTPException(404, "no such file")
    # Asked for again each time, and answered without its bytes: a newer version is seen at once.
    headers = {"etag": asset.etag, "cache-control": "no-cache", "vary": "accept-encoding", "content-type": asset.kind}
    if _holds(request, asset.etag):
        return Response(status_code=304, headers=headers)
    if asset.squeezed is not None and _takes_gzip(request):
        return Response(asset.squeezed, headers=headers | {"content-encoding": "gzip"})
    return Response(asset.data, headers=headers)


async def _refusal(request: Request, error: HTTPException) -> Response:
    text = (
        error.detail
        if error.status_code not in (404, 405) or error.detail not in ("Not Found", "Method Not Allowed")
        else ""
    )
    words = {404: "there is nothing here", 405: f"{request.method} is not for this"}
    return _json({"error": text or words[error.status_code]}, error.status_code, dict(error.headers or {}))


async def _failure(request: Request, error: Exception) -> Response:
    # The traceback goes to the server's log.
    return _json({"error": f"the dashboard failed at {request.url.path}: {type(error).__name__}"}, 500)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    headers = {"cache-control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def _holds(request: Request, etag: str) -> bool:
    held = request.headers.get("if-none-match", "")
    return etag in (tag.strip().removeprefix("W/") for tag in held.split(","))


def _takes_gzip(request: Request) -> bool:
    wanted = request.headers.get("accept-encoding", "").lower().replace(" ", "").split(",")
    return "gzip" in wanted or any(
        word.startswith("gzip;") and word not in ("gzip;q=0", "gzip;q=0.0") for word in wanted
    )


def _number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or len(text) > 16:
        raise HTTPException(400, f"{name} is a whole number")
    return min(int(text), most)
