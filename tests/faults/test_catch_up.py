# SPDX-License-Identifier: Apache-2.0
"""Nodes that were away, lost what they had, or come new to a run in progress: real broker, coordinator, agents and
workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import needs_mosquitto
from forked_workers import ForkedWorkers
from tiny import Recipe, Tiny
from workshop import Workshop

from coordinator.store.ledger import RoundRow, SqliteLedger
from fedcore.round.plan import StateObject

ROUNDS = 10
AWAY_UNTIL = 7


class Village(Tiny):
    """A run that goes on with whoever is there."""

    def _job_text(self) -> str:
        homes = self.recipe.homes
        text = (
            super()
            ._job_text()
            .replace(f"min_nodes = {homes}", "min_nodes = 1")
            .replace(f"quorum = {homes}", "quorum = 1")
        )
        # Ends of generations weigh as much as a snapshot within a few rounds: those of single inputs, 4 bits up and 8
        # down would take many.
        return text.replace(
            'schedule = "fresh"', 'schedule = "fresh"\nprojection = "signs"\nbits = 8\npublished_bits = 16'
        )

    def leave(self, index: int) -> None:
        """A home goes, and says so."""
        home = self.homes[index]
        assert home is not None
        home.terminate()
        home.wait(120)
        self.homes[index] = None

    def published(self) -> tuple[list[RoundRow], list[StateObject]]:
        ledger = SqliteLedger(self.files.ledger)
        try:
            return ledger.rounds(), ledger.published_states()
        finally:
            ledger.close()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, forked_workers: ForkedWorkers) -> Workshop:
    needs_mosquitto()
    folder = tmp_path_factory.mktemp("workshop")
    return Workshop(folder, forked_workers)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["fresh", "pool"])
def test_one_comes_back_after_many_rounds_and_one_comes_new(tmp_path: Path, workshop: Workshop, schedule: str) -> None:
    village = Village(tmp_path / "run", workshop, Recipe(homes=3, rounds=ROUNDS, schedule=schedule))
    try:
        village.lead()
        village.join(0)
        village.join(1)
        village.wait(lambda: "home-1: version 2" in village.output())
        village.leave(1)
        workshop.keep_traces(village.node_folder(0))
        workshop.warm(village.node_folder(2))
        village.wait(lambda: village.mark() >= AWAY_UNTIL)
        if schedule == "fresh":
            # While it was away its disk lost a sector as well.
            master = next((village.node_folder(1) / "replica" / "base").glob("[1-9]*/0.bin"))
            data = bytearray(master.read_bytes())
            data[len(data) // 2] ^= 1
            master.write_bytes(data)
            _, objects = village.published()
            # What the new one needs is not there any more as ends of generations: it takes a snapshot.
            assert any(obj.snapshot for obj in objects) and not any(obj.generation == 0 for obj in objects)
        village.join(1)
        village.join(2)
        village.wait(lambda: village.ended)
        codes = village.exit_codes(*(home for home in village.homes if home is not None))
        rows, objects = village.published()
        summary, final = village.found(), objects[-1]
        assert codes == [0, 0, 0] and final.version == ROUNDS, village.output()[-4000:]
        assert (
            list(rows[-1].participants) == village.names
            and [list(row.participants) for row in rows].count(["home-0"]) >= 2
        )
        for name in village.names:
            node = summary["nodes"][name]
            assert node["model_version"] == ROUNDS, village.output()[-4000:]
            assert node["digest"] == final.digest == summary["final"]["digest"]
            assert node["agent_peak_rss_bytes"] <= 40_000_000
    finally:
        village.close()
