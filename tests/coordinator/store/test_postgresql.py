# SPDX-License-Identifier: Apache-2.0
"""Ledgers in a real PostgreSQL that is killed, cut off, set back and written by two; and ledgers that are moved."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_runs import fedkrso, finished_run, killed_run, running_run

from coordinator.reports.runs import read_run
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import LedgerReader, begin_life
from coordinator.store.moving import move_ledger
from coordinator.store.places import (
    Database,
    begin_in,
    database_of,
    keep_database,
    open_ledger,
    read_events,
    read_ledger,
)
from fedcore.errors import ConfigError, RunError
from tests.contract.test_ledger import EXPECTED, filled, published, row, seen, update
from tests.postgres import Postgres, open_beside

Opened = Callable[..., Any]


@pytest.fixture
def folder(postgres: Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> RunFolder:
    """A run of the test's own, begun in the database."""
    found = RunFolder(tmp_path / "run")
    found.root.mkdir()
    begin_in(found, postgres.database, request.node.name)
    return found


def test_a_server_that_is_killed_is_waited_for_and_nothing_is_lost_or_doubled(
    postgres: Postgres, folder: RunFolder
) -> None:
    said: list[tuple[str, bool]] = []
    ledger = open_ledger(folder, leads=True, tell=lambda words, away: said.append((words, away)))
    filled(ledger)
    postgres.kill()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ledger.note, 3.0, "link", "", "lost", 2)
        postgres.start()
        waiting.result()
    assert not ledger.put_update(update("a", transfer="another")) and ledger.put_update(update("c"))
    assert [away for _, away in said] == [True, False]
    assert said[0][0].startswith(f"the database at 127.0.0.1:{postgres.port}/postgres is away, and is waited for: ")
    assert [event[1] for event in ledger.events()] == ["refused", "command", "link"]
    assert [row.header.node for row in ledger.updates(1)] == ["a", "b", "c"]
    ledger.close()


def test_whoever_stops_the_run_need_not_wait_for_the_server(postgres: Postgres, folder: RunFolder) -> None:
    ledger = open_ledger(folder, leads=True, tell=lambda words, away: ledger.give_up())
    postgres.kill()
    with pytest.raises(RunError, match=r"stopped while the database was away \(resume when it is back\)"):
        ledger.rounds()
    ledger.close()
    with pytest.raises(RunError, match="cannot be reached: .*psql"):
        open_ledger(folder, leads=True)
    with pytest.raises(RunError, match="cannot be reached"):
        read_events(folder.ledger, 0, 9)
    postgres.start()


