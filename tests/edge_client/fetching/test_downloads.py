# SPDX-License-Identifier: Apache-2.0
"""Objects by HTTP from a server that a test holds: what it may send, and what becomes of the rest."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edge_client.agent.messages import Messages
from edge_client.agent.outbox import Outbox
from edge_client.agent.transfers import Transfers
from edge_client.fetching.section import ObjectsSection
from edge_client.fetching.servers import Servers
from edge_client.node import Node
from fedcore.config.sections import BrokerSection, DataSection
from fedcore.errors import ConfigError
from fedcore.round.plan import StateObject
from fedcore.transport.memory import MemoryBroker
from fedcore.wire.files import manifest_of, read_chunk

CHUNK_BYTES = 1000
BODY = random.Random(1).randbytes(9500)

Answer = Callable[[BaseHTTPRequestHandler], None]


def part(handler: BaseHTTPRequestHandler, body: bytes = BODY) -> None:
    """As a server does that has the object."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
    start, end = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(body))
    handler.send_response(206 if asked else 200)
    handler.send_header("Content-Length", str(end - start))
    if asked:
        handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
    handler.end_headers()
    handler.wfile.write(body[start:end])


class Server(ThreadingHTTPServer):
    """Answers as a test says."""

    def __init__(self) -> None:
        self.answer: Answer = part
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers.get("Range")))
                outer.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        yield found
        found.shutdown()


class Bench:
    """A node's transfers, without a loop: `settle` is a turn of it once a download has ended."""

    def __init__(self, folder: Path, origins: tuple[str, ...]) -> None:
        broker, data = BrokerSection(url="mqtts://x"), DataSection(source="x")
        node = Node(node="n", run="t", model_folder="m", folder=str(folder), data=data, broker=broker)
        transport, self.fetched, self.lines = MemoryBroker().connect(), list[str](), list[str]()
        self.messages = Messages(node, folder, transport)
        self.transfers = Transfers(
            Outbox(folder / "outbox"),
            folder / "inbox",
            transport,
            self.messages,
            random.Random(0),
            self.fetched.append,
            lambda *_: None,
            self.lines.append,
        )
        self.woken = threading.Event()
        self.transfers.servers = Servers(ObjectsSection(origins=origins), self.woken.set)
        self.source = folder / "source"
        self.source.write_bytes(BODY)
        self.obj = StateObject(1, 0, None, "0" * 64, manifest_of(self.source, CHUNK_BYTES))

    def settle(self, now: float = 0.0) -> None:
        assert self.woken.wait(60)
        self.woken.clear()
        self.transfers.tick(now)

    def broker_brings(self) -> None:
        for index in range(self.obj.manifest.chunks):
            self.transfers.handle(read_chunk(self.source, self.obj.manifest.sha256, index, CHUNK_BYTES), 0.0)

    def is_whole(self) -> bool:
        return self.fetched == [self.obj.manifest.sha256] and self.transfers.object_path(self.obj).read_bytes() == BODY


@pytest.fixture
def bench(tmp_path: Path, server: Server) -> Bench:
    (tmp_path / "node").mkdir()
    return Bench(tmp_path / "node", (server.origin,))


def test_an_object_comes_from_the_server_alone(bench: Bench, server: Server) -> None:
    bench.transfers.fetch(bench.obj, 0.0, f"{server.origin}/runs/a?X-Amz-Signature=b")
    bench.settle()
    assert bench.is_whole() and server.asked == [("/runs/a?X-Amz-Signature=b", None)]
    assert bench.lines == [f"fetched version 1 from {server.origin}: 0.0 MB"]
    assert bench.messages.downlink_bytes == len(BODY)


def test_what_is_there_already_is_not_asked_for(bench: Bench, server: Server) -> None:
    bench.transfers.fetch(bench.obj, 0.0)
    for index in (0, 1, 4):
        bench.transfers.handle(read_chunk(bench.source, bench.obj.manifest.sha256, index, CHUNK_BYTES), 0.0)
    bench.transfers.stop()
    # What was flushed stays: here all of it, by the end of `fetch` of another object.
    bench.transfers.fetch(bench.obj, 0.0)
    for index in (0, 1, 4):
        bench.transfers.handle(read_chunk(bench.source, bench.obj.manifest.sha256, index, CHUNK_BYTES), 0.0)
    bench.transfers._end_fetch()
    bench.transfers.fetch(bench.obj, 0.0, f"{server.origin}/a")
    bench.settle()
    assert bench.is_whole() and server.asked == [("/a", "bytes=2000-3999"), ("/a", "bytes=5000-9499")]


