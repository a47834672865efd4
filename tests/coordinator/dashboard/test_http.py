# SPDX-License-Identifier: Apache-2.0
"""The dashboard over real sockets: what it answers, to whom, and what it refuses."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from coordinator.commands.coordinator import coordinator_resume, coordinator_run
from coordinator.dashboard import board as board_module
from coordinator.dashboard.address import address_of
from coordinator.dashboard.guard import load_tokens
from coordinator.dashboard.server import Dashboard
from coordinator.run.control import Answer, Command, Exclude, Pause
from coordinator.store.ledger import RoundRow, SqliteLedger
from coordinator.store.view import EventView, NodeView, RunView
from fedcore.device.readings import Readings
from fedcore.errors import ConfigError

TOKEN = "0123456789abcdef-alice"


def make_view() -> RunView:
    rows = [
        RoundRow(1, ("a", "b"), 1000, 2000, 30.0, 0.9, accuracy=0.5, loss=1.5),
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
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
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
    def stream(self, **headers: str) -> Iterator[tuple[http.client.HTTPResponse, Iterator[bytes]]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", "/api/stream", headers=headers)
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    for number in range(5):
        ledger.note(float(number), "refused", "b", f"late {number}", 2)
    ledger.close()
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# who may\nalice {TOKEN}\n0123456789abcdef-operator\n")
    tokens.chmod(0o600)
    return tmp_path


@contextlib.contextmanager
def served(folder: Path, *, control: bool = True, names: tuple[str, ...] = ()) -> Iterator[Site]:
    view = make_view()
    with Dashboard("127.0.0.1:0", token_file=folder / "tokens" if control else None, names=names) as dashboard:
        site = Site(dashboard, view)
        dashboard.start(view, site.command, folder / "ledger.sqlite")
        yield site


@pytest.fixture
def site(folder: Path) -> Iterator[Site]:
    with served(folder) as found:
        yield found


def test_the_run_as_json_changes_its_tag_with_its_content(site: Site) -> None:
    status, headers, body = site.ask("/api/run")
    shown = RunView.decoded(body)
    assert status == 200 and shown.nodes["a"].readings == site.view.nodes["a"].readings and shown.rows == site.view.rows
    assert site.ask("/api/run", If_None_Match=headers["etag"])[0] == 304
    site.change(round=4)
    later = until(lambda: site.ask("/api/run", If_None_Match=headers["etag"]), lambda found: found[0] == 200)
    assert RunView.decoded(later[2]).round == 4 and later[1]["etag"] != headers["etag"]
    squeezed = site.ask("/api/run", Accept_Encoding="gzip, br")
    assert squeezed[1]["content-encoding"] == "gzip" and zlib.decompress(squeezed[2], 31) == later[2]


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_the_stream_tells_at_once_and_then_every_change_and_the_end(site: Site, encoding: str) -> None:
    with site.stream(**{"Accept-Encoding": encoding}) as (answer, parts):
        assert answer.getheader("content-type") == "text/event-stream; charset=utf-8" and answer.status == 200
        assert (answer.getheader("content-encoding") == "gzip") == (encoding == "gzip")
        assert next(parts) == b"retry: 3000"
        assert run_of(next(parts)).round == 3
        site.change(round=4)
        assert run_of(next(parts)).round == 4
        # What the loop says last is seen before the stream ends.
        site.view.phase = "finished"
        site.dashboard.observe(site.view)
        closing = threading.Thread(target=site.dashboard.close)
        closing.start()
        assert run_of(next(parts)).phase == "finished"
        assert list(parts) == []
        closing.join(10)


def test_a_quiet_stream_says_that_it_lives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module.Board.__init__, "__kwdefaults__", {"keep_alive_seconds": 0.1, "most_viewers": 1})
    with served(folder) as site, site.stream() as (_, parts):
        assert [next(parts) for _ in range(4)][2:] == [b": still here"] * 2
        assert site.json("/api/stream")[0] == 503


def test_a_viewer_who_leaves_makes_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module.Board.__init__, "__kwdefaults__", {"keep_alive_seconds": 0.1, "most_viewers": 1})
    with served(folder) as site:
        for _ in range(3):
            with site.stream() as (_, parts):
                assert next(parts) == b"retry: 3000"
            board = site.dashboard._board
            assert board is not None
            until(lambda: board.viewers, lambda viewers: viewers == 0)  # noqa: B023


def test_a_viewer_that_reads_nothing_holds_nobody_up(site: Site) -> None:
    site.view.nodes |= {f"n{number}": NodeView(f"n{number}", reason="x" * 900) for number in range(500)}
    with socket.create_connection(("127.0.0.1", site.port)) as lazy:
        lazy.sendall(b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for number in range(40):
            site.change(round=number)
            if number % 10 == 0:
                assert site.ask("/healthz")[0] == 200
        until(lambda: RunView.decoded(site.ask("/api/run")[2]).round, lambda shown: shown == 39)


def test_a_node_with_its_history(site: Site) -> None:
    site.view.nodes["a"].last_seen_at, site.view.nodes["a"].worker_anonymous_bytes = 6.0, 70
    site.change(written_at=0.0)
    found = until(
        lambda: site.json("/api/nodes/a")[1],
        lambda found: len(found["history"]["at"]) >= 1 and found["node"]["last_seen_at"] == 6.0,
    )
    history = found["history"]
    assert {len(column) for column in history.values()} == {len(history["at"])}
    assert history["worker_anonymous_bytes"][-1] == 70 and history["worker_file_bytes"][-1] == 30
    assert history["hottest_celsius"][-1] == 55.5 and history["accelerator_bytes"][-1] is None
    assert site.json("/api/nodes/nobody") == (404, {"error": "no such node in this run"})


def test_events_are_numbered_and_told_from_where_one_left_off(site: Site) -> None:
    status, found = site.json("/api/events")
    assert status == 200 and [event["number"] for event in found["events"]] == [1, 2, 3, 4, 5] and found["last"] == 5
    assert found["events"][0] == {"number": 1, "at": 0.0, "kind": "refused", "node": "b", "round": 2, "text": "late 0"}
    assert [e["number"] for e in site.json("/api/events?after=3")[1]["events"]] == [4, 5]
    assert [e["number"] for e in site.json("/api/events?most=2")[1]["events"]] == [4, 5]
    assert site.json("/api/events?after=5")[1] == {"events": [], "last": 5}
    for bad in ("-1", "x", "1.5", "%00", "9" * 30):
        assert site.json(f"/api/events?after={bad}")[0] == 400


def test_commands_reach_the_loop_with_their_operator(site: Site) -> None:
    assert site.post({"command": "exclude", "node": "a"}, Authorization=f"Bearer {TOKEN}") == (202, {"said": "done"})
    assert site.post({"command": "pause"}, Authorization="bearer 0123456789abcdef-operator")[0] == 202
    assert site.asked == [(Exclude("a"), "alice"), (Pause(), "operator")]
    site.answer = Answer(False, "no round is open")
    assert site.post({"command": "end_round"}, Authorization=f"Bearer {TOKEN}") == (409, {"error": "no round is open"})


def test_commands_that_are_refused_never_reach_the_loop(site: Site) -> None:
    right = {"Authorization": f"Bearer {TOKEN}"}
    pause = {"command": "pause"}
    assert site.post(pause) == (401, {"error": "the token is missing or wrong"})
    for wrong in (TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ", "Bearer \xff"):
        assert site.post(pause, Authorization=wrong)[0] == 401
    assert site.post(pause, **right, Origin="http://evil.example")[0] == 403
    assert site.post(pause, **right, Origin=f"http://127.0.0.1:{site.port + 1}")[0] == 403
    assert site.post(pause, **right, Origin="null")[0] == 403
    assert site.post(pause, **right, Content_Type="text/plain")[0] == 415
    assert site.post("x" * 5000, **right)[0] == 413
    bad = [
        "",
        "{",
        "[]",
        '{"command": "stop"}',
        '{"command": "pause", "node": "a"}',
        '{"command": "exclude"}',
        '{"command": "pause", "x": 1}',
    ]
    for body in bad:
        status, said = site.post(body, **right)
        assert status == 400 and said["error"] and "\n" not in said["error"]
    assert site.ask("/api/commands")[0] == 405 and not site.asked
    assert site.post(pause, **right, Origin=f"http://127.0.0.1:{site.port}")[0] == 202


def test_without_a_token_file_nobody_commands(folder: Path) -> None:
    with served(folder, control=False) as site:
        refused = (403, {"error": "read-only: start with --dashboard-token-file"})
        assert site.post({"command": "pause"}, Authorization=f"Bearer {TOKEN}") == refused and not site.asked
        assert site.json("/api/session", Authorization=f"Bearer {TOKEN}")[1] == {
            "control": False,
            "authorized": False,
            "name": "",
        }
        assert site.dashboard.about.endswith("(read-only)")


def test_the_session_tells_whether_a_token_is_right(site: Site) -> None:
    assert site.json("/api/session") == (200, {"control": True, "authorized": False, "name": ""})
    assert site.json("/api/session", Authorization="Bearer wrong")[1]["authorized"] is False
    assert site.json("/api/session", Authorization=f"Bearer {TOKEN}")[1] == {
        "control": True,
        "authorized": True,
        "name": "alice",
    }


def test_a_loop_that_does_not_answer_or_turn_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.json("/healthz")[1]["status"] == "ok"
    site.dashboard._feed.turned_at = time.monotonic() - 73
    status, found = site.json("/healthz")
    assert (status, found["status"], found["error"]) == (503, "stuck", "the coordinator's loop has not turned for 73 s")
    site.dashboard.observe(site.view)
    assert site.json("/healthz")[0] == 200
    site.answer = None
    monkeypatch.setattr("asyncio.wait_for", soon := impatient())
    status, found = site.post({"command": "pause"}, Authorization=f"Bearer {TOKEN}")
    assert status == 503 and "has not answered for 30 s" in found["error"] and soon


def impatient() -> Any:
    import asyncio

    wait_for = asyncio.wait_for
    return lambda awaitable, timeout: wait_for(awaitable, min(timeout, 0.1))


def test_names_that_are_not_ours_are_refused(folder: Path) -> None:
    with served(folder, names=("fleet.example",)) as site:
        for host in (
            f"127.0.0.1:{site.port}",
            "localhost",
            "10.1.2.3:8080",
            "[::1]:8080",
            "fleet.example",
            socket.gethostname(),
        ):
            assert site.ask("/api/run", Host=host)[0] == 200, host
        for host in (
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "fleet.example.evil.example",
            "a@b",
            "x:y",
            "[::1",
        ):
            status, found = site.json("/api/run", Host=host)
            assert status == 421 and "--dashboard-name" in found["error"], host
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert site.post({"command": "pause"}, **right, Origin="https://fleet.example", Host="fleet.example")[0] == 202
        assert site.post({"command": "pause"}, **right, Origin="https://evil.example", Host="fleet.example")[0] == 403


def test_every_answer_has_its_headers_and_the_page_needs_nothing_inline(site: Site) -> None:
    for path in ("/", "/nodes/a", "/api/run", "/api/nodes/x", "/metrics", "/nothing", "/api/commands"):
        headers = site.ask(path)[1]
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert (
            headers["x-content-type-options"] == "nosniff" and "set-cookie" not in headers and "server" not in headers
        )
        assert not any(name.startswith("access-control") for name in headers)


def test_the_page_and_its_files(site: Site) -> None:
    status, headers, page = site.ask("/")
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8" and site.ask("/nodes/a")[2] == page
    files = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.decode())
    assert files
    for path in files:
        status, headers, data = site.ask(path)
        assert status == 200 and data and "no-cache" in headers["cache-control"], path
        assert site.ask(path, If_None_Match=headers["etag"])[0] == 304
    squeezed = [site.ask(path, Accept_Encoding="gzip") for path in files]
    assert any(headers.get("content-encoding") == "gzip" and zlib.decompress(data, 31) for _, headers, data in squeezed)
    for path in (
        "/static/",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/app.py",
        "/static//etc/passwd",
    ):
        assert site.ask(path)[0] == 404, path


def test_metrics_have_units_and_say_only_what_is_known(site: Site) -> None:
    status, headers, body = site.ask("/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert (
        found["fedkrso_round",] == 3 and found["fedkrso_rounds_planned",] == 6 and found["fedkrso_phase", "open"] == 1
    )
    assert found["fedkrso_updates_accepted_total",] == 4 and found["fedkrso_updates_refused_total",] == 4
    assert found["fedkrso_uplink_bytes_total",] == 1500 and found["fedkrso_downlink_bytes_total",] == 3000
    assert found["fedkrso_round_seconds_total",] == 50 and found["fedkrso_last_round_seconds",] == 20
    assert (found["fedkrso_accuracy_ratio",], found["fedkrso_loss",], found["fedkrso_evaluated_round",]) == (
        0.5,
        1.5,
        1,
    )
    assert found["fedkrso_node_online", "a"] == 1 and found["fedkrso_node_online", "b"] == 0
    assert found["fedkrso_node_digest_ok", "a"] == 1 and found["fedkrso_node_digest_ok", "b"] == 0
    parts = {
        labels[0]: value
        for (name, *labels), value in found.items()
        if name == "fedkrso_node_memory_bytes" and labels[1] == "a"
    }
    assert (
        parts == {"agent": 30, "worker_anonymous": 60, "worker_file": 40}
        and found["fedkrso_node_budget_bytes", "a"] == 400
    )
    assert found["fedkrso_node_temperature_celsius", "a"] == 55.5 and found["fedkrso_node_power_watts", "a"] == 7.5
    assert found["fedkrso_node_battery_ratio", "a"] == 0.5 and found["fedkrso_node_throttled", "a"] == 1
    assert ("fedkrso_node_power_watts", "b") not in found and ("fedkrso_node_battery_ratio", "b") not in found
    site.change(round=4, accepted=(), rows=[*site.view.rows, RoundRow(3, ("a", "b"), 1, 1, 1.0, 0.5)])
    text = until(lambda: site.ask("/metrics")[2].decode(), lambda text: "fedkrso_round 4.0" in text)
    assert "fedkrso_updates_accepted_total 5.0" in text


def test_every_metric_that_the_documentation_names_is_there(site: Site) -> None:
    text = (Path(__file__).parents[3] / "docs" / "dashboard.md").read_text()
    names = set(re.findall(r"fedkrso_[a-z_]+", text))
    site.change(deadline_at=time.time(), excluded=("b",))
    body = until(lambda: site.ask("/metrics")[2].decode(), lambda text: 'fedkrso_node_excluded{node="b"} 1.0' in text)
    samples = {sample.name for family in text_string_to_metric_families(body) for sample in family.samples}
    assert len(names) > 20 and names - samples == set()


def test_a_fault_of_the_dashboard_is_told_and_harms_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(view: RunView) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr("coordinator.dashboard.app.exposition", broken)
    assert site.json("/metrics") == (500, {"error": "the dashboard failed at /metrics: ZeroDivisionError"})
    assert site.ask("/api/run")[0] == 200
    assert "ZeroDivisionError" in caplog.text


def test_rubbish_on_the_socket_does_not_stop_the_others(site: Site) -> None:
    for rubbish in (
        b"\x16\x03\x01\x02\x00\x01",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"\r\n" * 50,
    ):
        with socket.create_connection(("127.0.0.1", site.port)) as raw, contextlib.suppress(OSError):
            raw.sendall(rubbish)
            raw.settimeout(0.3)
            raw.recv(1000)
    assert site.ask("/healthz")[0] == 200


def test_an_address_that_cannot_be_had_is_one_line(folder: Path) -> None:
    with Dashboard("127.0.0.1:0") as first:
        port = first.url.rstrip("/").rpartition(":")[2]
        with pytest.raises(
            ConfigError,
            match=rf"^127.0.0.1:{port}: the dashboard cannot listen: Address already in use \(another --dashboard",
        ):
            Dashboard(f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match="no such address|cannot listen"):
        Dashboard("203.0.113.1:0")
    for wrong in ("8080", "localhost", "127.0.0.1:70000", "::1:80", "JOB.toml"):
        with pytest.raises(ConfigError, match="is not HOST:PORT"):
            address_of(wrong)


def test_an_open_address_says_that_it_is_open() -> None:
    with Dashboard("0.0.0.0:0") as dashboard:
        assert "without TLS: whoever reaches this address sees the run" in dashboard.about


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("short\n", 0o600, "tokens:1: a token has at least 16 characters"),
        ("a b c\n", 0o600, "tokens:1: not TOKEN or NAME TOKEN"),
        ("# nothing\n", 0o600, "no token in this file"),
        (f"{TOKEN}\nbob {TOKEN}\n", 0o600, "tokens:2: this token is there twice"),
        (f"{TOKEN}\n", 0o644, "others can read this token file .chmod 600"),
        (f"b\x1bb {TOKEN}\n", 0o600, "not TOKEN or NAME TOKEN"),
        (None, 0, "cannot be read: .*openssl rand"),
    ],
)
def test_token_files_that_are_refused(tmp_path: Path, text: str | None, mode: int, said: str) -> None:
    path = tmp_path / "tokens"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=said):
        load_tokens(path)


def test_flags_of_a_dashboard_that_make_no_sense_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    job = '{"run": "x", "model": {"folder": "m"}, "task": {"kind": "causal-lm"}, "broker": {"url": "mqtt://b", "insecure": true}}'
    (tmp_path / "x" / "job.json").write_text(job)
    run = ["x", "--runs", str(tmp_path)]
    cases = [
        (
            coordinator_resume,
            [*run, "--dashboard-token-file", "x"],
            "a dashboard's flags without --dashboard (add --dashboard)",
        ),
        (
            coordinator_resume,
            [*run, "--dashboard-name", "x"],
            "a dashboard's flags without --dashboard (add --dashboard)",
        ),
        (
            coordinator_resume,
            [*run, "--dashboard", "--dashboard-token-file", str(tmp_path / "t")],
            "the token file cannot be read",
        ),
        (coordinator_run, ["--dashboard", "job.toml"], "--dashboard: 'job.toml' is not HOST:PORT"),
    ]
    for command, arguments, said in cases:
        error = CliRunner().invoke(command, arguments).exception
        assert isinstance(error, ConfigError) and said in error.one_line(), (arguments, error)


def run_of(part: bytes) -> RunView:
    number, kind, data = part.split(b"\n")
    assert number.startswith(b"id: ") and kind == b"event: run" and data.startswith(b"data: ")
    return RunView.decoded(data.removeprefix(b"data: "))


def until(look: Any, enough: Any, seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not enough(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found
