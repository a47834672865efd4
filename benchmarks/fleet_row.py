# SPDX-License-Identifier: Apache-2.0
"""What a run of a simulated fleet came to, in one row: its speed, what it took, what was lost and repaired, and whether
every update was counted exactly once."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.fleet_contents import expected_digest
from benchmarks.fleet_node import Counts
from benchmarks.fleet_watched import Watched
from coordinator.store.ledger import SqliteLedger
from edge_client.agent.transfers import MOST_CHUNK_BYTES
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.weights.schema import ModelSchema

__all__ = ["SEED", "Load", "Measured", "row_of"]

SEED = 5
"""Of every run, so that its digest is known before."""


@dataclass(frozen=True)
class Load:
    """How much is asked of coordinator and broker.

    Attributes:
        nodes: How many take part.
        rounds: How many.
        quorum: Updates that make a round; those of all nodes by default.
        train_seconds: How long "training" takes.
        spread_seconds: Nodes come at instants drawn from so long; by default all at once.
    """

    nodes: int
    rounds: int
    quorum: int | None = None
    train_seconds: float = 0.0
    spread_seconds: float = 0.0


@dataclass(frozen=True)
class Measured:
    """What was seen of a run that has ended.

    Attributes:
        summary: The coordinator's.
        watched: `coordinator` and `broker`.
        counts: What crossed the wire, by process of nodes.
        seconds: From the first round's opening to the summary.
    """

    summary: dict[str, Any]
    watched: dict[str, Watched]
    counts: list[Counts]
    seconds: float


def row_of(load: Load, schema: ModelSchema, folder: Path, measured: Measured) -> dict[str, Any]:
    """The row of a run.

    Args:
        load: What was asked.
        schema: Of the model.
        folder: The run's, with its ledger.
        measured: What was seen of it.
    """
    ledger = SqliteLedger(folder / "ledger.sqlite")
    plan = ledger.plan(1)
    assert plan is not None
    updates = [[row.header.node for row in ledger.updates(number)] for number in range(1, load.rounds + 1)]
    sizes = [row.size_bytes for row in ledger.updates(1)]
    events = Counter(kind for _, kind, _, _ in ledger.events())
    ledger.close()
    digest = expected_digest(
        FedKRSOSettings(projection="signs", rank=8, bits=8, published_bits=16, num_seeds=5),
        schema,
        plan.base_digest,
        SEED,
        nodes=load.nodes,
        rounds=load.rounds,
    )
    total = _sum(measured.counts)
    chunk_bytes = min(plan.chunk_bytes, MOST_CHUNK_BYTES)
    update_chunks = sum(-(-size // chunk_bytes) for size in sizes) * load.rounds
    published_state_chunks = total.received["published_state"] + total.received["chunk"]
    up_bytes = sum(row["uplink_bytes"] for row in measured.summary["rounds"])
    down_bytes = total.received_bytes["published_state"] + total.received_bytes["chunk"]
    return {
        "nodes": load.nodes,
        "rounds": load.rounds,
        "seconds": round(measured.seconds, 2),
        "rounds_per_minute": round(60 * load.rounds / measured.seconds, 2),
        "seconds_until_closed": [round(row["seconds"], 2) for row in measured.summary["rounds"]],
        "chunk_bytes": plan.chunk_bytes,
        "update_mb": round(statistics.mean(sizes) / 1e6, 3),
        "up_mb": round(up_bytes / 1e6, 1),
        "up_mb_per_second": round(up_bytes / 1e6 / sum(row["seconds"] for row in measured.summary["rounds"]), 1),
        "down_mb": round(down_bytes / 1e6, 1),
        "both_mb_per_second": round((up_bytes + down_bytes) / 1e6 / measured.seconds, 1),
        "coordinator_peak_mb": round(measured.watched["coordinator"].peak_bytes / 1e6, 1),
        "coordinator_processor_seconds": round(measured.watched["coordinator"].processor_seconds, 1),
        "broker_peak_mb": round(measured.watched["broker"].peak_bytes / 1e6, 1),
        "broker_processor_seconds": round(measured.watched["broker"].processor_seconds, 1),
        "nodes_processor_seconds": round(total.processor_seconds, 1),
        "chunks_sent_again": total.sent["chunk"] - update_chunks,
        "chunks_held_back": total.held_back["chunk"],
        "offers": total.sent["offer"],
        "missing_requests": total.sent["missing"],
        "published_state_chunks_received_twice": published_state_chunks - total.needed_chunks,
        "adopted": total.adopted,
        "telemetry": total.sent["telemetry"],
        "updates_expected": load.nodes * load.rounds,
        "updates_committed": sum(map(len, updates)),
        "exactly_once": all(sorted(set(nodes)) == sorted(nodes) and len(nodes) == load.nodes for nodes in updates)
        and all(len(row["participants"]) == load.nodes for row in measured.summary["rounds"])
        and measured.summary["final"]["digest"] == digest,
        "nodes_with_the_digest": sum(node["digest"] == digest for node in measured.summary["nodes"].values()),
        "events": dict(events),
        "trouble": total.trouble[:5],
    }


def _sum(counts: list[Counts]) -> Counts:
    total = Counts()
    for part in counts:
        for field in msgspec.structs.fields(Counts):
            one, other = getattr(total, field.name), getattr(part, field.name)
            setattr(total, field.name, Counter(one) + Counter(other) if isinstance(one, dict) else one + other)
    return total
