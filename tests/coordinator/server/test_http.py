# SPDX-License-Identifier: Apache-2.0
"""The server over real sockets: who may do what, and what it answers."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.server.roles import load_roles, owners_token
from coordinator.server.settings import ProxySection, ServerFiles
from coordinator.store.folder import RunFolder, stored_job
from fedcore.errors import ConfigError
from tests.coordinator.server.served import Site, job, served, settings_of


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with served(settings_of(tmp_path, at_once=1), monkeypatch) as found:
        yield found


def states(site: Site) -> dict[str, str]:
    return {row["run"]: row["state"] for row in site.ask("/api/runs", "viewer")[2]["runs"]}


def test_a_job_is_queued_with_the_servers_own_broker_and_stopped_by_who_may(site: Site, tmp_path: Path) -> None:
    assert site.ask("/api/runs", "operator", {"job": job("a")})[::2] == (
        202, {"run": "a", "state": "running", "number": 1},
    )  # fmt: skip
    assert site.ask("/api/runs", "other", {"job": job("b")})[2]["state"] == "queued"
    kept = stored_job(tmp_path / "runs" / "a")
    assert kept.broker.url == "mqtt://127.0.0.1:1" and kept.broker.password is None and kept.fleet == "homes"
    assert stat.S_IMODE(RunFolder(tmp_path / "runs" / "a").job.stat().st_mode) == 0o600
    again = site.ask("/api/runs", "operator", {"job": job("a")})
    assert again[0] == 409 and "already there" in again[2]["error"]
    status, _, said = site.ask("/api/runs/a/stop", "other", {})
    assert status == 409 and said["error"] == "run 'a' was submitted by operator (an owner can stop it)"
    assert site.ask("/api/runs/a/stop", "operator", {})[0] == 202
    assert site.ask("/api/runs/b/stop", "owner", {})[0] == 202
    assert states(site) == {"b": "stopped", "a": "stopped"}
    assert [row["words"] for row in site.ask("/api/runs", "viewer")[2]["runs"]] == [
        "stopped by owner", "stopped by operator",
    ]  # fmt: skip


def test_each_role_may_do_what_is_its_own(site: Site) -> None:
    assert site.ask("/api/runs")[0] == 401
    assert site.ask("/api/runs", "viewer")[0] == 200
    status, _, said = site.ask("/api/runs", "viewer", {"job": job("a")})
    assert status == 403 and said["error"] == "viewer is viewer: this is for operators"
    assert site.ask("/api/runs/a/stop", "viewer", {})[0] == 403
    assert states(site) == {}
    assert site.ask("/api/session", "operator")[2] == {"name": "operator", "role": "operator", "look": True}
    assert site.ask("/api/session")[2] == {"name": "", "role": "", "look": False}


def test_a_cookie_lets_look_and_nothing_else(site: Site) -> None:
    headers = site.ask("/api/session", "owner", {})[1]
    assert "HttpOnly" in headers["set-cookie"] and "SameSite=strict" in headers["set-cookie"]
    cookie = headers["set-cookie"].partition(";")[0]
    assert site.ask("/api/runs", Cookie=cookie)[0] == 200
    assert site.ask("/api/runs", body={"job": job("a")}, Cookie=cookie)[0] == 401
    assert site.ask("/api/session", body={}, Cookie=cookie)[1].get("set-cookie") is None


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        ({"job": {"run": "a"}}, {}, 400, "'model' is missing"),
        ({"job": job("../a")}, {}, 400, "cannot be a run's name"),
        ({"job": job(".server")}, {}, 400, "cannot be a run's name"),
        ({"job": job("a", model={"folder": "/nowhere"})}, {}, 400, "the job: model.folder"),
        ({"job": job("a", colour="red")}, {}, 400, "unknown key"),
        ({"no": "job"}, {}, 400, "not a job"),
        ({"job": job("a")}, {"Origin": "http://stranger.example"}, 403, "own page"),
        ({"job": job("a")}, {"Content-Type": "text/plain"}, 415, "JSON"),
        ({"job": job("a")}, {"Host": "rebound.example"}, 421, "does not answer to that name"),
        ({"job": job("a" * 2**20)}, {}, 413, "at most"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    site: Site, body: object, headers: dict[str, str], status: int, words: str
) -> None:
    found, _, said = site.ask("/api/runs", "operator", body, **headers)
    assert found == status and words in said["error"] and "\n" not in said["error"]
    assert states(site) == {}


def test_guesses_wait(site: Site) -> None:
    codes = [site.ask("/api/runs", "x" * 16)[0] for _ in range(12)]
    assert codes[:10] == [401] * 10 and codes[-1] == 429
    assert any("wrong tokens from 127.0.0.1" in line for line in site.said)
    assert site.ask("/api/runs", "owner")[0] == 429, "whatever it sends"


def test_a_log_is_read_in_whole_lines(site: Site, tmp_path: Path) -> None:
    site.ask("/api/runs", "operator", {"job": job("a")})
    log = ServerFiles(tmp_path / "runs").log("a")
    log.parent.mkdir()
    log.write_text("one\ntwo\nhal")
    found = site.ask("/api/runs/a/log", "viewer")[2]
    assert found == {"text": "one\ntwo\n", "next": 8, "state": "running"}
    assert site.ask("/api/runs/a/log?after=8", "viewer")[2]["text"] == ""
    assert site.ask("/api/runs/z/log", "viewer")[0] == 404 and site.ask("/api/runs/a/log?after=-1", "viewer")[0] == 400
    assert site.ask("/api/runs/..%2F.server/log", "viewer")[0] == 404


def test_a_proxys_word_counts_from_its_address_and_by_its_lists_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = ProxySection(
        addresses=("127.0.0.1",), header="X-Forwarded-Email", owners=("ann@*",), viewers=("*@example.org",)
    )
    with served(settings_of(tmp_path, proxy=proxy), monkeypatch) as site:
        assert site.ask("/api/session", X_Forwarded_Email="ann@example.org")[2]["role"] == "owner"
        assert site.ask("/api/session", X_Forwarded_Email="bob@example.org")[2]["role"] == "viewer"
        assert site.ask("/api/runs", X_Forwarded_Email="eve@elsewhere.org")[0] == 401
        stopped = site.ask("/api/runs", body={"job": job("a")}, X_Forwarded_Email="bob@example.org")
        assert stopped[0] == 403
    elsewhere = ProxySection(addresses=("10.0.0.7",), header="X-Forwarded-Email", owners=("*",))
    for other in (None, elsewhere):
        with served(settings_of(tmp_path, proxy=other), monkeypatch) as site:
            assert site.ask("/api/runs", X_Forwarded_Email="ann@example.org")[0] == 401


def test_the_queue_is_there_again_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(settings_of(tmp_path, at_once=1), monkeypatch) as site:
        site.ask("/api/runs", "operator", {"job": job("a")})
        site.ask("/api/runs", "operator", {"job": job("b")})
    with served(settings_of(tmp_path, at_once=1), monkeypatch) as site:
        # The process of `a` is not there any more.
        assert states(site) == {"b": "queued", "a": "waiting"}


def test_a_token_file_says_where_it_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    for text, words in (
        ("king ann " + "t" * 16, "tokens:1: not ROLE NAME TOKEN"),
        ("owner ann short", "tokens:1: a token has at least 16 characters"),
        ("# nobody\n", "no token in this file"),
        (f"owner a {'t' * 16}\nviewer b {'t' * 16}\n", "tokens:2: this token is there twice"),
    ):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match=words):
            load_roles(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        load_roles(path)


def test_an_owners_token_is_made_once_and_is_its_owners(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path)
    first = owners_token(files).read_text()
    assert owners_token(files).read_text() == first and stat.S_IMODE(files.token.stat().st_mode) == 0o600
    assert [person.role for person in load_roles(files.token).values()] == ["owner"]


@pytest.mark.parametrize("header", ["Authorization", "Host", "X Y", "Cookie"])
def test_a_header_that_anybody_sends_names_nobody(header: str) -> None:
    with pytest.raises(ConfigError, match="names nobody"):
        ProxySection(addresses=("127.0.0.1",), header=header)


def test_a_job_of_the_wire_is_a_job(site: Site) -> None:
    # As `fedkrso server submit` sends it: with all keys.
    import msgspec

    from coordinator.job import Job
    from fedcore.fields.prepared import prepared

    whole = msgspec.to_builtins(msgspec.convert(job("a"), prepared(Job)))
    assert site.ask("/api/runs", "operator", {"job": json.loads(json.dumps(whole))})[0] == 202
