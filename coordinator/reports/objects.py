# SPDX-License-Identifier: Apache-2.0
"""A run as plain values for tables and for other programs: what it came to, its job in short, its nodes, and who was
refused and why."""

from __future__ import annotations

import itertools
from typing import Any, Final

from coordinator.job import Job
from coordinator.reports.nodes import natural
from coordinator.reports.runs import RunRecord, folder_bytes
from coordinator.reports.spread import spread_of
from coordinator.store.ledger import RoundRow
from coordinator.store.places import read_ledger
from coordinator.store.standing import standing_of

__all__ = ["ROUND_COLUMNS", "job_words", "node_objects", "reason_objects", "round_objects", "run_object"]

ROUND_COLUMNS: Final = (
    "run",
    "round",
    "participants",
    "accuracy",
    "loss",
    "train_loss",
    "uplink_bytes",
    "downlink_bytes",
    "seconds",
    "uplink_bytes_total",
    "downlink_bytes_total",
    "seconds_total",
    "largest_norm",
    "clipped",
    "capped",
    "nodes",
    "nodes_accuracy",
    "nodes_least_accuracy",
    "nodes_loss",
    "nodes_rows",
    "epsilon",
    "stale",
    "largest_staleness",
)
"""What every row of `round_objects` has, in this order."""

_REASONS = ("refused", "clipped", "capped", "declined", "digest", "revoked", "command")


def run_object(record: RunRecord) -> dict[str, Any]:
    """A run in a list; names that stay."""
    standing = standing_of(record.rows, record.evaluation)
    accuracies = [row.accuracy for row in record.measured if row.accuracy is not None]
    return {
        "run": record.name,
        "state": record.state,
        "rounds": len(record.rows),
        "total_rounds": record.job.round.rounds,
        "last_accuracy": accuracies[-1] if accuracies else None,
        "best_accuracy": max(accuracies, default=None),
        "best_round": None if standing is None else standing.best,
        "best_by": None if standing is None else standing.by,
        "last_nodes_accuracy": next((row.nodes.accuracy for row in reversed(record.rows) if row.nodes), None),
        "digest": record.view.digest,
        "nodes": len(record.nodes),
        "started_at": record.started_at,
        "uplink_bytes": sum(row.uplink_bytes for row in record.rows),
        "downlink_bytes": sum(row.downlink_bytes for row in record.rows),
        "folder_bytes": folder_bytes(record.root),
    }


def job_words(record: RunRecord) -> dict[str, str]:
    """What the job says, in short."""
    job, limits = record.job, record.job.safety
    labels = f", {len(job.task.labels)} labels" if isinstance(job.task.labels, tuple) and job.task.labels else ""
    bound = f"norm bound {limits.norm_bound:g} ({limits.norm_policy})" if limits.norm_bound else "no norm bound"
    ratio = "3 to 10" if limits.max_share_ratio is None else f"{limits.max_share_ratio:g}"
    share = f"weight at most {ratio} times the median" if limits.max_share_ratio != 0 else ""
    if not limits.combining().weighted:
        of = "updates" if limits.bucket == 1 else f"buckets of {limits.bucket} updates"
        share = f"{limits.rule} of {of} that weigh the same"
    return {
        "model": f"{job.model.folder}, {job.model.base}",
        "task": f"{job.task.kind}{labels}, {job.task.max_length} tokens",
        "method": job.method.described(),
        "rounds": f"{job.round.rounds}, {_of_round(job)}, quorum {job.round.quorum}, seed {job.seed}",
        "safety": ", ".join(filter(None, (bound, share))),
    }


def _of_round(job: Job) -> str:
    settings = job.round
    if not settings.buffered:
        return f"cohort {settings.cohort or 'all'}"
    return f"buffered: {settings.buffer_size} updates each, at most {settings.max_staleness} behind"


def node_objects(record: RunRecord) -> list[dict[str, Any]]:
    """A node's part in the run; names that stay."""
    rows = []
    for name in sorted(record.nodes, key=natural):
        seen = record.view.nodes.get(name)
        norms = [row.norms[name] for row in record.rows if name in row.norms]
        rows.append(
            {
                "node": name,
                "rounds": sum(name in row.participants for row in record.rows),
                "version": None if seen is None else max(seen.version, 0),
                "digest": "" if seen is None else seen.digest,
                "same_digest": seen is not None and bool(seen.digest) and seen.digest == record.view.digest,
                "peak_bytes": 0 if seen is None else seen.peak_bytes,
                "budget_bytes": 0 if seen is None else seen.budget_bytes,
                "refused": record.refused.get(name, 0),
                "rounds_clipped": sum(name in row.clipped for row in record.rows),
                "rounds_capped": sum(name in row.capped for row in record.rows),
                "largest_norm": max(norms, default=None),
            }
        )
    return rows


def reason_objects(record: RunRecord) -> list[dict[str, Any]]:
    """Who was refused, clipped, ... and why, each reason once with how often, the last ones last."""
    if not record.files.has_ledger():
        return []
    with read_ledger(record.files) as ledger:
        rows = ledger.reasons()
    return [
        {"at": at, "kind": kind, "node": node, "text": text, "times": times}
        for at, kind, node, text, times in rows
        if kind in _REASONS
    ]


def round_objects(record: RunRecord) -> list[dict[str, Any]]:
    """One flat object a round, with names that stay; what a task measures beside accuracy and loss comes last, as
    `metric_...`, and `nodes_metric_...` where nodes measured it."""
    metrics = sorted({name for row in record.rows for name in row.metrics})
    on_nodes = sorted({name for row in record.rows if row.nodes for name in row.nodes.metrics})
    totals = itertools.accumulate(record.rows, _add, initial=(0, 0, 0.0))
    next(totals)
    return [
        {
            "run": record.name,
            "round": row.round,
            "participants": len(row.participants),
            "accuracy": row.accuracy,
            "loss": row.loss,
            "train_loss": row.train_loss,
            "uplink_bytes": row.uplink_bytes,
            "downlink_bytes": row.downlink_bytes,
            "seconds": round(row.seconds, 3),
            "uplink_bytes_total": up,
            "downlink_bytes_total": down,
            "seconds_total": round(seconds, 3),
            "largest_norm": max(row.norms.values(), default=None),
            "clipped": len(row.clipped),
            "capped": len(row.capped),
            "nodes": list(row.participants),
            **_on_nodes(row),
            "epsilon": None if row.privacy is None else row.privacy.epsilon,
            "stale": len(row.stale),
            "largest_staleness": max((behind for behind, _ in row.stale.values()), default=0),
            **{f"metric_{name}": row.metrics.get(name) for name in metrics},
            **{f"nodes_metric_{name}": row.nodes.metrics.get(name) if row.nodes else None for name in on_nodes},
        }
        for row, (up, down, seconds) in zip(record.rows, totals, strict=True)
    ]


def _on_nodes(row: RoundRow) -> dict[str, Any]:
    found = row.nodes
    return {
        "nodes_accuracy": None if found is None else found.accuracy,
        "nodes_least_accuracy": None if found is None else spread_of(found).least,
        "nodes_loss": None if found is None else found.loss,
        "nodes_rows": None if found is None else found.rows,
    }


def _add(total: tuple[int, int, float], row: RoundRow) -> tuple[int, int, float]:
    return total[0] + row.uplink_bytes, total[1] + row.downlink_bytes, total[2] + row.seconds
