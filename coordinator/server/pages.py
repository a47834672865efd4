# SPDX-License-Identifier: Apache-2.0
"""Pages of a server: all runs on one, and each run's dashboard, made from the view that its process writes. So runs
that have ended have one too, and nothing that a browser asks for reaches a run's process."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.dashboard.app import Wiring, answer_asset, make_app
from coordinator.dashboard.assets import load_assets
from coordinator.dashboard.board import Board
from coordinator.run.control import Answer, Command
from coordinator.server.app import Lobby
from coordinator.store.folder import RunFolder
from coordinator.store.viewfile import read_view
from fedcore.web.tokens import Tokens

__all__ = ["pages"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LOOK_SECONDS = 1.0
# Of a dashboard at which nobody looks any more.
_KEPT_SECONDS = 120.0
_MOST_SHOWN = 64
_READ_ONLY = "read-only: stop a run on the server's page"


@dataclass
class _Shown:
    """One run's dashboard."""

    board: Board
    app: ASGIApp
    stamp: tuple[int, int]
    asked_at: float
    task: asyncio.Task[None] | None = None


class _Dashboards:
    """Each run's dashboard, for as long as somebody looks.

    Args:
        runs: The folder of runs.
        lobby: Who may look.
    """

    def __init__(self, runs: Path, lobby: Lobby) -> None:
        self._runs, self._lobby, self._page = runs, lobby, load_assets()["index.html"]
        self._shown: dict[str, _Shown] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            app = await self._app_of(Request(scope), str(scope["path_params"]["run"]))
        except HTTPException as error:
            app = JSONResponse({"error": error.detail}, error.status_code, dict(error.headers or {}))
        await app(scope, receive, send)

    async def _app_of(self, request: Request, run: str) -> ASGIApp:
        if not _NAME.fullmatch(run) or not RunFolder(self._runs / run).job.exists():
            raise HTTPException(404, "there is no such run")
        below = request.scope["path"].removeprefix(request.scope["root_path"])
        if below == "" or below == "/" or below.startswith("/nodes/"):
            # The page itself says nothing of the run.
            return answer_asset(self._page, request)
        self._lobby.require(request, "viewer")
        shown = self._shown.get(run) or await self._opened(run)
        shown.asked_at = time.monotonic()
        return shown.app

    async def _opened(self, run: str) -> _Shown:
        folder = RunFolder(self._runs / run)
        seen = await asyncio.to_thread(read_view, folder.view)
        if seen is None:
            raise HTTPException(404, "nothing is known of this run yet: its process has not written a view")
        if len(self._shown) >= _MOST_SHOWN:
            raise HTTPException(503, "too many dashboards are looked at")
        board, clock = Board(seen.view.encoded()), time.monotonic
        wiring = Wiring(board, folder.ledger, clock, _refusing, Tokens({}), self._lobby.names)
        shown = self._shown[run] = _Shown(board, make_app(wiring), _stamp_of(folder.view), clock())
        shown.task = asyncio.create_task(self._follow(run, shown))
        return shown

    async def _follow(self, run: str, shown: _Shown) -> None:
        path = RunFolder(self._runs / run).view
        while shown.board.viewers or time.monotonic() - shown.asked_at < _KEPT_SECONDS:
            await asyncio.sleep(_LOOK_SECONDS)
            stamp = await asyncio.to_thread(_stamp_of, path)
            if stamp != shown.stamp and (seen := await asyncio.to_thread(read_view, path)) is not None:
                shown.stamp = stamp
                shown.board.take(seen.view.encoded())
        self._shown.pop(run, None)
        shown.board.close()


def pages(runs: Path, lobby: Lobby) -> list[Any]:
    """Routes of all pages.

    Args:
        runs: The folder of runs.
        lobby: Who may look.
    """
    assets = load_assets()

    async def fleet(request: Request) -> Response:
        return answer_asset(assets.get("fleet.html"), request)

    async def static(request: Request) -> Response:
        return answer_asset(assets.get(request.path_params["path"]), request)

    async def slash(request: Request) -> Response:
        return RedirectResponse(f"{request.url.path}/")

    return [
        Route("/", fleet),
        Route("/static/{path:path}", static),
        Route("/runs/{run}", slash),
        Mount("/runs/{run}", app=_Dashboards(runs, lobby)),
    ]


def _stamp_of(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _refusing(_command: Command, _by: str) -> Future[Answer]:
    answer: Future[Answer] = Future()
    answer.set_result(Answer(False, _READ_ONLY))
    return answer
