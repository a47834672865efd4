# SPDX-License-Identifier: Apache-2.0
"""The page's files and canned answers over HTTP, for tests of the page alone: a stream can be cut, a command
refused."""

from __future__ import annotations

import json
import mimetypes
import queue
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

import coordinator
from coordinator.store.pieces import Pieces
from coordinator.store.view import RunView
from tests.browser.fleet import history

STATIC = Path(coordinator.__file__).parent / "dashboard" / "static"
# Stricter than what the dashboard sends: with trusted types any assignment of text to HTML fails, whoever makes it.
POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'"
TOKEN = "a-token-of-the-test"


class PageServer:
    """Serves a view on a free loopback port.

    Args:
        view: What is shown first.
        control: Whether commands exist.
    """

    def __init__(self, view: RunView, *, control: bool = False) -> None:
        self.control = control
        self.commands: list[dict[str, str]] = []
        self.answer: tuple[int, dict[str, str]] | None = None
        """What commands are answered instead of success."""
        self.history: Callable[[Any], dict[str, list[Any]]] = history
        self.broken = False
        """Answer everything with 502, as a proxy in front of a dead coordinator does."""
        self._streams: dict[queue.Queue[bytes | None], Pieces] = {}
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.view = view
        self._encoded = view.encoded()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def show(self, view: RunView | None = None) -> None:
        """Tell viewers what is new in a view that changed, as the dashboard does."""
        self.view = view or self.view
        self._encoded = self.view.encoded()
        for stream, pieces in list(self._streams.items()):
            news = pieces.news(self.view, self.view.written_at)
            stream.put(b"event: change\ndata: %b\n\n" % (self._encoded if news is None else news))

    def start(self) -> None:
        """Serve, on the port of before if there was one."""

        class Handler(_Handler):
            page = self

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Close the port and every stream."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.cut()

    def cut(self) -> None:
        """End every stream."""
        for stream in list(self._streams):
            stream.put(None)

    def encoded(self) -> bytes:
        return self._encoded

    def subscribe(self) -> queue.Queue[bytes | None]:
        stream: queue.Queue[bytes | None] = queue.Queue()
        pieces = Pieces()
        pieces.news(self.view, self.view.written_at)
        stream.put(b"event: run\ndata: %b\n\n" % self._encoded)
        self._streams[stream] = pieces
        return stream

    def leave(self, stream: queue.Queue[bytes | None]) -> None:
        self._streams.pop(stream, None)


class _Handler(BaseHTTPRequestHandler):
    # HTTP/1.0: a connection that is kept would be answered after `stop`.
    page: PageServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Tests need no access log."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.page.broken:
            self._send(502, b"bad gateway", "text/plain")
        elif path == "/" or path.startswith("/nodes/"):
            self._send(200, (STATIC / "index.html").read_bytes(), "text/html; charset=utf-8")
        elif path.startswith("/static/"):
            self._static(path.removeprefix("/static/"))
        elif path == "/api/run":
            self._send(200, self.page.encoded())
        elif path == "/api/stream":
            self._stream()
        elif path == "/api/session":
            authorized = self._authorized()
            self._json(
                200, {"control": self.page.control, "authorized": authorized, "name": "operator" if authorized else ""}
            )
        elif path == "/api/events":
            events = [{"number": i + 1, **msgspec.to_builtins(event)} for i, event in enumerate(self.page.view.events)]
            self._json(200, {"events": events, "last": len(events)})
        elif path.startswith("/api/nodes/"):
            self._node(unquote(path.removeprefix("/api/nodes/")))
        else:
            self._json(404, {"error": f"nothing is at {path}"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.page.control:
            self._json(403, {"error": "read-only: start with --dashboard-token-file"})
        elif not self._authorized():
            self._json(401, {"error": "this is not the token"})
        elif self.page.answer is not None:
            self._json(*self.page.answer)
        else:
            self.page.commands.append(body)
            self._json(202, {"said": f"done: {body['command']} {body.get('node', '')}".strip()})

    def _authorized(self) -> bool:
        return self.page.control and self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _node(self, name: str) -> None:
        node = self.page.view.nodes.get(name)
        if node is None:
            self._json(404, {"error": f"no node {name!r} in this run"})
        else:
            self._json(200, {"node": msgspec.to_builtins(node), "history": self.page.history(node)})

    def _static(self, name: str) -> None:
        path = (STATIC / name).resolve()
        if not path.is_relative_to(STATIC.resolve()) or not path.is_file():
            self._json(404, {"error": "no such file"})
            return
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        self._send(200, path.read_bytes(), kind)

    def _stream(self) -> None:
        # Before the headers: the page is live as soon as it has them, and from then on a test may cut the stream.
        stream = self.page.subscribe()
        try:
            self.send_response(200)
            self._headers("text/event-stream")
            self.end_headers()
            self.wfile.write(b"retry: 300\n\n")
            while (data := stream.get()) is not None:
                self.wfile.write(data)
        except OSError:
            pass
        finally:
            self.page.leave(stream)

    def _headers(self, kind: str) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")

    def _json(self, status: int, data: Any) -> None:
        self._send(status, json.dumps(data).encode())

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self._headers(kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
