# SPDX-License-Identifier: Apache-2.0
"""What every ledger keeps, and how: ours, and one that somebody might write from the interface alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from leader import Leader
from plans import make_plan

from coordinator.store.ledger import Ledger, RoundRow, SqliteLedger, UpdateRow
from fedcore.fields.manifest import Manifest
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import StateObject
from tests.contract.journal import JournalLedger
from tests.coordinator.run.test_control import SCHEMA, TASK, make_model
from tests.postgres import open_beside

LEDGERS: dict[str, Callable[[Path], Any]] = {
    "sqlite": SqliteLedger,
    "journal": JournalLedger,
    "postgresql": open_beside,
}


@pytest.fixture(params=LEDGERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which ledger, with what it needs."""
    if request.param == "postgresql":
        request.getfixturevalue("postgres")
    found: str = request.param
    return found


@pytest.fixture
def opened(kind: str, tmp_path: Path) -> Callable[[], Any]:
    """Opens the ledger, again and again."""
    return lambda: LEDGERS[kind](tmp_path / "ledger")


def update(node: str, server_round: int = 1, transfer: str = "t") -> UpdateRow:
    header = UpdateHeader(run="r", round=server_round, node=node, version=0, examples=3, loss=1.0, seconds=2.0)
    return UpdateRow(transfer, f"updates/{server_round}/{node}.bin", 10, header)


def published(version: int, base_version: int | None = None, *, snapshot: bool = False) -> StateObject:
    manifest = Manifest("o", 5, "ab" * 32, 1024)
    return StateObject(version, 0, base_version, "cd" * 32, manifest, snapshot=snapshot)


def row(number: int, accuracy: float | None = None) -> RoundRow:
    return RoundRow(number, ("a", "b"), 100, 200, 3.0, 0.5, accuracy)


def filled(ledger: Ledger) -> None:
    ledger.put_fact("seed", 7)
    ledger.put_plan(make_plan(1))
    assert ledger.put_update(update("b")) and ledger.put_update(update("a"))
    ledger.put_published([published(1), published(1, 0)], row(1))
    ledger.put_objects([published(1, snapshot=True)])
    ledger.note(1.0, "refused", "a", "late", 1)
    ledger.put_command({"paused": True}, 2.0, "", "pause", 1)


def seen(ledger: Ledger) -> dict[str, Any]:
    return {
        "facts": [ledger.fact("seed", int), ledger.fact("paused", bool), ledger.fact("nothing", str)],
        "plans": [ledger.plan(1), ledger.plan(2)],
        "updates": [ledger.updates(1), ledger.updates(2), ledger.update(1, "a"), ledger.update(2, "a")],
        "objects": ledger.published_states(),
        "rounds": ledger.rounds(),
        "events": ledger.events(),
        "counts": [ledger.counts("refused"), ledger.counts("command"), ledger.counts("link")],
    }


EXPECTED = {
    "facts": [7, True, None],
    "plans": [make_plan(1), None],
    "updates": [[update("a"), update("b")], [], update("a"), None],
    "objects": [published(1, 0), published(1), published(1, snapshot=True)],
    "rounds": [row(1)],
    "events": [(1.0, "refused", "a", "late"), (2.0, "command", "", "pause")],
    "counts": [{"a": 1}, {"": 1}, {}],
}


def test_what_was_put_is_there_in_order_and_after_a_restart(opened: Callable[[], Any]) -> None:
    ledger = opened()
    filled(ledger)
    assert seen(ledger) == EXPECTED
    ledger.close()
    again = opened()
    assert seen(again) == EXPECTED
    again.close()


def test_repeating_changes_nothing_and_an_update_counts_once(opened: Callable[[], Any]) -> None:
    ledger = opened()
    filled(ledger)
    assert not ledger.put_update(update("a", transfer="another"))
    ledger.put_fact("seed", 7)
    ledger.put_plan(make_plan(1))
    ledger.put_published([published(1), published(1, 0)], row(1))
    ledger.put_objects([published(1, snapshot=True)])
    assert seen(ledger) == EXPECTED
    ledger.close()


def test_what_comes_later_replaces_what_was_there(opened: Callable[[], Any]) -> None:
    ledger = opened()
    filled(ledger)
    reopened = msgspec.structs.replace(make_plan(1), cohort=("n", "m"), deadline_at=9.0)
    ledger.put_plan(reopened)
    ledger.put_round(row(1, 0.75))
    ledger.put_published([published(2)], row(2))
    ledger.drop_objects([published(1), published(1, 0), published(7)])
    ledger.close()
    again = opened()
    assert again.plan(1) == reopened and again.rounds() == [row(1, 0.75), row(2)]
    assert again.published_states() == [published(1, snapshot=True), published(2)]
    again.close()


_KILLED = """\
import os, signal, sys
from pathlib import Path
from tests.contract.test_ledger import LEDGERS, filled
filled(LEDGERS[sys.argv[1]](Path(sys.argv[2])))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_put_returned_from_survives_a_kill(kind: str, tmp_path: Path) -> None:
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", _KILLED, kind, str(tmp_path / "ledger")]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=120)
    assert killed.returncode == -9, killed.stderr.decode()
    ledger = LEDGERS[kind](tmp_path / "ledger")
    assert seen(ledger) == EXPECTED
    ledger.close()


def test_a_run_on_each_ledger_ends_with_one_digest_also_after_a_kill(kind: str, tmp_path: Path) -> None:
    make_model(tmp_path)
    digests = set()
    for name, open_ledger in {"sqlite": SqliteLedger, kind: LEDGERS[kind]}.items():
        folder = tmp_path / name
        leader = Leader(folder / "run", tmp_path / "model", SCHEMA, TASK, rounds=3, every=0, open_ledger=open_ledger)
        leader.until(2, leader.start())
        leader.kill()
        leader = Leader(folder / "run", tmp_path / "model", SCHEMA, TASK, rounds=3, every=0, open_ledger=open_ledger)
        leader.advance(leader.until(3, leader.start()))
        digests.add(leader.coordinator.view.digest)
        leader.kill()
    assert len(digests) == 1 and len(digests.pop()) == 64
