# SPDX-License-Identifier: Apache-2.0
"""Updates by HTTP to a server that a test holds: what it may answer, and what becomes of the update then."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edge_client.agent.messages import Messages
from edge_client.agent.outbox import Outbox
from edge_client.agent.transfers import Transfers
from edge_client.fetching.exchange import Exchange, Place
from edge_client.fetching.section import ObjectsSection
from edge_client.fetching.servers import Servers
from edge_client.fetching.upload import Upload
from edge_client.node import Node
from fedcore.config.sections import BrokerSection, DataSection
from fedcore.errors import ConfigError
from fedcore.transport.base import Received
from fedcore.transport.memory import MemoryBroker
from fedcore.web.origins import origin_of
from fedcore.wire.codec import decode
from fedcore.wire.messages import Chunk, Commit, Grant, Offer, Refuse

BODY = random.Random(1).randbytes(100_000)
Answer = Callable[[BaseHTTPRequestHandler], None]


def taken(handler: BaseHTTPRequestHandler) -> None:
    """As a store does."""
    handler.server.held[handler.path] = handler.rfile.read(int(handler.headers["Content-Length"]))  # type: ignore[attr-defined]
    answered(handler, 200)


def answered(handler: BaseHTTPRequestHandler, code: int) -> None:
    handler.send_response(code)
    if code == 307:
        handler.send_header("Location", "/other")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


class Server(ThreadingHTTPServer):
    """Answers as a test says."""

    def __init__(self) -> None:
        self.answer: Answer = taken
        self.asked: list[str] = []
        self.held: dict[str, bytes] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                outer.asked.append(self.path)
                outer.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *args: Any) -> None:
        """A node may leave in the middle."""

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        yield found
        found.shutdown()


class Bench:
    """A node's transfers, without a loop: `settle` is a turn of it once an upload has ended."""

    def __init__(self, folder: Path, section: ObjectsSection) -> None:
        broker, data = BrokerSection(url="mqtts://x"), DataSection(source="x")
        node = Node(node="n", run="t", model_folder="m", folder=str(folder), data=data, broker=broker)
        medium, self.lines, self.gone = MemoryBroker(), list[str](), list[tuple[int, str]]()
        self.messages = Messages(node, folder, medium.connect())
        self.outbox, self.said = Outbox(folder / "outbox"), list[Any]()
        listener = medium.connect()
        listener.subscribe(self.messages.topics.up("+", "#"))
        listener.start(
            lambda event: self.said.append(decode(event.payload).body) if isinstance(event, Received) else None
        )
        sent = self.messages._transport
        sent.start(lambda event: None)
        self.transfers = Transfers(
            self.outbox,
            folder / "inbox",
            sent,
            self.messages,
            random.Random(0),
            lambda sha256: None,
            lambda *gone: self.gone.append(gone),
            self.lines.append,
        )
        self.woken = threading.Event()
        self.transfers.servers = Servers(section, self.woken.set)

    def offer(self, now: float = 0.0) -> str:
        """Begin to send an update; the transfer."""
        self.outbox.path(1).write_bytes(BODY)
        self.transfers.send(1, 65_536, now)
        (transfer,) = {offer.transfer for offer in self.offers}
        return transfer

    def grant(self, address: str, now: float = 0.0) -> None:
        self.transfers.handle(Grant(self.offers[-1].transfer, 1, b"", address), now)

    def settle(self, now: float = 0.0) -> None:
        assert self.woken.wait(60)
        self.woken.clear()
        self.transfers.tick(now)

    @property
    def offers(self) -> list[Offer]:
        return [one for one in self.said if isinstance(one, Offer)]

    @property
    def ways(self) -> list[str]:
        return [offer.way for offer in self.offers]


@pytest.fixture
def bench(tmp_path: Path, server: Server) -> Bench:
    return Bench(tmp_path / "node", ObjectsSection(origins=(server.origin,), uploads=True))


def test_an_update_goes_to_the_store_and_no_chunk_to_the_broker(bench: Bench, server: Server) -> None:
    transfer = bench.offer()
    before = bench.messages.uplink_bytes
    bench.grant(f"{server.origin}/runs/a?X-Amz-Signature=b")
    bench.settle()
    assert server.held == {"/runs/a?X-Amz-Signature=b": BODY} and bench.ways == ["store", "stored"]
    assert bench.lines == [f"update of round 1 put to {server.origin}: 0.1 MB"]
    assert len(BODY) < bench.messages.uplink_bytes - before < len(BODY) + 1000
    bench.transfers.handle(Commit(transfer), 1.0)
    assert bench.gone == [(1, "")] and not bench.transfers.busy
    assert not any(isinstance(one, Chunk) for one in bench.said)


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def early(handler: BaseHTTPRequestHandler) -> None:
    answered(handler, 403)
    handler.close_connection = True


def hasty(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"no HTTP\r\n\r\n")
    handler.close_connection = True


