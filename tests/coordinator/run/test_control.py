# SPDX-License-Identifier: Apache-2.0
"""An operator's commands to a coordinator: that they are remembered, and that they decide nothing in the model."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leader import Leader

from coordinator.rounds.events import (
    Tick,
)
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
from coordinator.store.ledger import SqliteLedger
from coordinator.store.places import read_events
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, RunError
from fedcore.weights.checkpoint import write_safetensors
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec

SCHEMA = ModelSchema((LayerSpec("l", 12, 8),), (TensorSpec("head", (3, 4), False),))


TASK = TaskSection(kind="regression")


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
    return leader.coordinator.command(command, "alice").result(120)


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
leader.coordinator.command(Pause(), "alice").result(120)
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
        timeout=300,
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
