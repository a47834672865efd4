# SPDX-License-Identifier: Apache-2.0
"""An operator's commands: what they do to the rounds, that they are remembered, and that they decide nothing in the
model."""

from __future__ import annotations

import contextlib
import queue
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leader import Leader

from coordinator.job import RoundSection
from coordinator.rounds.events import (
    CloseRound,
    Declined,
    DigestReported,
    EndRun,
    Event,
    FinishRun,
    NodeOffline,
    NodeOnline,
    OpenRound,
    RoundPublished,
    Tick,
    UpdateAccepted,
)
from coordinator.rounds.machine import RoundMachine
from coordinator.run.control import (
    Answer,
    Asked,
    Command,
    EndRound,
    Exclude,
    Pause,
    Readmit,
    Resume,
    command_of,
    name_of,
    refuse_all,
)
from coordinator.store.ledger import SqliteLedger, read_events
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, RunError
from fedcore.weights.checkpoint import write_safetensors
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec

SCHEMA = ModelSchema((LayerSpec("l", 12, 8),), (TensorSpec("head", (3, 4), False),))
TASK = TaskSection(kind="regression")


def machine(**settings: object) -> RoundMachine:
    return RoundMachine(
        RoundSection(**{"rounds": 3, "min_nodes": 2, "quorum": 2, "deadline_seconds": 100, **settings}), 7
    )  # type: ignore[arg-type]


def feed(m: RoundMachine, *events: Event, now: float = 0.0) -> list[object]:
    """The actions, without answers."""
    out: list[object] = []
    for event in events:
        out += [action for action in m.handle(event, now) if not isinstance(action, Answer)]
        m.check()
    return out


def answer(m: RoundMachine, command: Command, now: float = 0.0) -> tuple[bool, str]:
    found = m.handle(command, now)[0]
    m.check()
    assert isinstance(found, Answer)
    return found.done, found.text


def test_paused_means_that_the_open_round_ends_and_no_other_opens() -> None:
    m = machine()
    feed(m, NodeOnline("a"), NodeOnline("b"))
    assert answer(m, Pause()) == (True, "paused: round 1 goes on to its end, and no other opens")
    assert answer(m, Pause()) == (True, "already paused")
    assert feed(m, UpdateAccepted("a", 1), UpdateAccepted("b", 1)) == [CloseRound(1, ("a", "b"))]
    assert feed(m, RoundPublished(1), Tick(), NodeOnline("c"), now=500) == [] and m.phase == "waiting"
    assert feed(m, Resume(), now=600) == [OpenRound(2, ("a", "b", "c"), 700.0)]
    assert answer(m, Resume()) == (True, "not paused")


def test_a_paused_round_without_a_quorum_opens_again_only_after_the_pause() -> None:
    m = machine()
    feed(m, NodeOnline("a"), NodeOnline("b"), UpdateAccepted("a", 1), Pause())
    assert feed(m, Tick(), NodeOnline("c"), Declined("b", 1), now=150) == [] and m.phase == "open"
    assert feed(m, Resume(), now=160) == [OpenRound(1, ("a", "c"), 260.0)]


def test_paused_before_the_first_round_and_at_the_last_one() -> None:
    m = machine(rounds=1)
    assert answer(m, Pause()) == (True, "paused: round 1 does not open")
    assert feed(m, NodeOnline("a"), NodeOnline("b")) == []
    feed(m, Resume(), Pause(), UpdateAccepted("a", 1), UpdateAccepted("b", 1))
    # The run's end is no further round.
    assert feed(m, RoundPublished(1)) == [FinishRun()]
    assert answer(m, Resume()) == (False, "the run is finishing: no further round opens")


def test_a_round_ends_now_if_its_quorum_is_in() -> None:
    m = machine()
    assert answer(m, EndRound()) == (False, "no round is open")
    feed(m, *map(NodeOnline, "abc"))
    feed(m, Tick(), UpdateAccepted("a", 1))
    assert answer(m, EndRound()) == (False, "round 1 has 1 of 2 updates, and its quorum is 2") and m.phase == "open"
    m = machine(min_nodes=3)
    feed(m, *map(NodeOnline, "abc"), UpdateAccepted("a", 1), UpdateAccepted("c", 1))
    assert m.handle(EndRound(), 5.0) == [Answer(True, "ended: round 1 has 2 of 3 updates"), CloseRound(1, ("a", "c"))]
    # The third is late, and is told so as always.
    assert feed(m, UpdateAccepted("b", 1)) == []


