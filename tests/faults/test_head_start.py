# SPDX-License-Identifier: Apache-2.0
"""A head from sums before FedKRSO's rounds, on real parts: killed around the change of phase, and with a node that was
away across it, a run ends with the undisturbed digest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cluster import needs_mosquitto
from forked_workers import ForkedWorkers
from tiny import Recipe, Tiny
from workshop import Workshop

from coordinator.store.ledger import SqliteLedger
from fedcore.round.training import HeadTraining

ROUNDS = 3


class HeadFirst(Tiny):
    """A run whose first round is the head's."""

    again = 0

    def _job_text(self) -> str:
        return super()._job_text().replace('start = "random"', f'start = "ridge"\nagain = {self.again}')


class HeadLast(HeadFirst):
    """One whose last round is another."""

    again = ROUNDS - 2


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, forked_workers: ForkedWorkers) -> Workshop:
    needs_mosquitto()
    return Workshop(tmp_path_factory.mktemp("workshop"), forked_workers)


def run(folder: Path, workshop: Workshop, *, kills: bool, kind: type[HeadFirst]) -> str:
    tiny = kind(folder, workshop, Recipe(rounds=ROUNDS))
    killed: list[str] = []

    def watch() -> None:
        if not kills:
            return
        output = tiny.output()
        if "node" not in killed and tiny.mark() == 1 and (found := tiny.workers(0)):
            # While it loads, or gathers.
            killed.append("node")
            found[0].kill()
        if "leader" not in killed and re.search(r"^round 1: update of", output, re.MULTILINE):
            # One update or both are in: the sums are in the ledger, or the head is already.
            killed.append("leader")
            tiny.kill_leader()
            tiny.lead()
        if "home" not in killed and tiny.mark() == 2 and (home := tiny.homes[1]) is not None:
            # A node that was loaded for the head's round, and comes back in the middle of the next one.
            killed.append("home")
            home.kill()
            home.wait()
            tiny.join(1)

    try:
        tiny.finish(watch)
        digest = tiny.check()
        assert sorted(killed) == (["home", "leader", "node"] if kills else []), killed
        workshop.keep_traces(tiny.node_folder(0))
        ledger = SqliteLedger(tiny.files.ledger)
        try:
            plans = [ledger.plan(number) for number in range(1, ROUNDS + 1)]
            heads = [True, False, kind.again > 0]
            assert [plan is not None and isinstance(plan.training, HeadTraining) for plan in plans] == heads
        finally:
            ledger.close()
        assert "round 1 (head): published" in tiny.output()
        assert [row["phase"] for row in tiny.found()["rounds"]] == ["head" if head else "" for head in heads]
        assert all(tiny.found()["nodes"][name]["agent_peak_rss_bytes"] <= 40_000_000 for name in tiny.names)
    finally:
        tiny.close()
    return digest


@pytest.mark.parametrize("kind", [pytest.param(HeadFirst, marks=pytest.mark.slow), HeadLast])
def test_a_run_that_is_killed_around_the_change_of_phase_ends_as_one_that_is_not(
    tmp_path: Path, workshop: Workshop, kind: type[HeadFirst]
) -> None:
    quiet, killed = (run(tmp_path / name, workshop, kills=name == "killed", kind=kind) for name in ("quiet", "killed"))
    assert quiet == killed


@pytest.mark.slow
def test_a_node_that_was_away_for_the_head_s_round_takes_part_in_the_next(tmp_path: Path, workshop: Workshop) -> None:
    class Late(HeadFirst):
        def _job_text(self) -> str:
            text = super()._job_text().replace("min_nodes = 2", "min_nodes = 1").replace("quorum = 2", "quorum = 1")
            measured = f'[evaluation]\nwhere = "both"\nsource = "{self.workshop.texts(7)}"\nshare = 0.25\n\n[broker]'
            return text.replace("[broker]", measured)

    tiny = Late(tmp_path / "run", workshop, Recipe(rounds=6))
    try:
        tiny.lead()
        tiny.join(0)
        tiny.wait(lambda: tiny.mark() >= 2)
        tiny.join(1)
        tiny.wait(lambda: tiny.ended)
        codes = tiny.exit_codes(*(home for home in tiny.homes if home is not None))
        summary = tiny.found()
        assert codes == [0, 0] and summary["rounds"][0]["participants"] == ["home-0"], tiny.output()[-3000:]
        assert summary["rounds"][-1]["participants"] == tiny.names, tiny.output()[-3000:]
        assert {summary["nodes"][name]["digest"] for name in tiny.names} == {summary["final"]["digest"]}
        # One process measured states of both phases, and nodes measured them before they trained.
        assert all(row["accuracy"] is not None and row["on_nodes"] is not None for row in summary["rounds"])
        assert summary["rounds"][0]["loss"] != summary["rounds"][-1]["loss"]
    finally:
        tiny.close()