def refused(handler: BaseHTTPRequestHandler) -> None:
    handler.send_error(403)


def led_elsewhere(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "/other")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def longer(handler: BaseHTTPRequestHandler) -> None:
    part(handler, BODY + b"more")


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(BODY + b"more")
    handler.close_connection = True


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(BODY)))
    handler.end_headers()
    handler.wfile.write(BODY[:3500])
    handler.close_connection = True


def another(handler: BaseHTTPRequestHandler) -> None:
    part(handler, BODY[::-1])


def garbled(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"no HTTP\r\n\r\n")
    handler.close_connection = True


@pytest.mark.parametrize("answer", [refused, led_elsewhere, longer, cut_short, another, garbled])
def test_what_the_server_does_not_send_the_broker_brings(answer: Answer, bench: Bench, server: Server) -> None:
    server.answer = answer
    bench.transfers.fetch(bench.obj, 0.0, f"{server.origin}/a")
    bench.settle()
    assert bench.fetched == [] and [path for path, _ in server.asked] == ["/a"]
    assert answer is another or "the broker brings the rest" in bench.lines[0]
    bench.broker_brings()
    assert bench.is_whole()


def test_more_than_the_object_has_is_not_read(bench: Bench, server: Server) -> None:
    server.answer = endless
    bench.transfers.fetch(bench.obj, 0.0, f"{server.origin}/a")
    bench.settle()
    # What came is right by its hash.
    assert bench.is_whole() and "more than the object has" in bench.lines[0]


def test_a_server_that_fails_is_left_alone_for_a_while(bench: Bench, server: Server) -> None:
    server.answer = refused
    bench.transfers.fetch(bench.obj, 0.0, f"{server.origin}/a")
    bench.settle(now=5.0)
    for now, asked in ((10.0, 1), (64.0, 1), (66.0, 2)):
        bench.transfers.pause()
        bench.transfers.fetch(bench.obj, now, f"{server.origin}/a")
        if now > 65:
            bench.settle(now)
        assert len(server.asked) == asked
    bench.transfers.stop()


@pytest.mark.parametrize(
    "address",
    [
        "",
        "http://127.0.0.1:1/a",
        "https://127.0.0.1:{port}/a",
        "http://localhost:{port}/a",
        "http://127.0.0.2:{port}/a",
        "http://user@127.0.0.1:{port}/a",
        "http://127.0.0.1:{port}@example.org/a",
        "http://127.0.0.1:{port}\\@example.org/a",
        "http://127.0.0.1:{port}/a b",
        "http://127.0.0.1:{port}/a\r\nHost: other",
        "file:///etc/passwd",
        "http://127.0.0.1:{port}/" + "a" * 2048,
        "http://127.0.0.1:99999/a",
        "http://[::1/a",
    ],
)
def test_no_other_address_is_followed(address: str, bench: Bench, server: Server) -> None:
    bench.transfers.fetch(bench.obj, 0.0, address.replace("{port}", str(server.server_address[1])))
    bench.broker_brings()
    assert bench.is_whole() and server.asked == [] and bench.lines == []


def test_one_that_is_stopped_writes_nothing_more(bench: Bench, server: Server) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BODY)))
        handler.end_headers()
        handler.wfile.write(BODY[:2500])
        begun.set()
        go_on.wait(60)
        handler.close_connection = True

    server.answer = slow
    bench.transfers.fetch(bench.obj, 0.0, f"{server.origin}/a")
    assert begun.wait(60)
    bench.transfers.pause()
    before = {path.name: path.read_bytes() for path in (bench.source.parent / "inbox").iterdir()}
    go_on.set()
    bench.transfers.fetch(bench.obj, 0.0)
    bench.broker_brings()
    assert bench.is_whole() and before.keys() <= {
        f"{bench.obj.manifest.sha256[:32]}.bin{end}" for end in (".part", ".have")
    }


@pytest.mark.parametrize(
    "wrong", ["s3.example.org", "http://s3.example.org", "https://s3.example.org/runs", "https://a@b"]
)
def test_a_node_names_servers_alone(wrong: str) -> None:
    with pytest.raises(ConfigError, match="objects.origins"):
        ObjectsSection(origins=(wrong,))
