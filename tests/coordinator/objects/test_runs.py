# SPDX-License-Identifier: Apache-2.0
"""Tiny real runs whose published states lie in a real S3 server, and whose updates go there too: the digest is that of
a run without one, also where the server is killed, or nodes may not use it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cluster import needs_mosquitto
from forked_workers import ForkedWorkers
from tiny import Recipe, Tiny, undisturbed
from workshop import Workshop

from tests.s3 import S3, needs_s3


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, forked_workers: ForkedWorkers) -> Workshop:
    needs_mosquitto()
    needs_s3()
    return Workshop(tmp_path_factory.mktemp("workshop") / "shared", forked_workers)


def _begun(folder: Path, workshop: Workshop, recipe: Recipe, s3: S3, homes: int, *, uploads: bool) -> Tiny:
    tiny = Tiny(folder, workshop, recipe, ledger=s3.section(uploads=uploads))
    for name in tiny.names[:homes]:
        file = folder / f"{name}.toml"
        file.write_text(file.read_text() + s3.allowed(uploads=uploads))
    return tiny


@pytest.mark.slow
@pytest.mark.parametrize("kill", (False, True))
@pytest.mark.parametrize("uploads", (False, True))
def test_a_run_whose_objects_lie_in_s3_ends_with_the_same_digest(
    uploads: bool, kill: bool, workshop: Workshop, tmp_path: Path
) -> None:
    recipe = Recipe(schedule="fresh")
    digest, _ = undisturbed(tmp_path / "undisturbed", workshop, recipe)
    with S3() as s3:
        # The other home has no word of its owner's that it may, and gets the same through the broker.
        tiny = _begun(tmp_path / "run", workshop, recipe, s3, homes=1, uploads=uploads)
        killed: list[int] = []

        def watch() -> None:
            if kill and not killed and tiny.mark() == 2:
                s3.kill()
                killed.append(tiny.mark())

        try:
            tiny.finish(watch)
            tiny.check(digest)
            output = tiny.output()
        finally:
            tiny.close()
    fetched = re.findall(
        rf"^(home-\d): fetched version (\d) from {re.escape(s3.origin)}: [\d.]+ MB$", output, re.MULTILINE
    )
    assert {home for home, _ in fetched} <= {"home-0"}, output[-3000:]
    assert kill or len(fetched) >= recipe.rounds - 1, fetched
    assert kill == bool(killed) == ("the broker brings" in output), output[-3000:]
    put = re.findall(
        rf"^(home-\d): update of round (\d) put to {re.escape(s3.origin)}: [\d.]+ MB$", output, re.MULTILINE
    )
    assert {home for home, _ in put} == ({"home-0"} if uploads else set()), output[-3000:]
    assert kill or len(put) == uploads * recipe.rounds, put
    assert output.count("1 updates came by way of the store") == len(put)


@pytest.mark.slow
def test_a_coordinator_and_a_node_that_are_killed_with_updates_in_the_store_lose_none(
    workshop: Workshop, tmp_path: Path
) -> None:
    recipe = Recipe(schedule="fresh")
    digest, _ = undisturbed(tmp_path / "undisturbed", workshop, recipe)
    with S3() as s3:
        tiny = _begun(tmp_path / "run", workshop, recipe, s3, homes=2, uploads=True)
        killed: list[str] = []

        def watch() -> None:
            put = tiny.output().count(" put to ")
            if not killed and put >= 1:
                # What was put is not fetched yet, or fetched and not told.
                killed.append("coordinator")
                tiny.kill_leader()
                tiny.lead()
            elif len(killed) == 1 and put >= 3:
                killed.append("node")
                home = tiny.homes[0]
                assert home is not None
                home.kill()
                home.wait()
                tiny.join(0)

        try:
            tiny.finish(watch)
            tiny.check(digest)
            output = tiny.output()
        finally:
            tiny.close()
    assert killed == ["coordinator", "node"] and "came by way of the store" in output, output[-3000:]
