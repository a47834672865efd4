# SPDX-License-Identifier: Apache-2.0
"""One of three nodes sends, in well-formed and signed-off updates, 64 times the opposite of what it learned: real
broker, coordinator, agents and workers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import needs_mosquitto
from forked_workers import ForkedWorkers
from tiny import Recipe, Tiny
from workshop import Workshop, program

from fedcore.system.processes import WORKER_PYTHON

HOMES, LIAR = 3, 2
# The worker's own program, whose numbers are exchanged as they are written down.
POISON = """#!{python}
import os, runpy, sys
if sys.argv[1:3] != ["-m", "edge_client.worker"]:
    os.execv("{python}", ["{python}", *sys.argv[1:]])
from dataclasses import replace
from fedcore.model import update
from fedcore.numbers.accumulator import RowScaled
honest = update.write_update
def write_update(path, header, records):
    def lies():
        for record in records:
            part = record.part
            yield replace(record, part=RowScaled(-part.q, part.exponent + 6))
    honest(path, header, lies())
update.write_update = write_update
sys.argv = sys.argv[2:]
runpy.run_module("edge_client.worker", run_name="__main__", alter_sys=True)
"""


class Lied(Tiny):
    """A run of three whose coordinator measures; the last home's worker lies."""

    rule = "mean"

    def _job_text(self) -> str:
        text = re.sub(r"learning_rate = .*", "learning_rate = 1e-2\ntensor_learning_rate = 1e-2", super()._job_text())
        text = text.replace("\nsteps = 8", "\nsteps = 16").replace("interval_steps = 2", "interval_steps = 4")
        # The norm of the lie is not looked at: what is seen is the rule alone.
        safety = f'[safety]\nrule = "{self.rule}"\nnorm_ratio = 0.0\n'
        return f'{text}\n{safety}\n[evaluation]\nsource = "{self.workshop.texts(9)}"\n'

    def join(self, index: int) -> None:
        if index != LIAR:
            super().join(index)
            return
        worker = self.folder / "python"
        worker.write_text(POISON.format(python=sys.executable))
        worker.chmod(0o700)
        environment = {**self.workshop.environment, WORKER_PYTHON: str(worker)}
        command = program("client", "run", self.folder / f"home-{index}.toml")
        self.processes.append(subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environment))
        self.homes[index] = self.processes[-1]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, forked_workers: ForkedWorkers) -> Workshop:
    needs_mosquitto()
    return Workshop(tmp_path_factory.mktemp("workshop"), forked_workers)


def run(folder: Path, workshop: Workshop, *, rule: str, rounds: int, kill: bool = False) -> tuple[str, dict[str, Any]]:
    """The digest that everybody ends with, and the summary."""
    kind = type("Run", (Lied,), {"rule": rule})
    tiny: Tiny = kind(folder, workshop, Recipe(homes=HOMES, rounds=rounds))
    killed: list[bool] = []

    def watch() -> None:
        if kill and not killed and tiny.mark() == 3:
            killed.append(True)
            tiny.kill_leader()
            tiny.lead()

    try:
        tiny.finish(watch)
        digest = tiny.check()
        workshop.keep_traces(tiny.node_folder(0))
        assert bool(killed) == kill
        return digest, tiny.found()
    finally:
        tiny.close()


@pytest.mark.slow
def test_a_lying_node_destroys_the_mean_and_not_the_median(tmp_path: Path, workshop: Workshop) -> None:
    _, mean = run(tmp_path / "mean", workshop, rule="mean", rounds=3)
    digest, median = run(tmp_path / "median", workshop, rule="median", rounds=5)
    norms = median["rounds"][0]["norms"]
    assert norms["home-2"] > 30 * max(norms["home-0"], norms["home-1"]), "the lie is taken as it came"
    # Two classes of equal size: a guess has a loss of 0.69. Without a liar it is 0.43 after three rounds.
    assert mean["rounds"][-1]["accuracy"] <= 0.6 and mean["rounds"][-1]["loss"] > 5
    assert median["rounds"][-1]["accuracy"] >= 0.95 and median["rounds"][-1]["loss"] < 0.5
    # A coordinator that is killed while round 3 is open ends with the same bits.
    again, _ = run(tmp_path / "again", workshop, rule="median", rounds=5, kill=True)
    assert again == digest
