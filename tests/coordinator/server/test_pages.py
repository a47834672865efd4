# SPDX-License-Identifier: Apache-2.0
"""The server's pages: what anybody may read, what needs a token, and a dashboard of each run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from made_runs import finished_run, make_run

from coordinator.dashboard.assets import load_assets
from tests.coordinator.server.served import Site, served, settings_of
from tests.patience import until


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    finished_run(tmp_path / "runs", "voice")
    make_run(tmp_path / "runs", "new")
    with served(settings_of(tmp_path), monkeypatch) as found:
        yield found


def test_pages_say_nothing_and_what_they_ask_for_needs_a_token(site: Site) -> None:
    for path, asset in (
        ("/", "fleet.html"),
        ("/runs/voice/", "index.html"),
        ("/runs/voice/nodes/home-0", "index.html"),
    ):
        status, headers, body = site.ask(path)
        assert (status, body) == (200, load_assets()[asset].data)
        assert "script-src 'self'" in headers["content-security-policy"] and headers["x-frame-options"] == "DENY"
    assert site.ask("/static/js/fleet.js")[0] == 200
    for path in (
        "/api/runs",
        "/api/nodes",
        "/runs/voice/api/run",
        "/runs/voice/api/events",
        "/runs/voice/metrics",
        "/metrics",
        "/api/targets",
    ):
        assert site.ask(path)[0] == 401, path
        assert site.ask(path, "viewer")[0] == 200, path
    cookie = site.ask("/api/session", "viewer", {})[1]["set-cookie"].partition(";")[0]
    assert site.ask("/runs/voice/api/run", Cookie=cookie)[2]["run"] == "voice"
    assert site.ask("/runs/voice", "viewer")[0] == 200, "led on to the page"


def test_a_runs_dashboard_shows_and_does_not_command(site: Site) -> None:
    assert len(site.ask("/runs/voice/api/events", "viewer")[2]["events"]) == 4
    assert site.ask("/runs/voice/api/nodes/home-0", "viewer")[2]["node"]["node"] == "home-0"
    assert site.ask("/runs/voice/api/session", "owner")[2]["control"] is False
    status, _, said = site.ask("/runs/voice/api/commands", "owner", {"command": "pause"})
    assert status == 403 and "read-only" in said["error"]
    for path in ("/runs/other/", "/runs/..%2Fx/", "/runs/.server/api/run", "/runs/voice/api/nothing"):
        assert site.ask(path, "viewer")[0] == 404, path
    status, _, said = site.ask("/runs/new/api/run", "viewer")
    assert status == 404 and "has not written a view" in said["error"]


def test_it_follows_what_the_runs_process_writes(site: Site, tmp_path: Path) -> None:
    assert site.ask("/runs/voice/api/run", "viewer")[2]["total_rounds"] == 3
    view = tmp_path / "runs" / "voice" / "view.json"
    view.write_text(view.read_text().replace('"total_rounds":3', '"total_rounds":77'))
    until(lambda: site.ask("/runs/voice/api/run", "viewer")[2]["total_rounds"] == 77, [])


def test_whoever_reaches_it_may_look_where_the_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_run(tmp_path / "runs", "voice")
    with served(settings_of(tmp_path, look="all"), monkeypatch) as site:
        assert site.ask("/api/runs")[0] == 200 and site.ask("/runs/voice/api/run")[0] == 200
        assert site.ask("/api/session")[2] == {"name": "", "role": "", "look": True}
        assert site.ask("/api/runs", body={"job": {}})[0] == 401
