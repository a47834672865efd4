# SPDX-License-Identifier: Apache-2.0
"""Informed rows on real parts: made once, fetched by every node, and fetched or made again where a disk lost or damaged
them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import needs_mosquitto
from forked_workers import ForkedWorkers
from tiny import Recipe, Tiny
from workshop import Workshop

from fedcore.system.durable import sha256_of


class Informed(Tiny):
    """A run whose subspaces are informed, but for the last."""

    def _job_text(self) -> str:
        text = (
            super()
            ._job_text()
            .replace("num_seeds = 4\n", 'num_seeds = 4\nprojection = "informed"\ninformed_share = 0.75\n')
        )
        texts = self.workshop.texts(7)
        return f'{text}\n[calibration]\nsource = "{texts}"\nrows = 20\n\n[evaluation]\nsource = "{texts}"\n'

    def rows(self, index: int) -> Path:
        return self.node_folder(index) / "artefact.bin"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, forked_workers: ForkedWorkers) -> Workshop:
    needs_mosquitto()
    folder = tmp_path_factory.mktemp("workshop")
    return Workshop(folder, forked_workers)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def run(folder: Path, workshop: Workshop, disturb: Callable[[Informed], None]) -> tuple[str, Informed]:
    """The digest that everybody ends with, after something was done in the middle of round 1."""
    tiny, done = Informed(folder, workshop, Recipe(rounds=2)), False

    def watch() -> None:
        nonlocal done
        if not done and tiny.mark() == 1 and all(tiny.rows(index).exists() and tiny.workers(index) for index in (0, 1)):
            done = True
            disturb(tiny)

    try:
        tiny.finish(watch)
        digest = tiny.check()
        workshop.keep_traces(tiny.node_folder(0))
        assert all(tiny.found()["nodes"][name]["agent_peak_rss_bytes"] <= 40_000_000 for name in tiny.names)
        assert all(0 <= row["accuracy"] <= 1 for row in tiny.found()["rounds"])
        export = tiny.start("coordinator", "export", tiny.run, folder / "model", "--runs", folder)
        assert export.wait(120) == 0 and (folder / "model" / "model.safetensors").exists(), tiny.output()
    finally:
        tiny.close()
    assert done, tiny.output()
    assert {sha256_of(path) for path in (tiny.rows(0), tiny.rows(1))} == {sha256_of(tiny.files.artefact)}
    return digest, tiny


@pytest.mark.slow
def test_informed_rows_that_were_lost_or_damaged_come_again(tmp_path: Path, workshop: Workshop) -> None:
    quiet, undisturbed = run(tmp_path / "quiet", workshop, lambda tiny: None)
    assert [undisturbed.output().count(f"{name}: run artefact") for name in undisturbed.names] == [1, 1]

    def disturb(tiny: Informed) -> None:
        # A worker that is started again finds other rows than its agent fetched.
        damage(tiny.rows(0))
        tiny.workers(0)[0].kill()
        # A node that is started again finds none.
        home = tiny.homes[1]
        assert home is not None and tiny.leader is not None
        home.send_signal(signal.SIGKILL)
        home.wait(120)
        tiny.rows(1).unlink()
        tiny.join(1)
        # So does a coordinator.
        tiny.kill_leader()
        damage(tiny.files.artefact)
        tiny.lead()

    disturbed, tiny = run(tmp_path / "disturbed", workshop, disturb)
    assert disturbed == quiet
    assert [tiny.output().count(f"{name}: run artefact") for name in tiny.names] == [2, 2]
    assert "home-0: " in tiny.output() and "this artefact (informed rows) is" in tiny.output()
