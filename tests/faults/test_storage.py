# SPDX-License-Identifier: Apache-2.0
"""A disk that fills up in the middle of a round: a state with numbers, and nothing that was kept is lost."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, appears, check, needs_mosquitto, run, wait_for
from plans import make_plan

from edge_client.agent.storage import Storage, round_bytes
from fedcore.errors import StorageError
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB of its own."""
    folder = tmp_path / "node-0"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no right to mount a small file system here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Leave not one byte free."""
    block = bytes(MIB)
    with path.open("wb", buffering=0) as file:
        while block:
            try:
                file.write(block)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                block = block[: len(block) // 2]


@pytest.mark.chaos
def test_a_full_disk_declines_with_a_reason_and_goes_on_from_what_was_kept(tmp_path: Path, small_disk: Path) -> None:
    needs_mosquitto()
    undisturbed = check(run(tmp_path / "undisturbed", "mosquitto", steps=12))
    cluster = Cluster(tmp_path, "mosquitto", steps=12)
    try:
        coordinator = cluster.coordinator()
        homes = [cluster.home(0, disk_reserve='"1 MiB"'), cluster.home(1)]
        appears(cluster, small_disk / "replica" / "intervals" / "0.safetensors")
        fill(small_disk / "ballast")
        wait_for(cluster, "home-0: declined round 1: the disk is full")
        wait_for(cluster, "declined home-0: the disk is full")
        assert homes[0].poll() is None, "a full disk ended the node"
        (small_disk / "ballast").unlink()
        wait_for(cluster, "home-0: there is room on the disk again")
        assert check(cluster.summary(coordinator)) == undisturbed
        assert cluster.exit_codes(*homes) == [0, 0]
    finally:
        cluster.close()
    resumed = re.search(
        r"home-0: round 1 trained [\d,]+ steps of \d+, drawn from 40 examples, in [\d.]+ s, (\d) intervals from before",
        cluster.output(),
    )
    assert resumed and int(resumed[1]) >= 1, cluster.output()[-3000:]


def test_what_a_round_leaves_on_disk_is_counted_and_bounded(tmp_path: Path) -> None:
    schema = ModelSchema((LayerSpec("l", 1000, 500),), (TensorSpec("head", (4, 10), False),))
    plan = make_plan(model_schema=schema, checksums=("",))
    # An update of 4 columns of 1000 bytes, and one interval of 4 x 1000 float32.
    assert 4 * 1000 + 4 * 4 * 1000 < round_bytes(plan) < 30_000
    storage = Storage(tmp_path, 30_000, 0)
    storage.require(round_bytes(plan), "round 1")
    with pytest.raises(
        StorageError, match=r"round 1 needs 25 MiB of disk, more than the limit of 0 MiB.*raise disk_limit"
    ):
        storage.require(26_000_000, "round 1")
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with pytest.raises(
        StorageError, match=r"the disk is full: round 1 needs .* beside a reserve of .*free space there"
    ):
        Storage(tmp_path, 2 * free, free).require(free // 2, "round 1")
