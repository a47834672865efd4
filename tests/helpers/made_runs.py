# SPDX-License-Identifier: Apache-2.0
"""Folders of runs as coordinators leave them, made by the coordinator's own ledger and view file, without a broker."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from coordinator.job import Job, ModelSection, RoundSection
from coordinator.reports.summary import summary_of, write_summary
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import RoundRow, SqliteLedger
from coordinator.store.view import EventView, NodeView, RunView
from coordinator.store.viewfile import ViewFile
from fedcore.command import main
from fedcore.config.sections import BrokerSection, TaskSection
from fedcore.device.readings import Readings
from fedcore.methods.fedkrso import FedKRSOSettings

__all__ = ["STARTED_AT", "finished_run", "fedkrso", "killed_run", "make_run", "node", "running_run"]

STARTED_AT = 1_800_000_000.0
MIB = 2**20


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


def fedkrso(*arguments: object) -> Said:
    """The program, in this process: its start costs more than what it does."""
    output, errors, code = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, ["fedkrso", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        sys.argv = before
    return Said(code, output.getvalue(), errors.getvalue())


def row(number: int, accuracy: float | None, nodes: Sequence[str], up: int = 1_500_000) -> RoundRow:
    return RoundRow(
        number,
        tuple(nodes),
        up,
        2 * up,
        10.0 + number,
        1.0 / number,
        accuracy,
        None if accuracy is None else 2.0 / number,
        {"f1": 0.5},
        dict.fromkeys(nodes, 1.5),
        {nodes[0]: 0.5} if number == 2 else {},
        {},
    )


def node(name: str, **values: object) -> NodeView:
    found = NodeView(
        name,
        online=True,
        state="training",
        device="Jetson Orin Nano",
        software="0.1.0",
        last_seen_at=STARTED_AT + 60,
        version=2,
        step=12,
        steps=60,
        budget_bytes=1024 * MIB,
        agent_rss_bytes=35 * MIB,
        worker_bytes=400 * MIB,
        peak_bytes=500 * MIB,
        readings=Readings(temperatures_celsius={"cpu": 51.5, "gpu": 49.0}, power_watts=7.25),
    )
    for key, value in values.items():
        setattr(found, key, value)
    return found


def make_run(
    runs: Path,
    name: str,
    accuracy: Sequence[float | None] = (),
    *,
    rounds: int = 6,
    nodes: Sequence[str] = ("home-0", "home-1"),
    method: FedKRSOSettings | None = None,
    started_at: float = STARTED_AT,
    up: int = 1_500_000,
) -> RunView:
    """A run's job and ledger; its view is returned."""
    root = runs / name
    root.mkdir(parents=True)
    job = Job(
        run=name,
        model=ModelSection(folder="models/small"),
        task=TaskSection(kind="text-classification", labels=("a", "b")),
        method=method or FedKRSOSettings(),
        round=RoundSection(rounds=rounds, min_nodes=2, quorum=2),
        broker=BrokerSection(url="mqtts://broker:8883", username="u", password="very secret"),
    )
    (root / "job.json").write_bytes(msgspec.json.encode(job))
    rows = [row(number, value, nodes, up) for number, value in enumerate(accuracy, 1)]
    with contextlib.closing(SqliteLedger(root / "ledger.sqlite")) as ledger:
        ledger.put_fact("started_at", started_at)
        for each in rows:
            ledger.put_round(each)
        ledger.note(started_at + 5, "refused", nodes[0], "late: round 2 is over")
        ledger.note(started_at + 9, "refused", nodes[0], "late: round 2 is over")
        ledger.note(started_at + 9, "clipped", nodes[0], "round 2: norm 1.5, scaled by 0.5 to the bound of 0.75")
        ledger.note(started_at + 9, "link", "", "the broker went away")
    view = RunView(name, job.method.name, rounds, phase="open", round=len(rows) + 1, rows=rows, digest="ab" * 32)
    view.nodes = {each: node(each, version=len(rows), digest="ab" * 32) for each in nodes}
    view.cohort, view.accepted, view.security = tuple(nodes), tuple(nodes[:1]), "encrypted, signed messages"
    view.deadline_at, view.round_opened_at = started_at + 700, started_at + 30
    view.events = [EventView(started_at + 5, "declined", nodes[-1], len(rows), "too hot: 81 C")]
    return view


def finished_run(
    runs: Path, name: str, accuracy: Sequence[float | None] = (0.4, 0.6, 0.7), **options: object
) -> RunFolder:
    """A run that came to its end."""
    view = make_run(runs, name, accuracy, rounds=len(accuracy), **options)  # type: ignore[arg-type]
    files = RunFolder(runs / name)
    with ViewFile(files.view, view, clock=lambda: STARTED_AT + 100):
        view.phase, view.cohort, view.accepted = "finished", (), ()
        for each in view.nodes.values():
            each.online, each.state = False, "finished"
    write_summary(files.summary, summary_of(view))
    return files


@contextlib.contextmanager
def running_run(
    runs: Path, name: str, accuracy: Sequence[float | None] = (0.4, 0.6), **options: object
) -> Iterator[tuple[RunView, ViewFile]]:
    """A run whose coordinator is this very process."""
    view = make_run(runs, name, accuracy, **options)  # type: ignore[arg-type]
    with ViewFile(RunFolder(runs / name).view, view) as picture:
        yield view, picture


def killed_run(runs: Path, name: str, accuracy: Sequence[float | None] = (0.4, 0.6), **options: object) -> RunFolder:
    """A run whose coordinator was killed: a process wrote its view and its ledger's last round, and is gone without a
    word."""
    make_run(runs, name, accuracy, **options)  # type: ignore[arg-type]
    files = RunFolder(runs / name)
    program = """
import json, os, signal, sys
from pathlib import Path
import msgspec
from coordinator.store.ledger import SqliteLedger
from coordinator.store.view import RunView
from coordinator.store.viewfile import ViewFile
root, values = Path(sys.argv[1]), json.loads(sys.argv[2])
ledger = SqliteLedger(root / "ledger.sqlite")
rows = ledger.rounds()
view = RunView(root.name, "fedkrso", values["rounds"], phase="open", round=len(rows) + 1, rows=rows)
ViewFile(root / "view.json", view).__enter__()
ledger.put_round(msgspec.structs.replace(rows[-1], round=len(rows) + 1))
os.kill(os.getpid(), signal.SIGKILL)
"""
    values = json.dumps({"rounds": options.get("rounds", 6)})
    done = subprocess.run([sys.executable, "-c", program, str(files.root), values], timeout=300, check=False)
    assert done.returncode == -9
    return files
