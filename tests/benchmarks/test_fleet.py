# SPDX-License-Identifier: Apache-2.0
"""A small slice of `python -m benchmarks.fleet`: real coordinator, real agents without workers, real chunked
transfers."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import needs_broker

from benchmarks.fleet import node_names, prepared
from benchmarks.fleet_row import Load
from coordinator.provisioning.broker import BrokerKind, LocalBroker


@pytest.mark.parametrize("kind", ["mosquitto", "nats"])
def test_twelve_nodes_over_tls_each_update_counts_exactly_once(tmp_path: Path, kind: BrokerKind) -> None:
    needs_broker(kind)
    users = ("coordinator", *node_names(12))
    with (
        LocalBroker(tmp_path / "broker", users, kind=kind, tls=True, run="fleet") as broker,
        prepared(Load(12, 2), tmp_path, broker) as fleet,
    ):
        row = fleet.run(60.0)
    # The digest comes from the seeds alone: it is right only if every update was counted, and none of them twice.
    assert row["exactly_once"] and row["updates_committed"] == 24
    assert row["nodes_with_the_digest"] == 12
    assert row["update_mb"] > 0.8 and row["up_mb"] > 24 * 0.8
    assert not row["events"] and not row["trouble"]
