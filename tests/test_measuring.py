# SPDX-License-Identifier: Apache-2.0
"""Nodes measure published states on rows of their own, on real parts: broker, coordinator, agents and workers as
processes, MiniLM's real weights, voice intents."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from cluster import HOMES, Cluster, check, needs_mosquitto, wait_for

from coordinator.reports.lastmodel import last_model
from coordinator.store.folder import RunFolder

pytestmark = pytest.mark.usefixtures("quick_workers")

SECTION = '[evaluation]\nwhere = "both"\nshare = {share}\nbest_by = "nodes.loss"\nmetrics = ["f1"]\n'


def cluster_of(folder: Path, share: float, **options: Any) -> Cluster:
    folder.mkdir()
    cluster = Cluster(folder, "mosquitto", **options)
    job = folder / "job.toml"
    job.write_text(job.read_text().replace("[evaluation]\n", SECTION.format(share=share)))
    return cluster


def on_nodes(summary: dict[str, Any]) -> list[Any]:
    return [summary["start_on_nodes"], *(row["on_nodes"] for row in summary["rounds"])]


@pytest.mark.slow
def test_kills_change_no_number_and_the_best_round_is_kept(tmp_path: Path) -> None:
    needs_mosquitto()
    cluster = cluster_of(tmp_path / "one", 0.25, rounds=4)
    try:
        coordinator = cluster.coordinator()
        homes = [cluster.home(index) for index in range(HOMES)]
        undisturbed = cluster.summary(coordinator)
        assert cluster.exit_codes(*homes) == [0, 0]
    finally:
        cluster.close()
    digest = check(undisturbed, rounds=4)
    measured = on_nodes(undisturbed)
    assert all(list(one["scores"]) == ["home-0", "home-1"] and one["rows"] == measured[0]["rows"] for one in measured)
    assert measured[-1]["loss"] < measured[0]["loss"] and measured[-1]["accuracy"] > measured[0]["accuracy"]
    for one in measured:
        # Rows of all nodes together: the mean of the nodes' own, each by its rows.
        rows = {node: score["rows"] for node, score in one["scores"].items()}
        assert one["loss"] * one["rows"] == pytest.approx(
            sum(score["loss"] * rows[node] for node, score in one["scores"].items())
        )

    cluster = cluster_of(tmp_path / "two", 0.25, rounds=4)
    try:
        coordinator = cluster.coordinator()
        homes = [cluster.home(index) for index in range(HOMES)]
        wait_for(cluster, "home-1: version 0 on")
        homes[1].send_signal(signal.SIGKILL)
        homes[1].wait()
        cluster.home(1)
        wait_for(cluster, "round 2: update of")
        coordinator.send_signal(signal.SIGKILL)
        coordinator.wait()
        resumed = cluster.start("coordinator", "resume", "t", "--runs", cluster.folder)
        disturbed = cluster.summary(resumed)
    finally:
        cluster.close()
    assert check(disturbed, rounds=4) == digest
    assert on_nodes(disturbed) == measured and disturbed["best"] == undisturbed["best"]

    best, files = undisturbed["best"], RunFolder(tmp_path / "one" / "t")
    losses = [one["loss"] for one in measured[1:]]
    assert best == {"round": 1 + losses.index(min(losses)), "by": "nodes.loss", "value": min(losses)}
    assert last_model(files, "best").round == best["round"]
    report = files.report.read_text()
    assert "On the nodes' own held-out rows" in report and "best round: nodes.loss" in report


@pytest.mark.slow
def test_a_node_without_held_out_rows_takes_part_and_measuring_changes_no_digest(tmp_path: Path) -> None:
    needs_mosquitto()
    digests, summaries = set(), []
    for name, share in (("unmeasured", None), ("measured", 0.0)):
        cluster = cluster_of(tmp_path / name, share or 0.0)
        if share is None:
            job = cluster.folder / "job.toml"
            job.write_text(job.read_text().replace('where = "both"', 'where = "coordinator"').replace("nodes.", ""))
        apart = cluster.folder / "apart.jsonl"
        rows = [{"text": "turn on the kitchen light", "label": "HassTurnOn"}] * 3
        apart.write_text("".join(json.dumps(row) + "\n" for row in rows))
        try:
            coordinator = cluster.coordinator()
            source = f'"examples.voice_intents.data:home"\nheld_out = "{apart}"'
            homes = [cluster.home(0, source=source), cluster.home(1)]
            summaries.append(cluster.summary(coordinator))
            assert cluster.exit_codes(*homes) == [0, 0]
        finally:
            cluster.close()
        digests.add(check(summaries[-1]))
    assert len(digests) == 1
    assert on_nodes(summaries[0]) == [None] * 3
    assert [list(one["scores"]) for one in on_nodes(summaries[1])] == [["home-0"]] * 3
