# SPDX-License-Identifier: Apache-2.0
"""Processes of a fleet: one that fails is told with its last line, and nobody outlives the call."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from coordinator.provisioning.broker import LocalBroker
from fedcore.errors import RunError
from fedkrso.fleet import run_fleet
from fedkrso.simulation import Simulation, Wishes


def commands_of_children() -> list[str]:
    return [" ".join(child.cmdline()) for child in psutil.Process().children() if child.is_running()]


def test_a_node_that_fails_ends_the_fleet_with_its_last_line(tiny_job: Path, texts: Path, tmp_path: Path) -> None:
    simulation = Simulation(tiny_job, Wishes(data=str(texts), nodes=2))
    folder = tmp_path / "nodes"
    with LocalBroker(folder / "broker", ["coordinator", *simulation.names]) as broker:
        job, nodes = simulation.write(folder, broker)
        nodes["node-2"].write_text(nodes["node-2"].read_text().replace("memory_budget", "memory_limit"))
        with pytest.raises(RunError, match=r"node-2 ended with 2: error: .*unknown key 'memory_limit'") as failed:
            run_fleet(job, nodes, runs=tmp_path / "runs", logs=folder)
        assert failed.value.place == str(folder / "node-2.log")
        assert not [command for command in commands_of_children() if "fedkrso" in command]


def test_a_coordinator_that_fails_ends_the_fleet_with_its_code(
    tiny_job: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_job.write_text(tiny_job.read_text().replace("rounds = 2", "rounds = 0"))
    assert run_fleet(tiny_job, {}, runs=tmp_path / "runs", logs=tmp_path) == 2
    assert "round.rounds" in capfd.readouterr().err
