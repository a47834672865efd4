# SPDX-License-Identifier: Apache-2.0
"""A dashboard on a real socket with a made-up run behind it, and what a test asks of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from coordinator.dashboard.server import Dashboard
from coordinator.run.control import Answer, Command
from coordinator.store.ledger import RoundRow
from coordinator.store.rows import NodeScore, NodesMeasured
from coordinator.store.view import EventView, NodeView, RunView
from fedcore.device.readings import Readings

TOKEN = "0123456789abcdef-alice"


def make_view() -> RunView:
    rows = [
        RoundRow(
            1,
            ("a", "b"),
            1000,
            2000,
            30.0,
            0.9,
            accuracy=0.5,
            loss=1.5,
            metrics={"rouge_l": 0.75},
            nodes=NodesMeasured(8, 0.25, 1.25, {"rouge_l": 0.625}, {"a": NodeScore(8, 0.25, 1.25)}),
        ),
        RoundRow(2, ("a",), 500, 1000, 20.0, 0.7),
    ]
    a = NodeView(
        "a",
        online=True,
        state="training",
        digest="d" * 64,
        version=2,
        agent_rss_bytes=30,
        worker_bytes=100,
        last_seen_at=5.0,
    )
    a.worker_anonymous_bytes, a.budget_bytes, a.step, a.steps, a.loss = 60, 400, 3, 40, 0.25
    a.readings = Readings(
        temperatures_celsius={"cpu": 41.0, "gpu": 55.5}, power_watts=7.5, battery_percent=50.0, throttled=True
    )
    b = NodeView(
        "b",
        digest="e" * 64,
        version=2,
        trouble="version 2 is eeee: resynchronising",
        reason='<img src=x onerror="alert(1)">',
    )
    view = RunView(
        "t", "fedkrso", 6, phase="open", round=3, cohort=("a", "b"), accepted=("a",), rows=rows, nodes={"a": a, "b": b}
    )
    view.counts, view.events = {"refused": 4}, [EventView(1.0, "refused", "b", 2, "late")]
    return view


class Site:
    """A dashboard of a made-up run, and a client."""

    def __init__(self, dashboard: Dashboard, view: RunView) -> None:
        self.dashboard, self.view = dashboard, view
        self.port = int(dashboard.url.rstrip("/").rpartition(":")[2])
        self.asked: list[tuple[Command, str]] = []
        self.answer: Answer | None = Answer(True, "done")

    def command(self, command: Command, by: str) -> Future[Answer]:
        self.asked.append((command, by))
        future: Future[Answer] = Future()
        if self.answer is not None:
            future.set_result(self.answer)
        return future

    def ask(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, path: str, **options: Any) -> tuple[int, Any]:
        status, headers, body = self.ask(path, **options)
        assert headers["content-type"] == "application/json"
        return status, json.loads(body)

    def post(self, body: Any, **headers: str) -> tuple[int, Any]:
        text = body if isinstance(body, str) else json.dumps(body)
        return self.json("/api/commands", method="POST", body=text, **{"Content_Type": "application/json", **headers})

    def change(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self.view, name, value)
        # As if a second had passed.
        self.dashboard._feed._made_at = float("-inf")
        self.dashboard.observe(self.view)

    @contextlib.contextmanager
    def stream(self, query: str = "", **headers: str) -> Iterator[tuple[http.client.HTTPResponse, Iterator[bytes]]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", f"/api/stream{query}", headers=headers)
        answer = connection.getresponse()
        inflate = zlib.decompressobj(31) if answer.getheader("content-encoding") == "gzip" else None

        def parts() -> Iterator[bytes]:
            buffer = b""
            while data := answer.read1(65536):
                buffer += inflate.decompress(data) if inflate else data
                while b"\n\n" in buffer:
                    part, _, buffer = buffer.partition(b"\n\n")
                    yield part

        try:
            yield answer, parts()
        finally:
            connection.close()


@contextlib.contextmanager
def served(folder: Path, *, control: bool = True, names: tuple[str, ...] = ()) -> Iterator[Site]:
    view = make_view()
    with Dashboard("127.0.0.1:0", token_file=folder / "tokens" if control else None, names=names) as dashboard:
        site = Site(dashboard, view)
        dashboard.start(view, site.command, folder / "ledger.sqlite")
        yield site


def run_of(part: bytes) -> RunView:
    number, kind, data = part.split(b"\n")
    assert number.startswith(b"id: ") and kind == b"event: run" and data.startswith(b"data: ")
    return RunView.decoded(data.removeprefix(b"data: "))


def until(look: Any, enough: Any, seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not enough(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found