def led_elsewhere(handler: BaseHTTPRequestHandler) -> None:
    handler.rfile.read(len(BODY))
    answered(handler, 307)


def failed(handler: BaseHTTPRequestHandler) -> None:
    handler.rfile.read(len(BODY))
    answered(handler, 500)


@pytest.mark.parametrize("answer", [cut_short, early, hasty, led_elsewhere, failed])
def test_what_a_server_does_not_take_is_offered_in_chunks(answer: Answer, bench: Bench, server: Server) -> None:
    server.answer = answer
    transfer = bench.offer()
    bench.grant(f"{server.origin}/a")
    bench.settle(now=5.0)
    assert bench.ways == ["store", "chunks"] and server.asked == ["/a"] and "the broker brings it" in bench.lines[0]
    bench.transfers.handle(Grant(transfer, 8, b"\0"), 5.1)
    assert [one.index for one in bench.said if isinstance(one, Chunk)] == [0, 1]
    # The next one does not try this server for a while.
    for now, asked in ((10.0, 1), (64.0, 1), (66.0, 2)):
        bench.transfers.drop_update()
        bench.transfers.send(1, 65_536, now)
        bench.grant(f"{server.origin}/a", now)
        if now > 65:
            bench.settle(now)
        assert len(server.asked) == asked and bench.ways[-1] == "chunks"


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:1/a", "http://localhost:{port}/a", "file:///etc/passwd", "http://x@127.0.0.1:{port}/a"],
)
def test_no_other_address_is_followed(address: str, bench: Bench, server: Server) -> None:
    bench.offer()
    bench.grant(address.replace("{port}", str(server.server_address[1])))
    assert bench.ways == ["store", "chunks"] and server.asked == [] and bench.lines == []


def test_without_the_owners_word_no_store_is_asked_for(tmp_path: Path, server: Server) -> None:
    bench = Bench(tmp_path / "node", ObjectsSection(origins=(server.origin,)))
    bench.offer()
    bench.grant(f"{server.origin}/a")
    assert bench.ways == ["chunks"] and server.asked == []
    with pytest.raises(ConfigError, match="objects.uploads"):
        ObjectsSection(uploads=True)


@pytest.mark.parametrize("answer", [Commit, lambda transfer: Refuse(transfer, "late")])
def test_one_that_is_not_wanted_any_more_stops_at_once(answer: Any, bench: Bench, server: Server) -> None:
    begun, left = threading.Event(), threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        begun.set()
        # The rest never comes: the link ends instead.
        handler.rfile.read(2 * len(BODY))
        left.set()
        handler.close_connection = True

    server.answer = slow
    transfer = bench.offer()
    bench.grant(f"{server.origin}/a")
    assert begun.wait(60)
    bench.transfers.handle(answer(transfer), 1.0)
    assert left.wait(60) and len(bench.gone) == 1 and not bench.woken.is_set()


def test_a_server_that_dawdles_is_left(tmp_path: Path, server: Server) -> None:
    go_on, ended = threading.Event(), threading.Event()

    def dawdling(handler: BaseHTTPRequestHandler) -> None:
        # It reads nothing, and says a letter now and then.
        for letter in b"HTTP/1.1 200 " * 1000:
            if go_on.wait(0.01):
                return
            try:
                handler.wfile.write(bytes([letter]))
            except OSError:
                return

    server.answer = dawdling
    path = tmp_path / "update"
    path.write_bytes(BODY)
    place = Place(origin_of(server.origin, "x"), "/a", None)
    upload = Upload(place, path, len(BODY), ended.set, patience_seconds=0.3 - len(BODY) / 1024)
    assert ended.wait(60) and upload.ended and upload.why == "too slow"
    go_on.set()


def test_a_file_that_ends_in_the_middle_and_a_server_that_is_not_there(tmp_path: Path, server: Server) -> None:
    path = tmp_path / "update"
    path.write_bytes(BODY)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for origin, size, why in (
        (server.origin, len(BODY) + 1, "ends in the middle"),
        (f"http://127.0.0.1:{port}", len(BODY), "refused"),
    ):
        ended = threading.Event()
        upload = Upload(Place(origin_of(origin, "x"), "/a", None), path, size, ended.set)
        assert ended.wait(60) and why in upload.why.lower()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exchange_ends_and_says_so_also_after_an_error_that_nobody_foresaw() -> None:
    class Broken(Exchange):
        def exchange(self, connection: HTTPConnection) -> None:
            raise RuntimeError("nobody foresaw this")

    woken = threading.Event()
    broken = Broken(Place(origin_of("http://127.0.0.1:9", "o"), "/", None), woken.set)
    broken.begin()
    assert woken.wait(60) and broken.ended and broken.why == "it did not come to its end"
    for thread in threading.enumerate():
        if thread.name == "exchange":
            thread.join(60)