def test_an_excluded_node_is_not_waited_for_and_not_invited() -> None:
    m = machine(min_nodes=3)
    feed(m, *map(NodeOnline, "abc"), UpdateAccepted("a", 1), UpdateAccepted("b", 1))
    assert m.handle(Exclude("c"), 1.0) == [
        Answer(True, "c is excluded: round 1 does not wait for it, and it is not invited to further rounds"),
        CloseRound(1, ("a", "b")),
    ]
    assert feed(m, RoundPublished(1), now=2) == [OpenRound(2, ("a", "b"), 102.0)]
    assert answer(m, Exclude("c")) == (True, "c is already excluded")
    assert answer(m, Readmit("a")) == (True, "a is not excluded")
    assert answer(m, Readmit("c")) == (True, "c is invited again")
    feed(m, UpdateAccepted("a", 2), UpdateAccepted("b", 2))
    assert feed(m, RoundPublished(2), now=3) == [OpenRound(3, ("a", "b", "c"), 103.0)]


def test_what_an_excluded_node_sent_in_the_open_round_counts() -> None:
    m = machine(min_nodes=3)
    feed(m, *map(NodeOnline, "abc"), UpdateAccepted("c", 1))
    assert answer(m, Exclude("c")) == (
        True,
        "c is excluded: its update of round 1 counts, and it is not invited to further rounds",
    )
    assert feed(m, UpdateAccepted("a", 1), UpdateAccepted("b", 1)) == [CloseRound(1, ("a", "b", "c"))]


def test_too_few_are_left_is_said_and_the_run_waits_for_others() -> None:
    m = machine()
    feed(m, NodeOnline("a"), NodeOnline("b"), UpdateAccepted("a", 1))
    done, text = answer(m, Exclude("b"))
    assert done and text.endswith("; 1 nodes are left, and the quorum is 2")
    assert feed(m, Tick(), now=50) == [] and m.phase == "open"
    # Past its deadline it opens again with whoever may take part.
    assert feed(m, NodeOnline("c"), now=60) == [OpenRound(1, ("a", "c"), 160.0)]


def test_with_everybody_excluded_nothing_opens_until_somebody_may_come() -> None:
    m = machine(quorum=1, min_nodes=1)
    feed(m, NodeOnline("a"))
    assert feed(m, Exclude("a"), Tick(), NodeOffline("a"), NodeOnline("a"), now=500) == []
    assert feed(m, Readmit("a"), now=600) == [OpenRound(1, ("a",), 700.0)]


def test_an_excluded_node_is_not_waited_for_at_the_end() -> None:
    m = machine(rounds=1, min_nodes=3)
    feed(m, *map(NodeOnline, "abc"), *(UpdateAccepted(node, 1) for node in "abc"))
    assert feed(m, RoundPublished(1), DigestReported("a", 1, "x"), DigestReported("b", 1, "x")) == [FinishRun()]
    assert feed(m, Exclude("c")) == [EndRun()]


def test_commands_from_words() -> None:
    for name, node in [("pause", ""), ("resume", ""), ("end_round", ""), ("exclude", "a"), ("readmit", "a")]:
        assert name_of(command_of(name, node)) == name
    for name, node, said in [
        ("stop", "", "there is no command 'stop'"),
        ("exclude", "", "needs a node"),
        ("pause", "a", "about no node"),
    ]:
        with pytest.raises(ConfigError, match=said):
            command_of(name, node)


# The shell: what is remembered


def make_model(root: Path) -> Path:
    model = root / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    chance = np.random.default_rng(0)
    weights: dict[str, Any] = {
        f"{s.name}.weight": chance.normal(size=(s.rows, s.columns)).astype("<f4") for s in SCHEMA.layers
    }
    write_safetensors(
        model / "model.safetensors", [(name, "F32", w.shape) for name, w in weights.items()], weights.__getitem__
    )
    return model


@pytest.fixture
def make_leader(tmp_path: Path) -> Callable[[str], Leader]:
    model = make_model(tmp_path)
    return lambda name: Leader(tmp_path / name, model, SCHEMA, TASK, rounds=4, every=0)


def tell(leader: Leader, command: Command) -> Answer:
    return leader.coordinator.command(command, "alice").result(20)


def commands_of(leader: Leader) -> list[str]:
    return [event.text for event in read_events(leader.files.ledger, 0, 100) if event.kind == "command"]


def test_paused_and_excluded_are_there_after_a_kill_and_the_digest_is_the_same(
    make_leader: Callable[[str], Leader],
) -> None:
    plain = make_leader("plain")
    undisturbed = plain.until(4, plain.start())
    plain.kill()

    leader = make_leader("commanded")
    plan = leader.start()
    assert tell(leader, Pause()) == Answer(True, "paused: round 1 goes on to its end, and no other opens")
    with pytest.raises(AssertionError, match="no plan"):
        leader.advance(plan, wait_seconds=0.5)
    assert leader.coordinator.view.paused and leader.coordinator.view.phase == "waiting"
    assert (
        tell(leader, Exclude("nn")).text == "no node 'nn' was heard in this run; 'n' was"
        and not leader.coordinator.view.excluded
    )
    assert tell(leader, Exclude("n")).done
    leader.kill()

    with pytest.raises(AssertionError, match="no plan"):
        leader.start(wait_seconds=0.5)
    view = leader.coordinator.view
    assert (view.paused, view.excluded, view.phase) == (True, ("n",), "waiting")
    assert tell(leader, Resume()).done and leader.coordinator.view.phase == "waiting"
    assert tell(leader, Readmit("n")).done
    last = leader.until(4, leader.next_plan())
    leader.kill()
    assert (last.start_digest, last.version) == (undisturbed.start_digest, 3)
    assert [text.partition(":")[0] for text in commands_of(leader)] == [
        "pause by alice", "exclude by alice", "exclude by alice", "resume by alice", "readmit by alice",
    ]  # fmt: skip
    assert commands_of(leader)[1] == "exclude by alice: refused: no node 'nn' was heard in this run; 'n' was"


