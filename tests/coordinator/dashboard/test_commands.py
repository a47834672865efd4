# SPDX-License-Identifier: Apache-2.0
"""Commands over real sockets: who may give them, and what is refused before it reaches the run's loop."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from coordinator.commands.coordinator import coordinator_resume, coordinator_run
from coordinator.dashboard.address import address_of
from coordinator.dashboard.server import Dashboard
from coordinator.run.control import Answer, Exclude, Pause
from fedcore.errors import ConfigError
from fedcore.web.tokens import load_tokens
from tests.coordinator.dashboard.site import TOKEN, Site, served


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
