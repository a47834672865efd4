# SPDX-License-Identifier: Apache-2.0
"""A run of real parts is backed up while it goes on, then its coordinator is killed and its folder lost: what is made of
the backup ends with the undisturbed run's digest, though its nodes had gone on further."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cluster import needs_mosquitto
from forked_workers import ForkedWorkers
from tiny import Recipe, Tiny, undisturbed
from workshop import Workshop


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["pool", "fresh"])
def test_a_lost_run_is_made_again_of_its_backup(tmp_path: Path, forked_workers: ForkedWorkers, schedule: str) -> None:
    needs_mosquitto()
    recipe = Recipe(rounds=4, schedule=schedule)
    workshop = Workshop(tmp_path / "shared", forked_workers)
    digest, _ = undisturbed(tmp_path / "undisturbed", workshop, recipe)
    tiny = Tiny(tmp_path / "run", workshop, recipe)
    try:
        tiny.begin()
        tiny.wait(lambda: tiny.mark() >= 2)
        taken = tiny.start("runs", "backup", tiny.run, tmp_path / "backup.tar", "--runs", tiny.folder)
        assert taken.wait(120) == 0, tiny.output()[-3000:]
        tiny.wait(lambda: tiny.mark() >= 4)
        tiny.kill_leader()
        shutil.rmtree(tiny.files.root)
        assert tiny.start("runs", "restore", tmp_path / "backup.tar", "--runs", tiny.folder).wait(120) == 0
        tiny.lead()
        tiny.wait(lambda: tiny.ended)
        tiny.wait(lambda: all(home is None or home.poll() is not None for home in tiny.homes))
        tiny.check(digest)
        assert "restored from a backup" in tiny.output() or "another run of this name" in tiny.output()
    finally:
        tiny.close()
