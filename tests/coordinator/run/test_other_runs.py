# SPDX-License-Identifier: Apache-2.0
"""A run's name can be used again, and clocks can be set: neither changes what a run comes to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator.job import SafetySection
from coordinator.run.rivals import Rivals
from coordinator.store.folder import RunFolder, stored_job, written
from coordinator.store.ledger import SqliteLedger, begin_life
from coordinator.store.view import RunView
from fedcore.errors import RunError, StorageError
from fedcore.system.clocks import Clocks
from fedcore.system.locks import owned
from fedcore.transport.base import Message, Received
from fedcore.wire.messages import Status
from fedcore.wire.post import Post
from tests.coordinator.messages.one_round import HONEST, TOPICS, Run, good
from tests.fuzz.samples import PLAN

YEAR = 365 * 86_400.0


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[Callable[[str], Run]]:
    made: list[Run] = []

    def make(name: str) -> Run:
        made.append(Run(tmp_path / name))
        return made[-1]

    yield make
    for run in made:
        run.ledger.close()


def test_what_a_node_said_in_an_earlier_run_of_the_name_is_refused_and_said(make_run: Callable[[str], Run]) -> None:
    first, second, alone = make_run("first"), make_run("second"), make_run("alone")
    first.go({**HONEST, "home-0": good(5)}, SafetySection())
    # Its status, its offer, every chunk, in the order in which they came.
    second.replayed = [message for message in first.heard if TOPICS.node_of(message.topic) == "home-0"]
    assert len(second.replayed) >= 4
    assert set(second.go(HONEST, SafetySection()).values()) == {""}
    assert "home-0" not in second.view.nodes and second.view.rows[0].participants == ("good-1", "good-2")
    assert "a message of another run of this name" in second.said("refused")["home-0"]
    alone.go(HONEST, SafetySection())
    assert second.view.digest == alone.view.digest


def test_names_that_somebody_invents_are_bounded_and_said(make_run: Callable[[str], Run]) -> None:
    run, run_id = make_run("run"), "c" * 32
    run.ledger.put_fact("run_id", run_id)
    for number in range(2100):
        status = Post("t", f"x{number}", None, 1, run_id).seal(Status(online=False, state="idle"))
        run.replayed.append(Message(TOPICS.status(f"x{number}"), status))
    assert set(run.go(HONEST, SafetySection()).values()) == {""}
    assert len(run.view.nodes) == 2000 and {"good-1", "good-2"} <= run.view.nodes.keys()
    assert run.said("refused") == {"": "more than 2000 names of nodes in a run without keys"}


@pytest.mark.parametrize("jump", [YEAR, -86_400.0])
def test_a_clock_that_is_set_in_the_middle_of_a_round_changes_nothing(
    make_run: Callable[[str], Run], jump: float
) -> None:
    run, offset, shown = make_run("run"), [0.0], list[float]()
    run.clocks = Clocks(wall=lambda: time.time() + offset[0])

    def observe(view: RunView) -> None:
        if view.phase == "open" and view.deadline_at is not None:
            shown.append(view.deadline_at - run.clocks.wall())
            offset[0] = jump

    run.observe = observe
    assert set(run.go(HONEST, SafetySection()).values()) == {""}
    assert run.view.rows[0].participants == ("good-1", "good-2") and run.view.rows[0].seconds < 60
    # Whoever looks sees the right time left, soon after.
    assert 3500 < shown[-1] <= 3600


def test_each_life_has_a_number_and_all_have_one_id(tmp_path: Path) -> None:
    lives = []
    for _ in range(3):
        ledger = SqliteLedger(tmp_path / "ledger.sqlite")
        lives.append(begin_life(ledger))
        ledger.close()
    assert [start for _, start in lives] == [1, 2, 3] and len({run_id for run_id, _ in lives}) == 1
    assert len(lives[0][0]) == 32


class Desk:
    """Notes, and what is withdrawn."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.withdrawn: list[object] = []
        self.rivals = Rivals("b" * 32, None, self, lambda kind, node, text: self.noted.append(text))  # type: ignore[arg-type]

    def withdraw(self, plan: object) -> None:
        self.withdrawn.append(plan)

    def hear(self, run_id: str, *, retained: bool, announced: bool) -> None:
        payload = Post("t", "", None, 1, run_id).seal(PLAN, 1)
        self.rivals.heard(Received(TOPICS.plan, payload, retained), announced=announced)


def test_a_second_coordinator_is_named_and_an_earlier_one_s_plan_cleared() -> None:
    desk = Desk()
    desk.hear("b" * 32, retained=False, announced=True)
    assert desk.noted == []
    desk.hear("a" * 32, retained=True, announced=True)
    assert desk.noted == [] and desk.withdrawn == []
    desk.hear("a" * 32, retained=True, announced=False)
    assert len(desk.withdrawn) == 1 and "left its plan at the broker" in desk.noted[0]
    desk.hear("a" * 32, retained=False, announced=True)
    assert desk.noted[1] == "a second coordinator leads another run of this name (aaaaaaaaaaaa): stop one of them"
    desk.rivals.heard(Received(TOPICS.plan, b"junk", retained=False), announced=True)
    desk.rivals.heard(Received(TOPICS.plan, b"", retained=False), announced=True)
    assert len(desk.noted) == 3


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    folder = RunFolder(tmp_path / "runs" / "t")
    with (
        pytest.raises(StorageError, match="cannot be written: Not a directory .give this user the right"),
        written(folder),
    ):
        folder.root.mkdir(parents=True)
    with pytest.raises(StorageError, match="set another folder"), owned(tmp_path / "runs", "node n", remedy="wait"):
        pass
    with pytest.raises(ValueError, match="else"), written(folder):
        raise ValueError("else")


def test_a_folder_of_another_format_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "format.json").write_text('{"run_folder": 99, "software": "9.0.0"}')
    with pytest.raises(RunError, match=r"folder is of format 99 \(fedkrso 9\.0\.0\), this program reads"):
        stored_job(tmp_path)
