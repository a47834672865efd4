# SPDX-License-Identifier: Apache-2.0
"""A server with everything around it: its folder for itself, its address, its threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from coordinator.dashboard.address import address_of
from coordinator.server.app import Lobby, make_server_app
from coordinator.server.fleet import fleet_of
from coordinator.server.keeping import Kept
from coordinator.server.pages import pages
from coordinator.server.processes import Processes
from coordinator.server.roles import Doorkeeper, people_of
from coordinator.server.service import Server
from coordinator.server.settings import ServerFiles, ServerSettings
from fedcore.config.broker import mqtt_settings
from fedcore.config.reading import load_config
from fedcore.errors import ConfigError
from fedcore.system.durable import write_durably
from fedcore.system.locks import owned
from fedcore.system.logs import Line
from fedcore.web.listening import is_loopback, listening, url_of
from fedcore.web.quiet import quiet_config

__all__ = ["hosted", "load_settings"]

_START_SECONDS, _STOP_SECONDS = 20.0, 5.0
_MOST_CONNECTIONS = 300


def load_settings(path: Path) -> ServerSettings:
    """Read and check a server file.

    Raises:
        FedkrsoError: It is wrong, or what it names is not there.
    """
    settings = load_config(path, ServerSettings)
    settings.check(str(path))
    mqtt_settings(settings.broker, "check")
    if settings.proxy is not None and settings.look == "all":
        words, remedy = "whoever reaches the address may look, and a proxy says who may", "leave look out, or [proxy]"
        raise ConfigError(words, place=f"{path}: look", remedy=remedy)
    return settings


@contextlib.contextmanager
def hosted(settings: ServerSettings, say: Callable[[Line], None]) -> Iterator[Server]:
    """A server that answers; `run` it. Nobody else works in its folder meanwhile.

    Args:
        settings: The server file.
        say: Gets a line for each thing that happens; from several threads.

    Raises:
        FedkrsoError: Its folder, its address or its token file cannot be had.
    """
    files = ServerFiles(Path(settings.runs))
    with contextlib.ExitStack() as stack:
        stack.enter_context(owned(files.root, f"server of fleet {settings.fleet}", remedy="stop that one first"))
        people = people_of(settings, files)
        host, port = address_of(settings.address)
        remedy = "another address; port 0 takes a free one"
        sock = stack.enter_context(listening(host, port, what="the server", place="address", remedy=remedy))
        kept = stack.enter_context(contextlib.closing(Kept(files.queue)))
        server = Server(settings, kept, Processes(files), fleet_of(settings, kept, say), say)
        guesses = lambda text: say(Line(text, event="guesses", level="warning"))  # noqa: E731
        lobby = Lobby(Doorkeeper(people, settings.proxy, guesses), settings.look == "all", settings.names)
        app = make_server_app(server, lobby, pages(files.runs, lobby))
        config = quiet_config(app, most_connections=_MOST_CONNECTIONS, stop_seconds=2)
        web = uvicorn.Server(config)
        started = threading.Event()

        async def serve() -> None:
            started.set()
            await web.serve(sockets=[sock])

        thread = threading.Thread(target=lambda: asyncio.run(serve()), name="web", daemon=True)
        thread.start()
        started.wait(_START_SECONDS)
        write_durably(files.url, url_of(sock).encode())
        warned = "" if is_loopback(sock) else ", without TLS: put a reverse proxy in front of it"
        say(Line(f"fleet {settings.fleet} at {url_of(sock)}/{warned}", event="listening"))
        try:
            yield server
        finally:
            web.should_exit = True
            thread.join(_STOP_SECONDS)
            files.url.unlink(missing_ok=True)
