# SPDX-License-Identifier: Apache-2.0
"""Memory faults on real parts: workers killed in every phase, a leak, a lower budget, a neighbour that takes the
device's memory.

In each the agent lives, and the round ends with a correct update or a refusal with a reason; nothing finished is
trained twice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, appears, check, needs_mosquitto, run, wait_for

from edge_client.memory.cgroups import memory_cgroup

MIB = 2**20


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    needs_mosquitto()
    made: list[Cluster] = []

    def make(**options: Any) -> Cluster:
        made.append(Cluster(tmp_path, "mosquitto", **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.mark.chaos
def test_workers_killed_in_every_phase_leave_no_trace(make_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    cluster = make_cluster()
    (tmp_path / "undisturbed").mkdir()
    undisturbed = check(run(tmp_path / "undisturbed" / "one", "mosquitto"))
    coordinator = cluster.coordinator()
    homes = [cluster.home(0), cluster.home(1)]
    # Before it has said a word, and while it loads.
    cluster.worker(homes[0]).kill()
    own = [tmp_path / "node-0" / "replica", tmp_path / "node-1" / "replica"]
    appears(cluster, own[1] / "base" / "0" / "weights.json")
    cluster.worker(homes[1]).kill()
    # In the middle of training, twice: with one and with two intervals finished.
    for interval in (0, 1):
        appears(cluster, own[0] / "intervals" / f"{interval}.safetensors")
        cluster.worker(homes[0]).kill()
    # While it takes the published state.
    wait_for(cluster, "round 2 is open")
    appears(cluster, tmp_path / "node-1" / "inbox")
    cluster.worker(homes[1]).kill()
    assert check(cluster.summary(coordinator)) == undisturbed
    assert cluster.exit_codes(*homes) == [0, 0]
    output = cluster.output()
    assert output.count("the worker ended (signal 9)") >= 4
    resumed = re.findall(
        r"home-0: round 1 trained [\d,]+ steps of \d+, drawn from 40 examples, in [\d.]+ s, (\d) intervals from before",
        output,
    )
    assert len(resumed) == 1 and int(resumed[0]) >= 1, output[-3000:]


@pytest.mark.slow
def test_a_budget_that_cannot_hold_the_model_is_refused_at_the_offer_with_the_numbers(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster(quorum=1)
    coordinator = cluster.coordinator()
    small, large = cluster.home(0, memory_budget='"300 MiB"'), cluster.home(1)
    assert cluster.exit_codes(small) == [8]
    wait_for(cluster, "declined")
    output = cluster.output()
    assert re.search(
        r"home-0: .*training needs \d+ MiB with the smallest plan \(.*\); the worker may have \d+ MiB: \d+ MiB short",
        output,
    )
    assert re.search(r"error: memory_budget: training needs .*raise memory_budget by \d+ MiB", output)
    assert cluster.exit_codes(coordinator, large) == [0, 0]
    # The coordinator was told as well.
    assert re.search(r"declined.*training needs \d+ MiB|training needs \d+ MiB.*declined", cluster.output()), (
        cluster.output()[-3000:]
    )


@pytest.mark.chaos
def test_a_budget_lowered_in_mid_run_is_kept(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(steps=30)
    coordinator = cluster.coordinator()
    homes = [cluster.home(0, memory_budget='"2 GiB"', source='"texts:long"'), cluster.home(1)]
    appears(cluster, cluster.folder / "node-0" / "replica" / "intervals" / "0.safetensors")
    path = cluster.folder / "home-0.toml"
    path.write_text(path.read_text().replace('"2 GiB"', '"530 MiB"'))
    homes[0].send_signal(signal.SIGHUP)
    summary = cluster.summary(coordinator)
    assert cluster.exit_codes(*homes) == [0, 0]
    output = cluster.output()
    assert "home-0: memory budget is now 530 MiB" in output and "home-0: stepped down: " in output
    assert "signal" not in output, "nobody was killed"
    assert [row["participants"] for row in summary["rounds"]] == [["home-0", "home-1"]] * 2
    assert summary["nodes"]["home-0"]["budget_bytes"] == 530 * MIB
    second = re.search(r"home-0: round 2: micro-batch (\d+) of 16.*; (\d+) MiB foreseen", output)
    assert second is not None and int(second[1]) < 16 and int(second[2]) < 530


@pytest.mark.chaos
def test_a_leaking_data_loader_ends_in_updates_or_refusals_and_never_in_a_dead_agent(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster(steps=60, rounds=1, quorum=1)
    coordinator = cluster.coordinator()
    leaky, steady = cluster.home(0, memory_budget='"640 MiB"', source='"texts:leaky"'), cluster.home(1)
    summary = cluster.summary(coordinator)
    assert cluster.exit_codes(steady) == [0] and cluster.exit_codes(leaky)[0] in (0, 8), cluster.output()[-3000:]
    output = cluster.output()
    assert "home-0: memory: " in output or "killed for its memory" in output, output[-3000:]
    for row in summary["rounds"]:
        assert "home-1" in row["participants"]
        assert "home-0" in row["participants"] or re.search(r"home-0: declined round \d: .*\d MiB", output), output[
            -3000:
        ]


@pytest.fixture
def device() -> Iterator[tuple[Path, Callable[[], None]]]:
    """A memory cgroup that stands for a whole device: agent, worker and whatever else runs there."""
    group = memory_cgroup()
    if group is None or group.version != 1 or os.geteuid() != 0:
        pytest.skip("needs root and version 1's memory controller, to make a device of its own")
    folder = group.folder / f"fedkrso-device-{os.getpid()}"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(str(900 * MIB))
    entrance = os.open(folder / "cgroup.procs", os.O_WRONLY)

    def enter() -> None:
        os.write(entrance, b"0")

    yield folder, enter
    os.close(entrance)
    for child in folder.iterdir():
        if child.is_dir():
            child.rmdir()
    folder.rmdir()


@pytest.mark.chaos
def test_a_neighbour_that_takes_the_device_s_memory_kills_no_agent(
    make_cluster: Callable[..., Cluster], device: tuple[Path, Callable[[], None]]
) -> None:
    cluster = make_cluster(steps=60, quorum=1)
    _, enter = device
    coordinator = cluster.coordinator()
    homes = [cluster.home(0, prepare=enter), cluster.home(1)]
    appears(cluster, cluster.folder / "node-0" / "replica" / "intervals" / "0.safetensors")
    # The neighbour takes what is left and then some: the kernel has to choose, and it chooses the worker.
    greedy = "x=[]\nfor _ in range(60):\n  x.append(bytearray(10*2**20))\nimport time\ntime.sleep(6)"
    neighbour = subprocess.Popen([sys.executable, "-S", "-c", greedy], preexec_fn=enter)
    summary = cluster.summary(coordinator)
    neighbour.kill()
    neighbour.wait()
    assert cluster.exit_codes(*homes) == [0, 0], cluster.output()[-3000:]
    output = cluster.output()
    assert "signal 9" in output, "the kernel took the worker"
    assert re.search(r"killed for its memory \(signal 9; agent and worker [\d,]+ MiB, [\d,]+ MiB available", output), (
        output[-3000:]
    )
    assert summary["nodes"]["home-0"]["digest"] == summary["final"]["digest"]
    # Either it made its update in the end or it said why not.
    for row in summary["rounds"]:
        assert "home-0" in row["participants"] or "home-0: declined" in output
