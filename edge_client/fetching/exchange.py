# SPDX-License-Identifier: Apache-2.0
"""One request to a server that the owner names, in a thread of its own: down or up.

Nothing but the address that was given is asked for: no redirect is followed, no proxy of the environment is used."""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fedcore.fields.checked import clean_text
from fedcore.system.durable import is_full
from fedcore.web.origins import Origin

if TYPE_CHECKING:
    from http.client import HTTPConnection

__all__ = ["Exchange", "Place", "Wrong"]

_SILENT_SECONDS: Final = 10.0
"""Of connecting, and of each read and write."""


class Wrong(Exception):
    """The server does not do what it was asked for."""


@dataclass(frozen=True)
class Place:
    """Where something lies, or is to lie.

    Attributes:
        origin: The server.
        target: Path and query there.
        ca_file: Certificate authority of the server; None for the system's.
    """

    origin: Origin
    target: str
    ca_file: str | None


class Exchange(ABC):
    """Goes on by itself, from `begin` on.

    Args:
        place: The server, and what is asked of it.
        woken: Called in the thread, once it has ended by itself.

    Attributes:
        origin: The server.
        ended: Whether it has; then no more will go this way.
        why: What went wrong, for a person; empty where nothing has.
        full: The disk is; for the agent's loop to raise.
    """

    def __init__(self, place: Place, woken: Callable[[], None]) -> None:
        self.origin, self.target, self._ca_file, self._woken = place.origin, place.target, place.ca_file, woken
        self.ended, self.why = False, ""
        self.full: OSError | None = None
        self.stopped, self.writing = False, threading.Lock()
        self._connection: HTTPConnection | None = None

    def begin(self) -> None:
        """Once what is asked is known."""
        threading.Thread(target=self._run, name="exchange", daemon=True).start()

    def stop(self) -> None:
        """Neither write nor send anything any more, from now on."""
        with self.writing:
            self.stopped = True
        self.interrupt()

    def interrupt(self) -> None:
        """Have what waits for the server end at once."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                # Not TLS's own, which forgets first that there is TLS: the thread could then send in the clear.
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    @abstractmethod
    def exchange(self, connection: HTTPConnection) -> None:
        """Ask, and take the answer, in the thread; what goes wrong is raised.

        Args:
            connection: Of its own, which is closed afterwards.
        """

    def _run(self) -> None:
        from http.client import HTTPException

        self.why = "it did not come to its end"
        try:
            # Here and not at the top: agents that fetch nothing so do not load it.
            self._connection = self._connect()
            with contextlib.closing(self._connection):
                self.exchange(self._connection)
            self.why = ""
        except OSError as error:
            self.full = error if is_full(error) else None
            self.why = clean_text(f"{error.strerror or error or type(error).__name__}")
        except (Wrong, HTTPException, ValueError) as error:
            self.why = clean_text(f"{error}" or type(error).__name__)
        finally:
            # Also after an error that nobody foresaw: whoever waits goes on by way of the broker.
            self.ended = True
            if not self.stopped:
                self._woken()

    def _connect(self) -> HTTPConnection:
        from http.client import HTTPConnection, HTTPSConnection

        origin = self.origin
        if origin.scheme == "http":
            return HTTPConnection(origin.host, origin.port, timeout=_SILENT_SECONDS)
        import ssl

        context = ssl.create_default_context(cafile=self._ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return HTTPSConnection(origin.host, origin.port, timeout=_SILENT_SECONDS, context=context)