class Cutter:
    """Passes bytes between a client and the server. When it is armed it loses the connection around the next COMMIT:
    before the server has it, or after, and the client never hears which."""

    def __init__(self, port: int) -> None:
        self._port, self.armed = port, ""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._between, args=(client,), daemon=True).start()

    def _between(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server, ThreadPoolExecutor(1) as pool:
            back = pool.submit(self._pass, server, client)
            self._pass(client, server)
            back.result()

    def _pass(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(65536):
                if b"COMMIT" in data and self.armed:
                    after, self.armed = self.armed == "after", ""
                    # Nothing comes back from here on.
                    here.shutdown(socket.SHUT_RDWR)
                    if after:
                        there.sendall(data)
                    break
                there.sendall(data)
        with contextlib.suppress(OSError):
            there.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        # A listener that is shut down wakes whoever accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def cutter(postgres: Postgres, folder: RunFolder) -> Iterator[Cutter]:
    """Between the run and its database."""
    cutter = Cutter(postgres.port)
    database = database_of(folder)
    assert database is not None
    url = postgres.url.replace(f":{postgres.port}/", f":{cutter.port}/")
    # Without TLS, so that it sees what is asked.
    keep_database(folder, msgspec.structs.replace(database, url=f"{url}?sslmode=disable"))
    yield cutter
    cutter.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_change_whose_answer_was_lost_counts_once(
    postgres: Postgres, folder: RunFolder, cutter: Cutter, when: str
) -> None:
    # Whoever is told that it is back writes that down at once, as a coordinator does.
    ledger = open_ledger(
        folder, leads=True, tell=lambda words, away: None if away else ledger.note(9.0, "ledger", "", "back")
    )
    filled(ledger)
    assert seen(ledger) == EXPECTED
    for number, put in enumerate(
        (
            lambda: ledger.put_update(update("new")),
            lambda: ledger.note(3.0, "link", "", "lost", 2) is None,
            lambda: ledger.put_command({"paused": False}, 4.0, "", "resume", 2) is None,
            lambda: ledger.put_published([], row(2)) is None,
        )
    ):
        cutter.armed = when
        assert put(), f"put {number} is told as new"
        assert cutter.armed == ""
    assert [event[3] for event in ledger.events() if event[1] != "ledger"] == ["late", "pause", "lost", "resume"]
    assert [event[1] for event in ledger.events()].count("ledger") == 4
    assert [row.round for row in ledger.rounds()] == [1, 2] and ledger.fact("paused", bool) is False
    # The first change is the taking over, then those of `filled`; each of these counts once, and each word about it.
    assert postgres.sql("SELECT writes FROM fedkrso.runs WHERE name = " + _name(folder)) == str(1 + 8 + 4 + 4)
    ledger.close()


def _name(folder: RunFolder) -> str:
    database = database_of(folder)
    assert database is not None
    return f"(SELECT name FROM fedkrso.runs WHERE key = '{database.key}')"


def test_two_coordinators_never_write_one_run(folder: RunFolder) -> None:
    first = open_ledger(folder, leads=True)
    filled(first)
    second = open_ledger(folder, leads=True)
    with pytest.raises(RunError, match=r"another coordinator writes this run's ledger \(leave the run to that one"):
        first.note(3.0, "link", "", "lost")
    assert seen(second) == EXPECTED
    # Whoever exports a model meanwhile is no coordinator, and disturbs none.
    beside = open_ledger(folder)
    beside.put_fact("seed", 7)
    second.note(3.0, "link", "", "lost")
    for ledger in (first, second, beside):
        ledger.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE fedkrso.runs SET writes = writes - 2", "without 2 of the run's last"),
        ("DELETE FROM", "without the run"),
    ],
)
def test_a_database_that_was_set_back_is_noticed_before_anything_is_written(
    postgres: Postgres, folder: RunFolder, change: str, words: str
) -> None:
    ledger = open_ledger(folder, leads=True)
    filled(ledger)
    name = _name(folder)
    change = change.replace("DELETE FROM", "DELETE FROM fedkrso.runs")
    postgres.sql(f"{change} WHERE name = {name}")
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fedkrso'")
    with pytest.raises(RunError, match=words):
        ledger.note(3.0, "link", "", "lost")
    ledger.close()


def test_many_runs_lie_in_one_database_and_each_sees_its_own(
    postgres: Postgres, folder: RunFolder, tmp_path: Path
) -> None:
    other = RunFolder(tmp_path / "other")
    other.root.mkdir()
    begin_in(other, postgres.database, f"{tmp_path.name}-other")
    ledgers = [open_ledger(each, leads=True) for each in (folder, other)]
    assert len({begin_life(ledger)[0] for ledger in ledgers}) == 2
    filled(ledgers[0])
    assert ledgers[1].rounds() == ledgers[1].updates(1) == ledgers[1].events() == []
    ledgers[1].note(1.0, "link", "", "a \0 that no text of PostgreSQL has, and \N{SNOWMAN}")
    with read_ledger(folder) as one, read_ledger(other) as two:
        assert seen(one) == EXPECTED and one.reasons()[0][:4] == (1.0, "refused", "a", "late")
        # One moment of it, however long that takes.
        ledgers[1].put_round(row(9))
        assert two.rounds() == [] and "\N{SNOWMAN}" in two.events()[0][3]
        with pytest.raises(RunError, match="read-only"):
            two.put_round(row(10))
    assert [event.number for event in read_events(folder.ledger, 0, 1)] == [2]
    assert [event.number for event in read_events(folder.ledger, 1, 9)] == [2]
    for ledger in ledgers:
        ledger.close()
    with pytest.raises(RunError, match=r"already in the database .*delete its row of fedkrso.runs"):
        begin_in(other, postgres.database, f"{tmp_path.name}-other")


