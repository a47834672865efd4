# SPDX-License-Identifier: Apache-2.0
"""Runs on the disk: what is told of each state, a ledger that is read beside its writer, and folders that are no
runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from made_runs import STARTED_AT, finished_run, killed_run, make_run, row, running_run

from coordinator.reports.runs import choose_run, find_run, folder_bytes, read_run, scan
from coordinator.store.ledger import LedgerReader, SqliteLedger
from coordinator.store.viewfile import Writer
from fedcore.errors import ConfigError, RunError

WRITER = """
import sys, time
from pathlib import Path
import msgspec
from coordinator.store.ledger import RoundRow, SqliteLedger
ledger = SqliteLedger(Path(sys.argv[1]))
print("there", flush=True)
slowest, count, until = 0.0, 0, time.monotonic() + 2.0
while time.monotonic() < until:
    before = time.monotonic()
    ledger.put_round(RoundRow(count + 1, ("a", "b"), 1, 2, 3.0, 4.0))
    ledger.note(float(count), "refused", "a", "x" * 500)
    slowest, count = max(slowest, time.monotonic() - before), count + 1
print(count, slowest, flush=True)
"""


def contents(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if not path.name.endswith("-shm")
    }


def test_a_live_ledger_is_read_while_it_is_written_and_never_held_up(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    SqliteLedger(path).close()
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "there\n"
        counts = []
        while process.poll() is None:
            with LedgerReader(path) as ledger:
                rounds = ledger.rounds()
                # One moment of it: what is written meanwhile is not seen half.
                time.sleep(0.005)
                assert len(ledger.rounds()) == len(rounds)
            assert [each.round for each in rounds] == list(range(1, len(rounds) + 1))
            counts.append(len(rounds))
        written = int(process.stdout.readline().split()[0])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert counts == sorted(counts) and len(set(counts)) > 5
    with LedgerReader(path) as ledger:
        # Every write came through: nobody was told that the ledger is locked.
        assert len(ledger.rounds()) == written == sum(ledger.counts("refused").values())


def test_reading_changes_no_file(tmp_path: Path) -> None:
    finished_run(tmp_path, "done")
    killed = killed_run(tmp_path, "killed")
    assert (killed.root / "ledger.sqlite-wal").stat().st_size, "the last round is in the log only"
    before = contents(tmp_path / "done"), contents(killed.root)
    for _ in range(3):
        assert len(read_run(tmp_path / "done").rows) == 3
        assert len(read_run(killed.root).rows) == 3
    assert (contents(tmp_path / "done"), contents(killed.root)) == before
    assert not (tmp_path / "done" / "ledger.sqlite-shm").exists(), "no file of another user beside the ledger"
    # And it goes on from there.
    with contextlib.closing(SqliteLedger(killed.ledger)) as ledger:
        assert [each.round for each in ledger.rounds()] == [1, 2, 3]


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    finished_run(tmp_path, "done")
    with LedgerReader(tmp_path / "done" / "ledger.sqlite") as ledger, pytest.raises(RunError, match="readonly"):
        ledger.put_round(row(9, 0.5, ["a"]))


def test_each_state_is_told_in_a_line(tmp_path: Path) -> None:
    finished_run(tmp_path, "done")
    killed_run(tmp_path, "killed")
    make_run(tmp_path, "unwatched", [0.5])
    make_run(tmp_path, "unborn")
    (tmp_path / "unborn" / "ledger.sqlite").unlink()
    with running_run(tmp_path, "live") as (_, picture), pytest.raises(RunError), picture:
        found = {name: read_run(tmp_path / name) for name in ("done", "killed", "unwatched", "unborn", "live")}
        raise RunError("no quorum", place="round 3")
    assert {name: record.state for name, record in found.items()} == {
        "done": "finished", "killed": "stopped", "unwatched": "stopped", "unborn": "stopped", "live": "running",
    }  # fmt: skip
    assert found["done"].why == found["live"].why == ""
    assert (
        "ended without a last word" in found["killed"].why
        and "fedkrso coordinator resume killed --runs" in found["killed"].why
    )
    assert found["unborn"].why.startswith("never started")
    assert "coordinator resume unwatched" in found["unwatched"].why
    assert [each.round for each in found["killed"].rows] == [1, 2, 3], "the ledger knows more than the last view"
    assert found["live"].view.accepted == ("home-0",) and found["live"].started_at == STARTED_AT


def test_an_error_is_why_a_run_stopped(tmp_path: Path) -> None:
    with pytest.raises(RunError), running_run(tmp_path, "live"):
        raise RunError("no quorum", place="round 3", remedy="more nodes")
    record = read_run(tmp_path / "live")
    assert (record.state, record.why) == ("stopped", "round 3: no quorum (more nodes)")
    with pytest.raises(KeyboardInterrupt), running_run(tmp_path, "other"):
        raise KeyboardInterrupt
    assert read_run(tmp_path / "other").why.startswith("its coordinator was interrupted; to go on: ")


def test_a_loop_that_stands_still_is_told(tmp_path: Path) -> None:
    with running_run(tmp_path, "live"):
        record = read_run(tmp_path / "live", time.time() + 90)
        assert record.state == "running" and "has written nothing for 90 s" in record.why


def test_a_run_of_another_machine_is_judged_by_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = msgspec.structs.replace(Writer.this(), host="rack-7")
    monkeypatch.setattr(Writer, "this", staticmethod(lambda: elsewhere))
    with running_run(tmp_path, "live"):
        now = time.time()
        assert (
            read_run(tmp_path / "live", now + 5).state == "running"
            and "on rack-7" in read_run(tmp_path / "live", now + 5).why
        )
        late = read_run(tmp_path / "live", now + 600)
        assert late.state == "stopped" and "can be seen on rack-7 only" in late.why


def test_the_run_that_is_meant(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no run \(--runs"):
        choose_run(tmp_path, None)
    finished_run(tmp_path, "one")
    assert choose_run(tmp_path, None).name == "one"
    finished_run(tmp_path, "two", started_at=STARTED_AT + 5)
    with pytest.raises(ConfigError, match="which run\\? none is running; there are two, one"):
        choose_run(tmp_path, None)
    with running_run(tmp_path, "old", started_at=STARTED_AT - 100):
        assert choose_run(tmp_path, None).name == "old"
        with running_run(tmp_path, "new", started_at=STARTED_AT - 50):
            assert choose_run(tmp_path, None).name == "new"
            assert choose_run(tmp_path, "one").name == choose_run(tmp_path, str(tmp_path / "one")).name == "one"


def test_a_wrong_name_is_told_the_nearest(tmp_path: Path) -> None:
    for name in ("voice", "sentiment"):
        make_run(tmp_path, name)
    with pytest.raises(RunError, match=r"no run 'vioce' \(did you mean 'voice'\? runs: sentiment, voice\)"):
        find_run(tmp_path, "vioce")
    with pytest.raises(RunError, match=r"no run 'a\?\[2J' \(runs: sentiment, voice\)"):
        find_run(tmp_path, "a\x1b[2J")
    with pytest.raises(RunError, match="no run '../voice/x'"):
        find_run(tmp_path, "../voice/x")
    with pytest.raises(RunError, match="there is no such folder"):
        find_run(tmp_path / "nowhere", "voice")
    with pytest.raises(RunError, match="this is a run, not a folder of runs"):
        scan(tmp_path / "voice")


def test_foreign_and_damaged_folders_are_named_and_skipped(tmp_path: Path) -> None:
    make_run(tmp_path, "good", [0.5])
    (tmp_path / "foreign").mkdir()
    (tmp_path / "a file").write_text("x")
    (tmp_path / ".hidden").mkdir()
    for name in ("half-job", "old-job", "no-job", "no-ledger-file", "half-ledger", "wrong-row"):
        make_run(tmp_path, name, [0.5, 0.6])
    (tmp_path / "half-job" / "job.json").write_text('{"run": "half')
    (tmp_path / "old-job" / "job.json").write_text('{"run": "old-job", "nodes": 3}')
    (tmp_path / "no-job" / "job.json").unlink()
    (tmp_path / "no-ledger-file" / "ledger.sqlite").write_bytes(
        b"not a database at all, but long enough to be looked at" * 100
    )
    data = (tmp_path / "half-ledger" / "ledger.sqlite").read_bytes()
    (tmp_path / "half-ledger" / "ledger.sqlite").write_bytes(data[: len(data) // 2 - 100])
    with contextlib.closing(SqliteLedger(tmp_path / "wrong-row" / "ledger.sqlite")) as ledger:
        ledger._execute("UPDATE rounds SET row = ? WHERE round = 2", (b"\xc1\x00",))
    records, skipped = scan(tmp_path)
    assert [record.name for record in records] == ["good"]
    reasons = dict(skipped)
    assert set(reasons) == {"foreign", "half-job", "old-job", "no-job", "no-ledger-file", "half-ledger", "wrong-row"}
    assert "neither job.json nor ledger.sqlite" in reasons["foreign"]
    assert "damaged, or from another version" in reasons["half-job"] and "nodes" in reasons["old-job"]
    assert "a ledger without its job" in reasons["no-job"] and "not a database" in reasons["no-ledger-file"]
    assert "ledger" in reasons["half-ledger"] and "damaged" in reasons["wrong-row"]
    assert all(len(reason.splitlines()) == 1 for reason in reasons.values())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_another_users_job_is_named(tmp_path: Path) -> None:
    make_run(tmp_path, "theirs")
    (tmp_path / "theirs" / "job.json").chmod(0)
    with pytest.raises(RunError, match="only its owner can read it"):
        read_run(tmp_path / "theirs")


def test_a_run_from_before_views_is_told_from_ledger_and_summary(tmp_path: Path) -> None:
    files = finished_run(tmp_path, "done")
    files.view.unlink()
    record = read_run(files.root)
    assert (record.state, record.view.security) == ("finished", "encrypted, signed messages")
    assert record.view.nodes["home-0"].budget_bytes == 1024 * 2**20
    files.summary.write_text('{"nodes": 3}')
    assert read_run(files.root).nodes == ["home-0", "home-1"]


def test_a_ledger_from_before_events_had_rounds_is_read(tmp_path: Path) -> None:
    make_run(tmp_path, "old", [0.5])
    with contextlib.closing(SqliteLedger(tmp_path / "old" / "ledger.sqlite")) as ledger:
        ledger._execute("ALTER TABLE events DROP COLUMN round")
        ledger._execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert read_run(tmp_path / "old").refused == {"home-0": 2}


def test_the_size_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"x" * 1000)
    (tmp_path / "b").write_bytes(b"x" * 24)
    assert folder_bytes(tmp_path) == 1024
    shutil.rmtree(tmp_path)
    assert folder_bytes(tmp_path) == 0
