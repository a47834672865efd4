# SPDX-License-Identifier: Apache-2.0
"""A server for Prometheus: how its runs and its nodes are, and where each run's own numbers are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.server.queueing import QueueState
from coordinator.server.rows import NodeRow, RunRow

__all__ = ["server_exposition", "targets"]


def server_exposition(rows: Iterable[RunRow], nodes: Iterable[NodeRow]) -> bytes:
    """All runs and nodes, in Prometheus' text format.

    Args:
        rows: Of runs.
        nodes: Of the fleet.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Server(list(rows), list(nodes)))
    return generate_latest(registry)


def targets(rows: Iterable[RunRow], host: str) -> list[dict[str, Any]]:
    """Where Prometheus finds the numbers of runs that go on, as its `http_sd_configs` asks.

    Args:
        rows: Of runs.
        host: Under which the server was asked.

    Example:
        >>> row = RunRow(run="voice", state="running", by="a", submitted_at=0.0, since=0.0, words="", method="fedavg")
        >>> targets([row], "127.0.0.1:8090")[0]["labels"]
        {'__metrics_path__': '/runs/voice/metrics', 'run': 'voice'}
    """
    # One whose process has written nothing yet has no numbers.
    return [
        {"targets": [host], "labels": {"__metrics_path__": f"/runs/{row.run}/metrics", "run": row.run}}
        for row in rows
        if row.state == "running" and row.method
    ]


class _Server(Collector):
    def __init__(self, rows: list[RunRow], nodes: list[NodeRow]) -> None:
        self._rows, self._nodes = rows, nodes

    def collect(self) -> Iterator[Metric]:
        states = Counter(row.state for row in self._rows)
        every = {state: states[state] for state in get_args(QueueState)}
        yield _labelled("runs", "Runs in each state.", "state", every)
        yield _labelled("nodes", "Nodes of the fleet, by whether they are there.", "online", self._online())
        going = [row for row in self._rows if row.state not in ("finished", "failed", "stopped")]
        for name, text, key in (
            ("run_round", "The round that is open, or that opens next.", "round"),
            ("run_rounds_planned", "Rounds of the run.", "rounds"),
            ("run_nodes_online", "Nodes of the run that are there.", "nodes_online"),
            ("run_nodes_attention", "Nodes of the run that somebody should look at.", "attention"),
            ("run_accuracy_ratio", "Of the last published state that was measured.", "accuracy"),
        ):
            values = {row.run: getattr(row, key) for row in going}
            yield _labelled(name, text, "run", {run: value for run, value in values.items() if value is not None})

    def _online(self) -> dict[str, int]:
        online = sum(node.online for node in self._nodes)
        return {"yes": online, "no": len(self._nodes) - online}


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"fedkrso_server_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family
