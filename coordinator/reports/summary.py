# SPDX-License-Identifier: Apache-2.0
"""What a run came to: `summary.json`, and the same as a page with plots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, select_autoescape

from coordinator.reports.plots import COLOURS, figure, svg
from coordinator.store.view import RunView
from fedcore.device.memoryplan import COMPONENT_NAMES

__all__ = ["summary_of", "write_report", "write_summary"]

# As in `fedkrso profile`.
_PART_COLOURS = (
    "#5c6b78", "#123f63", "#1b6ca8", "#6ba6d3", "#7d4f9e", "#b79bd0", "#d1495b", "#e9a23b", "#f0c987", "#c9d2d9",
)  # fmt: skip


def summary_of(view: RunView, refused: Mapping[str, int] = MappingProxyType({})) -> dict[str, Any]:
    """The run as plain values, ready for JSON.

    Args:
        view: The run at its end.
        refused: How many updates and messages were refused, by the node they came from.
    """
    rows = [
        {
            "round": row.round,
            "participants": list(row.participants),
            "accuracy": row.accuracy,
            "loss": row.loss if row.loss is not None else row.train_loss,
            "metrics": row.metrics,
            "uplink_bytes": row.uplink_bytes,
            "downlink_bytes": row.downlink_bytes,
            "seconds": round(row.seconds, 3),
            "norms": row.norms,
            "clipped": row.clipped,
            "capped": {node: {"examples": claimed, "weight": weight} for node, (claimed, weight) in row.capped.items()},
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
    return {
        "run": view.run,
        "method": view.method,
        "security": view.security,
        "rounds": rows,
        "final": final,
        "nodes": nodes,
    }


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write the summary beside `path` and rename it there."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def write_report(path: Path, summary: dict[str, Any]) -> None:
    """One page that needs nothing else: numbers in tables, plots as SVG inside."""
    environment = Environment(loader=PackageLoader("coordinator.reports"), autoescape=select_autoescape())
    environment.filters["mb"] = lambda value: "–" if value is None else f"{value / 1e6:.1f}"
    environment.filters["norm"] = lambda value: "–" if value is None else f"{value:.3g}"
    environment.filters["share"] = lambda value: "–" if value is None else f"{value:.3f}"
    plots = [
        _accuracy_by_round(summary),
        _accuracy_by_megabyte(summary),
        _memory_by_node(summary),
        _memory_by_part(summary),
    ]
    text = environment.get_template("report.html").render(summary=summary, plots=[plot for plot in plots if plot])
    path.write_text(text, encoding="utf-8")


def _measured(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in summary["rounds"] if row["accuracy"] is not None]


def _accuracy_by_round(summary: dict[str, Any]) -> dict[str, str] | None:
    rows = _measured(summary)
    if not rows:
        return None
    drawing, axes = figure()
    axes.plot([r["round"] for r in rows], [r["accuracy"] for r in rows], "o-", color=COLOURS[0])
    axes.set(xlabel="round", ylabel="held-out accuracy", ylim=(0, 1.02), xticks=[r["round"] for r in rows])
    return svg(
        drawing,
        "Accuracy by round",
        f"Held-out accuracy rises to {rows[-1]['accuracy']:.3f} in round {rows[-1]['round']}.",
    )


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
    axes.set(xlabel="megabytes sent so far", ylabel="held-out accuracy", ylim=(0, 1.02))
    axes.legend(frameon=False, loc="lower right")
    return svg(drawing, "Accuracy by megabyte sent", "Held-out accuracy against the megabytes that crossed the wire.")


def _memory_by_node(summary: dict[str, Any]) -> dict[str, str] | None:
    nodes = {name: node for name, node in summary["nodes"].items() if node["peak_bytes"]}
    if not nodes:
        return None
    drawing, axes = figure()
    names = list(nodes)
    places = range(len(names))
    budgets = [nodes[n]["budget_bytes"] / 1e6 for n in names]
    axes.barh(places, budgets, color="#e8eef3", edgecolor="#9fb3c2", label="budget")
    axes.barh(
        places,
        [nodes[n]["peak_bytes"] / 1e6 for n in names],
        height=0.5,
        color=COLOURS[2],
        label="peak, agent and worker",
    )
    axes.set_yticks(places, names)
    axes.set(xlabel="megabytes")
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
        sizes = [node["components"][part] / 1e6 for node in nodes.values()]
        if any(size >= 0.5 for size in sizes):
            axes.barh(places, sizes, left=left, color=colour, label=label)
        left = [total + size for total, size in zip(left, sizes, strict=True)]
    axes.set_yticks(places, list(nodes))
    axes.set(xlabel="megabytes at the worker's peak, as planned")
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    drawing.legend(frameon=False, loc="outside lower center", ncols=2, fontsize="small")
    return svg(drawing, "Where a worker's memory goes", "The planned peak of each node's worker by component.")
