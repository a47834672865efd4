# SPDX-License-Identifier: Apache-2.0
"""The server's process: an address, the application, and the worker behind it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from edge_client.owner.serving import ServeSection
from edge_client.serving.app import Wiring, make_app
from edge_client.serving.hosting import Hosting
from edge_client.serving.memory import ServingMemory
from edge_client.serving.source import Source
from fedcore.errors import ConfigError
from fedcore.system.logs import Line
from fedcore.web.guesses import Guesses
from fedcore.web.listening import is_loopback, listening, url_of
from fedcore.web.quiet import quiet_config
from fedcore.web.tokens import Tokens, load_tokens

__all__ = ["open_socket", "serve"]

_MOST_CONNECTIONS = 100
_STOP_SECONDS = 3


def open_socket(section: ServeSection) -> tuple[socket.socket, Tokens]:
    """The address to answer at, and who may ask there.

    Raises:
        ConfigError: The address cannot be had, the token file is wrong, or others can reach the address and there is
            none.
    """
    place = f"{section.host}:{section.port}"
    sock = listening(
        section.host, section.port, what="the server", place=place, remedy="another --port; 0 takes a free one"
    )
    try:
        tokens = Tokens({}) if section.token_file is None else load_tokens(Path(section.token_file))
        if not tokens and not is_loopback(sock):
            raise ConfigError(
                "others can reach this address, and anybody could ask there",
                place=place,
                remedy="name a --token-file, or serve on 127.0.0.1",
            )
    except BaseException:
        sock.close()
        raise
    return sock, tokens


def serve(source: Source, memory: ServingMemory, names: tuple[str, ...], say: Callable[[str], None]) -> None:
    """Answer until SIGTERM or SIGINT.

    Args:
        source: What is served.
        memory: What the worker may have.
        names: Names that a reverse proxy gives this server.
        say: Gets one line for each thing that happens.

    Raises:
        ConfigError: The address or the token file is wrong.
    """
    sock, tokens = open_socket(memory.section)
    with contextlib.closing(sock):
        about = f"serves {source.name} at {url_of(sock)} ({'with tokens' if tokens else 'without tokens'})"
        say(Line(about, event="serving"))
        asyncio.run(_serve(source, memory, (sock, tokens, names), say))


async def _serve(
    source: Source,
    memory: ServingMemory,
    entrance: tuple[socket.socket, Tokens, tuple[str, ...]],
    say: Callable[[str], None],
) -> None:
    sock, tokens, names = entrance
    hosting = Hosting(source, memory, say, time.monotonic)
    guesses = Guesses(say, time.monotonic)
    wiring = Wiring(hosting, source.name, tokens, time.time, lambda: secrets.randbits(63), guesses, names)
    server = _Server(quiet_config(make_app(wiring), most_connections=_MOST_CONNECTIONS, stop_seconds=_STOP_SECONDS))
    watching = asyncio.create_task(hosting.run())
    with _ended_by(lambda: setattr(server, "should_exit", True)):
        try:
            await server.serve(sockets=[sock])
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


class _Server(uvicorn.Server):
    """One that leaves signals to us: uvicorn raises them again when it has ended."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not here."""
        yield


@contextlib.contextmanager
def _ended_by(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
