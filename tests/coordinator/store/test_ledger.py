# SPDX-License-Identifier: Apache-2.0
"""The ledger's format, and its events read by others while it is written."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

import pytest

from coordinator.store.ledger import VERSION, SqliteLedger
from coordinator.store.places import read_events
from fedcore.errors import RunError


def test_a_ledger_of_another_version_is_refused_in_one_line_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as old:
        old.execute(
            "CREATE TABLE events (at REAL NOT NULL, kind TEXT NOT NULL, node TEXT NOT NULL, text TEXT NOT NULL)"
        )
    old.close()
    before = path.read_bytes()
    with pytest.raises(
        RunError, match=r"of fedkrso 0\.1, this program reads format 4 \(go on with the version that began"
    ):
        SqliteLedger(path)
    assert path.read_bytes() == before
    with contextlib.closing(sqlite3.connect(path)) as newer:
        newer.execute(f"PRAGMA user_version={VERSION + 1}")
    with pytest.raises(RunError, match=rf"of another version of fedkrso \(format {VERSION + 1}\)"):
        SqliteLedger(path)


def test_event_lines_are_read_beside_the_ledger(tmp_path: Path) -> None:
    ledger = SqliteLedger(path := tmp_path / "ledger.sqlite")
    ledger.note(1.0, "refused", "a", "late")
    ledger.note(2.0, "link", "", "lost", 3)
    ledger.put_command({"paused": True}, 3.0, "", "pause by alice: paused", 4)
    assert [(e.number, e.kind, e.node, e.round) for e in read_events(path, 0, 9)] == [
        (1, "refused", "a", 0),
        (2, "link", "", 3),
        (3, "command", "", 4),
    ]
    assert [e.number for e in read_events(path, 0, 2)] == [2, 3] and [e.number for e in read_events(path, 1, 1)] == [2]
    assert ledger.events()[0] == (1.0, "refused", "a", "late") and ledger.fact("paused", bool) is True
    ledger.close()
    with pytest.raises(RunError, match="there is no ledger"):
        read_events(tmp_path / "nothing", 0, 9)


def test_a_reader_of_events_keeps_nobody_from_writing(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    began = time.monotonic()
    for number in range(30):
        ledger.note(float(number), "link", "", "lost", 1)
        assert read_events(tmp_path / "ledger.sqlite", 0, 1)[0].at == number
    assert time.monotonic() - began < 10
    ledger.close()
