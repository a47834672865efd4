# SPDX-License-Identifier: Apache-2.0
"""A node whose owner's policy objects to work: it says why, does nothing, and what it learns afterwards is the same to
the bit.

Real broker, coordinator, agents and workers; one agent runs on a simulated device that the test makes hot and cool.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import appears, needs_mosquitto
from forked_workers import ForkedWorkers
from tiny import Recipe, Tiny, undisturbed
from workshop import Workshop

from coordinator.store.ledger import SqliteLedger
from devices.kinds.simulated import SimulatedFile, Step, write_simulated
from fedcore.device.readings import Readings

# The product's own command; only the root of the file system that describes the device is another one.
_PROGRAM = """
import sys, pathlib
import edge_client.agent.agent as agent
from devices.detection import detect
root = pathlib.Path(sys.argv.pop(1))
agent.detect = lambda: detect(root)
from fedcore.command import main
main()
"""
POLICY = "\n[policy]\nmax_temperature_celsius = 75\npatience_seconds = 0\nsettle_seconds = 0\n"
TOO_HOT = "policy: cpu at 91.0 C, and max_temperature_celsius = 75"


class Boards(Tiny):
    """A run whose first home is a board with a temperature."""

    def heat(self, celsius: float) -> None:
        said = SimulatedFile(
            name="hot board", steps=(Step(0.0, Readings(temperatures_celsius={"cpu": celsius}, power_watts=7.5)),)
        )
        write_simulated(self.folder / "board", said)

    def join(self, index: int) -> None:
        if index != 0:
            super().join(index)
            return
        command = [
            sys.executable,
            "-c",
            _PROGRAM,
            str(self.folder / "board"),
            "client",
            "run",
            str(self.folder / "home-0.toml"),
        ]
        home = self.homes[0] = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, env=self.workshop.environment
        )
        self.processes.append(home)

    def said(self, text: str, times: int = 1) -> None:
        self.wait(lambda: self.output().count(text) >= times)

    def declined(self) -> list[str]:
        """Why home-0 declined, as the ledger has it."""
        ledger = SqliteLedger(self.files.ledger)
        try:
            return [event[3] for event in ledger.events() if event[1:3] == ("declined", "home-0")]
        finally:
            ledger.close()

    def _node_text(self, index: int) -> str:
        return super()._node_text(index) + (POLICY if index == 0 else "")


class LongRounds(Boards):
    """Rounds that take longer than it takes to stop somebody in their middle."""

    def _job_text(self) -> str:
        return super()._job_text().replace("\nsteps = 8", "\nsteps = 80")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, forked_workers: ForkedWorkers) -> Workshop:
    needs_mosquitto()
    folder = tmp_path_factory.mktemp("workshop")
    return Workshop(folder / "shared", forked_workers)


def end(tiny: Boards) -> None:
    tiny.wait(lambda: tiny.ended)
    tiny.wait(lambda: all(home is not None and home.poll() == 0 for home in tiny.homes))


@pytest.mark.slow
def test_a_hot_node_declines_with_the_reason_and_takes_part_when_it_is_cool(workshop: Workshop, tmp_path: Path) -> None:
    recipe = Recipe(rounds=2)
    digest, _ = undisturbed(tmp_path / "undisturbed", workshop, recipe)
    tiny = Boards(tmp_path / "run", workshop, recipe)
    try:
        tiny.heat(91.0)
        tiny.begin()
        tiny.said(f"declined home-0: {TOO_HOT}")
        tiny.said("home-1: update of round 1 committed")
        assert tiny.workers(0) == [], "a node that rests loads no model"
        # The round waits for its quorum: what a node sends after it has declined counts, while the round is open and
        # invites it.
        tiny.heat(50.0)
        tiny.said("home-0: working again")
        end(tiny)
        assert tiny.check(digest)
        assert tiny.declined() == [TOO_HOT]
        assert tiny.found()["nodes"]["home-0"]["agent_peak_rss_bytes"] <= 40_000_000
    finally:
        tiny.close()


@pytest.mark.chaos
def test_a_node_that_rests_through_a_round_catches_up(workshop: Workshop, tmp_path: Path) -> None:
    class Patient(Boards):
        def _job_text(self) -> str:
            return super()._job_text().replace("quorum = 2", "quorum = 1")

    tiny = Patient(tmp_path / "run", workshop, Recipe(rounds=3))
    try:
        tiny.heat(91.0)
        tiny.begin()
        tiny.wait(lambda: tiny.mark() >= 2)
        tiny.heat(50.0)
        end(tiny)
        summary = tiny.found()
        assert summary["rounds"][0]["participants"] == ["home-1"]
        assert (
            summary["nodes"]["home-0"]["digest"] == summary["nodes"]["home-1"]["digest"] == summary["final"]["digest"]
        )
        assert set(tiny.declined()) == {TOO_HOT}
    finally:
        tiny.close()


@pytest.mark.chaos
def test_training_that_is_ended_by_a_policy_goes_on_from_its_last_finished_interval(tmp_path: Path) -> None:
    needs_mosquitto()
    workshop, recipe = Workshop(tmp_path / "shared"), Recipe(rounds=1)
    digests = []
    for name in ("undisturbed", "disturbed"):
        tiny = LongRounds(tmp_path / name, workshop, recipe)
        try:
            tiny.heat(50.0)
            tiny.begin()
            if name == "disturbed":
                _rest_in_the_middle(tiny)
            end(tiny)
            digests.append(tiny.check())
            workshop.keep_traces(tiny.node_folder(0))
        finally:
            tiny.close()
    assert digests[0] == digests[1]


def _rest_in_the_middle(tiny: Boards) -> None:
    appears(tiny, tiny.node_folder(0) / "replica" / "intervals" / "2.safetensors")
    (worker,) = tiny.workers(0)
    worker.send_signal(signal.SIGSTOP)
    tiny.heat(91.0)
    tiny.said(f"declined home-0: {TOO_HOT}")
    worker.send_signal(signal.SIGCONT)
    tiny.wait(lambda: not worker.is_running() or worker.status() == "zombie")
    # In peace: nobody was killed, and the agent stays, at rest.
    assert "signal" not in tiny.output()
    tiny.wait(lambda: tiny.workers(0) == [])
    kept = len(list((tiny.node_folder(0) / "replica" / "intervals").glob("*.safetensors")))
    assert kept >= 3 and json.loads((tiny.folder / "board" / "simulated.json").read_text())["steps"]
    tiny.heat(50.0)
    tiny.said("home-0: round 1 trained")
    resumed = re.search(
        r"home-0: round 1 trained [\d,]+ steps of \d+, drawn from 24 examples, in [\d.]+ s, (\d+) intervals from before",
        tiny.output(),
    )
    assert resumed and int(resumed[1]) == kept, tiny.output()[-3000:]
