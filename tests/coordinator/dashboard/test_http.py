# SPDX-License-Identifier: Apache-2.0
"""The dashboard over real sockets: what it answers."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import threading
import time
import zlib
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.dashboard import board as board_module
from coordinator.store.ledger import RoundRow
from coordinator.store.pieces import Followed
from coordinator.store.view import NodeView, RunView
from tests.coordinator.dashboard.site import Site, run_of, served, until


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
        closing.join(120)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_who_asks_for_changes_gets_the_rows_and_nodes_that_are_new_and_can_put_the_run_together(
    site: Site, encoding: str
) -> None:
    with site.stream("?changes=1", **{"Accept-Encoding": encoding}) as (_, parts):
        assert next(parts) == b"retry: 3000"
        followed = Followed()
        whole = next(parts)
        assert b"event: run\n" in whole and len(followed.take(whole.partition(b"data: ")[2]).rows) > 1
        # The feed's own first word has all once more.
        site.change(round=4)
        followed.take(next(parts).partition(b"data: ")[2])
        site.view.nodes["a"].step += 1
        last = site.view.rows[-1]
        site.change(rows=[*site.view.rows, msgspec.structs.replace(last, round=last.round + 1)])
        part = next(parts)
        news = followed.take(part.partition(b"data: ")[2])
        assert b"event: change\n" in part
        assert list(news.nodes) == ["a"] and [row.round for row in news.rows] == [last.round + 1]
    shown = RunView.decoded(site.ask("/api/run")[2])
    assert followed.view == shown == dataclasses.replace(site.view, written_at=shown.written_at)


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
    assert (found["fedkrso_metric", "rouge_l"], found["fedkrso_nodes_metric", "rouge_l"]) == (0.75, 0.625)
    assert (found["fedkrso_nodes_accuracy_ratio",], found["fedkrso_nodes_measured_round",]) == (0.25, 1)
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