def test_a_round_that_cannot_end_says_why_and_goes_on(make_leader: Callable[[str], Leader]) -> None:
    leader = make_leader("x")
    plan = leader.start()
    assert tell(leader, EndRound()) == Answer(False, "round 1 has 0 of 1 updates, and its quorum is 1")
    assert leader.advance(plan).round == 2
    (event,) = (event for event in read_events(leader.files.ledger, 0, 100) if event.kind == "command")
    assert (event.round, event.node) == (1, "") and "refused" in event.text
    leader.kill()


_KILLED = """\
import os, signal, sys
from pathlib import Path
from coordinator.run.control import Pause
from coordinator.store.ledger import SqliteLedger
from leader import Leader
sys.path.insert(0, sys.argv[2])
from test_control import SCHEMA, TASK

def put_command(self, *arguments, write=SqliteLedger.put_command):
    if sys.argv[3] == "after":
        write(self, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)

leader = Leader(Path(sys.argv[1]) / "run", Path(sys.argv[1]) / "model", SCHEMA, TASK, rounds=4, every=0)
leader.until(2, leader.start())
SqliteLedger.put_command = put_command
leader.coordinator.command(Pause(), "alice").result(20)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_in_the_middle_of_a_command_it_was_obeyed_or_it_was_not(tmp_path: Path, moment: str) -> None:
    make_model(tmp_path)
    here = Path(__file__).parent
    path = f"{here.parents[1] / 'helpers'}:{here.parents[2]}"
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path), str(here), moment],
        env={"PYTHONPATH": path},
        capture_output=True,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    obeyed = moment == "after"
    ledger = SqliteLedger(tmp_path / "run" / "ledger.sqlite")
    assert (ledger.fact("paused", bool) or False, ledger.counts("command")) == (obeyed, {"": 1} if obeyed else {})
    ledger.close()
    leader = Leader(tmp_path / "run", tmp_path / "model", SCHEMA, TASK, rounds=4, every=0)
    # The open round goes on; only the next one waits.
    plan = leader.start()
    assert plan.round == 2 and leader.coordinator.view.paused == obeyed
    if obeyed:
        with pytest.raises(AssertionError, match="no plan"):
            leader.advance(plan, wait_seconds=0.5)
        assert tell(leader, Resume()).done
        assert leader.next_plan().round == 3
    else:
        assert leader.advance(plan).round == 3
    leader.kill()


def test_nobody_waits_for_an_answer_of_a_coordinator_that_ended() -> None:
    asked, events = Asked(Pause(), "alice"), queue.Queue[Any]()
    events.put(Tick())
    events.put(asked)
    refuse_all(events)
    assert asked.answer.result(0) == Answer(False, "the coordinator has ended") and events.empty()
    gone = Asked(Pause(), "alice")
    gone.answer.cancel()
    gone.tell(Answer(True, "x"))


def test_a_command_that_cannot_be_kept_is_answered_and_ends_the_coordinator(
    make_leader: Callable[[str], Leader], monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = make_leader("x")
    leader.start()

    def full(*arguments: object) -> None:
        raise RunError("the ledger cannot be used: disk I/O error")

    monkeypatch.setattr(SqliteLedger, "put_command", full)
    assert tell(leader, Pause()) == Answer(False, "the coordinator stopped before it was done")
    assert isinstance(leader.died(), RunError)


def test_a_ledger_of_another_version_is_refused_in_one_line_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as old:
        old.execute(
            "CREATE TABLE events (at REAL NOT NULL, kind TEXT NOT NULL, node TEXT NOT NULL, text TEXT NOT NULL)"
        )
    old.close()
    before = path.read_bytes()
    with pytest.raises(
        RunError, match=r"of fedkrso 0\.1, this program reads format 2 \(go on with the version that began"
    ):
        SqliteLedger(path)
    assert path.read_bytes() == before
    with contextlib.closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version=3")
    with pytest.raises(RunError, match=r"of another version of fedkrso \(format 3\)"):
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
    with pytest.raises(RunError, match="cannot be read"):
        read_events(tmp_path / "nothing", 0, 9)


def test_a_reader_of_events_keeps_nobody_from_writing(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    began = time.monotonic()
    for number in range(30):
        ledger.note(float(number), "link", "", "lost", 1)
        assert read_events(tmp_path / "ledger.sqlite", 0, 1)[0].at == number
    assert time.monotonic() - began < 10
    ledger.close()