def test_what_cannot_be_used_is_refused_in_one_line(postgres: Postgres, folder: RunFolder, tmp_path: Path) -> None:
    database = database_of(folder)
    assert database is not None
    keep_database(folder, msgspec.structs.replace(database, key="ab" * 16))
    with pytest.raises(RunError, match="the run is not in this database"):
        open_ledger(folder)
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")
    with pytest.raises(ConfigError, match="others can read this password"):
        begin_in(folder, msgspec.structs.replace(postgres.database, password_file=str(wrong)), "x")
    wrong.chmod(0o600)
    with pytest.raises(RunError, match="password authentication failed"):
        begin_in(folder, msgspec.structs.replace(postgres.database, password_file=str(wrong)), "x")
    # A database of another machine shows who it is.
    with pytest.raises(RunError, match=r"cannot be reached: .*(root certificate|does not support SSL)"):
        url = postgres.url.replace("127.0.0.1", "localhost.localdomain.invalid")
        begin_in(folder, Database(url=f"{url}?hostaddr=127.0.0.1"), "x")
    postgres.sql("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    latin = msgspec.structs.replace(postgres.database, url=postgres.url.replace("/postgres", "/latin"))
    with pytest.raises(RunError, match="fsync = on and the encoding LATIN1"):
        begin_in(folder, latin, "x")
    keep_database(folder, database)
    postgres.sql(f"UPDATE fedkrso.runs SET format = 99 WHERE key = '{database.key}'")
    with pytest.raises(RunError, match="the ledger is of format 99, this program reads format"):
        open_ledger(folder)
    folder.database.write_text("{")
    with pytest.raises(RunError, match=r"ledger.json: cannot be read"):
        open_ledger(folder)


def _all_of(folder: RunFolder) -> Any:
    ledger = open_ledger(folder)
    try:
        return list(ledger.everything())
    finally:
        ledger.close()


def test_a_run_is_moved_there_and_back_and_is_what_it_was(postgres: Postgres, tmp_path: Path) -> None:
    folder = finished_run(tmp_path, f"moved-{tmp_path.name}")
    with contextlib.closing(open_ledger(folder)) as ledger:
        filled(ledger)
        ledger.put_objects([published(3)])
    before, record = _all_of(folder), read_run(folder.root)
    assert sum(len(rows) for _, rows in before) > 10
    command = ("runs", "move", folder.root.name, postgres.url, "--password-file", str(postgres.password_file))
    there = fedkrso(*command, "--runs", str(tmp_path))
    assert there.returncode == 0, there.stderr
    assert f"at 127.0.0.1:{postgres.port}/postgres, the same as before" in there.stdout
    assert f"digest of the run's last round: {published(3).digest}" in there.stdout
    assert not folder.ledger.exists() and _all_of(folder) == before
    assert read_run(folder.root).rows == record.rows and read_run(folder.root).state == record.state
    again = fedkrso(*command, "--runs", str(tmp_path))
    assert again.returncode == 2 and "(nothing to do)" in again.stderr
    # An event log goes on with its numbers.
    with contextlib.closing(open_ledger(folder, leads=True)) as ledger:
        ledger.note(9.0, "link", "", "lost", 2)
    back = fedkrso("runs", "move", folder.root.name, "sqlite", "--runs", str(tmp_path))
    assert back.returncode == 0, back.stderr
    assert not folder.database.exists()
    assert postgres.sql(f"SELECT count(*) FROM fedkrso.runs WHERE name = '{folder.root.name}'") == "0"
    with LedgerReader(folder.ledger) as reader:
        numbers = [event.number for event in reader.lines(0, 99)]
        assert numbers == list(range(1, len(numbers) + 1)) and reader.events()[-1][0] == 9.0
    assert read_run(folder.root).rows == record.rows


def test_a_move_that_was_cut_short_is_made_again_and_a_run_that_is_led_stays(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"cut-{tmp_path.name}"
    folder = killed_run(tmp_path, name)
    before = _all_of(folder)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("coordinator.store.moving.keep_database", killed)
        move_ledger(folder, postgres.database)
    assert _all_of(folder) == before and database_of(folder) is None
    move_ledger(folder, postgres.database)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("coordinator.store.moving._same", killed)
        move_ledger(folder, None)
    assert _all_of(folder) == before and database_of(folder) is not None
    move_ledger(folder, None)
    assert _all_of(folder) == before and database_of(folder) is None
    with running_run(tmp_path, f"led-{tmp_path.name}"), pytest.raises(RunError, match="its coordinator runs, as"):
        move_ledger(RunFolder(tmp_path / f"led-{tmp_path.name}"), postgres.database)


def test_a_job_names_its_database_and_no_password(postgres: Postgres, tmp_path: Path) -> None:
    from coordinator.job import LedgerSection

    with pytest.raises(ConfigError, match=r"an address has no password in it \(write it into a file"):
        LedgerSection(url="postgresql://user:secret@host/db")
    with pytest.raises(ConfigError, match="an address has no password in it"):
        LedgerSection(url="postgresql://user@host/db?password=secret")
    with pytest.raises(ConfigError, match="'mysql://host' is no address of PostgreSQL"):
        LedgerSection(url="mysql://host")
    (tmp_path / "run").mkdir()
    open_beside(tmp_path / "run" / "ledger").close()
    assert database_of(RunFolder(tmp_path / "run")) is not None
