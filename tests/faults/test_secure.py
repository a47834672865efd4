# SPDX-License-Identifier: Apache-2.0
"""Secure aggregation on real parts: broker, coordinator, agents and workers, with signatures. A run with kills, whose
first round is the head's sums, ends with the digest of one without any masks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cluster import needs_mosquitto
from forked_workers import ForkedWorkers
from masked import Masked
from tiny import Recipe, Tiny
from workshop import Workshop

from coordinator.store.ledger import SqliteLedger

HOMES, ROUNDS = 3, 2


class HeadFirst(Masked):
    """Its first round is the head's."""

    def _job_text(self) -> str:
        return super()._job_text().replace('start = "random"', 'start = "ridge"')


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, forked_workers: ForkedWorkers) -> Workshop:
    needs_mosquitto()
    return Workshop(tmp_path_factory.mktemp("workshop"), forked_workers)


def run(folder: Path, workshop: Workshop, *, secure: bool, kills: bool = False) -> str:
    """The digest that everybody ends with."""
    tiny: Tiny = type("Run", (HeadFirst,), {"secure": secure})(folder, workshop, Recipe(homes=HOMES, rounds=ROUNDS))
    killed: set[str] = set()

    def watch() -> None:
        if not kills:
            return
        if tiny.mark() == 1 and "agent" not in killed and "masked with" in tiny.output():
            killed.add("agent")
            _kill(tiny, 1)
            tiny.join(1)
        if tiny.mark() == 2 and "leader" not in killed and re.search("round 2: masked with", tiny.output()):
            killed.add("leader")
            tiny.kill_leader()
            tiny.lead()

    try:
        tiny.finish(watch)
        digest = tiny.check()
        workshop.keep_traces(tiny.node_folder(0))
        assert killed == ({"agent", "leader"} if kills else set())
        assert (f"round {ROUNDS}: masked with {HOMES - 1} nodes" in tiny.output()) == secure
        return digest
    finally:
        tiny.close()


def _kill(tiny: Tiny, index: int) -> None:
    home = tiny.homes[index]
    assert home is not None
    for worker in tiny.workers(index):
        worker.kill()
    home.kill()
    home.wait()


def test_a_masked_run_with_kills_ends_with_the_digest_of_one_without_masks(tmp_path: Path, workshop: Workshop) -> None:
    plain = run(tmp_path / "plain", workshop, secure=False)
    assert run(tmp_path / "masked", workshop, secure=True, kills=True) == plain


@pytest.mark.slow
def test_a_home_that_is_lost_after_its_upload_is_in_the_sum(tmp_path: Path, workshop: Workshop) -> None:
    """Home 3 is killed once its update of round 2 is in, and stays away until round 3 has opened, for which three are
    enough."""
    tiny: Tiny = type("Run", (Masked,), {})(tmp_path / "run", workshop, Recipe(homes=4, rounds=3))
    away: list[str] = []

    def watch() -> None:
        output = tiny.output()
        if not away and "home-3: update of round 2 committed" in output:
            away.append("gone")
            _kill(tiny, 3)
        if away == ["gone"] and tiny.mark() == 3:
            away.append("back")
            tiny.join(3)

    try:
        tiny.finish(watch)
        ledger = SqliteLedger(tiny.files.ledger)
        try:
            assert [list(row.participants) for row in ledger.rounds()][:2] == [tiny.names] * 2
        finally:
            ledger.close()
        assert away == ["gone", "back"] and tiny.found()["final"]["digest"]
    finally:
        tiny.close()
