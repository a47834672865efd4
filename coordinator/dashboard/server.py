# SPDX-License-Identifier: Apache-2.0
"""The dashboard's server: a thread with an event loop of its own, beside the coordinator's."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from pathlib import Path

import uvicorn

from coordinator.dashboard.address import address_of
from coordinator.dashboard.app import Wiring, make_app
from coordinator.dashboard.board import Board
from coordinator.dashboard.feed import Feed
from coordinator.run.control import Commander
from coordinator.store.view import RunView
from fedcore.web.listening import is_loopback, listening, url_of
from fedcore.web.quiet import quiet_config
from fedcore.web.tokens import Tokens, load_tokens

__all__ = ["Dashboard"]

_REMEDY = "another --dashboard HOST:PORT; port 0 takes a free one"
_START_SECONDS = 20.0
_STOP_SECONDS = 3.0
_MOST_CONNECTIONS = 300
# A request needs the interpreter several times, and a busy coordinator gives it away only after so long: 5 ms by
# default.
_SWITCH_SECONDS = 0.001


class Dashboard:
    """A run's dashboard. Its address is taken at once, so that a wrong one is told before anything else happens; it
    answers after `start`.

    Args:
        address: `HOST:PORT`; port 0 for a free one.
        token_file: Operators' tokens; None for a dashboard that only shows.
        names: Names that a reverse proxy gives it.

    Raises:
        ConfigError: The address cannot be had, or the token file is wrong.
    """

    def __init__(self, address: str, *, token_file: Path | None = None, names: tuple[str, ...] = ()) -> None:
        host, port = address_of(address)
        self._names = names
        self._tokens = Tokens({}) if token_file is None else load_tokens(token_file)
        self._socket = listening(host, port, what="the dashboard", place=address, remedy=_REMEDY)
        self._feed = Feed(self._take)
        self._board: Board | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{url_of(self._socket)}/"

    @property
    def about(self) -> str:
        """One line for whoever starts it."""
        text = f"dashboard: {self.url} ({'with control' if self._tokens else 'read-only'})"
        if not is_loopback(self._socket):
            text += ", without TLS: whoever reaches this address sees the run"
        return text

    def observe(self, view: RunView) -> None:
        """The view changed; called in the coordinator's loop."""
        self._feed.observe(view)

    def start(self, view: RunView, command: Commander, ledger: Path) -> None:
        """Answer from now on, and let this process' threads take turns more often until `close`.

        Args:
            view: The run at its start.
            command: Asks the coordinator's loop to obey.
            ledger: The run's file.
        """
        board = self._board = Board(view.encoded())
        wiring = Wiring(board, ledger, lambda: self._feed.turned_at, command, self._tokens, self._names)
        config = quiet_config(make_app(wiring), most_connections=_MOST_CONNECTIONS, stop_seconds=2)
        self._server = uvicorn.Server(config)
        started = threading.Event()
        self._switch_seconds = sys.getswitchinterval()
        sys.setswitchinterval(min(self._switch_seconds, _SWITCH_SECONDS))
        self._thread = threading.Thread(target=self._serve, args=[started], name="dashboard", daemon=True)
        self._thread.start()
        started.wait(_START_SECONDS)

    def close(self) -> None:
        """Show the last state to whoever looks, and end. Called in the thread that observed."""
        if self._thread is not None and self._server is not None:
            self._feed.close()
            self._later(self._board.close if self._board is not None else None)
            self._server.should_exit = True
            self._thread.join(_STOP_SECONDS)
            self._thread = None
            sys.setswitchinterval(self._switch_seconds)
        self._socket.close()

    def _serve(self, started: threading.Event) -> None:
        async def serve() -> None:
            assert self._server is not None
            self._loop = asyncio.get_running_loop()
            started.set()
            await self._server.serve(sockets=[self._socket])

        asyncio.run(serve())

    def _take(self, data: bytes) -> None:
        if self._board is not None:
            self._later(self._board.take, data)

    def _later(self, call: object, *arguments: bytes) -> None:
        """Do something in the server's thread, if that is still there."""
        with contextlib.suppress(RuntimeError):
            if self._loop is not None and callable(call):
                self._loop.call_soon_threadsafe(call, *arguments)
